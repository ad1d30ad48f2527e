"""Waits for services end with the unit that has failed, and say why it has."""

from __future__ import annotations

import subprocess
import uuid

import pytest

from tests.unit.playbooks.test_role_modules import load

watched_units = load("module_utils/watched_units.py")

SHOWN = """\
Id=keystone.service
ActiveState=activating
NRestarts=2

Id=nova-api.service
ActiveState=active
NRestarts=0
"""
UWSGI = """\
*** Operational MODE: single process ***
Traceback (most recent call last):
  File "/x/keystone/server/wsgi.py", line 3, in <module>
    import keystone.server.flask
ModuleNotFoundError: No module named 'first'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/x/keystone/token/provider.py", line 80, in __init__
    super().__init__(CONF.token.provider)
                     ^^^^^^^^^^^^^^^^^^^
RuntimeError: No 'keystone.token.provider' driver found, looking for 'nosuch'
unable to load app 0 (mountpoint='') (callable not found or import error)
*** no app loaded. GAME OVER ***
keystone.service: Main process exited, code=exited, status=22/n/a
"""
OSLO = """\
2026-11-30 18:00:01.001 77 INFO nova.service [-] Starting
2026-11-30 18:00:01.123 77 ERROR nova.service [None req-1 - -] Traceback (most recent call last):
2026-11-30 18:00:01.124 77 ERROR nova.service [None req-1 - -]   File "/x/nova/service.py", line 9, in start
2026-11-30 18:00:01.124 77 ERROR nova.service [None req-1 - -]     raise ValueError(name)
2026-11-30 18:00:01.125 77 ERROR nova.service [None req-1 - -] ValueError: a port was expected
2026-11-30 18:00:01.126 77 ERROR nova.service [None req-1 - -]
2026-11-30 18:00:02.000 77 INFO nova.service [-] Ended
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (UWSGI, "RuntimeError: No 'keystone.token.provider' driver found, looking for 'nosuch'"),
        (OSLO, "ValueError: a port was expected"),
        ("Starting\nEnded\n", ""),
        ("Traceback (most recent call last):\n  File 'cut off'", ""),
        ("", ""),
    ],
)
def test_the_cause_is_the_last_line_of_the_last_traceback(log: str, expected: str) -> None:
    assert watched_units.cause(log) == expected


def test_states_are_read_from_blocks() -> None:
    assert watched_units.states(SHOWN) == {"keystone.service": ("activating", 2), "nova-api.service": ("active", 0)}
    assert watched_units.states("") == {}


def test_a_failed_unit_ends_the_wait_and_one_that_is_restarted_again_and_again() -> None:
    before = watched_units.states(SHOWN)
    assert watched_units.failure(before, before) == ""
    assert watched_units.failure(before, {"keystone.service": ("failed", 2)}) == "keystone.service has failed"
    most = watched_units.MOST_RESTARTS
    assert watched_units.failure(before, {"keystone.service": ("activating", 1 + most)}) == ""
    again = watched_units.failure(before, {"keystone.service": ("activating", 2 + most)})
    assert again == f"keystone.service was restarted {most} times and does not stay up"
    assert watched_units.failure(before, {"nova-api.service": ("active", 50)}) == ""


def test_a_look_raises_with_what_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([SHOWN, SHOWN.replace("activating", "failed"), SHOWN.replace("activating", "failed"), UWSGI])
    monkeypatch.setattr(watched_units, "output", lambda command: next(answers))
    watch = watched_units.Watch(["keystone.service", "nova-api.service"])
    watch.look()  # too early to ask again
    watch.looked_at -= watched_units.LOOK_EVERY_S
    with pytest.raises(watched_units.UnitError, match=r"keystone\.service has failed"):
        watch.look()
    told = watch.told()
    assert told["state"] == "keystone.service is failed, nova-api.service is active"
    assert told["cause"].endswith("looking for 'nosuch'")
    assert told["journal"] == UWSGI.splitlines()
    assert "GAME OVER" in told["stderr"]


def test_output_fails_loudly() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        watched_units.output(["false"])
    assert watched_units.output(["echo", word := uuid.uuid4().hex]).strip() == word


def test_no_units_ask_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_units, "output", lambda command: pytest.fail("asked"))
    watch = watched_units.Watch([])
    watch.looked_at = 0.0
    watch.look()
    assert watch.told()["cause"] == ""
