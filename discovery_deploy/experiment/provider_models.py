"""Where machines come from: the section `provider` of an experiment file, one model per provider."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictBool, field_validator, model_validator

from discovery_deploy.experiment.source_model import Text
from discovery_deploy.system.mistake import Mistake, refuse
from discovery_deploy.system.strict import Count, HostName, Name, Once, Strict

Packages = Literal["network", "carried"]


def _walltime(value: str) -> str:
    if not re.fullmatch(r"[0-9]{1,3}:[0-5][0-9]:[0-5][0-9]", value):
        raise ValueError(f'"{value}" is no time as OAR writes it; write for example "02:00:00"')
    return value


def _moment(value: str) -> str:
    try:
        datetime.strptime(value, "%Y-%m-%d %H:%M:%S")
    except ValueError:
        raise ValueError(f'"{value}" is no moment; write for example "2026-03-31 19:00:00"') from None
    return value


Walltime = Annotated[str, AfterValidator(_walltime)]
"""Hours, minutes and seconds, as OAR writes them."""
Moment = Annotated[str, AfterValidator(_moment)]
"""A date and a time of day, in Paris, as OAR takes them."""

_PACKAGES_TEXT = (
    "Where hosts get the Debian packages that they lack: their own `network`, or `carried` there by the driver."
)


_HOSTS_PER_MACHINE = Field(
    None,
    ge=1,
    le=200,
    description="How many hosts share a machine, as containers on it; the hosts of a site stay together. "
    "Default: every host is a machine.",
)


class Local(Strict):
    """This machine: every host is a system container."""

    type: Literal["local"] = Field(description="`local`: every host is a system container of this machine.")


class Vagrant(Strict):
    """Virtual machines of this machine, made by Vagrant."""

    type: Literal["vagrant"] = Field(description="`vagrant`: every host is a virtual machine, made by Vagrant.")
    backend: Literal["libvirt", "virtualbox"] = Field("libvirt", description="What runs the virtual machines.")
    box: Text = Field("discovery-deploy", description="The box; `discovery-deploy box build` makes this one.")
    memory_mb: Count = Field(2048, ge=256, le=1048576, description="Memory of each machine, in MB.")
    cpus: Count = Field(1, ge=1, le=256, description="Processors of each machine.")
    user: Text = Field("root", description="Whom the box lets in with Vagrant's key; root, or one with `sudo -n`.")
    extra: str = Field("", description="More text for the Vagrantfile, in Vagrant's language, as it is.")
    packages: Packages = Field("carried", description=_PACKAGES_TEXT)
    hosts_per_machine: Count | None = _HOSTS_PER_MACHINE

    @field_validator("user")
    @classmethod
    def _no_option_of_ssh(cls, value: str) -> str:
        return _name_for_ssh(value)


class Machines(Strict):
    """Which machines of Grid'5000 hosts may have: of a cluster, or by name."""

    g5k_site: Name = Field(description="The site of Grid'5000.")
    cluster: Name | None = Field(None, description="A cluster of it; any of its machines.")
    servers: Annotated[tuple[Text, ...], Once] = Field(
        (), description="Or the very machines, by name (`paravance-1.rennes.grid5000.fr`)."
    )

    @model_validator(mode="after")
    def _cluster_or_servers(self) -> Machines:
        if (self.cluster is None) == (not self.servers):
            raise ValueError("give either a `cluster` or `servers`")
        return self


class Grid5000(Strict):
    """Machines reserved on Grid'5000, at one or several of its sites."""

    type: Literal["g5k"] = Field(description="`g5k`: every host is a machine that is reserved on Grid'5000.")
    default: Machines | None = Field(None, description="Where hosts are of sites that `sites` does not name.")
    sites: dict[str, Machines] = Field({}, description="Emulated site -> where its hosts are.")
    queue: Text = Field("default", description="OAR's queue.")
    walltime: Walltime = Field("02:00:00", description="How long the machines are reserved, as `HH:MM:SS`.")
    reservation: Moment | None = Field(
        None, description="When the reservation begins, as `YYYY-MM-DD HH:MM:SS` (Paris); default: now."
    )
    job_types: Annotated[tuple[Text, ...], Once] = Field(
        (), description="More types of the OAR job; those of deployments are added by themselves."
    )
    environment: Text | None = Field(
        None, description="What kadeploy installs (`debian12-min`); default: the standard environment as it is."
    )
    network: Literal["production", "kavlan", "kavlan-global"] = Field(
        "production", description="The network of the hosts; a kavlan needs an `environment`."
    )
    project: Text | None = Field(None, description="The project (group granting access) that the job counts for.")
    jump: StrictBool | None = Field(
        None, description="Whether ssh goes through access.grid5000.fr; default: unless this machine is in Grid'5000."
    )
    packages: Packages = Field("network", description=_PACKAGES_TEXT)
    hosts_per_machine: Count | None = _HOSTS_PER_MACHINE

    @model_validator(mode="after")
    def _vlans_need_a_deployment(self) -> Grid5000:
        if self.network != "production" and self.environment is None:
            refuse([Mistake(("network",), f'"{self.network}" needs an `environment` to deploy')])
        return self


class Machine(Strict):
    """A machine given by hand, and how it is reached."""

    host: HostName = Field(
        description="The host of the experiment that it is; with `hosts_per_machine` a name of its own."
    )
    address: Text = Field(description="Address or name, for ssh.")
    user: Text = Field("root", description="Whom ssh logs in as.")
    port: Count = Field(22, ge=1, le=65535, description="Port of its sshd.")
    key: Text | None = Field(None, description="File of the private key; default: what ssh tries by itself.")
    jump: Text | None = Field(None, description="Through which machines, as in ssh's ProxyJump.")
    become: StrictBool = Field(False, description="Whether the user becomes root by `sudo -n`.")
    site_address: Text | None = Field(
        None, description="Its IPv4 address for services and the WAN; default: `address`, when that is one."
    )

    @field_validator("address", "jump", "user")
    @classmethod
    def _no_option_of_ssh(cls, value: str | None) -> str | None:
        return None if value is None else _name_for_ssh(value)

    @field_validator("site_address")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is not None and not _is_ipv4(value):
            raise ValueError(f'"{value}" is no IPv4 address')
        return value

    @model_validator(mode="after")
    def _somewhere_to_listen(self) -> Machine:
        if self.site_address is None and not _is_ipv4(self.address):
            refuse([Mistake(("address",), f'"{self.address}" is no IPv4 address; give a `site_address` too')])
        return self

    @property
    def listens_at(self) -> str:
        """Its address for services and the WAN."""
        return self.site_address or self.address


def _name_for_ssh(value: str) -> str:
    if value.startswith("-") or re.search(r"\s", value):
        raise ValueError(f'"{value}" is no name for ssh')
    return value


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


class Static(Strict):
    """Machines given by hand, reached by ssh; `release` leaves them as they were found."""

    type: Literal["static"] = Field(description="`static`: hosts are machines given by hand.")
    machines: tuple[Machine, ...] = Field(
        min_length=1, description="The machines: one for each host, or with `hosts_per_machine` enough of them."
    )
    packages: Packages = Field("network", description=_PACKAGES_TEXT)
    remove_packages: StrictBool = Field(
        False, description="Whether `release` also removes the Debian packages that were not there before."
    )
    hosts_per_machine: Count | None = _HOSTS_PER_MACHINE


Provider = Annotated[Local | Vagrant | Grid5000 | Static, Field(discriminator="type")]
