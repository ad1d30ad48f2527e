"""Lines in and out of the agent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from discovery_deploy.agent.conversation import Conversation


@pytest.fixture
def pipes() -> Iterator[tuple[int, int, Conversation]]:
    """Where to say something to it, where to hear what it says, and the conversation."""
    (heard, to), (answers, told) = os.pipe(), os.pipe()
    yield to, answers, Conversation(heard, told)
    for descriptor in (heard, to, answers, told):
        try:
            os.close(descriptor)
        except OSError:
            continue  # the test has closed it


def test_a_line_comes_alone_though_more_came_with_it(pipes: tuple[int, int, Conversation]) -> None:
    to, _, talk = pipes
    os.write(to, b"{}\nclock\nsto")
    assert talk.line() == b"{}"
    assert talk.has_line()
    assert talk.lines() == [b"clock"]
    assert not talk.has_line()
    os.write(to, b"p\n")
    assert talk.lines() == [b"stop"]
    assert not talk.ended


def test_the_end_is_heard(pipes: tuple[int, int, Conversation]) -> None:
    to, _, talk = pipes
    os.write(to, b"half")
    os.close(to)
    assert talk.line() == b"half"
    assert talk.ended
    assert talk.lines() == []


def test_all_that_follows_the_request_comes_in_pieces(pipes: tuple[int, int, Conversation]) -> None:
    to, _, talk = pipes
    os.write(to, b"{}\nfirst")
    assert talk.line() == b"{}"
    os.write(to, b" and\nsecond")
    os.close(to)
    assert b"".join(talk.blocks()) == b"first and\nsecond"


def test_what_it_says_are_lines_of_json(pipes: tuple[int, int, Conversation]) -> None:
    _, answers, talk = pipes
    talk.progress("half")
    talk.say([1])
    talk.result(None)
    talk.error("no", "try")
    assert [json.loads(line) for line in os.read(answers, 4096).splitlines()] == [
        {"progress": "half"}, {"said": [1]}, {"result": None}, {"error": {"what": "no", "advice": "try"}},
    ]  # fmt: skip
