"""Where machines come from: one module per provider."""

from __future__ import annotations

from collections.abc import Callable

from discovery_deploy import stack
from discovery_deploy.errors import ExperimentError
from discovery_deploy.providers.base import ProviderInterface
from discovery_deploy.providers.g5k import G5kProvider
from discovery_deploy.providers.local import LocalProvider
from discovery_deploy.providers.static import StaticProvider
from discovery_deploy.providers.vagrant import VagrantProvider


def _local() -> ProviderInterface:
    return LocalProvider(environments=stack.cache_directory() / "environments")


def _vagrant() -> ProviderInterface:
    return VagrantProvider(stack.cache_directory())


def _g5k() -> ProviderInterface:
    from discovery_deploy.nested import NestedBooking  # which stands on this package

    return NestedBooking("g5k", G5kProvider(stack.cache_directory()))


def _nesting(name: str, make: Callable[[], ProviderInterface]) -> Callable[[], ProviderInterface]:
    """Makes a provider whose machines may hold several hosts."""

    def made() -> ProviderInterface:
        from discovery_deploy.nested import Nested  # which stands on this package

        return Nested(name, make())

    return made


PROVIDERS: dict[str, Callable[[], ProviderInterface]] = {
    "local": _local,
    "vagrant": _nesting("vagrant", _vagrant),
    "g5k": _g5k,
    "static": _nesting("static", StaticProvider),
}
"""Type of a provider, as in experiment files -> what makes it."""


def provider_named(name: str) -> ProviderInterface:
    """The provider of a name. Raises ExperimentError when there is none."""
    if name not in PROVIDERS:
        raise ExperimentError(f'no provider "{name}"; the providers are: {", ".join(PROVIDERS)}')
    return PROVIDERS[name]()


def holding(experiment_name: str) -> dict[str, ProviderInterface]:
    """Type -> provider, of those where an experiment holds something."""
    made = {name: make() for name, make in PROVIDERS.items()}
    return {name: provider for name, provider in made.items() if experiment_name in provider.experiments()}
