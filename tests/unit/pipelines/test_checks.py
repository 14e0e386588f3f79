"""The doctor's judgement on recorded facts."""

from dataclasses import replace

import pytest

from save_dist.cluster.facts import GpuFacts, MachineFacts
from save_dist.cluster.nodes import ClusterFacts
from save_dist.config.schema import ClusterConfig
from save_dist.pipelines import checks
from save_dist.pipelines.checks import GIB, TokenFile

NO_GPU = GpuFacts(0, "", "", "")
DRIVER = MachineFacts(
    node="driver",
    python="3.11.7",
    versions={"ray": "2.60.0", "torch": "2.13.0"},
    free_bytes={"/shared/run": 100 * GIB},
    shared_memory_bytes=8 * GIB,
    gpu=NO_GPU,
)
NODE = replace(DRIVER, node="10.0.0.1-abc")
GPU_NODE = replace(NODE, gpu=GpuFacts(4, "12.8", "2.27.3", ""))
CLUSTER = ClusterFacts((NODE, NODE), (), n_cpus=16.0, n_gpus=0.0, storage={})


def test_equal_versions_are_ok():
    check = checks.check_versions(DRIVER, [NODE, NODE])
    assert (check.level, check.remedy) == ("ok", "")
    assert "ray 2.60.0" in check.found


@pytest.mark.parametrize(
    ("node", "found"),
    [
        pytest.param({"python": "3.12.1"}, "has python 3.12.1, the driver 3.11.7", id="python"),
        pytest.param(
            {"versions": {"ray": "2.59.0", "torch": "2.13.0"}},
            "10.0.0.1-abc has ray 2.59.0, the driver 2.60.0",
            id="ray",
        ),
        pytest.param(
            {"versions": {"ray": "absent", "torch": "2.13.0"}}, "has ray absent", id="absent"
        ),
    ],
)
def test_a_node_of_its_own_version_is_an_error(node, found):
    check = checks.check_versions(DRIVER, [NODE, replace(NODE, **node)])
    assert check.level == "error" and found in check.found and "one image" in check.remedy


def test_package_absent_everywhere_is_an_error():
    bare = replace(DRIVER, versions={"ray": "absent", "torch": "2.13.0"})
    assert checks.check_versions(bare, [replace(bare, node="n")]).level == "error"


@pytest.mark.parametrize(
    ("cluster", "config", "level", "found"),
    [
        pytest.param({}, None, "ok", "2 nodes answer, 16 CPUs", id="no-job"),
        pytest.param({}, {"n_workers": 8, "cpus_per_worker": 2}, "ok", "16 CPUs", id="fits"),
        pytest.param(
            {}, {"n_workers": 9, "cpus_per_worker": 2}, "warning", "ask for 18", id="cpus"
        ),
        pytest.param({}, {"gpus_per_worker": 1}, "warning", "2 GPUs", id="gpus"),
        pytest.param({"silent": ("n3: timed out",)}, None, "error", "n3: timed", id="silent"),
    ],
)
def test_nodes(cluster, config, level, found):
    wanted = None if config is None else ClusterConfig(**config)
    check = checks.check_nodes(replace(CLUSTER, **cluster), wanted)
    assert check.level == level and found in check.found


@pytest.mark.parametrize(
    ("storage", "level"),
    [
        pytest.param({"a": "", "b": ""}, "ok", id="shared"),
        pytest.param({"a": "", "b": "FileNotFoundError: No such file"}, "error", id="not-there"),
    ],
)
def test_storage(storage, level):
    check = checks.check_storage(storage, "/shared/run")
    assert check.level == level
    assert "/shared/run" in check.found and (level == "ok") == (check.remedy == "")


@pytest.mark.parametrize(
    ("free", "level"),
    [
        pytest.param(100 * GIB, "ok", id="plenty"),
        pytest.param(20 * GIB, "ok", id="just"),
        pytest.param(20 * GIB - 1, "warning", id="little"),
        pytest.param(GIB - 1, "error", id="none"),
        pytest.param(-1, "error", id="unreadable"),
    ],
)
def test_disk_of_the_fullest_machine_counts(free, level):
    check = checks.check_disk([DRIVER, replace(NODE, free_bytes={"/shared/run": free})])
    assert check.level == level
    assert level == "ok" or "10.0.0.1-abc /shared/run" in check.found


