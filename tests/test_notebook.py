"""notebooks/flowers.ipynb: committed without outputs, through public names, and runs from top to bottom."""

from __future__ import annotations

import ast
import base64
import io
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import flowers_pl

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "flowers.ipynb"
PICTURES = 7  # augmentation, curves, confusion, reliability, mistakes, Grad-CAM of one and of many


class Shown(NamedTuple):
    """What an executed notebook shows.

    Args:
        text: all that it printed.
        captions: Markdown that it displayed.
        pictures: its pictures, decoded.
        folder: where it wrote.
    """

    text: str
    captions: list[str]
    pictures: list[np.ndarray]
    folder: Path


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code() -> list[str]:
    return [cell.source for cell in read().cells if cell.cell_type == "code"]


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> Shown:
    """Execute the notebook in a Jupyter kernel of its own, in an empty folder, and collect what it shows."""
    for name in ("here", "temporary", "jupyter"):
        (tmp_path / name).mkdir()
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))  # nothing of the user's
    for name in ("FLOWERS_PHOTOS", "FLOWERS_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # as the one_thread fixture
    places = {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    for name, value in (threads | places | variables).items():
        monkeypatch.setenv(name, value)
    notebook = read()
    where = {"metadata": {"path": str(tmp_path / "here")}}
    NotebookClient(notebook, kernel_name="python3", resources=where).execute()
    assert list((tmp_path / "here").iterdir()) == []
    (folder,) = (tmp_path / "temporary").glob("flowers-*")
    return collect(notebook, folder)


def collect(notebook: nbformat.NotebookNode, folder: Path) -> Shown:
    outputs = [one for cell in notebook.cells if cell.cell_type == "code" for one in cell.outputs]
    found = [one.data for one in outputs if one.output_type == "display_data"]
    pngs = [base64.b64decode(data["image/png"]) for data in found if "image/png" in data]
    return Shown(
        text="".join(one.text for one in outputs if one.output_type == "stream"),
        captions=[data["text/markdown"] for data in found if "text/markdown" in data],
        pictures=[np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in pngs],
        folder=folder,
    )


def check(shown: Shown, what: str) -> float:
    """What holds on drawings and on photos; gives the accuracy."""
    assert len(shown.pictures) == PICTURES
    assert all(min(picture.shape[:2]) > 150 and picture.std() > 5 for picture in shown.pictures)
    assert re.search(rf"^\d+ .*validation {what}.*\nThese images also chose", shown.text, re.MULTILINE)
    assert "stage 1:" in shown.text
    assert "stage 2:" in shown.text
    sentence = r"the checkpoint's class for (\d+) of (\d+) validation images \((\d+) of"
    agreement = re.search(sentence, shown.text)
    assert agreement is not None
    same, compared, ties = map(int, agreement.groups())
    assert same + ties == compared >= 5
    files = {"best.ckpt", "last.ckpt", "metrics.csv", "final.pt2"}
    assert files <= {path.name for path in shown.folder.iterdir()}
    accuracy = re.search(r"^accuracy +([\d.]+)", shown.text, re.MULTILINE)
    assert accuracy is not None
    return float(accuracy[1])


def test_committed_without_outputs_and_traces_of_a_machine() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert cell.metadata == {}
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)
        assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\", cell.source)


def test_uses_public_names_that_exist() -> None:
    nodes = [node for source in code() for node in ast.walk(ast.parse(source))]
    imported = [
        (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("flowers_pl")
        for alias in node.names
    ]
    assert ("flowers_pl", "FlowerClassifier") in imported
    for module, name in imported:
        assert hasattr(import_module(module), name), f"{module} has no {name}"
        assert not name.startswith("_")
        assert (module == "flowers_pl") == (name in flowers_pl.__all__)
    attributes = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    assert [name for name in attributes if name.startswith("_")] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_on_drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(tmp_path, monkeypatch)
    assert check(shown, "drawings") > 0.6  # a guess is right in 0.2
    assert "DRAWINGS of flowers, not photos" in shown.text
    assert shown.captions == ["*These are drawings, not photos:*"] * PICTURES


@pytest.mark.release
def test_runs_on_photos(
    real_photos: Path, real_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in sorted(path for path in real_photos.iterdir() if path.is_dir()):
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:24]:
            shutil.copy(photo, tmp_path / "photos" / folder.name)
    few = str(tmp_path / "photos")
    shown = run(tmp_path, monkeypatch, FLOWERS_PHOTOS=few, FLOWERS_WEIGHTS=str(real_weights))
    assert check(shown, "photos") > 0.4  # a guess is right in 0.2
    assert "drawing" not in shown.text.lower()
    assert shown.captions == []
