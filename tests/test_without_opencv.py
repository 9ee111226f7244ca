"""Without OpenCV, as in a container without libGL: heat maps in closed form, one sentence for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

BLOCK = """
import sys

class NoOpenCV:
    def find_spec(self, name, path=None, target=None):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

sys.meta_path.insert(0, NoOpenCV())
"""
SMALL = {
    "data": {"image_size": 32, "batch_size": 8, "workers": 0},
    "model": {"weights": None},
    "unfreeze": {"head_epochs": 1, "top_epochs": 0},
    "gradcam": {"every_n_epochs": 1},
    "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder of a machine without OpenCV."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(BLOCK)
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


def run(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    paths = [str(home / "site"), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "flowers_pl", *args]
    return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=600)


def test_training_and_heat_maps_go_on_without_opencv(home: Path, drawings: Path) -> None:
    given = [
        "--config",
        "small.yaml",
        "--data.root",
        str(drawings),
        "--run_name",
        "first",
        "--export",
        "none",
    ]
    fitted = run(home, "fit", *given)
    assert fitted.returncode == 0, fitted.stderr
    assert "Traceback" not in fitted.stderr
    explained = run(home, "explain", "--most", "3")
    assert explained.returncode == 0, explained.stderr
    assert (home / "checkpoints" / "first" / "gradcam" / "gradcam_grid.png").exists()


@pytest.mark.parametrize(
    "args",
    [
        pytest.param(["--method", "layercam"], marks=pytest.mark.release),
        pytest.param(["--layer", "backbone.3"], marks=pytest.mark.release),
        pytest.param(["--faithfulness", "2"], marks=pytest.mark.release),
    ],
    ids=" ".join,
)
def test_what_needs_opencv_says_so_in_a_sentence(home: Path, args: list[str]) -> None:
    refused = run(home, "explain", "--most", "3", *args)
    assert refused.returncode == 1
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("flowers_pl: ")]
    assert args[0] in line
    assert "opencv-python-headless" in line
    assert "Traceback" not in refused.stderr
