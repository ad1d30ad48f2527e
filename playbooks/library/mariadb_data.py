"""Ansible module: the first content of a MariaDB server."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils import mariadb
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: mariadb_data
short_description: A data directory copied from a seed, if the server has none from it yet
options:
  seed: {description: Data directory of a server that was shut down cleanly., type: path, required: true}
  server: {description: Which server of the host., type: str, choices: [mariadb, site-mariadb], default: mariadb}
"""


def main() -> None:
    """Copy the seed when the data are not from it; whatever was there before goes."""
    module = AnsibleModule(
        argument_spec={
            "seed": {"type": "path", "required": True},
            "server": {"type": "str", "choices": list(mariadb.SERVERS), "default": "mariadb"},
        },
        supports_check_mode=True,
    )
    seed, server = module.params["seed"], mariadb.SERVERS[module.params["server"]]
    changed = mariadb.seed_of(server.data) != seed
    if changed and not module.check_mode:
        try:
            mariadb.stop(kill=True, server=server)
            mariadb.lay_out(Path(seed), {}, server.data)
        except (mariadb.ServerError, OSError) as error:
            module.fail_json(msg=f"the databases' first content: {error}")
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()
