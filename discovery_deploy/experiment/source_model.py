"""Where the code of a project comes from, when it is not the release's. Part of the model."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from discovery_deploy.system.strict import Strict

Project = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
"""Name of a Python distribution, as package indexes know it: nova, oslo.messaging."""
Text = Annotated[str, StringConstraints(min_length=1)]


class Source(Strict):
    """One source of a project's code: another version, a git commit, an sdist, or a checkout."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [kind]} for kind in ("version", "git", "sdist", "checkout")],
            "dependentRequired": {"git": ["ref"], "ref": ["git"]},
        }
    )

    version: Text | None = Field(None, description="Another version on the package index, for example `31.0.1`.")
    git: Text | None = Field(None, description="URL of a git repository; with `ref`.")
    ref: Text | None = Field(None, description="Branch, tag or commit of `git`; the commit is written down.")
    sdist: Text | None = Field(
        None, description="A source archive (`.tar.gz`); relative paths begin at the experiment file."
    )
    checkout: Text | None = Field(
        None,
        description="A git working copy as it is now: what is tracked, and what is new and not ignored; relative paths "
        "begin at the experiment file.",
    )

    @model_validator(mode="after")
    def _is_one_source(self) -> Source:
        given = [kind for kind in ("version", "git", "sdist", "checkout") if getattr(self, kind) is not None]
        if len(given) != 1:
            found = f"not {' and '.join(given)}" if given else "none is given"
            raise ValueError(f"a source is one of version, git (with ref), sdist, checkout; {found}")
        if (self.git is None) != (self.ref is None):
            raise ValueError("`git` and `ref` go together")
        return self
