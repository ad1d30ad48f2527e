"""What a provider is: it turns a request into a lease of hosts, shapes the WAN between them, and gives all back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from discovery_deploy.agent.plan import TcProgram
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.progress import Progress
from discovery_deploy.system.strict import Strict, experiment_name

HOLDER = "workspace"
"""File in a provider's folder of an experiment that says from which workspace its hosts were reserved."""


def noted_holder(folder: Path) -> Path | None:
    """The workspace that a provider's folder of an experiment names; None when it names none, or cannot be read."""
    try:
        text = (folder / HOLDER).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # not there, or damaged: a release must not need it
        return None
    return Path(text) if text.startswith("/") and "\0" not in text else None


def folder_of(state: Path, name: str) -> Path:
    """A provider's folder of an experiment. Raises StateError when the name is none: it would be another's."""
    return state / experiment_name(name)


class Lack(Strict):
    """Something that this machine lacks for a provider."""

    what: str
    command: str
    """The exact shell command that mends it, or "" when none does."""


class ProviderInterface(Protocol):
    """The verbs of a provider. All are safe to repeat."""

    def lacks(self) -> list[Lack]:
        """What this machine lacks."""

    def reserve(
        self, experiment: Experiment, public_key: str, image: Path, progress: Progress, workspace: Path | None = None
    ) -> Lease:
        """Obtain hosts, reachable by ssh as root with the key. Repeated: mends what is missing, keeps what is well.

        When the experiment asks for other sites or hosts than before, those that are there may go, all or in part;
        the lease's identities tell which are new.

        Args:
            experiment: its name, sites and hosts count.
            public_key: may log in as root.
            image: the base image.
            progress: takes one short line per step.
            workspace: who reserves; `holder` tells it until release.

        Raises:
            TestbedError: naming the host, and what to do.
        """

    def dead_hosts(self, lease: Lease) -> list[str]:
        """Names of leased hosts that no longer run (also the WAN router, as "WAN router").

        Whether a running host can be reached by ssh, the driver asks itself.
        """

    def shape(self, lease: Lease, program: TcProgram) -> None:
        """Run a tc program on the WAN router. Raises TestbedError with tc's message.

        This, `read_shape` and `router_facts` are asked only where a router shapes the WAN.
        """

    def read_shape(self, lease: Lease) -> dict[str, Any]:
        """What tc shows there, as `tc.device_problems` takes it."""

    def router_facts(self, lease: Lease) -> str:
        """What shapes the WAN, in words: mode, kernel, scheduling, and TCP's congestion control between sites."""

    def release(self, experiment_name: str, progress: Progress) -> None:
        """Give everything back, from any state, also without a lease: found by the experiment's name."""

    def holder(self, experiment_name: str) -> Path | None:
        """The workspace from which an experiment's hosts were last reserved; None when there are none, or unknown."""

    def experiments(self) -> list[str]:
        """Names of the experiments that hold something here."""


@runtime_checkable
class BookingProvider(Protocol):
    """More verbs of a provider whose hosts are booked for some time."""

    def request_text(self, experiment: Experiment) -> str:
        """What would be booked, and what it costs, in lines for a person. Books nothing."""

    def ends_at(self, lease: Lease) -> float | None:
        """When the first host goes, in seconds since 1970; None when nobody knows. Raises TestbedError."""

    def extend(self, experiment_name: str, seconds: float, progress: Progress) -> str:
        """Ask for so much more time; what was granted, in lines for a person.

        Raises:
            TestbedError: nothing is booked, it was refused, or not all was granted.
        """
