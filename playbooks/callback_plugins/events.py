"""Writes what happens in a playbook as JSON lines, for the driver that runs it.

Ansible has removed what `no_log` hides before a callback sees a result; nothing else of a result is written than its
messages and what modules return as `report`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: events
type: notification
short_description: JSON lines of plays, tasks and results
description: Appends one JSON object per event to the file named by DISCOVERY_DEPLOY_EVENTS.
"""
LONGEST = 2000


def message_of(result: dict) -> str:
    """What went wrong, as one text: the module's message and what a program said."""
    if "censored" in result:
        return "the task handles secrets, so its output is hidden"
    parts = [result.get("msg"), result.get("module_stderr"), result.get("stderr") or result.get("stdout")]
    parts += [message_of(item) for item in result.get("results", ()) if item.get("failed") or item.get("unreachable")]
    texts = [str(part).strip() for part in parts if part]
    return "\n".join(dict.fromkeys(texts))[-LONGEST:]


class CallbackModule(CallbackBase):
    """One line per event: `play`, `task`, `result` (one host, one task) and `report`."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "events"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.stream = Path(os.environ["DISCOVERY_DEPLOY_EVENTS"]).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def _write(self, event: str, **details) -> None:
        self.stream.write(json.dumps({"event": event, "at": round(time.time(), 3), **details}) + "\n")

    def v2_playbook_on_play_start(self, play):
        """A play begins, on these hosts."""
        hosts = play.get_variable_manager()._inventory.get_hosts(play.hosts)
        self._write("play", name=play.get_name(), hosts=sorted(host.name for host in hosts))

    def v2_playbook_on_task_start(self, task, is_conditional):
        """A task begins."""
        self._write("task", name=task.get_name().replace(" : ", ": ", 1))

    def v2_playbook_on_handler_task_start(self, task):
        """A handler begins."""
        self.v2_playbook_on_task_start(task, is_conditional=False)

    def _result(self, status: str, result) -> None:
        content = result._result
        failed = status in ("failed", "unreachable")
        self._write("result", host=result._host.name, status=status, message=message_of(content) if failed else "")
        if "report" in content:
            self._write("report", host=result._host.name, content=content["report"])

    def v2_playbook_on_stats(self, stats):
        """The end."""
        self._write("end")

    def v2_runner_on_ok(self, result):
        """A host did it."""
        self._result("changed" if result._result.get("changed") else "ok", result)

    def v2_runner_on_skipped(self, result):
        """It does not concern a host."""
        self._result("skipped", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        """It failed on a host."""
        self._result("failed", result)

    def v2_runner_on_unreachable(self, result):
        """A host was lost."""
        self._result("unreachable", result)
