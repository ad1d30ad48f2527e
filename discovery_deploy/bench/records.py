"""What the driver writes down about each run, and what the report reads. Pure."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from discovery_deploy.experiment.model import Scenario
from discovery_deploy.software.records import HostCode, HostSoftware, ImageRecord, ProjectRecord
from discovery_deploy.system.strict import HostName, Name, RunId, Strict
from discovery_deploy.wan.verdict import WanReport


class SettingRecord(Strict):
    """One combination of factor levels."""

    label: str
    """Short text, unique in the campaign, e.g. "galera, 25 ms"; "" when there are no factors."""
    values: dict[str, Any]
    """Factor path -> level, as written in the file."""
    labels: dict[str, str]
    """Factor path -> short text of the level, e.g. {"deployment.backend": "mariadb@paris"}."""


class Placement(Strict):
    """Where client, database and WAN stand to each other in a run, as seen from one bench site."""

    bench_site: str
    api_site: str
    """Where the API is that the client asks: Nova's where Nova is deployed, else Keystone's."""
    api_rtt_s: float = 0.0
    """Asked RTT between the client and that API; 0.0 at the same site."""
    compute_rtt_s: float = 0.0
    """Largest asked RTT between that API's site and a compute that it rules; 0.0 without computes elsewhere."""
    database_sites: tuple[str, ...]
    nearest_database_site: str
    """The API's site when it holds a server of the state backend, else the site whose server is used there."""
    database_rtt_s: float
    """Asked RTT between the API's site and that database; 0.0 when it is at the same site."""
    commit_rtt_s: float
    """Asked RTT that a commit waits for: 0.0 for one MariaDB; Galera: the largest RTT to another master."""
    beside_only_database: bool
    """True when client, APIs and only database are at one site: what needs no computes says nothing about the WAN."""

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_version(cls, value: Any) -> Any:
        """Once every site had its own API."""
        if isinstance(value, dict) and "bench_site" in value:
            return {"api_site": value["bench_site"], **value}
        return value


class RunRecord(Strict):
    """One run: scenario x setting x repetition."""

    id: RunId
    """Stable text from scenario, setting and repetition: it names the run's folder."""
    fingerprint: str = ""
    """Hash of everything the run depended on: of what was asked, and of the content of the hosts' image."""
    asked: str = ""
    """Hash of what was asked; another one means that the record is of another campaign. "" in records of older
    versions: there the fingerprint is this."""
    image: str = ""
    """Content of the hosts' image (`ImageRecord.content`); "" when it is not known."""
    scenario: Scenario
    services: tuple[str, ...] = ()
    """Without which its task cannot run; empty in records of before, whose tasks' names begin with their service."""
    setting: SettingRecord
    repetition: int
    """From 1."""
    load: Literal["light", "high"]
    placements: tuple[Placement, ...]
    """One per bench site."""
    status: Literal["done", "failed"]
    """`failed`: Rally itself did not come to an end; its iterations may be missing."""
    problems: tuple[str, ...] = ()
    """Why the run is not valid: WAN out of tolerance, Rally failed... Empty: valid."""
    started_at: str
    finished_at: str
    machine_load: tuple[float, float] | None = None
    """Load average (1 minute) of the driving machine before and after; on provider `local` it is the hosts' too."""
    start_skew_s: float | None = None
    """Between the first requests of the first and the last site's client, clocks compared; None with one client."""
    start_skew_error_s: float | None = None
    """That number is right within so much: what comparing the clocks left open."""
    wan_before: WanReport | None
    wan_after: WanReport | None
    code: dict[str, HostCode] = {}
    """Host -> what was proved after the run about the code of its services."""
    files: dict[Name, Name] = {}
    """Bench site -> folder (relative to the record) with rally.json, rally.html and rally.log of that site."""

    def answers(self, asked: str) -> bool:
        """Whether this is the run that is asked for, whichever packages its hosts' image had."""
        return (self.asked or self.fingerprint) == asked

    @property
    def valid(self) -> bool:
        """Whether the run's numbers may be used."""
        return not self.problems

    @property
    def asks_keystone_alone(self) -> bool:
        """Whether its scenario needs no other service, so that its durations depend on the way to its database only."""
        return self.services == ("keystone",) if self.services else self.scenario.task.startswith("keystone/")

    def says_nothing_of_the_wan(self, placement: Placement) -> bool:
        """Whether a client there sees no WAN: it asks Keystone alone, beside the only database.

        Other services have computes, brokers and databases at other sites, wherever the client sits.
        """
        return placement.beside_only_database and self.asks_keystone_alone


class RouterFacts(Strict):
    """Provenance of what shapes the WAN."""

    text: str


class HostFacts(Strict):
    """Provenance of one host, collected from it."""

    name: HostName
    site: Name
    os: str
    kernel: str
    cpu: str
    packages: dict[str, str]
    """Name -> version: Debian packages (mariadb-server, galera-4, memcached...) and Python ones (keystone...)."""


class Provenance(Strict):
    """What it takes to believe and to repeat the experiment."""

    tool_version: str
    tool_commit: str | None
    provider: str
    wan_router: str
    """What shapes the WAN: `netns` or `uml` with kernel and scheduling, and TCP's congestion control."""
    machine: dict[str, str]
    """Facts of the machine: cpu, cores, memory, kernel, os."""
    hashes: dict[str, str]
    """What was content-addressed: base image, OpenStack lock, Rally lock, experiment file..."""
    projects: dict[str, tuple[ProjectRecord, ...]] = {}
    """Label of a setting -> the projects whose code is not simply the release's."""
    images: tuple[ImageRecord, ...] = ()
    """What hosts were made of, the latest last; more than one when the same recipe was baked again."""
    hosts: tuple[HostFacts, ...]
    software: tuple[HostSoftware, ...] = ()
    """What hosts were sent; empty where they see the driver's cache."""
    phase_seconds: dict[str, float]
    """Phase -> seconds of its last execution."""
    finished_at: str
