"""Ansible module: whether a RabbitMQ member has been part of a whole cluster."""

from __future__ import annotations

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: rabbitmq_state
short_description: Whether this member's data are those of a cluster that was once seen whole
description: Changes nothing. Returns C(whole).
options:
  directory: {description: Data of the broker., type: path, default: /var/lib/rabbitmq}
"""
WHOLE = "discovery-deploy.whole"
"""In the data directory: rabbitmq_check has seen all members together."""


def main() -> None:
    """Look."""
    module = AnsibleModule(
        argument_spec={"directory": {"type": "path", "default": "/var/lib/rabbitmq"}}, supports_check_mode=True
    )
    module.exit_json(changed=False, whole=(Path(module.params["directory"]) / WHOLE).exists())


if __name__ == "__main__":
    main()
