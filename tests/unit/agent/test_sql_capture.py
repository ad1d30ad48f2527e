"""What a listener beside a database reads from packets (sql_capture), and what is counted of it per step of Rally."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest

from discovery_deploy.agent import sql_capture
from discovery_deploy.agent.sql_capture import FIN, SYN, UNREADABLE, Capture, Stream, kind_of, whole

CLIENT, SERVER = ("10.64.2.2", 40000), ("10.64.1.2", 3306)
LOGIN = struct.pack("<IIB23x", 0x8000 | 0x08, 1 << 24, 33) + b"keystone\0" + b"\x03abc" + b"keystone\0"


def mysql(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number]) + payload


def query(sql: str) -> bytes:
    return mysql(0, b"\x03" + sql.encode())


def ok(rows: int = 0, status: int = 0x0001) -> bytes:
    return mysql(1, bytes([0, rows, 0]) + struct.pack("<HH", status, 0))


def ip(source: tuple[str, int], destination: tuple[str, int], sequence: int, payload: bytes, flags: int = 0) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", source[1], destination[1], sequence % (1 << 32), 0, 5 << 4, flags, 0, 0, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40 + len(payload), 0, 0, 64, socket.IPPROTO_TCP, 0)
    padding = b"\0" * 6  # as an Ethernet frame may have
    return head + socket.inet_aton(source[0]) + socket.inet_aton(destination[0]) + tcp + payload + padding


class Talk:
    """A connection between a client and the server, seen on the server's host."""

    def __init__(self, capture: Capture, client: tuple[str, int] = CLIENT, start: int = 100) -> None:
        self.capture, self.client = capture, client
        self.next, self.answer_next, self.at_us = start, 5000, 0

    def connect(self, login: bytes = LOGIN) -> Talk:
        self.capture.packet(0, ip(self.client, SERVER, self.next, b"", SYN), False)
        self.next += 1
        self.answers(mysql(0, b"\x0a10.11\0"))
        self.asks(mysql(1, login))
        self.answers(ok(status=0x0002))
        return self

    def asks(self, data: bytes) -> None:
        self.at_us += 1
        self.capture.packet(self.at_us, ip(self.client, SERVER, self.next, data), False)
        self.next += len(data)

    def answers(self, data: bytes) -> None:
        self.capture.packet(self.at_us, ip(SERVER, self.client, self.answer_next, data), True)
        self.answer_next += len(data)


def seen(capture: Capture) -> list[tuple[str, str]]:
    """(user, kind) of each request."""
    return [(row[1], row[2]) for row in capture.rows]


def committed(capture: Capture) -> list[str]:
    return [row[2] for row in capture.rows if row[4]]


def test_every_command_of_a_connection_is_a_request_of_its_user() -> None:
    capture = Capture([3306])
    talk = Talk(capture).connect()
    for sql in ("SELECT 1", "  (select 2)", "/* who */ INSERT INTO t VALUES (1)", "COMMIT", "ROLLBACK"):
        talk.asks(query(sql))
        talk.answers(ok())
    talk.asks(mysql(0, b"\x0e"))
    talk.answers(ok())
    for command in (b"\x16SELECT ?", b"\x17\1\0\0\0", b"\x19\1\0\0\0", b"\x02keystone", b"\x1f", b"\x55", b"\x01"):
        talk.asks(mysql(0, command))
    kinds = ["SELECT", "SELECT", "INSERT", "COMMIT", "ROLLBACK", "PING", "STMT_PREPARE", "STMT_EXECUTE", "STMT_CLOSE"]
    assert seen(capture) == [("keystone", kind) for kind in [*kinds, "INIT_DB", "RESET_CONNECTION", "COM_85", "QUIT"]]
    assert [row[2] for row in capture.rows if not row[3]] == ["STMT_CLOSE", "QUIT"]


@pytest.mark.parametrize(
    ("conversation", "commits"),
    [
        ([("INSERT INTO t VALUES (1)", ok(1)), ("COMMIT", ok(0))], ["COMMIT"]),
        ([("DELETE FROM t", ok(0)), ("COMMIT", ok(0))], []),
        ([("INSERT INTO t VALUES (1)", ok(1)), ("ROLLBACK", ok(0)), ("COMMIT", ok(0))], []),
        ([("UPDATE t SET a = 1", ok(3)), ("ROLLBACK TO SAVEPOINT a", ok(0)), ("COMMIT", ok(0))], ["COMMIT"]),
        ([("INSERT INTO t VALUES (1) RETURNING id", mysql(1, b"\x01")), ("COMMIT", ok(0))], ["COMMIT"]),
        ([("INSERT INTO t VALUES (1)", mysql(1, b"\xff\x26\x04#23000Duplicate")), ("COMMIT", ok(0))], []),
        ([("SELECT 1", mysql(1, b"\x01")), ("COMMIT", ok(0))], []),
        ([("INSERT INTO t VALUES (1)", ok(1, status=0x0002)), ("SELECT 1", mysql(1, b"\x01"))], ["INSERT"]),
        ([("INSERT INTO t VALUES (1)", ok(1)), ("COMMIT", ok(0)), ("COMMIT", ok(0))], ["COMMIT"]),
    ],
)
def test_a_commit_writes_when_its_transaction_changed_rows(
    conversation: list[tuple[str, bytes]], commits: list[str]
) -> None:
    capture = Capture([3306])
    talk = Talk(capture).connect()
    for sql, answer in conversation:
        talk.asks(query(sql))
        talk.answers(answer)
    assert committed(capture) == commits


