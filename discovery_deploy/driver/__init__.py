"""The order of things: phases, what is there brought to what is asked, the campaign, playbooks.

It must not know arguments, nor colours.
"""

__all__ = ["bookings", "driver", "opening", "phases", "releasing", "smoke_acts", "testbed"]
