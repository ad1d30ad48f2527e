"""Ansible module: provenance of a host."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: host_facts
short_description: System, processor and versions of what is installed, reported to the driver
description: Reports os, kernel, cpu and packages (name -> version); changes nothing.
options:
  packages: {description: Debian packages to report when installed., type: list, elements: str, default: []}
  environment_directory: {description: A Python environment whose packages are reported., type: str, default: ''}
  distributions: {description: Which of them., type: list, elements: str, default: []}
"""


def python_versions(environment: str, wanted: list[str]) -> dict[str, str]:
    """Versions of distributions as installed in a Python environment, read from its metadata's directories."""
    names = {re.sub(r"[-_.]+", "-", name).lower(): name for name in wanted}
    versions = {}
    for directory in Path(environment).glob("lib/python3*/site-packages/*.dist-info"):
        name, _, version = directory.name[: -len(".dist-info")].rpartition("-")
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name in names:
            versions[names[name]] = version
    return versions


def debian_versions(listed: str) -> dict[str, str]:
    """Versions from `dpkg-query`'s lines `name status version` of installed packages."""
    lines = (line.split() for line in listed.splitlines())
    return {words[0]: words[2] for words in lines if len(words) == 3 and words[1] == "ii"}


def system_facts(os_release: str, cpuinfo: str) -> dict[str, str]:
    """Operating system, kernel and processor from the texts of /etc/os-release and /proc/cpuinfo."""
    name = re.search(r'^PRETTY_NAME="?([^"\n]*)', os_release, re.MULTILINE)
    cpu = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return {
        "os": name[1] if name else "unknown",
        "kernel": os.uname().release,
        "cpu": cpu[1].strip() if cpu else os.uname().machine,
    }


def main() -> None:
    """Report."""
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "default": []},
            "environment_directory": {"type": "str", "default": ""},
            "distributions": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    packages: dict[str, str] = {}
    if module.params["packages"]:
        query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev} ${Version}\\n", *module.params["packages"]]
        packages |= debian_versions(module.run_command(query)[1])
    if module.params["environment_directory"]:
        packages |= python_versions(module.params["environment_directory"], module.params["distributions"])
    facts = system_facts(Path("/etc/os-release").read_text(), Path("/proc/cpuinfo").read_text())
    module.exit_json(changed=False, report={**facts, "packages": packages})


if __name__ == "__main__":
    main()
