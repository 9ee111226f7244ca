"""Shared ground: a folder of drawings, a trained run, and real photos where they are at hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from flowers_pl.data.datamodule import FlowersDataModule
from flowers_pl.data.drawing_folder import write_drawings

if TYPE_CHECKING:
    import httpx
    from playwright.sync_api import Browser

    from flowers_pl.serving.models import ServedModel

SIZE = 32  # pixels a side: the smallest that the backbone takes


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded photos go to a folder of the tests' own."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten drawings of each of five kinds; read only."""
    root = tmp_path_factory.mktemp("photos") / "drawings"
    write_drawings(root, 10, seed=0, size=48)
    return root


@pytest.fixture
def data(drawings: Path) -> FlowersDataModule:
    """The drawings, split, in batches of eight."""
    module = FlowersDataModule(root=str(drawings), image_size=SIZE, batch_size=8, workers=0)
    module.prepare_data()
    module.setup("fit")
    return module


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, started anew for each module: Playwright's event loop is in the way of others."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    missing = "" if program else "there is no Chromium (Debian's package 'chromium')"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed"
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{missing}, and pages must be tested where CI=true")
    if missing:
        pytest.skip(f"{missing}, so pages are not tested")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def plain() -> ServedModel:
    """A model as it is served."""
    from serving import classifier, served

    return served(classifier())


@pytest.fixture(scope="module")
def client(plain: ServedModel) -> Iterator[httpx.Client]:
    """A client of a server with the page."""
    from serving import running

    with running(plain, page=True) as session:
        yield session


def _given(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(
            f"{variable} is not set: it names the real {variable.removeprefix('FLOWERS_').lower()} to test on"
        )
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """Folder of real photos."""
    return _given("FLOWERS_PHOTOS")


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """ImageNet weights of MobileNetV2."""
    return _given("FLOWERS_WEIGHTS")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A fixture of a wider scope may have changed it before a test, and the test itself may change it."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Nets this small are slower on more threads, threads of several tests at once fight, and sums differ in
    the last bit with the number of threads."""
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow or release, too")


LONG_FILES = {  # come first, so that none is left alone at the end where several processes run tests
    f"test_{name}"
    for name in (
        "ddp", "predict", "stopping", "notebook", "mobile", "export", "serving_load", "without_opencv",
    )
}  # fmt: skip
LONG_EXAMPLES = ("export_onnx", "check_export")  # in docstrings; each exports a model


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG_FILES)
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.name.endswith(LONG_EXAMPLES):
            item.add_marker(pytest.mark.release)
    if not config.getoption("--run-slow"):
        for item in items:
            if not {"slow", "release"}.isdisjoint(item.keywords):
                item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what is not UTF-8 in the output of a test: processes of pytest-xdist cannot send it."""
    report = yield
    report.sections = [(name, _utf8(text)) for name, text in report.sections]
    if (said := str(report.longrepr)) != _utf8(said):
        report.longrepr = _utf8(said)
    return report


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
