"""Ansible module: whether a site's Keystone does what it is for, after every worker of it has been woken."""

from __future__ import annotations

import concurrent.futures
import socket
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cloud import CloudError, authenticate, request, worker_requests
from ansible.module_utils.watched_units import UnitError, Watch

DOCUMENTATION = """
module: keystone_check
short_description: Keystone of a site answers, every worker is warm, and users of other sites are known
description:
  - With C(peer) empty, empties the site's memcached, waits until the administrator gets a token whose catalogue has all
    regions, asks until every worker process has answered (the first request of a process costs a login to the
    database), and makes the site's user C(check-<site>).
  - With a C(peer), gets a token for the peer's user here, and validates it here and at the peer.
options:
  site: {description: The site., type: str, required: true}
  urls: {description: Site -> URL of its Keystone., type: dict, required: true}
  regions: {description: Region -> URL of its Keystone., type: dict, default: {}}
  peer: {description: Another site whose check user is asked for., type: str, default: ''}
  admin_password: {description: Of the user admin., type: str, required: true}
  check_password: {description: Of the check users., type: str, required: true}
  memcached: {description: Address and port of the site's memcached; empty for none., type: str, default: ''}
  statistics: {description: Socket of uwsgi's statistics., type: path, default: /run/keystone/statistics}
  limit_s: {description: Seconds until it is given up., type: int, default: 120}
"""
PAUSE_S = 0.1


def keep_trying(act, until: float, look=lambda: None):
    """The result of `act`, tried until it succeeds; its last CloudError when the time is over.

    `look` is called after each failure; what it raises ends the wait.
    """
    while True:
        try:
            return act()
        except CloudError:
            if time.monotonic() > until:
                raise
            look()
            time.sleep(PAUSE_S)


def flush(memcached: str) -> None:
    """Empty a memcached: objects of a database that was replaced must not be believed."""
    address, _, port = memcached.rpartition(":")
    try:
        with socket.create_connection((address, int(port)), timeout=10) as connection:
            connection.sendall(b"flush_all\r\n")
            answer = connection.recv(64)
    except OSError as error:
        raise CloudError(f"memcached at {memcached}: {error}") from error
    if answer.strip() != b"OK":
        raise CloudError(f"memcached at {memcached}: flush_all was answered by {answer!r}")


def warm(url: str, token: str, statistics: str, until: float) -> int:
    """Ask the database through Keystone, as often at once as it has workers, until each has answered twice.

    Returns the number of workers. No passwords: checking one takes a third of a second of a processor.
    """

    def ask(_number: int) -> None:
        request("GET", f"{url}/users?domain_id=default&name=admin", token)

    while True:
        answered = worker_requests(statistics)
        if min(answered) >= 2:
            return len(answered)
        if time.monotonic() > until:
            raise CloudError(f"workers that never answered: {answered.count(0)} of {len(answered)}")
        with concurrent.futures.ThreadPoolExecutor(len(answered)) as pool:
            list(pool.map(ask, range(len(answered))))


def make_user(url: str, token: str, name: str, password: str) -> None:
    """A user of the default domain with this password; one who has it is left alone (a change revokes tokens)."""
    _, found = request("GET", f"{url}/users?domain_id=default&name={name}", token)
    if not found["users"]:
        request("POST", f"{url}/users", token, {"user": {"name": name, "domain_id": "default", "password": password}})
        return
    try:
        authenticate(url, name, password)
    except CloudError:
        user = found["users"][0]["id"]
        request("PATCH", f"{url}/users/{user}", token, {"user": {"password": password}})


def catalogue_lacks(catalogue: list[dict], urls: dict[str, str]) -> list[str]:
    """Regions of which a token's catalogue has no public identity endpoint."""
    endpoints = [
        (endpoint["region_id"], endpoint["interface"], endpoint["url"])
        for service in catalogue
        if service["type"] == "identity"
        for endpoint in service["endpoints"]
    ]
    return [site for site, url in sorted(urls.items()) if (site, "public", url) not in endpoints]


def prepare(site: str, urls: dict[str, str], values: dict, until: float, look) -> dict:
    """Wait for Keystone, warm every worker, make the site's check user."""
    url = urls[site]
    if values["memcached"]:
        keep_trying(lambda: flush(values["memcached"]), until, look)
    token, said = keep_trying(lambda: authenticate(url, "admin", values["admin_password"], "admin"), until, look)
    lacking = catalogue_lacks(said["catalog"], values["regions"])
    if lacking:
        raise CloudError(f"{url}: the catalogue has no identity endpoint for: {', '.join(lacking)}")
    workers = warm(url, token, values["statistics"], until)
    make_user(url, token, f"check-{site}", values["check_password"])
    return {"site": site, "workers": workers}


def check(site: str, peer: str, urls: dict[str, str], values: dict, until: float) -> dict:
    """A user made at the peer gets a token here, and it is valid here and there."""
    user = f"check-{peer}"

    def attempt() -> None:
        token, _ = authenticate(urls[site], user, values["check_password"])
        for place in dict.fromkeys((site, peer)):
            _, valid = request("GET", f"{urls[place]}/auth/tokens", token, subject=token)
            if valid["token"]["user"]["name"] != user:
                raise CloudError(f"{urls[place]}: a token of {user} is said to be {valid['token']['user']['name']}'s")

    # A write at another Galera master may not have been applied here yet; and a password that was changed makes
    # tokens of the same second invalid.
    keep_trying(attempt, until)
    return {"user_of": peer, "issued_at": site, "valid_at": sorted({site, peer})}


def main() -> None:
    """Prepare or check; the outcome is reported to the driver."""
    module = AnsibleModule(
        argument_spec={
            "site": {"type": "str", "required": True},
            "urls": {"type": "dict", "required": True},
            "regions": {"type": "dict", "default": {}},
            "peer": {"type": "str", "default": ""},
            "admin_password": {"type": "str", "required": True, "no_log": True},
            "check_password": {"type": "str", "required": True, "no_log": True},
            "memcached": {"type": "str", "default": ""},
            "statistics": {"type": "path", "default": "/run/keystone/statistics"},
            "limit_s": {"type": "int", "default": 120},
        }
    )
    values = module.params
    until = time.monotonic() + values["limit_s"]
    site, urls = values["site"], values["urls"]
    watch = Watch(["keystone.service"])
    try:
        if values["peer"]:
            module.exit_json(changed=False, report={"keystone": check(site, values["peer"], urls, values, until)})
        module.exit_json(changed=True, report={"keystone": prepare(site, urls, values, until, watch.look)})
    except (CloudError, UnitError, OSError, KeyError) as error:
        told = watch.told()
        module.fail_json(msg=f"Keystone at {site} ({told.pop('state')}): {error}{told.pop('cause')}", **told)


if __name__ == "__main__":
    main()
