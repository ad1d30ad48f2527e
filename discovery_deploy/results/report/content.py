"""What a report says, as plain values ready to print: HTML and Markdown are two prints of the same. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from discovery_deploy.bench.campaign import sites_of_settings
from discovery_deploy.bench.rally import TOTAL, TaskTemplate
from discovery_deploy.bench.records import Provenance, RunRecord
from discovery_deploy.bench.request_counts import CountRecord
from discovery_deploy.bench.smoke import LEVELS, SmokeRecord
from discovery_deploy.experiment.fields import parse_path
from discovery_deploy.experiment.model import Experiment, Scenario
from discovery_deploy.results.report import text
from discovery_deploy.results.report.counts_view import counted, counts_of
from discovery_deploy.results.report.figures import against_rtt, distributions, stacked
from discovery_deploy.results.report.origin import provenance_view
from discovery_deploy.results.report.wan_view import setting_matrices, wan_picture
from discovery_deploy.results.stats import Fit, NoFit, delay_group, fitted_rtts


class Numbers(NamedTuple):
    """The tables that a report is made of."""

    iterations: pd.DataFrame
    """With `(other)` rows."""
    summary: pd.DataFrame
    fits: list[Fit]
    refused: list[NoFit]
    wan: pd.DataFrame


def view(
    experiment: Experiment,
    runs: Sequence[RunRecord],
    numbers: Numbers,
    provenance: Provenance,
    tasks: Mapping[str, TaskTemplate],
    smoke: Sequence[SmokeRecord] = (),
    counts: Mapping[str, CountRecord] | None = None,
) -> dict[str, Any]:
    """Everything the templates print."""
    site_names = sites_of_settings(experiment)
    return {
        "name": experiment.name,
        "question": experiment.question,
        "finished_at": provenance.finished_at,
        "counts": run_counts(experiment, runs, numbers.iterations),
        "answer": answer(experiment, numbers, tasks),
        "facts": facts(experiment, runs),
        "picture": wan_picture(experiment, runs, site_names),
        "factors": [factor.path for factor in experiment.campaign.factors],
        "settings": settings(runs),
        "matrices": setting_matrices(experiment, numbers.wan, site_names),
        "widest": len(site_names),
        "tolerance": tolerance(experiment),
        "smoke": smoke_view(smoke),
        "scenarios": [
            scenario_view(number, scenario, runs, numbers, tasks.get(scenario.task), counts or {})
            for number, scenario in enumerate(experiment.campaign.scenarios, 1)
        ],
        "not_counted": not_counted(runs),
        "why_not_valid": why_not_valid(runs),
        "without_iterations": without_iterations(runs, numbers.iterations),
        "errors": errors(numbers.iterations),
        "provenance": provenance_view(provenance, runs),
        "beside": text.BESIDE,
    }


def facts(experiment: Experiment, runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """What is the same in the whole campaign; of what a factor varies, the file's own value, marked."""
    campaign, deployment = experiment.campaign, experiment.deployment
    backend = "@".join(str(value) for value in deployment.backend.model_dump().values())
    topology = "@".join(str(value) for value in deployment.topology.model_dump().values())
    services = f"{', '.join(deployment.services)} ({deployment.release})"

    def marked(value: str, *paths: str) -> str:
        return value + (" (varied, see settings)" if any(is_varied(experiment, path) for path in paths) else "")

    load: str = campaign.load
    clients = experiment.bench_sites()
    if is_varied(experiment, "campaign") or is_varied(experiment, "sites"):
        load = " or ".join(dict.fromkeys(run.load for run in runs)) or load
        clients = tuple(dict.fromkeys(place.bench_site for run in runs for place in run.placements)) or clients
    return [
        ("Sites", marked(str(len(experiment.sites)), "sites")),
        ("Services", marked(services, "deployment.services", "deployment.release")),
        ("Topology", marked(topology, "deployment.topology")),
        ("State backend", marked(backend, "deployment.backend")),
        ("Keystone's cache", marked(deployment.cache, "deployment.cache")),
        ("Workers per API and site", marked(str(deployment.workers), "deployment.workers")),
        ("Load", marked(f"{load}, from {', '.join(clients)}", "campaign") if campaign.scenarios else "none"),
        ("Repetitions", str(campaign.repetitions)),
    ]


