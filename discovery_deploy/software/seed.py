"""The databases' first content: the shell text that makes it inside the base image, by OpenStack's own tools.

Every service's tables, as its own tool makes them, and an empty Keystone; without this machine's names, an address, or
a usable password. Cells, users of databases, endpoints are a deployment's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Content = Literal["keystone", "all"]
"""What a seed holds: Keystone alone, or every service. The former is small and quick to copy."""

DATABASES: dict[Content, tuple[str, ...]] = {
    "keystone": ("keystone",),
    "all": ("keystone", "placement", "glance", "neutron", "nova_api", "nova_cell0", "nova"),
}


def content_for(services: Sequence[str]) -> Content:
    """What the databases of a deployment with these services must hold. Pure."""
    return "keystone" if set(services) <= {"keystone"} else "all"


BEGIN = r"""
mkdir -p /run/mysqld /run/keys /run/seed && chown mysql: /run/mysqld
# it grants to users at this machine's name, so the machine has none
unshare --uts sh -ec 'echo localhost > /proc/sys/kernel/hostname
    mariadb-install-db --user=mysql --datadir=/var/lib/mysql --skip-test-db > /dev/null'
serve() {
    # no network: nothing but us can reach it, and its ports are its own
    unshare --net sh -c 'ip link set lo up; exec "$@"' - mariadbd --no-defaults --user=mysql --datadir=/var/lib/mysql \
        --socket=/run/mysqld/seed.sock --innodb-fast-shutdown=0 --innodb-log-file-size=48M \
        --innodb-flush-log-at-trx-commit=0 --innodb-autoextend-increment=1 \
        --character-set-server=utf8mb3 --collation-server=utf8mb3_general_ci "$@" &
    server=$!
    for _ in $(seq 300); do sql -e 'SELECT 1' > /dev/null 2>&1 && return; kill -0 $server; sleep 0.1; done
    return 1
}
sql() { mariadb --socket=/run/mysqld/seed.sock "$@"; }
end() { mariadb-admin --socket=/run/mysqld/seed.sock shutdown; wait $server; }
url() { echo "mysql+pymysql://seed:seed@localhost/$1?charset=utf8&unix_socket=/run/mysqld/seed.sock"; }
# configuration SERVICE SECTION DATABASE: a file with nothing but that, and lines from standard input
configuration() {
    printf '[DEFAULT]\nuse_stderr = true\n' > "/run/seed/$1.conf"
    cat >> "/run/seed/$1.conf"
    printf '[%s]\nconnection = %s\n' "$2" "$(url "$3")" >> "/run/seed/$1.conf"
}
jobs=()
# job NAME: make_NAME beside the others; what it said is shown when it fails
job() {
    (
        exec 3>&1
        trap 'code=$?; [ $code = 0 ] || tail -n 10 "/run/seed/'"$1"'.log" >&3; exit $code' EXIT
        "make_$1" > "/run/seed/$1.log" 2>&1
    ) &
    jobs+=($!)
}
finished() { for one in "${jobs[@]}"; do wait "$one"; done; }

serve --skip-networking
sql -e "GRANT ALL ON *.* TO seed@localhost IDENTIFIED BY 'seed'"
for database in @databases@; do sql -e "CREATE DATABASE $database"; done
"""

MAKE: dict[str, str] = {
    # without a usable password: a deployment sets one
    "keystone": r"""
make_keystone() {
    head -c 32 /dev/urandom | base64 | tr '+/' '-_' > /run/keys/0
    configuration keystone database keystone <<END
[fernet_tokens]
key_repository = /run/keys
[fernet_receipts]
key_repository = /run/keys
[credential]
key_repository = /run/keys
END
    "$OPENSTACK/bin/keystone-manage" --config-file /run/seed/keystone.conf db_sync
    OS_BOOTSTRAP_PASSWORD=$(head -c 32 /run/keys/0) "$OPENSTACK/bin/keystone-manage" \
        --config-file /run/seed/keystone.conf bootstrap --bootstrap-service-name keystone
    sql keystone -e "UPDATE password SET password_hash = '*'"
}
""",
    # with the traits and resource classes that each start of it would add
    "placement": r"""
make_placement() {
    configuration placement placement_database placement < /dev/null
    "$OPENSTACK/bin/placement-manage" --config-file /run/seed/placement.conf db sync
    "$OPENSTACK/bin/python" - <<END
from oslo_config import cfg
from placement import conf, db_api, deploy
settings = cfg.ConfigOpts()
conf.register_opts(settings)
settings([], project="placement", default_config_files=["/run/seed/placement.conf"])
db_api.configure(settings)
deploy.update_database(settings)
END
}
""",
    "glance": r"""
make_glance() {
    configuration glance database glance < /dev/null
    "$OPENSTACK/bin/glance-manage" --config-file /run/seed/glance.conf db_sync
}
""",
    "neutron": r"""
make_neutron() {
    configuration neutron database neutron <<END
core_plugin = ml2
END
    "$OPENSTACK/bin/neutron-db-manage" --config-file /run/seed/neutron.conf upgrade heads
}
""",
    "nova_api": r"""
make_nova_api() {
    configuration nova_api api_database nova_api < /dev/null
    "$OPENSTACK/bin/nova-manage" --config-file /run/seed/nova_api.conf api_db sync
}
""",
    # cell 0 has the same tables; no cell is written down
    "nova": r"""
make_nova() {
    configuration nova database nova < /dev/null
    "$OPENSTACK/bin/nova-manage" --config-file /run/seed/nova.conf db sync --local_cell
    mariadb-dump --socket=/run/mysqld/seed.sock nova | sql nova_cell0
}
""",
}

# At last it has been a Galera cluster of one, so that its state has a number: members that start from it need no
# transfer.
END = r"""
finished
sql -e "DROP USER seed@localhost"
sql -NBe 'SELECT VERSION()' > "$PREFIX/version"
end

serve --wsrep-on=ON --wsrep-provider=/usr/lib/galera/libgalera_smm.so --wsrep-new-cluster --wsrep-cluster-name=seed \
    --wsrep-cluster-address=gcomm://127.0.0.1 --wsrep-node-address=127.0.0.1 --bind-address=127.0.0.1 \
    --binlog-format=ROW
sql -NBe "SHOW STATUS LIKE 'wsrep_local_state_comment'" | grep -q Synced
end
grep -q '^seqno: *[1-9]' /var/lib/mysql/grastate.dat
rm -f /var/lib/mysql/{ib_buffer_pool,galera.cache,gvwstate.dat,*.err,*.pid}
cp -a --sparse=always /var/lib/mysql "$PREFIX/datadir"
"""


def seed_script(content: Content) -> str:
    """Shell text that makes `$PREFIX/datadir` by the tools of `$OPENSTACK`; the services' tables at the same time.

    Pure. It is run by bash with `-euo pipefail`, as root, with the base image as its root.
    """
    made = [name for name in MAKE if name in DATABASES[content]]
    lines = [f'echo "I: making the tables of {", ".join(DATABASES[content])}"', *(f"job {name}" for name in made)]
    begin = BEGIN.replace("@databases@", " ".join(DATABASES[content]))
    return begin + "".join(MAKE[name] for name in made) + "\n".join(lines) + END
