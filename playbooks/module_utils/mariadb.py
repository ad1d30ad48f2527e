"""What our modules know of a MariaDB server on this host: its unit, its data, its status."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

USER = "mysql"
SEEDED = "discovery-deploy.seed"
"""In the data directory: which seed it came from. Written with the data, so data with this file are whole."""

WHOLE = "discovery-deploy.whole"
"""In the data directory of a Galera member: it has been part of the complete cluster."""


LIMIT_S = 200
"""Of a program: more than a unit may take to start or to stop (TimeoutStartSec and TimeoutStopSec of the roles)."""
ANSWER_LIMIT_S = 60
"""Of a server that lets clients in, to answer."""


class Server(NamedTuple):
    """A server of a host, which may have two: the one that holds shared state, and its site's own."""

    unit: str
    data: Path
    socket: str


SERVERS = {
    "mariadb": Server("mariadb.service", Path("/var/lib/mysql"), "/run/mysqld/mysqld.sock"),
    "site-mariadb": Server("site-mariadb.service", Path("/var/lib/site-mariadb"), "/run/site-mariadb/mysqld.sock"),
}
SHARED = SERVERS["mariadb"]
UNIT, DATA = SHARED.unit, SHARED.data


class ServerError(Exception):
    """What could not be done."""


def run(*command: str, stdin: str = "", limit_s: float = LIMIT_S) -> str:
    """A program's output. Raises ServerError with what it said, or when it has not ended after `limit_s`."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise ServerError(f"{command[0]} has not ended after {limit_s:g} s") from None
    if done.returncode:
        raise ServerError(f"{command[0]}: {(done.stderr or done.stdout).strip()[-1500:] or f'code {done.returncode}'}")
    return done.stdout


def sql(statements: str, server: Server = SHARED) -> str:
    """What the server answers to root on its socket. Raises ServerError, also after ANSWER_LIMIT_S."""
    options = ("--batch", "--skip-column-names", "--connect-timeout=5", f"--socket={server.socket}")
    return run("mariadb", *options, stdin=statements, limit_s=ANSWER_LIMIT_S)


def is_active(server: Server = SHARED) -> bool:
    """Whether the unit runs or is on its way."""
    state = run("systemctl", "show", "--property=ActiveState", "--value", server.unit).strip()
    return state in ("active", "activating", "reloading")


def condition(server: Server = SHARED) -> str:
    """The unit's: `ordered` (a start, restart or stop is not done yet), `stopped` (and will stay so) or `running`."""
    shown = run("systemctl", "show", "--property=ActiveState,Job", server.unit)
    seen = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if seen.get("Job"):
        return "ordered"
    return "stopped" if seen.get("ActiveState") in ("inactive", "failed") else "running"


def never_up(server: Server, site: str, host: str, reason: str) -> str:
    """What to say of a server that does not come up: whose it is, why, where its log is, and how that ends."""
    log = f"journalctl -u {server.unit}"
    end = run(*log.split(), "-n", "15", "-o", "cat", "--no-pager").strip()[-1500:]
    return f"the database of site {site} does not come up: {server.unit} {reason}; `{log}` on {host} ends:\n{end}"


def stop(kill: bool = False, server: Server = SHARED) -> None:
    """The unit at rest, also from a state that systemd calls failed. Raises ServerError.

    Args:
        kill: at once, because its data are thrown away (a Galera member that waits for others stops slowly).
        server: whose unit.
    """
    if kill and is_active(server):
        run("systemctl", "kill", "--kill-who=all", "--signal=KILL", server.unit)
    run("systemctl", "stop", server.unit)
    if run("systemctl", "show", "--property=ActiveState", "--value", server.unit).strip() == "failed":
        run("systemctl", "reset-failed", server.unit)


def seed_of(data: Path = DATA) -> str:
    """Which seed the data came from; empty when there are no data, or not ours."""
    try:
        return (data / SEEDED).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def galera_status() -> dict[str, str]:
    """Galera's status variables by name; empty while the server does not answer."""
    try:
        answer = sql("SHOW STATUS LIKE 'wsrep_%'")
    except ServerError:
        return {}
    return dict(line.split("\t", 1) for line in answer.splitlines() if "\t" in line)


def recovered_seqno() -> int:
    """Number of the last transaction in the data of a server at rest. Raises ServerError."""
    answer = run("galera_recovery").strip()
    return int(answer.rpartition(":")[2]) if ":" in answer else -1


def lay_out(seed: Path | None, files: dict[str, str], data: Path = DATA, user: str = USER) -> None:
    """Replace the data: by a copy of the seed, or by nothing, with further files beside it. The server is at rest.

    The new data take their place in one rename: a host that dies meanwhile has none, and never half of them.
    """
    new = data.with_name(f".{data.name}.new")
    if new.exists():
        shutil.rmtree(new)
    if seed is None:
        new.mkdir(mode=0o755)
    else:
        run("cp", "-a", "--sparse=always", str(seed), str(new))
    for name, text in {**files, SEEDED: f"{seed}\n"}.items():
        (new / name).write_text(text)
    for path in (new, *new.rglob("*")):
        shutil.chown(path, user, user)
    if data.exists():
        shutil.rmtree(data)
    new.rename(data)
