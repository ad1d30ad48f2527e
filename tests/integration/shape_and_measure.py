"""A program: puts the WAN of an experiment on its reserved hosts, where nothing is deployed, and measures it.

    python -m tests.integration.shape_and_measure FILE

Prints the verification as JSON. It runs where hosts are reached, which may be in namespaces of a test.
"""

from __future__ import annotations

import sys
from pathlib import Path

from discovery_deploy import opening, wan_acts
from discovery_deploy.providers import provider_named
from discovery_deploy.providers.base import Lease
from discovery_deploy.remote import Remote


def main() -> None:
    opened = opening.open_experiment(Path(sys.argv[1]))
    workspace = opening.workspace_of(opened, None)
    lease = workspace.load("lease.json", Lease)
    assert lease is not None
    wan = wan_acts.Wan(lease, provider_named(lease.provider), Remote(workspace.ssh_config), workspace)
    wan.bring(wan.to_apply(opened.experiment))
    print(wan.measured(opened.experiment).model_dump_json(indent=1))


if __name__ == "__main__":
    main()