def is_varied(experiment: Experiment, path: str) -> bool:
    """Whether a factor varies what stands at a path: it, something in it, or something that it is in."""
    place = parse_path(path)
    places = [parse_path(factor.path) for factor in experiment.campaign.factors]
    return any(place[: len(other)] == other[: len(place)] for other in places)


def run_counts(experiment: Experiment, runs: Sequence[RunRecord], iterations: pd.DataFrame) -> dict[str, int]:
    """How many runs were planned, and what became of them; earlier attempts (`~` in the id) are not counted."""
    planned = experiment.campaign.repetitions * len(experiment.campaign.scenarios)
    for factor in experiment.campaign.factors:
        planned *= len(factor.levels)
    latest = [run for run in runs if "~" not in run.id]
    valid = [run for run in latest if run.valid]
    return {
        "planned": planned,
        "valid": len(valid),
        "invalid": sum(not run.valid and run.status == "done" for run in latest),
        "failed": sum(run.status == "failed" for run in latest),
        "missing": max(0, planned - len(latest)),
        "iterations": int((iterations["valid"] & (iterations["atomic_action"] == TOTAL)).sum()),
    }


def settings(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """One entry per setting and bench site that has runs: levels, round-trip times, placement, runs that count."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        for place in run.placements:
            entry = found.setdefault((run.setting.label, place.bench_site), {
                "label": run.setting.label or "the one setting",
                "levels": dict(run.setting.labels),
                "site": place.bench_site,
                "api": place.api_site,
                "api_rtt": text.milliseconds(place.api_rtt_s),
                "compute_rtt": text.milliseconds(place.compute_rtt_s) if place.compute_rtt_s else text.NONE,
                "database": text.names(place.database_sites),
                "database_rtt": text.milliseconds(place.database_rtt_s),
                "commit_rtt": text.milliseconds(place.commit_rtt_s) if len(place.database_sites) > 1 else text.NONE,
                "beside": place.beside_only_database and run.asks_keystone_alone,
                "valid": 0,
                "runs": 0,
            })  # fmt: skip
            entry["beside"] &= run.says_nothing_of_the_wan(place)
            entry["runs"] += 1
            entry["valid"] += run.valid
    return list(found.values())


def tolerance(experiment: Experiment) -> str:
    """What was accepted as equal to asked, in words."""
    verify = experiment.network.verify
    rtt = f"{text.milliseconds(verify.rtt_tolerance)} ms or {text.percent(verify.rtt_tolerance_ratio)} of the asked RTT"
    return f"the larger of {rtt}"


def smoke_view(records: Sequence[SmokeRecord]) -> dict[str, Any]:
    """Which levels each deployment reached, and every check behind that; no deployments when smoke was not asked."""
    return {
        "levels": list(LEVELS.items()),
        "deployments": [
            {
                "topology": record.topology,
                "setting": record.setting or "the one setting",
                "reached": [text.yes_no(record.reached(level)) for level in LEVELS],
                "checks": [
                    {
                        "level": check.level,
                        "site": check.site,
                        "what": check.what,
                        "answer": text.yes_no(check.passed),
                        "took": text.seconds(check.seconds),
                        "reason": check.reason,
                    }
                    for check in record.checks
                ],
            }
            for record in records
        ],
    }


# the answer


def answer(experiment: Experiment, numbers: Numbers, tasks: Mapping[str, TaskTemplate]) -> list[dict[str, Any]]:
    """For each scenario: its question, and sentences from the fits, or medians where nothing can be fitted."""
    parts = []
    for scenario in experiment.campaign.scenarios:
        groups: dict[tuple[str, str], list[Fit]] = {}
        for fit in numbers.fits:
            if fit.scenario == scenario.task:
                groups.setdefault((fit.group, fit.site), []).append(fit)
        sentences = [text.fits_sentence(fits) for fits in groups.values()]
        summary = numbers.summary[numbers.summary["scenario"] == scenario.task]
        for refused in numbers.refused:
            if refused.scenario == scenario.task:
                mine = summary["setting"].isin(refused.settings) & (summary["site"] == refused.site)
                sentences += [text.no_fit_sentence(refused), *median_sentences(summary[mine])]
        template = tasks.get(scenario.task)
        parts.append({
            "scenario": scenario.label,
            "question": template.question if template else "",
            "sentences": sentences or ["No iteration of a valid run succeeded: there is no answer yet."],
        })  # fmt: skip
    return parts


def median_sentences(summary: pd.DataFrame) -> list[str]:
    """ "galera, from lyon: 914 ms (95 % CI ...)" for every setting, of whole iterations."""
    rows = summary[(summary["atomic_action"] == TOTAL) & summary["median_s"].notna()]
    return [
        f"{row['setting'] or 'The one setting'}, from {row['site']}: a whole iteration takes "
        f"{text.seconds(row['median_s'])} (95 % CI {text.seconds_range(row['median_low_s'], row['median_high_s'])}; "
        f"failure rate {text.failure_rate(row)})" + (f"; {text.BESIDE}." if row["beside_only_database"] else ".")
        for _, row in rows.iterrows()
    ]


# scenarios


def scenario_view(
    number: int,
    scenario: Scenario,
    runs: Sequence[RunRecord],
    numbers: Numbers,
    template: TaskTemplate | None,
    counts: Mapping[str, CountRecord],
) -> dict[str, Any]:
    """One scenario: what it is, its medians, its figures and fits, and what was counted of it."""
    mine = [run for run in runs if run.scenario.task == scenario.task]
    summary = numbers.summary[numbers.summary["scenario"] == scenario.task]
    table = numbers.iterations[numbers.iterations["scenario"] == scenario.task]
    fits = [fit for fit in numbers.fits if fit.scenario == scenario.task]
    groups = {run.setting.label: (delay_group(run.setting)[1], run.setting.label) for run in mine}
    rows = [summary_row(row) for _, row in summary.iterrows()]
    return {
        "id": f"scenario-{number}",
        "label": scenario.label,
        "task": scenario.task,
        "question": template.question if template else "",
        "notes": template.notes if template else "",
        "rally": template.scenario if template else "",
        "asked": asked_of(scenario),
        "whole": [row for row in rows if row["action"] == text.action_name(TOTAL)],
        "actions": [row for row in rows if row["action"] != text.action_name(TOTAL)],
        "several_sites": summary["site"].nunique() > 1,
        "excluded": text.runs_not_counted(sum(not run.valid for run in mine)),
        "stacked": stacked(summary, f"stack{number}"),
        "cdf": distributions(table, groups, f"cdf{number}"),
        "against": against_rtt(fits, table, fitted_rtts(mine, fits), f"rtt{number}"),
        "linearity": text.linearity(fits),
        "fits": [fit_row(fit, counted(fit, scenario, mine, counts)) for fit in fits],
        "refused": [refused for refused in numbers.refused if refused.scenario == scenario.task],
        "beside": bool(summary["beside_only_database"].any()),
        "steps": [{"name": step.name, "does": step.does} for step in template.atomic_actions] if template else [],
        "counts": counts_of(scenario, counts),
    }


def asked_of(scenario: Scenario) -> str:
    """ "20 iterations per run, 1 at a time, with enabled = true"."""
    words = f"{scenario.times} iterations per run, {scenario.concurrency} at a time"
    arguments = ", ".join(f"{key} = {json.dumps(value)}" for key, value in sorted(scenario.args.items()))
    return f"{words}, with {arguments}" if arguments else words


def summary_row(row: pd.Series) -> dict[str, Any]:
    """A row of `stats.summarise` as text."""
    several = row["runs"] > 1 and row["median_s"] == row["median_s"]
    return {
        "setting": row["setting"] or "the one setting",
        "site": row["site"],
        "action": text.action_name(row["atomic_action"]),
        "beside": bool(row["beside_only_database"]),
        "runs": int(row["runs"]),
        "count": int(row["count"]),
        "failure_rate": text.failure_rate(row),
        "failed": bool(row["failures"]),
        "median": text.seconds(row["median_s"]),
        "interval": text.seconds_range(row["median_low_s"], row["median_high_s"]),
        "quartiles": text.seconds_range(row["q1_s"], row["q3_s"]),
        "p95": text.seconds(row["p95_s"]),
        "mad": text.seconds(row["mad_s"]),
        "run_medians": text.seconds_range(row["run_median_min_s"], row["run_median_max_s"]) if several else text.NONE,
    }


def fit_row(fit: Fit, counted_beside: str) -> dict[str, Any]:
    """A fit as text, beside what was counted on the wire for the same step."""
    return {
        "group": fit.group or "all settings",
        "site": fit.site,
        "action": text.action_name(fit.atomic_action),
        "whole": fit.atomic_action == TOTAL,
        "against": text.against(fit),
        "base": text.seconds(fit.base_s),
        "base_interval": text.seconds_range(fit.base_low_s, fit.base_high_s),
        "round_trips": text.count_of(fit.round_trips),
        "interval": text.count_range(fit.round_trips_low, fit.round_trips_high),
        "r2": text.NONE if fit.r2 is None else f"{max(fit.r2, 0.0):.3f}",
        "levels": text.levels(fit) if fit.atomic_action == TOTAL or len(fit.levels) <= 3 else "",
        "counted": counted_beside,
    }


# what does not count, and errors


def not_counted(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Every run that is kept but not averaged in, with its reasons."""
    return [
        {
            "id": run.id,
            "scenario": run.scenario.label,
            "setting": run.setting.label or "the one setting",
            "repetition": run.repetition,
            "status": "failed" if run.status == "failed" else "not valid",
            "problems": run.problems or ("no reason was recorded",),
        }
        for run in runs
        if not run.valid or run.status == "failed"
    ]


def why_not_valid(runs: Sequence[RunRecord], most: int = 5) -> list[str]:
    """Each reason why runs that were made last are not valid, with the number of runs, the first `most` of them."""
    reasons = Counter(
        (run.scenario.label, (run.problems or ("no reason was recorded",))[0])
        for run in runs
        if not run.valid and "~" not in run.id
    )
    lines = [f"{scenario}, {count} {'run' if count == 1 else 'runs'}: {reason}"
             for (scenario, reason), count in reasons.items()]  # fmt: skip
    more = len(lines) - most
    return [*lines[:most], f"{more} more reasons: see runs that do not count"] if more > 0 else lines


def without_iterations(runs: Sequence[RunRecord], iterations: pd.DataFrame) -> list[str]:
    """Ids of runs that count as valid and yet brought no iteration."""
    present = set(iterations["run_id"])
    return [run.id for run in runs if run.valid and run.id not in present]


def errors(iterations: pd.DataFrame) -> list[dict[str, Any]]:
    """Errors of iterations, grouped: how often each came, where, and its message; also those of invalid runs."""
    failed = iterations[iterations["failed"]]
    whole = failed[failed["atomic_action"] == TOTAL].copy()
    steps = failed[failed["atomic_action"] != TOTAL].groupby(["run_id", "site", "iteration"])["atomic_action"].first()
    keys = pd.MultiIndex.from_frame(whole[["run_id", "site", "iteration"]])
    whole["step"] = [text.action_name(steps[key]) if key in steps.index else "outside actions" for key in keys]
    columns = ["scenario", "setting", "site", "step", "error_type", "error", "valid"]
    counts = Counter(whole[columns].itertuples(index=False, name=None))
    return [
        {**dict(zip(columns, key, strict=True)), "scenario": key[0].rsplit("/", 1)[-1], "count": count}
        for key, count in counts.items()
    ]
