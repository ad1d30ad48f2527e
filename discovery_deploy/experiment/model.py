"""What an experiment is: the content of an experiment file, strict and frozen.

Everything here describes what is *asked*. Cross-references inside one object are checked by the object itself;
each message names what is wrong and what is known instead (`references.py`). `config.py` adds file, line and column.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool, field_validator, model_validator

from discovery_deploy.experiment.deployment import (
    Backend,
    Cells,
    Centralized,
    Computes,
    Deployment,
    GaleraBackend,
    MariadbBackend,
    Regions,
    SharedState,
    Topology,
)
from discovery_deploy.experiment.deployment_mistakes import deployment_mistakes
from discovery_deploy.experiment.provider_mistakes import provider_mistakes
from discovery_deploy.experiment.provider_models import Grid5000, Local, Machine, Provider, Static, Vagrant
from discovery_deploy.experiment.references import reference_mistakes
from discovery_deploy.experiment.units import Duration, Rate, Ratio, format_duration
from discovery_deploy.system.mistake import Mistake, Place, refuse
from discovery_deploy.system.strict import Count, HostName, Name, Once, Strict

__all__ = (
    "ROLES",
    "Backend",
    "Campaign",
    "Cells",
    "Centralized",
    "Computes",
    "Constraint",
    "DefaultShape",
    "Deployment",
    "Experiment",
    "Factor",
    "GaleraBackend",
    "Grid5000",
    "Host",
    "Local",
    "Machine",
    "MariadbBackend",
    "Network",
    "Provider",
    "Regions",
    "Role",
    "Scenario",
    "Shape",
    "SharedState",
    "Site",
    "Static",
    "Strict",
    "Topology",
    "Vagrant",
    "Verify",
)

Role = Literal["control", "database", "bench", "compute"]
ROLES: tuple[Role, ...] = ("control", "database", "bench", "compute")


class Host(Strict):
    """A machine at a site."""

    name: HostName = Field(description="Host name; unique in the experiment.")
    roles: Annotated[tuple[Role, ...], Once] = Field(
        ROLES,
        min_length=1,
        description="What may run on it: `control` (OpenStack services and memcached), `database`, `bench` (Rally), "
        "`compute` (Nova's computes, with nova).",
    )


class Site(Strict):
    """An emulated place: hosts on one local network, without shaping between them."""

    name: Name = Field(description="Name of the site; it is also the name of its OpenStack region.")
    hosts: tuple[Host, ...] = Field(
        (),  # never seen: the validator below puts one host there
        min_length=1,
        description="The site's hosts; when left out, one host `<site>-1` that has every role.",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_host_by_default(cls, value: Any) -> Any:
        if isinstance(value, dict) and "hosts" not in value and isinstance(value.get("name"), str):
            return {**value, "hosts": [{"name": f"{value['name']}-1"}]}
        return value

    def first(self, role: Role) -> Host | None:
        """The site's first host that has a role, or None."""
        return next((host for host in self.hosts if role in host.roles), None)


class Shape(Strict):
    """What a one-way path does to packets. A value left out is not shaped."""

    delay: Duration | None = Field(
        None, description="One-way delay, at most 60 s; the round trip gets that of both ways."
    )
    jitter: Duration | None = Field(
        None,
        description="Largest deviation from the delay: uniform within +- jitter (netem's), at most 60 s; "
        "packets overtake each other.",
    )
    loss: Ratio | None = Field(None, description="Share of packets lost, one way.")
    rate: Rate | None = Field(None, description="Rate limit, one way; at least 1 kbit/s.")

    @field_validator("delay", "jitter")
    @classmethod
    def _not_longer_than_probes_wait(cls, value: float | None) -> float | None:
        return value if value is None else _within(value, 0.0, 60.0)


def _within(value_s: float, least_s: float, most_s: float) -> float:
    if not least_s <= value_s <= most_s:
        bound, value = ("least", least_s) if value_s < least_s else ("most", most_s)
        raise ValueError(f'"{format_duration(value_s)}": must be at {bound} {format_duration(value)}')
    return value_s


class DefaultShape(Shape):
    """The shape of every ordered pair of sites that no constraint names."""

    delay: Duration = Field(0.0, description="One-way delay between any two sites, at most 60 s.")


