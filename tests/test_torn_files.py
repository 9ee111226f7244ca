"""Tables and JSON of a run that are torn, locked, or were saved by another program."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from flowers_pl import EpochTable, FlowersError
from flowers_pl.core.files import read_json
from flowers_pl.core.names import EXPORTS, SPLIT, TEST_JSON
from flowers_pl.runs import results
from flowers_pl.runs.folder import rows_of, split_of
from flowers_pl.runs.judgement import read_known


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"torn",
        b"epoch,val_loss\n0,torn\n",
        b"epoch,val_loss\n\xff,1\n",
        b"epoch\n1.5\n",
        b"\xff\xfea",
        b"\x00",
    ],
)
def test_a_damaged_metrics_csv_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_bytes(content)
    with pytest.raises(FlowersError, match=r"metrics\.csv' is not as the run wrote it \(.+\); restore it"):
        EpochTable(file)


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_metrics_csv_that_went_through_a_spreadsheet_is_read(separator: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(f"epoch{separator}val_loss\n0{separator}0.5\n", encoding="utf-8-sig")
    assert EpochTable(file).rows == {0: {"epoch": 0, "val_loss": 0.5}}


@pytest.mark.parametrize("content", [b"", b"torn", b"path,label\na,b\n", b"\xff\xfe\x00"])
def test_a_damaged_split_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / SPLIT).write_bytes(content)
    with pytest.raises(FlowersError, match=r"split\.csv' is not as the run wrote it \(.+\); restore it"):
        split_of(tmp_path / "best.ckpt")
    assert rows_of(tmp_path / "nothing.csv", ["path"]) == []


@pytest.mark.parametrize("name", [EXPORTS, TEST_JSON])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff", b'{"step": 1}', b'{"files": [], "step": 1}']
)
def test_damaged_json_costs_the_card_what_it_held(
    name: str, content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(content)
    entries = {"step": int, "files": dict} if name == EXPORTS else {"judged": str, "photos": int}
    with caplog.at_level(logging.WARNING, "flowers_pl"):
        assert read_known(tmp_path / name, **entries) == {}
    assert f"{name} is damaged, so the model card does not use it" in caplog.text


def test_test_json_of_0_1_0_is_read(tmp_path: Path) -> None:
    (tmp_path / TEST_JSON).write_text(json.dumps({"judged": "caf\udce9", "photos": 1, "step": 2}, indent=2))
    assert read_json(tmp_path / TEST_JSON)["judged"] == "caf\udce9"


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\ntorn"])
def test_a_damaged_picture_in_plots_is_passed_over(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.png").write_bytes(content)
    results.log_pictures(tmp_path)
    assert "TensorBoard does not show" in caplog.text
