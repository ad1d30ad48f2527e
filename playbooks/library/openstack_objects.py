"""Ansible module: what a cloud needs before anybody can use it: computes mapped, flavors, images, zones, networks."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ansible.module_utils import cloud
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: openstack_objects
short_description: Flavors, images, availability zones and networks of a region
description:
  - Waits until every compute is up and mapped to its cell and has a chassis, and removes computes that are no longer
    asked for. Then makes what is not there, over the services' own APIs. Services that the catalogue of the region
    lacks are left out. Safe to run again.
options:
  region: {description: Region of the catalogue., type: str, required: true}
  keystone_url: {description: Of a Keystone., type: str, required: true}
  password: {description: Of the user admin., type: str, required: true}
  zones: {description: Site -> names of its computes., type: dict, required: true}
  guest: {description: Directory of the guest's files; empty for a disk of noise., type: str, default: ''}
  limit_s: {description: Seconds to wait for computes., type: int, default: 240}
"""
FLAVORS = {"m1.tiny": {"ram": 96, "vcpus": 1, "disk": 1}, "m1.small": {"ram": 256, "vcpus": 1, "disk": 1}}
IMAGE = "cirros"
NOISE_BYTES = 2**20
PHYSICAL_NETWORK = "physnet1"
PUBLIC = {"cidr": "172.24.0.0/16", "gateway_ip": "172.24.0.1", "enable_dhcp": False}
PRIVATE = {"cidr": "10.20.0.0/16", "enable_dhcp": True}
VERSIONS = {"compute": "compute 2.53", "placement": "placement 1.36"}
MARK = {"discovery-deploy": "site"}
"""Metadata of our aggregates."""


