"""At most one holder; a dead one is replaced."""

import threading
import time

import pytest

from save_dist.core import lease
from save_dist.core.errors import InfrastructureError
from save_dist.core.lease import Lease


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "lease.json"


def left(path):
    return [p.name for p in path.parent.iterdir() if p.suffix != ".lock"]


def test_one_holds_and_gives_back(path):
    with lease.hold(path) as first:
        with lease.hold(path) as second:
            assert (first, second) == (True, False)
        assert lease.read(path).expires_s > time.time()
    assert left(path) == []
    with lease.hold(path) as again:
        assert again


def test_given_back_when_the_work_fails(path):
    with pytest.raises(ZeroDivisionError), lease.hold(path) as ours:
        1 / (not ours)
    assert left(path) == []


@pytest.mark.parametrize(
    ("content", "is_ours"),
    [
        pytest.param(Lease("other", time.time() + 1e6).dump(), False, id="alive"),
        pytest.param(Lease("other", time.time() - 1.0).dump(), True, id="expired"),
        pytest.param(b"{torn", True, id="unreadable"),
    ],
)
def test_lease_of_another(path, content, is_ours):
    path.parent.mkdir()
    path.write_bytes(content)
    with lease.hold(path) as ours:
        assert ours is is_ours
    assert left(path) == ([] if is_ours else ["lease.json"])


def test_lease_is_renewed_while_it_is_held(path):
    with lease.hold(path, time_to_live_s=0.2):
        first = lease.read(path)
        deadline = time.monotonic() + 5
        while lease.read(path) == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lease.read(path).owner == first.owner
        assert lease.read(path).expires_s > first.expires_s
        with lease.hold(path, time_to_live_s=0.2) as second:
            assert not second


def test_lease_that_was_taken_away_is_not_given_back_for_the_new_holder(path):
    with lease.hold(path):
        path.write_bytes(Lease("new", time.time() + 1e6).dump())
    assert lease.read(path).owner == "new"


def test_of_many_at_once_one_takes_an_expired_lease(path):
    path.parent.mkdir()
    path.write_bytes(Lease("dead", 0.0).dump())
    start, done, held = threading.Barrier(8), threading.Barrier(8), []

    def compete():
        start.wait()
        with lease.hold(path) as ours:
            held.append(ours)
            done.wait()  # nobody gives back before all have tried

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held.count(True) == 1
    assert left(path) == []


def test_file_system_without_locks_is_an_error(path, monkeypatch):
    def refuse(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lease.fcntl, "flock", refuse)
    with pytest.raises(InfrastructureError, match=r"no file locks.*No locks available"):
        lease.hold(path).__enter__()
