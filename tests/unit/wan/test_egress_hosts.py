"""What is asked of which hosts to shape their egress, and how their answers are told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from discovery_deploy.experiment.model import Network, Verify
from discovery_deploy.system.errors import TestbedError
from discovery_deploy.wan.compensation import BASE_PROBES, base_rtts
from discovery_deploy.wan.egress_hosts import HostsShaper
from discovery_deploy.wan.measure import Point
from discovery_deploy.wan.shapes import Pair, PathShape, path_shapes
from tests.unit.wan.test_egress import HOSTS
from tests.unit.wan.three_sites import NAMES

KERNEL = {"what": "kernel 6 has no sch_netem (unknown)", "advice": "Boot another."}


def shapes_of(**fields: Any) -> dict[Pair, PathShape]:
    return path_shapes(Network.model_validate(fields), NAMES)


class Hosts:
    """Answer every act, and remember it."""

    def __init__(self, **refusals: dict[str, str]) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.refusals = refusals

    def __call__(self, host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        assert command[:4] == ["python3", "-I", "-S", "-c"]
        request = json.loads(stdin)
        act = request.pop("act")
        self.asked.append((act, host, request))
        answer = {"kernel": f"6.{len(host)}", "congestion_control": "cubic"} if act == "facts" else None
        return json.dumps(self.refusals.get(f"{act}_{host[:4]}", {"result": answer}))

    def hosts(self, act: str) -> list[str]:
        return sorted(host for asked, host, _ in self.asked if asked == act)


ONE_WAY = {"constraints": [{"from": "ares", "to": "cork", "delay": "1 ms"}]}


def test_hosts_with_paths_to_shape_are_checked_before_any_gets_its_program() -> None:
    hosts = Hosts()
    HostsShaper(hosts, HOSTS).put(shapes_of(**ONE_WAY))
    assert hosts.hosts("check") == ["ares-1", "ares-2"]
    assert hosts.hosts("apply") == ["ares-1", "ares-2", "brest-1", "cork-1"]
    assert [act for act, _, _ in hosts.asked] == ["check"] * 2 + ["apply"] * 4
    requests = {(act, host): request for act, host, request in hosts.asked}
    assert requests["check", "ares-2"] == {"device": "ens3", "addresses": ["172.16.5.31"]}
    assert "netem" in requests["apply", "ares-2"]["program"]


def test_what_hosts_lack_is_told_with_every_host_and_nothing_is_done() -> None:
    hosts = Hosts(check_ares=KERNEL, check_cork=KERNEL)
    with pytest.raises(TestbedError) as refused:
        HostsShaper(hosts, HOSTS).put(shapes_of(default={"delay": "1 ms"}))
    assert refused.value.what == "\n".join(f"{name}: {KERNEL['what']}" for name in ("ares-1", "ares-2", "cork-1"))
    assert refused.value.advice == "Boot another."
    assert hosts.hosts("apply") == []


def test_a_change_asks_only_hosts_that_change_and_checks_only_for_new_paths() -> None:
    hosts = Hosts()
    shaper = HostsShaper(hosts, HOSTS)
    old = shapes_of(**ONE_WAY)
    shaper.change(old, shapes_of(constraints=[{**ONE_WAY["constraints"][0], "delay": "2 ms"}]))
    assert (hosts.hosts("check"), hosts.hosts("apply")) == ([], ["ares-1", "ares-2"])
    hosts.asked.clear()
    shaper.change(old, shapes_of(constraints=[*ONE_WAY["constraints"], {"from": "brest", "to": "cork", "loss": "1 %"}]))
    assert (hosts.hosts("check"), hosts.hosts("apply")) == (["ares-1", "ares-2", "brest-1"], ["brest-1"])
    hosts.asked.clear()
    shaper.change(old, old)
    assert hosts.asked == []


def test_one_host_that_fails_does_not_keep_the_others_from_being_cleaned() -> None:
    hosts = Hosts(remove_ares={"what": "busy", "advice": ""})
    with pytest.raises(TestbedError, match="ares-1: busy"):
        HostsShaper(hosts, HOSTS).remove()
    assert hosts.hosts("remove") == [host.name for host in sorted(HOSTS, key=lambda host: host.name)]


def test_facts_tell_every_kernel() -> None:
    assert HostsShaper(Hosts(), HOSTS).facts() == "hosts, kernel 6.6 and 6.7; TCP between sites: cubic"


def test_what_is_sent_to_hosts_needs_nothing_but_python() -> None:
    """Run as on a host: isolated, without the package; a device that is not there is told, not a traceback."""

    def here(host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        done = subprocess.run(
            [sys.executable, *command[1:]], input=stdin, capture_output=True, text=True, timeout=timeout_s, check=True
        )
        return done.stdout

    shaper = HostsShaper(here, [HOSTS[0].__class__("ares-1", "ares", "10.0.0.1", "absent0"), HOSTS[2]])
    assert shaper.facts().startswith("hosts, kernel ")
    with pytest.raises(TestbedError, match="ares-1: no network device absent0"):
        shaper.check(path_shapes(Network.model_validate({"default": {"delay": "1 ms"}}), ["ares", "brest"]))


def test_the_testbeds_own_round_trips_are_kept_for_pairs_that_answer() -> None:
    def probe(host: str, command: Sequence[str], stdin: str, timeout_s: float) -> str:
        asked = json.loads(command[-1])
        assert asked["count"] == BASE_PROBES
        result = {"sent": 100, "received": 100, "median_s": 0.004, "p99_s": 0.005, "max_s": 0.006}
        silent = {**result, "received": 0, "median_s": None, "p99_s": None, "max_s": None}
        cut = {"a", "c"}
        unseen = {"count": 0, "median_s": None, "jitter_s": None}
        results = [
            {**(silent if {host, to} == cut else result), "there": unseen, "back": unseen}
            for to in asked["stations"][0]["to"]
        ]
        return json.dumps({"results": results, "scheduling": "fifo"})

    points = [Point(name, name[0], name[0]) for name in NAMES]
    base = base_rtts(probe, points, Verify(measure=("loss",)), {"a": "1"})
    assert base.identities == {"a": "1"}
    assert base.by_pair() == {
        ("ares", "brest"): 0.004,
        ("brest", "ares"): 0.004,
        ("brest", "cork"): 0.004,
        ("cork", "brest"): 0.004,
    }
