import json
import time

import pytest

from save_dist.core.errors import InfrastructureError
from save_dist.tracking.mlflow import sync
from save_dist.tracking.system import sample, sampled
from save_dist.tracking.tracker import Journal, open_journal, read_records


@pytest.fixture
def journal(run_dir):
    journal = open_journal(run_dir / "metrics.jsonl")
    journal.start("h")
    return journal


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited half a minute"
        time.sleep(0.01)


def samples(journal):
    return list(read_records(journal.path, kind="metrics"))


def test_the_load_of_the_machine_is_in_the_journal_while_a_job_runs(journal):
    with sampled(journal, every_s=0.02):
        until(lambda: len(samples(journal)) >= 2)
    n_samples = len(samples(journal))
    time.sleep(0.1)
    assert len(samples(journal)) == n_samples  # it ends with the job
    record = samples(journal)[0]
    assert record.run == "pipeline" and all(name.startswith("system/") for name in record.values)
    assert 0 < record.values["system/system_memory_usage_percentage"] <= 100
    assert record.values["system/disk_available_megabytes"] > 0


def test_a_restart_goes_on_with_larger_steps(journal, server):
    first = json.loads(journal.path.read_text())
    first["time_ms"] -= 100_000
    journal.path.write_text(json.dumps(first) + "\n")
    with sampled(journal, every_s=0.02):
        until(lambda: samples(journal))
    assert samples(journal)[0].step >= 100
    sync(journal.path, server.uri, "test")
    assert server.history("pipeline", "system/cpu_utilization_percentage")


def test_what_the_network_carried_counts_from_the_start(tmp_path):
    found = sample(tmp_path, sent=0, received=0)
    later = sample(tmp_path, sent=10**6, received=0)
    name = "system/network_transmit_megabytes"
    assert later[name] == pytest.approx(found[name] - 1, abs=0.5)


def test_a_full_disk_ends_the_samples_and_not_the_job(journal, monkeypatch, caplog):
    def full(*arguments):
        raise InfrastructureError("full")

    monkeypatch.setattr(Journal, "metrics", full)
    with sampled(journal, every_s=0.01):
        until(lambda: "event=system_metrics_stopped" in caplog.text)
