"""Smoke carried out: servers at every site, at several at once, and with a site cut off from the others."""

from __future__ import annotations

import json
import time
from typing import Any

from discovery_deploy.bench import cloud_probe, smoke
from discovery_deploy.bench.campaign import Setting
from discovery_deploy.bench.smoke import Kind, SmokeCheck, SmokeRecord, SmokeSite
from discovery_deploy.cloud.inventory import HOST_PYTHON
from discovery_deploy.driver import wan_acts
from discovery_deploy.driver.testbed import Testbed
from discovery_deploy.system.errors import DiscoveryError, MeasurementError
from discovery_deploy.system.files import now
from discovery_deploy.system.remote import side_by_side
from discovery_deploy.wan.verdict import WanReport

SSH_MARGIN_S = 30.0
"""Beyond its own limit, what a call may take before it counts as lost."""


class Smoke:
    """The checks of one deployment, which stands and whose WAN is as asked.

    Args:
        testbed: at the setting.
        setting: whose deployment is asked.
    """

    def __init__(self, testbed: Testbed, setting: Setting) -> None:
        self.testbed = testbed
        self.setting = setting
        self.experiment = setting.experiment
        self.shapes = wan_acts.asked(setting.experiment)
        self.limit_s = smoke.limit_s(self.shapes)
        self.cut_limit_s = smoke.limit_s(self.shapes, cut=True)
        self.sites = smoke.smoke_sites(setting.experiment, testbed.lease)

    def run(self) -> tuple[SmokeRecord, WanReport]:
        """All checks, kept in the workspace; and the verification of the WAN after it was cut and healed.

        Raises:
            MeasurementError: the WAN is not the one asked for after it was healed.
        """
        started_at = now()
        self.testbed.announce.phase("smoke", self.setting.record.label)
        began_s = time.monotonic()
        checks = [check for found in side_by_side(self._each_kind, self.sites) for check in found]
        checks += [*self._several(), *self._isolated()]
        record = SmokeRecord(
            deployed=self.testbed.wanted(self.experiment)["deploy"],
            setting=self.setting.record.label,
            topology=smoke.topology_text(self.experiment),
            checks=tuple(checks),
            started_at=started_at,
            finished_at=now(),
        )
        self.testbed.workspace.save(f"smoke/{record.deployed}.json", record)
        report = self.testbed.verify(self.experiment)
        if report.problems:
            raise MeasurementError(
                f"after smoke, the WAN is not the one asked for: {report.problems[0]}",
                "Run again: the WAN is shaped and measured anew.",
            )
        passed = sum(check.passed for check in checks)
        self.testbed.announce.done("smoke", round(time.monotonic() - began_s, 3), f"{passed} of {len(checks)} passed")
        return record, report

    # levels

    def _each_kind(self, site: SmokeSite) -> list[SmokeCheck]:
        """L1 for each kind of compute of a site, by a client there."""
        return [
            self._check("L1", site, f"a server on a {kind} compute at {site.site}", [self._place(site, kind)])
            for kind in site.computes
        ]

    def _several(self) -> list[SmokeCheck]:
        """L2.1: one session, by a client at the first site, that names every site."""
        if len(self.sites) < 2:
            return []
        places = [smoke.place(site, smoke.cheapest(site), f"all-{site.site}") for site in self.sites]
        what = f"servers at {', '.join(site.site for site in self.sites)}"
        return [self._check("L2.1", self.sites[0], what, places)]

    def _isolated(self) -> list[SmokeCheck]:
        """L3.2: one site is cut off, and both sides are asked; then the WAN heals, and the site must work again."""
        name = smoke.site_to_cut(self.experiment, [site.site for site in self.sites])
        if name is None:
            return []
        lonely = next(site for site in self.sites if site.site == name)
        asked = [lonely, *[site for site in self.sites if site.site != name][:1]]

        def here(site: SmokeSite) -> SmokeCheck:
            what = "the site that is cut off" if site is lonely else f"the others, while {name} is cut off"
            place = self._place(site, smoke.cheapest(site), "cut-")
            return self._check("L3.2", site, f"a server at {site.site}, {what}", [place], again=True, cut=True)

        self.testbed.announce.line(f"{name} is cut off from the other sites")
        with self.testbed.cut_off(self.experiment, name):
            time.sleep(smoke.settle_s(self.experiment))
            found = side_by_side(here, asked)
        self.testbed.announce.line(f"{name} is connected again")
        for site in asked:
            self._clean(site, [self._place(site, smoke.cheapest(site), "cut-")])
        what = f"a server at {name}, after the WAN has healed"
        place = self._place(lonely, smoke.cheapest(lonely), "healed-")
        return [*found, self._check("L1", lonely, what, [place], again=True)]

    def _place(self, site: SmokeSite, kind: Kind, prefix: str = "") -> dict[str, Any]:
        return smoke.place(site, kind, f"{prefix}{kind}-{site.site}")

    # one check

    def _check(
        self,
        level: smoke.Level,
        site: SmokeSite,
        what: str,
        places: list[dict[str, Any]],
        *,
        again: bool = False,
        cut: bool = False,
    ) -> SmokeCheck:
        """Servers at places, by a client at a site.

        Args:
            again: try until the limit: what was cut or healed takes a while to notice.
            cut: nothing is removed after a failure, since that would wait for what cannot come; `_clean` does later.
        """
        self.testbed.announce.line(f"{level}: {what}")
        began_s, limit_s = time.monotonic(), self.cut_limit_s if cut else self.limit_s
        answer = self._operate(site, places, limit_s, not cut)
        while answer["error"] and again and (left_s := began_s + limit_s - time.monotonic()) > 0:
            time.sleep(smoke.PAUSE_S)
            answer = self._operate(site, places, max(left_s, 1.0), not cut)
        check = smoke.check(level, site.site, what, answer, time.monotonic() - began_s)
        self.testbed.workspace.note("smoke", level=level, what=what, passed=check.passed, reason=check.reason)
        return check

    def _operate(
        self, site: SmokeSite, places: list[dict[str, Any]], limit_s: float, remove_after_failure: bool
    ) -> dict[str, Any]:
        extra = {"remove_after_failure": remove_after_failure}
        margin_s = SSH_MARGIN_S + (cloud_probe.CLEAN_LIMIT_S if remove_after_failure else 0.0)
        return self._call("operate", site, places, limit_s, margin_s, extra)

    def _clean(self, site: SmokeSite, places: list[dict[str, Any]]) -> None:
        """Remove what checks during the cut left. Raises MeasurementError when it does not go."""
        began_s = time.monotonic()
        answer = self._call("clean", site, places, self.limit_s, SSH_MARGIN_S, {})
        while answer["error"] and (left_s := began_s + self.limit_s - time.monotonic()) > 0:
            time.sleep(smoke.PAUSE_S)
            answer = self._call("clean", site, places, max(left_s, 1.0), SSH_MARGIN_S, {})
        if answer["error"]:
            raise MeasurementError(
                f"{site.site}: what smoke left while a site was cut off does not go: {answer['error']}",
                "The deployment did not heal within the limit; look at its services with `discovery-deploy ssh`.",
            )

    def _call(
        self,
        task: str,
        site: SmokeSite,
        places: list[dict[str, Any]],
        limit_s: float,
        margin_s: float,
        extra: dict[str, Any],
    ) -> dict[str, Any]:
        """Answer of `cloud_probe` from a host of a site; a host that does not answer is an answer too."""
        specification = {
            "task": task,
            "auth_url": site.auth_url,
            "password": self.testbed.secrets.admin_password,
            "places": places,
            "limit_s": limit_s,
            **extra,
        }
        command = [HOST_PYTHON, "-I", "-S", "-"]
        try:
            text = self.testbed.remote(site.host, command, cloud_probe.call(specification), limit_s + margin_s)
            answer: dict[str, Any] = json.loads(text)
        except DiscoveryError as error:
            return {"error": str(error).splitlines()[0], "steps": []}
        except ValueError:
            return {"error": f"{site.host}: the client answered {text[:200]!r}", "steps": []}
        return answer


def raise_on_problems(record: SmokeRecord) -> None:
    """Raises MeasurementError when a level that every topology must reach is not reached."""
    if record.problems:
        raise MeasurementError(
            f"the deployment {record.topology} does not work:\n  " + "\n  ".join(record.problems),
            "Look at the services of that site with `discovery-deploy ssh`, or their logs with `journalctl` there.",
        )
