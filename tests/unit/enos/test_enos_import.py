"""Reservations of EnOS as experiment files: recorded examples, mistakes, and what is kept of the network's meaning."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from discovery_deploy.enos import enos_import
from discovery_deploy.enos.enos_reading import Notes, expand
from discovery_deploy.experiment import config
from discovery_deploy.experiment.model import Experiment
from discovery_deploy.system.errors import ExperimentError
from discovery_deploy.wan.shapes import path_shapes

CASES = Path(__file__).parents[2] / "cases"
EXAMPLES = sorted((CASES / "enos").glob("*.yaml"))
MALFORMED = sorted((CASES / "enos_malformed").glob("*.yaml"))


def converted(path: Path) -> enos_import.Imported:
    return enos_import.convert(path.read_text(encoding="utf-8"), path.name)


def imported(text: str) -> tuple[Experiment, tuple[str, ...]]:
    made = enos_import.convert(text, "reservation.yaml")
    return config.parse(made.text, "made"), made.lost


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_becomes_what_is_recorded(path: Path) -> None:
    made = converted(path)
    assert made.text == path.with_suffix(".experiment").read_text(encoding="utf-8")
    assert list(made.lost) == path.with_suffix(".lost").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_is_made_passes_check(path: Path) -> None:
    config.parse(converted(path).text, "made")


def test_there_is_an_example_for_each_kind_of_provider() -> None:
    types = {config.parse(converted(path).text, "made").provider.type for path in EXAMPLES}
    assert types == {"local", "vagrant", "g5k", "static"}


@pytest.mark.parametrize("path", MALFORMED, ids=lambda path: path.stem)
def test_all_mistakes_are_told_at_their_places(path: Path) -> None:
    with pytest.raises(ExperimentError) as error:
        converted(path)
    assert error.value.what.splitlines() == path.with_suffix(".expected").read_text(encoding="utf-8").splitlines()


def test_a_reservation_of_the_past_is_told_and_left_out() -> None:
    text = (CASES / "enos" / "g5k.yaml").read_text(encoding="utf-8")
    text = text.replace("2036-11-28 19:00:00", "2017-05-03 19:00:01")
    made = enos_import.convert(text, "old.yaml", now=datetime(2017, 5, 3, 19, 0, 2))
    assert "reservation" not in made.text
    assert "begins in the past; left out" in "\n".join(made.lost)
    in_time = enos_import.convert(text, "old.yaml", now=datetime(2017, 5, 3, 19, 0, 1))
    assert "2017-05-03 19:00:01" in in_time.text
    assert "begins in the past" not in "\n".join(in_time.lost)


# the network


def topology(constraints: str, groups: int = 3) -> str:
    others = "".join(f"  g{number}: {{tiny: {{compute: 1}}}}\n" for number in range(2, groups + 1))
    lines = "".join(f"  {line}\n" for line in constraints.splitlines())
    return (
        "provider: {type: vagrant}\n"
        f"topology:\n  g1: {{tiny: {{control: 1}}}}\n{others}"
        f"network_constraints:\n  default_delay: 25ms\n  default_rate: 100mbit\n{lines}"
    )


def test_a_default_is_asked_for_only_when_a_pair_has_none() -> None:
    text = topology("constraints:\n  - {src: g1, dst: g2, delay: 30ms, rate: 1gbit, symmetric: true}", groups=2)
    text = text.replace("  default_delay: 25ms\n  default_rate: 100mbit\n", "")
    assert shapes(text) == dict.fromkeys((("g1", "g2"), ("g2", "g1")), (0.03, 1000000000.0, 0.0))
    with pytest.raises(ExperimentError) as error:
        imported(text.replace("symmetric: true", "symmetric: false").replace("rate: 1gbit, ", ""))
    assert [line.split(": ", 2)[2] for line in error.value.what.splitlines()] == [
        "default_delay is missing, which g2 -> g1 would have; write for example default_delay: 0ms",
        "default_rate is missing, which g1 -> g2, g2 -> g1 would have; write for example default_rate: 10gbit",
    ]


Shape = tuple[float, float | None, float]


def shapes(text: str) -> dict[tuple[str, str], Shape]:
    """Ordered pair -> delay (s), rate (bit/s) and loss, as this tool would shape it."""
    experiment, _ = imported(text)
    asked = path_shapes(experiment.network, experiment.site_names)
    return {pair: (shape.delay_s, shape.rate_bps, shape.loss) for pair, shape in asked.items()}


DEFAULT: Shape = (0.025, 1e8, 0.0)
NOTHING: Shape = (0.0, None, 0.0)


def test_a_delay_of_enos_is_one_way_as_ours() -> None:
    found = shapes(topology("", groups=2))
    assert found == {("g1", "g2"): DEFAULT, ("g2", "g1"): DEFAULT}


def test_a_constraint_changes_what_it_names_one_way_and_both_ways_when_symmetric() -> None:
    text = "constraints:\n  - {src: g1, dst: g2, delay: 50ms}\n  - {src: g1, dst: g3, rate: 1gbit, symmetric: true}"
    found = shapes(topology(text))
    assert found["g1", "g2"] == (0.05, 1e8, 0.0)
    assert found["g2", "g1"] == DEFAULT
    assert found["g1", "g3"] == found["g3", "g1"] == (0.025, 1e9, 0.0)


def test_a_group_that_is_left_out_is_in_no_rule_at_all() -> None:
    text = "except: [g3]\nconstraints:\n  - {src: g3, dst: g1, delay: 50ms}"
    found = shapes(topology(text))
    assert found["g1", "g2"] == found["g2", "g1"] == DEFAULT
    assert {found["g3", "g1"], found["g1", "g3"], found["g2", "g3"]} == {NOTHING}


def test_only_the_groups_that_are_named_are_in_rules() -> None:
    found = shapes(topology("groups: [g1, g2]"))
    assert [pair for pair, shape in found.items() if shape != NOTHING] == [("g1", "g2"), ("g2", "g1")]


def test_constraints_that_are_off_ask_for_no_wan() -> None:
    text = topology("enable: false")
    assert set(shapes(text).values()) == {NOTHING}
    assert any("network_constraints.enable" in line for line in imported(text)[1])


def test_what_is_lost_between_the_lines_is_told() -> None:
    text = "constraints:\n  - {src: g1, dst: 'g[1-2]', delay: 5ms}\n  - {src: g1, dst: g2, symetric: false}"
    lost = "\n".join(imported(topology(text))[1])
    assert "network_constraints.constraints[0]: inside a site nothing is shaped (g1)" in lost
    assert "network_constraints.constraints[1].symetric: false is taken at its word" in lost


@pytest.mark.parametrize("seed", range(40))
def test_every_pair_has_what_enos_would_put_there(seed: int) -> None:
    """Against EnOS's rule, said again in other words: defaults first, then each constraint on the pairs it names."""
    chance = random.Random(seed)
    groups = [f"g{number}" for number in range(1, 6)]
    left_out = chance.sample(groups[1:], chance.choice((0, 0, 1, 2)))
    expected = {(a, b): (DEFAULT if not {a, b} & set(left_out) else NOTHING) for a in groups for b in groups if a != b}
    lines = []
    for _ in range(chance.randrange(8)):
        source, destination = chance.sample(groups, 2)
        delay, rate, both = chance.choice((0, 10, 25)), chance.choice((None, 10, 100)), chance.choice((True, False))
        loss = chance.choice((None, 0, 2))
        fields = {"src": source, "dst": destination, "delay": f"{delay}ms", "symmetric": str(both).lower()}
        fields |= {"rate": f"{rate}mbit"} if rate else {}
        fields |= {"loss": f"{loss}%"} if loss is not None else {}
        lines.append("  - {" + ", ".join(f"{key}: {value}" for key, value in fields.items()) + "}")
        for pair in [(source, destination), (destination, source)][: 1 + both]:
            if expected[pair] != NOTHING:
                before = expected[pair]
                expected[pair] = (
                    delay / 1000, rate * 1e6 if rate else before[1], loss / 100 if loss is not None else before[2]
                )  # fmt: skip
    text = f"except: [{', '.join(left_out)}]" + ("\nconstraints:\n" + "\n".join(lines) if lines else "")
    assert shapes(topology(text, groups=5)) == expected


