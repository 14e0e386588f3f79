"""A sweep on configs/tiny: trials side by side, one that fails, and the same command again."""

import json
import shutil

import pytest
from tiny_run import CONFIGS, last_line

from save_dist.cli import run_job

pytestmark = pytest.mark.slow

RATES = "{vae.optim.lr: [3.0e-3, 1.0e+30], vae.width: [16]}"


def sweep(run, *pairs):
    common = [f"run.dir={run}", "tracking.backend=mlflow", "cluster.n_workers=1"]
    short = ["vae.optim.n_steps=40", "vae.optim.warmup_share=0", f"sweep.parameters={RATES}"]
    return run_job("sweep", CONFIGS / "sweep.yaml", [*common, *short, *pairs])


def test_trials_are_compared_kept_and_nested(tiny_run, ray_session, template_db, tmp_path, capsys):
    import mlflow

    run = tmp_path / "run"
    for name in ("store.soma", "vocab"):
        shutil.copytree(tiny_run / name, run / name)
    shutil.copy(template_db, run / "mlflow.db")
    assert sweep(run) == 4  # the second trial diverges, the first is kept
    printed = capsys.readouterr().out
    assert "1 of 2 trials have no result" in last_line(printed)["error"]
    found = json.loads((run / "results.json").read_text())
    done = [trial for trial in found["trials"] if trial["status"] == "done"]
    (failed,) = [trial for trial in found["trials"] if trial["status"] != "done"]
    assert "non-finite" in failed["error"] and failed["parameters"]["vae.optim.lr"] == 1e30
    assert [trial["parameters"]["vae.optim.lr"] for trial in done] == [3e-3]
    assert done[0]["step"] == 40
    assert found["best"] == done[0] and f"best   {done[0]['name']}" in " ".join(printed.split("│"))

    client = mlflow.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("save").experiment_id])
    (parent,) = [r for r in runs if r.data.tags.get("verb") == "sweep"]
    names = {t["name"] for t in found["trials"]}
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {r.info.run_name for r in children} == names
    assert parent.data.metrics["vae/val/reconstruction"] == pytest.approx(done[0]["value"])
    assert not client.search_registered_models()  # models of trials are compared, not offered

    before = {t["name"]: (run / "trials" / t["name"] / "result.json").stat().st_mtime for t in done}
    assert sweep(run) == 4
    again = json.loads((run / "results.json").read_text())
    assert again["n_run"] == 1 and again["best"] == found["best"]
    for name, time in before.items():
        assert (run / "trials" / name / "result.json").stat().st_mtime == time
