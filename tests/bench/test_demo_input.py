"""Which records the demo makes of files, and that its digest tells any difference."""

from __future__ import annotations

import os
from itertools import repeat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import demo_input
from bench.demo_input import BadInput, RecordDigest, find_sources, read_chunks


def read_records(path: Path) -> list[tuple[bytes, bytes]]:
    chunks = read_chunks(find_sources(path))
    return [(chunk.key, value) for chunk in chunks for value in chunk.values]


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),  # no line feed at the end
        (b"\n", [b""]),
        (b"\n\na\n\n", [b"", b"", b"a", b""]),
        (b"a\r\nb\rc", [b"a\r", b"b\rc"]),  # only the line feed ends a line
        (b"\x00\xff\n\xfe", [b"\x00\xff", b"\xfe"]),
        (b"\x00" * 9, [b"\x00" * 9]),
    ],
)
def test_lines_become_records(tmp_path: Path, content: bytes, values: list[bytes]) -> None:
    path = write(tmp_path, "odd.bin", content)
    assert read_records(path) == [(b"odd.bin", value) for value in values]


def test_a_folder_is_read_whole_in_a_fixed_order(tmp_path: Path) -> None:
    write(tmp_path, "b/x.txt", b"3\n")
    write(tmp_path, "b/a/y", b"4")
    write(tmp_path, "a.txt", b"1\n2\n")
    write(tmp_path, "z", b"")  # an empty file has no records
    write(tmp_path, os.fsdecode(b"c\xff"), b"5")  # a name that is no UTF-8
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")  # never opened: that would wait for ever
    assert read_records(tmp_path) == [
        (b"a.txt", b"1"),
        (b"a.txt", b"2"),
        (b"c\xff", b"5"),
        (b"b/x.txt", b"3"),
        (b"b/a/y", b"4"),
    ]


def test_a_chunk_counts_its_bytes_and_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path, "f", b"1234\n" * 7)
    chunks = list(read_chunks(find_sources(path), chunk_bytes=10))
    assert [len(chunk.values) for chunk in chunks] == [2, 2, 2, 1]
    assert sum(chunk.input_bytes for chunk in chunks) == 35


@given(st.binary(max_size=60).map(lambda data: data.replace(b"a", b"\n")))
def test_lines_longer_than_the_limit_are_cut_and_no_byte_is_lost(content: bytes) -> None:
    limit, expected = 4, []
    for line in content.removesuffix(b"\n").split(b"\n") if content else []:
        expected += [line[at : at + limit] for at in range(0, len(line), limit)] or [b""]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_input, "LINE_BYTES_MAX", limit)
        import io

        chunks = demo_input._chunk_lines(io.BytesIO(content), 8)
        assert [value for values, _ in chunks for value in values] == expected


@pytest.mark.parametrize("make", ["missing", "empty file", "empty folder", "folder of empty files"])
def test_what_gives_no_record_is_refused_in_one_line(tmp_path: Path, make: str) -> None:
    path = tmp_path / "in"
    match make:
        case "empty file":
            path.write_bytes(b"")
        case "empty folder":
            path.mkdir()
        case "folder of empty files":
            write(path, "a", b"")
    with pytest.raises(
        BadInput, match="no such file" if make == "missing" else "is empty"
    ) as caught:
        find_sources(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_is_refused() -> None:
    with pytest.raises(BadInput, match="neither a file nor a folder"):
        find_sources(Path("/dev/null"))


def test_the_standard_library_is_python_source_only() -> None:
    keys = {source.key for source in find_sources(None)}
    assert {b"abc.py", b"asyncio/tasks.py", b"json/__init__.py"} <= keys
    assert all(key.endswith(b".py") and b"site-packages" not in key for key in keys)


def digest_of(records: list[tuple[bytes, bytes]]) -> str:
    digest = RecordDigest()
    digest.add([key for key, _ in records], [value for _, value in records])
    return digest.hexdigest()


def test_the_digest_tells_order_borders_and_keys_apart() -> None:
    records = [(b"k", b"ab"), (b"k", b"c")]
    others = [
        records[::-1],
        [(b"k", b"a"), (b"k", b"bc")],
        [(b"k", b"abc")],
        [(b"ka", b"b"), (b"k", b"c")],
        [(b"", b"kab"), (b"k", b"c")],
        [*records, (b"k", b"")],
        records[:1],
        [(b"k", b"ab"), (b"k", b"d")],
    ]
    digests = {digest_of(other) for other in [records, *others]}
    assert len(digests) == 1 + len(others)


def test_the_digest_does_not_depend_on_how_records_come() -> None:
    """Appended in chunks of a file, read back in other groups."""
    values = [b"", b"x", b"yz"]
    at_once, one_by_one = RecordDigest(), RecordDigest()
    at_once.add(repeat(b"key"), values)
    for value in values:
        one_by_one.add([b"key"], [value])
    assert at_once.hexdigest() == one_by_one.hexdigest()
    assert (at_once.records, at_once.value_bytes) == (3, 3)