@pytest.mark.parametrize(
    ("free", "level"),
    [(8 * GIB, "ok"), (GIB, "warning"), (64 * 2**20, "error"), (-1, "warning")],
)
def test_shared_memory(free, level):
    check = checks.check_shared_memory([DRIVER, replace(NODE, shared_memory_bytes=free)])
    assert check.level == level


@pytest.mark.parametrize(
    ("skew", "error", "level"),
    [
        pytest.param(0.4, 0.01, "ok", id="small"),
        pytest.param(3.0, 2.5, "ok", id="within-the-error-of-the-measurement"),
        pytest.param(-3.0, 0.01, "warning", id="behind"),
        pytest.param(90.0, 0.01, "error", id="far"),
    ],
)
def test_clocks(skew, error, level):
    late = replace(NODE, clock_skew_s=skew, clock_error_s=error)
    assert checks.check_clocks([NODE, late]).level == level


@pytest.mark.parametrize(
    ("machines", "n_gpus", "wanted", "level", "found"),
    [
        pytest.param([DRIVER, NODE], 0.0, 0.0, "ok", "CPU build", id="cpu"),
        pytest.param([DRIVER, NODE], 0.0, 2.0, "error", "wants 2", id="gpu-job-on-cpu"),
        pytest.param([DRIVER, GPU_NODE], 4.0, 2.0, "ok", "NCCL 2.27.3", id="gpu"),
        pytest.param([GPU_NODE], 8.0, 2.0, "warning", "Ray hands out 8", id="ray-knows-more"),
        pytest.param(
            [GPU_NODE, replace(NODE, gpu=GpuFacts(4, "12.8", "2.26.0", ""))],
            8.0,
            2.0,
            "error",
            "NCCL 2.26.0",
            id="two-nccl",
        ),
        pytest.param(
            [replace(NODE, gpu=GpuFacts(0, "12.8", "2.27.3", "no driver found"))],
            0.0,
            1.0,
            "error",
            "no driver found",
            id="no-driver",
        ),
    ],
)
def test_gpus(machines, n_gpus, wanted, level, found):
    check = checks.check_gpus(machines, replace(CLUSTER, n_gpus=n_gpus), wanted)
    assert check.level == level and found in check.found


GOOD = TokenFile("/t", is_readable=True, n_bytes=32, is_open=False)


@pytest.mark.parametrize(
    ("environment", "joins", "token", "level"),
    [
        pytest.param({}, False, GOOD, "ok", id="private"),
        pytest.param({}, True, GOOD, "warning", id="open-cluster"),
        pytest.param({"RAY_AUTH_MODE": "token"}, True, GOOD, "ok", id="file"),
        pytest.param(
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"},
            True,
            replace(GOOD, is_readable=False),
            "ok",
            id="variable",
        ),
        pytest.param(
            {"RAY_AUTH_MODE": "token"}, True, replace(GOOD, is_readable=False), "error", id="absent"
        ),
        pytest.param(
            {"RAY_AUTH_MODE": "token"}, True, replace(GOOD, n_bytes=0), "error", id="empty"
        ),
        pytest.param(
            {"RAY_AUTH_MODE": "token"}, True, replace(GOOD, is_open=True), "warning", id="open-file"
        ),
    ],
)
def test_token(environment, joins, token, level):
    check = checks.check_token(environment, joins, token)
    assert check.level == level and (level == "ok") == (check.remedy == "")


@pytest.mark.parametrize(
    ("address", "answers", "level"),
    [("", False, "ok"), ("1.2.3.4:6379", True, "ok"), ("1.2.3.4:6379", False, "warning")],
)
def test_stale_address(address, answers, level):
    assert checks.check_stale_address("/tmp/ray/x", address, answers).level == level
