"""photos.py: which files are photos of which class."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowers_pl.core.errors import FlowersError
from flowers_pl.data.folder import Photo, check_classes, list_photos, list_pictures


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def test_photos_are_sorted_and_hidden_ones_are_passed_over(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "tulip/b.jpg",
        "tulip/a.jpg",
        "rose/deep/er/c.png",
        "rose/.hidden.jpg",
        ".ipynb_checkpoints/x.jpg",
        "tulip/.ipynb_checkpoints/y.jpg",
        "LICENSE.txt",
        "rose/näme with\nnewline, and comma.jpg",
    )
    assert list_photos(tmp_path) == [
        Photo("rose/deep/er/c.png", "rose"),
        Photo("rose/näme with\nnewline, and comma.jpg", "rose"),
        Photo("tulip/a.jpg", "tulip"),
        Photo("tulip/b.jpg", "tulip"),
    ]


def test_what_is_wrong_with_a_folder_is_said_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FlowersError, match=r"no folder .*nowhere"):
        list_photos(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    touch(tmp_path, "flat/a.jpg")
    with pytest.raises(FlowersError, match="no class folders"):
        list_photos(tmp_path / "flat")
    touch(tmp_path, "set/rose/a.jpg")
    (tmp_path / "set" / "tulip").mkdir()
    with pytest.raises(FlowersError, match=r"'.*set/tulip' is empty"):
        list_photos(tmp_path / "set")


def test_one_class_or_one_photo_is_not_enough() -> None:
    rose, other, tulip = Photo("rose/a", "rose"), Photo("rose/b", "rose"), Photo("tulip/a", "tulip")
    with pytest.raises(FlowersError, match="one class only, 'rose'"):
        check_classes([rose, other], [rose, other], "root")
    with pytest.raises(FlowersError, match="class 'tulip' in 'root' has 1 usable"):
        check_classes([rose, other, tulip], [rose, other, tulip], "root")


def test_pictures_to_predict_may_be_one_or_a_nested_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "deep/a.jpg", ".hidden/c.jpg")
    assert list_pictures(tmp_path / "b.jpg") == (tmp_path, ["b.jpg"])
    assert list_pictures(tmp_path) == (tmp_path, ["b.jpg", "deep/a.jpg"])
    with pytest.raises(FlowersError, match="no photo or folder"):
        list_pictures(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlowersError, match="empty"):
        list_pictures(tmp_path / "empty")
