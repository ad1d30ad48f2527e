"""Machines: reserved, found again, given back; one module for each testbed.

It must not know OpenStack. EnOSlib's worker imports this room in another Python: keep this file free of imports.
"""

__all__ = ["base", "g5k", "g5k_request", "local", "static", "vagrant"]
