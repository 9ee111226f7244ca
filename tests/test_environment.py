"""What the environment lacks costs a feature, not the run: a home, streams, semaphores, locks, cores."""

from __future__ import annotations

import errno
import json
import logging
import math
import multiprocessing.synchronize
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import MobileNet_V2_Weights

from flowers_pl import main
from flowers_pl.core import files, system
from flowers_pl.core.errors import FlowersError
from flowers_pl.core.files import replace_by_copy, replacing
from flowers_pl.data.cache import decode_photos
from flowers_pl.data.cache_folder import default_cache_dir, temporary_cache_dir
from flowers_pl.data.cache_list import clear_cache
from flowers_pl.data.folder import list_photos
from flowers_pl.network import weights

fcntl = pytest.importorskip("fcntl", reason="these environments are not those of Windows")


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files go to a folder of the test's own, and warnings are given again."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    files.warn_once.cache_clear()


def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `docker run --user 12345` gives: no HOME, and no entry in the list of users."""

    def unknown(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for variable in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def audit(root: Path, output: Path, *more: str) -> int:
    return main(
        ["audit", "--data.root", str(root), "--data.image_size", "32", "--data.workers", "0",
         "--model.weights", "null", "--output", str(output), *more]
    )  # fmt: skip


def test_a_user_without_a_home(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    without_home(monkeypatch)
    assert audit(drawings, tmp_path / "audit") == 0
    assert audit(drawings, tmp_path / "audit") == 0
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("The default cache folder cannot be used ([Errno 2] there is no home folder)")
    assert main(["cache"]) == 0
    assert f"{temporary_cache_dir()} holds 1 set of decoded photos" in capsys.readouterr().out


def test_a_relative_cache_home_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each working folder gets decoded photos of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert default_cache_dir() == tmp_path / ".cache" / "flowers_pl"


def test_a_home_that_cannot_be_written_to(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").touch()  # even root cannot make a folder in a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert audit(drawings, tmp_path / "audit") == 0
    assert str(temporary_cache_dir()) in caplog.text
    assert list(temporary_cache_dir().glob("drawings-*/pixels-*"))


def test_a_cache_folder_that_was_given_is_not_replaced(
    drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert audit(drawings, tmp_path / "audit", "--data.cache_dir", str(tmp_path / "file" / "cache")) == 1
    assert "--data.cache_dir: decoded photos cannot be written to" in capsys.readouterr().err
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_another_user_has_made_the_temporary_cache_folder_first(tmp_path: Path) -> None:
    assert stat.S_IMODE(temporary_cache_dir().stat().st_mode) == 0o700
    expected = temporary_cache_dir()
    assert temporary_cache_dir() == expected
    expected.rmdir()
    (tmp_path / "trap").mkdir()
    expected.symlink_to(tmp_path / "trap")
    assert temporary_cache_dir() != expected


def test_weights_are_downloaded_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_home(monkeypatch)
    monkeypatch.chdir(tmp_path)
    seen: list[Path] = []

    def download(url: str, file: str, digest: str) -> None:
        seen.append(Path(file))
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(FlowersError, match="could not be downloaded"):
        weights.download(MobileNet_V2_Weights.IMAGENET1K_V1, "--model.weights", "give a path")
    assert seen[0].is_relative_to(tempfile.gettempdir())
    assert not (tmp_path / "~").exists()


def test_no_file_gets_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from flowers_pl.core.screen import prepare_streams\n"
        "prepare_streams()\n"
        "with open('file', 'w') as file:\n"
        "    os.write(1, b'noise of a library'), os.write(2, b'noise of a library')\n"
        "    sys.stdout.write('noise'), sys.stderr.write('noise')\n"
        "    file.write('content')\n"
    )
    closed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, preexec_fn=lambda: os.closerange(0, 3)
    )
    assert closed.returncode == 0
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_no_semaphores_because_dev_shm_is_missing(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(multiprocessing.synchronize.Lock, "__init__", missing)
    decoded = decode_photos(drawings, list_photos(drawings), 32, tmp_path / "cache", workers=2)
    assert len(decoded.photos) == 50
    assert caplog.text.count("No worker processes can be started") == 1


@pytest.mark.slow
def test_a_locale_without_utf_8(tmp_path: Path, drawings: Path) -> None:
    root = tmp_path / "花"
    root.mkdir()
    (root / "玫瑰").symlink_to(drawings / "rose")
    options = ["--data.root", "花", "--data.image_size", "32", "--model.weights", "null"]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-m", "flowers_pl", "audit", *options],
        cwd=tmp_path, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["readable"] == {"玫瑰": 10}


def fail_on_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let fsync fail on folders; return the inodes of the files that were brought to the disk."""
    synced: list[int] = []

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        synced.append(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.ENOTSUP])
def test_a_share_whose_folders_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    fail_on_folders(monkeypatch, number)
    for content in ("first", "second"):
        with replacing(tmp_path / "file") as unfinished:
            unfinished.write_text(content)
    assert (tmp_path / "file").read_text() == "second"
    assert len(caplog.records) == 1


