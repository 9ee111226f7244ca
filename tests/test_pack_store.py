"""Packs in an object store: bounded on each machine, read once, refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from comparing import assert_same_runs
from stores import CREDENTIALS, forget_connections, s3_server, upload
from test_packs import SMALL

from flowers_pl.cli.app import main
from flowers_pl.core.errors import FlowersError
from flowers_pl.data.folder import list_photos
from flowers_pl.data.packed import ShardOrder, decode_root
from flowers_pl.data.packed_pixels import PackedPixels, ReadingPlan
from flowers_pl.data.packing import pack_folder
from flowers_pl.packs import remote
from flowers_pl.packs.reader import fetch_pack
from flowers_pl.packs.remote import Store, check_address
from flowers_pl.packs.roots import find_pack, photo_root

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LIMIT = 1.3e-4  # GB: seven of the shards below, about half


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, drawings: Path) -> Path:
    out = tmp_path_factory.mktemp("packs") / "pack"
    pack_folder(drawings, out, [32], workers=0, shard_bytes=18_000)
    assert len(list(out.glob("*.tar"))) > 10
    return out


@pytest.fixture(scope="module")
def url(pack: Path) -> Iterator[str]:
    """A server that has the pack at s3://photos/drawings."""
    with s3_server("127.0.0.1", free_port()) as url:
        upload(pack, "photos/drawings", url)
        yield url


