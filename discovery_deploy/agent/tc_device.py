"""Network devices that tc programs shape: what tc shows of them, super-packets (TSO, GSO), and a host's own device.

Standard library only, in one file: the driver sends it to hosts as a command line, `python3 -I -S -c TEXT`, with one
JSON object on stdin: {"act": "check|apply|read|remove|facts", "device": NAME, and the act's other arguments}. One JSON
object comes back: {"result": ...}, or {"what": ..., "advice": ...} when it could not be done.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

SIOCETHTOOL = 0x8946
SEGMENTATION_COMMANDS = {"tso": (0x1E, 0x1F), "gso": (0x23, 0x24)}
"""Commands (get, set) of SIOCETHTOOL, from linux/ethtool.h."""
GET_FEATURES, SET_FEATURES = 0x3A, 0x3B
MOST_FEATURE_WORDS = 8
KERNEL_PARTS = {
    "sch_htb": "tc qdisc add dev lo root handle 1: htb",
    "sch_netem": "tc class add dev lo parent 1: classid 1:1 htb rate 1gbit quantum 2000 && "
    "tc qdisc add dev lo parent 1:1 netem delay 1ms",
    "cls_u32": "tc filter add dev lo parent 1: protocol ip u32 match ip dst 10.0.0.1/32 flowid 1:1",
}
"""Module of the kernel -> commands, each on what those before it made, that need it."""
LIMIT_S = 60.0
"""For a program that sets or shows a device."""
RECORDS = Path("/run/discovery-deploy/egress")
"""What devices were before we shaped them, for `remove`; gone after a boot, as what tc put there is."""


class DeviceError(Exception):
    """A device could not be shaped or read. `what` happened, `advice` what to do next."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(f"{what}\n  {advice}" if advice else what)
        self.what = what
        self.advice = advice


def _ethtool(device: str, command: int, value: int = 0) -> int:
    """One legacy ethtool ioctl. Raises OSError."""
    return _ethtool_words(device, [command, value])[1]


def _ethtool_words(device: str, words: Sequence[int]) -> list[int]:
    """An ethtool ioctl on 32-bit words; what they are after it. Raises OSError."""
    form = f"{len(words)}I"
    data = ctypes.create_string_buffer(struct.pack(form, *words), 4 * len(words))
    request = struct.pack("16sP", device.encode(), ctypes.addressof(data))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)
    return list(struct.unpack(form, data))


def segmentation(device: str) -> dict[str, bool]:
    """Whether packets of more than one frame may be handed to a device: kind (`tso`, `gso`) -> on. Raises OSError."""
    return {kind: bool(_ethtool(device, get)) for kind, (get, _) in SEGMENTATION_COMMANDS.items()}


def set_segmentation(device: str, wanted: Mapping[str, bool]) -> None:
    """Switch kinds of super-packets on and off; what is so already is not touched. Raises OSError."""
    known = segmentation(device)
    for kind, on in wanted.items():
        if known[kind] != on:
            _ethtool(device, SEGMENTATION_COMMANDS[kind][1], int(on))


def features(device: str) -> list[int]:
    """What the device was told to do for the stack, as words of bits, to be given to `set_features`. Raises OSError.

    Switching TSO off and on again would also switch on parts of it that were off.
    """
    found = _ethtool_words(device, [GET_FEATURES, MOST_FEATURE_WORDS, *[0] * 4 * MOST_FEATURE_WORDS])
    return found[3 : 2 + 4 * found[1] : 4]  # of each block (available, requested, active, never changed)


def set_features(device: str, wanted: Sequence[int]) -> None:
    """Tell the device the same as when `features` was asked. Raises OSError."""
    changed = [now ^ then for now, then in zip(features(device), wanted, strict=True)]
    pairs = [word for valid, then in zip(changed, wanted, strict=True) for word in (valid, then)]
    _ethtool_words(device, [SET_FEATURES, len(wanted), *pairs])


