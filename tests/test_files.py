"""Tables and JSON files: always UTF-8, with the bytes of any name, and the files of 0.1.0 still read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from flowers_pl.core.files import read_csv, read_json, write_csv, write_json
from flowers_pl.core.paths import expanded
from flowers_pl.core.text import escape_bytes, unescape_bytes

NAMES = [
    "daisy.jpg",
    "Gänseblümchen.jpg",
    os.fsdecode(b"latin \xe8.jpg"),
    "a\\b",
    "\\xe8",
    "=1+1",
    "'=1",
    "\\\\",
    "\n",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_comes_back_from_files_that_are_utf_8(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["path", "n"], [[name, 1]])
    write_json(tmp_path / "t.json", {name: [name, 1, None]})
    for file in ("t.csv", "t.json"):
        (tmp_path / file).read_bytes().decode("utf-8")
    assert read_csv(tmp_path / "t.csv") == [{"path": name, "n": "1"}]
    assert read_json(tmp_path / "t.json") == {name: [name, 1, None]}
    assert unescape_bytes(escape_bytes(name)) == name


def test_a_table_that_cannot_be_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "t.csv", ["n"], [[1]])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("flowers_pl.core.files.sync_file", full)
        with pytest.raises(OSError, match="No space"):
            write_csv(tmp_path / "t.csv", ["n"], [[2]])
    assert read_csv(tmp_path / "t.csv") == [{"n": "1"}]
    (tmp_path / "link.csv").symlink_to(tmp_path / "t.csv")
    write_csv(tmp_path / "link.csv", ["n"], [[3]])
    assert read_csv(tmp_path / "t.csv") == [{"n": "3"}]
    assert sorted(os.listdir(tmp_path)) == ["link.csv", "t.csv"]
    write_csv(os.devnull, ["n"], [[1]])
    assert not Path(os.devnull).is_file()


def test_a_table_of_0_1_0_with_raw_bytes_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_bytes(b"path,label\nrose/latin \xe8.jpg,rose\nrose/a\\b.jpg,rose\n")
    assert [row["path"] for row in read_csv(tmp_path / "old.csv")] == [
        os.fsdecode(b"rose/latin \xe8.jpg"),
        "rose/a\\b.jpg",
    ]


def test_paths_are_expanded_and_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expanded("~/photos") == expanded("photos") == str(tmp_path / "photos")
