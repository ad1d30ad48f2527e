"""Between which places lies the round-trip time that a run's durations depend on, and how long it is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from discovery_deploy.bench.records import Placement, RunRecord
from discovery_deploy.wan.verdict import WanReport

Against = Literal["database", "commit", "sites"]
"""Between the client's site and its database; the one that a Galera commit waits for; the largest between sites."""


def abscissa(members: Sequence[tuple[RunRecord, Placement]]) -> Against:
    """What the durations of runs that differ in the delay only are fitted on."""
    if not members[0][0].asks_keystone_alone or len({place.api_rtt_s for _, place in members}) > 1:
        return "sites"
    return "database" if len({place.database_rtt_s for _, place in members}) > 1 else "commit"


def asked_and_measured(run: RunRecord, placement: Placement, against: Against) -> tuple[float, float | None]:
    """The RTT, in seconds, on which durations of a run are fitted; measured: None when it was not."""
    if against == "sites":
        return widest_rtt(run) or (0.0, None)
    measured = measured_rtts(run, placement)
    if against == "database":
        return placement.database_rtt_s, None if measured is None else measured[0]
    return placement.commit_rtt_s, None if measured is None else measured[1]


def measured_rtts(run: RunRecord, placement: Placement) -> tuple[float, float] | None:
    """(API to database, commit) RTTs in seconds as measured around a run, or None when a pair was not measured."""
    here, holder = placement.api_site, placement.nearest_database_site
    database = _measured(run, here, holder)
    others = [_measured(run, holder, site) for site in placement.database_sites if site != holder]
    if database is None or None in others:
        return None
    return database, max([rtt for rtt in others if rtt is not None], default=0.0)


def _measured(run: RunRecord, source: str, destination: str) -> float | None:
    """Mean of the median RTTs before and after a run, both directions of asking."""
    if source == destination:
        return 0.0
    found = [
        pair.measured.rtt_median_s
        for wan in (run.wan_before, run.wan_after)
        for pair in _pairs(wan, {source, destination})
        if pair.measured.rtt_median_s is not None
    ]
    return sum(found) / len(found) if found else None


def widest_rtt(run: RunRecord) -> tuple[float, float | None] | None:
    """(asked, measured) in seconds: the largest RTT asked between two sites, and what all pairs with it measured.

    None when the run has no verification of its WAN; 0.0 asked and measured when it has one site only.
    """
    pairs = [pair for wan in (run.wan_before, run.wan_after) if wan is not None for pair in wan.pairs]
    if run.wan_before is None and run.wan_after is None:
        return None
    asked_s = max((pair.asked_rtt_s for pair in pairs), default=0.0)
    found = [pair.measured.rtt_median_s for pair in pairs if pair.asked_rtt_s == asked_s]
    known = [rtt_s for rtt_s in found if rtt_s is not None]
    return asked_s, 0.0 if not pairs else sum(known) / len(known) if known else None


def _pairs(wan: WanReport | None, sites: set[str]) -> list[Any]:
    return [] if wan is None else [p for p in wan.pairs if {p.measured.source, p.measured.destination} == sites]
