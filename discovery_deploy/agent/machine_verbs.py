"""What a machine does that holds hosts as containers: verbs of the agent. Standard library only."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from discovery_deploy.agent import (
    containers,
    machine,
    machine_plans,
    names,
    nspawn,
    site_networks,
    uml_kernel,
    wan_router,
)
from discovery_deploy.agent.conversation import Conversation
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.plan import read as read_plan
from discovery_deploy.agent.plan import read_program

Request = dict[str, Any]

HOME = Path("/var/lib/discovery-deploy-machine")
"""Everything of nested experiments on this machine: the agent (`agent-<hash>`) and the two below."""
IMAGES, EXPERIMENTS = HOME / "images", HOME / "experiments"
"""Unpacked base images, and what experiments have here."""
INSTALL_LIMIT_S = 900.0
IMAGE_LIMIT_S = 1200.0
_NEEDED = {"tar": "tar", "gzip": "gzip", "tc": "iproute2"}


def look(request: Request, talk: Conversation) -> Any:
    """What there is: slots that are free or ours already, missing commands and their Debian packages, base images.

    And whether the kernel has netem; taken for granted while commands are missing to try it with. Without it commands
    are missing too that a router in User-Mode Linux needs.
    """
    missing = {**containers.missing_commands(), **machine.missing_commands(_NEEDED)}
    netem = bool(missing) or wan_router.kernel_has_netem()
    own = machine.slots_of(Path(request["directory"]))
    free = machine_plans.free_slots({*machine.slots_in_use(), *own}, site_networks.observe(0))
    return {
        "slots": sorted({*free, *own}),
        "missing": missing if netem else {**missing, **uml_kernel.missing_commands()},
        "netem": netem,
        "images": [entry.name for entry in machine.entries(IMAGES)],
        "processor": os.uname().machine,
    }


def install(request: Request, talk: Conversation) -> Any:
    """Install Debian packages from the machine's own sources."""
    options = ["--yes", "--quiet=2", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    for command in (["apt-get", "--quiet=2", "update"], ["apt-get", "install", *options, *request["packages"]]):
        if shutil.which(command[0]) is None:
            raise MachineError("apt-get is absent; machines need Debian", "take other machines")
        try:
            machine.run("env", "DEBIAN_FRONTEND=noninteractive", *command, limit_s=INSTALL_LIMIT_S)
        except MachineError as error:
            raise MachineError(error.what, error.advice or "mend the machine's apt") from error
    return None


def image(request: Request, talk: Conversation) -> Any:
    """Unpack a base image that follows the request as a compressed archive; it appears whole or not at all."""
    target = IMAGES / str(request["name"])
    partial = IMAGES / f".{target.name}.partial"
    machine.private(HOME)
    with machine.hold(IMAGES, wait_s=IMAGE_LIMIT_S):
        if target.is_dir():
            return False
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()
        try:
            _unpack(talk, partial, str(request["sha256"]))
            partial.rename(target)
        finally:
            if partial.exists():
                shutil.rmtree(partial)
    return True


def _unpack(talk: Conversation, target: Path, sha256: str) -> None:
    command = ["tar", "--extract", "--gzip", "--numeric-owner", "--preserve-permissions", "--xattrs"]
    command += ["--xattrs-include=*", f"--directory={target}"]
    seen = hashlib.sha256()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):  # it says below why it has ended
            for block in talk.blocks():
                seen.update(block)
                process.stdin.write(block)
            process.stdin.close()
        said = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise MachineError(f"the base image cannot be unpacked: {said[-1000:]}", f"see `df -h {target.parent}`")
    if seen.hexdigest() != sha256:
        raise MachineError("the base image did not arrive whole", "try again")


def up(request: Request, talk: Conversation) -> Any:
    """Make or mend what a plan says: host -> facts since its files were made."""
    plan = read_plan(request["plan"])
    directory = plan.directory
    old = machine_plans.read_plan(directory)
    if old is not None and old.same_hosts(plan) and machine.claim(plan.slot, directory):
        pass
    elif old is not None or machine.slots_of(directory):
        talk.progress("the hosts that are there are of another plan: they are made anew")
        machine_plans.clear(directory)
    machine_plans.write_plan(directory, plan)
    for bind in plan.binds:
        bind.source.mkdir(parents=True, exist_ok=True)
        bind.source.chmod(0o755)  # hosts' own users see it
    containers.up(plan, talk.progress)
    return {host.name: nspawn.born(plan, host) for host in plan.hosts if host.system}


def down(request: Request, talk: Conversation) -> Any:
    """Remove an experiment; and what is kept for experiments, when it was the last one here."""
    directory = Path(request["directory"])
    if directory.parent != EXPERIMENTS or not names.is_name(directory.name):
        raise MachineError(f"{directory} is not the directory of an experiment", f"they are in {EXPERIMENTS}")
    machine_plans.clear(directory)
    if not machine.entries(EXPERIMENTS):
        for entry in machine.entries(HOME):  # also this very program, which is in memory
            machine.remove_own(entry, known=True)
        with suppress(OSError):  # somebody has mounted a disk there
            HOME.rmdir()
    return None


def status(request: Request, talk: Conversation) -> Any:
    """Hosts that do not run, and whether the WAN router does."""
    plan = read_plan(request["plan"])
    dead = [name for name, state in containers.status(plan).items() if state["state"] != "running"]
    return {"dead": dead, "router": wan_router.alive(plan)}


def shape(request: Request, talk: Conversation) -> Any:
    """Run a tc program in the WAN router."""
    return wan_router.apply(read_plan(request["plan"]), read_program(request["program"]))


def read(request: Request, talk: Conversation) -> Any:
    """What tc shows in the WAN router."""
    return wan_router.read(read_plan(request["plan"]))


def facts(request: Request, talk: Conversation) -> Any:
    """What shapes the WAN."""
    return wan_router.facts(read_plan(request["plan"]))


def reach(request: Request, talk: Conversation) -> Any:
    """Names of other machines whose WAN router does not answer through the tunnel."""
    plan = read_plan(request["plan"])
    silent = []
    for peer in plan.peers:
        try:
            wan_router.run(plan, f"ping -q -c 3 -i 0.2 -W 2 -s 1400 {peer.gateway}")
        except MachineError:
            silent.append(peer.machine)
    return silent
