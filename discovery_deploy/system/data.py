"""Where the package's data is: playbooks, Rally tasks, experiments and lock files.

The wheel carries them inside the package (`data/<kind>`); a checkout has them beside the package (`<kind>`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Kind = Literal["playbooks", "rally_tasks", "experiments", "locks"]

PACKAGE = Path(__file__).resolve().parent.parent


def data_directory(kind: Kind, package: Path = PACKAGE) -> Path:
    """The directory of one kind of data, as an absolute path.

    Args:
        kind: which data.
        package: directory of the package that owns the data.
    Raises:
        FileNotFoundError: neither the installed package nor the checkout has it; the installation is broken.
    """
    places = (package / "data" / kind, package.parent / kind)
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(f"the package lacks its data: neither {places[0]} nor {places[1]} is a directory")
