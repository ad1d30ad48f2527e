"""Units: what is read, what is refused and how, and that printing loses nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from discovery_deploy.experiment.units import (
    format_duration,
    format_rate,
    format_ratio,
    parse_duration,
    parse_rate,
    parse_ratio,
    parse_tc_delay,
    parse_tc_loss,
    parse_tc_rate,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("25 ms", 0.025),
        ("37.5ms", 0.0375),
        (" 10 us ", 0.00001),
        ("10 µs", 0.00001),
        ("0 s", 0.0),
        ("2 min", 120.0),
        ("1 h", 3600.0),
    ],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "bps"), [("20 Mbit/s", 2e7), ("1.5 Gbit/s", 1.5e9), ("1 kbit/s", 1e3), ("9600 bit/s", 9600.0)]
)
def test_a_rate_is_read_in_bits_per_second_with_decimal_prefixes(text: str, bps: float) -> None:
    assert parse_rate(text) == bps


def test_a_ratio_is_read_from_percent() -> None:
    assert [parse_ratio(text) for text in ("5 %", "0.1%", "100 %", "0 %")] == [0.05, 0.001, 1.0, 0.0]


@pytest.mark.parametrize(
    ("parse", "value", "message"),
    [
        (parse_duration, 25, '"25" has no unit; write for example "25 ms"'),
        (parse_duration, "7.5", '"7.5" has no unit; write for example "7.5 ms"'),
        (parse_duration, "25 MS", '"25 MS": unknown unit "MS"; did you mean "ms"?'),
        (parse_duration, "25 days", '"25 days": unknown unit "days"; known here: us, µs, ms, s, min, h'),
        (parse_duration, "-25 ms", '"-25 ms" is negative; write for example "25 ms"'),
        (parse_duration, -3, '"-3" is negative; write for example "25 ms"'),
        (parse_duration, "fast", '"fast" is not a number with a unit; write for example "25 ms"'),
        (parse_duration, "2,5 ms", '"2,5 ms" is not a number with a unit; write for example "25 ms"'),
        (parse_duration, float("nan"), '"nan" is not a number with a unit; write for example "25 ms"'),
        (parse_duration, "9" * 400 + " h", "the number is too large"),
        (parse_duration, True, 'expected a text with a unit, for example "25 ms"'),
        (parse_duration, None, 'expected a text with a unit, for example "25 ms"'),
        (parse_duration, ["25 ms"], 'expected a text with a unit, for example "25 ms"'),
        (parse_rate, "20", '"20" has no unit; write for example "20 Mbit/s"'),
        (parse_rate, "20 mbit/s", '"20 mbit/s": unknown unit "mbit/s"; did you mean "Mbit/s"?'),
        (
            parse_rate,
            "20 Mbps",
            '"20 Mbps": unknown unit "Mbps"; known here: bit/s, kbit/s, Mbit/s, Gbit/s',
        ),
        (parse_rate, "0 Mbit/s", '"0 Mbit/s": a rate must be at least 1 kbit/s'),
        (parse_ratio, 0.05, '"0.05" has no unit; write for example "0.05 %"'),
        (parse_ratio, "101 %", '"101 %" is more than 100 %'),
    ],
)
def test_what_is_not_a_quantity_is_refused_in_plain_words(
    parse: Callable[[object], float], value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=r".+") as refusal:
        parse(value)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ms"), (0.025, "25 ms"), (0.0375, "37.5 ms"), (1.5, "1.5 s"), (90.0, "90 s"), (120.0, "2 min")],
)
def test_a_duration_is_printed_in_the_unit_a_person_would_choose(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("bps", "text"), [(2e7, "20 Mbit/s"), (1500.0, "1.5 kbit/s"), (1e10, "10 Gbit/s")])
def test_a_rate_is_printed_in_the_largest_unit_that_fits(bps: float, text: str) -> None:
    assert format_rate(bps) == text


def test_printing_and_reading_back_loses_nothing() -> None:
    chance = random.Random(2)
    for _ in range(2000):
        largest_s = chance.choice([1e-4, 1.0, 100.0, 1e5])
        seconds = parse_duration(f"{chance.uniform(0, largest_s):.9f} s")
        assert parse_duration(format_duration(seconds)) == seconds
        bps = parse_rate(f"{chance.uniform(1e3, chance.choice([1e4, 1e7, 1e11])):.0f} bit/s")
        assert parse_rate(format_rate(bps)) == bps
        ratio = parse_ratio(f"{chance.uniform(0, 100):.7f} %")
        assert parse_ratio(format_ratio(ratio)) == ratio


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("25ms", 0.025), ("1s", 1.0), ("1.5sec", 1.5), ("300us", 0.0003), ("5msecs", 0.005), ("10 MS", 0.01), (0, 0.0)],
)
def test_a_delay_is_read_as_tc_reads_it(text: str, seconds: float) -> None:
    assert parse_tc_delay(text) == seconds


@pytest.mark.parametrize(
    ("text", "bps"),
    [("10gbit", 1e10), ("100mbit", 1e8), ("8kbit", 8e3), ("2kbps", 16e3), ("1mibit", 1048576.0), ("1.5Gbit", 1.5e9)],
)
def test_a_rate_is_read_as_tc_reads_it_where_bps_are_bytes(text: str, bps: float) -> None:
    assert parse_tc_rate(text) == bps


@pytest.mark.parametrize(("text", "ratio"), [("0.1%", 0.001), (0.1, 0.001), ("5", 0.05), (0, 0.0), ("100%", 1.0)])
def test_a_loss_is_in_percent_also_without_the_sign_as_for_tc(text: object, ratio: float) -> None:
    assert parse_tc_loss(text) == ratio


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (parse_tc_delay, "25", "has no unit"),
        (parse_tc_delay, 25, "microseconds"),
        (parse_tc_delay, "-1ms", "is negative"),
        (parse_tc_delay, "25 min", 'knows no unit "min"'),
        (parse_tc_delay, True, "expected a quantity"),
        (parse_tc_rate, "10", "bits per second"),
        (parse_tc_rate, "10bit", "at least 1kbit"),
        (parse_tc_rate, "10 Mbit/s", "knows no unit"),
        (parse_tc_loss, "101%", "more than 100%"),
        (parse_tc_loss, [1], "expected a quantity"),
    ],
)
def test_what_tc_would_read_otherwise_than_a_person_is_refused(
    read: Callable[[object], float], text: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)
