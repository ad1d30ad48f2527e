"""Patch series: what applies, applies exactly; what does not is named by project, patch, file and line."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from discovery_deploy.software.patches.patch_series import (
    EXECUTABLE,
    LINK,
    REGULAR,
    Series,
    SeriesError,
    SourceFile,
    Tree,
    apply_series,
    base_problem,
    parse_series,
    tree_hash,
)
from discovery_deploy.software.patches.unified_diff import split_lines

LINES = "".join(f"line {number}\n" for number in range(1, 21))


def tree(**files: str) -> dict[str, SourceFile]:
    return {name.replace("__", "/"): SourceFile(REGULAR, text.encode()) for name, text in files.items()}


BASE: Tree = {
    "pkg/a.py": SourceFile(REGULAR, LINES.encode()),
    "pkg/b.py": SourceFile(REGULAR, b"one\ntwo\nthree"),
    "pkg/dos.py": SourceFile(REGULAR, b"one\r\ntwo\r\nthree\r\n"),
    "pkg/empty.py": SourceFile(REGULAR, b""),
    "run.sh": SourceFile(REGULAR, b"#!/bin/sh\n"),
    "link": SourceFile(LINK, b"../outside"),
}


def series(*names: str) -> Series:
    return parse_series("demo", "# base: demo 1.0\n" + "".join(f"{name}\n" for name in names))


def applied(patch: str | bytes, base: Tree = BASE) -> Tree:
    content = patch.encode() if isinstance(patch, str) else patch
    return apply_series("demo", base, series("p.patch"), {"p.patch": content})


def refused(patch: str | bytes, base: Tree = BASE) -> list[str]:
    before = dict(base)
    with pytest.raises(SeriesError) as caught:
        applied(patch, base)
    assert dict(base) == before
    return [problem.told("dir") for problem in caught.value.problems]


def change(path: str, hunks: str) -> str:
    return f"--- a/{path}\n+++ b/{path}\n{hunks}"


MIDDLE = "@@ -9,3 +9,3 @@ def somewhere\n line 9\n-line 10\n+LINE 10\n line 11\n"


def test_a_hunk_replaces_its_lines_and_nothing_else() -> None:
    after = applied("Subject: what it does\n\n" + change("pkg/a.py", MIDDLE))
    assert after["pkg/a.py"].content.decode() == LINES.replace("line 10\n", "LINE 10\n")
    assert {name: file for name, file in after.items() if name != "pkg/a.py"} == {
        name: file for name, file in BASE.items() if name != "pkg/a.py"
    }


@pytest.mark.parametrize("shift", [-5, -1, 1, 7])
def test_lines_that_moved_are_found(shift: int) -> None:
    text = LINES.split("\n", -shift)[-1] if shift < 0 else "".join(f"new {n}\n" for n in range(shift)) + LINES
    after = applied(change("pkg/a.py", MIDDLE), tree(pkg__=text) | {"pkg/a.py": SourceFile(REGULAR, text.encode())})
    assert b"LINE 10\n" in after["pkg/a.py"].content


def test_of_two_places_the_nearer_one_is_taken() -> None:
    block = "x\nold\ny\n"
    text = block + "-\n" * 20 + block + "-\n" * 4
    hunk = "@@ -20,3 +20,3 @@\n x\n-old\n+new\n y\n"
    after = applied(change("f", hunk), tree(f=text))
    assert after["f"].content.decode() == block + "-\n" * 20 + block.replace("old", "new") + "-\n" * 4


def test_later_hunks_follow_the_drift_of_earlier_ones() -> None:
    text = "extra\n" * 3 + LINES
    hunks = "@@ -2,2 +2,3 @@\n line 2\n+between\n line 3\n@@ -15,3 +16,2 @@\n line 15\n-line 16\n line 17\n"
    after = applied(change("f", hunks), tree(f=text))
    assert after["f"].content.decode() == text.replace("line 3\n", "between\nline 3\n").replace("line 16\n", "")


@pytest.mark.parametrize("spoiled", [" line 9x\n", " line  9\n"])
def test_context_must_match_exactly(spoiled: str) -> None:
    assert refused(change("pkg/a.py", MIDDLE.replace(" line 9\n", spoiled))) == [
        f'dir/p.patch:4: demo: pkg/a.py: the hunk does not apply: line 9 should be "{spoiled[1:-1]}", '
        'the file has "line 9"'
    ]


def test_every_hunk_that_does_not_apply_is_told() -> None:
    hunks = MIDDLE.replace("-line 10", "-line ten") + "@@ -30,1 +30,1 @@\n-line 30\n+x\n"
    assert refused(change("pkg/a.py", hunks)) == [
        'dir/p.patch:5: demo: pkg/a.py: the hunk does not apply: line 10 should be "line ten", the file has "line 10"',
        'dir/p.patch:9: demo: pkg/a.py: the hunk does not apply: line 30 should be "line 30", the file ends before it',
    ]


def test_a_patch_that_is_in_already_says_so() -> None:
    told = refused(change("pkg/a.py", MIDDLE), applied(change("pkg/a.py", MIDDLE)))
    assert told == ["dir/p.patch:3: demo: pkg/a.py: the hunk does not apply; the file looks like its result already"]


def test_overlapping_hunks_are_refused() -> None:
    assert "overlaps" in refused(change("pkg/a.py", MIDDLE + MIDDLE))[0]


def test_fewer_lines_before_than_after_mean_the_first_lines() -> None:
    hunk = "@@ -1,2 +1,3 @@\n+new\n line 9\n line 10\n"
    assert "but not at the first lines" in refused(change("pkg/a.py", hunk))[0]
    hunk = "@@ -1,2 +1,3 @@\n+new\n line 1\n line 2\n"
    assert applied(change("pkg/a.py", hunk))["pkg/a.py"].content.startswith(b"new\nline 1\n")


def test_an_insertion_without_any_context_is_refused() -> None:
    assert "no line that says where" in refused(change("pkg/a.py", "@@ -5,0 +6 @@\n+new\n"))[0]


# files


def test_a_new_file_with_directories() -> None:
    patch = "diff --git a/pkg/sub/new.py b/pkg/sub/new.py\nnew file mode 100755\n--- /dev/null\n+++ b/pkg/sub/new.py\n"
    after = applied(patch + "@@ -0,0 +1,2 @@\n+one\n+two\n")
    assert after["pkg/sub/new.py"] == SourceFile(EXECUTABLE, b"one\ntwo\n")


def test_a_new_empty_file_a_mode_and_a_deleted_empty_file() -> None:
    after = applied(
        "diff --git a/pkg/e2.py b/pkg/e2.py\nnew file mode 100644\nindex 0000000..e69de29\n"
        "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n"
        "diff --git a/pkg/empty.py b/pkg/empty.py\ndeleted file mode 100644\nindex e69de29..0000000\n"
    )
    assert after["pkg/e2.py"] == SourceFile(REGULAR, b"")
    assert after["run.sh"].mode == EXECUTABLE
    assert "pkg/empty.py" not in after


def test_a_deleted_file_goes_only_when_the_patch_knows_all_of_it() -> None:
    patch = "--- a/pkg/b.py\n+++ /dev/null\n@@ -1,{n} +0,0 @@\n-one\n-two\n"
    whole = patch.format(n=3) + "-three\n\\ No newline at end of file\n"
    assert "pkg/b.py" not in applied(whole)
    assert "does not take all of its lines away" in refused(patch.format(n=2))[0]


def test_a_new_file_that_is_there_and_a_changed_one_that_is_not() -> None:
    new = "--- /dev/null\n+++ b/pkg/a.py\n@@ -0,0 +1 @@\n+x\n"
    assert refused(new) == ["dir/p.patch:1: demo: pkg/a.py: is to be new, but is there already"]
    assert refused(change("pkg/none.py", MIDDLE)) == ["dir/p.patch:1: demo: pkg/none.py: is not there"]


def test_lines_put_into_an_empty_file() -> None:
    assert applied(change("pkg/empty.py", "@@ -0,0 +1 @@\n+x\n"))["pkg/empty.py"].content == b"x\n"


# ends of lines and files


@pytest.mark.parametrize(
    ("hunk", "result"),
    [
        (" two\n-three\n\\ No newline at end of file\n+three\n", b"one\ntwo\nthree\n"),
        (" two\n-three\n\\ No newline at end of file\n+3\n\\ No newline at end of file\n", b"one\ntwo\n3"),
        ("-two\n+2\n three\n\\ No newline at end of file\n", b"one\n2\nthree"),
    ],
)
def test_a_file_without_a_newline_at_its_end(hunk: str, result: bytes) -> None:
    assert applied(change("pkg/b.py", f"@@ -1,3 +1,3 @@\n one\n{hunk}"))["pkg/b.py"].content == result


def test_a_newline_at_the_end_that_the_file_does_not_have() -> None:
    assert "other line ends" in refused(change("pkg/b.py", "@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"))[0]


def test_carriage_returns_belong_to_lines() -> None:
    hunk = b"@@ -1,3 +1,3 @@\n one\r\n-two\r\n+2\r\n three\r\n"
    head = b"--- a/pkg/dos.py\n+++ b/pkg/dos.py\n"
    assert applied(head + hunk)["pkg/dos.py"].content == b"one\r\n2\r\nthree\r\n"
    assert "other line ends" in refused(head + hunk.replace(b"\r", b""))[0]
    # headers of a patch that went through an editor of another system
    assert applied(head.replace(b"\n", b"\r\n") + hunk)["pkg/dos.py"].content == b"one\r\n2\r\nthree\r\n"


def test_a_patch_that_ends_within_a_line() -> None:
    assert "must end with a newline" in refused(change("pkg/a.py", MIDDLE.rstrip("\n")))[0]


def test_a_blank_context_line_whose_blank_an_editor_took_away() -> None:
    after = applied(change("f", "@@ -1,3 +1,3 @@\n a\n\n-b\n+c\n"), tree(f="a\n\nb\n"))
    assert after["f"].content == b"a\n\nc\n"


# places outside


@pytest.mark.parametrize(
    "name", ["a/../etc/passwd", "a/pkg/../../x", "/etc/passwd", "a//etc/passwd", "a/./x", "a/.git/config", "a/", "x.py"]
)
def test_paths_that_are_not_inside_the_project(name: str) -> None:
    told = refused(f"--- {name}\n+++ {name}\n@@ -1 +1 @@\n-x\n+y\n")
    assert len(told) == 1
    assert told[0].startswith("dir/p.patch:1: demo: ")
    told = refused(f"--- /dev/null\n+++ {name}\n@@ -0,0 +1 @@\n+y\n")
    assert told[0].startswith("dir/p.patch:2: demo: ")


def test_links_are_neither_followed_nor_made() -> None:
    assert 'link" is a symbolic link' in refused("--- /dev/null\n+++ b/link/x\n@@ -0,0 +1 @@\n+y\n")[0]
    assert "is a symbolic link" in refused(change("link", "@@ -1 +1 @@\n-../outside\n+/etc\n"))[0]
    patch = "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/etc\n"
    assert "a symbolic link; patches make files" in refused(patch)[0]


def test_a_file_is_no_directory_and_a_directory_no_file() -> None:
    assert 'run.sh" is a file' in refused("--- /dev/null\n+++ b/run.sh/x\n@@ -0,0 +1 @@\n+y\n")[0]
    assert "is a directory" in refused("--- /dev/null\n+++ b/pkg\n@@ -0,0 +1 @@\n+y\n")[0]


# what is no patch


@pytest.mark.parametrize(
    ("patch", "line", "what"),
    [
        ("nothing here\n", 1, "changes no file"),
        ("diff --git a/x b/x\nGIT binary patch\nliteral 3\n", 2, "binary"),
        ("diff --git a/x b/x\nindex 1..2\nBinary files a/x and b/x differ\n", 3, "binary"),
        ("diff --git a/x b/y\nsimilarity index 100%\nrename from x\n", 1, "lacks one of its two names"),
        ("diff --git a/x b/y\nrename from x\nrename to ../y\n", 3, "leads outside"),
        ("diff --git a/x b/y\nrename from x\nrename to .git/y\n", 3, "git's own"),
        ("diff --git a/x b/y\nrename from x\nrename to y\n", 1, '"x", its earlier name, is not there'),
        (
            "diff --git a/x b/y\nrename from x\nrename to y\n--- a/x\n+++ b/z\n@@ -1 +1 @@\n-x\n+y\n",
            4,
            "not those of the rename",
        ),
        ("diff --git pkg/a.py pkg/a.py\nindex 1..2 100644\n--- pkg/a.py\n+++ pkg/a.py\n", 1, "no a/ and b/"),
        ("diff --git run.sh run.sh\nindex 1..2 100644\n--- run.sh\n+++ run.sh\n", 1, "no a/ and b/"),
        ("--- pkg/a.py\n+++ pkg/a.py\n@@ -1 +1 @@\n-line 1\n+y\n", 1, "no a/ and b/"),
        ("--- a/x\n+++ b/y\n@@ -1 +1 @@\n-x\n+y\n", 1, "rename"),
        ('--- "a/\\303\\244"\n+++ "b/\\303\\244"\n@@ -1 +1 @@\n-x\n+y\n', 1, "quoted"),
        ("@@ -1 +1 @@\n-x\n+y\n", 1, "before any file"),
        ("--- a/x\n+++ b/x\nnot a hunk\n", 3, "no hunk"),
        ("--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n a\n-x\n", 6, "counts more lines"),
        ("--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n a\n?\n-x\n+y\n", 5, "counts more lines"),
        ("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-x\n+y\n+z\n", 6, "more lines than"),
        ("--- a/x\n+++ b/x\n@@ -1 +1 @@\n x\n", 3, "changes nothing"),
        ("diff --git a/x b/x\nindex 1..2 100644\n", 1, "nothing follows"),
        ("diff --git a/x b/x\nold mode 100644\nnew mode 100600\n", 1, "the mode 100600"),
        (
            "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-x\n\\ No newline at end of file\n-z\n+y\n+w\n",
            3,
            "before a line that follows",
        ),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(patch: str, line: int, what: str) -> None:
    told = refused(patch)
    assert len(told) == 1
    assert told[0].startswith(f"dir/p.patch:{line}: demo: ")
    assert what in told[0]


def test_a_mail_of_git_s_is_a_patch() -> None:
    head = "From 1 Mon Sep 17 00:00:00 2001\nSubject: x\n\n--- text\n---\n pkg/a.py | 2 +-\n\n"
    head += "diff --git a/pkg/a.py b/pkg/a.py\nindex 1..2 100644\n"
    mail = f"{head}{change('pkg/a.py', MIDDLE)}-- \n2.39.5\n\n"
    assert b"LINE 10" in applied(mail)["pkg/a.py"].content


def test_a_file_is_renamed_and_copied_as_git_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    (folder / "pkg").mkdir(parents=True)
    one, two = ("".join(f"{word} {number}\n" for number in range(100)).encode() for word in ("def one", "another two"))
    base = {
        "pkg/a.py": SourceFile(REGULAR, one),
        "pkg/b.py": SourceFile(REGULAR, two),
        "run.sh": SourceFile(REGULAR, b"#!/bin/sh\n"),
    }

    def git(*words: str) -> bytes:
        command = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
        return subprocess.run(command, check=True, capture_output=True).stdout

    git("init", "--quiet")
    for name, file in base.items():
        (folder / name).write_bytes(file.content)
    git("add", "--all")
    git("commit", "--quiet", "-m", "base")
    (folder / "pkg/a.py").write_bytes(two.replace(b"two 50", b"two fifty"))  # a and b change their names
    (folder / "pkg/b.py").write_bytes(one)
    (folder / "copy").mkdir()
    (folder / "copy/c.py").write_bytes(one.replace(b"one 10\n", b"one ten\n"))
    (folder / "run.sh").rename(folder / "copy/run.sh")
    (folder / "copy/run.sh").chmod(0o755)
    git("add", "--all")
    patch = git("diff", "--cached", "-M", "-C", "-B", "--find-copies-harder")
    assert (patch.count(b"rename from"), patch.count(b"copy from")) == (3, 1)
    assert applied(patch, base) == {
        "pkg/a.py": SourceFile(REGULAR, two.replace(b"two 50", b"two fifty")),
        "pkg/b.py": SourceFile(REGULAR, one),
        "copy/c.py": SourceFile(REGULAR, one.replace(b"one 10\n", b"one ten\n")),
        "copy/run.sh": SourceFile(EXECUTABLE, b"#!/bin/sh\n"),
    }
    assert "is to be new, but is there already" in refused(patch, {**base, "copy/c.py": base["run.sh"]})[0]


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0\0", b"\x28\xb5\x2f\xfd"])
def test_a_compressed_patch_is_called_so(start: bytes) -> None:
    assert "is compressed; unpack it with" in refused(start + b"\n")[0]


def test_a_byte_order_mark_is_no_text() -> None:
    mark = b"\xef\xbb\xbf"
    assert b"LINE 10" in applied(mark + change("pkg/a.py", MIDDLE).encode())["pkg/a.py"].content
    assert parse_series("demo", "\ufeff# base: demo 1.0\np.patch\n").base.version == "1.0"


# the series


def test_a_series_is_applied_in_order() -> None:
    names = series("1.patch", "sub/2.patch")
    first, second = MIDDLE, MIDDLE.replace("-line 10", "-LINE 10").replace("+LINE 10", "+last")
    contents = {"1.patch": change("pkg/a.py", first).encode(), "sub/2.patch": change("pkg/a.py", second).encode()}
    assert b"last\n" in apply_series("demo", BASE, names, contents)["pkg/a.py"].content


def test_all_patches_are_read_before_any_is_applied() -> None:
    names = series("1.patch", "2.patch", "3.patch")
    contents = {"1.patch": change("none", MIDDLE).encode(), "2.patch": b"x\n"}
    with pytest.raises(SeriesError) as caught:
        apply_series("demo", BASE, names, contents)
    assert [problem.told("d") for problem in caught.value.problems] == [
        "d/2.patch:1: demo: changes no file",
        'd/series:4: demo: there is no "3.patch" beside it',
    ]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a.patch\n", 1, "states no base"),
        ("# base: demo\na.patch\n", 1, "a project and a version"),
        ("# base: demo 1\n# Base: demo 2\na.patch\n", 2, "a second base"),
        ("# base: demo 1\n\n# nothing\n", 1, "lists no patch"),
        ("# base: demo 1\n../a.patch\n", 2, "not a file beside"),
        ("# base: demo 1\n/a.patch\n", 2, "not a file beside"),
        ("# base: demo 1\na.patch -p0\n", 2, "-p1"),
        ("# base: demo 1\na.patch\na.patch\n", 3, "twice"),
    ],
)
def test_a_series_file_with_a_mistake(text: str, line: int, what: str) -> None:
    with pytest.raises(SeriesError) as caught:
        parse_series("demo", text)
    (problem,) = caught.value.problems
    assert (problem.patch, problem.line) == ("series", line)
    assert what in problem.message


def test_comments_and_the_option_that_is_meant_anyway() -> None:
    found = parse_series("demo", "# a comment\n# base: Demo 1.0\na.patch -p1 # why\n\n  b.patch\n")
    assert found.patches == (("a.patch", 3), ("b.patch", 5))


def test_the_base_is_compared() -> None:
    commit = "0123456789" * 4
    assert base_problem(parse_series("d", "# base: Oslo.DB 1.0\na\n"), "oslo-db", "1.0") is None
    assert base_problem(parse_series("d", f"# base: d {commit[:10]}\na\n"), "d", commit) is None
    problem = base_problem(parse_series("d", "# x\n# base: oslo.db 1.0\na\n"), "oslo-db", "1.1")
    assert problem is not None
    assert problem.told("s") == "s/series:2: oslo-db: is made for oslo.db 1.0; the source here is 1.1"
    assert base_problem(parse_series("d", "# base: oslo.db 1.0\na\n"), "nova", "1.0") is not None
    assert base_problem(parse_series("d", f"# base: d {commit[:6]}\na\n"), "d", commit) is not None


def test_the_tree_hash_covers_names_modes_and_contents() -> None:
    one = tree(a="x", b="y")
    variants = [
        one,
        tree(a="x"),
        tree(a="x", c="y"),
        tree(a="x", b="z"),
        one | {"a": SourceFile(EXECUTABLE, b"x")},
    ]
    assert len({tree_hash(each) for each in variants}) == len(variants)
    assert tree_hash(dict(reversed(one.items()))) == tree_hash(one)


def test_lines_are_split_at_line_feeds_only() -> None:
    text = b"a\rb\r\n\x0bc\x0c\n\nlast"
    assert split_lines(text) == [b"a\rb\r\n", b"\x0bc\x0c\n", b"\n", b"last"]
    assert b"".join(split_lines(text)) == text
    assert split_lines(b"") == []


def test_whatever_git_makes_applies_to_what_git_made_it_of(tmp_path: Path) -> None:
    chance = random.Random(3)
    for number in range(40):
        old = [f"{chance.randrange(6)}\n" for _ in range(chance.randrange(0, 60))]
        new = list(old)
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(len(new) + 1)
            new[place : place + chance.randrange(3)] = [f"n{chance.randrange(4)}\n"] * chance.randrange(3)
        before, after = "".join(old), "".join(new)
        if chance.random() < 0.3:
            after = after.rstrip("\n")
        if before == after:
            continue
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "a/f").write_text(before)
        (tmp_path / "b/f").write_text(after)
        command = ["git", "diff", "--no-index", "--no-prefix", f"-U{chance.randrange(1, 4)}", "a/f", "b/f"]
        diff = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).stdout
        assert applied(diff, tree(f=before))["f"].content.decode() == after, f"round {number}"
