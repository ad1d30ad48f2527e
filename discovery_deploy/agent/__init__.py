"""What runs on machines and hosts: containers, networks, the WAN router, probes, proofs.

Standard library only, and nothing else of this package: modules are sent away alone. It must not know who asks.
"""

__all__ = [
    "cgroups",
    "code_recorder",
    "containers",
    "conversation",
    "given_host",
    "host_cleaner",
    "host_environments",
    "host_packages",
    "machine",
    "machine_plans",
    "machine_verbs",
    "names",
    "nspawn",
    "plan",
    "probe",
    "rally_process",
    "site_networks",
    "tc_device",
    "uml_kernel",
    "wan_router",
    "wan_tunnels",
    "wan_uml",
]
