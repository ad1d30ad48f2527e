"""What the models of an experiment file are made of: their base, and the kinds of names and numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from discovery_deploy.references import each_once

Name = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,18}[a-z0-9])?$")]
"""Lower case, digits and dashes, at most 20 characters: it becomes part of host names."""
HostName = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,22}[a-z0-9])?$")]
"""As `Name`, at most 24 characters, so that `<site>-1` is one for every site."""
Count = Annotated[int, Field(strict=True)]
"""A whole number; a text, a truth value or 2.0 is not one."""


class Strict(BaseModel):
    """Base of all that is read from or written to a file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


Once = AfterValidator(each_once)
"""Refuses a list that holds an item twice."""
