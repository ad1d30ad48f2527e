"""The commands `box build`, `box list` and `box remove`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from discovery_deploy.software import box, stack
from discovery_deploy.system.errors import TestbedError

app = typer.Typer(
    no_args_is_help=True, help="The box of Vagrant's machines, built from Debian's packages; usable without network."
)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


@app.command()
def build() -> None:
    """Build the box `discovery-deploy` for libvirt, when the cache lacks it, and give it to Vagrant."""
    directory = box.build(stack.cache_directory(), _say)
    version = box.register(directory, _say)
    sys.stdout.write(f"{box.NAME} {version}\n")


@app.command("list")
def list_command() -> None:
    """List the versions of the box that Vagrant has, on standard output; the one of this version is marked."""
    wanted = box.box_version(box.box_hash())
    lines = [f"{version}\t{'this version' if version == wanted else '-'}" for version in box.versions()]
    sys.stdout.write("\n".join(["version\tused by", *lines]) + "\n")


@app.command()
def remove(
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Which.  [default: all]", show_default=False)
    ] = None,
) -> None:
    """Take the box from Vagrant; what is built stays in the cache, machines stay too."""
    known = box.versions()
    if version is not None and version not in known:
        raise TestbedError(f'Vagrant has no version "{version}" of the box; it has: {", ".join(known) or "none"}')
    for one in known if version is None else [version]:
        box.remove(one)
        _say(f"removed: {box.NAME} {one}")
