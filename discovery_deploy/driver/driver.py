"""The driver of a whole experiment: every setting, every run, the records, the report."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from execo_engine import ParamSweeper

from discovery_deploy import __version__
from discovery_deploy.bench import campaign, own_tasks, rally
from discovery_deploy.bench.bench import Clients, all_failed, rally_problems, rally_report, skew_problems, start_skew
from discovery_deploy.bench.campaign import Run, Setting
from discovery_deploy.bench.records import HostFacts, Provenance, RouterFacts, RunRecord
from discovery_deploy.bench.request_counts import CountRecord
from discovery_deploy.bench.smoke import SmokeRecord
from discovery_deploy.cloud import variables
from discovery_deploy.driver import bookings, wan_acts
from discovery_deploy.driver.count_acts import RequestCount
from discovery_deploy.driver.image_content import kept_images
from discovery_deploy.driver.provenance import machine_facts, tool_commit
from discovery_deploy.driver.smoke_acts import Smoke, raise_on_problems
from discovery_deploy.driver.testbed import SOFTWARE, Testbed
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment, Scenario
from discovery_deploy.software.inputs import digest
from discovery_deploy.software.records import ProjectRecord, Software
from discovery_deploy.system.errors import MeasurementError
from discovery_deploy.system.files import now
from discovery_deploy.system.workspace import Reading
from discovery_deploy.wan.verdict import WanReport

if TYPE_CHECKING:
    import pyarrow as pa


class PlannedRun(Run):
    """A run, with the hash of all that is asked of it: the testbed's phases, the scenario, its template."""

    fingerprint: str


