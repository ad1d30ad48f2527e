"""Experiment files are read strictly: every mistake at once, at its place, in plain words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from discovery_deploy.bench.rally import load_tasks
from discovery_deploy.experiment import config
from discovery_deploy.experiment.fields import keys_of, objects
from discovery_deploy.system.data import data_directory
from discovery_deploy.system.errors import EXIT_EXPERIMENT, ExperimentError

ROOT = Path(__file__).resolve().parents[3]
MALFORMED = ROOT / "tests" / "cases" / "malformed"
CASES = sorted(MALFORMED.glob("*.yaml"))
EXPERIMENTS = sorted(data_directory("experiments").glob("*.yaml"))


class Argument(NamedTuple):
    default: Any


class Task(NamedTuple):
    arguments: dict[str, Any]
    services: tuple[str, ...] = ("keystone",)


TASKS = {
    "keystone/authenticate_user_and_validate_token": Task({}),
    "keystone/create_and_list_users": Task({"users": Argument(3)}),
}
SOUND = """\
name: example
sites:
  - name: nantes
  - name: lyon
deployment:
  backend: {type: mariadb, site: lyon}
"""


def mistakes(text: str, file: str = "file.yaml") -> list[str]:
    with pytest.raises(ExperimentError) as refusal:
        config.parse(text, file, TASKS)
    return refusal.value.what.splitlines()


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_malformed_file_is_refused_with_exactly_these_lines(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MALFORMED)
    with pytest.raises(ExperimentError) as refusal:
        config.load(Path(case.name), TASKS)
    assert f"{refusal.value.what}\n" == case.with_suffix(".expected").read_text(encoding="utf-8")
    assert refusal.value.exit_code == EXIT_EXPERIMENT == 2
    assert refusal.value.advice


def test_each_malformed_file_has_its_expected_lines_and_there_are_enough_of_them() -> None:
    assert len(CASES) >= 45
    assert {path.stem for path in CASES} == {path.stem for path in MALFORMED.glob("*.expected")}


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_lines_are_sorted_by_place_and_speak_no_jargon(case: Path) -> None:
    lines = case.with_suffix(".expected").read_text(encoding="utf-8").splitlines()
    places = [tuple(map(int, match.groups())) for line in lines if (match := re.match(r"[^:]+:(\d+):(\d+): ", line))]
    assert places == sorted(places)
    jargon = r"Input|[Vv]alue error|pydantic|\btuple\b|\bdict\b|\bmodel\b|validat(?!e_token)|NoneType|\bstr\b|ruamel"
    assert not [line for line in lines if re.search(jargon, line)]


def test_the_same_file_is_told_in_the_same_words_whatever_the_hash_seed() -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from discovery_deploy.experiment import config; from discovery_deploy.system import errors\n"
        "for path in sys.argv[1:]:\n"
        "    try: config.load(Path(path), {})\n"
        "    except errors.ExperimentError as error: print(error)\n"
    )
    files = [str(MALFORMED / f"{name}.yaml") for name in ("everything-at-once", "references-at-once", "unknown-words")]
    told = [
        subprocess.run(
            [sys.executable, "-c", program, *files],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert told[0] == told[1] == told[2]
    assert len(told[0].splitlines()) > 50


def test_a_mistake_is_told_with_file_line_column_path_and_what() -> None:
    text = SOUND + "network:\n  constrants: []\n  default:\n    delay: 25\n"
    assert mistakes(text, "bad.yaml") == [
        'bad.yaml:8:3: network.constrants: unknown key; did you mean "constraints"?',
        'bad.yaml:10:5: network.default.delay: "25" has no unit; write for example "25 ms"',
    ]


def test_what_a_mistyped_key_holds_is_checked_as_well() -> None:
    text = SOUND.replace("backend: {type: mariadb, site: lyon}", "backnd: {type: mariadb, site: paris}")
    assert mistakes(text) == [
        'file.yaml:6:3: deployment.backnd: unknown key; did you mean "backend"?',
        'file.yaml:6:27: deployment.backnd.site: no site "paris"; the sites are nantes, lyon',
    ]


def test_no_reference_is_blamed_when_the_name_it_may_mean_is_itself_wrong() -> None:
    text = SOUND.replace("- name: lyon", "- nmae: 5")
    assert mistakes(text) == [
        'file.yaml:4:5: sites[1].nmae: a text is expected, not the number 5; write it in quotes: "5"',
        'file.yaml:4:5: sites[1].nmae: unknown key; did you mean "name"?',
    ]


def test_items_after_a_wrong_one_keep_their_index() -> None:
    wrong = "network:\n  constraints:\n    - {delay: 1 ms}\n    - {delay: 1 ms}\n"
    lines = mistakes(SOUND + wrong + "    - {between: [nantes, paris], delay: 1 ms}\n")
    assert [line.split(": ")[1] for line in lines] == [
        "network.constraints[0]",
        "network.constraints[1]",
        "network.constraints[2].between[1]",
    ]


def test_anchors_aliases_and_merge_keys_work() -> None:
    text = SOUND + (
        "network:\n"
        "  default: &slow {delay: &far 25 ms, loss: 1 %}\n"
        "  constraints:\n"
        "    - {<<: *slow, between: [nantes, lyon], delay: 5 ms}\n"
        "campaign:\n"
        "  factors: [{path: network.default.delay, levels: [0 ms, *far]}]\n"
    )
    experiment = config.parse(text, "file.yaml", TASKS)
    constraint = experiment.network.constraints[0]
    assert (constraint.delay, constraint.loss) == (0.005, 0.01)
    assert experiment.campaign.factors[0].levels == ("0 ms", "25 ms")


def test_yaml_is_read_as_1_2_so_that_words_stay_words() -> None:
    text = SOUND.replace("name: example", "name: example\nquestion: yes").replace("lyon", "on").replace("nantes", "no")
    experiment = config.parse(text, "file.yaml")
    assert (experiment.question, experiment.site_names) == ("yes", ("no", "on"))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SOUND.encode())
    assert config.load(path).name == "example"


def test_without_tasks_their_names_are_left_unchecked() -> None:
    text = SOUND + "campaign: {scenarios: [{task: nova/boot}]}\n"
    assert config.parse(text, "file.yaml").campaign.scenarios[0].task == "nova/boot"
    assert len(mistakes(text)) == 1


def test_files_that_cannot_be_read_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(SOUND)
    for path, reason in [
        (tmp_path / "none.yaml", "no such file"),
        (tmp_path, "is a directory"),
        (tmp_path / "file" / "below", "cannot be read: not a directory"),
    ]:
        with pytest.raises(ExperimentError) as refusal:
            config.load(path)
        assert refusal.value.what == f"{path}: {reason}"
        assert refusal.value.advice


WITHOUT_NOVA = """\
name: example
sites:
  - name: nantes
