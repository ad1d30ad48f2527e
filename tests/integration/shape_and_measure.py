"""A program: puts the WAN of an experiment on its reserved hosts, where nothing is deployed, and measures it.

    python -m tests.integration.shape_and_measure FILE

Prints the verification as JSON: the first of several that is as asked, or the last. It runs where hosts are reached,
which may be in namespaces of a test.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from discovery_deploy.driver import opening, wan_acts
from discovery_deploy.experiment.lease import Lease
from discovery_deploy.hosts.registry import provider_named
from discovery_deploy.system.remote import Remote

MEASUREMENTS = 10


def main() -> None:
    opened = opening.open_experiment(Path(sys.argv[1]))
    workspace = opening.workspace_of(opened, None)
    lease = workspace.load("lease.json", Lease)
    assert lease is not None
    wan = wan_acts.Wan(lease, provider_named(lease.provider), Remote(workspace.ssh_config), workspace)
    wan.bring(wan.to_apply(opened.experiment))
    # An emulated machine whose processor is wanted elsewhere answers some ms late: while it is measured, and also when
    # it was found out what to take off, which `verify` corrects in the same way.
    for _ in range(MEASUREMENTS):
        report = wan.measured(opened.experiment)
        if not report.problems:
            break
        if wan.correct(opened.experiment, report):
            wan.bring(wan.to_apply(opened.experiment))
        time.sleep(5)
    print(report.model_dump_json(indent=1))


if __name__ == "__main__":
    main()
