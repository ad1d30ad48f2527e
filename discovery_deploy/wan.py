"""The WAN between sites: from constraints to a tc program, and from measurements to a verdict. Pure."""

from __future__ import annotations

from discovery_deploy.model import Strict


class PathShape(Strict):
    """The one-way path from one site to another, as asked; every value is settled (defaults applied)."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    rate_bps: float | None = None
    """None: not limited."""


class PairMeasurement(Strict):
    """What was measured from `source` to `destination`; times in seconds, None where not measured."""

    source: str
    destination: str
    sent: int
    received: int
    rtt_median_s: float | None
    rtt_p99_s: float | None
    rtt_max_s: float | None
    loss: float | None = None
    """One-way loss, a ratio, counted at the destination."""
    rate_bps: float | None = None
    """One-way rate in bits per second on the wire (Ethernet frames), counted at the destination."""


class PairVerdict(Strict):
    """Asked against measured for one ordered pair."""

    asked: PathShape
    asked_rtt_s: float
    """Forward plus backward delay, without the base RTT of the testbed."""
    measured: PairMeasurement
    problems: tuple[str, ...] = ()


class WanReport(Strict):
    """One verification of the whole WAN."""

    measured_at: str
    """ISO 8601, UTC."""
    pairs: tuple[PairVerdict, ...]
    readback_problems: tuple[str, ...] = ()
    """Differences between the program that was applied and what tc shows."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Every reason why the WAN is not the one asked for."""
        return self.readback_problems + tuple(problem for pair in self.pairs for problem in pair.problems)
