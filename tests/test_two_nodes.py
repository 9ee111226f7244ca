"""Two machines that share nothing but a network stream one pack from a store, lose one of them, and go on.

Each is a network namespace with a working folder and a cache of its own; a third one has the store.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import CREDENTIALS, s3_server, upload
from test_ddp import HERE, figures, finish, largest_difference, weights, write_settings

from flowers_pl.data.packing import pack_folder

pytestmark = [pytest.mark.release, pytest.mark.timeout(1200)]
STORE, NODES = "10.77.0.1", ("10.77.0.2", "10.77.0.3")
LIMIT = 1e-4  # GB, less than the pack


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


def inside(name: str) -> list[str]:
    """The beginning of a command that runs in a namespace."""
    return ["ip", "netns", "exec", name]


@pytest.fixture(scope="module")
def namespaces() -> Iterator[list[str]]:
    """The names of three namespaces that are on one switch: the store's and the nodes'."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and Debian's package 'iproute2'")
    names = [f"flowers-{os.getpid()}-{part}" for part in ("switch", "store", "one", "two")]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            switch = names[0]
            ip("-n", switch, "link", "add", "name", "bridge0", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge0", "up")
            for number, (name, address) in enumerate(zip(names[1:], (STORE, *NODES), strict=True)):
                port = f"port{number}"
                peer = ("peer", "name", "eth0", "netns", name)
                ip("-n", switch, "link", "add", "name", port, "type", "veth", *peer)
                ip("-n", switch, "link", "set", port, "master", "bridge0", "up")
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this system has no network namespaces ({error.stderr.decode().strip()})")
        yield names[1:]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def start(
    namespace: str, home: Path, url: str, *args: str, node: int | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start a `fit` on a machine: alone, or as one of two nodes."""
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", f"--node_rank={node}"]
    launcher += [f"--master_addr={NODES[0]}", "--master_port=29400"]
    launcher = [] if node is None else launcher
    return subprocess.Popen(
        [*inside(namespace), sys.executable, *launcher, "-m", "flowers_pl", "fit", *args],
        cwd=home,
        env={
            **os.environ,
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": url,
            "GLOO_SOCKET_IFNAME": "eth0",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "XDG_CACHE_HOME": str(home / "cache"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_nodes_stream_lose_one_and_end_with_the_weights_of_one_node(
    namespaces: list[str], tmp_path: Path, drawings: Path
) -> None:
    pack_folder(drawings, tmp_path / "pack", [32], workers=0, shard_bytes=18_000)
    store, *nodes = namespaces
    homes = [tmp_path / name for name in ("alone", "one", "two")]
    root = "s3://photos/drawings"
    with s3_server(STORE, 5000, inside(store)) as url:
        upload(tmp_path / "pack", "photos/drawings", url, inside(store))
        for home in homes:
            home.mkdir()
            many = {} if home is homes[0] else {"num_nodes": 2, "strategy": "ddp"}
            data = {"root": root, "shard_cache_limit": LIMIT}
            write_settings(home, drawings, devices=1, precision="64-true", data=data, **many)
        settings = ("--config", "small.yaml", "--run_name", "run")
        code, said = finish(start(nodes[0], homes[0], url, *settings))
        assert code == 0, said

        killed = {"PROBE_SIGNAL": f"1:12:{signal.SIGKILL}"}
        both = [
            start(name, home, url, *settings, node=node, **killed)
            for node, (name, home) in enumerate(zip(nodes, homes[1:], strict=True))
        ]
        ended = [finish(process) for process in both]
        assert all(code != 0 for code, _ in ended), ended
        assert "Another process of this run has ended" in ended[0][1]

        # The second machine comes back with an empty disk, and gets a copy of the run's folder.
        shutil.rmtree(homes[2] / "cache")
        shutil.copytree(homes[1] / "checkpoints", homes[2] / "checkpoints", dirs_exist_ok=True)
        resume = ("--ckpt_path", "checkpoints/run/last.ckpt")
        both = [
            start(name, home, url, *resume, node=node)
            for node, (name, home) in enumerate(zip(nodes, homes[1:], strict=True))
        ]
        for code, said in map(finish, both):
            assert code == 0, said
    alone, together = (home / "checkpoints" / "run" for home in homes[:2])
    difference = largest_difference(weights(alone), weights(together))
    print(f"float64, one node and two that lost one: weights differ by {difference:.2g} at most")
    assert difference < 1e-8
    for row, other in zip(figures(alone), figures(together), strict=True):
        assert row == pytest.approx(other, rel=1e-5)  # metrics are float32
    for home in homes:
        (kept,) = (home / "cache" / "flowers_pl" / "packs").iterdir()
        assert 0 < sum(file.stat().st_size for file in (kept / "shards").iterdir()) <= LIMIT * 1e9
        assert not list((home / "cache").rglob("pixels-*"))
