"""What the models of an experiment file are made of: their base, and the kinds of names and numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from discovery_deploy.agent import names
from discovery_deploy.system.errors import StateError
from discovery_deploy.system.mistake import each_once

Name = Annotated[str, StringConstraints(pattern=f"^{names.NAME}$")]
"""Lower case, digits and dashes, at most 20 characters: it becomes part of host names."""
HostName = Annotated[str, StringConstraints(pattern=f"^{names.HOST_NAME}$")]
"""As `Name`, at most 24 characters, so that `<site>-1` is one for every site."""
RunId = Annotated[str, StringConstraints(pattern=f"^{names.RUN_ID}$")]
"""It names a run's folder."""
Count = Annotated[int, Field(strict=True)]
"""A whole number; a text, a truth value or 2.0 is not one."""


class Strict(BaseModel):
    """Base of all that is read from or written to a file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


Once = AfterValidator(each_once)
"""Refuses a list that holds an item twice."""


def experiment_name(text: str, where: str = "the name of the experiment") -> str:
    """The text itself, where it becomes a part of a path. Raises StateError when it is not a `Name`.

    Args:
        text: what is to be the name of an experiment.
        where: what it was read from.
    """
    if not names.is_name(text):
        raise StateError(
            f"{where}: {text[:60]!r} is not a name of an experiment",
            "Names have lower case letters, digits and dashes, at most 20; see `discovery-deploy status`.",
        )
    return text
