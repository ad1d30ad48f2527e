"""F15: no control character reaches a configuration file."""

from __future__ import annotations

import pytest

from discovery_deploy.bench.rally import load_tasks
from discovery_deploy.experiment import config
from discovery_deploy.system.errors import ExperimentError

EXPERIMENT = """\
name: f15
sites:
  - name: nantes
  - name: lyon
deployment:
  backend: {type: mariadb, site: lyon}
  %s: %s{keystone: {%s: {%s: %s}}}%s
"""


@pytest.mark.parametrize("code", ["\\0", "\\a", "\\t", "\\e", "\\x7f", "\\x80", "\\x9b"])
@pytest.mark.parametrize("place", ["section", "option", "value", "site"])
def test_a_control_character_in_overrides_is_refused(code: str, place: str) -> None:
    text = f'"a{code}b"'
    section, option, value = (text if place == part else "x" for part in ("section", "option", "value"))
    around = ("site_overrides", "{nantes: ", "}") if place == "site" else ("overrides", "", "")
    if place == "site":
        value = text
    with pytest.raises(ExperimentError) as refused:
        config.parse(EXPERIMENT % (*around[:2], section, option, value, around[2]), "exp.yaml", load_tasks())
    wanted = {"section": "is not the name of a section", "option": "is not the name of an option"}
    assert wanted.get(place, "cannot stand in a configuration file") in refused.value.what
    assert refused.value.what.startswith("exp.yaml:7:")
