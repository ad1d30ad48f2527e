"""Runs a file of tests inside User-Mode Linux, whose kernel has netem, from the machine's own files (read-only)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from discovery_deploy.agent import uml_kernel

REPOSITORY = Path(__file__).resolve().parents[2]

INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run
mkdir /run/repository; mount --bind {repository} /run/repository; mount -t tmpfs tmpfs /tmp
# The repository may lie in /tmp.
[ -d {repository} ] || {{ mkdir -p {repository}; mount --bind /run/repository {repository}; }}
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
    options = ["mem=768M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}"]
    options += ["con=null", "con0=null,fd:1", "ssl=null", "quiet", "umid=tests", f"uml_dir={tmp_path}/uml"]
    kernel += uml_kernel.command(options, tmp_path)
    process = subprocess.Popen(
        kernel,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        if uml_kernel.shim_needed_here():
            _assert_has_shim(process.pid)
        report, _ = process.communicate(timeout=limit_s)
    finally:
        with contextlib.suppress(ProcessLookupError):  # its children too, when it did not end by itself
            os.killpg(process.pid, signal.SIGKILL)
    print(report)
    assert re.search(r"^EXIT 0\r?$", report, re.MULTILINE), report
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped|failed|error)", report)}


def _assert_has_shim(pid: int) -> None:
    """Once the process has become the kernel, the shim is in its memory."""
    end = time.monotonic() + 10
    while not uml_kernel.has_shim(pid):
        assert time.monotonic() < end, Path(f"/proc/{pid}/maps").read_text()
        time.sleep(0.05)