class Constraint(Shape):
    """The shape of one pair of sites: both ways (`between`) or one way (`from` and `to`)."""

    model_config = ConfigDict(
        populate_by_name=True,  # in Python; `config.py` admits only the keys of files
        json_schema_extra={"oneOf": [{"required": ["between"]}, {"required": ["from", "to"]}]},
    )

    between: tuple[Name, Name] | None = Field(None, description="Two sites; the shape holds both ways.")
    source: Name | None = Field(None, alias="from", description="Sending site, for one direction only; with `to`.")
    destination: Name | None = Field(
        None, alias="to", description="Receiving site, for one direction only; with `from`."
    )

    @model_validator(mode="after")
    def _names_one_pair(self) -> Constraint:
        one_way = self.source is not None and self.destination is not None
        if (self.between is None) == (self.source is None and self.destination is None) or (
            self.between is None and not one_way
        ):
            raise ValueError("name the pair either with `between: [a, b]` or with both `from` and `to`")
        first, second = self.ordered_pairs()[0]
        if first == second:
            raise ValueError(f'a site has no WAN to itself ("{first}")')
        if self.delay is None and self.jitter is None and self.loss is None and self.rate is None:
            raise ValueError("constrains nothing; give at least one of delay, jitter, loss, rate")
        return self

    def ordered_pairs(self) -> tuple[tuple[str, str], ...]:
        """(source, destination) pairs that the constraint speaks of."""
        if self.between is not None:
            a, b = self.between
            return (a, b), (b, a)
        assert self.source is not None
        assert self.destination is not None
        return ((self.source, self.destination),)


class Verify(Strict):
    """How the WAN is measured, and how far from asked it may be."""

    measure: Annotated[tuple[Literal["rtt", "loss", "rate"], ...], Once] = Field(
        ("rtt",),
        min_length=1,
        description="What is measured for every ordered pair; `rtt` takes 1 s, the others seconds a pair.",
    )
    probes: Count = Field(40, ge=5, le=10000, description="Echo requests per ordered pair; the median counts.")
    interval: Duration = Field(0.01, description="Time between two echo requests; 0.1 ms to 10 s.")
    rtt_tolerance: Duration = Field(0.001, description="Largest accepted |measured - asked| of the median RTT.")
    rtt_tolerance_ratio: Ratio = Field(
        0.02, description="The same as share of the asked RTT; the larger of both holds."
    )
    loss_tolerance: Ratio = Field(0.02, description="Largest accepted |measured - asked| of the one-way loss.")
    rate_tolerance: Ratio = Field(
        0.15, description="Largest accepted deviation of the rate, as share of the asked rate."
    )

    clock_tolerance: Duration = Field(
        0.1,
        description="Largest accepted difference of a host's clock from the driver's. Beyond it `verify` says so, and "
        "runs with `load: high` at several sites, whose common start relies on clocks, are not valid.",
    )

    @field_validator("interval")
    @classmethod
    def _no_flood(cls, value: float) -> float:
        return _within(value, 0.0001, 10.0)


class Network(Strict):
    """The WAN between the sites."""

    default: DefaultShape = Field(DefaultShape(), description="Shape of every pair that no constraint names.")
    constraints: tuple[Constraint, ...] = Field(
        (), description="Shapes of single pairs; what a constraint leaves out comes from the default."
    )
    compensate: StrictBool = Field(
        False,
        description="Not on `local`, where it is next to nothing: measure the testbed's own RTT of every pair "
        "first, then take it off the delays, half each way; refused where it is longer than the RTT asked for.",
    )
    verify: Verify = Field(Verify(), description="How the WAN is measured.")

    @model_validator(mode="after")
    def _each_pair_once(self) -> Network:
        seen: set[tuple[str, str]] = set()
        mistakes = []
        for index, constraint in enumerate(self.constraints):
            for source, destination in constraint.ordered_pairs():
                if (source, destination) in seen:
                    message = f"shapes {source} -> {destination}, which a constraint above shapes already"
                    mistakes.append(Mistake(("constraints", index), message))
                seen.add((source, destination))
        refuse(mistakes)
        return self

    @model_validator(mode="after")
    def _no_packet_arrives_before_it_was_sent(self) -> Network:
        """netem cuts off what of a jitter is longer than the delay: then neither of them is the asked one."""
        places: list[tuple[Place, Shape]] = [(("default",), self.default)]
        places += [(("constraints", index), own) for index, own in enumerate(self.constraints)]
        mistakes = []
        for place, own in places:
            delay_s = self.default.delay if own.delay is None else own.delay
            jitter_s = (self.default.jitter if own.jitter is None else own.jitter) or 0.0
            if jitter_s > delay_s and (own.jitter is not None or own.delay is not None):
                at = (*place, "delay" if own.jitter is None else "jitter")
                message = (
                    f"a jitter of {format_duration(jitter_s)} is longer than the delay, {format_duration(delay_s)}"
                )
                message += ": a packet would arrive before it was sent; ask for a jitter up to the delay"
                mistakes.append(Mistake(at, message, (("default",),) if place != ("default",) else ()))
        refuse(mistakes)
        return self


