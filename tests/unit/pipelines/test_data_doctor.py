"""What the doctor says of stores: facts from the schema, measured pace, advice."""

import dataclasses
import json

import numpy as np
import pytest
from helpers_soma import CENSUS, OURS, encoded_counts, make_store
from typer.testing import CliRunner

from save_dist import cli
from save_dist.config.schema import SourceConfig
from save_dist.core.errors import DataError
from save_dist.data.layout import Comparison, Pace, StoreFacts
from save_dist.pipelines import data_doctor

N_CELLS, N_GENES = 400, 90
FACTS = StoreFacts(1000, 50, 20_000, (64, 50), 1280, "uint16", False, True, 3, 30_000)
COMPARED = Comparison(500, 128, 0, 40, Pace(1000, 2.0, 1.0), Pace(1000, 1.0, 0.8), 1.4)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """One store in our layout, one with tiles narrower than its genes."""
    joinids = np.arange(N_CELLS, dtype=np.int64) * 2
    folder = tmp_path_factory.mktemp("stores")
    counts = encoded_counts(joinids, N_GENES)
    for name, layout in (("ours", OURS), ("census", CENSUS)):
        make_store(folder / name, joinids, counts, layout)
    return folder, counts


def levels(checks):
    return {check.name: check.level for check in checks}


@pytest.mark.parametrize("name", ["ours", "census"])
def test_facts_are_those_of_the_store(stores, name):
    folder, counts = stores
    checks, summary = data_doctor.examine(SourceConfig(uri=str(folder / name)))
    facts = summary["facts"]
    assert facts["n_entries"] == np.count_nonzero(counts)
    assert (facts["n_cells"], facts["n_genes"]) == (N_CELLS, N_GENES)
    assert facts["tile"] == ((64, N_GENES) if name == "ours" else (2048, 32))
    assert facts["capacity"] == (1024 if name == "ours" else 700)
    assert facts["count_type"] == ("uint16" if name == "ours" else "float")
    assert facts["allows_duplicates"] == (name == "census")
    assert (facts["n_fragments"], facts["n_bytes"] > 1000) == (1, True)
    assert min(summary["gain"], summary["cells_per_second"]) > 0
    found = {check.name: check.found for check in checks}
    entries = np.count_nonzero(counts, axis=1)
    assert "no checksums: a byte that changes may pass" in found["files"]
    assert f"({entries.min()} to {entries.max()} in the sample)" in found["cells"]
    assert "400 cells copied into our layout" in found["re-ingest"]
    assert levels(checks)["tiles"] == ("ok" if name == "ours" else "warning")


@pytest.mark.parametrize(
    ("change", "name", "level"),
    [
        pytest.param({}, "tiles", "ok", id="our tiles"),
        pytest.param({"tile": (64, 49)}, "tiles", "warning", id="narrow tiles"),
        pytest.param({"capacity": 100_000}, "tiles", "warning", id="large capacity"),
        pytest.param({"n_fragments": 2000}, "files", "warning", id="many fragments"),
        pytest.param({"n_fragments": None, "n_bytes": None}, "files", "ok", id="remote"),
    ],
)
def test_judgement_of_facts(change, name, level):
    checks = data_doctor.judge(dataclasses.replace(FACTS, **change), COMPARED)
    assert levels(checks)[name] == level


@pytest.mark.parametrize(("cpu_s", "level"), [(0.8, "ok"), (0.25, "warning")])
def test_a_copy_is_advised_when_it_pays(cpu_s, level):
    compared = dataclasses.replace(COMPARED, copy=Pace(1000, 1.0, cpu_s))
    check = data_doctor.judge(FACTS, compared)[-1]
    assert check.level == level
    assert f"{1 / cpu_s:.1f} times as many" in check.found
    assert ("ingest them" in check.remedy) == (level == "warning")


def test_values_that_are_no_counts_are_refused(tmp_path):
    joinids = np.arange(50, dtype=np.int64)
    values = encoded_counts(joinids, 20) / 3
    make_store(tmp_path / "s", joinids, values, CENSUS)
    with pytest.raises(DataError, match="which is no count"):
        data_doctor.examine(SourceConfig(uri=str(tmp_path / "s")))


def test_the_command(stores):
    folder, _ = stores
    done = CliRunner().invoke(cli.app, ["doctor", "data", str(folder / "census")])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.output.strip().splitlines()[-1])
    assert summary["verb"] == "doctor data"
    assert [check["name"] for check in summary["checks"]] == [
        "cells",
        "tiles",
        "files",
        "reading",
        "re-ingest",
    ]
    missing = CliRunner().invoke(cli.app, ["doctor", "data", str(folder / "nowhere")])
    assert missing.exit_code == 3
