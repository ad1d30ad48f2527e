"""Commits of upstream as patches on a source archive, which lacks some of its files; what is no Python afterwards."""

from __future__ import annotations

import pytest

from discovery_deploy.software.patches.patch_series import REGULAR, SeriesError, SourceFile, apply_series
from tests.unit.software.test_patch_series import BASE, MIDDLE, applied, change, refused, series


def test_what_no_source_archive_has_is_left_out_with_a_note() -> None:
    missing = "".join(change(name, "@@ -1 +1 @@\n-x\n+y\n") for name in (".gitignore", "doc/.gitignore", ".gitreview"))
    patch = (missing + change("pkg/a.py", MIDDLE)).encode()
    notes: list[str] = []
    made = apply_series("demo", BASE, series("p.patch"), {"p.patch": patch}, of_sdist=True, note=notes.append)
    assert made == applied(change("pkg/a.py", MIDDLE))
    assert notes == [
        f"demo: p.patch: {name} is left out: source archives have none"
        for name in (".gitignore", "doc/.gitignore", ".gitreview")
    ]
    assert ".gitignore: is not there" in refused(patch)[0], "a git source has it"
    there = {**BASE, ".gitignore": SourceFile(REGULAR, b"z\n")}
    with pytest.raises(SeriesError, match="does not apply"):
        apply_series("demo", there, series("p.patch"), {"p.patch": patch}, of_sdist=True)


def test_a_rewritten_file_of_a_source_archive_is_explained() -> None:
    tree_ = {**BASE, "setup.cfg": SourceFile(REGULAR, b"description_file = \n")}
    patch = change("setup.cfg", "@@ -1 +1 @@\n-description_file =\n+y\n").encode()
    with pytest.raises(SeriesError) as caught:
        apply_series("demo", tree_, series("p.patch"), {"p.patch": patch}, of_sdist=True)
    message = caught.value.problems[0].message
    assert 'should be "description_file ="' in message
    assert "a source archive's setup.cfg is not git's: take git's files as the base: `sources: {demo: {git:" in message
    assert "source archive" not in refused(patch, tree_)[0]


def test_what_is_no_python_afterwards_is_told_before_it_is_built() -> None:
    broken = "--- /dev/null\n+++ b/pkg/new.py\n@@ -0,0 +1,2 @@\n+def f(:\n+    pass\n"
    fixed = "--- a/pkg/new.py\n+++ b/pkg/new.py\n@@ -1,2 +1,2 @@\n-def f(:\n+def f():\n     pass\n"
    returns = "--- a/pkg/empty.py\n+++ b/pkg/empty.py\n@@ -0,0 +1 @@\n+return 1\n"
    template = change("pkg/a.py", MIDDLE)  # "line 1" was no Python before either
    contents = {name: text.encode() for name, text in (("1", broken), ("2", fixed), ("3", returns), ("4", template))}
    with pytest.raises(SeriesError) as caught:
        apply_series("demo", BASE, series("1", "4", "3"), contents, compiled=True)
    assert [problem.told("d") for problem in caught.value.problems] == [
        "d/1:1: demo: pkg/new.py: is no Python afterwards: line 1: invalid syntax",
        "d/3:1: demo: pkg/empty.py: is no Python afterwards: line 1: 'return' outside function",
    ]
    apply_series("demo", BASE, series("1", "2", "4"), contents, compiled=True)
    apply_series("demo", BASE, series("1"), contents)
