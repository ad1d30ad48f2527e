"""Runs a file of tests inside User-Mode Linux, whose kernel has netem, from the machine's own files (read-only)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm 2> /dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/lib/modules
ln -s "/usr/lib/uml/modules/$(uname -r)" "/run/lib/modules/$(uname -r)"
modprobe -d /run -a sch_netem sch_htb cls_u32 veth bridge vxlan
ip link set lo up
cd {repository}
{python} -m pytest -q --color=no --durations=15 -p no:cacheprovider -p no:randomly {test}
echo "EXIT $?"
echo o > /proc/sysrq-trigger
sleep 5
"""


def counts_inside(test: Path, tmp_path: Path, limit_s: float = 600) -> dict[str, int]:
    """Boot, run the tests of a file, end: how many `passed`, `skipped`, `failed`. Fails with pytest's report."""
    init = tmp_path / "init"
    init.write_text(INIT.format(repository=REPOSITORY, python=sys.executable, test=test))
    init.chmod(0o700)
    # As for the router: without it whatever else runs on the machine is measured.
    kernel = ["chrt", "-f", "50"] if subprocess.run(["chrt", "-f", "50", "true"], check=False).returncode == 0 else []
    kernel += ["linux.uml", "mem=768M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}"]
    kernel += ["con=null", "con0=null,fd:1", "ssl=null", "quiet", "umid=tests", f"uml_dir={tmp_path}/uml"]
    process = subprocess.Popen(
        kernel,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        report, _ = process.communicate(timeout=limit_s)
    finally:
        with contextlib.suppress(ProcessLookupError):  # its children too, when it did not end by itself
            os.killpg(process.pid, signal.SIGKILL)
    print(report)
    assert re.search(r"^EXIT 0\r?$", report, re.MULTILINE), report
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped|failed|error)", report)}