class Region:
    """The services of a region, asked by its administrator."""

    def __init__(self, module: AnsibleModule) -> None:
        values = module.params
        self.name = values["region"]
        self.zones: dict[str, list[str]] = values["zones"]
        self.guest = values["guest"]
        self.limit_s = values["limit_s"]
        self.token, said = cloud.keep_trying(
            lambda: cloud.authenticate(values["keystone_url"], "admin", values["password"], "admin"), 60
        )
        catalogue = said["catalog"]
        regions = [(entry["type"], end["region_id"]) for entry in catalogue for end in entry["endpoints"]]
        present = {kind for kind, region in regions if region == self.name}
        self.urls = {kind: cloud.endpoint(catalogue, kind, self.name) for kind in sorted(present)}
        self.changes: list[str] = []
        self.providers: dict[str, str] = {}  # name of a hypervisor -> Nova's host

    def ask(self, kind: str, path: str) -> dict:
        """What a service answers to GET."""
        return cloud.request("GET", self.urls[kind] + path, self.token, version=VERSIONS.get(kind, ""))[1]

    def change(self, what: str, method: str, kind: str, path: str, body: object = None) -> dict:
        """Change something; `what` is kept for the report."""
        answer = cloud.request(method, self.urls[kind] + path, self.token, body, VERSIONS.get(kind, ""))[1]
        self.changes.append(what)
        return answer

    # computes

    def computes(self) -> None:
        """Wait until all are up, mapped and known to OVN; then remove those that nobody asked for."""
        cloud.keep_trying(self._computes_are_up, self.limit_s)
        wanted = {name for names in self.zones.values() for name in names}
        for service in self.ask("compute", "/os-services?binary=nova-compute")["services"]:
            if service["host"] not in wanted:
                self.change(service["host"], "DELETE", "compute", f"/os-services/{service['id']}")

    def _computes_are_up(self) -> None:
        # Nova lists a hypervisor only when its host is mapped to a cell.
        found = self.ask("compute", "/os-hypervisors/detail")["hypervisors"]
        up = {entry["service"]["host"] for entry in found if entry["state"] == "up"}
        problems = lacking(self.zones, up, "computes that are not up and mapped to a cell")
        self.providers = {entry["hypervisor_hostname"]: entry["service"]["host"] for entry in found}
        problems = problems or lacking(self.zones, self._provided(), "computes that Placement does not know")
        if not problems and "network" in self.urls:
            agents = self.ask("network", "/v2.0/agents")["agents"]
            problems = lacking(self.zones, {agent["host"] for agent in agents}, "computes that OVN does not know")
        if problems:
            raise cloud.CloudError(problems)

    def _provided(self, query: str = "") -> set[str]:
        """Computes that have a resource provider (which has a hypervisor's name)."""
        listed = self.ask("placement", f"/resource_providers{query}")["resource_providers"]
        return {self.providers[entry["name"]] for entry in listed if entry["name"] in self.providers}

    def zone_aggregates(self) -> None:
        """An aggregate for each site, which is its availability zone."""
        found = {entry["name"]: entry for entry in self.ask("compute", "/os-aggregates")["aggregates"]}
        for name, entry in sorted(found.items()):
            for host in sorted(set(entry["hosts"]) - set(self.zones.get(name, []))):
                if _is_ours(entry):
                    body = {"remove_host": {"host": host}}
                    self.change(host, "POST", "compute", f"/os-aggregates/{entry['id']}/action", body)
            if _is_ours(entry) and name not in self.zones:
                self.change(name, "DELETE", "compute", f"/os-aggregates/{entry['id']}")
        for site, names in sorted(self.zones.items()):
            entry = found.get(site)
            if entry is None:
                body = {"aggregate": {"name": site, "availability_zone": site}}
                entry = {"hosts": [], **self.change(site, "POST", "compute", "/os-aggregates", body)["aggregate"]}
            self._fill(site, entry, names)

    def _fill(self, site: str, entry: dict, names: list[str]) -> None:
        """All computes of a site in its aggregate, and in Placement's, without which the zone seems to be empty."""
        action = f"/os-aggregates/{entry['id']}/action"
        if not _is_ours(entry):
            self.change(site, "POST", "compute", action, {"set_metadata": {"metadata": MARK}})
        linked = self._provided(f"?member_of={entry['uuid']}")
        for host in sorted(set(names) - (set(entry["hosts"]) & linked)):
            if host in entry["hosts"]:
                self.change(host, "POST", "compute", action, {"remove_host": {"host": host}})
            self.change(host, "POST", "compute", action, {"add_host": {"host": host}})

    def flavors(self) -> None:
        """Flavors, made anew when they are not as wanted (they cannot be changed)."""
        found = {entry["name"]: entry for entry in self.ask("compute", "/flavors/detail")["flavors"]}
        for name, wanted in FLAVORS.items():
            entry = found.get(name)
            if entry is not None and any(entry[key] != value for key, value in wanted.items()):
                self.change(name, "DELETE", "compute", f"/flavors/{entry['id']}")
                entry = None
            if entry is None:
                self.change(name, "POST", "compute", "/flavors", {"flavor": {"name": name, **wanted}})

    # images

    def images(self) -> None:
        """The public image: the guest with its kernel, or noise where nothing boots."""
        if not self.guest:
            noise = hashlib.shake_256(IMAGE.encode()).digest(NOISE_BYTES)
            self._image(IMAGE, noise, "raw", "bare", {})
            return
        folder = Path(self.guest)
        kernel = self._image("guest-kernel", (folder / "vmlinuz").read_bytes(), "aki", "aki", {})
        ramdisk = self._image("guest-ramdisk", (folder / "initrd.gz").read_bytes(), "ari", "ari", {})
        words = "console=ttyS0 quiet mitigations=off"  # what they guard against is not here, and costs emulation most
        properties = {"kernel_id": kernel, "ramdisk_id": ramdisk, "os_command_line": words}
        self._image(IMAGE, (folder / "blank.img").read_bytes(), "raw", "bare", properties)

    def _image(self, name: str, content: bytes, disk: str, container: str, properties: dict[str, str]) -> str:
        """The id of a public image with this content; others of its name are removed."""
        marks = {**properties, "discovery_content": hashlib.sha256(content).hexdigest()}
        kept = ""
        for entry in self.ask("image", f"/v2/images?visibility=public&name={name}")["images"]:
            same = entry["status"] == "active" and all(entry.get(key) == value for key, value in marks.items())
            if same and not kept:
                kept = entry["id"]
            else:
                self.change(name, "DELETE", "image", f"/v2/images/{entry['id']}")
        if kept:
            return kept
        body = {"name": name, "visibility": "public", "disk_format": disk, "container_format": container, **marks}
        image = str(self.change(name, "POST", "image", "/v2/images", body)["id"])
        self.change(name, "PUT", "image", f"/v2/images/{image}/file", content)
        return image

    # networks

    def networks(self) -> None:
        """A network for floating IPs that all may use, and the administrator's own network behind a router."""
        project = self._project()
        provider = {
            "router:external": True, "provider:network_type": "flat", "provider:physical_network": PHYSICAL_NETWORK,
        }  # fmt: skip
        public = self._one("networks", "public", provider)
        self._one("subnets", "public", {"network_id": public["id"], "ip_version": 4, **PUBLIC})
        private = self._one("networks", "private", {"project_id": project})
        subnet = self._one("subnets", "private", {"network_id": private["id"], "ip_version": 4, **PRIVATE})
        gateway = {"external_gateway_info": {"network_id": public["id"]}}
        router = self._one("routers", "private", {"project_id": project, **gateway})
        ports = self.ask("network", f"/v2.0/ports?device_id={router['id']}&network_id={private['id']}")["ports"]
        if not ports:
            path = f"/v2.0/routers/{router['id']}/add_router_interface"
            self.change("router's interface", "PUT", "network", path, {"subnet_id": subnet["id"]})
        self._let_pings_in(project)

    def _project(self) -> str:
        return str(self.ask("identity", "/projects?name=admin&domain_id=default")["projects"][0]["id"])

    def _one(self, plural: str, name: str, wanted: dict) -> dict:
        found = self.ask("network", f"/v2.0/{plural}?name={name}")[plural]
        if found:
            return found[0]
        kind = plural.removesuffix("s")
        return self.change(name, "POST", "network", f"/v2.0/{plural}", {kind: {"name": name, **wanted}})[kind]

    def _let_pings_in(self, project: str) -> None:
        query = f"/v2.0/security-groups?name=default&project_id={project}"
        group = self.ask("network", query)["security_groups"][0]
        for protocol in ("icmp", "tcp"):
            wanted = {"direction": "ingress", "ethertype": "IPv4", "protocol": protocol}
            rules = [
                rule
                for rule in group["security_group_rules"]
                if all(rule[key] == value for key, value in wanted.items()) and not rule["remote_group_id"]
            ]
            if not rules:
                rule = {"security_group_rule": {"security_group_id": group["id"], **wanted}}
                self.change(f"{protocol} let in", "POST", "network", "/v2.0/security-group-rules", rule)


