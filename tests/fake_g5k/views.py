"""What the fake's reference API shows: sites, clusters, machines. Pure."""

from __future__ import annotations

from typing import Any

View = dict[str, Any]

SITES: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {
    "rennes": (1, {"paravance": (4, 16), "parasilo": (2, 16)}),
    "nancy": (2, {"grisou": (4, 20)}),
}
"""Site -> its number, cluster -> (machines, cores of each)."""
FIRST_ADDRESS = {"paravance": 0, "parasilo": 50, "grisou": 0}
VLANS = {"kavlan": 4, "kavlan-local": 1}
GLOBAL_VLANS = {"rennes": 16, "nancy": 11}
NAMED_VLANS = (4, 11, 16)
"""Vlans of which machines have names and addresses."""
GATEWAY, GATEWAY_ADDRESS = "access.grid5000.fr", "10.103.64.1"
RELEASE = "x64-2026010100"


def full_name(site: str, cluster: str, number: int, suffix: str = "") -> str:
    return f"{cluster}-{number}{suffix}.{site}.grid5000.fr"


def site_of(name: str) -> str:
    return name.split(".")[1]


def names() -> dict[str, str]:
    """Every name -> its IPv4 address; site n has 10.103.<64+n>.0/24, vlan v of it 10.103.<64+n+4v>.0/24."""
    found = {GATEWAY: GATEWAY_ADDRESS}
    for site, (index, clusters) in SITES.items():
        for cluster, (count, _) in clusters.items():
            for number in range(1, count + 1):
                last = FIRST_ADDRESS[cluster] + number
                found[full_name(site, cluster, number)] = f"10.103.{64 + index}.{last}"
                for vlan in NAMED_VLANS:
                    name = full_name(site, cluster, number, f"-kavlan-{vlan}")
                    found[name] = f"10.103.{64 + index + 4 * vlan}.{last}"
    return found


def site(name: str) -> View:
    index = SITES[name][0]
    vlans = {"default": {"network": f"10.103.{64 + index}.0/24", "gateway": f"10.103.{64 + index}.254"}}
    for vlan in [*range(1, 10), GLOBAL_VLANS[name]]:
        vlans[str(vlan)] = {
            "network": f"10.103.{64 + index + 4 * vlan}.0/24", "gateway": f"10.103.{64 + index + 4 * vlan}.254"
        }  # fmt: skip
    return {
        "uid": name, "name": name.title(), "type": "site", "version": "deadbeef", "frontend_ip": "", "kavlans": vlans,
        "ipv6": {"prefix": "2001:660:4406:", "site_index": index, "site_global_kavlan": GLOBAL_VLANS[name]},
        "g5ksubnet": {"network": f"10.{128 + index * 4}.0.0/14", "gateway": f"10.{131 + index * 4}.255.254"},
    }  # fmt: skip


def name_server(site_name: str) -> View:
    address = f"10.103.{64 + SITES[site_name][0]}.253"
    return {"uid": "dns", "kind": "virtual", "type": "server", "network_adapters": {"default": {"ip": address}}}


def cluster(name: str) -> View:
    return {
        "uid": name, "type": "cluster", "exotic": False, "queues": ["default", "admin"], "model": "fake", "metrics": []
    }  # fmt: skip


def machine(site_name: str, cluster_name: str, number: int) -> View:
    cores = SITES[site_name][1][cluster_name][1]

    def adapter(device: str, name: str, mounted: bool) -> View:
        return {
            "device": device, "name": name, "interface": "Ethernet", "mountable": True, "mounted": mounted,
            "management": False, "enabled": True, "rate": 10_000_000_000,
            "mac": f"02:00:00:{SITES[site_name][0]:02x}:{number:02x}:{int(device[3:]):02x}",
            "network_address": full_name(site_name, cluster_name, number, "" if mounted else f"-{device}"),
        }  # fmt: skip

    bmc = {"device": "bmc", "name": "bmc", "interface": "Ethernet", "mountable": False, "mounted": False}
    return {
        "uid": f"{cluster_name}-{number}", "type": "node", "exotic": False,
        "architecture": {
            "nb_procs": 2, "nb_cores": cores, "nb_threads": 2 * cores, "platform_type": "x86_64"
        },
        "main_memory": {"ram_size": 137438953472},
        "supported_job_types": {"deploy": True, "besteffort": True, "virtual": "ivt"},
        "storage_devices": [{"device": "disk0", "id": "disk0", "size": 600127266816}],
        "network_adapters": [adapter("eth0", "eno1", True), adapter("eth1", "eno2", False),
                             {**bmc, "management": True}],
    }  # fmt: skip
