"""What the smaller commands do: texts for standard output, and programs that take over the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from discovery_deploy.agent import names
from discovery_deploy.bench import rally
from discovery_deploy.bench.campaign import Setting
from discovery_deploy.bench.records import RunRecord
from discovery_deploy.cloud.crossings import described
from discovery_deploy.driver import bookings, opening
from discovery_deploy.driver.driver import Driver
from discovery_deploy.driver.phases import PHASES, State
from discovery_deploy.driver.releasing import readable_lease
from discovery_deploy.driver.releasing import release as release_experiment
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Verify
from discovery_deploy.hosts.registry import PROVIDERS, holding, name_held, provider_named
from discovery_deploy.system.errors import ExperimentError, MeasurementError, StateError, TestbedError
from discovery_deploy.system.progress import Announcer
from discovery_deploy.system.remote import Remote
from discovery_deploy.system.site_proxy import routed, socks_proxy
from discovery_deploy.system.strict import experiment_name
from discovery_deploy.system.workspace import Reading, Workspace, is_workspace, results_directory, same_folder
from discovery_deploy.wan import clocks
from discovery_deploy.wan.verdict import WanReport, not_measured_text


def setting_named(driver: Driver, label: str | None) -> Setting:
    """The setting of a label, or the first. Raises ExperimentError, naming the known labels."""
    if label is None:
        return driver.settings[0]
    for setting in driver.settings:
        if setting.record.label == label:
            return setting
    known = ", ".join(f'"{setting.record.label}"' for setting in driver.settings)
    raise ExperimentError(f'no setting "{label}"; the settings are {known}')


def dry_run(driver: Driver) -> str:
    """What `run` would do: stale phases, layouts, tc programs, runs."""
    lines: list[str] = []
    pending = driver.pending()
    needed = list({run.setting.record.label: run.setting for run in pending}.values()) or [driver.settings[0]]
    first = needed[0]
    stale = driver.testbed.stale(first)
    lines.append(f"stale phases for the first setting [{first.record.label}]: {', '.join(stale) or 'none'}")
    request = bookings.request_text(needed)
    if request:
        lines += ["to be booked:", request.rstrip()]
    told: set[str] = set()
    for setting in needed:
        text = described(setting.experiment)
        if text not in told:
            told.add(text)
            lines += [f"layout [{setting.record.label}]:", text.rstrip()]
    programs: set[str] = set()
    for setting in needed:
        program = driver.testbed.program(setting.experiment)
        if program not in programs:
            programs.add(program)
            lines += [f"tc program [{setting.record.label}]:", program.rstrip()]
    if driver.experiment.campaign.smoke:
        deployments = {driver.testbed.wanted(one.experiment)["deploy"] for one in driver.settings}
        lines.append(f"smoke: {len(driver.smoke_records())} of {len(deployments)} deployments have been tried")
    lines.append(f"runs to do: {len(pending)}")
    for run in pending:
        scenario = run.scenario
        lines.append(f"  {run.id}: {scenario.task} x {scenario.times}, {scenario.concurrency} at a time")
    return "\n".join(lines) + "\n"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def wan_table(report: WanReport, verify: Verify) -> str:
    """Asked against measured, one ordered pair a line, tab separated with a header; then remarks after "#"."""
    lines = [
        "from\tto\tasked RTT ms\tmedian RTT ms\tp99 ms\tasked one way ms\tone way ms\tjitter ms\tloss %\trate Mbit/s\t"
        "not measured\tproblem"
    ]
    for pair in report.pairs:
        got = pair.measured
        loss = "-" if got.loss is None else f"{got.loss * 100:.2f}"
        rate = "-" if got.rate_bps is None else f"{got.rate_bps / 1e6:.2f}"
        lines.append(
            f"{got.source}\t{got.destination}\t{_milliseconds(pair.asked_rtt_s)}\t{_milliseconds(got.rtt_median_s)}\t"
            f"{_milliseconds(got.rtt_p99_s)}\t{_milliseconds(pair.asked.delay_s)}\t"
            f"{_milliseconds(got.one_way_median_s)}\t{_milliseconds(got.jitter_s)}\t{loss}\t{rate}\t"
            f"{', '.join(pair.not_measured) or '-'}\t{'; '.join(pair.problems) or '-'}"
        )
    if report.not_measured:
        lines.append(f"# {not_measured_text(report)}")
    far = clocks.beyond(report.clocks, verify.clock_tolerance) + clocks.unsure(report.clocks, verify.clock_tolerance)
    lines += [f"# {line}" for line in far]
    if report.clocks and not far:
        lines.append(
            f"# clocks of {len(report.clocks)} hosts: within {_milliseconds(verify.clock_tolerance)} ms of ours"
        )
    return "\n".join(lines) + "\n"


def raise_on_problems(report: WanReport) -> None:
    """Raises MeasurementError when the WAN is not the one asked for."""
    if report.problems:
        unseen = [not_measured_text(report)] if report.not_measured else []
        raise MeasurementError(
            "the WAN is not the one asked for:\n  " + "\n  ".join([*report.problems, *unseen]),
            "Is the machine busy? Verify again; else see docs/measuring.md on tolerances.",
        )


def summary(driver: Driver) -> str:
    """Medians of whole iterations, and what a round trip costs, for a terminal."""
    from discovery_deploy.results import stats  # late: statistics take a second to load
    from discovery_deploy.results.report import text
    from discovery_deploy.results.report.content import why_not_valid

    records = driver.records()
    table = stats.with_other(driver.iterations(records).to_pandas())
    rows = [("scenario", "setting", "from", "median", "failed", "iterations")]
    for _, row in stats.summarise(table).iterrows():
        if row["atomic_action"] == rally.TOTAL:
            beside = " (beside the only database)" if row["beside_only_database"] else ""
            failed = f"{row['failure_rate'] * 100:.0f} %" if row["count"] else text.NONE
            median = text.seconds(row["median_s"])
            rows.append((row["scenario"], row["setting"], row["site"] + beside, median, failed, str(row["count"])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    fits, _ = stats.regressions(table, records)
    groups: dict[tuple[str, str, str], list[stats.Fit]] = {}
    for fit in fits:
        groups.setdefault((fit.scenario, fit.group, fit.site), []).append(fit)
    lines += [f"{key[0]}: {text.fits_sentence(group)}" for key, group in groups.items()]
    lines += [f"not valid: {reason}" for reason in why_not_valid(records)]
    return "\n".join(lines) + "\n"


def _run_records(reading: Reading) -> list[RunRecord]:
    """Records of runs that can be read, in the order of their folders."""
    workspace = reading.workspace
    found = sorted(workspace.runs.glob("*/record.json"))
    loaded = [reading.load(str(path.relative_to(workspace.path)), RunRecord) for path in found]
    return [record for record in loaded if record is not None]


def _runs_text(records: Sequence[RunRecord]) -> list[str]:
    valid = sum(record.valid for record in records)
    lines = [f"runs with a record: {len(records)}, of which valid: {valid}"]
    return lines + [f"  not valid: {record.id}: {record.problems[0]}" for record in records if not record.valid]


def _hosts_text(lease: Lease | None) -> list[str]:
    if lease is None:
        return ["hosts: none"]
    lines = [f"hosts ({lease.provider}, WAN router {lease.router}):"]
    alive = {host.name: "running" for host in lease.hosts}
    try:
        alive.update(dict.fromkeys(provider_named(lease.provider).dead_hosts(lease), "dead"))
    except (ExperimentError, TestbedError) as error:
        alive = dict.fromkeys(alive, "not known")
        lines.append(f"  whether they run is not known: {error.what.splitlines()[0]}")
    for host in lease.hosts:
        lines.append(
            f"  {host.name:<20} {host.site:<12} {host.management_address:<15} {host.site_address:<15} "
            f"{alive[host.name]}"
        )
    return lines


def workspace_status(workspace: Workspace) -> tuple[str, list[StateError]]:
    """Hosts, phases and runs of one workspace; and what of it cannot be read."""
    reading = Reading(workspace)
    lines = [f"experiment {workspace.name}, workspace {workspace.path}"]
    lines += _hosts_text(reading.load("lease.json", Lease))
    state = reading.load("state.json", State) or State()
    for phase in PHASES:
        record = state.phases.get(phase)
        text = "stale" if record is None else f"{record.status} at {record.at}, {record.seconds:.1f} s"
        lines.append(f"  {phase:<10} {text}")
    lines += _runs_text(_run_records(reading))
    lines += [f"not readable: {error.what.partition(': ')[0]}" for error in reading.problems.values()]
    return "\n".join(lines) + "\n", list(reading.problems.values())


def status(named: str | None) -> tuple[str, list[StateError]]:
    """Text of `status`: one experiment, or all in the results directory; then who holds hosts on this machine.

    And what cannot be read: it hides nothing of the others.
    """
    texts: list[str] = []
    problems: list[StateError] = []
    for path in sorted(path.parent for path in results_directory().glob("*/name")) if named is None else [None]:
        try:
            workspace = opening.find_workspace(named) if path is None else Workspace(path)
            text, unread = workspace_status(workspace)
        except StateError as error:
            if path is None:
                raise
            text, unread = f"workspace {path}: {error.what}\n", [error]
        texts.append(text)
        problems += unread
    texts.append("".join(_holders(name) for name in PROVIDERS))
    return "\n".join(texts), problems


def _holders(provider_name: str) -> str:
    """Who has hosts of a provider, a line; of another than this machine only when somebody has."""
    provider = provider_named(provider_name)
    holders = [f"{name} ({provider.holder(name) or 'workspace unknown'})" for name in provider.experiments()]
    if provider_name == "local":
        return f"experiments with hosts on this machine: {', '.join(holders) or 'none'}\n"
    return f"experiments with hosts of {provider_name}: {', '.join(holders)}\n" if holders else ""


def _take_over(arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(arguments[0], list(arguments), environment or dict(os.environ))


def ssh(workspace: Workspace, host: str, command: Sequence[str]) -> None:
    """Become an ssh to a host. Raises StateError when there is no such host."""
    lease = workspace.load("lease.json", Lease)
    names = [known.name for known in lease.hosts] if lease else []
    if host not in names:
        raise StateError(f'no host "{host}"; hosts: {", ".join(names) or "none are reserved"}', "See `status`.")
    # As ssh does it: the words are joined, and the host's shell reads them.
    _take_over([*Remote(workspace.ssh_config).arguments(host, ()), *command])


def openstack(workspace: Workspace, site: str, arguments: Sequence[str]) -> None:
    """Become the openstack client for a site; where this machine has no route to the site, by way of a host there.

    Raises:
        StateError: nothing is deployed, or there is no such site.
        TestbedError: the host on the way cannot be reached.
    """
    clouds = workspace.path / "clouds.yaml"
    lease = workspace.load("lease.json", Lease)
    if lease is None or not clouds.exists():
        raise StateError(f"{workspace.path}: nothing is deployed", "Use `discovery-deploy run FILE`.")
    sites = list(dict.fromkeys(host.site for host in lease.hosts))
    if site not in sites:
        raise StateError(f'no site "{site}"; sites: {", ".join(sites)}', "See `status`.")
    # A proxy of this machine leads to the outside, not to sites.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment["OS_CLIENT_CONFIG_FILE"] = str(clouds)
    client = str(Path(sys.executable).parent / "openstack")
    command = [client, "--os-cloud", site, *arguments]
    host = lease.at(site)
    # An address behind another machine may be that of somebody else here: another experiment's, on this machine.
    direct = not {"ProxyJump", "ProxyCommand"} & set(host.ssh)
    if direct and routed(json.loads(clouds.read_text())["clouds"][site]["auth"]["auth_url"]):
        _take_over(command, environment)
    with socks_proxy(Remote(workspace.ssh_config), host.name) as proxy:
        done = subprocess.run(command, env={**environment, "ALL_PROXY": proxy}, check=False)
    sys.exit(done.returncode)


def release(named: str, announce: Announcer) -> None:
    """Release by file, name or workspace, wherever something is held, also without a workspace.

    A name (or the file) means all that bears it, whoever has reserved it; the workspace that holds the hosts is locked.
    A folder means what is still its own: hosts that another workspace has reserved since stay.

    Raises:
        StateError: there is nothing of that name; a driver works on it; the name is none.
    """
    asked = _workspace_named(named)
    name = asked.name if asked is not None else experiment_name(named)
    with ExitStack() as held:
        held.enter_context(name_held(name, wait_s=20))
        found = holding(name)
        holders = {kind: provider.holder(name) for kind, provider in found.items()}
        if asked is not None and not names.is_name(named) and not opening.is_file(named):
            for kind, holder in holders.items():
                if holder is not None and is_workspace(holder) and not same_folder(holder, asked.path):
                    announce.line(f"{name}'s hosts ({kind}) were reserved from {holder} since: they stay")
                    del found[kind]
        lease = readable_lease(asked) if asked is not None else None
        if lease is not None and lease.provider in PROVIDERS and lease.provider not in holders:
            found[lease.provider] = provider_named(lease.provider)
        workspaces = [*([asked] if asked is not None else []), *_others(asked, map(holders.get, found))]
        for workspace in workspaces:
            held.enter_context(workspace.lock())
        release_experiment(name, list(found.values()), announce, workspaces, asked.path if asked else None)


def _workspace_named(named: str) -> Workspace | None:
    """The workspace of a file, an experiment in the results directory, or a folder; None for a name that holds hosts.

    Raises StateError when there is nothing of that name.
    """
    bare = names.is_name(named) and not opening.is_file(named)
    if bare and not is_workspace(results_directory() / named) and holding(named):
        return None
    return opening.find_workspace(named)


def _others(asked: Workspace | None, holders: Iterable[Path | None]) -> list[Workspace]:
    """The workspaces that hold hosts, but the one that is asked for, and those that are no more."""
    found: list[Workspace] = []
    for holder in holders:
        known = [*([asked] if asked is not None else []), *found]
        if holder is not None and is_workspace(holder) and not any(same_folder(holder, one.path) for one in known):
            found.append(Workspace(holder))
    return found


def write_new(path: Path, text: str) -> None:
    """Write a new experiment file. Raises StateError when the path is taken or not writable."""
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise StateError(f"{path}: is there already", "Choose another name, or --output.") from None
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}", "Choose another --output.") from error
