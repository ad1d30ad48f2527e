"""What the fake knows and does: jobs, deployments, machines. The REST server (`api.py`) asks it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from tests.fake_g5k import views
from tests.fake_g5k.views import View

ALIVE = ("waiting", "launching", "running")
HIDDEN_IN_LISTS = ("assigned_nodes", "resources_by_type")
"""Keys that the real API shows for one job only."""


class RefusedError(Exception):
    """An answer that is no success.

    Args:
        status: of HTTP.
        message: as the API tells it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Machines(Protocol):
    """What acts on machines; each verb says whether it came to its end."""

    def reserve(self, name: str, user: str) -> bool:
        """The standard environment, with the user's account."""

    def deploy(self, name: str, environment: str, vlan: str, keys: str) -> bool:
        """A fresh system; `vlan` is its primary network, or DEFAULT."""

    def vlan(self, adapter: str, vlan: str) -> bool:
        """Puts a network adapter into a vlan."""

    def release(self, name: str) -> bool:
        """Nothing is left of it."""


class Grid:
    """The state of the fake.

    Args:
        machines: what acts on them.
        faults: what is to go wrong at this moment (see `api.Faults`).
    """

    def __init__(self, machines: Machines, faults: Callable[[], dict[str, Any]]) -> None:
        self.machines = machines
        self.faults = faults
        self.lock = threading.RLock()
        self.jobs: dict[int, View] = {}
        self.deployments: dict[str, View] = {}
        self.number = 1000

    def tick(self) -> None:
        """Ends the jobs whose walltime is over."""
        for job in self.jobs.values():
            if job["state"] == "running" and time.time() > job["started_at"] + job["walltime"]:
                self._end(job)

    def submit(self, site: str, user: str, body: View) -> View:
        if refusal := self.faults().get("refuse"):
            raise RefusedError(400, refusal)
        machines, vlans = self._allocated(site, body["resources"])
        self.number += 1
        walltime = re.search(r"walltime=(\d+):(\d+):(\d+)", body["resources"])
        assert walltime is not None
        hours, minutes, seconds = map(int, walltime.groups())
        job: View = {
            "uid": self.number, "user": user, "user_uid": user, "name": body.get("name"), "site": site,
            "queue": body.get("queue", "default"), "types": body.get("types", []),
            "project": body.get("project", "default"), "command": body["command"],
            "walltime": hours * 3600 + minutes * 60 + seconds, "submitted_at": int(time.time()),
            "scheduled_at": int(time.time()), "started_at": None, "state": "waiting", "mode": "PASSIVE",
            "message": body["resources"], "assigned_nodes": machines, "events": [],
            "resources_by_type": {"cores": machines, **({"vlans": vlans} if vlans else {})},
            "granted": 0, "pending": 0,
        }  # fmt: skip
        self.jobs[job["uid"]] = job
        submitted = shown(job)
        if site not in self.faults().get("waiting", ()):
            threading.Thread(target=self._start, args=(job,), daemon=True).start()
        return submitted

    def _start(self, job: View) -> None:
        dead = self.faults().get("dead", ())
        for name in job["assigned_nodes"]:
            if name not in dead:
                self.machines.reserve(name, job["user"])
        with self.lock:
            if job["state"] == "waiting":
                job.update(state="running", started_at=int(time.time()))
                return
        for name in job["assigned_nodes"]:  # it was deleted meanwhile
            self.machines.release(name)

    def _allocated(self, site: str, resources: str) -> tuple[list[str], list[str]]:
        """Machines and vlans of an OAR resource text: {cluster='x'}/nodes=2+{type='kavlan'}/vlan=1,walltime=.."""
        machines: list[str] = []
        vlans: list[str] = []
        for part in re.split(r"\+(?![^{]*\})", re.sub(r",walltime=.*$", "", resources)):
            if found := re.search(r"network_address in \(([^)]*)\)\}/nodes=(\d+)", part):
                named = [name.strip().strip("'") for name in found[1].split(",")][: int(found[2])]
                if taken := self._busy() & set(named):
                    raise RefusedError(400, f"There are not enough resources for your request: {sorted(taken)}")
                machines += named
            elif found := re.search(r"cluster='([\w-]+)'\}/nodes=(\d+)", part):
                count = views.SITES[site][1][found[1]][0]
                names = [views.full_name(site, found[1], number) for number in range(1, count + 1)]
                free = [name for name in names if name not in self._busy() | set(machines)]
                if len(free) < int(found[2]):
                    raise RefusedError(400, "There are not enough resources for your request")
                machines += free[: int(found[2])]
            elif found := re.search(r"type='(kavlan(?:-local|-global)?)'\}/vlan=1", part):
                vlans.append(str(views.VLANS.get(found[1], views.GLOBAL_VLANS[site])))
            else:
                raise RefusedError(400, f"cannot parse resource {part}")
        return machines, vlans

    def _busy(self) -> set[str]:
        return {name for job in self.jobs.values() if job["state"] in ALIVE for name in job["assigned_nodes"]}

    def delete(self, job: View) -> None:
        if job["state"] not in ALIVE:
            raise RefusedError(400, "This job was already killed")
        self._end(job)

    def _end(self, job: View) -> None:
        job["state"] = "terminated"
        for name in job["assigned_nodes"]:
            self.machines.release(name)

    def change_walltime(self, job: View, user: str, body: View) -> None:
        """A change is granted in full, in part or not, as `faults` says (`grant_s`: the longest that is)."""
        if job["user"] != user or job["state"] != "running":
            raise RefusedError(403, "Walltime change is not allowed: this job is not running or not yours")
        sign, hours, minutes, seconds = re.fullmatch(r"(\+?)(\d+):(\d+):(\d+)", body["walltime"]).groups()  # type: ignore[union-attr]
        asked = int(hours) * 3600 + int(minutes) * 60 + int(seconds) - (0 if sign else job["walltime"])
        granted = min(asked, self.faults().get("grant_s", asked))
        job.update(walltime=job["walltime"] + granted, granted=job["granted"] + granted, pending=asked - granted)

    def deploy(self, site: str, user: str, body: View) -> View:
        mine = {
            name for job in self.jobs.values() if job["state"] == "running" and "deploy" in job["types"]
            and job["user"] == user for name in job["assigned_nodes"]
        }  # fmt: skip
        if foreign := [name for name in body["nodes"] if name not in mine]:
            raise RefusedError(403, f"You don't have deploy rights on {foreign}")
        self.number += 1
        deployment: View = {
            "uid": f"D-{self.number}", "site_uid": site, "user_uid": user, "status": "processing",
            "nodes": body["nodes"], "environment": body["environment"], "result": {},
        }  # fmt: skip
        self.deployments[deployment["uid"]] = deployment
        begun = dict(deployment)  # what is answered, however fast it is done
        threading.Thread(target=self._deploy, args=(deployment, body), daemon=True).start()
        return begun

    def _deploy(self, deployment: View, body: View) -> None:
        dead = self.faults().get("dead", ())
        vlan = str(body.get("vlan", "DEFAULT"))
        well = {
            name: name not in dead and self.machines.deploy(name, body["environment"], vlan, body["key"])
            for name in body["nodes"]
        }
        result = {name: {"state": "OK" if well[name] else "KO"} for name in well}
        deployment.update(status="terminated", result=result)


def shown(job: View, whole: bool = True) -> View:
    hidden = {"site", "granted", "pending", *(() if whole else HIDDEN_IN_LISTS)}
    return {key: value for key, value in job.items() if key not in hidden}
