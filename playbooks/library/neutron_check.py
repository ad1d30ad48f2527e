"""Ansible module: whether a site's Neutron answers and sees OVN."""

from __future__ import annotations

from ansible.module_utils import cloud
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.watched_units import UnitError, Watch

DOCUMENTATION = """
module: neutron_check
short_description: A Neutron answers with what is in its database, and with what OVN says
options:
  host: {description: Its host., type: str, required: true}
  url: {description: Of Neutron., type: str, required: true}
  keystone_url: {description: Of a Keystone., type: str, required: true}
  password: {description: Of the user neutron., type: str, required: true}
  limit_s: {description: Seconds until it is given up., type: int, default: 180}
"""


def check(url: str, keystone_url: str, password: str) -> dict[str, int]:
    """How many networks it has and how many chassis it sees. Raises cloud.CloudError."""
    token, _ = cloud.authenticate(keystone_url, "neutron", password, "service")
    networks = cloud.request("GET", f"{url}/v2.0/networks?fields=id", token)[1]["networks"]
    agents = cloud.request("GET", f"{url}/v2.0/agents", token)[1]["agents"]
    return {"networks": len(networks), "chassis": len([agent for agent in agents if "OVN" in agent["agent_type"]])}


def main() -> None:
    """Check, until it is well or the time is over."""
    texts = {name: {"type": "str", "required": True} for name in ("host", "url", "keystone_url")}
    module = AnsibleModule(
        argument_spec={
            **texts,
            "password": {"type": "str", "required": True, "no_log": True},
            "limit_s": {"type": "int", "default": 180},
        }
    )
    values = module.params
    asked = (values["url"], values["keystone_url"], values["password"])
    watch = Watch(["neutron.service"])
    try:
        module.exit_json(changed=False, seen=cloud.keep_trying(lambda: check(*asked), values["limit_s"], watch.look))
    except (cloud.CloudError, UnitError, KeyError) as error:
        told = watch.told()
        module.fail_json(msg=f"Neutron on {values['host']} ({told.pop('state')}): {error}{told.pop('cause')}", **told)


if __name__ == "__main__":
    main()
