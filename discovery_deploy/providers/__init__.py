"""Where machines come from: one module per provider."""

from __future__ import annotations

from discovery_deploy import stack
from discovery_deploy.errors import ExperimentError
from discovery_deploy.providers.base import ProviderInterface
from discovery_deploy.providers.local import LocalProvider


def provider_named(name: str) -> ProviderInterface:
    """The provider of a name. Raises ExperimentError when there is none."""
    if name == "local":
        return LocalProvider(environments=stack.cache_directory() / "environments")
    raise ExperimentError(f'no provider "{name}"; the providers are: local')
