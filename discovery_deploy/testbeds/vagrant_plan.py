"""What Vagrant is asked for: machines, their names and addresses, and the text of the Vagrantfile. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from discovery_deploy.experiment.model import Experiment
from discovery_deploy.experiment.provider_models import Vagrant
from discovery_deploy.system.strict import Strict

NETWORKS: dict[str, tuple[str, ...]] = {
    "libvirt": tuple(f"10.192.{number}.0/24" for number in range(256)),
    # VirtualBox refuses others, unless /etc/vbox/networks.conf allows them
    "virtualbox": tuple(f"192.168.{number}.0/24" for number in range(57, 64)),
}
"""Backend -> networks of which an experiment gets one."""
NOT_GIVEN = 10
"""Addresses at the begin and at the end of a network that EnOSlib gives to no machine."""
BOOT_LIMIT_S = 900
"""How long a machine may take to start: an emulated one, on a busy machine, takes minutes."""
START_LIMIT_S, START_LIMIT_PER_MACHINE_S = 1800.0, 1800.0
"""How long Vagrant may take to start machines: twice `BOOT_LIMIT_S` for each, since it may start them one by one."""
DESTROY_LIMIT_S, DESTROY_LIMIT_PER_MACHINE_S = 300.0, 120.0
"""How long it may take to destroy them; then they are removed by name."""
TRANSLATION_MB = 256
"""Memory for translated code of an emulated machine; QEMU's default takes up to 1 GB for each."""


class Request(Strict):
    """What an experiment asks Vagrant for; machines of another request are made anew."""

    experiment: str
    machines: tuple[str, ...]
    """Names, in the order of the file."""
    network: str
    """CIDR of the network of all machines."""
    backend: Literal["libvirt", "virtualbox"]
    box: str
    memory_mb: int
    cpus: int
    user: str
    extra: str


class Way(Strict):
    """How ssh reaches a machine with Vagrant's key."""

    name: str
    address: str
    port: int
    user: str
    key: str
    """File of the private key."""


def request(experiment: Experiment, provider: Vagrant, network: str) -> Request:
    """The request of an experiment in a network."""
    return Request(
        experiment=experiment.name,
        machines=tuple(host.name for site in experiment.sites for host in site.hosts),
        network=network,
        **provider.model_dump(include={"backend", "box", "memory_mb", "cpus", "user", "extra"}),
    )


def prefix(experiment_name: str) -> str:
    """What the names of an experiment's machines and networks begin with; no other experiment's do."""
    return f"dd_{experiment_name}_"


def free_networks(backend: str, taken: Iterable[str]) -> list[str]:
    """Networks for an experiment that overlap with none that is taken, in order. Wide routes take nothing.

    Args:
        backend: of Vagrant.
        taken: CIDRs.
    """
    networks = [ipaddress.IPv4Network(cidr, strict=False) for cidr in taken]
    busy = [network for network in networks if network.prefixlen > 8]
    return [cidr for cidr in NETWORKS[backend] if not any(ipaddress.IPv4Network(cidr).overlaps(one) for one in busy)]


def most_machines(network: str) -> int:
    """How many machines fit in a network."""
    return ipaddress.IPv4Network(network).num_addresses - 2 * NOT_GIVEN


def addresses(network: str, machines: Sequence[str]) -> dict[str, str]:
    """Machine -> its address, as EnOSlib gives them: from the end of the network, in the order of the machines.

    Raises:
        ValueError: there are more machines than addresses.
    """
    if len(machines) > most_machines(network):
        raise ValueError(f"{len(machines)} machines do not fit in {network}, which has {most_machines(network)}")
    given = reversed(list(ipaddress.IPv4Network(network))[NOT_GIVEN:-NOT_GIVEN])
    return {name: str(address) for name, address in zip(machines, given, strict=False)}


def configuration(asked: Request, vagrantfile: str) -> dict[str, Any]:
    """What EnOSlib's `VagrantConf.from_dictionary` takes.

    Args:
        asked: the machines.
        vagrantfile: text for the Vagrantfile that comes before the machines.
    """
    size = {"core": asked.cpus, "mem": asked.memory_mb}
    machines = [
        {
            "roles": [name],
            "flavour_desc": size,
            "number": 1,
            "name_prefix": name,
            "config_extra_vm": own_text(asked, name),
        }
        for name in asked.machines
    ]
    return {
        "backend": asked.backend,
        "box": asked.box,
        "user": asked.user,
        "config_extra": vagrantfile,
        "resources": {"machines": machines, "networks": [{"cidr": asked.network, "roles": ["sites"]}]},
    }


def own_text(asked: Request, machine: str) -> str:
    """Text of the Vagrantfile for one machine."""
    if asked.backend == "libvirt":  # named by `default_prefix`
        return ""
    name = f"{prefix(asked.experiment)}{machine}"
    return f"my.vm.provider(:virtualbox) {{ |virtualbox| virtualbox.name = {quoted(name)} }}"


def vagrantfile(asked: Request, libvirt: Mapping[str, str], box_version: str | None = None) -> str:
    """Text of the Vagrantfile before the machines: what holds for all, then the user's own `extra`.

    Args:
        asked: the machines.
        libvirt: settings of Vagrant's libvirt provider; not used with another backend.
        box_version: of the box; None: the newest that Vagrant has.
    """
    lines = [
        'config.vm.synced_folder ".", "/vagrant", disabled: true',
        "config.vm.box_check_update = false",
        f"config.vm.boot_timeout = {BOOT_LIMIT_S}",
    ]
    if box_version is not None:
        lines.append(f"config.vm.box_version = {quoted(box_version)}")
    lines.append(f"config.vm.provider :{asked.backend} do |backend|")
    settings = {"default_prefix": prefix(asked.experiment), **libvirt} if asked.backend == "libvirt" else {}
    lines += [f"  backend.{name} = {quoted(value)}" for name, value in sorted(settings.items())]
    if asked.backend == "virtualbox":
        lines += ["  backend.linked_clone = true", "  backend.check_guest_additions = false"]
    lines.append("end")
    return "\n".join([*lines, *asked.extra.splitlines()]) + "\n"


def libvirt_settings(kvm: bool, emulator: str, boot: Mapping[str, str]) -> dict[str, str]:
    """Settings of Vagrant's libvirt provider.

    Args:
        kvm: whether guests run on the processor; they are emulated otherwise.
        emulator: path of the program that libvirt starts for emulated machines.
        boot: `kernel` and `initrd` of the box, where it is ours; else empty: the box's own.
    """
    screen = {"graphics_type": "none", "video_type": "none"}
    if kvm:
        return {**screen, **boot, "driver": "kvm", "cpu_mode": "host-passthrough"}
    # The least processor on which today's binary wheels run (x86-64-v2).
    cpu = {"cpu_mode": "custom", "cpu_model": "Nehalem"}
    return {**screen, **boot, **cpu, "driver": "qemu", "emulator_path": emulator}


def emulator_text(qemu: str) -> str:
    """Shell text of an emulator for libvirt: QEMU, with less memory for translated code."""
    return f"""\
#!/bin/bash
# libvirt starts this for emulated machines of discovery-deploy: QEMU would take up to 1 GB for translated code of each.
arguments=()
before=
for argument in "$@"; do
  if [ "$before" = -accel ] && [ "$argument" = tcg ]; then argument=tcg,tb-size={TRANSLATION_MB}; fi
  arguments+=("$argument")
  before=$argument
done
exec {qemu} "${{arguments[@]}}"
"""


def quoted(text: str) -> str:
    """A text as Ruby reads it, between quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
