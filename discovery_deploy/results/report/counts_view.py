"""Database requests that were counted on the wire, as plain values ready to print. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from discovery_deploy.bench.records import RunRecord
from discovery_deploy.bench.request_counts import CountRecord, pairs_text
from discovery_deploy.experiment.model import Scenario
from discovery_deploy.results.report import text
from discovery_deploy.results.stats import Fit, delay_group


def each_once(counts: Mapping[str, CountRecord]) -> list[CountRecord]:
    """The records of a mapping label of a setting -> record, each deployment's once."""
    return list({record.deployed: record for record in counts.values()}.values())


def counted(fit: Fit, scenario: Scenario, runs: Sequence[RunRecord], counts: Mapping[str, CountRecord]) -> str:
    """What was counted for the step of a fit: requests, or against the commit RTT commits that write.

    "–" where the deployment of one of its settings was not counted, where deployments differ, and for fits against the
    largest RTT between sites, whose n is no number of database requests.
    """
    labels = {
        run.setting.label
        for run in runs
        if delay_group(run.setting)[1] == fit.group and fit.site in [place.bench_site for place in run.placements]
    }
    found = {_counted(fit, scenario, counts.get(label)) for label in labels}
    return found.pop() if len(found) == 1 and fit.against != "sites" else text.NONE


def _counted(fit: Fit, scenario: Scenario, record: CountRecord | None) -> str:
    known = record.scenario(scenario) if record else None
    action = known.action(fit.atomic_action) if known else None
    if action is None:
        return text.NONE
    return str(action.write_commits) if fit.against == "commit" else action.text


def counts_of(scenario: Scenario, counts: Mapping[str, CountRecord]) -> list[dict[str, Any]]:
    """What was counted of a scenario, a row per deployment and step."""
    rows = []
    for record in each_once(counts):
        known = record.scenario(scenario)
        labels = [label or "the one setting" for label, other in counts.items() if other.deployed == record.deployed]
        for action in known.actions if known else ():
            rows.append({
                "settings": "; ".join(labels),
                "action": text.action_name(action.name),
                "requests": action.text,
                "commits": str(action.write_commits),
                "kinds": pairs_text(action.kinds) or text.NONE,
                "users": pairs_text(action.users) or text.NONE,
            })  # fmt: skip
    return rows
