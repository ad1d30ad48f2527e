"""Sees the requests that a MariaDB on this host gets, passively: a verb of the agent. Standard library only.

It is asked with {"ports": [TCP ports of servers], "sockets": [their Unix sockets, to ask who is connected already]}. A
packet socket reads copies of what the kernel passes, on every device, loopback with it: nothing is asked of the server
over TCP, nothing held up or changed.

Of the MySQL protocol it knows that a client's packet with sequence number 0 is a command, and reads the server's OK
packets: a transaction whose statements changed rows and that is committed then is a *commit that writes*. Not over TLS.

Sources: "MySQL Source Code Documentation", chapter Client/Server Protocol; packet(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import select
import socket
import struct
import subprocess
import time
from typing import Any

from discovery_deploy.agent.conversation import Conversation

COMMANDS = {
    0x01: "QUIT", 0x02: "INIT_DB", 0x03: "QUERY", 0x04: "FIELD_LIST", 0x07: "REFRESH", 0x09: "STATISTICS",
    0x0A: "PROCESS_INFO", 0x0C: "PROCESS_KILL", 0x0D: "DEBUG", 0x0E: "PING", 0x11: "CHANGE_USER",
    0x12: "BINLOG_DUMP", 0x16: "STMT_PREPARE", 0x17: "STMT_EXECUTE", 0x18: "STMT_SEND_LONG_DATA",
    0x19: "STMT_CLOSE", 0x1A: "STMT_RESET", 0x1B: "SET_OPTION", 0x1C: "STMT_FETCH", 0x1F: "RESET_CONNECTION",
    0xFA: "STMT_BULK_EXECUTE",
}  # fmt: skip
UNANSWERED = frozenset({"QUIT", "STMT_SEND_LONG_DATA", "STMT_CLOSE"})
"""Commands that the server does not answer, so that nobody waits for it."""
CHANGING = frozenset({"INSERT", "REPLACE", "UPDATE", "DELETE", "LOAD"})
UNREADABLE = "?"
"""Kind of what could not be read as a command: it begins in the middle of one, or is encrypted."""
VERB = re.compile(rb"\A(?:\s|\(|/\*.*?\*/)*([A-Za-z]+)", re.DOTALL)
HEAD_BYTES = 256
"""Of a statement, what is looked at."""
IN_TRANSACTION, AUTOCOMMIT = 0x0001, 0x0002
"""Bits of the server's status."""
CLIENT_SSL = 0x0800
HANDSHAKE = 1
"""Sequence number of a client's first packet on a connection."""
MOST_WAITING = 256
"""Segments kept while one before them is missing; then that one is given up."""
HALF = 1 << 31
SO_ATTACH_FILTER, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 26, 33, 35
SOL_PACKET, PACKET_STATISTICS, ETH_P_ALL, ETH_P_IP = 263, 6, 3, 0x0800
FROM_HERE = 4
"""Kind of a packet that this host sends; it is seen on its way out."""
FIN, SYN = 0x01, 0x02


class Stream:
    """One direction of a TCP connection: its bytes in order, from segments as they come. Pure."""

    def __init__(self, following: int | None = None) -> None:
        self.following = following
        """Sequence number of the next byte; None until the first segment."""
        self.waiting: dict[int, bytes] = {}
        self.lost = False
        """Whether bytes were given up since it was last looked at."""

    def fed(self, sequence: int, payload: bytes) -> bytes:
        """What is complete now, in order; what came before already is left out."""
        if self.following is None:
            self.following = sequence
        self.waiting[sequence] = max(payload, self.waiting.get(sequence, b""), key=len)
        found = self._taken()
        if len(self.waiting) > MOST_WAITING:
            self.lost, self.following = True, min(self.waiting, key=self._ahead)
            found += self._taken()
        return found

    def _ahead(self, sequence: int) -> int:
        """How far a byte is after the next one; at most 0 when it is not."""
        distance = (sequence - (self.following or 0)) % (1 << 32)
        return distance - (1 << 32) if distance >= HALF else distance

    def _taken(self) -> bytes:
        found = b""
        for sequence in sorted(self.waiting, key=self._ahead):
            ahead = self._ahead(sequence)
            if ahead > 0:
                break
            fresh = self.waiting.pop(sequence)[-ahead:]
            found += fresh
            self.following = ((self.following or 0) + len(fresh)) % (1 << 32)
        return found


