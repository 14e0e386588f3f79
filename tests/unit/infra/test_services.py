"""Compose, scripts, schedules, monitoring, and every file the handbook names."""

import json
import re
import subprocess

import pytest
import yaml
from infra_kustomize import ROOT

from save_dist.config.load import JOBS

INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())
SERVICES = sorted(COMPOSE["services"])
SCRIPTS = sorted([*INFRA.rglob("*.sh"), *INFRA.rglob("*.sbatch")])
TEXTS = sorted(p for p in INFRA.rglob("*") if p.is_file() and "secrets" not in p.parts)
HANDBOOK = (INFRA / "README.md").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_service_has_a_health_check_and_a_pinned_image(name):
    service = COMPOSE["services"][name]
    assert service["healthcheck"]["test"] and service["healthcheck"]["retries"]
    assert re.search(r":\d+\.\d+", service["image"])
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_bound_to_loopback(name):
    for port in COMPOSE["services"][name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_are_files(name):
    service = COMPOSE["services"][name]
    for variable, value in service["environment"].items():
        if re.search("PASSWORD|SECRET|TOKEN|KEY", variable):
            assert variable.endswith("_FILE") and value.startswith("/run/secrets/")
    assert set(service["secrets"]) <= set(COMPOSE["secrets"])
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    assert "infra/compose/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_volumes_and_networks_are_declared():
    for service in COMPOSE["services"].values():
        named = {v.split(":")[0] for v in service["volumes"] if not v.startswith("./")}
        assert named <= set(COMPOSE["volumes"])
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        for volume in (v.split(":")[0] for v in service["volumes"] if v.startswith("./")):
            assert (INFRA / "compose" / volume).is_file()


def test_database_is_not_reachable_from_outside():
    assert COMPOSE["services"]["postgres"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert "ports" not in COMPOSE["services"]["postgres"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_script_parses_and_stops_at_errors(script):
    shell = script.read_text().splitlines()[0].removeprefix("#!").rpartition("/")[2]
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^set -eu", script.read_text(), re.MULTILINE)


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.suffix == ".sh"], ids=lambda p: p.name)
def test_script_can_be_called(script):
    assert script.stat().st_mode & 0o111


def test_slurm_ray_belongs_to_its_job_alone():
    text = (INFRA / "slurm" / "save.sbatch").read_text()
    assert "ray stop" not in text
    assert len(re.findall(r"ray start .*--block", text.replace("\\\n", " "))) == 2
    for needed in (
        "RAY_AUTH_MODE=token",
        "umask 077",
        '--temp-dir="$temp"',
        "--dashboard-host=127.0.0.1",
        "trap finish EXIT",
        "SLURM_JOB_ID",
    ):
        assert needed in text, needed


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(INFRA)))
def test_no_secret_stands_in_a_file(path):
    text = path.read_text()
    assert not re.search(r"-----BEGIN|AKIA[0-9A-Z]{16}|://[^/\s:$]+:[^@\s$]{3,}@", text)
    for name, value in re.findall(
        r"(?im)^\s*(\w*(?:password|auth_token|secret_key))\s*[:=]\s*(\S+)", text
    ):
        assert re.match(r"[\"']?(\$|/|\./|%|token|file:|\[|\||\")", value), (name, value)


def test_launcher_keeps_ray_behind_token_and_loopback():
    text = (INFRA / "ray" / "cluster.yaml").read_text()
    cluster = yaml.safe_load(text)
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    assert "--dashboard-host=127.0.0.1" in text and "0.0.0.0" not in text
    options = cluster["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options and "--user=1000:1000" in options


def test_launcher_fits_the_schema_of_ray():
    util = pytest.importorskip("ray.autoscaler._private.util")
    cluster = yaml.safe_load((INFRA / "ray" / "cluster.yaml").read_text())
    util.validate_config(util.prepare_config(cluster))


def test_timer_starts_the_service_and_retries_what_is_worth_it():
    service = (INFRA / "schedule" / "save-generate.service").read_text()
    timer = (INFRA / "schedule" / "save-generate.timer").read_text()
    assert "OnCalendar=" in timer and "Persistent=true" in timer
    assert "RestartPreventExitStatus=2 3" in service
    assert re.search(r"ExecStart=\S+/save-dist submit schedule-tick --config \S+", service)


def test_crontab_line_has_five_fields_and_a_command():
    lines = (INFRA / "schedule" / "crontab").read_text().splitlines()
    (line,) = [text for text in lines if re.match(r"[\d*]", text)]
    assert re.match(
        r"(?:[\d*/,-]+ ){5}cd /opt/save-dist && \S*save-dist submit schedule-tick ", line
    )


def test_prometheus_reads_the_alerts_and_the_nodes_of_ray():
    config = yaml.safe_load((INFRA / "monitoring" / "prometheus.yml").read_text())
    assert [(INFRA / "monitoring" / name).is_file() for name in config["rule_files"]] == [True]
    (job,) = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"][0].endswith("prom_metrics_service_discovery.json")
    alerts = yaml.safe_load((INFRA / "monitoring" / "alerts.yml").read_text())
    for rule in alerts["groups"][0]["rules"]:
        assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)


def test_dashboard_panels_do_not_overlap_and_name_their_metric():
    board = json.loads((INFRA / "monitoring" / "grafana-dashboard.json").read_text())
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places)
    assert len({p["id"] for p in board["panels"]}) == len(places)
    assert all("ray_" in p["targets"][0]["expr"] for p in board["panels"])


def named_in_handbook():
    paths = re.findall(r"\b(?:infra|configs|jobs|tests)/[\w./-]*\w", HANDBOOK)
    paths += [f"infra/{p}" for p in re.findall(r"\]\(([\w./-]+\.\w+)\)", HANDBOOK)]
    paths += [f"infra/{p}" for p in re.findall(r"\[((?:slurm|ray)/[\w.]+)\]", HANDBOOK)]
    return sorted(set(paths))


@pytest.mark.parametrize("name", named_in_handbook())
def test_file_named_in_the_handbook_exists(name):
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / name).exists() or f"{name}/" in ignored


def test_handbook_names_every_folder():
    for folder in (p for p in INFRA.iterdir() if p.is_dir()):
        assert f"{folder.name}/" in HANDBOOK, folder


def test_commands_of_the_handbook_exist():
    from save_dist.cli import app

    known = {c.name or c.callback.__name__ for c in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    used = set(re.findall(r"save-dist ([a-z-]+) ", HANDBOOK.replace("`", " ")))
    assert used <= known | {"pipeline"} and {"submit", "doctor", "status", "verify"} <= used
    assert set(JOBS) <= known
