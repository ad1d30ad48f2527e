"""What the agent hears and says: lines of JSON on standard input and output. Standard library only.

The first line in is the request; what may follow is the verb's business. Lines out are {"progress": text}, {"said": a
value} while a verb goes on, and in the end {"result": a value} or {"error": {"what", "advice"}}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

BLOCK_BYTES = 1 << 20


class Conversation:
    """With whoever asked.

    Args:
        heard: descriptor to read from; `select` tells when there is more on it.
        told: descriptor to write to.
    """

    def __init__(self, heard: int = 0, told: int = 1) -> None:
        self.heard = heard
        self.told = told
        self.ended = False
        """Whether nothing more will be heard."""
        self._rest = b""

    def fileno(self) -> int:
        """Descriptor on which more is heard."""
        return self.heard

    def _read(self) -> None:
        more = os.read(self.heard, BLOCK_BYTES)
        self.ended = not more
        self._rest += more

    def line(self) -> bytes:
        """The next line, without its end; what there is, when nothing more will be heard."""
        while b"\n" not in self._rest and not self.ended:
            self._read()
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def has_line(self) -> bool:
        """Whether a whole line was heard already, of which `select` says nothing."""
        return b"\n" in self._rest

    def lines(self) -> list[bytes]:
        """Whole lines that were heard meanwhile; waits for something to be heard."""
        if b"\n" not in self._rest:
            self._read()
        *whole, self._rest = self._rest.split(b"\n")
        return whole

    def blocks(self) -> Iterator[bytes]:
        """All that is still to be heard, in pieces."""
        while self._rest or not self.ended:
            block, self._rest = self._rest, b""
            if block:
                yield block
            self._read()

    def progress(self, text: str) -> None:
        """A short line for the person who waits."""
        self._tell("progress", text)

    def say(self, value: Any) -> None:
        """Something that is known before the end."""
        self._tell("said", value)

    def result(self, value: Any) -> None:
        """The end."""
        self._tell("result", value)

    def error(self, what: str, advice: str = "") -> None:
        """The end, when it cannot be done."""
        self._tell("error", {"what": what, "advice": advice})

    def _tell(self, kind: str, value: Any) -> None:
        text = json.dumps({kind: value}, separators=(",", ":")).encode() + b"\n"
        while text:
            text = text[os.write(self.told, text) :]