def whole(data: bytes) -> bool:
    """Whether bytes are whole packets of the protocol, of which the first begins a request or a connection."""
    place, first = 0, True
    while place + 4 < len(data):
        if first and data[place + 3] not in (0, HANDSHAKE):
            return False
        first = False
        place += 4 + int.from_bytes(data[place : place + 3], "little")
    return not first and place == len(data)


class Packets:
    """Cuts what a client sends into packets of the protocol. Pure.

    Args:
        from_start: whether its first byte is the first of the connection; else it begins with a segment that fits.
    """

    def __init__(self, from_start: bool) -> None:
        self.aligned = from_start
        self.buffer = b""

    def fed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(sequence number, head of the payload) of each packet that is complete now; (-1, b"") for what is skipped."""
        if not self.aligned:
            if not whole(data):
                return [(-1, b"")]
            self.aligned = True
        self.buffer += data
        found, place = [], 0
        while len(self.buffer) - place >= 4:
            end = place + 4 + int.from_bytes(self.buffer[place : place + 3], "little")
            if end > len(self.buffer):
                break
            found.append((self.buffer[place + 3], self.buffer[place + 4 : min(end, place + 4 + HEAD_BYTES)]))
            place = end
        self.buffer = self.buffer[place:]
        return found


def kind_of(head: bytes) -> str:
    """Kind of a command: the first word of its SQL in capitals, or the name of the command without `COM_`."""
    command = head[0] if head else -1
    if command != 0x03:
        return COMMANDS.get(command, f"COM_{command}")
    found = VERB.match(head[1:])
    return found[1].decode("ascii").upper() if found else "QUERY"


def length_encoded(data: bytes, place: int) -> tuple[int, int]:
    """An integer of the protocol that says its own length, and the place after it."""
    first = data[place]
    size = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(first, 0)
    if not size:
        return first, place + 1
    return int.from_bytes(data[place + 1 : place + 1 + size], "little"), place + 1 + size


def ok_packet(data: bytes) -> tuple[int, int] | None:
    """(rows changed, the server's status) when an answer is an OK packet, else None."""
    if len(data) < 11 or data[4] != 0x00 or int.from_bytes(data[:3], "little") < 7:
        return None
    rows, place = length_encoded(data, 5)
    _, place = length_encoded(data, place)
    return rows, int.from_bytes(data[place : place + 2], "little")


def login_name(head: bytes) -> str | None:
    """Who a client says that it is in its first packet; None when it asks for TLS, which hides the rest."""
    if len(head) <= 32 and int.from_bytes(head[:4], "little") & CLIENT_SSL:
        return None
    return head[32:].split(b"\0", 1)[0].decode("utf-8", "replace")


class Connection:
    """A client's connection: its commands, and which of them commit something. Pure.

    Args:
        user: whose it is, when that is known.
        start: sequence number of its first SYN; None when it was there before.
    """

    def __init__(self, user: str = "", start: int | None = None) -> None:
        self.user = user
        self.requests = Stream(None if start is None else (start + 1) % (1 << 32))
        self.packets = Packets(start is not None)
        self.answers = Stream()
        self.encrypted = False
        self.asked: list[Any] | None = None
        """The last command, until it is answered."""
        self.changed = False
        """Whether the transaction that is open has changed something."""
        self.autocommit = False

    def sent(self, at_us: int, sequence: int, payload: bytes) -> list[list[Any]]:
        """Rows `[at_us, user, kind, answered, commits]` of the commands that a client's segment completes."""
        data = self.requests.fed(sequence, payload)
        if self.requests.lost:
            self.requests.lost = False
            self.packets = Packets(False)
        rows = []
        for number, head in self.packets.fed(data) if data and not self.encrypted else []:
            if number == HANDSHAKE and not self.user:
                name = login_name(head)
                self.user, self.encrypted = name or "", name is None
            if number == 0 or number == -1 or self.encrypted:
                kind = kind_of(head) if number == 0 else UNREADABLE
                rows.append(self._asked(at_us, kind, head))
        return rows

    def _asked(self, at_us: int, kind: str, head: bytes) -> list[Any]:
        row = [at_us, self.user, kind, kind not in UNANSWERED, False]
        if kind == "COMMIT" or (kind == "ROLLBACK" and b" TO " not in head.upper()):
            row[4] = kind == "COMMIT" and self.changed
            self.changed = False
        self.asked = row if row[3] else None
        return row

    def answered(self, sequence: int, payload: bytes) -> None:
        """Take a segment of the server's: the first after a command says what came of it."""
        data = self.answers.fed(sequence, payload)
        if not data or self.asked is None:
            return
        row, self.asked = self.asked, None
        if row[2] == "STMT_PREPARE":  # its answer begins like an OK packet
            return
        ok = ok_packet(data)
        if ok:
            self.autocommit = bool(ok[1] & AUTOCOMMIT) and not ok[1] & IN_TRANSACTION
        rows_changed = ok[0] if ok else int(row[2] in CHANGING and data[4:5] != b"\xff")  # (RETURNING gives rows)
        if rows_changed and self.autocommit:
            row[4] = True
        elif rows_changed:
            self.changed = True


class Capture:
    """All connections to some ports of this host. Pure.

    Args:
        ports: of servers.
    """

    def __init__(self, ports: list[int]) -> None:
        self.ports = frozenset(ports)
        self.users: dict[tuple[str, int], str] = {}
        """(address, port) of clients that were there before -> user."""
        self.connections: dict[tuple[str, int, int], Connection] = {}
        self.rows: list[list[Any]] = []

    def packet(self, at_us: int, packet: bytes, from_here: bool) -> None:
        """Take an IPv4 packet, which this host sends or receives; others than to or from the ports say nothing."""
        if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
            return
        start = (packet[0] & 15) * 4
        source, destination, sequence = struct.unpack_from("!HHI", packet, start)
        payload = packet[start + (packet[start + 12] >> 4) * 4 : struct.unpack_from("!H", packet, 2)[0] or None]
        # On loopback each comes twice, from and to here: taken once.
        if destination in self.ports and not from_here:
            key = (socket.inet_ntoa(packet[12:16]), source, destination)
            self._from_client(key, at_us, sequence, packet[start + 13], payload)
        elif source in self.ports and from_here and payload:
            there = self.connections.get((socket.inet_ntoa(packet[16:20]), destination, source))
            if there is not None:
                there.answered(sequence, payload)

    def _from_client(self, key: tuple[str, int, int], at_us: int, sequence: int, flags: int, payload: bytes) -> None:
        if flags & SYN:
            self.users.pop(key[:2], None)
            self.connections[key] = Connection(start=sequence)
        elif payload:
            if key not in self.connections:
                self.connections[key] = Connection(self.users.get(key[:2], ""))
            connection = self.connections[key]
            connection.user = connection.user or self.users.get(key[:2], "")
            self.rows += connection.sent(at_us, sequence, payload)

    def seen(self, dropped: int) -> dict[str, Any]:
        """Lists `kinds`, `users` and `requests` of rows [at_us, user, kind, answered, commits]; `dropped` packets.

        `user` and `kind` are places in the lists; `answered` and `commits` are 0 or 1. Times are CLOCK_REALTIME.
        """
        users = sorted({row[1] for row in self.rows})
        kinds = sorted({row[2] for row in self.rows})
        rows = [[row[0], users.index(row[1]), kinds.index(row[2]), int(row[3]), int(row[4])] for row in self.rows]
        return {"kinds": kinds, "users": users, "requests": rows, "dropped": dropped}


def filter_of(ports: list[int]) -> bytes:
    """A classic BPF program that passes TCP over IPv4 to or from ports, of packets that begin with their IP header."""
    half = [(0x15, port) for port in ports]
    program = [(0x28, 0xFFFFF000), (0x15, ETH_P_IP), (0x30, 9), (0x15, socket.IPPROTO_TCP), (0xB1, 0), (0x48, 0)]
    program += [*half, (0x48, 2), *half, (0x06, 0), (0x06, 1 << 18)]
    refuse, last = len(program) - 2, len(program) - 1
    code = b""
    for place, (operation, value) in enumerate(program):
        passes = place > 4 and operation == 0x15
        then = last - place - 1 if passes else 0
        otherwise = refuse - place - 1 if operation == 0x15 and not passes else 0
        code += struct.pack("HBBI", operation, then, otherwise, value)
    return code


def packet_socket(ports: list[int]) -> socket.socket:
    """A socket that gets a copy of each such packet, with the kernel's time."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    code = filter_of(ports)
    held = ctypes.create_string_buffer(code)
    made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(code) // 8, ctypes.addressof(held)))
    made.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    try:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
    return made


def take(source: socket.socket, capture: Capture, buffer: bytearray) -> None:
    """Hand all packets that have come to the capture."""
    with contextlib.suppress(BlockingIOError):
        while True:
            size, ancillary, _, address = source.recvmsg_into([buffer], 128, socket.MSG_DONTWAIT)
            at_ns = time.time_ns()
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
                    seconds, nanoseconds = struct.unpack("@ll", data[: struct.calcsize("@ll")])
                    at_ns = seconds * 10**9 + nanoseconds
            capture.packet(at_ns // 1000, bytes(buffer[:size]), address[2] == FROM_HERE)


def connected(path: str) -> dict[tuple[str, int], str]:
    """(address, port) -> user of the clients that a server has now, asked on its Unix socket; none when it is down."""
    question = "SELECT host, user FROM information_schema.processlist"
    command = ["mariadb", "--batch", "--skip-column-names", f"--socket={path}", "-e", question]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30)
    found = {}
    for host, user in (line.split("\t") for line in done.stdout.splitlines() if "\t" in line):
        address, _, port = host.rpartition(":")
        if port.isdigit():
            found[address, int(port)] = user
    return found


def count(asked: dict[str, Any], talk: Conversation) -> dict[str, Any]:
    """Verb of the agent: what is seen (`Capture.seen`) until it is told `stop`, or nobody listens any more.

    It says {"ready": True} once it sees requests, and answers `clock` with {"clock_ns": this host's time}.
    """
    capture, buffer = Capture(asked["ports"]), bytearray(1 << 18)
    source = packet_socket(asked["ports"]) if asked["ports"] else None
    for path in asked["sockets"]:
        capture.users.update(connected(path))
    talk.say({"ready": True})
    stopped = False
    while not stopped:
        heard = talk.has_line()
        watched: list[Conversation | socket.socket] = [talk, *([source] if source else [])]
        ready, _, _ = select.select(watched, [], [], 0 if heard else None)
        if source and source in ready:
            take(source, capture, buffer)
        if heard or talk in ready:
            for order in talk.lines():
                stopped = stopped or order == b"stop"
                if order == b"clock":
                    talk.say({"clock_ns": time.time_ns()})
            stopped = stopped or talk.ended
    dropped = 0
    if source:
        take(source, capture, buffer)
        dropped = struct.unpack("II", source.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    return capture.seen(dropped)
