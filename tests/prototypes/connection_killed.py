"""A connection that dies between sessions is replaced unseen; one that dies in a transaction is an error, as before.

Runs inside the base image under the OpenStack environment's Python, in namespaces of its own (see sandbox.py), with
sessions of oslo.db's enginefacade over a real MariaDB. Prints one line for each thing seen; ends with a traceback when
something is not as it should be.

    python connection_killed.py [eventlet]
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

if sys.argv[1:] == ["eventlet"]:
    import eventlet

    eventlet.monkey_patch()

import sandbox
import sqlalchemy as sa
import wire
from oslo_db import exception
from oslo_db.sqlalchemy import enginefacade
from sqlalchemy import orm

PROXY_PORT = 3307
Base = orm.declarative_base()


class Entry(Base):  # type: ignore[misc, valid-type]
    """A row that must be there once or not at all."""

    __tablename__ = "entries"
    __table_args__ = {"mysql_engine": "InnoDB"}
    id = sa.Column(sa.Integer, primary_key=True)
    text = sa.Column(sa.String(40), nullable=False)


class SentAgain(logging.Handler):
    """Counts what oslo.db says about statements that it sends again."""

    times = 0

    def emit(self, record: logging.LogRecord) -> None:
        SentAgain.times += "is sent again" in record.getMessage()


@enginefacade.transaction_context_provider
class Context:
    """What enginefacade hangs its session on."""


class Database:
    """A MariaDB, the counting proxy before it, and an oslo.db engine over both."""

    def __init__(self) -> None:
        self.server = sandbox.MariaDB()
        self.server.sql("CREATE DATABASE proto")
        self.proxy = wire.Wire(sandbox.PORT, PROXY_PORT)
        self._facade = enginefacade.transaction_context()
        self._facade.configure(connection=sandbox.url(PROXY_PORT, "proto"), max_retries=0, max_pool_size=2)
        self.engine = self._facade.writer.get_engine()
        Base.metadata.create_all(self.engine)
        self._context = Context()

    @contextmanager
    def reader(self) -> Iterator[orm.Session]:
        with self._facade.reader.using(self._context) as session:
            yield session

    @contextmanager
    def writer(self) -> Iterator[orm.Session]:
        with self._facade.writer.using(self._context) as session:
            yield session

    def rows(self) -> list[str]:
        """Texts of the rows, asked past everything that is tested."""
        return [text for (text,) in self.server.sql("SELECT text FROM proto.entries ORDER BY id")]

    def sent(self) -> list[str]:
        """Kinds of the requests since the last call."""
        time.sleep(0.05)  # what was sent without waiting arrives, too
        return [request.kind for request in self.proxy.taken()]


def count(session: orm.Session) -> int:
    return int(session.query(Entry).count())


def add(session: orm.Session, text: str) -> None:
    session.add(Entry(text=text))
    session.flush()


def check_requests(database: Database) -> None:
    """A warm reader asks one SELECT and, unwaited, one ROLLBACK; a writer its statement and COMMIT."""
    for _ in range(2):
        with database.reader() as session:
            count(session)
    database.sent()
    with database.reader() as session:
        count(session)
    assert (sent := database.sent()) == ["SELECT", "ROLLBACK"], sent
    with database.writer() as session:
        add(session, "counted")
    assert (sent := database.sent()) == ["INSERT", "COMMIT"], sent
    with database.writer():
        pass
    assert (sent := database.sent()) == [], sent


def check_waits(database: Database) -> None:
    """Over 25 ms one way, ten readers one after the other wait ten round trips, not more."""
    with database.reader() as session:
        count(session)
    database.proxy.delay_s = 0.025
    waited = float("inf")
    for _ in range(4):  # a busy machine adds to some of them
        start = time.monotonic()
        for _ in range(10):
            with database.reader() as session:
                count(session)
        waited = min(waited, (time.monotonic() - start) / 0.05)
    database.proxy.delay_s = 0.0
    time.sleep(0.1)
    assert 10 <= waited < 15, waited


def check_snapshot(database: Database) -> None:
    """Within a session all reads see one moment; the next session sees what was committed since (ROLLBACK was sent)."""
    with database.reader() as session:
        before = count(session)
        database.server.sql("INSERT INTO proto.entries (text) VALUES ('from elsewhere')")
        assert count(session) == before
    with database.reader() as session:
        assert count(session) == before + 1


def check_idle_holds_nothing(database: Database) -> None:
    """When sessions have ended, the server has no open transaction and no lock of theirs on a table's definition."""
    with database.reader() as session:
        count(session)
    database.sent()
    assert database.server.sql("SELECT COUNT(*) FROM information_schema.innodb_trx") == [["0"]]
    start = time.monotonic()
    database.server.sql("SET lock_wait_timeout = 5; ALTER TABLE proto.entries COMMENT = 'changed'")
    assert time.monotonic() - start < 4


def check_rolled_back(database: Database) -> None:
    """What a failed writer wrote is gone, also to a session that follows at once on the same connection."""

    def fail() -> None:
        with database.writer() as session:
            add(session, "never")
            raise RuntimeError("on purpose")

    expect(RuntimeError, fail)
    with database.reader() as session:
        assert session.query(Entry).filter_by(text="never").count() == 0
    assert "never" not in database.rows()


