"""The WAN of a testbed, on hosts that shape and answer as they are told."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from discovery_deploy.agent.plan import as_data
from discovery_deploy.cli import commands
from discovery_deploy.driver import wan_acts
from discovery_deploy.driver.wan_acts import Wan
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.hosts.shaping import Shapes
from discovery_deploy.system.errors import MeasurementError
from discovery_deploy.system.remote import Remote
from discovery_deploy.system.workspace import Workspace
from discovery_deploy.testbeds import local
from discovery_deploy.testbeds.base import ProviderInterface
from discovery_deploy.wan.verdict import WanReport, judge, unmeasured
from tests import leased


def experiment(**network: Any) -> Experiment:
    asked = leased.experiment(leased.GALERA).model_dump(mode="json", by_alias=True, exclude_none=True)
    return Experiment.model_validate({**asked, "network": {"default": {"delay": "5 ms"}, **network}})


class Answering(Remote):
    """All hosts are as far from each other as it is said, and know whether they shape; what is asked is remembered."""

    def __init__(self, rtt_s: float) -> None:
        super().__init__(Path("none"))
        self.rtt_s = rtt_s
        self.ahead_s = 0.0
        self.asked: list[str] = []
        self.shaping: set[str] = set()

    def __call__(self, host: str, command: Sequence[str], stdin: str = "", timeout_s: float = 60.0) -> str:
        if command[0] == "date":
            return f"{time.time_ns() + round(self.ahead_s * 1e9)}\n"
        if command[3] == "-":
            self.asked.append("probe")
            assert self.shaping == set()
            probe = json.loads(command[-1])
            (station,) = probe["stations"]
            unseen = {"count": 0, "median_s": None, "jitter_s": None}
            result = {"sent": 9, "received": 9, "median_s": self.rtt_s, "p99_s": self.rtt_s, "max_s": self.rtt_s}
            results = [{**result, "there": unseen, "back": unseen}] * len(station["to"])
            return json.dumps({"results": results, "scheduling": "fifo"})
        request = json.loads(stdin)
        self.asked.append(request["act"])
        if request["act"] == "apply":
            act = self.shaping.add if "netem" in request["program"] else self.shaping.discard
            act(host)
        answers = {
            "read": {"qdisc": {}, "class": {}, "filter": {}, "segmentation": {}},
            "facts": {"kernel": "6.1", "congestion_control": "cubic"},
        }
        return json.dumps({"result": answers.get(request["act"])})


def wan_of(tmp_path: Path, asked: Experiment, rtt_s: float, **fields: Any) -> tuple[Wan, Answering]:
    """Of hosts that shape; no provider is asked for anything."""
    lease = leased.lease(asked).model_copy(update={"shaped": "hosts", "site_gateways": {}, **fields})
    hosts = tuple(host.model_copy(update={"site_device": "eth1"}) for host in lease.hosts)
    remote = Answering(rtt_s)
    provider = cast(ProviderInterface, None)
    return Wan(lease.model_copy(update={"hosts": hosts}), provider, remote, Workspace(tmp_path)), remote


@pytest.mark.parametrize(("load", "relied_on"), [("light", False), ("high", True)])
def test_a_clock_that_is_off_is_a_problem_for_a_common_start_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str, relied_on: bool
) -> None:
    asked = experiment()
    asked = asked.model_copy(update={"campaign": asked.campaign.model_copy(update={"load": load})})
    wan, remote = wan_of(tmp_path, asked, 0.0)
    monkeypatch.setattr("discovery_deploy.wan.measure.verify_wan", lambda *_, **__: report(asked, 0.01))
    assert wan.measured(asked).clock_problems == ()
    remote.ahead_s = 3600.0
    found = wan.measured(asked)
    assert {clock.host for clock in found.clocks} == {
        *(wan.lease.at(site).name for site in asked.site_names),
        *(wan.lease.at(site, "bench").name for site in asked.bench_sites()),
    }
    assert (found.problems == ()) is not relied_on
    assert not relied_on or "ahead of this machine's, tolerance 100.00 ms" in found.problems[0]
    table = commands.wan_table(found, asked.network.verify)
    assert "# rennes-1: its clock is 36000" in table


def test_verify_names_what_it_did_not_measure() -> None:
    asked = experiment(default={"delay": "5 ms", "loss": "1 %"}, constraints=[])
    found = report(asked, 0.01)
    head, first, *_, last = commands.wan_table(found, asked.network.verify).splitlines()
    shown = dict(zip(head.split("\t"), first.split("\t"), strict=True))
    assert (shown["median RTT ms"], shown["one way ms"], shown["loss %"]) == ("10.00", "-", "-")
    assert (shown["not measured"], shown["problem"]) == ("one-way delay, loss", "-")
    assert last == "# not measured, only read back: loss (6 of 6 pairs), one-way delay (6 of 6 pairs)"
    with pytest.raises(MeasurementError, match="a path is too short\n  not measured, only read back: loss"):
        commands.raise_on_problems(report(asked, 0.01, readback_problems=["a path is too short"]))


def test_hosts_of_this_machine_are_measured_by_one_probe_in_their_namespaces(tmp_path: Path) -> None:
    asked = experiment()
    plan = local.machine_plan(asked, 3, tmp_path, tmp_path, tmp_path, "key")
    wan, _ = wan_of(tmp_path, asked, 0.0, shaped="router", details={"plan": as_data(plan)})
    assert {(point.host, point.namespace) for point in wan.points(asked)} == {
        ("", f"/run/netns/dd3-{wan.lease.at(site).name}") for site in asked.site_names
    }


def delays_ms(wan: Wan, asked: Experiment) -> set[float]:
    return {round(1e3 * shape.delay_s, 6) for shape in wan.to_apply(asked).values()}


def test_the_testbeds_own_rtt_is_measured_once_while_nothing_is_shaped(tmp_path: Path) -> None:
    asked = experiment(compensate=True)
    wan, remote = wan_of(tmp_path, asked, 0.004)
    wan.bring(wan_acts.asked(asked))
    assert len(remote.shaping) == 6
    assert delays_ms(wan, asked) == {3.0}
    assert "probe" in remote.asked
    remote.asked.clear()
    assert delays_ms(wan, asked) == {3.0}
    assert remote.asked == []
    assert wan.facts(asked).endswith("; the testbed's own RTT, at most 4.00 ms, is part of the asked ones")


def report(asked: Experiment, rtt_s: float, **fields: Any) -> WanReport:
    shapes = wan_acts.asked(asked)
    measured = [
        unmeasured(pair).model_copy(update={"sent": 9, "received": 9, "rtt_median_s": rtt_s}) for pair in shapes
    ]
    return judge(shapes, measured, asked.network.verify, 0.0, measured_at="t", **fields)


def test_it_is_corrected_by_what_is_measured_while_paths_are_shaped(tmp_path: Path) -> None:
    asked = experiment(compensate=True)
    wan, remote = wan_of(tmp_path, asked, 0.004)
    assert not wan.correct(asked, report(asked, 0.012))  # nothing is known yet
    assert delays_ms(wan, asked) == {3.0}
    assert not wan.correct(asked, report(asked, 0.0104))
    assert not wan.correct(asked, report(asked, 0.012, readback_problems=["a path has another delay"]))
    remote.asked.clear()
    assert wan.correct(asked, report(asked, 0.012))
    assert delays_ms(wan, asked) == {2.0}
    assert "probe" not in remote.asked
    assert "at most 4.00 ms and 2.00 ms that shaped paths are late, is part of" in wan.facts(asked)
    plain = experiment()
    assert not wan_of(tmp_path, plain, 0.004)[0].correct(plain, report(plain, 0.012))


def test_of_other_machines_it_is_measured_again(tmp_path: Path) -> None:
    asked = experiment(compensate=True)
    wan, _ = wan_of(tmp_path, asked, 0.004)
    assert delays_ms(wan, asked) == {3.0}
    wan, _ = wan_of(tmp_path, asked, 0.002, identities={"rennes-1": "another"})
    assert delays_ms(wan, asked) == {4.0}


def test_a_testbed_that_is_too_slow_is_refused(tmp_path: Path) -> None:
    asked = experiment(compensate=True)
    wan, _ = wan_of(tmp_path, asked, 0.012)
    with pytest.raises(MeasurementError, match=r"RTT asked 10\.00 ms, the testbed alone takes 12\.00 ms"):
        wan.to_apply(asked)
    wan, _ = wan_of(tmp_path, asked, 0.004)  # the next time it is measured anew
    assert delays_ms(wan, asked) == {3.0}


class Routers:
    """Shapes as the routers of several machines would."""

    def __init__(self) -> None:
        self.put_ms: list[set[float]] = []

    def put(self, shapes: Shapes) -> None:
        self.put_ms.append({round(1e3 * shape.delay_s, 6) for shape in shapes.values()})

    def change(self, old: Shapes, new: Shapes) -> None:
        self.put(new)

    def problems(self, shapes: Shapes) -> tuple[str, ...]:
        return ()

    def facts(self) -> str:
        return "routers"


@pytest.mark.parametrize(("compensate", "provider"), [(False, "vagrant"), (True, "local")])
def test_nothing_is_taken_off_unasked_or_on_this_machine(tmp_path: Path, compensate: bool, provider: str) -> None:
    asked = experiment(compensate=compensate)
    wan, remote = wan_of(tmp_path, asked, 0.004, shaped="router", provider=provider)
    assert delays_ms(wan, asked) == {5.0}
    assert remote.asked == []


def test_what_machines_take_between_them_is_taken_off_their_routers_paths(tmp_path: Path) -> None:
    asked = experiment(compensate=True)
    gateways = dict.fromkeys(asked.site_names, "10.0.0.1")
    wan, remote = wan_of(tmp_path, asked, 0.004, shaped="router", provider="vagrant", site_gateways=gateways)
    wan.shaper = routers = Routers()
    assert delays_ms(wan, asked) == {3.0}
    assert routers.put_ms == [{0.0}], "measured while nothing was shaped"
    assert remote.asked
    assert {point.gateway for point in wan.points(asked)} == {None}, "it is not subtracted once more"
    assert "at most 4.00 ms, is part of the asked ones" in wan.facts(asked)


def test_a_host_that_has_forgotten_what_it_shapes_is_noticed(tmp_path: Path) -> None:
    asked = experiment()
    wan, _ = wan_of(tmp_path, asked, 0.0)
    assert wan.lost() == ()
    wan.bring(wan_acts.asked(asked))
    assert "no htb of ours" in wan.lost()[0]


def test_a_router_is_not_asked_whether_it_has_forgotten(tmp_path: Path) -> None:
    asked = experiment()
    wan, remote = wan_of(tmp_path, asked, 0.0, shaped="router")
    assert wan.lost() == ()
    assert remote.asked == []


def test_what_was_put_there_is_what_is_read_back_and_nothing_is_flattened_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = experiment(compensate=True)
    wan, remote = wan_of(tmp_path, asked, 0.004)
    wan.bring(wan.to_apply(asked))
    (tmp_path / wan_acts.BASE).unlink()
    problems: list[Any] = []

    def shown(shapes: Any) -> tuple[str, ...]:
        problems.append(shapes)
        return ()

    monkeypatch.setattr(wan.shaper, "problems", shown)
    monkeypatch.setattr(
        "discovery_deploy.wan.measure.verify_wan",
        lambda *_, readback, **__: report(asked, 0.01, readback_problems=readback()),
    )
    remote.asked.clear()
    wan.measured(asked)
    assert {round(1e3 * shape.delay_s, 6) for shape in problems[0].values()} == {3.0}
    assert remote.asked == []
