"""The same code on an ordinary machine: systemd as process 1, pure cgroup v2, netem in the kernel.

Such a machine is made of the base image and a User-Mode-Linux kernel (Debian's 6.1), whatever machine runs the test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import uml_kernel
from discovery_deploy.agent.plan import as_data
from discovery_deploy.testbeds import local
from tests.integration.local_bed import experiment

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]

INIT = """#!/bin/sh
# First process of the kernel: lays a writable layer over the image, adds systemd-nspawn, and becomes its systemd.
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/modules/lib/modules /mnt/upper/usr/bin /mnt/work /mnt/root
ln -s "/usr/lib/uml/modules/$(uname -r)" "/mnt/modules/lib/modules/$(uname -r)"
modprobe -d /mnt/modules -a overlay bridge veth sch_netem sch_htb cls_u32
cp /usr/bin/systemd-nspawn /mnt/upper/usr/bin/
mount -t overlay overlay -o lowerdir={image},upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
for part in base code job state; do mkdir /mnt/root/$part; done
mount --bind {image} /mnt/root/base
mount --bind {code} /mnt/root/code
mount --bind {job} /mnt/root/job
mount -t tmpfs tmpfs /mnt/root/state
cp {job}/look.service /mnt/root/etc/systemd/system/
ln -s ../look.service /mnt/root/etc/systemd/system/multi-user.target.wants/look.service
umount /proc
exec switch_root /mnt/root /lib/systemd/systemd systemd.show_status=0
"""

SERVICE = """
[Unit]
After=dbus.service
[Service]
Type=oneshot
Environment=PYTHONPATH=/code PYTHONDONTWRITEBYTECODE=1
ExecStart=/usr/bin/python3 /job/look.py
ExecStopPost=/usr/bin/systemctl poweroff --force --force
StandardOutput=file:/dev/console
StandardError=file:/dev/console
"""

LOOK = r"""
import json, subprocess, time, traceback
from pathlib import Path
from discovery_deploy.agent import cgroups, containers, machine, wan_router
from discovery_deploy.agent.plan import TcProgram, read
data = json.loads(Path("/job/plan.json").read_text())
plan = read(data)
Path("/state/environments").mkdir()

def shell(text):
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, timeout=60)
    return (done.stdout + done.stderr).strip()

def states():
    return {name: state["state"] for name, state in containers.status(plan).items()}

def left():
    return shell("ip -br link; ip netns; ls /run/discovery-deploy-slots /run/systemd/nspawn; ls /state; "
                 "ls -d /sys/fs/cgroup/dd*; ip rule; ip route; ps -eo args | grep '[n]spawn'")

found = {}
try:
    found["machine"] = shell("cat /proc/1/comm; stat -fc %T /sys/fs/cgroup; stat -fc %T /sys/fs/cgroup/unified")
    Path("/state/plan.json").write_text(json.dumps(data))
    found["before"] = left()
    # In a unit of its own, which ends: what it has started must not end with it.
    found["up"] = shell("systemd-run --quiet --wait --pipe -E PYTHONPATH=/code -E PYTHONDONTWRITEBYTECODE=1 "
                        "python3 -m discovery_deploy.agent.containers up /state/plan.json")
    found["states"] = states()
    found["mode"] = Path("/state/two/router/mode").read_text()
    top = Path("/sys/fs/cgroup/dd3/paris-1")
    found["memory"] = int((top / "memory.current").read_text())
    leader = cgroups.leader(3, "paris-1")
    inside = f"nsenter -t {leader} -m -u -i -n -p "
    found["inside"] = shell(inside + "systemctl show -p MemoryAccounting -p MemoryCurrent ssh")
    found["priority"] = shell(inside + "chrt -f 40 echo real time")
    wan_router.apply(plan, TcProgram(True, {"vec0": ("qdisc replace dev vec0 root netem delay 30ms limit 1000",)}))
    found["ping"] = shell("ip netns exec dd3-paris-1 ping -q -c 3 -i 0.2 10.131.1.10 | tail -1")
    before = {name: state["pids"] for name, state in containers.status(plan).items()}
    shell("systemctl daemon-reload")
    containers.up(plan)
    found["same"] = before == {name: state["pids"] for name, state in containers.status(plan).items()}
    subprocess.run(["kill", "-9", str(cgroups.leader(3, "lyon-1"))], check=True)
    end = time.monotonic() + 20
    while states()["lyon-1"] == "running" and time.monotonic() < end:
        time.sleep(0.1)
    found["dead"] = states()
    containers.up(plan)
    found["healed"] = states()
    containers.down(plan)
    found["after"] = left()
except Exception:
    found["error"] = traceback.format_exc()
print("\nFOUND " + json.dumps(found), flush=True)
"""


def _run_to_its_end(command: list[str], limit_s: float) -> str:
    """What a kernel prints until it stops, or is stopped with all of its processes."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        return process.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


@pytest.fixture(scope="module")
def found(image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was seen in the machine."""
    job = tmp_path_factory.mktemp("job")
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChAi2J8xm8M1nmoqmiT3fJRiWy6TPbVjlT5rE0dh none"
    plan = local.machine_plan(
        experiment("two", "paris", "lyon"), 3, Path("/state/two"), Path("/base"), Path("/state/environments"), key
    )
    (job / "plan.json").write_text(json.dumps(as_data(plan)))
    (job / "look.py").write_text(LOOK)
    (job / "look.service").write_text(SERVICE)
    (job / "init").write_text(INIT.format(image=image, code=ROOT, job=job))
    (job / "init").chmod(0o755)
    options = ["mem=1024M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={job}/init"]
    options += ["con=null", "con0=null,fd:1", "ssl=null", "quiet", "umid=systemd", f"uml_dir={job}/uml"]
    output = _run_to_its_end(uml_kernel.command(options, job), limit_s=200)
    lines = [line for line in output.splitlines() if line.startswith("FOUND ")]
    assert lines, output[-3000:]
    seen: dict[str, Any] = json.loads(lines[-1].removeprefix("FOUND "))
    assert seen.get("error") is None, seen["error"]
    return seen


def test_it_is_an_ordinary_machine(found: dict[str, Any]) -> None:
    assert found["machine"].splitlines()[:2] == ["systemd", "cgroup2fs"]
    assert "No such file" in found["machine"].splitlines()[2]


def test_hosts_outlive_the_unit_that_started_them(found: dict[str, Any]) -> None:
    assert found["up"] == ""
    assert found["states"] == {"paris-1": "running", "lyon-1": "running"}
    assert found["same"] is True


def test_hosts_are_accounted_for_and_account_for_their_own(found: dict[str, Any]) -> None:
    assert 5 << 20 < found["memory"] < 200 << 20
    assert "MemoryAccounting=yes" in found["inside"]
    assert int(found["inside"].partition("MemoryCurrent=")[2].split()[0]) > 100_000
    assert found["priority"] == "real time"


def test_the_router_is_a_namespace_and_shapes(found: dict[str, Any]) -> None:
    assert found["mode"].strip() == "netns"
    least_ms = float(found["ping"].partition(" = ")[2].split("/")[0])
    assert 30 <= least_ms < 40  # that kernel's clock stands still while the machine is busy elsewhere


def test_a_killed_host_is_seen_and_mended(found: dict[str, Any]) -> None:
    assert found["dead"] == {"paris-1": "running", "lyon-1": "dead"}
    assert found["healed"] == {"paris-1": "running", "lyon-1": "running"}


def test_nothing_is_left(found: dict[str, Any]) -> None:
    assert found["after"] == found["before"]