def shown(devices: Sequence[str], tc: Callable[[Sequence[str], str], str]) -> dict[str, Any]:
    """What tc shows of devices.

    {"qdisc": {device: [objects]}, "class": {device: [lines of text]}, "filter": {device: [objects]}}. Classes are text:
    tc 6.1 shows them so among lists of JSON, and newer ones are asked for it.

    Args:
        devices: all of one network namespace.
        tc: runs `tc` with these options on lines (`-batch`); what it printed.
    Raises:
        DeviceError: what it printed is not understood.
    """
    # The kernel walks the queueing disciplines of all devices, whichever one is asked for: once is enough.
    lines = "qdisc show\n" + "".join(f"filter show dev {device}\nclass show dev {device}\n" for device in devices)
    printed = [line.strip() for line in tc(["-j"], lines).splitlines() if line.strip()]
    lists = [json.loads(line) for line in printed if line.startswith("[")]
    if len(lists) == 1 + 2 * len(devices):  # from 6.2 on
        del lists[2::2]
        classes = _classes(devices, tc)
    else:
        classes = []
        for line in printed[1:]:
            if line.startswith("["):
                classes.append([])
            elif line.startswith("class "):
                classes[-1].append(line)
    if len(lists) != 1 + len(devices) or len(classes) != len(devices):
        raise DeviceError(f"tc shows {len(lists)} lists and classes of {len(classes)} for {len(devices)} devices")
    qdiscs: dict[str, list[dict[str, Any]]] = {device: [] for device in devices}
    for qdisc in lists[0]:
        if qdisc.get("dev") in qdiscs:
            qdiscs[qdisc["dev"]].append(qdisc)
    return {
        "qdisc": qdiscs,
        "class": dict(zip(devices, classes, strict=True)),
        "filter": dict(zip(devices, lists[1:], strict=True)),
    }


def _classes(devices: Sequence[str], tc: Callable[[Sequence[str], str], str]) -> list[list[str]]:
    """Lines of text of each device's classes; the root discipline's line tells where the next device begins."""
    classes: list[list[str]] = []
    lines = "".join(f"qdisc show dev {device}\nclass show dev {device}\n" for device in devices)
    for line in tc([], lines).splitlines():
        if line.startswith("qdisc ") and " root " in line:
            classes.append([])
        elif line.startswith("class "):
            classes[-1].append(line.strip())
    return classes


def refused_line(program: str, message: str) -> str:
    """For an error: which line of a program tc's message is about; "" when it names none."""
    number = re.search(r"Command failed \S+:(\d+)", message)
    return f'; line {number[1]} is "{program.splitlines()[int(number[1]) - 1]}"' if number else ""


def _run(command: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except FileNotFoundError:
        raise DeviceError(f"{command[0]} is not installed", "Install it: `apt-get install -y iproute2`.") from None
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"{command[0]} timed out after {LIMIT_S:g} s", "Look at the host's load and kernel."
        ) from None
    if done.returncode:
        raise DeviceError((done.stderr + done.stdout).strip() or f"{command[0]}: exit code {done.returncode}")
    return done.stdout


def _tc(options: Sequence[str], lines: str) -> str:
    return _run(["tc", *options, "-batch", "-"], lines)


def kernel_lacks() -> tuple[str, str] | None:
    """The first of `KERNEL_PARTS` that this kernel has not, and what the attempt said; None when it can shape.

    Tried in a network namespace without a name, which ends with the command; the kernel loads modules by itself, where
    it does not, modprobe does.
    """
    if _missing_part() is None:
        return None
    for module in KERNEL_PARTS:
        with suppress(FileNotFoundError, subprocess.TimeoutExpired):  # tried below
            subprocess.run(["modprobe", "-q", module], capture_output=True, check=False, timeout=LIMIT_S)
    return _missing_part()


def _missing_part() -> tuple[str, str] | None:
    steps = " && ".join(f"echo {module} && {commands}" for module, commands in KERNEL_PARTS.items())
    command = ["unshare", "--net", "sh", "-c", steps]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return "network namespaces", f"timed out after {LIMIT_S:g} s"
    if tried.returncode == 0:
        return None
    return (tried.stdout.split() or ["network namespaces"])[-1], tried.stderr.strip()


