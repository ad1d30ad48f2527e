"""Measures the paths from one host to others; one self-contained file, standard library only, Python >= 3.10.

It is sent to a host and run there as `python3 - SPECIFICATION < probe.py`; SPECIFICATION is one JSON object, and one
JSON object comes back on stdout. Tasks:

* rtt: {"task": "rtt", "stations": [{"to": [address...], "gateway": address or null, "namespace": path or null}...],
  "count", "interval_s", "warmup", "wait_s"}: ICMP echoes from all stations to all their destinations at once, on a
  schedule, without waiting for replies; "results" are of each station's destinations, its gateway last, in order.
* stream: {"task": "stream", "address", "port", "expect": number of streams to receive, "limit_s", "quiet_s",
  "send": [{"to": address, "count", "gap_s", "size"}]}: numbered UDP datagrams to one destination after the other, while
  the streams of others are received: one-way loss and rate, counted where they arrive.
* bulk: {"task": "bulk", "address", "port", "limit_s"} receives TCP connections until they are closed; {"task": "bulk",
  "to", "port", "connections", "duration_s"} sends: one-way rate above what datagrams can fill.

A `namespace` (the path of a network namespace of this machine; also of stream and bulk) is entered first.

Times of arrival are the kernel's (SO_TIMESTAMPNS): taken in user space they would measure a busy machine's scheduler.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

PRIORITY = 40
"""SCHED_FIFO priority; a WAN router on the same machine has 50."""
CLONE_NEWNET = 0x40000000
SO_TIMESTAMPNS = 35
SO_RCVBUFFORCE = 33
SOL_RAW, ICMP_FILTER, ECHO_REPLY, ECHO_REQUEST = 255, 1, 0, 8
ECHO = struct.Struct("!BBHHH8sHiQ34x")
"""ICMP header (type, code, checksum, identifier, sequence); nonce, destination's index, number, time sent in ns."""
DATAGRAM = struct.Struct("!4sBIIQ")
"""Magic, kind, stream, number, time sent in ns."""
MAGIC = b"ddwp"
HELLO, READY, DATA, END, DONE = range(1, 6)
UDP_FRAME_BYTES = 42
"""Ethernet, IPv4 and UDP headers: HTB counts them."""
TCP_FRAME_RATIO = 1514 / 1448
"""Ethernet frame per TCP payload (IPv4, timestamps): HTB counts frames."""
WARMUP_INTERVAL_S = 0.02
LEAST_FOR_JITTER = 5
RETRY_S = 0.05
HELLO_LIMIT_S = 10.0
END_LIMIT_S = 2.0
DONE_COPIES = 3


def enter(namespace: str | None) -> None:
    """Be in a network namespace from now on; None: stay. Raises OSError."""
    if namespace is None:
        return
    with Path(namespace).open(encoding="ascii") as there:
        if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), namespace)


def real_time() -> str:
    """Ask for real-time priority; "fifo" when it was given, else "other"."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError:
        return "other"
    return "fifo"


def checksum(packet: bytes) -> int:
    """Internet checksum (RFC 1071) of a packet of even length."""
    total: int = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def quantile(ordered: list[float], share: float) -> float:
    """Value of a sorted, non-empty list at a share in [0, 1], interpolated between neighbours."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def arrival_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The kernel's time of arrival (CLOCK_REALTIME, ns) among ancillary data."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("@ll", data[: struct.calcsize("@ll")])
            return int(seconds) * 10**9 + int(nanoseconds)
    return time.time_ns()


def prepare(sock: socket.socket) -> None:
    """Ask for arrival times, and for a buffer that holds what comes while we do not run."""
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)