@pytest.fixture
def store(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    forget_connections()
    return "s3://photos/drawings"


def shards_in(folder: Path) -> list[Path]:
    return sorted((folder / "shards").glob("*.tar"))


def size_of(folder: Path) -> int:
    """Bytes of the shards, while threads fetch some and remove others."""
    num_bytes = 0
    for file in (folder / "shards").iterdir():
        with suppress(FileNotFoundError):
            num_bytes += file.stat().st_size
    return num_bytes


@pytest.mark.release
def test_a_run_from_a_store_is_the_run_on_the_folder(
    store: str, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all shards fit; where they do not, it resumes inside an epoch as if it had not been stopped."""
    monkeypatch.chdir(tmp_path)
    for name, root in (("folder", str(drawings)), ("store", store)):
        assert main(["fit", "--data.root", root, "--run_name", name, "--data.cache_dir", "c", *SMALL]) == 0
    runs = [Path("checkpoints", name) for name in ("folder", "store")]
    assert_same_runs(runs[0], runs[1], ignore=("flowers_pl.data",))
    config = Path("checkpoints/store/config.yaml").read_text()
    assert f"root: {store}" in config
    assert "very-secret" not in config

    small = ["--data.root", store, "--data.shard_cache_limit", str(LIMIT), *SMALL]
    assert main(["fit", *small, "--run_name", "whole", "--data.cache_dir", "w"]) == 0
    (whole,) = Path("w", "packs").iterdir()
    assert size_of(whole) <= LIMIT * 1e9
    stop = [*small, "--run_name", "parts", "--data.cache_dir", "p", "--save_every_n_steps", "1"]
    assert main(["fit", *stop, "--trainer.max_steps", "3"]) == 0
    last = "checkpoints/parts/last.ckpt"
    assert main(["fit", "--ckpt_path", last, "--trainer.max_steps", "-1"]) == 0
    assert_same_runs(
        Path("checkpoints/whole"), Path("checkpoints/parts"), ignore=("callbacks", "flowers_pl.")
    )
    assert main(["test", "--ckpt_path", "checkpoints/store/best.ckpt"]) == 0


@pytest.mark.release
def test_a_machine_keeps_as_much_as_it_may_and_fetches_each_shard_once(store: str, tmp_path: Path) -> None:
    folder = photo_root(store, tmp_path, LIMIT)
    found = decode_root(folder, list_photos(folder), 32)
    pixels: Any = found.pixels
    pack = find_pack(folder)
    assert pack is not None
    assert pack.cache is not None
    num_bytes = sum(shard.num_bytes for shard in pixels.shards)
    assert num_bytes > 1.5 * LIMIT * 1e9
    assert 1 < pixels.window < len(pixels.shards) / 2
    before = pack.cache.fetched
    order = ShardOrder(pixels, np.arange(50))
    shuffled = np.random.default_rng(0).permutation(50)
    shown = shuffled[order.arrange(shuffled, 0, 0)]
    plan = order.expect(shown)
    for row in shown:
        pixels[np.array([row])]
        assert size_of(folder) <= LIMIT * 1e9
    assert pack.cache.fetched - before == num_bytes  # in an order that suits them each is fetched once
    order.end(plan)


def decoded_through_cache(folder: Path) -> Any:
    """Photos whose shards all come by way of the cache, whatever the order is."""
    found = decode_root(folder, list_photos(folder), 32)
    pixels: Any = found.pixels
    pixels._plans.append(ReadingPlan(set(range(len(pixels.shards)))))
    return found


def test_a_photo_now_and_then_is_read_without_its_shard(store: str, pack: Path, tmp_path: Path) -> None:
    folder = photo_root(store, tmp_path, LIMIT)
    found = decode_root(folder, list_photos(folder), 32)
    here = decode_root(pack, list_photos(pack), 32)
    order = np.random.default_rng(1).permutation(50)
    assert np.array_equal(found.pixels[order], here.pixels[order])
    assert not shards_in(folder)


def test_parts_of_a_pack_that_was_replaced_are_not_read(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo_root(store, tmp_path, LIMIT)
    pixels = decode_root(folder, list_photos(folder), 32).pixels
    monkeypatch.setattr("flowers_pl.packs.reader.CHECKED", -1.0)
    pixels[np.arange(3)]  # the store has the same index
    monkeypatch.setattr("flowers_pl.packs.remote.Store.read_index", lambda store, name: b"{}")
    with pytest.raises(FlowersError, match="was replaced during this run"):
        pixels[np.arange(3)]


def test_every_order_reads_the_right_photos(store: str, pack: Path, tmp_path: Path) -> None:
    folder = photo_root(store, tmp_path, LIMIT)
    found = decoded_through_cache(folder)
    here = decode_root(pack, list_photos(pack), 32)
    order = np.random.default_rng(1).permutation(50)
    assert np.array_equal(found.pixels[order], here.pixels[order])
    assert size_of(folder) <= LIMIT * 1e9


MANY = """
import sys, pathlib
from flowers_pl.packs.roots import photo_root, find_pack
pack = find_pack(photo_root(sys.argv[1], pathlib.Path(sys.argv[2]), float(sys.argv[3])))
shards, total, photo = pack.index.series["pixels-32"][1], 0, memoryview(bytearray(3072))
for shard, offset, length in pack.places("pixels-32").tolist():
    pack.read(shards[shard], [(offset, photo)])
    total += sum(photo)
pack.paths, pack.left_out
print(total, pack.cache.fetched)
"""  # without torch, whose import takes longer


def test_processes_share_what_is_kept(store: str, pack: Path, tmp_path: Path) -> None:
    """With room for all, they fetch the pack once together; with little, all read the right photos."""
    total = int(decode_root(pack, list_photos(pack), 32).pixels[np.arange(50)].astype(np.int64).sum())
    for name, limit in (("all", 1.0), ("few", LIMIT)):
        command = [sys.executable, "-c", MANY, store, str(tmp_path / name), str(limit)]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        said = [process.communicate(timeout=250)[0].split() for process in started]
        assert [int(words[0]) for words in said] == [total] * 3
        fetched = sum(int(words[1]) for words in said)
        if name == "all":
            assert fetched == sum(file.stat().st_size for file in pack.iterdir() if file.name != "index.json")
        (folder,) = (tmp_path / name / "packs").iterdir()
        assert size_of(folder) <= limit * 1e9


def test_what_a_killed_process_was_fetching_makes_room(store: str, tmp_path: Path) -> None:
    folder = photo_root(store, tmp_path, LIMIT)
    found = decoded_through_cache(folder)
    left = folder / "shards" / f"{'0' * 64}.tar.part"
    left.write_bytes(bytes(90_000))
    found.pixels[np.arange(50)]
    assert not left.exists()
    assert size_of(folder) <= LIMIT * 1e9


def test_a_shard_that_is_being_read_is_not_removed(store: str, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    folder = photo_root(store, tmp_path, LIMIT)
    pixels = decoded_through_cache(folder).pixels
    pixels[np.array([0])]
    (held,) = shards_in(folder)
    others = np.flatnonzero(pixels.shard_of != pixels.shard_of[0])
    with held.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        os.utime(held, (1, 1))
        pixels[others]
        assert held.exists()
    pixels[others]
    assert not held.exists()


def test_shards_are_listed_and_removed_but_for_those_that_are_being_read(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")
    folder = photo_root(store, tmp_path, LIMIT)
    pixels = decoded_through_cache(folder).pixels
    pixels[np.arange(50)]
    kept = size_of(folder)
    held, *others = shards_in(folder)
    assert others
    assert main(["cache", "--data.cache_dir", str(tmp_path)]) == 0
    assert f"and shards of 1 pack, {kept / 1e6:.1f} MB.\n" in capsys.readouterr().out
    with held.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        assert main(["cache", "--clear", "--data.cache_dir", str(tmp_path)]) == 0
    assert shards_in(folder) == [held]
    removed, *lines, left = capsys.readouterr().out.splitlines()
    assert f"and shards of 1 pack, {(kept - held.stat().st_size) / 1e6:.1f} MB" in removed
    assert lines[-1].endswith(f"{folder.name}, shards of a pack")
    assert left.endswith(f"and shards of 1 pack, {held.stat().st_size / 1e6:.1f} MB.")
    assert pixels[np.arange(50)].any()  # who reads the pack goes on


def test_a_pack_that_is_replaced_leaves_no_tables(
    store: str, url: str, pack: Path, drawings: Path, tmp_path: Path
) -> None:
    upload(pack, "photos/replaced", url)
    folder = photo_root("s3://photos/replaced", tmp_path)
    decode_root(folder, list_photos(folder), 32)
    before = {file.name for file in folder.glob("*.*") if file.suffix in (".npy", ".txt", ".json")}
    few = Path(shutil.copytree(drawings, tmp_path / "photos"))
    next(few.glob("*/*.png")).unlink()
    pack_folder(few, tmp_path / "new", [32], workers=0)
    upload(tmp_path / "new", "photos/replaced", url)
    assert len(fetch_pack(folder, "s3://photos/replaced", 10**9)) == 49
    after = {file.name for file in folder.glob("*.*") if file.suffix in (".npy", ".txt", ".json")}
    assert len(after) == len(before)
    assert after & before == {"index.json", *(name for name in before if name.endswith(".json"))}


def test_a_store_that_changes_or_lies_is_found_out(store: str, url: str, pack: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(pack, tmp_path / "other"))
    (shard, *_) = sorted(other.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    upload(other, "photos/changed", url)
    folder = photo_root("s3://photos/changed", tmp_path / "cache")
    found = decode_root(folder, list_photos(folder), 32)
    with pytest.raises(FlowersError, match="is not the file that the index describes"):
        found.pixels[np.arange(50)]
    shard.write_bytes(content[:-512])
    upload(other, "photos/short", url)
    folder = photo_root("s3://photos/short", tmp_path / "cache")
    found = decode_root(folder, list_photos(folder), 32)
    with pytest.raises(FlowersError, match="shorter or longer than the index states"):
        found.pixels[np.arange(50)]
    assert not list(folder.glob("shards/*.part"))
    for file in folder.rglob("*"):
        assert file.resolve().is_relative_to(folder.resolve())


def test_no_credential_is_kept_or_shown(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for address in (
        "s3://key:very-secret@photos/drawings",
        "s3://key:a/very-secret@x",
        "s3://photos?secret=very-secret",
    ):
        for command in ("fit", "audit", "teach"):
            assert main([command, "--data.root", address]) == 1
            said = "".join(capfd.readouterr())
            assert "must not hold credentials" in said
            assert "very-secret" not in said
    Path("settings.yaml").write_text("data:\n  root: s3://key:very-secret@photos/drawings\n")
    assert main(["fit", "--config", "settings.yaml"]) == 1
    said = "".join(capfd.readouterr())
    assert "must not hold credentials" in said
    assert "very-secret" not in said
    Path("settings.yaml").unlink()
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in kept if b"very-secret" in file.read_bytes()]


def fails(address: str, tmp_path: Path) -> str:
    with pytest.raises(FlowersError) as refused:
        list_photos(photo_root(address, tmp_path))
    said = str(refused.value)
    assert said.count(". ") == 0
    assert said.endswith(".")
    assert "very-secret" not in said
    return said


def test_what_cannot_be_reached_is_said_in_a_sentence(
    store: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no 's3://nowhere/drawings/index.json'" in fails("s3://nowhere/drawings", tmp_path)
    assert "there is no 's3://photos/nothing/index.json'" in fails("s3://photos/nothing", tmp_path)
    assert not (tmp_path / "packs").exists()
    with s3_server("127.0.0.1", free_port(), environment={"INITIAL_NO_AUTH_ACTION_COUNT": "0"}) as closed:
        monkeypatch.setenv("AWS_ENDPOINT_URL", closed)
        forget_connections()
        assert "is denied; check the credentials" in fails("s3://photos/drawings", tmp_path)
    forget_connections()
    assert "cannot be reached" in fails("s3://photos/drawings", tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    forget_connections()
    assert "is denied; check the credentials" in fails("s3://photos/drawings", tmp_path)


def test_a_short_outage_is_outlived(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photo_root(store, tmp_path)
    found = decode_root(folder, list_photos(folder), 32)
    there, failures = Store._blocks, [OSError("gone"), OSError("gone")]

    def unreliable(self: Store, *args: Any) -> Iterator[bytes]:
        yield from there(self, *args)  # what was written before the failure is written anew
        if failures:
            raise self._fault("", failures.pop())

    monkeypatch.setattr(Store, "_blocks", unreliable)
    monkeypatch.setattr(remote, "PATIENCE", (0.0, 0.0))
    assert found.pixels[np.arange(50)].any()
    assert not failures


@pytest.mark.parametrize(
    "address", ["ftp://host/x", "s3://", "s3:///x", "reference://x", "s3://a::simplecache", "s3://a\x1b/x"]
)
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(FlowersError, match=r"^--data.root: .*\.$"):
        check_address(address)


def test_packs_are_read_over_http_too(pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own server sends whole files only."""
    monkeypatch.setattr(remote, "BLOCK", 4096)
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", str(pack.parent)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urlopen(Request(f"http://127.0.0.1:{port}/")).close()
                break
            except OSError:
                time.sleep(0.1)
        folder = photo_root(f"http://127.0.0.1:{port}/pack", tmp_path)
        found = decode_root(folder, list_photos(folder), 32)
        here = decode_root(pack, list_photos(pack), 32)
        assert np.array_equal(found.pixels[np.arange(50)], here.pixels[np.arange(50)])
        assert "there is no" in fails(f"http://127.0.0.1:{port}/nothing", tmp_path)
        few = photo_root(f"http://127.0.0.1:{port}/pack", tmp_path / "few", LIMIT)
        apart = decode_root(few, list_photos(few), 32)
        with pytest.raises(FlowersError, match="does not send parts of files"):
            apart.pixels[np.arange(50)]
    finally:
        server.kill()
        server.wait()
    assert "cannot be reached" in fails(f"http://127.0.0.1:{port}/other", tmp_path)


def test_the_window_is_a_function_of_pack_and_limit(store: str, tmp_path: Path) -> None:
    windows = []
    for number, limit in enumerate((1.0, LIMIT, LIMIT, LIMIT / 3)):
        folder = photo_root(store, tmp_path / str(number), limit)
        pixels: Any = decode_root(folder, list_photos(folder), 32).pixels
        assert isinstance(pixels, PackedPixels)
        windows.append(pixels.window)
    assert windows[0] == len(pixels.shards)
    assert windows[1] == windows[2] > windows[3] == 1
    assert json.loads((folder / "index.json").read_text())["photos"] == 50
