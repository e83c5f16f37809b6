"""Numbers of any type and order give the same results, inputs are never written to, and threads change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz import objects

from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.powder.pattern import PowderPattern
from crystaldl.stem.datacube import DataCube
from crystaldl.stem.strain.fit import fit_strain

# types that hold the small whole counts of the samples exactly
TYPES = ["<f4", ">f4", "<f8", ">f8", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<u4", ">i8", "<u8"]


def powder(x, y) -> np.ndarray:
    peaks = PowderPattern(x, y, "CuKa").peaks()
    return np.stack([peaks.position, peaks.intensity, peaks.fwhm])


def diffuse(data) -> np.ndarray:
    plane = objects.plane()
    volume = DiffuseVolume(data, *plane.axes, 0.0, objects.CELL).symmetrize("mmm").punch_bragg(0.1)
    return np.stack([volume.data, volume.subtract_background().data])


def scan(data, probe) -> np.ndarray:
    strain = fit_strain(DataCube(data).find_bragg_disks("correlation", probe=probe, progress=False))
    return np.array(strain.data)


def counts(shape) -> np.ndarray:
    return np.random.default_rng(5).poisson(60, shape).astype(float)


@pytest.fixture(scope="module")
def inputs():
    """Arrays of whole counts below 2^15, and what comes of them in float64."""
    x = objects.pattern().two_theta[:1000]
    y = np.nan_to_num(objects.pattern().intensity[:1000], nan=80.0)
    data, cube, probe = counts((61, 61)), objects.cube().data.astype(float), objects.probe_image()
    return {
        "powder": ((x, y), powder(x, y)), "diffuse": ((data,), diffuse(data)), "stem": ((cube, probe), scan(cube, probe)),
    }  # fmt: skip


JOBS = {"powder": powder, "diffuse": diffuse, "stem": scan}


def varied(wing, arrays, change):
    """The arrays with counts in them changed; axis and probe stay."""
    place = 1 if wing == "powder" else 0
    return tuple(change(a) if i == place else a for i, a in enumerate(arrays))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("wing", ["powder", "diffuse"])
def test_types_and_byte_orders(wing, kind, inputs):
    arrays, expected = inputs[wing]
    assert np.array_equal(JOBS[wing](*varied(wing, arrays, lambda a: a.astype(kind))), expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["<f4", ">f4", ">f8", ">u2", "<u4"])
def test_types_and_byte_orders_of_a_scan(kind, inputs):
    arrays, expected = inputs["stem"]
    found = JOBS["stem"](*varied("stem", arrays, lambda a: a.astype(kind)))
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-7, equal_nan=True)


def stored(array, folder) -> np.ndarray:
    np.save(folder / "a.npy", array)
    return np.load(folder / "a.npy", mmap_mode="r")


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "read-only", "mapped", "mapped, other order"])
@pytest.mark.parametrize("wing", JOBS)
def test_layouts_and_no_input_is_written_to(wing, layout, inputs, tmp_path):
    arrays, expected = inputs[wing]

    def change(a):
        if layout == "fortran":
            return np.asfortranarray(a)
        if layout == "strided":
            return np.repeat(a, 2, axis=-1)[..., ::2]
        if layout == "reversed":
            return a[::-1].copy()[::-1]
        if layout == "read-only":
            a = a.copy()
            a.setflags(write=False)
            return a
        return stored(a.astype(">f8") if "other" in layout else a, tmp_path)

    given = varied(wing, arrays, change)
    before = [np.array(a) for a in given]
    found = JOBS[wing](*given)
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)
    for a, b in zip(given, before, strict=True):
        assert np.array_equal(a, b)
    if layout.startswith("mapped"):
        assert np.array_equal(np.load(tmp_path / "a.npy"), varied(wing, arrays, np.array)[1 if wing == "powder" else 0])


def test_results_do_not_share_memory_with_inputs():
    x, y = np.arange(10, 40, 0.05), counts(600)
    pattern = PowderPattern(x, y, "CuKa")
    data = counts((9, 9))
    volume = DiffuseVolume(data, np.arange(9.0), np.arange(9.0), 0.0, objects.CELL)
    for a, b in ((x, pattern.two_theta), (y, pattern.intensity), (data, volume.data)):
        assert not np.shares_memory(a, b)
        assert a.flags.writeable


CODE = """
import json, sys, warnings
sys.path.insert(0, {tests!r})
warnings.simplefilter("ignore")
import numpy as np, torch
torch.set_num_threads(int(sys.argv[1]))
from fuzz import objects
from test_robustness_arrays import counts, diffuse, powder, scan
x = objects.pattern().two_theta[:1000]
y = np.nan_to_num(objects.pattern().intensity[:1000], nan=80.0)
parts = objects.separation()
out = [powder(x, y), diffuse(counts((61, 61))), scan(objects.cube().data, objects.probe_image())]
out += [parts.sro.data, parts.form_factor.data, objects.sro().alpha]
print(json.dumps([np.nan_to_num(np.ravel(a)).tolist() for a in out]))
"""


def with_threads(*counts: int) -> list[list[np.ndarray]]:
    """What comes of the samples with each number of threads, in processes side by side."""
    code, names = CODE.format(tests=str(Path(__file__).parent)), ("OMP", "OPENBLAS", "MKL", "NUMBA")
    running = []
    for n in counts:
        environment = {**os.environ, **{f"{name}_NUM_THREADS": str(n) for name in names}}
        command = [sys.executable, "-c", code, str(n)]
        running.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
    found = []
    for process in running:
        out, error = process.communicate(timeout=280)
        assert process.returncode == 0, error[-2000:]
        found.append([np.array(v) for v in json.loads(out.splitlines()[-1])])
    return found


@pytest.mark.slow
def test_threads_change_nothing():
    """Lines of a pattern, prepared and separated diffuse scattering, order parameters and strain with one and three threads."""
    for one, three in zip(*with_threads(1, 3), strict=True):
        scale = np.abs(one).max()
        assert one.shape == three.shape
        assert np.abs(one - three).max() <= 1e-5 * scale
