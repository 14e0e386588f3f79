"""A throw-away Postgres server on loopback, of programs that the machine has."""

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from processes import Children, free_ports, wait_until

INIT_SQL = Path(__file__).resolve().parents[2] / "infra" / "compose" / "mlflow" / "init.sql"
START_S = 60.0
USER = "mlflow"


@dataclass(frozen=True)
class Postgres:
    """Where the server is; its password is in `passfile` alone."""

    port: int
    passfile: Path

    def uri(self, database: str, driver: str = "") -> str:
        """How a client names a database; libpq reads the password from PGPASSFILE.

        SQLAlchemy wants its driver named: which one it takes otherwise depends on its version.
        """
        return f"postgresql{driver}://{USER}@127.0.0.1:{self.port}/{database}"


def find_programs() -> Path | None:
    """Folder of initdb and postgres: on PATH, or where Debian puts them; None without."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    places = [Path(found).resolve()] if found else debian[-1:]
    return places[0].parent if places else None


def start_postgres(children: Children, programs: Path, password: str) -> Postgres:
    """A server that takes passwords only, with the databases of `infra/compose`."""
    folder = children.folder / "postgres"
    folder.mkdir()
    passfile = children.folder / "pgpass"
    _write_secret(passfile, f"127.0.0.1:*:*:{USER}:{password}\n")
    _write_secret(folder / "password", password)
    _give_away(folder)
    _run(
        children,
        *(str(programs / "initdb"), "--pgdata", str(folder / "data"), "--username", USER),
        *("--auth", "scram-sha-256", "--pwfile", str(folder / "password"), "--no-sync"),
    )
    (port,) = free_ports(1)
    server = children.start(
        "postgres-server",
        *(*_unprivileged(), str(programs / "postgres"), "-D", str(folder / "data")),
        *("-p", str(port), "-h", "127.0.0.1", "-k", str(folder)),
    )
    ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
    wait_until(lambda: _succeeds(ready), "Postgres", [server], START_S)
    postgres = Postgres(port, passfile)
    psql = [str(programs / "psql"), "--quiet", "--set", "ON_ERROR_STOP=1"]
    _run(children, *psql, "--command", "CREATE DATABASE mlflow", postgres.uri("postgres"))
    _run(children, *psql, "--file", str(INIT_SQL), postgres.uri("postgres"))
    return postgres


def _run(children: Children, *command: str) -> None:
    """A program of Postgres to its end; initdb refuses to be root."""
    as_whom = _unprivileged() if command[0].endswith("initdb") else []
    variables = {**children.environment, "PGPASSFILE": str(children.folder / "pgpass")}
    done = subprocess.run(
        [*as_whom, *command], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-2000:]}"


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _unprivileged() -> list[str]:
    """Words before a command that must not run as root."""
    if os.getuid() != 0:
        return []
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]


def _give_away(folder: Path) -> None:
    """Let the unprivileged user own `folder` and pass through its parent."""
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (folder, *folder.iterdir()):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        folder.parent.chmod(0o711)


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