def test_a_disk_that_fails_is_no_share_without_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on_folders(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), replacing(tmp_path / "file"):
        pass


def test_a_share_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_link)
    synced = fail_on_folders(monkeypatch, errno.EINVAL)
    (tmp_path / "best").write_text("weights")
    replace_by_copy(tmp_path / "best", tmp_path / "last")
    assert (tmp_path / "last").read_text() == "weights"
    assert synced == [(tmp_path / "last").stat().st_ino]  # before it took its place


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_share_without_locks(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:  # fmt: skip
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    photos, cache = list_photos(drawings), tmp_path / "cache"
    cache.mkdir()
    decoded = decode_photos(drawings, photos, 32, cache, workers=0)
    (entry,) = cache.glob("drawings-*")
    building = cache / f".{entry.name}-abcdefgh"  # of another process, which may be at work
    building.mkdir()
    (entry / "index.npz").write_text("damaged")
    again = decode_photos(drawings, photos, 32, cache, workers=0)
    assert building.exists()
    os.utime(building, (0, 0))
    (entry / "index.npz").write_text("damaged")
    decode_photos(drawings, photos, 32, cache, workers=0)
    assert not building.exists()
    np.testing.assert_array_equal(decoded.pixels[decoded.rows], again.pixels[again.rows])
    assert len(clear_cache(cache)) == 1
    assert not list(cache.glob("drawings-*/"))
    assert caplog.text.count("cannot lock files") == 1


def group(root: Path, cgroup: str, **quotas: str) -> Path:
    """Write a control group's files as a kernel shows them."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for path, quota in quotas.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(quota + "\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "quotas", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),  # docker run --cpus 2
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/\n", {}, math.inf),
        ("0::/pod/box\n", {"pod/cpu.max": "150000 100000", "pod/box/cpu.max": "max 100000"}, 1.5),
        ("0::/pod/box\n", {"pod/cpu.max": "800000 100000", "pod/box/cpu.max": "50000 100000"}, 0.5),
        ("0::/docker/1f\n", {"cpu.max": "300000 100000"}, 3),  # the host's path, the container's files
        ("0::/../other\n", {"cpu.max": "300000 100000"}, 3),
        ("0::/\n", {"cpu.max": "nonsense"}, math.inf),
        (
            "4:cpu,cpuacct:/box\n1:name=systemd:/\n0::/\n",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "250000", "cpu,cpuacct/box/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (
            "4:cpu:/pod/box\n",
            {
                "cpu/pod/cpu.cfs_quota_us": "100000",
                "cpu/pod/cpu.cfs_period_us": "100000",
                "cpu/pod/box/cpu.cfs_quota_us": "-1",
                "cpu/pod/box/cpu.cfs_period_us": "100000",
            },
            1,
        ),
    ],
)
def test_a_container_with_a_cpu_quota(
    tmp_path: Path, cgroup: str, quotas: dict[str, str], expected: float
) -> None:
    assert system.cpu_quota(group(tmp_path / "root", cgroup, **quotas)) == expected


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert system.cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "cores"), [(0.1, 1), (1.5, 2), (2.0, 2), (100.0, 64), (math.inf, 64)])
def test_workers_and_threads_are_no_more_than_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(system, "cpu_quota", lambda: quota)
    assert system.available_cores() == cores
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    system.limit_threads()
    assert torch.get_num_threads() == min(cores, 4)
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # the user's choice
    system.limit_threads()
    assert torch.get_num_threads() == 4
