import errno
import json
import math
import multiprocessing
import os
import pickle
import re

import pytest

from save_dist.core.errors import InfrastructureError
from save_dist.tracking.tracker import (
    Journal,
    flatten,
    open_journal,
    parse_record,
    read_records,
)


@pytest.fixture
def journal(run_dir):
    return open_journal(run_dir / "metrics.jsonl")


def only(journal, **chosen):
    (record,) = read_records(journal.path, **chosen)
    return record


@pytest.mark.parametrize(
    ("write", "kind", "step", "values"),
    [
        pytest.param(lambda j: j.start("h"), "start", None, {"identity": "h"}, id="start"),
        pytest.param(lambda j: j.end("FAILED"), "end", None, {"status": "FAILED"}, id="end"),
        pytest.param(
            lambda j: j.params({"vae": {"width": 8}, "seed": 0}),
            "params",
            None,
            {"vae.width": "8", "seed": "0"},
            id="params",
        ),
        pytest.param(
            lambda j: j.metrics({"train/loss": 1.5}, 20),
            "metrics",
            20,
            {"train/loss": 1.5},
            id="metrics",
        ),
        pytest.param(lambda j: j.tags({"a": "b"}), "tags", None, {"a": "b"}, id="tags"),
        pytest.param(
            lambda j: j.dataset("pbmc", "store.soma", "d1", "training", {"n_cells": 3}),
            "dataset",
            None,
            {
                "name": "pbmc",
                "uri": "store.soma",
                "digest": "d1",
                "context": "training",
                "facts": {"n_cells": 3},
            },
            id="dataset",
        ),
    ],
)
def test_each_call_is_one_record(journal, write, kind, step, values):
    write(journal.child("vae"))
    record = only(journal)
    assert (record.run, record.kind, record.step) == ("vae", kind, step)
    assert record.values == values
    assert record.time_ms > 1_600_000_000_000


def test_non_finite_numbers_stay_valid_json_and_come_back(journal):
    journal.metrics({"a": math.nan, "b": math.inf, "c": 1.0}, 0)
    text = journal.path.read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    values = {key: float(value) for key, value in only(journal).values.items()}
    assert math.isnan(values["a"])
    assert (values["b"], values["c"]) == (math.inf, 1.0)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(None, "FINISHED", id="no error"),
        pytest.param(ValueError, "FAILED", id="error"),
        pytest.param(KeyboardInterrupt, "KILLED", id="interrupt"),
        pytest.param(SystemExit, "KILLED", id="exit"),
    ],
)
def test_running_ends_with_the_status_of_its_block(journal, error, status):
    def block():
        with journal.running("h"):
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(error):
            block()
    assert only(journal, kind="end").values == {"status": status}


def test_attempts_count_the_starts_of_the_run_folder(run_dir):
    path = run_dir / "metrics.jsonl"
    for expected in range(3):
        journal = open_journal(path)
        assert journal.attempt == journal.child("vae").attempt == expected
        with journal.running(), journal.child("vae").running():
            pass


def test_a_torn_line_is_skipped_and_swallows_nothing(journal, caplog):
    journal.metrics({"a": 1.0}, 1)
    with journal.path.open("a") as file:
        file.write('{"run": "vae", "ki')
    again = open_journal(journal.path)
    again.metrics({"a": 2.0}, 2)
    assert [r.step for r in read_records(journal.path)] == [1, 2]
    assert "event=journal_line_skipped" in caplog.text


@pytest.mark.parametrize("line", [b"[1]\n", b'{"run": "x"}\n', b"\xff\n"])
def test_a_line_that_is_no_record_is_none(line):
    assert parse_record(line) is None


def _write_many(journal, run):
    for step in range(300):
        journal.child(run).metrics({f"key_{n}": step + n / 10 for n in range(20)}, step)


def test_lines_of_several_processes_never_mix(journal):
    context = multiprocessing.get_context("spawn")
    runs = ["vae", "flow", "generate"]
    processes = [context.Process(target=_write_many, args=(journal, run)) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    for run in runs:
        assert [r.step for r in read_records(journal.path, run=run)] == list(range(300))
    assert len(journal.path.read_bytes().splitlines()) == 900


def test_a_journal_travels(journal):
    pickle.loads(pickle.dumps(journal.child("vae"))).metrics({"a": 1.0}, 1)
    assert only(journal).run == "vae"


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_artifact_paths_are_relative_to_the_run_folder_if_below_it(journal, tmp_path, inside):
    path = (journal.path.parent if inside else tmp_path) / "report" / "index.html"
    journal.artifact(path, "report")
    stored = only(journal).values["path"]
    assert stored == ("report/index.html" if inside else str(path.resolve()))


def _full_disk(handle, data):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("write", "text"),
    [
        pytest.param(_full_disk, "could not append .* No space left", id="refused"),
        pytest.param(lambda handle, data: 3, "took 3 of .* bytes: the disk is full", id="short"),
    ],
)
def test_a_full_disk_is_an_infrastructure_error(journal, monkeypatch, write, text):
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(InfrastructureError, match=text):
        journal.metrics({"a": 1.0}, 1)


def test_nothing_secret_reaches_the_file(journal):
    uri = "postgresql://me:hunter2@db/x"
    journal.params({"tracking": {"uri": uri}})
    journal.tags({"store": uri})
    journal.dataset("d", uri, "x", "training", {"source": uri})
    assert "hunter2" not in journal.path.read_text()
    assert len(re.findall(r"postgresql://\*\*\*@db/x", journal.path.read_text())) == 4


def test_flatten_keeps_lists_as_text():
    assert flatten({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": "[1, 2]", "d": "None"}


def test_reading_a_journal_that_is_not_there_gives_nothing(run_dir):
    assert list(read_records(run_dir / "none.jsonl")) == []
    assert Journal(run_dir / "none.jsonl").attempt == 0
