"""Who starts Ray, and who ends it."""

import contextlib

from save_dist.cluster import runtime
from save_dist.config.schema import ClusterConfig


def test_blocks_within_blocks_share_one_ray(monkeypatch):
    events = []

    @contextlib.contextmanager
    def running(config):
        events.append("start")
        yield
        events.append("end")

    monkeypatch.setattr(runtime, "_running", running)
    monkeypatch.setattr(runtime, "_SETTINGS", {})
    monkeypatch.setattr(runtime, "_PRIVATE_SETTINGS", {})
    monkeypatch.setattr("ray.is_initialized", lambda: bool(events))
    with runtime.shared_session():
        for _ in range(2):
            with runtime.shared_session(), runtime.session(ClusterConfig()):
                assert events == ["start"]
        assert events == ["start"]
    assert events == ["start", "end"]
