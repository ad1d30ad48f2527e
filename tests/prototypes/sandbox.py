"""MariaDB with Keystone's tables, for tests inside the base image: its own network, nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

PORT = 3306
SOCKET = "/run/mysqld/prototypes.sock"
DATA = Path("/run/prototypes-data")
PASSWORD = "for-this-test"


class MariaDB:
    """A server over a copy of the databases' first content."""

    def __init__(self, seed: str):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        Path("/run/mysqld").mkdir(exist_ok=True)
        shutil.copytree(seed, DATA)
        for path in (Path("/run/mysqld"), DATA, *DATA.rglob("*")):
            shutil.chown(path, "mysql", "mysql")
        self.start()
        self.sql(f"GRANT ALL ON *.* TO keystone@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'")

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [f"--datadir={DATA}", f"--socket={SOCKET}", "--bind-address=127.0.0.1", f"--port={PORT}"]
        options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=48M", "--skip-name-resolve"]
        with open("/run/prototypes-mariadb.log", "ab") as log:
            self._server = subprocess.Popen(
                ["mariadbd", "--no-defaults", "--user=mysql", *options], stdout=log, stderr=log
            )
        end = time.monotonic() + 60
        while subprocess.run(["mariadb", f"--socket={SOCKET}", "-e", "SELECT 1"], capture_output=True).returncode:
            if time.monotonic() > end or self._server.poll() is not None:
                raise RuntimeError(Path("/run/prototypes-mariadb.log").read_text(errors="replace")[-2000:])
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it as an operator would."""
        subprocess.run(["mariadb-admin", f"--socket={SOCKET}", "shutdown"], check=True)
        self._server.wait(60)

    def restart(self) -> None:
        """Every connection to it ends."""
        self.stop()
        self.start()

    def sql(self, statement: str) -> list[list[str]]:
        """Rows of an answer, asked past the proxy."""
        done = subprocess.run(
            ["mariadb", f"--socket={SOCKET}", "-NBe", statement], capture_output=True, text=True, check=True
        )
        return [line.split("\t") for line in done.stdout.splitlines()]

    def kill_connections(self) -> int:
        """KILL what the user `keystone` has open; returns how many."""
        found = self.sql("SELECT id FROM information_schema.processlist WHERE user = 'keystone'")
        for (number,) in found:
            self.sql(f"KILL {number}")
        return len(found)


def url(port: int, database: str = "keystone") -> str:
    """SQLAlchemy's URL of a database through a port."""
    return f"mysql+pymysql://keystone:{PASSWORD}@127.0.0.1:{port}/{database}"


def bare_environment() -> None:
    """Nothing of the caller's settings reaches what is tested."""
    for name in [name for name in os.environ if name.startswith("OS_")]:
        del os.environ[name]
