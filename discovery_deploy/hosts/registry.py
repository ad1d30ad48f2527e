"""Where machines come from: one module per provider."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from discovery_deploy.agent import machine
from discovery_deploy.agent.machine import MachineError
from discovery_deploy.software import stack
from discovery_deploy.system.errors import ExperimentError, StateError, TestbedError
from discovery_deploy.system.strict import experiment_name
from discovery_deploy.testbeds.base import ProviderInterface
from discovery_deploy.testbeds.g5k import G5kProvider
from discovery_deploy.testbeds.local import LocalProvider, state_directory
from discovery_deploy.testbeds.static import StaticProvider
from discovery_deploy.testbeds.vagrant import VagrantProvider


def _local() -> ProviderInterface:
    return LocalProvider(environments=stack.cache_directory() / "environments")


def _vagrant() -> ProviderInterface:
    return VagrantProvider(stack.cache_directory())


def _g5k() -> ProviderInterface:
    from discovery_deploy.hosts.nested import NestedBooking  # which stands on this package

    return NestedBooking("g5k", G5kProvider(stack.cache_directory()))


def _nesting(name: str, make: Callable[[], ProviderInterface]) -> Callable[[], ProviderInterface]:
    """Makes a provider whose machines may hold several hosts."""

    def made() -> ProviderInterface:
        from discovery_deploy.hosts.nested import Nested  # which stands on this package

        return Nested(name, make())

    return made


PROVIDERS: dict[str, Callable[[], ProviderInterface]] = {
    "local": _local,
    "vagrant": _nesting("vagrant", _vagrant),
    "g5k": _g5k,
    "static": _nesting("static", StaticProvider),
}
"""Type of a provider, as in experiment files -> what makes it."""

NAMES_HELD = Path("/run/discovery-deploy-names")
"""A directory for each experiment that is being reserved or released, which is locked: not on the disk of its hosts."""


def provider_named(name: str) -> ProviderInterface:
    """The provider of a name. Raises ExperimentError when there is none."""
    if name not in PROVIDERS:
        raise ExperimentError(f'no provider "{name}"; the providers are: {", ".join(PROVIDERS)}')
    return PROVIDERS[name]()


def holding(experiment: str) -> dict[str, ProviderInterface]:
    """Type -> provider, of those where an experiment of this name holds something."""
    made = {name: make() for name, make in PROVIDERS.items()}
    return {name: provider for name, provider in made.items() if experiment in provider.experiments()}


@contextmanager
def name_held(experiment: str, wait_s: float) -> Iterator[None]:
    """Hold the name of an experiment: no other driver of this state directory reserves or releases it meanwhile.

    Raises:
        StateError: another one does, for longer than `wait_s` seconds.
        TestbedError: this user may not.
    """
    own = hashlib.sha256(str(state_directory()).encode()).hexdigest()[:8]
    directory = NAMES_HELD / f"{own}-{experiment_name(experiment)}"
    with ExitStack() as held:
        try:
            held.enter_context(machine.hold(directory, wait_s))
        except MachineError as error:
            raise StateError(
                f"{experiment}: another discovery-deploy reserves or releases it at this moment: {error.what}",
                "Wait until it has ended, then look with `discovery-deploy status`.",
            ) from error
        except PermissionError as error:
            raise TestbedError(f"{error.filename or directory}: {error.strerror}", "Run as root.") from error
        except OSError as error:
            raise StateError(f"{error.filename or directory}: {error.strerror}", "Fix it, then run again.") from error
        try:
            yield
        finally:
            for place in (directory, NAMES_HELD):
                with suppress(OSError):  # others hold theirs
                    place.rmdir()