class Scenario(Strict):
    """One Rally task to run in every setting."""

    task: str = Field(
        description="A task of `rally_tasks/`, for example `keystone/create_and_list_users`. "
        "Or a file beside this one in the same format: `./tasks/create_user.yaml` (docs/adding-a-scenario.md)."
    )
    times: Count = Field(20, ge=1, le=100000, description="Iterations (at each loading site).")
    concurrency: Count = Field(1, ge=1, le=256, description="Iterations at the same time (at each loading site).")
    args: dict[str, Any] = Field({}, description="Arguments that the task declares.")

    @model_validator(mode="after")
    def _enough_iterations(self) -> Scenario:
        if self.concurrency > self.times:
            message = f"{self.concurrency} at the same time, of only {self.times} iterations"
            refuse([Mistake(("concurrency",), message)])
        return self

    @property
    def label(self) -> str:
        """Short name for tables: the task without its folder."""
        return self.task.rsplit("/", 1)[-1].removesuffix(".yaml")


class Factor(Strict):
    """A field of this file that takes several values."""

    path: str = Field(description="Path of a field of this file, for example `network.default.delay`.")
    levels: Annotated[tuple[Any, ...], Once] = Field(
        min_length=1, description="Its values, written as they would be in the field."
    )


def _repeated(names: list[str], key: str, field: str, noun: str) -> Iterable[Mistake]:
    for index, name in enumerate(names):
        if name in names[:index]:
            yield Mistake((key, index, field), f'a second {noun} "{name}"')


class Campaign(Strict):
    """What is asked of the deployment."""

    load: Literal["light", "high"] = Field(
        "light",
        description="`light`: Rally at `bench_site` alone; `high`: at every site with a bench host, started together.",
    )
    start_skew: Duration = Field(
        0.5, description="`high`: a run whose sites' first requests lie further apart than this is not valid."
    )
    bench_site: Name | None = Field(
        None, description="The site whose bench host runs Rally in `light`; default: the first."
    )
    smoke: StrictBool = Field(
        False,
        description="Try each deployment before its first run: a server at every site, at all at once, and with a site "
        "cut off from the others; the answers go into the report. Needs nova.",
    )
    repetitions: Count = Field(1, ge=1, le=1000, description="How often each scenario runs in each setting.")
    factors: tuple[Factor, ...] = Field((), description="Fields that vary; every combination is a setting.")
    scenarios: tuple[Scenario, ...] = Field((), description="What Rally does in each setting.")

    @model_validator(mode="after")
    def _factors_and_scenarios_differ(self) -> Campaign:
        factors = [factor.path for factor in self.factors]
        tasks = [scenario.task for scenario in self.scenarios]
        refuse(
            [*_repeated(factors, "factors", "path", "factor"), *_repeated(tasks, "scenarios", "task", "scenario of")]
        )
        return self


class Experiment(Strict):
    """A whole experiment file."""

    name: Name = Field(description="Name of the experiment; hosts and results are found by it.")
    question: str = Field("", description="The question it answers, for the report.")
    provider: Provider = Field(Local(type="local"), description="Where machines come from.")
    sites: tuple[Site, ...] = Field(min_length=1, max_length=64, description="The emulated places.")
    network: Network = Field(Network(), description="The WAN between the sites.")
    deployment: Deployment = Field(description="What is deployed on the sites.")
    campaign: Campaign = Field(Campaign(), description="What is measured, over which settings.")

    @model_validator(mode="after")
    def _references(self) -> Experiment:
        refuse([*provider_mistakes(self), *deployment_mistakes(self), *reference_mistakes(self)])
        return self

    def site(self, name: str) -> Site:
        """The site of a name. Raises KeyError."""
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites, in the order of the file."""
        return tuple(site.name for site in self.sites)

    def bench_sites(self) -> tuple[str, ...]:
        """Names of the sites where Rally runs, in the order of the file."""
        if self.campaign.load == "high":
            return tuple(site.name for site in self.sites if site.first("bench"))
        return (self.campaign.bench_site or self.sites[0].name,)

    def database_sites(self) -> tuple[str, ...]:
        """Names of the sites that hold a server of the state backend."""
        backend = self.deployment.backend
        if isinstance(backend, MariadbBackend):
            return (backend.site,)
        return tuple(site.name for site in self.sites if site.first("database"))

    def control_sites(self) -> tuple[str, ...]:
        """Names of the sites where the topology puts control services: each is a region of the catalogue."""
        topology = self.deployment.topology
        if isinstance(topology, (Centralized, Cells)):
            return (topology.site,)
        return tuple(site.name for site in self.sites if site.first("control"))

    def control_site(self, site: str) -> str:
        """The site whose control services a site uses: its own, else the topology's, else the first that has some."""
        sites = self.control_sites()
        return site if site in sites else sites[0]

    def compute_sites(self) -> tuple[str, ...]:
        """Names of the sites that have computes; none without nova, or when none are asked for."""
        computes = self.deployment.computes
        if "nova" not in self.deployment.services or not computes.fake + computes.libvirt:
            return ()
        return tuple(site.name for site in self.sites if site.first("compute"))