class Echoes:
    """ICMP echoes from one or several network namespaces of this machine to several destinations each, at once.

    Where a destination is the address of another station, the arrival of each request is seen there too: both are of
    one clock, so that the delay of each way is known.
    """

    def __init__(self, stations: list[dict[str, Any]]) -> None:
        self.nonce = os.urandom(8)
        self.sockets = []
        self.poll = select.epoll()
        self.targets: list[tuple[int, str]] = []
        self.warmed: list[int] = []
        kinds = [ECHO_REPLY, ECHO_REQUEST] if len(stations) > 1 else [ECHO_REPLY]
        for number, station in enumerate(stations):
            enter(station.get("namespace"))
            sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            sock.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("I", 0xFFFFFFFF & ~sum(1 << kind for kind in kinds)))
            prepare(sock)
            self.sockets.append(sock)
            self.poll.register(sock, select.EPOLLIN)
            first = len(self.targets)
            self.targets += [(number, to) for to in [*station["to"], *filter(None, [station.get("gateway")])]]
            # All paths of a site pass its gateway, whose address is the only one that must be resolved.
            self.warmed += [len(self.targets) - 1] if station.get("gateway") else range(first, len(self.targets))
        self.by_descriptor = {sock.fileno(): sock for sock in self.sockets}
        self.rtts_s: list[dict[int, float]] = [{} for _ in self.targets]
        self.there_s: list[dict[int, float]] = [{} for _ in self.targets]
        self.duplicates = [0] * len(self.targets)
        self.unsent = [0] * len(self.targets)
        self.received = 0

    def send(self, index: int, number: int) -> None:
        """One echo request; numbers below 0 warm the path up and are not counted."""
        identifier, sequence = os.getpid() & 0xFFFF, number & 0xFFFF
        station, destination = self.targets[index]
        head = (identifier, sequence, self.nonce, index, number, time.time_ns())
        packet = ECHO.pack(ECHO_REQUEST, 0, 0, *head)
        packet = ECHO.pack(ECHO_REQUEST, 0, checksum(packet), *head)
        try:
            self.sockets[station].sendto(packet, (destination, 0))
        except OSError:  # no route, or a full queue: it is lost, as on the way
            self.unsent[index] += 1

    def receive(self, sock: socket.socket) -> None:
        """Take all requests and replies that have arrived at a station."""
        while True:
            try:
                packet, ancillary, _, _ = sock.recvmsg(2048, 128, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            body = packet[(packet[0] & 0xF) * 4 :]
            if len(body) < ECHO.size:
                continue
            kind, _, _, _, _, nonce, index, number, sent_ns = ECHO.unpack_from(body)
            if nonce != self.nonce or number < 0:
                continue
            found = self.there_s[index] if kind == ECHO_REQUEST else self.rtts_s[index]
            if number not in found:
                found[number] = (arrival_ns(ancillary) - sent_ns) / 1e9
                self.received += kind == ECHO_REPLY
            elif kind == ECHO_REPLY:
                self.duplicates[index] += 1

    def wait(self, until: float, expected: int | None = None) -> None:
        """Receive until a time (monotonic), or until so many replies came."""
        while (left_s := until - time.monotonic()) > 0:
            if expected is not None and self.received >= expected:
                return
            for descriptor, _ in self.poll.poll(left_s):
                self.receive(self.by_descriptor[descriptor])

    def spread(self, targets: list[int], first: int, count: int, interval_s: float) -> None:
        """Send echoes numbered from `first` to each target, one each `interval_s`, evenly spread among them."""
        start, width = time.monotonic(), len(targets)
        for step in range(count * width):
            self.wait(start + step * interval_s / width)
            self.send(targets[step % width], first + step // width)

    def run(self, count: int, interval_s: float, warmup: int, wait_s: float) -> None:
        """Warm paths up, then send `count` echoes to each destination, and wait for replies at most `wait_s`."""
        self.spread(self.warmed, -warmup, warmup, WARMUP_INTERVAL_S)
        everything = list(range(len(self.targets)))
        self.spread(everything, 0, count, interval_s)
        self.wait(time.monotonic() + wait_s, count * len(everything))
        for sock in self.sockets:
            self.receive(sock)

    def results(self, count: int) -> list[dict[str, Any]]:
        """Per target, in order: sent, received, duplicates, unsent; median_s, p99_s and max_s of the RTT (s or None).

        Where arrivals were seen: `there` and `back`, each `one_way`.
        """
        results = []
        for index in range(len(self.targets)):
            ordered, there_s = sorted(self.rtts_s[index].values()), self.there_s[index]
            back_s = [rtt_s - there_s[number] for number, rtt_s in self.rtts_s[index].items() if number in there_s]
            result = {
                "sent": count,
                "received": len(ordered),
                "duplicates": self.duplicates[index],
                "unsent": self.unsent[index],
                "median_s": quantile(ordered, 0.5) if ordered else None,
                "p99_s": quantile(ordered, 0.99) if ordered else None,
                "max_s": ordered[-1] if ordered else None,
                "there": one_way(list(there_s.values())),
                "back": one_way(back_s),
            }
            results.append(result)
        return results


def one_way(delays_s: list[float]) -> dict[str, Any]:
    """What delays of one way say: their number, median and jitter (s or None when there are too few).

    Jitter is the half width of the uniform distribution that has their 10th and 90th percentiles: those of n values
    are expected to be 0.8 (n - 1) / (n + 1) of the whole width apart (order statistics; `quantile` interpolates), and a
    late packet or two change nothing.
    """
    ordered, count = sorted(delays_s), len(delays_s)
    jitter_s = None
    if count >= LEAST_FOR_JITTER:
        width = (quantile(ordered, 0.9) - quantile(ordered, 0.1)) * (count + 1) / (0.8 * (count - 1))
        jitter_s = width / 2
    return {"count": count, "median_s": quantile(ordered, 0.5) if ordered else None, "jitter_s": jitter_s}


def measure_rtt(spec: dict[str, Any]) -> dict[str, Any]:
    """Task rtt."""
    scheduling = real_time()
    echoes = Echoes(spec["stations"])
    echoes.run(spec["count"], spec["interval_s"], spec["warmup"], spec["wait_s"])
    return {"scheduling": scheduling, "results": echoes.results(spec["count"])}


class Arrivals:
    """One stream, as it arrives."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.times_ns: list[int] = []
        self.datagram_bytes = 0
        self.duplicates = 0
        self.ended = False

    def add(self, number: int, size: int, arrived_ns: int) -> None:
        """Count one datagram."""
        if number in self.seen:
            self.duplicates += 1
            return
        self.seen.add(number)
        self.times_ns.append(arrived_ns)
        self.datagram_bytes = size

    def result(self) -> dict[str, Any]:
        """received, duplicates, rate_bps (frames on the wire).

        The first half tells nothing of the rate: a path lets a burst through before it limits.
        """
        times_ns = self.times_ns[len(self.times_ns) // 2 :]
        rate_bps = None
        if len(times_ns) > 1 and times_ns[-1] > times_ns[0]:
            bits = (len(times_ns) - 1) * (self.datagram_bytes + UDP_FRAME_BYTES) * 8
            rate_bps = bits / ((times_ns[-1] - times_ns[0]) / 1e9)
        return {
            "received": len(self.seen),
            "duplicates": self.duplicates,
            "rate_bps": rate_bps,
        }


class Streams:
    """Sends streams of datagrams, one after the other, and receives those of others meanwhile."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.port: int = spec["port"]
        self.quiet_ns = int(spec["quiet_s"] * 1e9)
        self.expected: int = spec["expect"]
        self.limit = time.monotonic() + spec["limit_s"]
        self.arrivals: dict[tuple[str, int], Arrivals] = {}
        self.answers: set[tuple[str, int, int]] = set()
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        prepare(self.sock)
        self.sock.bind((spec["address"], self.port))

    def tell(self, to: str, kind: int, stream: int, number: int = 0, size: int = 0) -> None:
        """Send one datagram."""
        head = DATAGRAM.pack(MAGIC, kind, stream, number, time.time_ns())
        self.sock.sendto(head.ljust(size, b"\0"), (to, self.port))

    def receive(self) -> None:
        """Take all datagrams that have arrived, and answer those that want it."""
        while True:
            try:
                datagram, ancillary, _, (source, _) = self.sock.recvmsg(2048, 128, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if len(datagram) < DATAGRAM.size or not datagram.startswith(MAGIC):
                continue
            _, kind, stream, number, _ = DATAGRAM.unpack_from(datagram)
            if kind == DATA:
                arrivals = self.arrivals.setdefault((source, stream), Arrivals())
                arrivals.add(number, len(datagram), arrival_ns(ancillary))
            elif kind == HELLO:
                self.arrivals.setdefault((source, stream), Arrivals())
                self.tell(source, READY, stream)
            elif kind == END:
                self.finish(source, stream, arrival_ns(ancillary))
            else:
                self.answers.add((source, stream, kind))

    def finish(self, source: str, stream: int, now_ns: int) -> None:
        """An END came: the stream has ended once nothing of it came for a while (later ones overtake earlier ones)."""
        arrivals = self.arrivals.setdefault((source, stream), Arrivals())
        if arrivals.ended or not arrivals.times_ns or now_ns - arrivals.times_ns[-1] > self.quiet_ns:
            arrivals.ended = True
            for _ in range(DONE_COPIES):  # we may be gone before the next END asks again
                self.tell(source, DONE, stream)

    def wait(self, until: float) -> None:
        """Receive until a time (monotonic)."""
        while (left_s := min(until, self.limit) - time.monotonic()) > 0:
            if select.select([self.sock], [], [], left_s)[0]:
                self.receive()

    def ask(self, to: str, kind: int, answer: int, stream: int, limit_s: float) -> bool:
        """Repeat a datagram until it is answered; whether it was."""
        end = min(time.monotonic() + limit_s, self.limit)
        while (to, stream, answer) not in self.answers:
            if time.monotonic() > end:
                return False
            self.tell(to, kind, stream)
            pause = time.monotonic() + RETRY_S
            while (to, stream, answer) not in self.answers and (left_s := pause - time.monotonic()) > 0:
                if select.select([self.sock], [], [], left_s)[0]:
                    self.receive()
        return True

    def send(self, order: dict[str, Any]) -> dict[str, Any]:
        """One stream: greeting, numbered datagrams on a schedule, end. `sent` is 0 when nobody answered."""
        to, stream = order["to"], int.from_bytes(os.urandom(4), "big")
        if not self.ask(to, HELLO, READY, stream, HELLO_LIMIT_S):
            return {"to": to, "sent": 0, "seconds": 0.0}
        start = time.monotonic()
        for number in range(order["count"]):
            self.wait(start + number * order["gap_s"])
            self.tell(to, DATA, stream, number, order["size"])
        seconds = time.monotonic() - start
        self.ask(to, END, DONE, stream, END_LIMIT_S + order.get("drain_s", 0.0))
        return {"to": to, "sent": order["count"], "seconds": seconds}

    def done(self) -> bool:
        """Whether all streams that were expected have ended."""
        return sum(arrivals.ended for arrivals in self.arrivals.values()) >= self.expected


def measure_streams(spec: dict[str, Any]) -> dict[str, Any]:
    """Task stream."""
    scheduling = real_time()
    streams = Streams(spec)
    sent = [streams.send(order) for order in spec["send"]]
    while not streams.done() and time.monotonic() < streams.limit:
        streams.wait(time.monotonic() + RETRY_S)
    received = {source: arrivals.result() for (source, _), arrivals in streams.arrivals.items()}
    return {"scheduling": scheduling, "sent": sent, "received": received}


def receive_bulk(spec: dict[str, Any]) -> dict[str, Any]:
    """Task bulk at the receiver: rate_bps of frames from 40 % of the time between first and last byte on, or None."""
    listener = socket.create_server((spec["address"], spec["port"]), backlog=64)
    end = time.monotonic() + spec["limit_s"]
    open_sockets: list[socket.socket] = []
    arrived: list[tuple[float, int]] = []
    buffer = bytearray(1 << 20)
    while time.monotonic() < end and (open_sockets or not arrived):
        for sock in select.select([listener, *open_sockets], [], [], 0.2)[0]:
            if sock is listener:
                open_sockets.append(listener.accept()[0])
            elif size := sock.recv_into(buffer):
                arrived.append((time.monotonic(), size))
            else:
                open_sockets.remove(sock)
                sock.close()
    if len(arrived) < 2:
        return {"rate_bps": None}
    first = arrived[0][0] + 0.4 * (arrived[-1][0] - arrived[0][0])
    window = [(at, size) for at, size in arrived if at >= first]
    seconds = window[-1][0] - window[0][0]
    octets = sum(size for _, size in window[1:])
    return {"rate_bps": octets * 8 * TCP_FRAME_RATIO / seconds if seconds > 0 else None}


def send_bulk(spec: dict[str, Any]) -> dict[str, Any]:
    """Task bulk at the sender: fill several connections for a while; the number that could be made."""
    sockets: list[socket.socket] = []
    end = time.monotonic() + HELLO_LIMIT_S
    while len(sockets) < spec["connections"] and time.monotonic() < end:
        try:
            sockets.append(socket.create_connection((spec["to"], spec["port"]), timeout=HELLO_LIMIT_S))
        except ConnectionRefusedError:  # the receiver is not there yet
            time.sleep(RETRY_S)
    for sock in sockets:
        sock.setblocking(False)
    block, end = bytes(1 << 17), time.monotonic() + spec["duration_s"]
    while sockets and (left_s := end - time.monotonic()) > 0:
        for sock in select.select([], sockets, [], left_s)[1]:
            sock.send(block)
    for sock in sockets:
        sock.close()
    return {"connections": len(sockets)}


def main(specification: str) -> dict[str, Any]:
    """Do one task. Raises OSError when a socket cannot be had, KeyError for an unknown task."""
    spec = json.loads(specification)
    enter(spec.get("namespace"))
    if spec["task"] == "bulk":
        return send_bulk(spec) if "to" in spec else receive_bulk(spec)
    return {"rtt": measure_rtt, "stream": measure_streams}[spec["task"]](spec)


if __name__ == "__main__":
    json.dump(main(sys.argv[1]), sys.stdout)