def check_error_then_reuse(database: Database) -> None:
    """After a statement that failed, the session's end still rolls back what it wrote."""

    def fail() -> None:
        with database.writer() as session:
            add(session, "never")
            session.execute(sa.text("INSERT INTO entries (id, text) SELECT id, text FROM entries"))

    expect(exception.DBDuplicateEntry, fail)
    with database.writer() as session:
        add(session, "after an error")
    assert database.rows().count("after an error") == 1
    assert "never" not in database.rows()


def lost_between(database: Database, lose: Callable[[], object], name: str) -> None:
    """A reader and a writer after a loss between sessions: both work, the row is there once.

    The loss is known before the first statement is sent, which is not sent twice.
    """
    SentAgain.times = 0
    lose()
    time.sleep(0.5)  # until the end of the connection is here, also on a busy machine
    with database.reader() as session:
        count(session)
    lose()
    time.sleep(0.5)
    with database.writer() as session:
        add(session, name)
    assert database.rows().count(name) == 1, database.rows()
    assert SentAgain.times == 0, SentAgain.times


def lost_unseen(database: Database, name: str) -> None:
    """The end arrives only after the statement has left: nobody could know; the first statement is sent again.

    The proxy holds back what the server says for longer than the session takes to begin.
    """
    SentAgain.times = 0
    for act in (count, lambda session: add(session, name)):
        with database.reader() as session:
            count(session)
        time.sleep(0.1)
        database.proxy.delay_s = 0.2
        database.server.kill_connections()
        with database.writer() as session:
            database.proxy.delay_s = 0.2
            act(session)
            database.proxy.delay_s = 0.0
        time.sleep(0.3)
    assert SentAgain.times == 2, SentAgain.times
    assert database.rows().count(name) == 1, database.rows()


def lost_within(database: Database, lose: Callable[[], object], name: str) -> None:
    """In the middle of a transaction: an error, nothing of it written, and the next session works."""

    def fail() -> None:
        with database.writer() as session:
            add(session, name + " 1")
            lose()
            add(session, name + " 2")

    expect(exception.DBConnectionError, fail)
    assert not [text for text in database.rows() if text.startswith(name)], database.rows()

    def read_and_write() -> None:
        with database.writer() as session:
            count(session)
            lose()
            add(session, name + " 3")

    expect(exception.DBConnectionError, read_and_write)
    assert not [text for text in database.rows() if text.startswith(name)], database.rows()
    with database.writer() as session:
        add(session, "after " + name)
    assert database.rows().count("after " + name) == 1


def lost_before_commit(database: Database) -> None:
    """COMMIT is never sent twice: the error is the caller's, and the row is not there."""

    def fail() -> None:
        with database.writer() as session:
            add(session, "uncommitted")
            database.server.kill_connections()

    expect(exception.DBConnectionError, fail)
    assert "uncommitted" not in database.rows()


def not_repeated(database: Database) -> None:
    """A first statement that the server might not undo is not sent again."""

    def fail() -> None:
        with database.writer() as session:
            session.execute(sa.text("CALL change_something()"))

    database.server.sql("USE proto; CREATE PROCEDURE change_something() SELECT SLEEP(0)")
    with database.reader() as session:
        count(session)
    time.sleep(0.1)
    database.proxy.delay_s = 0.3
    database.server.kill_connections()
    database.sent()
    expect(exception.DBConnectionError, fail)
    database.proxy.delay_s = 0.0
    assert database.sent().count("CALL") == 1


def never_there(database: Database) -> None:
    """With the server down, a session ends with its error at once; with the server back, the next one works."""
    database.server.stop()

    def fail() -> None:
        with database.reader() as session:
            count(session)

    expect(exception.DBConnectionError, fail)
    expect(exception.DBConnectionError, fail)
    database.server.start()
    with database.reader() as session:
        count(session)


def expect(error: type[Exception], act: Callable[[], object]) -> None:
    """Raises AssertionError unless `act` ends with this error."""
    try:
        act()
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


def main() -> None:
    """See the module."""
    sandbox.bare_environment()
    logger = logging.getLogger("oslo_db.sqlalchemy.roundtrips")
    logger.addHandler(SentAgain())
    logger.setLevel(logging.INFO)
    database = Database()
    kill, restart = database.server.kill_connections, database.server.restart
    checks: dict[str, Callable[[], None]] = {
        "requests of a session": lambda: check_requests(database),
        "round trips waited for": lambda: check_waits(database),
        "one snapshot in a session, a new one in the next": lambda: check_snapshot(database),
        "an idle connection holds nothing": lambda: check_idle_holds_nothing(database),
        "a failed writer leaves nothing": lambda: check_rolled_back(database),
        "an error and the session after it": lambda: check_error_then_reuse(database),
        "killed between sessions": lambda: lost_between(database, kill, "killed between"),
        "server restarted between sessions": lambda: lost_between(database, restart, "restarted between"),
        "killed, and nobody could know": lambda: lost_unseen(database, "unseen"),
        "killed within a transaction": lambda: lost_within(database, kill, "killed within"),
        "server restarted within a transaction": lambda: lost_within(database, restart, "restarted within"),
        "killed before COMMIT": lambda: lost_before_commit(database),
        "a statement that is not repeated": lambda: not_repeated(database),
        "no server": lambda: never_there(database),
    }
    for name, check in checks.items():
        check()
        print(f"ok: {name}", flush=True)


if __name__ == "__main__":
    main()