deployment:
  services: [keystone, glance]
  backend: {type: mariadb, site: nantes}
campaign:
  smoke: true
  scenarios:
    - task: nova/boot_and_delete_server
    - task: glance/list_images
"""
FACTOR = """\
  factors:
    - path: deployment.services
      levels: [[keystone, glance], [keystone, placement, glance, neutron, nova]]
"""


def test_what_needs_a_service_that_is_not_deployed_is_refused() -> None:
    with pytest.raises(ExperimentError) as refusal:
        config.parse(WITHOUT_NOVA, "file.yaml", load_tasks())
    assert refusal.value.what.splitlines() == [
        "file.yaml:8:3: campaign.smoke: needs nova, which deployment.services lacks",
        "file.yaml:10:7: campaign.scenarios[0].task: nova/boot_and_delete_server needs nova, which "
        "deployment.services lacks",
    ]


def test_every_setting_must_have_the_service() -> None:
    text = WITHOUT_NOVA.replace("  smoke: true\n", FACTOR)
    with pytest.raises(ExperimentError, match="needs nova"):
        config.parse(text, "file.yaml", load_tasks())
    enough = text.replace("[keystone, glance], ", "")
    assert config.parse(enough, "file.yaml", load_tasks()).campaign.scenarios


def test_smoke_is_true_or_false() -> None:
    told = mistakes(SOUND + "campaign:\n  smoke: 1\n")
    assert told == ["file.yaml:8:3: campaign.smoke: true or false is expected, not the number 1"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_of_the_package_is_sound_with_the_package_s_tasks(path: Path) -> None:
    experiment = config.load(path, load_tasks())
    assert experiment.campaign.scenarios
    assert path.stem in (experiment.name, "template")


def test_the_package_has_the_experiments_that_its_documents_speak_of() -> None:
    assert {"quickstart", "cache-none", "asymmetric", "template", "full-three-sites", "topologies", "wan-wide"} <= {
        path.stem for path in EXPERIMENTS
    }


def test_the_quickstart_asks_from_a_site_that_does_not_hold_the_database() -> None:
    experiment = config.load(data_directory("experiments") / "quickstart.yaml")
    assert experiment.bench_sites() != experiment.database_sites()
    assert [factor.path for factor in experiment.campaign.factors] == ["deployment.backend", "network.default.delay"]
    assert len(experiment.sites) == 3
    assert all(10 <= scenario.times <= 30 for scenario in experiment.campaign.scenarios)


def test_a_new_experiment_has_its_name_and_passes_check() -> None:
    assert config.parse(config.template("my-study"), "my-study.yaml", load_tasks()).name == "my-study"


def test_a_new_experiment_explains_every_key_that_there_is() -> None:
    text = config.template("example")
    for path, model in objects():
        for key in keys_of(model):
            assert re.search(rf"(^|[\s#{{-]){key}:", text, re.MULTILINE), f"{path}: {key}"
    for key in keys_of(dict(objects())[""]):
        assert re.search(rf"^#.*\n{key}:", text, re.MULTILINE), f"no comment above {key}"


def test_a_new_experiment_needs_a_name_that_can_be_one() -> None:
    with pytest.raises(ExperimentError, match='"My Study" is not a name') as refusal:
        config.template("My Study")
    assert "\n" not in refusal.value.what


def test_an_experiment_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "exp.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SOUND.encode())
    assert config.load(path, TASKS) == config.parse(SOUND, "exp.yaml", TASKS)
    path.write_bytes(b"\xef\xbb\xbf" + SOUND.replace("name: example", "nam: example").encode())
    with pytest.raises(ExperimentError, match=r"exp\.yaml:1:1: "):
        config.load(path, TASKS)
