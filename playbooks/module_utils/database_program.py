"""Programs that change a service's database, run by the Python of the OpenStack environment, which has PyMySQL."""

from __future__ import annotations

import json
import subprocess
from typing import Any

LIMIT_S = 240
BEGIN = r"""
import json, sys
from urllib.parse import unquote, urlsplit
import pymysql

asked = json.load(sys.stdin)
changes = []

def connect(url):
    parts = urlsplit(url)
    return pymysql.connect(host=parts.hostname, port=parts.port or 3306, database=parts.path.strip("/"),
                           user=parts.username, password=unquote(parts.password),
                           connect_timeout=30, read_timeout=120, autocommit=False)
"""
"""What every program begins with: `asked` (what it was told), `changes` (what it says at its end), `connect(url)`."""


def run(module: Any, program: str, asked: dict[str, Any], subject: str) -> list[str]:
    """Run BEGIN and a program; what it printed, a JSON list of what it changed. Ends the module when it fails.

    Args:
        module: the AnsibleModule, with a parameter `environment_directory`.
        program: Python text.
        asked: what it is told; passed through its standard input, since it holds passwords.
        subject: what an error is about, such as "Nova's cells".
    """
    try:
        done = subprocess.run(
            [f"{module.params['environment_directory']}/bin/python", "-c", BEGIN + program],
            input=json.dumps(asked), capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        module.fail_json(msg=f"{subject}: not done after {LIMIT_S} s")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        module.fail_json(msg=f"{subject}: {lines[-1]}", stderr=done.stderr)
    changes: list[str] = json.loads(done.stdout)
    return changes
