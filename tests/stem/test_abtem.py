"""Against abTEM, another group's multislice: the same exit waves, and disks and strain measured on its patterns.

abTEM is no dependency of crystaldl: without it these tests are skipped (``pip install abtem``).
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crystaldl.stem.probe import Probe
from crystaldl.stem.recipe.benchmark import Known, cell_factors, counted, ours
from crystaldl.stem.recipe.evaluate import Entry, strain_scores
from crystaldl.stem.simulate.electrons import wavelength
from crystaldl.stem.simulate.multislice import convergent_probe, diffraction, make_slab, propagate

abtem = pytest.importorskip("abtem", reason="abTEM is not installed: nothing to compare with (pip install abtem)")
ase = pytest.importorskip("ase", reason="ASE, which abTEM needs, is not installed")

A, REPEAT, VOLTAGE, SEMIANGLE = 3.905, 18, 200.0, 2.0e-3  # strontium titanate along [001]: Å, cells, kV, rad
NUMBERS = np.array([38, 22, 8, 8, 8])
POSITIONS = np.array([[0.0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
THICKNESSES = (A, 10 * A, 40 * A)  # Å
GRID = 32  # points a cell: with 24 both still change with the grid
VIBRATION = 0.08  # Å, root mean square along an axis: atoms at rest would need far finer grids


@pytest.fixture(scope="module")
def theirs():
    """Exit waves of abTEM, (T, N, N), in real space."""
    cell = ase.Atoms(numbers=NUMBERS, scaled_positions=POSITIONS, cell=[A, A, A], pbc=True)
    potential = abtem.Potential(
        cell * (REPEAT, REPEAT, 1), gpts=GRID * REPEAT, slice_thickness=A / 2, projection="infinite",
        parametrization=abtem.parametrizations.PengParametrization(sigmas=dict.fromkeys(cell.symbols, VIBRATION)),
    )  # fmt: skip
    probe = abtem.Probe(energy=1e3 * VOLTAGE, semiangle_cutoff=1e3 * SEMIANGLE, soft=False)
    probe.grid.match(potential)
    built = potential.build(lazy=False)
    waves, out, done = probe.build(lazy=False), [], 0
    for thickness in THICKNESSES:
        for _ in range(round(thickness / A) - done):
            waves = waves.multislice(built)
        done = round(thickness / A)
        out.append(np.asarray(waves.compute().array).reshape(GRID * REPEAT, GRID * REPEAT))
    return torch.as_tensor(np.array(out), dtype=torch.complex64)


@pytest.fixture(scope="module")
def mine():
    """Ours for the same crystal, grid and slices, (T, N, N)."""
    slab = make_slab(
        np.array([A, A, A]), NUMBERS, POSITIONS, [GRID * REPEAT] * 2, voltage=VOLTAGE, b_iso=8 * np.pi**2 * VIBRATION**2,
        dz=A / 2, absorption=0.0, repeat=[REPEAT, REPEAT],
    )  # fmt: skip
    wave = convergent_probe(slab, SEMIANGLE, edge=1e-4)
    return propagate(slab, wave[None], THICKNESSES)[:, 0]


def disk_shares(waves):
    """Share of the electrons in each disk, (T, M), for reflections h, k from -4 to 4."""
    spectrum = (torch.fft.fft2(waves).abs() ** 2).numpy()
    spectrum /= spectrum.sum((1, 2), keepdims=True)
    n = round(1.2 * SEMIANGLE / wavelength(VOLTAGE) * A * REPEAT)
    order = range(-4, 5)
    block = np.arange(-n, n + 1)
    rows = [[spectrum[:, (REPEAT * h + block)[:, None], REPEAT * k + block].sum((1, 2)) for k in order] for h in order]
    return np.array(rows).reshape(81, -1).T


def test_disks_of_both_hold_the_same_electrons(theirs, mine):
    a, b = disk_shares(theirs), disk_shares(mine)
    for thickness, x, y in zip(THICKNESSES, a, b, strict=True):
        assert np.corrcoef(x, y)[0, 1] > 0.999, f"{thickness:.0f} Å"
        bright = x > (2e-4 if thickness == A else 2e-3)
        assert bright.sum() >= 5 and np.abs(y[bright] / x[bright] - 1).max() < 0.1, f"{thickness:.0f} Å"
    assert a[0, 40] > 0.9 > a[2, 40], "the last is dynamical"


@pytest.fixture(scope="module")
def known(theirs):
    """abTEM's waves as strained, shifted, counted patterns of known truth."""
    rng, pixel = np.random.default_rng(2), SEMIANGLE / wavelength(VOLTAGE) / 6.0
    slab = SimpleNamespace(shape=theirs.shape[1:], edges=np.full(3, A * REPEAT))
    g, u = cell_factors(np.full(3, A), NUMBERS, POSITIONS, 0.0, VOLTAGE, 0.7 * 256 * pixel)
    vacuum = abtem.Probe(energy=1e3 * VOLTAGE, semiangle_cutoff=1e3 * SEMIANGLE, soft=False, gpts=GRID * REPEAT, extent=A * REPEAT)
    vacuum = torch.as_tensor(np.asarray(vacuum.build(lazy=False).compute().array).squeeze(), dtype=torch.complex64)
    image = diffraction(vacuum, slab, (256, 256), pixel).numpy()
    probe = Probe.from_array(rng.poisson(1e6 * image / image.sum()), "abTEM, vacuum")
    rows = []
    for wave in theirs[1:]:
        for _ in range(3):
            e, beam = rng.normal(0, 0.01, 2), 128 + rng.uniform(-3, 3, 2)
            clean = diffraction(wave, slab, (256, 256), pixel, scale=tuple(1 + e), centre=tuple(beam)).numpy()
            centres = beam + g / pixel * (1 + e)
            shares = [clean[tuple(np.clip(np.rint(c).astype(int), 0, 255))] / clean.sum() * np.pi * 36 for c in centres]
            rows.append((counted(clean, beam, 1e6, 0.1, rng), centres, e, shares))
    patterns, centres, strain, shares = (np.array(c) for c in zip(*rows, strict=True))
    thickness = np.repeat([5.0, 20.0], 3)  # nearest of the benchmark's own, by which errors are sorted
    return Known(patterns, probe, g, centres, 1 / pixel, strain, thickness, shares, u, "SrTiO3 [001], abTEM")


@pytest.mark.parametrize(("method", "options"), [("correlation", {"min_relative_intensity": 0.001}), ("fcunet", {})])
def test_disks_and_strain_on_its_patterns(known, method, options):
    scores = strain_scores([known], Entry(method, ours(method, **options), "sigma", 0.5))
    assert scores.failed == 0 and scores.found > 0.9
    assert scores.median < 0.15, "px"
    assert scores.strain[5.0] < 0.1 and scores.strain[20.0] < 0.25, "per cent"
