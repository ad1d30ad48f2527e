"""The probe that runs on hosts: its arithmetic, and its streams over the loopback (no privileges needed)."""

from __future__ import annotations

import ast
import json
import random
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from discovery_deploy.agent import probe

SOURCE = Path(probe.__file__)
HERE, THERE = "127.0.0.1", "127.0.0.2"


@pytest.fixture(autouse=True)
def _ordinary_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "real_time", lambda: "other")


@pytest.fixture
def port() -> int:
    """A port that is free on both addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind((HERE, 0))
        return int(one.getsockname()[1])


def together(*specifications: dict[str, Any]) -> list[dict[str, Any]]:
    """Run several probes at once."""
    with ThreadPoolExecutor(len(specifications)) as pool:
        return list(pool.map(probe.main, map(json.dumps, specifications)))


def stream(address: str, port: int, expect: int, *send: dict[str, Any], **more: Any) -> dict[str, Any]:
    base = {"task": "stream", "address": address, "port": port, "expect": expect, "send": send}
    return {**base, "limit_s": 5, "quiet_s": 0.02, **more}


def order(to: str, count: int, gap_s: float = 0.001, size: int = 64) -> dict[str, Any]:
    return {"to": to, "count": count, "gap_s": gap_s, "size": size}


class TestArithmetic:
    def test_checksum_of_the_example_in_rfc_1071(self) -> None:
        # words 0001 f203 f4f5 f6f7 sum to ddf2 (section 3)
        assert probe.checksum(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF

    def test_a_packet_with_its_checksum_sums_to_zero(self) -> None:
        chance = random.Random(1)
        for _ in range(100):
            body = chance.randbytes(62)
            assert probe.checksum(struct.pack("!H", probe.checksum(body)) + body) == 0

    @pytest.mark.parametrize(
        ("values", "share", "expected"),
        [
            ([7.0], 0.5, 7.0),
            ([7.0], 0.99, 7.0),
            ([1.0, 3.0], 0.5, 2.0),
            ([1.0, 2.0, 9.0], 0.5, 2.0),
            ([float(n) for n in range(101)], 0.99, 99.0),
            ([1.0, 2.0], 1.0, 2.0),
            ([1.0, 2.0], 0.0, 1.0),
        ],
    )
    def test_quantiles(self, values: list[float], share: float, expected: float) -> None:
        assert probe.quantile(values, share) == pytest.approx(expected)

    def test_an_echo_is_as_long_as_that_of_ping(self) -> None:
        assert probe.ECHO.size == 64

    def test_rate_counts_frames_and_leaves_the_burst_out(self) -> None:
        arrivals = probe.Arrivals()
        for number in range(100):  # 50 at once, then one each ms
            arrivals.add(number, 1472, max(0, number - 50) * 1_000_000)
        assert arrivals.result()["rate_bps"] == pytest.approx(1514 * 8 * 1000)

    def test_a_datagram_that_comes_twice_counts_once(self) -> None:
        arrivals = probe.Arrivals()
        for number in (0, 1, 1, 2):
            arrivals.add(number, 64, 1_000_010)
        result = arrivals.result()
        assert (result["received"], result["duplicates"]) == (3, 1)

    def test_nothing_arrived(self) -> None:
        result = probe.Arrivals().result()
        assert result == {"received": 0, "duplicates": 0, "rate_bps": None}

    @pytest.mark.parametrize("count", [7, 40, 500])
    def test_jitter_of_uniform_delays_is_half_their_width_on_average(self, count: int) -> None:
        chance = random.Random(2)
        found = [
            probe.one_way([chance.uniform(0.015, 0.025) for _ in range(count)])["jitter_s"]
            for _ in range(40_000 // count)
        ]
        assert sum(found) / len(found) == pytest.approx(0.005, rel=0.02)

    def test_a_late_packet_is_no_jitter_and_few_say_nothing(self) -> None:
        assert probe.one_way([0.01] * 19 + [0.5])["jitter_s"] == 0.0
        assert probe.one_way([0.01] * 4) == {"count": 4, "median_s": 0.01, "jitter_s": None}
        assert probe.one_way([]) == {"count": 0, "median_s": None, "jitter_s": None}

    def test_the_way_there_is_the_request_s_and_the_way_back_the_rest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        arrivals_ns = iter((1_005_000_000, 1_085_000_000))
        monkeypatch.setattr(probe, "arrival_ns", lambda ancillary: next(arrivals_ns))
        echoes = probe.Echoes([])
        echoes.rtts_s, echoes.there_s, echoes.duplicates, echoes.unsent = [{}], [{}], [0], [0]
        echoes.targets = [(0, "10.0.0.1")]
        wire, station = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with echoes.poll, wire, station:
            for kind in (probe.ECHO_REQUEST, probe.ECHO_REPLY):
                wire.send(b"\x45" + bytes(19) + probe.ECHO.pack(kind, 0, 0, 1, 0, echoes.nonce, 0, 0, 1_000_000_000))
            echoes.receive(station)
        (found,) = echoes.results(1)
        assert found["median_s"] == pytest.approx(0.085)
        assert found["there"]["median_s"] == pytest.approx(0.005)
        assert found["back"]["median_s"] == pytest.approx(0.08)

    def test_the_kernel_s_time_is_taken_where_there_is_one(self) -> None:
        data = struct.pack("@ll", 12, 34)
        assert probe.arrival_ns([(socket.SOL_SOCKET, probe.SO_TIMESTAMPNS, data)]) == 12_000_000_034


class TestStreams:
    def test_each_counts_what_the_other_sent_and_ends_when_all_came(self, port: int) -> None:
        started = time.monotonic()
        here, there = together(
            stream(HERE, port, 1, order(THERE, 200)), stream(THERE, port, 1, order(HERE, 150, size=200))
        )
        assert [sent["sent"] for sent in here["sent"] + there["sent"]] == [200, 150]
        assert there["received"][HERE]["received"] == 200
        assert here["received"][THERE]["received"] == 150
        assert time.monotonic() - started < 1.5

    def test_it_sends_on_schedule(self, port: int) -> None:
        here, there = together(stream(HERE, port, 0, order(THERE, 200, 0.002, 958)), stream(THERE, port, 1))
        assert here["sent"][0]["seconds"] == pytest.approx(0.4, abs=0.1)
        assert there["received"][HERE]["rate_bps"] == pytest.approx(500 * 1000 * 8, rel=0.1)

    def test_lost_datagrams_are_missed(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        tell = probe.Streams.tell

        def lossy(self: probe.Streams, to: str, kind: int, stream: int, number: int = 0, size: int = 0) -> None:
            if kind != probe.DATA or number % 4:
                tell(self, to, kind, stream, number, size)

        monkeypatch.setattr(probe.Streams, "tell", lossy)
        here, there = together(stream(HERE, port, 0, order(THERE, 200)), stream(THERE, port, 1))
        assert (here["sent"][0]["sent"], there["received"][HERE]["received"]) == (200, 150)

    def test_lost_greetings_and_ends_are_repeated(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        tell, seen = probe.Streams.tell, set()

        def lossy(self: probe.Streams, to: str, kind: int, stream: int, number: int = 0, size: int = 0) -> None:
            if kind != probe.DATA and (to, kind) not in seen:
                seen.add((to, kind))  # the first of each kind is lost
                return
            tell(self, to, kind, stream, number, size)

        monkeypatch.setattr(probe.Streams, "tell", lossy)
        here, there = together(stream(HERE, port, 0, order(THERE, 50)), stream(THERE, port, 1))
        assert (here["sent"][0]["sent"], there["received"][HERE]["received"]) == (50, 50)

    def test_nobody_there(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(probe, "HELLO_LIMIT_S", 0.2)
        (here,) = together(stream(HERE, port, 0, order(THERE, 50)))
        assert here["sent"] == [{"to": THERE, "sent": 0, "seconds": 0.0}]

    def test_foreign_datagrams_are_left_alone(self, port: int) -> None:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(probe.main, json.dumps(stream(THERE, port, 1, limit_s=0.5)))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for datagram in (b"", b"x" * 100, probe.MAGIC):
                    sock.sendto(datagram, (THERE, port))
            assert waiting.result()["received"] == {}


class TestBulk:
    def test_bytes_are_counted_where_they_arrive(self, port: int) -> None:
        received, sent = together(
            {"task": "bulk", "address": THERE, "port": port, "limit_s": 5},
            {"task": "bulk", "to": THERE, "port": port, "connections": 2, "duration_s": 0.3},
        )
        assert sent == {"connections": 2}
        assert received["rate_bps"] > 1e6

    def test_nothing_came(self, port: int) -> None:
        assert together({"task": "bulk", "address": THERE, "port": port, "limit_s": 0.1}) == [{"rate_bps": None}]


class TestFile:
    def test_it_runs_from_stdin_of_a_plain_python(self, port: int) -> None:
        command = [sys.executable, "-I", "-S", "-", json.dumps(stream(HERE, port, 0))]
        with SOURCE.open() as source:
            done = subprocess.run(command, stdin=source, capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        assert answer.pop("scheduling") in ("fifo", "other")
        assert answer == {"sent": [], "received": {}}

    def test_it_imports_nothing_but_the_standard_library(self) -> None:
        names = set()
        for part in ast.walk(ast.parse(SOURCE.read_text())):
            if isinstance(part, ast.Import):
                names |= {name.name for name in part.names}
            elif isinstance(part, ast.ImportFrom):
                names.add(str(part.module))
        assert names <= sys.stdlib_module_names | {"__future__"}