class HostDevice:
    """A device of this host, whose egress is shaped. Every act can be repeated.

    Raises (each act):
        DeviceError: the device is absent, or not ours to shape; or a command's message.
    """

    def __init__(self, name: str, records: Path = RECORDS) -> None:
        self.name = name
        self.record = records / f"{name}.json"

    def check(self, addresses: Sequence[str]) -> None:
        """Whether what leaves for these addresses can be shaped here; loads the kernel's modules."""
        self._refuse_others()
        lack = kernel_lacks()
        if lack is not None:
            raise DeviceError(
                f"kernel {os.uname().release} has no {lack[0]} ({lack[1]})",
                "Boot a kernel that has it, or load its module (in a container: on the machine below); on Debian "
                "`apt-get install -y linux-image-$(dpkg --print-architecture) kmod iproute2`, then reboot.",
            )
        for address in addresses:
            ways = json.loads(_run(["ip", "-j", "route", "get", address]))
            device = ways[0].get("dev") if ways else None
            if device != self.name:
                raise DeviceError(
                    f"packets to {address} leave by {device}, not by {self.name}, where they are to be shaped",
                    "Give hosts addresses of one network for the WAN, reached by that device.",
                )

    def _exists(self) -> bool:
        return self.name in {name for _, name in socket.if_nameindex()}

    def _refuse_others(self) -> None:
        """Before anything of ours is there: a discipline that another put there would be lost."""
        if not self._exists():
            raise DeviceError(
                f"no network device {self.name}", "Reserve the hosts again: `reserve` finds their devices."
            )
        if self.record.exists():
            return
        for qdisc in json.loads(_run(["tc", "-j", "qdisc", "show", "dev", self.name])):
            if qdisc.get("root") and qdisc.get("handle") != "0:":  # the kernel's own has the handle 0
                raise DeviceError(
                    f"{self.name} has a queueing discipline of another: {qdisc['kind']} {qdisc.get('handle')}",
                    f"Remove it with `tc qdisc del dev {self.name} root`, and put it back after the release.",
                )

    def apply(self, program: str) -> None:
        """Run a tc program. "# segmentation: off" in it also keeps super-packets out, "on" lets them in as before."""
        self._refuse_others()
        if not self.record.exists():
            if " root handle 1: htb" not in program:
                return  # nothing is to be shaped, and nothing was
            self.record.parent.mkdir(parents=True, exist_ok=True)
            partial = self.record.with_suffix(".new")
            partial.write_text(json.dumps({"features": features(self.name)}))
            partial.replace(self.record)
        for state in re.findall(r"^# segmentation: (on|off)$", program, re.MULTILINE):
            self._let_super_packets(state == "on")
        try:
            _tc([], program)
        except DeviceError as error:
            line = refused_line(program, error.what)
            raise DeviceError(f"{self.name}: tc refused the program: {error.what}{line}") from error

    def _let_super_packets(self, in_as_before: bool) -> None:
        try:
            if in_as_before:
                set_features(self.name, json.loads(self.record.read_text())["features"])
            else:
                set_segmentation(self.name, dict.fromkeys(SEGMENTATION_COMMANDS, False))
        except OSError as error:
            what = "restored" if in_as_before else "switched off"
            raise DeviceError(f"{self.name}: TSO and GSO cannot be {what}: {error.strerror}") from error

    def read(self) -> dict[str, Any]:
        """What tc shows, as `shown`, and "segmentation": {device: whether it takes super-packets}."""
        there = any(segmentation(self.name).values())
        return {**shown([self.name], _tc), "segmentation": {self.name: there}}

    def remove(self) -> bool:
        """Make the device what it was before the first program; whether there was anything of ours."""
        if not self.record.exists():
            return False
        if self._exists():
            # pfifo first: with the default discipline there, there would be nothing to delete.
            _tc([], f"qdisc replace dev {self.name} root pfifo\nqdisc del dev {self.name} root\n")
            self._let_super_packets(in_as_before=True)
        self.record.unlink()
        with suppress(OSError):  # another device's is there
            self.record.parent.rmdir()
            self.record.parent.parent.rmdir()
        return True


def facts() -> dict[str, str]:
    """What the host is that shapes: `kernel` and TCP's `congestion_control`."""
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return {"kernel": os.uname().release, "congestion_control": congestion}


def main() -> int:
    """Do what stdin asks; the answer on stdout."""
    asked = json.load(sys.stdin)
    act, device = asked.pop("act"), HostDevice(asked.pop("device"))
    acts: dict[str, Callable[..., Any]] = {
        "check": device.check,
        "apply": device.apply,
        "read": device.read,
        "remove": device.remove,
        "facts": facts,
    }
    try:
        answer = {"result": acts[act](**asked)}
    except DeviceError as error:
        answer = {"what": error.what, "advice": error.advice}
    print(json.dumps(answer, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
