"""sheets.py: the right cells are blue, nothing is cut off, any number of classes and pictures goes."""

from __future__ import annotations

import numpy as np
import pytest

from flowers_pl.runs.sheets import GAP, LINE, Captioned, _fitted, _font, matrix_sheet, photo_sheet


def inked(sheet: np.ndarray) -> np.ndarray:
    return np.asarray((sheet < 250).any(2))


@pytest.mark.parametrize("classes", [2, 5, 8, 9, 20, 41, 250])
def test_a_cell_is_as_blue_as_its_share_of_the_row(classes: int) -> None:
    rng = np.random.default_rng(classes)
    matrix = rng.permuted(np.eye(classes, dtype=int) * 50, axis=1)  # one full cell a row
    names = [f"class {place} of many" for place in range(classes)]
    sheet = matrix_sheet(matrix, names, "title").astype(int)
    cell = {2: 52, 5: 52, 8: 52, 9: 30, 20: 30, 41: 12, 250: 2}[classes]
    left, top = sheet.shape[1] - GAP - cell * classes, 3 * LINE
    if classes <= 3:  # the title may be wider than the matrix
        left = GAP + max(round(_font().getlength(f"{name} {n}")) + GAP for n, name in enumerate(names, 1))
    corners = sheet[top::cell, left::cell][:classes, :classes]  # a corner of each cell, clear of its number
    blue = corners[..., 2] - corners[..., 0] > 60
    assert np.array_equal(blue, matrix > 0)


@pytest.mark.parametrize("classes", [2, 8, 20, 41])
def test_nothing_touches_the_edge(classes: int) -> None:
    names = [f"{'long-named ' * (place % 4)}class {place}" for place in range(classes)]
    matrix = np.full((classes, classes), 1234)
    ink = inked(matrix_sheet(matrix, names, "epoch 3: 689 judged, 87.4% right; rows: truth"))
    pictures = [Captioned(np.zeros((40, 60, 3), np.uint8), (name, "caption")) for name in names]
    for picture in (ink, inked(photo_sheet(pictures, "a title that is wider than a picture"))):
        assert picture.any()
        assert not picture[0].any()
        assert not picture[-1].any()
        assert not picture[:, 0].any()
        assert not picture[:, -1].any()


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11])
def test_each_picture_stands_whole_in_its_place(count: int) -> None:
    rng = np.random.default_rng(0)
    pictures = [
        Captioned(rng.integers(0, 200, (30, 50, 3), dtype=np.uint8), ("one", "two")) for _ in range(count)
    ]
    sheet = photo_sheet(pictures, "title")
    for place, one in enumerate(pictures):
        x, y = GAP + place % 4 * (50 + GAP), 2 * LINE + place // 4 * (30 + 2 * LINE + 2 * GAP)
        assert np.array_equal(sheet[y : y + 30, x : x + 50], one.pixels)
    if not count:
        assert inked(sheet).any()


def test_long_captions_are_cut() -> None:
    assert _fitted("short", 100) == "short"
    cut = _fitted("a caption that does not go under its picture", 100)
    assert cut.endswith("…")
    assert 80 < _font().getlength(cut) <= 100
