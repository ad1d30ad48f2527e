"""How many hosts of a plan start at the same time; without hosts."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import containers, nspawn
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.agent.plan import Host, Plan, WanRouter

PLAN = Plan(
    slot=63,
    directory=Path("/nowhere"),
    router=WanRouter("dd63-router", "netns"),
    hosts=tuple(
        Host(f"host-{number}", "lyon", f"dd63-host-{number}", "10.0.0.1", "dd63e0", "10.0.0.2", "dd63n0")
        for number in range(9)
    ),
)


def test_no_more_hosts_start_at_once_than_the_machine_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nspawn, "AT_ONCE", 3)
    running, most, started = set(), [0], []
    lock = threading.Lock()

    def up(plan: Plan, host: Host, *_: Any) -> None:
        with lock:
            running.add(host.name)
            most[0] = max(most[0], len(running))
        time.sleep(0.02)
        with lock:
            running.discard(host.name)
            started.append(host.name)

    monkeypatch.setattr(containers, "_host_up", up)
    monkeypatch.setattr(containers, "_router_up", lambda plan: started.append("router"))
    containers._start(PLAN, lambda line: None)
    assert most == [3]
    assert sorted(started) == [*(f"host-{number}" for number in range(9)), "router"]


def test_a_host_that_waits_for_its_turn_is_not_started_after_an_interruption() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(MachineError, match="interrupted"):
        nspawn.up(PLAN, PLAN.hosts[0], lambda line: None, stop)
