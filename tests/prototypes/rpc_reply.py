"""Does a call end when its reply comes, and does everything else go on meanwhile?

Runs under the OpenStack environment's Python, with real threads or with eventlet's green ones.

    python rpc_reply.py threads|eventlet [wakes|polls]

`wakes` (default): the patched oslo.messaging is expected; `polls`: the release's own, for comparison.
Prints one JSON object; ends with a traceback when something is not as it should be.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

MODEL, EXPECTED = sys.argv[1], (sys.argv[2:] or ["wakes"])[0]
if MODEL == "eventlet":
    import eventlet

    eventlet.monkey_patch()

import queue  # noqa: E402
import threading  # noqa: E402

import oslo_messaging  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_messaging._drivers import amqpdriver  # noqa: E402

CALLS = 20
HANDLER_S = 0.01


def native_threading() -> tuple[Any, Any]:
    """The module with real threads, also where eventlet has put green ones in its place."""
    if MODEL == "eventlet":
        from eventlet import patcher

        return patcher.original("threading"), patcher.original("time")
    return threading, time


class Beats:
    """A beat every 10 ms, like a heartbeat's thread; the longest pause between two is what counts."""

    def __init__(self, threads: Any, clock: Any):
        self.longest = 0.0
        self._on = True
        self._clock = clock
        self._thread = threads.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Beats:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._thread.join()

    def _run(self) -> None:
        last = self._clock.monotonic()
        while self._on:
            self._clock.sleep(0.01)
            now = self._clock.monotonic()
            self.longest = max(self.longest, now - last)
            last = now


def later(seconds: float, act: Callable[..., object], *args: object) -> threading.Thread:
    def run() -> None:
        time.sleep(seconds)
        act(*args)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def timed(act: Callable[..., Any], *args: object) -> tuple[Any, float]:
    start = time.monotonic()
    try:
        return act(*args), time.monotonic() - start
    except oslo_messaging.MessagingTimeout:
        return None, time.monotonic() - start


def check_wait() -> float:
    """Seconds from a reply's arrival to the end of the wait, the median of CALLS waits."""
    waiters = amqpdriver.ReplyWaiters()
    late: list[float] = []
    for number in range(CALLS):
        waiters.add(number)
        thread = later(HANDLER_S, waiters.put, number, {"result": number, "ending": True})
        got, took = timed(waiters.get, number, 5)
        assert got["result"] == number, got
        late.append(took - HANDLER_S)
        thread.join()
        waiters.remove(number)
    return sorted(late)[CALLS // 2]


def check_order() -> None:
    """Messages that came before the look, and several for one call, are had in their order and at once."""
    waiters = amqpdriver.ReplyWaiters()
    waiters.add("m")
    for number in range(5):
        waiters.put("m", {"result": number})
    taken = [timed(waiters.get, "m", 1) for _ in range(5)]
    assert [message["result"] for message, _ in taken] == list(range(5)), taken
    assert max(took for _, took in taken) < 0.1, taken
    waiters.put("another", {"result": 0})  # nobody waits for it: dropped, no error


def check_timeout() -> float:
    """A call without a reply ends with its error, in time; a late reply harms nobody."""
    waiters = amqpdriver.ReplyWaiters()
    waiters.add("m")
    got, took = timed(waiters.get, "m", 0.8)
    assert got is None, got
    assert 0.75 <= took <= 1.6, took
    waiters.remove("m")
    waiters.put("m", {"result": 0})
    return took


def check_many() -> float:
    """200 calls at once, each answered from another thread, with replies between look and wait: none is lost."""
    waiters = amqpdriver.ReplyWaiters()
    results: queue.Queue[tuple[int, Any, float]] = queue.Queue()

    def call(number: int) -> None:
        waiters.add(number)
        answer = later(0.0005 * (number % 7), waiters.put, number, {"result": number})
        got, took = timed(waiters.get, number, 10)
        answer.join()
        results.put((number, got and got["result"], took))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [results.get() for _ in threads]
    assert all(number == got for number, got, _ in taken), taken
    return max(took for _, _, took in taken)


def check_lost_wake_up() -> float:
    """A message whose wake-up got lost (lp-2035113's kind of trouble) is found all the same, after at most 0.5 s."""
    waiters = amqpdriver.ReplyWaiters()
    waiters.add("m")
    replies = waiters._queues["m"]
    put = replies._messages.append if EXPECTED == "wakes" else replies.put
    later(0.05, put, {"result": 1})
    got, took = timed(waiters.get, "m", 5)
    assert got == {"result": 1}, got
    assert took < 1.2, took
    return took


def check_beats() -> float:
    """While a call waits, green threads and real threads (a heartbeat in a pthread) go on, also sharing a lock."""
    waiters = amqpdriver.ReplyWaiters()
    waiters.add("m")
    native, clock = native_threading()
    lock = threading.Lock()

    def hold() -> None:
        for _ in range(50):
            with lock:
                time.sleep(0.01)

    with Beats(threading, time) as green, Beats(native, clock) as real:
        holders = [threading.Thread(target=hold, daemon=True) for _ in range(2)]
        for holder in holders:
            holder.start()
        later(1.5, waiters.put, "m", {"result": 1})
        timed(waiters.get, "m", 5)
        for holder in holders:
            holder.join()
    assert green.longest < 0.3, green.longest
    assert real.longest < 0.3, real.longest
    return max(green.longest, real.longest)


class Endpoint:
    """The callee."""

    target = oslo_messaging.Target(version="1.0")

    def echo(self, context: object, number: int) -> int:
        time.sleep(HANDLER_S)
        return number


def check_calls() -> float:
    """Whole calls through the driver that RabbitMQ's users use, over kombu's broker in memory: median seconds."""
    conf = cfg.CONF
    conf([])
    transport = oslo_messaging.get_rpc_transport(conf, url="kombu+memory:////")
    server = oslo_messaging.get_rpc_server(
        transport,
        oslo_messaging.Target(topic="t", server="s"),
        [Endpoint()],
        executor="eventlet" if MODEL == "eventlet" else "threading",
    )
    server.start()
    client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="t", version="1.0"), timeout=20)
    took: list[float] = []
    for number in range(CALLS):
        got, seconds = timed(lambda: client.call({}, "echo", number=number))  # noqa: B023
        assert got == number, got
        took.append(seconds)
    server.stop()
    server.wait()
    return sorted(took)[CALLS // 2]


def main() -> None:
    check_order()
    seen = {
        "wait_s": check_wait(),
        "call_s": check_calls(),
        "timeout_s": check_timeout(),
        "slowest_of_200_s": check_many(),
        "lost_wake_up_s": check_lost_wake_up(),
        "longest_pause_between_beats_s": check_beats(),
    }
    if EXPECTED == "wakes":
        assert seen["wait_s"] < 0.05, seen
    print(json.dumps({"model": MODEL, "seen": {key: round(value, 4) for key, value in seen.items()}}))


if __name__ == "__main__":
    main()
