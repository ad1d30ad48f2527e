"""From constraints to tc, and from what is shown and measured to a verdict.

It must not know where a router is.
"""

__all__ = ["clocks", "compensation", "egress", "egress_hosts", "measure", "plan", "shapes", "tc", "verdict"]