# groups, hosts, names


def test_a_range_of_groups_is_each_of_them() -> None:
    notes = Notes()
    assert expand("grp[9-11]", (), notes) == ["grp9", "grp10", "grp11"]
    assert expand("grp1", (), notes) == ["grp1"]
    assert notes.mistakes == []
    expand("grp[a-b]", (), notes)
    expand("grp[2-1]", (), notes)
    assert len(notes.mistakes) == 2


def test_resources_beside_a_topology_are_not_used() -> None:
    text = topology("") + "resources: {tiny: {control: 5}}\n"
    experiment, lost = imported(text)
    assert experiment.site_names == ("g1", "g2", "g3")
    assert any(": resources: not used by EnOS either" in line for line in lost)


def test_groups_that_cannot_be_names_of_sites_become_some_that_can() -> None:
    text = "provider: {type: vagrant}\ntopology:\n"
    text += "".join(f"  {name}: {{tiny: {{control: 1}}}}\n" for name in ("Nova", "nova", "2nd", "a_b", "a.c", "x" * 40))
    experiment, _ = imported(text)
    assert experiment.site_names == ("nova-2", "nova-3", "s2nd", "a-b", "a", "x" * 20)


def test_control_machines_of_several_groups_share_their_state() -> None:
    text = "provider: {type: vagrant}\ntopology:\n  a: {tiny: {control: 1}}\n  b: {tiny: {control: 1, compute: 1}}\n"
    experiment, lost = imported(text)
    assert (experiment.deployment.topology.type, experiment.deployment.backend.type) == ("shared-state", "galera")
    assert any("shared-state is nearest" in line for line in lost)


