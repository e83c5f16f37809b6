"""The arrows of the design, and a light import."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import crystaldl

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "py4DSTEM", "pymatgen", "matplotlib", "scipy", "pandas", "numba", "lightning")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def test_arrows():
    """Layers, who may use training and recipes, and what a bare training node needs (contracts in setup.cfg)."""
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed")
    command = [str(lint), "--config", str(ROOT / "setup.cfg"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_is_light():
    loaded = python(f"import sys, crystaldl; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]"


@pytest.mark.speed
def test_import_is_fast():
    seconds = []
    for _ in range(3):  # the best of three: a busy machine is not our subject
        code = "import time; t = time.perf_counter(); import crystaldl; print(time.perf_counter() - t)"
        seconds.append(float(python(code)))
        time.sleep(0.1)
    assert min(seconds) < 0.5


def test_registry_and_command_line_are_light():
    code = "import sys, crystaldl.cli; crystaldl.cli.main(['models']); print([m for m in %r if m in sys.modules])"
    assert python(code % (HEAVY,)).splitlines()[-1] == "[]"


def test_public_names():
    assert set(crystaldl.__all__) <= set(dir(crystaldl))
    with pytest.raises(AttributeError, match="no attribute 'Powder'"):
        crystaldl.Powder  # noqa: B018
    for name in crystaldl.__all__:
        assert getattr(crystaldl, name) is not None
