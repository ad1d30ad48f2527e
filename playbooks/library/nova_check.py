"""Ansible module: whether a host's Nova processes are up, as Nova itself sees them."""

from __future__ import annotations

import calendar
import time

from ansible.module_utils import cloud
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watched_units import UnitError, Watch

DOCUMENTATION = """
module: nova_check
short_description: API, scheduler and conductor of a host are up
description:
  - Asks Nova's API for its services until each process of the host has reported since it was started.
options:
  host: {description: The host., type: str, required: true}
  processes: {description: Which of api, scheduler and conductor run there., type: list, elements: str, required: true}
  url: {description: Of the host's own API; empty for the region's., type: str, default: ''}
  region: {description: Region whose API is asked when the host has none., type: str, required: true}
  keystone_url: {description: Of a Keystone., type: str, required: true}
  password: {description: Of the user nova., type: str, required: true}
  limit_s: {description: Seconds until it is given up., type: int, default: 180}
"""
CLOCKS_S = 2.0
"""By how much clocks of hosts may differ."""


def lacking(services: list[dict], host: str, started: dict[str, float]) -> list[str]:
    """Processes of a host that are not up, from the API's list of services.

    Args:
        started: process -> when its unit was started, seconds since 1970.
    """
    seen = {entry["binary"]: entry for entry in services if entry["host"] == host}
    found = []
    for process, since in sorted(started.items()):
        entry = seen.get(f"nova-{process}")
        if entry is None:
            found.append(f"nova-{process} has not registered")
        elif entry["state"] != "up" or reported(entry["updated_at"]) < since - CLOCKS_S:
            found.append(f"nova-{process} has not reported")
    return found


def reported(text: str | None) -> float:
    """Seconds since 1970 of a time as Nova writes it (UTC); 0 for never."""
    return float(calendar.timegm(time.strptime(text.partition(".")[0], "%Y-%m-%dT%H:%M:%S"))) if text else 0.0


def unit_starts(shown: str) -> dict[str, float]:
    """Process -> time, from `systemctl show`'s blocks with Id and ActiveEnterTimestamp (as unix time)."""
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in shown.split("\n\n")]
    return {
        block["Id"].removeprefix("nova-").removesuffix(".service"): float(
            block["ActiveEnterTimestamp"].lstrip("@") or "inf"
        )
        for block in blocks
        if "Id" in block
    }


def check(values: dict, starts: dict[str, float]) -> None:
    """Raises cloud.CloudError with what is not up."""
    token, said = cloud.authenticate(values["keystone_url"], "nova", values["password"], "service")
    catalogue = said["catalog"]
    url = values["url"] or cloud.endpoint(catalogue, "compute", values["region"])
    services = cloud.request("GET", f"{url}/os-services", token)[1]["services"]
    found = lacking(services, values["host"], {name: at for name, at in starts.items() if name != "api"})
    if found:
        raise cloud.CloudError("; ".join(found))


def main() -> None:
    """Check, until all are up or the time is over."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "processes": {"type": "list", "elements": "str", "required": True},
            "url": {"type": "str", "default": ""},
            "region": {"type": "str", "required": True},
            "keystone_url": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "limit_s": {"type": "int", "default": 180},
        }
    )
    values = module.params
    units = [f"nova-{process}.service" for process in values["processes"]]
    show = ["systemctl", "show", "--timestamp=unix", "--property=Id,ActiveEnterTimestamp", *units]

    watch = Watch(units)

    def attempt() -> None:
        check(values, unit_starts(module.run_command(show, check_rc=True)[1]))

    try:
        cloud.keep_trying(attempt, values["limit_s"], watch.look)
    except (cloud.CloudError, UnitError, KeyError) as error:
        told = watch.told()
        module.fail_json(msg=f"Nova on {values['host']} ({told.pop('state')}): {error}{told.pop('cause')}", **told)
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()
