"""Shapes the WAN on hosts themselves: runs on all of them at once what `egress` decides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from discovery_deploy.agent import tc_device
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.system.remote import side_by_side
from discovery_deploy.wan import egress, measure
from discovery_deploy.wan.egress import EgressHost, Shapes

LIMIT_S = 120.0
"""Time that tc on a busy host may take for a large program."""


class HostsShaper:
    """Each host shapes what it sends (`shaping.Shaper`).

    Args:
        runner: runs a command on a host (`remote.Remote`).
        hosts: all hosts of all sites.
    """

    def __init__(self, runner: measure.Runner, hosts: Sequence[EgressHost]) -> None:
        self.runner = runner
        self.hosts = tuple(sorted(hosts, key=lambda host: host.name))

    def check(self, shapes: Shapes) -> None:
        """Load what hosts' kernels need for these shapes.

        Raises:
            TestbedError: naming every host that cannot shape its paths: its kernel lacks something, packets to another
                site leave by another device, or its device has a queueing discipline of another.
        """
        addresses: dict[str, list[str]] = {}
        for host in self.hosts:
            addresses.setdefault(host.site, []).append(host.site_address)
        asked = {}
        for host in self.hosts:
            paths = egress.shaped_paths(shapes, host.site)
            if paths:
                asked[host.name] = {"addresses": [address for site in paths for address in addresses[site]]}
        self._ask("check", asked)

    def put(self, shapes: Shapes) -> None:
        """Bring hosts to these shapes, whatever is there of ours; packets that wait are lost. Raises TestbedError."""
        programs = egress.programs(shapes, self.hosts)
        self.check(shapes)
        self._apply(programs)

    def change(self, old: Shapes, new: Shapes) -> None:
        """Bring hosts with these shapes to those; what `egress.changes` says of packets. Raises TestbedError."""
        programs = egress.changes(old, new, self.hosts)
        if any(
            set(egress.shaped_paths(new, host.site)) - set(egress.shaped_paths(old, host.site)) for host in self.hosts
        ):
            self.check(new)
        self._apply(programs)

    def _apply(self, programs: Mapping[str, str]) -> None:
        self._ask("apply", {name: {"program": program} for name, program in programs.items()})

    def problems(self, shapes: Shapes) -> tuple[str, ...]:
        """Differences between shapes that were put and what hosts show. Raises TestbedError."""
        shown = self._ask("read", {host.name: {} for host in self.hosts})
        return egress.readback_problems(shapes, {name: json.dumps(value) for name, value in shown.items()}, self.hosts)

    def facts(self) -> str:
        """What shapes the WAN, in words, for provenance."""
        answers = self._ask("facts", {host.name: {} for host in self.hosts})
        kernels = sorted({answer["kernel"] for answer in answers.values()})
        controls = sorted({answer["congestion_control"] for answer in answers.values()})
        return f"hosts, kernel {' and '.join(kernels)}; TCP between sites: {' and '.join(controls)}"

    def remove(self) -> None:
        """Leave hosts' devices as they were found. Repeatable. Raises TestbedError, after all other hosts are done."""
        self._ask("remove", {host.name: {} for host in self.hosts})

    def _ask(self, act: str, arguments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Do one act on hosts, all at once: host -> result, for host -> arguments. Raises TestbedError naming hosts."""
        source = Path(tc_device.__file__).read_text(encoding="utf-8")
        devices = {host.name: host.site_device for host in self.hosts}

        def one(host: str) -> Any:
            request = json.dumps({"act": act, "device": devices[host], **arguments[host]})
            return json.loads(self.runner(host, ["python3", "-I", "-S", "-c", source], request, LIMIT_S))

        answers = dict(zip(arguments, side_by_side(one, list(arguments)), strict=True))
        failed = {host: answer for host, answer in answers.items() if "result" not in answer}
        if failed:
            advices = sorted({answer["advice"] for answer in failed.values()} - {""})
            raise TestbedError(
                "\n".join(f"{host}: {answer['what']}" for host, answer in failed.items()), "\n  ".join(advices)
            )
        return {host: answer["result"] for host, answer in answers.items()}
