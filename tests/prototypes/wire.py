"""A TCP proxy in front of MariaDB that counts the requests of the MySQL protocol and delays both directions.

It knows of the protocol only that a client's packet with sequence number 0 begins a request, and what COM_* it is. That
shows COM_PING, which no log of MariaDB shows. Every byte is handed on `delay` seconds after it came, each direction for
itself, so that requests sent without waiting stay together: a WAN with RTT = 2 x delay and endless bandwidth.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

COMMANDS = {0x01: "QUIT", 0x02: "INIT_DB", 0x03: "QUERY", 0x0E: "PING", 0x1F: "RESET"}


@dataclass(frozen=True)
class Request:
    """One request of a client."""

    connection: int
    text: str
    """The SQL, or the name of the command where there is none."""

    @property
    def kind(self) -> str:
        """`SELECT`, `ROLLBACK`, `PING`, ...: the first word."""
        return self.text.split(None, 1)[0].upper() if self.text.strip() else "QUERY"


@dataclass
class _Packets:
    """Cuts what a client sends into packets. Pure."""

    buffer: bytearray = field(default_factory=bytearray)

    def fed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The packets complete by now: (sequence number, payload)."""
        self.buffer += data
        found = []
        while len(self.buffer) >= 4:
            length = int.from_bytes(self.buffer[:3], "little")
            if len(self.buffer) < 4 + length:
                break
            found.append((self.buffer[3], bytes(self.buffer[4 : 4 + length])))
            del self.buffer[: 4 + length]
        return found


def request_text(payload: bytes) -> str:
    """What a request's payload asks: its SQL, or the command's name. Pure."""
    if payload[:1] == b"\x03":
        return payload[1:].decode("utf-8", "replace")
    return COMMANDS.get(payload[0] if payload else -1, "OTHER")


class Wire:
    """The proxy, in a process of its own.

    Not in a thread of the process that is tested: there, Python's garbage collector may close a session in any thread,
    and a proxy that waits for the answer to its own ROLLBACK waits for ever.
    """

    def __init__(self, server_port: int, listen_port: int):
        command = [sys.executable, "-S", __file__, str(server_port), str(listen_port)]
        self._proxy = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._delay_s = 0.0
        self._told("ready")

    @property
    def delay_s(self) -> float:
        """One way, in seconds; holds for what comes from now on."""
        return self._delay_s

    @delay_s.setter
    def delay_s(self, seconds: float) -> None:
        self._delay_s = seconds
        self._told(f"delay {seconds}")

    def taken(self) -> list[Request]:
        """The requests since the last call."""
        return [Request(**each) for each in json.loads(self._told("taken"))]

    def _told(self, line: str) -> str:
        if self._proxy.stdin is None or self._proxy.stdout is None:
            raise RuntimeError("the proxy has no pipes")
        self._proxy.stdin.write(line + "\n")
        self._proxy.stdin.flush()
        answer = self._proxy.stdout.readline()
        if not answer:
            raise RuntimeError(f"the proxy has ended: {self._proxy.wait()}")
        return answer


class Proxy:
    """What runs in that process; it ends with its standard input."""

    def __init__(self, server_port: int, listen_port: int):
        self._delay_s = 0.0
        self._requests: list[Request] = []
        self._connections = 0
        self._ports = (server_port, listen_port)

    async def run(self) -> None:
        """Serve until standard input ends."""
        server = await asyncio.start_server(self._accepted, "127.0.0.1", self._ports[1])
        orders = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        async with server:
            while line := (await orders.readline()).decode().split():
                print(self._answer(line), flush=True)

    def _answer(self, line: list[str]) -> str:
        if line[0] == "delay":
            self._delay_s = float(line[1])
        if line[0] != "taken":
            return "done"
        requests, self._requests = self._requests, []
        return json.dumps([asdict(request) for request in requests])

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number, packets = self._connections, _Packets()

        def seen(data: bytes) -> None:
            for sequence, payload in packets.fed(data):
                if sequence == 0:
                    self._requests.append(Request(number, request_text(payload)))

        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._ports[0])
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self._passed(reader, back, seen), self._passed(there, writer, lambda _: None))

    async def _passed(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Callable[[bytes], None]
    ) -> None:
        """Hand on what comes, late; then the end of it."""
        loop, due = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

        async def hand_on() -> None:
            while True:
                when, data = await due.get()
                await asyncio.sleep(max(0.0, when - loop.time()))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        handing = asyncio.create_task(hand_on())
        data = b"?"
        while data:
            try:
                data = await reader.read(1 << 16)
            except OSError:
                data = b""
            seen(data)
            due.put_nowait((loop.time() + self._delay_s, data))
        await handing


if __name__ == "__main__":
    asyncio.run(Proxy(int(sys.argv[1]), int(sys.argv[2])).run())
