"""Hosts on machines: which providers there are, who is on which machine, and the calls of the agent there.

It must not know OpenStack.
"""

__all__ = ["nested", "nesting", "registry", "shaping"]
