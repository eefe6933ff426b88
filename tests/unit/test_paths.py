"""Names that must not escape, by any way of opening them."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stores.errors import InvalidReference, PolicyRefused
from stores.paths import (
    NAME_LIMIT,
    allowed_directory,
    check_prefix,
    check_ref,
    in_listing,
    is_ref,
    is_temporary,
    open_beneath,
    open_directory,
    open_stepwise,
    temporary_name,
)

Opener = Callable[[int, Sequence[str], int], int]

TAG = "0123456789abcdef"

any_text = st.text(st.characters(codec=None), max_size=40)
components = st.text("ab.-/\\ \0\n~$é", max_size=12)


@given(st.one_of(any_text, components))
def test_accepted_ref_stays_inside_whatever_it_is_joined_to(ref: str) -> None:
    if not is_ref(ref):
        with pytest.raises(InvalidReference) as caught:
            check_ref(ref)
        assert str(caught.value.details).isprintable()
        assert caught.value.message.isprintable()
        return
    parts = check_ref(ref)
    joined = os.path.normpath(os.path.join("/root/of/store", ref))
    assert joined == "/root/of/store/" + ref
    assert "/".join(parts) == ref
    assert not any(part in ("", ".", "..") or part.startswith("-") or is_temporary(part) for part in parts)
    assert os.fsencode(ref).find(b"\0") == -1
    assert all(len(os.fsencode(part)) <= NAME_LIMIT for part in parts)


@given(st.text(st.characters(min_codepoint=32, exclude_characters="/\x7f", codec="utf-8"), min_size=1))
def test_temporary_name_is_one_valid_component_of_its_own_kind(name: str) -> None:
    temporary = temporary_name(name, TAG)
    assert is_temporary(temporary)
    assert len(temporary.encode()) <= NAME_LIMIT
    assert "/" not in temporary
    assert not is_ref(temporary)


@pytest.mark.parametrize(
    ("ref", "prefix", "shown"),
    [
        ("a/b", "", True),
        ("a/b", "a", True),
        ("a/b", "a/b", True),
        ("a/bc", "a/b", False),
        (".storage-agent/x", "", False),
        (".storage-agent", "", False),
        (".storage-agent2/x", "", True),
        ("a/.storage-agent/x", "", True),
        (".storage-agent/x", ".storage-agent", True),
        (".storage-agent/x", ".storage-agent/x", True),
    ],
)
def test_what_a_listing_shows(ref: str, prefix: str, shown: bool) -> None:
    assert in_listing(ref, check_prefix(prefix)) is shown


def test_prefix_loses_one_slash_and_nothing_else() -> None:
    assert check_prefix("a/b/") == "a/b"
    for bad in ("/", "a//", "//", "../", "a/./"):
        with pytest.raises(InvalidReference):
            check_prefix(bad)


# ------------------------------------------------------------------------------------------------------- opening


@pytest.fixture(scope="module")
def tree() -> Iterator[tuple[int, Path]]:
    """A directory with every sort of way out of it."""
    with tempfile.TemporaryDirectory() as folder:
        outside = Path(folder) / "outside"
        inside = Path(folder) / "inside"
        (inside / "dir" / "deeper").mkdir(parents=True)
        outside.mkdir()
        (outside / "secret").write_text("secret")
        (inside / "file").write_text("file")
        (inside / "dir" / "deeper" / "file").write_text("deep")
        (inside / "link-file").symlink_to("file")
        (inside / "link-dir").symlink_to("dir")
        (inside / "link-secret").symlink_to(outside / "secret")
        (inside / "link-nowhere").symlink_to(outside / "missing")
        (inside / "link-outside").symlink_to(outside)
        (inside / "link-proc").symlink_to("/proc/self/root")
        (inside / "dir" / "up").symlink_to("..")
        descriptor = open_directory(inside)
        try:
            yield descriptor, inside
        finally:
            os.close(descriptor)


openers = pytest.mark.parametrize("opener", [open_beneath, open_stepwise])


@openers
def test_file_below_is_opened(tree: tuple[int, Path], opener: Opener) -> None:
    for path, text in (("file", b"file"), ("dir/deeper/file", b"deep")):
        descriptor = opener(tree[0], path.split("/"), os.O_RDONLY)
        try:
            assert os.read(descriptor, 10) == text
            assert os.get_inheritable(descriptor) is False
        finally:
            os.close(descriptor)


@openers
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH, os.O_RDONLY | os.O_DIRECTORY, os.O_PATH | os.O_DIRECTORY])
@pytest.mark.parametrize(
    "path",
    [
        "link-file",
        "link-dir",
        "link-secret",
        "link-nowhere",
        "link-outside",
        "link-proc",
        "link-dir/deeper",
        "link-outside/secret",
        "link-outside/missing",
        "link-nowhere/secret",
        "link-proc/etc/passwd",
        "dir/up",
        "dir/up/file",
        "dir/up/missing",
    ],
)
def test_symbolic_links_are_refused_alike_whatever_they_name(
    tree: tuple[int, Path], opener: Opener, flags: int, path: str
) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is checked
        opener(tree[0], path.split("/"), flags)
    assert caught.value.errno == errno.ELOOP


names = st.sampled_from(
    [
        "file",
        "dir",
        "deeper",
        "missing",
        "link-file",
        "link-dir",
        "link-secret",
        "link-outside",
        "link-proc",
        "up",
        "etc",
    ]
)


@settings(max_examples=300)
@given(path=st.lists(names, min_size=1, max_size=4), flags=st.sampled_from([os.O_PATH, os.O_RDONLY, os.O_DIRECTORY]))
def test_both_ways_of_opening_agree_and_stay_inside(tree: tuple[int, Path], path: list[str], flags: int) -> None:
    outcomes = []
    for opener in (open_beneath, open_stepwise):
        try:
            descriptor = opener(tree[0], path, flags)
        except OSError as error:
            outcomes.append(error.errno)
            continue
        try:
            real = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            assert real == tree[1].joinpath(*path)
            outcomes.append(-os.fstat(descriptor).st_ino)
        finally:
            os.close(descriptor)
    assert outcomes[0] == outcomes[1]


@openers
@pytest.mark.parametrize("path", [["..", "outside", "secret"], ["dir", "..", "..", "outside"]])
def test_dots_do_not_leave_even_unchecked(tree: tuple[int, Path], opener: Opener, path: list[str]) -> None:
    if opener is open_stepwise:
        assert not is_ref("/".join(path))  # there the check of the ref is what refuses them
        return
    with pytest.raises(OSError) as caught:  # noqa: PT011
        opener(tree[0], path, os.O_RDONLY)
    assert caught.value.errno == errno.EXDEV


def test_kernel_without_openat2_is_served_the_other_way(
    tree: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stores.paths._SYS_OPENAT2", 9999)  # no such system call: ENOSYS
    descriptor = open_beneath(tree[0], ("dir", "deeper", "file"), os.O_RDONLY)
    try:
        assert os.read(descriptor, 10) == b"deep"
    finally:
        os.close(descriptor)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        open_beneath(tree[0], ("link-dir", "deeper", "file"), os.O_RDONLY)
    assert caught.value.errno == errno.ELOOP


def test_opening_leaves_no_descriptor_behind(tree: tuple[int, Path]) -> None:
    before = os.listdir("/proc/self/fd")
    for path in (["missing"], ["link-dir", "x"], ["file", "x"], ["dir", "missing", "x"], ["link-file"]):
        for opener in (open_beneath, open_stepwise):
            with pytest.raises(OSError):  # noqa: PT011
                opener(tree[0], path, os.O_PATH)
    assert os.listdir("/proc/self/fd") == before


def test_directory_itself_is_opened_without_components(tree: tuple[int, Path]) -> None:
    descriptor = open_beneath(tree[0], (), os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert stat.S_ISDIR(os.fstat(descriptor).st_mode)
        assert "file" in os.listdir(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------------- allow-list


def test_directory_in_or_below_a_root_is_allowed(tmp_path: Path) -> None:
    root = tmp_path / "pools"
    (root / "one").mkdir(parents=True)
    assert allowed_directory(root, [root]) == root
    assert allowed_directory(root / "one", [tmp_path / "other", root]) == root / "one"
    assert allowed_directory(root / "not yet" / "made", [root]) == root / "not yet" / "made"


def test_root_that_is_a_link_counts_as_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "real" / "pool").mkdir(parents=True)
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert allowed_directory(tmp_path / "root" / "pool", [tmp_path / "root"]) == tmp_path / "real" / "pool"
    assert allowed_directory(tmp_path / "real" / "pool", [tmp_path / "root"]) == tmp_path / "real" / "pool"


def test_directory_outside_is_refused_and_the_setting_named(tmp_path: Path) -> None:
    root = tmp_path / "pools"
    root.mkdir()
    (tmp_path / "pools-other").mkdir()
    (root / "escape").symlink_to("/etc")
    for path in (tmp_path, tmp_path / "pools-other", Path("/etc"), root / "escape", root / "escape" / "missing"):
        with pytest.raises(PolicyRefused) as caught:
            allowed_directory(path, [root])
        assert "pools.roots" in caught.value.message
        assert str(root) in caught.value.message
    with pytest.raises(PolicyRefused):
        allowed_directory(root, [])


@pytest.mark.parametrize("path", ["relative", ".", "/pools/../etc", "/pools/\0"])
def test_malformed_directory_is_refused(path: str) -> None:
    with pytest.raises(InvalidReference):
        allowed_directory(Path(path), [Path("/pools")])
