"""The probe of shared storage leaves nothing behind and believes no node's word alone."""

import pytest

from save_dist.cluster import nodes
from save_dist.cluster.facts import machine_facts
from save_dist.config.schema import ClusterConfig
from save_dist.core.errors import InfrastructureError


@pytest.mark.parametrize("made", ["", "runs", "runs/a/b"])
def test_probe_leaves_no_trace(tmp_path, made):
    shared = tmp_path / "runs" / "a" / "b"
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with nodes._probe(shared) as probe:
        assert (probe.folder / "driver").read_text() == probe.word
    assert sorted(tmp_path.rglob("*")) == before


def test_probe_of_an_unwritable_place_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InfrastructureError, match=r"takes no files.*run\.dir"),
        nodes._probe(tmp_path / "file" / "run"),
    ):
        pass


def test_a_node_whose_file_does_not_arrive_shares_nothing(tmp_path):
    about = machine_facts("n", [], [])
    with nodes._probe(tmp_path) as probe:
        (probe.folder / "honest").write_text(probe.word)
        answers = {"honest": (about, ""), "elsewhere": (about, ""), "blind": (about, "no file")}
        found = nodes._storage(answers, probe)
    assert found["honest"] == "" and found["blind"] == "no file"
    assert "does not see" in found["elsewhere"]


@pytest.mark.slow
def test_every_node_of_a_running_cluster_answers(ray_session, tmp_path):
    found = nodes.cluster_facts(ClusterConfig(), ["ray"], [str(tmp_path)], tmp_path / "run")
    (node,) = found.nodes
    assert found.silent == () and found.storage == {node.node: ""}
    assert node.versions["ray"] == ray_session.__version__
    assert abs(node.clock_skew_s) <= node.clock_error_s + 0.1
    assert found.n_cpus == ray_session.cluster_resources()["CPU"] == 4
    assert list(tmp_path.iterdir()) == []
