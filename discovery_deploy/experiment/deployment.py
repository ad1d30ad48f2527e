"""What is deployed on the sites: services, topology, state backend, computes, configuration. Part of the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from discovery_deploy.experiment.deployment_mistakes import service_mistakes
from discovery_deploy.experiment.services import ServiceName
from discovery_deploy.experiment.source_model import Project, Source, Text
from discovery_deploy.system.mistake import refuse
from discovery_deploy.system.strict import Count, Name, Once, Strict


class MariadbBackend(Strict):
    """One MariaDB, at one site, for all sites."""

    type: Literal["mariadb"] = Field(description="One MariaDB server, used by every site.")
    site: Name = Field(description="The site that holds it.")


class GaleraBackend(Strict):
    """MariaDB Galera: a master at every site that has a `database` host."""

    type: Literal["galera"] = Field(description="A Galera cluster with a master in each site.")


Backend = Annotated[MariadbBackend | GaleraBackend, Field(discriminator="type")]


class Centralized(Strict):
    """All control services at one site; computes at every site use them across the WAN."""

    type: Literal["centralized"] = Field(description="All control services at one site.")
    site: Name = Field(description="The site of the control services.")


class Regions(Strict):
    """An OpenStack of its own at every site; Keystone alone is shared, through the backend."""

    type: Literal["regions"] = Field(description="An OpenStack per site; only Keystone's state is shared.")


class Cells(Strict):
    """One Nova with a cell (conductor, database, broker, computes) at each site; all else at one site."""

    type: Literal["cells"] = Field(description="Control services at one site, a Nova cell per site with computes.")
    site: Name = Field(description="The site of the control services.")


class SharedState(Strict):
    """Control services at every site over one state backend and one broker cluster: one cloud without a centre."""

    type: Literal["shared-state"] = Field(description="Control services at every site; all state is shared.")


Topology = Annotated[Centralized | Regions | Cells | SharedState, Field(discriminator="type")]


class Computes(Strict):
    """Processes of nova-compute on each host with the role `compute`."""

    fake: Count = Field(2, ge=0, le=1000, description="Computes with Nova's fake driver: servers exist on paper only.")
    libvirt: Count = Field(0, ge=0, le=1, description="1: a compute that runs real virtual machines too.")


Overrides = dict[str, dict[str, dict[str, Any]]]
"""Service -> section -> option -> value."""


class Deployment(Strict):
    """Which OpenStack is deployed, how it is spread over the sites, and how its state is kept."""

    release: Literal["2025.1"] = Field("2025.1", description="OpenStack release; a lock file in the package pins it.")
    services: Annotated[tuple[ServiceName, ...], Once] = Field(
        ("keystone",),
        min_length=1,
        description="What is deployed; nova needs all others, and all need keystone.",
    )
    topology: Topology = Field(Regions(type="regions"), description="How the services are spread over the sites.")
    backend: Backend = Field(description="State backend of the services.")
    cache: Literal["memcached", "none"] = Field(
        "memcached",
        description="Keystone's cache: the site's memcached, or `none`, the release's own default (a null backend).",
    )
    workers: Count = Field(2, ge=1, le=64, description="Worker processes of each API at each site.")
    computes: Computes = Field(Computes(), description="Computes on each host with the role `compute`, with nova.")
    placement: dict[str, tuple[str, ...]] = Field(
        {},
        description="Service -> the sites or control hosts that it runs on, in place of the topology's choice; "
        "other sites use the first.",
    )
    overrides: Overrides = Field(
        {},
        description="Service -> section -> option -> value, put into the service's configuration everywhere, as it is "
        "written: for oslo.config, which reads it there, `$name` means another option and `$$` a dollar sign.",
    )
    site_overrides: dict[str, Overrides] = Field(
        {}, description="Site -> the same for its hosts only, on top of `overrides`."
    )

    sources: dict[Project, Source] = Field(
        {}, description="Project -> where its code comes from; a project that is not named is the release's."
    )
    patches: dict[Project, Text] = Field(
        {},
        description="Project -> directory of a patch series (it holds a file `series`) on top of that; relative paths "
        "begin at the experiment file.",
    )

    @model_validator(mode="after")
    def _services_have_what_they_need(self) -> Deployment:
        refuse(service_mistakes(self.services))
        return self

    def service_overrides(self, service: str, site: str) -> dict[str, dict[str, Any]]:
        """Section -> option -> value for a service at a site: `overrides`, and the site's own on top."""
        found: dict[str, dict[str, Any]] = {}
        for overrides in (self.overrides, self.site_overrides.get(site, {})):
            for section, options in overrides.get(service, {}).items():
                found[section] = {**found.get(section, {}), **options}
        return found
