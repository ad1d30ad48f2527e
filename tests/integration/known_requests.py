"""Asks a database for what a test knows; run on a host by the OpenStack environment's Python, which has PyMySQL.

Its argument is Keystone's configuration file, which says how to reach the database.
"""

from __future__ import annotations

import sys
from configparser import RawConfigParser
from urllib.parse import urlsplit

ASKED = ["PING", "SELECT", "SELECT", "ROLLBACK", "UPDATE", "COMMIT", "CREATE", "INSERT", "COMMIT", "QUIT"]
"""What it asks, without what PyMySQL sets at first; the last COMMIT alone has something to write."""
LONG = 300_000
"""Bytes of one statement, which no packet holds."""


def main(configuration: str) -> None:
    """Connect, ask, leave."""
    import pymysql  # type: ignore[import-untyped]  # late: only where it runs is it there

    known = RawConfigParser(strict=False)
    known.read(configuration)
    url = urlsplit(known["database"]["connection"])
    user, _, password = url.netloc.rpartition("@")[0].partition(":")
    database = url.path.strip("/")
    connection = pymysql.connect(host=url.hostname, port=url.port or 3306, user=user, password=password, db=database)
    with connection, connection.cursor() as cursor:
        connection.ping(reconnect=False)
        cursor.execute("SELECT 1")
        cursor.execute(f"/* long */ SELECT LENGTH('{'x' * LONG}')")
        connection.rollback()
        cursor.execute("UPDATE project SET description = 'changed' WHERE id = 'nothing such'")
        connection.commit()
        cursor.execute("CREATE TEMPORARY TABLE known (number INT)")
        cursor.execute("INSERT INTO known VALUES (1)")
        connection.commit()


if __name__ == "__main__":
    main(sys.argv[1])
