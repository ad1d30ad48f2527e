"""Which process of OpenStack runs where, and what it is told. Pure.

It must not know ssh, nor how Ansible is run.
"""

__all__ = ["clients", "crossings", "inventory", "service_variables", "topology", "variables"]