def test_rally_runs_on_control_machines_unless_others_are_there_for_it() -> None:
    def roles(machines: str) -> list[tuple[str, ...]]:
        experiment, _ = imported(f"provider: vagrant\nresources: {{tiny: {{{machines}}}}}\n")
        return [host.roles for host in experiment.sites[0].hosts]

    assert roles("control: 1") == [("control", "database", "bench")]
    assert roles("control: 1, bench: 1") == [("control", "database"), ("bench",)]


def test_the_name_is_the_one_that_is_given_else_the_jobs_else_the_files() -> None:
    text = "provider: {type: g5k, job_name: My Job}\nresources: {gros: {control: 1}}\n"
    assert imported(text)[0].name == "my-job"
    made = enos_import.convert(text, "dir/reservation.yaml", "mine")
    assert config.parse(made.text, "made").name == "mine"
    made = enos_import.convert(text.replace(", job_name: My Job", ""), "dir/Reservation_2.yaml")
    assert config.parse(made.text, "made").name == "reservation-2"


def test_names_of_the_file_cannot_break_out_of_the_comments() -> None:
    text = 'provider: vagrant\nresources: {tiny: {control: 1, "util\\nname: evil": 1}}\n'
    experiment, _ = imported(text)
    assert experiment.name == "reservation"


def test_a_file_too_large_for_an_experiment_is_told_so() -> None:
    text = "provider: vagrant\ntopology:\n  'a[1-64]': {tiny: {control: 1}}\n  b: {tiny: {control: 1}}\n"
    with pytest.raises(ExperimentError, match="more than 64 groups"):
        imported(text)


# the command


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(CASES.parents[1])}
    words = (sys.executable, "-m", "discovery_deploy", "import-enos", *words)
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment, timeout=60)


def test_the_command_writes_the_file_and_tells_what_is_lost_apart(tmp_path: Path) -> None:
    example = CASES / "enos" / "g5k.yaml"
    printed = command(str(example), cwd=tmp_path)
    assert (printed.returncode, printed.stdout) == (0, example.with_suffix(".experiment").read_text())
    lost = example.with_suffix(".lost").read_text()
    assert printed.stderr == "".join(f"{example.parent}/{line}\n" for line in lost.splitlines())
    written = command(str(example), "--output", "mine.yaml", "--name", "mine", cwd=tmp_path)
    assert (written.returncode, written.stdout) == (0, "mine.yaml\n")
    assert config.load(tmp_path / "mine.yaml").name == "mine"
    again = command(str(example), "-o", "mine.yaml", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (6, "")
    assert "mine.yaml: is there already" in again.stderr


def test_the_command_refuses_what_is_wrong_or_not_there(tmp_path: Path) -> None:
    wrong = command(str(CASES / "enos_malformed" / "many.yaml"), cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert len(wrong.stderr.splitlines()) > 10
    missing = command("missing.yaml", cwd=tmp_path)
    assert (missing.returncode, missing.stderr) == (
        2,
        "missing.yaml: no such file\n  Give the path of EnOS's reservation file.\n",
    )
