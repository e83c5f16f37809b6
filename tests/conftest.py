"""What tests share: where the project's data lie, a simulated pattern with known lines, and how they run side by side."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # `pytest -n 2`: each process computes on one core; read when numpy is imported
    for library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

# the same examples on every run; `--hypothesis-profile=default` tries others
settings.register_profile("crystaldl", deadline=None, derandomize=True)
settings.load_profile("crystaldl")

CLOCKS = {"perf_counter", "process_time", "monotonic"}

SHARED = Path(os.environ.get("CRYSTALDL_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests that read a clock are tests of speed: `make bench` runs them, one at a time."""
    for item in items:
        code = getattr(getattr(item, "function", None), "__code__", None)
        if code is not None and CLOCKS & set(code.co_names):
            item.add_marker("speed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ``shared/data`` beside the checkout; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"the shared data are not at {SHARED} (set CRYSTALDL_SHARED_DATA to where they are)")
    return SHARED


@pytest.fixture(scope="session")
def format_samples(shared_data) -> Path:
    folder = shared_data / "powder" / "format_samples"
    if not folder.is_dir():
        pytest.skip(f"no sample files at {folder}")
    return folder


@pytest.fixture(scope="session")
def simulated_lines():
    """A function (seed, wavelength) -> (two_theta, counts, positions, areas): Poisson counts of known lines."""
    import numpy as np

    from crystaldl.physics.wavelengths import resolve_radiation
    from crystaldl.powder.linefit import profile

    def simulate(seed=0, wavelength="CuKa", lines=30, separation=1.2, scale=60.0, background=150.0, step=0.02):
        rng = np.random.default_rng(seed)
        radiation = resolve_radiation(wavelength)
        x = np.arange(10, 90, step)
        position = np.sort(rng.uniform(12, 88, lines))
        position = position[np.concatenate(([True], np.diff(position) > separation))]
        area = scale * np.exp(rng.normal(0, 0.8, position.size))
        width = 0.08 + 0.06 * np.tan(np.radians(position / 2))
        y = background * (1 + 0.5 * np.exp(-x / 30))
        for p, a, w in zip(position, area, width, strict=True):
            y = y + a * profile(x, np.array([p]), w, 0.5, radiation)[0]
        return x, rng.poisson(y).astype(float), position, area * (1 + radiation.alpha2_ratio)

    return simulate