def test_a_request_in_many_segments_in_any_order_and_twice_is_one_at_the_time_of_the_last() -> None:
    data = query("SELECT '" + "x" * 500 + "'") + query("COMMIT")
    pieces = [(place, data[place : place + 170]) for place in range(0, len(data), 170)]
    assert len(pieces) == 4
    for order in permutations(pieces):
        capture = Capture([3306])
        talk = Talk(capture, start=(1 << 32) - 300).connect()  # sequence numbers begin anew meanwhile
        for at_us, (place, piece) in enumerate([*order, order[0]], 10):
            capture.packet(at_us, ip(CLIENT, SERVER, talk.next + place, piece), False)
        assert seen(capture) == [("keystone", "SELECT"), ("keystone", "COMMIT")]
        assert capture.rows[1][0] == 13


def test_a_connection_that_was_there_before_is_known_by_the_servers_list() -> None:
    capture = Capture([3306])
    capture.users[CLIENT] = "nova"
    talk = Talk(capture)
    talk.asks(query("SELECT 1"))
    assert seen(capture) == [("nova", "SELECT")]
    Talk(capture, start=7).connect()
    assert capture.users == {}, "the port may be another client's by now"


def test_what_begins_in_the_middle_of_a_request_is_told_and_the_next_one_is_read() -> None:
    capture = Capture([3306])
    talk = Talk(capture)
    talk.asks(query("SELECT " + "x" * 100)[40:])
    talk.asks(query("SELECT 1"))
    assert [kind for _, kind in seen(capture)] == [UNREADABLE, "SELECT"]


def test_an_encrypted_connection_is_told() -> None:
    capture = Capture([3306])
    talk = Talk(capture).connect(struct.pack("<IIB23x", 0x8000 | 0x0800, 1 << 24, 33))
    talk.asks(b"\x16\x03\x01\x02\x00\x01")
    assert {kind for _, kind in seen(capture)} == {UNREADABLE}


def test_a_segment_that_never_comes_is_given_up() -> None:
    stream = Stream(0)
    assert stream.fed(0, b"ab") == b"ab"
    found = b"".join(stream.fed(4 + place, b"x") for place in range(sql_capture.MOST_WAITING + 1))
    assert found == b"x" * (sql_capture.MOST_WAITING + 1)
    assert stream.lost


def test_only_the_databases_port_counts_each_packet_once() -> None:
    capture = Capture([3306])
    talk = Talk(capture).connect()
    packet = ip(CLIENT, SERVER, talk.next, query("SELECT 1"))
    capture.packet(1, packet, True)  # on loopback it is sent ...
    capture.packet(1, packet, False)  # ... and received here
    capture.packet(1, ip(CLIENT, (SERVER[0], 5000), 1, query("SELECT 1")), False)
    capture.packet(1, ip(CLIENT, SERVER, talk.next + 13, b"", FIN), False)
    capture.packet(1, b"\x60" + b"\0" * 60, False)  # IPv6
    assert seen(capture) == [("keystone", "SELECT")]


@pytest.mark.parametrize(("payload", "kind"), [(b"", "COM_-1"), (b"\x03", "QUERY"), (b"\x03;", "QUERY")])
def test_what_is_no_statement_has_a_kind_too(payload: bytes, kind: str) -> None:
    assert kind_of(payload) == kind


def test_whole_requests_are_told_from_pieces() -> None:
    assert whole(query("SELECT 1"))
    assert whole(query("SELECT 1") + query("ROLLBACK"))
    assert not whole(query("SELECT 1")[:-1])
    assert not whole(b"")
    assert not whole(mysql(2, b"password"))


def frames(*ports: tuple[int, int]) -> Iterator[bytes]:
    for source, destination in ports:
        yield ip(("127.0.0.1", source), ("127.0.0.1", destination), 1, b"x")


def run_filter(code: bytes, packet: bytes) -> bool:
    """What the kernel would do with a packet: the few instructions of classic BPF that are used."""
    program: list[tuple[Any, ...]] = list(struct.iter_unpack("HBBI", code))
    place, value, index = 0, 0, 0
    while True:
        operation, then, otherwise, number = program[place]
        place += 1
        if operation == 0x28:
            value = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
        elif operation == 0x30:
            value = packet[number]
        elif operation == 0xB1:
            index = (packet[number] & 15) * 4
        elif operation == 0x48:
            value = int.from_bytes(packet[index + number : index + number + 2], "big")
        elif operation == 0x15:
            place += then if value == number else otherwise
        else:
            return bool(number)


def test_the_kernel_passes_only_what_goes_to_or_comes_from_the_ports() -> None:
    code = sql_capture.filter_of([3306, 3307])
    passed = [run_filter(code, frame) for frame in frames((40000, 3306), (3307, 40000), (40000, 80), (33060, 22))]
    assert passed == [True, True, False, False]
    assert not run_filter(code, b"\x60" + b"\0" * 60)
