"""Waiting threads: what is set, when, and that the user's own settings stay."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lightning_e5.threads import SPINS, wait_briefly

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize("own, expected", [({}, ("PASSIVE", str(SPINS))), ({"GOMP_SPINCOUNT": "0"}, ("PASSIVE", "0")), ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None))])
def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch, own: dict[str, str], expected: tuple[str, str | None]) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    assert tuple(os.environ.get(name) for name in NAMES) == expected


def test_the_command_line_sets_it_before_torch_is_imported() -> None:
    """OpenMP reads it when it is loaded, so a setting made later would have no effect."""
    code = (
        "import os, sys\n"
        "import lightning_e5.cli.command_line as command_line, lightning_e5.threads as threads\n"
        "command_line.wait_briefly = lambda: (threads.wait_briefly(), print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT']))\n"
        "from lightning_e5.__main__ import main\n"
        "main(['check', 'no/such.yaml'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert said.stdout.splitlines()[0] == f"False {SPINS}", said.stderr
