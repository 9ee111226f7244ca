"""benchmarks/serving.py, in ten seconds and on drawings: what it says that does not depend on the machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.serving import measure

RUN = Path(__file__).parent / "data" / "run-0.1.0"


@pytest.mark.release
def test_under_load_nothing_is_lost_and_nothing_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    measure(RUN / "drawings", RUN / "best.ckpt", seconds=0.3, long=1)
    said = capsys.readouterr().out
    assert len(re.findall(r"16 clients: [\d,]+ \(", said)) == 2  # with 1 and with 8 files a request
    assert "lost" not in said
    assert set(re.findall(r"[\d,]+ x (\d+)", said)) <= {"200", "429", "503"}
    assert "requests (" in said
    assert ", 0 wrong; memory " in said