class Driver:
    """Conducts the campaign on a testbed.

    Args:
        testbed: its experiment is the file as written.
        source: the text of the experiment file, for provenance.
        retry_invalid: repeat runs that ended but are not valid.
        tasks: Rally tasks there are, by name; default: the package's.
    """

    def __init__(
        self,
        testbed: Testbed,
        source: str,
        retry_invalid: bool = False,
        tasks: Mapping[str, rally.TaskTemplate] | None = None,
    ) -> None:
        self.testbed = testbed
        self.experiment = testbed.experiment
        self.workspace = testbed.workspace
        self.announce = testbed.announce
        self.source = source
        self.retry_invalid = retry_invalid
        self.tasks = rally.load_tasks() if tasks is None else dict(tasks)
        self.settings: Sequence[Setting] = campaign.settings(self.experiment)
        self._clients: Clients | None = None
        self._clients_of = ""
        """The deployment that the clients are kept for."""

    # what is to be done

    def fingerprint(self, setting: Setting, scenario: Scenario) -> str:
        """Hash of everything that is asked of a run of a scenario in a setting.

        What the image's recipe gave on the day of its bake is not in it: a run that is done stays done.
        """
        experiment = setting.experiment
        hashes = self.testbed.wanted(experiment)
        template = self.tasks[scenario.task].model_dump(mode="json")
        together = (experiment.campaign.start_skew,) if experiment.campaign.load == "high" else ()
        return digest(
            hashes["verify"], scenario.model_dump(mode="json"), template, experiment.campaign.load,
            experiment.bench_sites(), *together,
        )  # fmt: skip

    def planned(self) -> list[PlannedRun]:
        """Every run of the campaign, in the order that redeploys least."""
        return [
            PlannedRun(**dict(run), fingerprint=self.fingerprint(run.setting, run.scenario))
            for run in campaign.runs(self.experiment, self.settings)
        ]

    def record(self, run_id: str) -> RunRecord | None:
        """The record of a run, or None when there is none."""
        return self.workspace.load(f"runs/{run_id}/record.json", RunRecord)

    def pending(self) -> list[PlannedRun]:
        """Runs without a result that counts."""
        waiting = []
        for run in self.planned():
            record = self.record(run.id)
            fits = record is not None and record.answers(run.fingerprint)
            if record is None or not fits or self._is_repeated(record):
                waiting.append(run)
        return waiting

    def _is_repeated(self, record: RunRecord) -> bool:
        return record.status == "failed" or (self.retry_invalid and not record.valid)

    def _supersede(self, run: PlannedRun) -> None:
        """Put an earlier attempt aside; it is kept, and listed in the report when it was not valid."""
        folder = self.workspace.runs / run.id
        if (folder / "record.json").exists():
            earlier = len(list(self.workspace.runs.glob(f"{run.id}~*")))
            folder.rename(self.workspace.runs / f"{run.id}~{earlier + 1}")
        elif folder.exists():
            shutil.rmtree(folder)  # a run that was cut off: nothing was recorded of it

    def _sweeper(self, runs: Sequence[PlannedRun]) -> ParamSweeper:
        """execo's to-do list of these runs, begun again at every start: the records are the truth.

        Nothing that lies there is read: execo would unpickle it, that is, run what somebody has put there.
        """
        folder = self.workspace.runs / ".sweeper"
        if folder.is_symlink() or folder.is_file():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
        combinations = [(run.id, run.fingerprint) for run in runs]
        return ParamSweeper(str(folder), sweeps=combinations, name=self.experiment.name)

    def smoke_record(self, setting: Setting) -> SmokeRecord | None:
        """What smoke found in the deployment of a setting, or None."""
        deployed = self.testbed.wanted(setting.experiment)["deploy"]
        return self.workspace.load(f"smoke/{deployed}.json", SmokeRecord)

    # doing it

    def bench(self) -> None:
        """All pending runs, setting by setting, after smoke. Raises the first error that is not a result of Rally's."""
        pending = self.pending()
        if pending:  # (execo takes an empty list of combinations for none given)
            try:
                self._bench(pending)
            finally:
                self._end_clients()
        else:
            self.announce.line("every run has its result")
        for setting in self.settings:  # whose runs were all there already, or that have none
            self._smoke_once(setting)

    def smoke(self, setting: Setting) -> SmokeRecord:
        """Bring the testbed to a setting and carry out smoke, whether it was before or not."""
        self.testbed.bring_to(setting)
        return Smoke(self.testbed, setting).run()[0]

    def count_requests(self, setting: Setting) -> CountRecord:
        """Bring a setting's deployment, and count what the campaign's scenarios ask of its databases, without a WAN."""
        self.testbed.bring_to(setting, "deploy")
        self.testbed.flatten(setting.experiment)
        self.testbed.prove(setting.experiment)
        return RequestCount(self.testbed, setting, self.tasks).run()

    def _smoke_once(self, setting: Setting) -> WanReport | None:
        """Smoke, when the campaign asks for it and the deployment has not passed. Returns the verification after it.

        Raises MeasurementError when the deployment does not work: nothing is measured on it.
        """
        known = self.smoke_record(setting)
        if not self.experiment.campaign.smoke or (known is not None and not known.problems):
            return None
        self.testbed.bring_to(setting)
        record, report = Smoke(self.testbed, setting).run()
        raise_on_problems(record)
        return report

    def _bench(self, pending: Sequence[PlannedRun]) -> None:
        for run in pending:
            self._supersede(run)
        by_key = {(run.id, run.fingerprint): run for run in pending}
        order = {run.id: place for place, run in enumerate(pending)}
        sweeper = self._sweeper(pending)

        def in_order(combinations: Any) -> list[Any]:
            return sorted(combinations, key=lambda combination: order[combination[0]])

        last: WanReport | None = None
        at: str | None = None
        hosts: str | None = None
        began, done = time.monotonic(), 0
        while combination := sweeper.get_next(in_order):
            run = by_key[combination]
            if done:
                self._tell_time(len(pending) - done, (time.monotonic() - began) / done)
            try:
                setting = run.setting
                if self._clients_of != self.testbed.wanted(setting.experiment)["deploy"]:
                    self._end_clients()  # before what they ask goes
                wanted = self._hosts_hash(setting)
                if hosts not in (None, wanted):
                    self.collect()  # before these hosts go
                hosts = wanted
                verified = self.testbed.bring_to(setting)
                before = self._smoke_once(setting) or verified or (last if at == setting.record.label else None)
                # A run that begins with a WAN that is not as asked does not count: look anew.
                if before is None or (before.problems and before is not verified):
                    before = self.testbed.verify_corrected(setting.experiment)
                last, at = self._run(run, before, f"{order[run.id] + 1}/{len(pending)}"), setting.record.label
            except BaseException:
                sweeper.cancel(combination)
                raise
            sweeper.done(combination)
            done += 1

    def _tell_time(self, left: int, seconds_per_run: float) -> None:
        """Say it when the hosts will go before all runs are done."""
        warning = bookings.time_warning(self.testbed.provider, self.testbed.lease, left, seconds_per_run)
        if warning:
            self.announce.phase("time", warning)  # (a line may be gone at once)
            self.workspace.note("time is short", what=warning)

    def _hosts_hash(self, setting: Setting) -> str:
        return self.testbed.wanted(setting.experiment)["reserve"]

    def _run(self, run: PlannedRun, before: WanReport, place: str) -> WanReport:
        """One run, recorded whatever comes of it. Returns the verification after it."""
        setting, testbed = run.setting, self.testbed
        experiment = setting.experiment
        label = f"{place} {run.scenario.label} [{setting.record.label}] repetition {run.repetition}"
        self.announce.phase("bench", label)
        started_at = now()
        self.workspace.note("run started", run=run.id)
        load_before = os.getloadavg()[0]
        hosts = [testbed.lease.at(site, "bench") for site in experiment.bench_sites()]
        task = rally.rally_task(self.tasks[run.scenario.task], run.scenario)
        folder = self.workspace.runs / run.id
        started = time.monotonic()
        results = self._kept_clients(experiment).load(hosts, run.id, task, run.scenario.times, folder)
        self.workspace.note("rally ended", run=run.id, seconds=round(time.monotonic() - started, 3))
        self.announce.line("the WAN is measured again")
        after = testbed.verify(experiment)
        failures = rally_problems(folder, results, run.scenario)
        skew = start_skew(folder, results)
        record = RunRecord(
            id=run.id,
            fingerprint=digest(run.fingerprint, testbed.state.image),
            asked=run.fingerprint,
            image=testbed.state.image,
            scenario=run.scenario,
            services=self.tasks[run.scenario.task].services,
            setting=setting.record,
            repetition=run.repetition,
            load=experiment.campaign.load,
            placements=campaign.placements(experiment, wan_acts.asked(experiment)),
            status="failed" if failures else "done",
            problems=(
                *failures,
                *all_failed(folder, results),
                *skew_problems(skew, experiment.campaign.start_skew),
                *(f"WAN before the run: {problem}" for problem in before.problems),
                *(f"WAN after the run: {problem}" for problem in after.problems),
            ),
            started_at=started_at,
            finished_at=now(),
            machine_load=(round(load_before, 2), round(os.getloadavg()[0], 2)),
            **skew,
            wan_before=before,
            wan_after=after,
            code=testbed.proved,
            files={result.site: result.site for result in results},
        )
        self.workspace.save(f"runs/{run.id}/record.json", record)
        self.workspace.note("run ended", run=run.id, status=record.status, problems=list(record.problems))
        return after

    def _kept_clients(self, experiment: Experiment) -> Clients:
        """Rally's processes on the bench hosts, kept for the runs of a deployment."""
        if self._clients is None:
            self._clients = Clients(self.testbed.remote, variables.rally_command(self.testbed.environments(experiment)))
            self._clients_of = self.testbed.wanted(experiment)["deploy"]
        return self._clients

    def _end_clients(self) -> None:
        if self._clients is not None:
            self._clients.close()
            self._clients = None

    # telling it

    def records(self) -> list[RunRecord]:
        """Records of this campaign: the one that counts of each run, then earlier attempts that were not valid."""
        found: list[RunRecord] = []
        earlier: list[RunRecord] = []
        for run in self.planned():
            record = self.record(run.id)
            if record is not None and record.answers(run.fingerprint):
                found.append(record)
            for folder in sorted(self.workspace.runs.glob(f"{run.id}~*")):
                old = self.record(folder.name)
                if old is not None and old.answers(run.fingerprint) and old.problems:
                    earlier.append(old.model_copy(update={"id": folder.name}))
        return found + earlier

    def smoke_records(self) -> list[SmokeRecord]:
        """What smoke found, one record per deployment, in the order of the settings."""
        found = {
            record.deployed: record
            for record in (self.smoke_record(setting) for setting in self.settings)
            if record is not None
        }
        return list(found.values())

    def count_records(self, reading: Reading) -> dict[str, CountRecord]:
        """Label of a setting -> what was counted in its deployment, of those that were counted and can be read."""
        deployed = {one.record.label: self.testbed.wanted(one.experiment)["deploy"] for one in self.settings}
        found = {label: reading.load(f"counts/{hash_}.json", CountRecord) for label, hash_ in deployed.items()}
        return {label: record for label, record in found.items() if record is not None}

    def collect(self) -> None:
        """Bring home the facts of the hosts while they are there; a repeated call looks again."""
        setting = self._present()
        if self.workspace.load("lease.json", Lease) is None or setting is None:
            return
        self.announce.phase("collect", "versions and facts of the hosts")
        started = time.monotonic()
        reports = self.testbed.collect(setting.experiment)
        for host in self.testbed.lease.hosts:
            facts = HostFacts.model_validate({"name": host.name, "site": host.site, **reports[host.name]})
            self.workspace.save(f"facts/{host.name}.json", facts)
        facts_of_router = RouterFacts(text=self.testbed.wan.facts(setting.experiment))
        self.workspace.save("router.json", facts_of_router)
        self.announce.done("collect", round(time.monotonic() - started, 3))

    def _present(self) -> Setting | None:
        """The setting whose deployment is on the hosts, else one that has these hosts; None when there is none."""
        state = self.testbed.state
        reserve = state.phases.get("reserve")
        if reserve is None or reserve.status != "done":
            return None
        wanted = [(setting, self.testbed.wanted(setting.experiment)) for setting in self.settings]
        same_hosts = [(setting, hashes) for setting, hashes in wanted if hashes["reserve"] == reserve.hash]
        deployed = [setting for setting, hashes in same_hosts if hashes["deploy"] == state.deployed]
        return next(iter([*deployed, *(setting for setting, _ in reversed(same_hosts))]), None)

    def provenance(self) -> Provenance:
        """What it takes to believe and to repeat the experiment."""
        router = self.workspace.load("router.json", RouterFacts)
        software = self.workspace.load(SOFTWARE, Software)
        names = {host.name for one in self.settings for site in one.experiment.sites for host in site.hosts}
        found = [self.workspace.load(f"facts/{path.name}", HostFacts) for path in
                 sorted((self.workspace.path / "facts").glob("*.json")) if path.stem in names]  # fmt: skip
        inputs = self.testbed.inputs(self.experiment)
        return Provenance(
            tool_version=__version__,
            tool_commit=tool_commit(),
            provider=self.experiment.provider.type,
            wan_router=router.text if router else "not known (the run did not come to its end)",
            machine=machine_facts(),
            hashes={**inputs.model_dump(), "experiment file": digest(self.source), **self._own_tasks()},
            projects=self._projects(),
            images=kept_images(self.workspace),
            hosts=tuple(facts for facts in found if facts is not None),
            software=software.hosts if software and self.experiment.provider.type != "local" else (),
            phase_seconds=self.testbed.state.seconds,
            finished_at=now(),
        )

    def _own_tasks(self) -> dict[str, str]:
        """Hashes of the tasks that are not the package's, under what the report calls them."""
        names = [one.task for one in self.experiment.campaign.scenarios if one.task.startswith(own_tasks.PREFIX)]
        return {f"own task {name}": digest(self.tasks[name].model_dump(mode="json")) for name in names}

    def _projects(self) -> dict[str, tuple[ProjectRecord, ...]]:
        """Label of a setting -> the projects whose code is not simply the release's."""
        code = {setting.record.label: self.testbed.code(setting.experiment.deployment) for setting in self.settings}
        return {label: tuple(project.record for project in projects) for label, projects in code.items() if projects}

    def iterations(self, records: Sequence[RunRecord]) -> pa.Table:
        """Every iteration and atomic action of these runs (`rally.schema`)."""
        reports = []
        for record in records:
            for site, folder in record.files.items():
                reports.append((record, site, rally_report(self.workspace.runs / record.id / folder)))
        return rally.table(reports, [factor.path for factor in self.experiment.campaign.factors])

    def report(self) -> Path:
        """Write the report from all records that are there. Returns the path of the HTML file.

        It can do without counted requests: of a record of these that cannot be read it names the file.
        """
        from discovery_deploy.results import report  # late: figures and statistics take a second to load

        self.announce.phase("report", "")
        started = time.monotonic()
        records, reading = self.records(), Reading(self.workspace)
        counts = self.count_records(reading)
        files = report.build(
            self.experiment, records, self.iterations(records), self.provenance(), self.tasks, self.source,
            self.smoke_records(), counts, list(reading.problems),
        )  # fmt: skip
        page = report.write(files, self.workspace.report)
        told = "; ".join([f"{len(records)} runs", *(f"not readable, left out: {name}" for name in reading.problems)])
        self.announce.done("report", round(time.monotonic() - started, 3), told)
        return page

    def raise_when_not_valid(self) -> None:
        """Raises MeasurementError when a run of the campaign is missing, failed or not valid, or smoke found a broken
        deployment: it names them."""
        problems = [f"smoke, {record.topology}: {text}" for record in self.smoke_records() for text in record.problems]
        for run in self.planned():
            record = self.record(run.id)
            if record is None or not record.answers(run.fingerprint):
                problems.append(f"{run.id}: not done yet")
            elif record.problems:
                problems.append(f"{run.id}: {record.problems[0]}")
        if problems:
            raise MeasurementError(
                f"{len(problems)} results are not valid:\n  " + "\n  ".join(problems),
                "They are kept and marked in the report; run again (with --retry-invalid for invalid ones).",
            )
