"""A real MariaDB for tests inside the base image: in the network of this process alone, gone with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

PORT = 3306
SOCKET = "/run/mysqld/prototypes.sock"
DATA = Path("/run/prototypes-data")
LOG = Path("/run/prototypes-mariadb.log")
PASSWORD = "for-this-test"


class MariaDB:
    """A server with empty data, in the network namespace of this process."""

    def __init__(self) -> None:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for directory in (Path("/run/mysqld"), DATA):
            directory.mkdir(exist_ok=True)
            shutil.chown(directory, "mysql", "mysql")
        install = ["mariadb-install-db", "--user=mysql", f"--datadir={DATA}", "--skip-test-db"]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        self.start()
        self.sql(f"GRANT ALL ON *.* TO keystone@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'")

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [f"--datadir={DATA}", f"--socket={SOCKET}", "--bind-address=127.0.0.1", f"--port={PORT}"]
        options += ["--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve"]
        with LOG.open("ab") as log:
            self._server = subprocess.Popen(
                ["mariadbd", "--no-defaults", "--user=mysql", *options], stdout=log, stderr=log
            )
        end = time.monotonic() + 60
        while subprocess.run(["mariadb", f"--socket={SOCKET}", "-e", "SELECT 1"], capture_output=True).returncode:
            if time.monotonic() > end or self._server.poll() is not None:
                raise RuntimeError(LOG.read_text(errors="replace")[-2000:])
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
