"""Numbers and the report, from records alone.

It must not know hosts, nor ssh.
"""

__all__ = ["report", "stats"]