def _is_ours(aggregate: dict) -> bool:
    return bool(MARK.items() <= aggregate.get("metadata", {}).items())


def lacking(zones: dict[str, list[str]], present: set[str], what: str) -> str:
    """Which computes of which sites are not present, as one sentence; empty when all are."""
    missing = {site: sorted(set(names) - present) for site, names in sorted(zones.items())}
    told = "; ".join(f"at {site}: {', '.join(names)}" for site, names in missing.items() if names)
    return f"{what} {told}" if told else ""


def main() -> None:
    """Make everything for the services that the region has; `changes` names what was not as wanted."""
    module = AnsibleModule(
        argument_spec={
            "region": {"type": "str", "required": True},
            "keystone_url": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "zones": {"type": "dict", "required": True},
            "guest": {"type": "str", "default": ""},
            "limit_s": {"type": "int", "default": 240},
        }
    )
    try:
        region = Region(module)
        if "image" in region.urls:
            region.images()
        if "network" in region.urls:
            region.networks()
        if "compute" in region.urls:
            region.flavors()
            region.computes()
            region.zone_aggregates()
    except (cloud.CloudError, KeyError, OSError) as error:
        module.fail_json(msg=f"region {module.params['region']}: {error}")
    module.exit_json(changed=bool(region.changes), changes=region.changes)


if __name__ == "__main__":
    main()
