"""Short-range order refinement against brute-force sums, symmetry worked out by hand, and repeated noise."""

from __future__ import annotations

import itertools
import json
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from crystaldl.diffuse.molecular import Molecule, difference_form_factor
from crystaldl.diffuse.sro.models import refine_interactions
from crystaldl.diffuse.sro.refine import refine_sro
from crystaldl.diffuse.sro.sites import Site
from crystaldl.diffuse.sro.solve import serial_factor
from crystaldl.diffuse.sro.vectors import vector_orbits, zone_axis
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import DataError, PlausibilityWarning

CUBIC, TETRAGONAL = (5.0, 5.0, 5.0, 90, 90, 90), (6.0, 6.0, 8.0, 90, 90, 90)
HEXAGONAL, MONOCLINIC = (5.0, 5.0, 7.0, 90, 90, 120), (5.0, 6.0, 7.0, 90, 104, 90)
A = Molecule(["C", "O"], [[0, 0, 0], [1.2, 0.3, 0.2]], b_iso=1.0)
B = Molecule(["C", "O"], [[0, 0, 0], [-0.9, 0.8, 0.1]], b_iso=1.0)


def plane(lattice, n=64, reach=3.0, axes="hk", fixed=0.0, **options):
    x = np.linspace(-reach, reach, n)
    h, k, l = (x if name in axes else fixed for name in "hkl")
    return DiffuseVolume(np.ones((n, n)), h, k, l, lattice, **options)


def volume(lattice, n=25, reach=1.2):
    x = np.linspace(-reach, reach, n)
    return DiffuseVolume(np.ones((n, n, n)), x, x, x, lattice)


def smooth(v):
    """A positive form factor without symmetry."""
    q = v.q_vectors()
    return 3 + np.cos(q @ [0.5, 0.2, 0.1]) + 0.8 * np.sin(q @ [0.1, -0.6, 0.3]) * np.exp(-0.02 * (q**2).sum(-1))


def brute(v, alpha):
    """1 + Σ α_R cos(2π hkl·R), R and -R both, from a mapping of vectors (any one of ±R, or both with half weight)."""
    s = np.ones(v.shape)
    for r, value in alpha.items():
        s += value * np.cos(2 * np.pi * (v.hkl() @ np.array(r, dtype=float)))
    return s


def full(alpha, images):
    """A mapping over all images of each vector, R and -R."""
    out = {}
    for r, value in alpha.items():
        for image in images(np.array(r, dtype=float)):
            out[tuple(np.round(image, 6) + 0.0)] = value
            out[tuple(np.round(-image, 6) + 0.0)] = value
    return out


def permutations(r):
    return [np.array(p) * s for p in itertools.permutations(r) for s in itertools.product((1, -1), repeat=3)]


def tetragonal(r):
    return [np.array([a, b, c]) for a, b in ((r[0], r[1]), (r[1], r[0])) for c in (r[2], -r[2])
            for a, b in itertools.product((a, -a), (b, -b))]  # fmt: skip


def hexagonal(r):
    turn, mirror = np.array([[1, -1, 0], [1, 0, 0], [0, 0, 1]]), np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    return [np.linalg.matrix_power(turn, k) @ m @ z @ r for k in range(6) for m in (np.eye(3), mirror)
            for z in (np.eye(3), np.diag([1, 1, -1]))]  # fmt: skip


def threefold(r):
    turn = np.array([[0, -1, 0], [1, -1, 0], [0, 0, 1]])
    return [np.linalg.matrix_power(turn, k) @ r for k in range(3)]


def monoclinic(r):
    return [r, r * [1, -1, 1]]


def identity(r):
    return [r]


# -- vectors and orbits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lattice", "laue", "centring", "vectors", "sizes"),
    [
        (CUBIC, "m-3m", "P", [(1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 0, 0), (2, 1, 0), (2, 1, 1)], [6, 12, 8, 6, 24, 24]),
        (CUBIC, "m-3m", "F", [(0.5, 0.5, 0), (1, 0, 0), (1, 0.5, 0.5), (1, 1, 0)], [12, 6, 24, 12]),
        (CUBIC, "m-3", "P", [(1, 0, 0), (1, 1, 0), (1, 1, 1), (2, 0, 0), (2, 1, 0), (1, 2, 0)], [6, 12, 8, 6, 12, 12]),
        (TETRAGONAL, "4/mmm", "P", [(1, 0, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)], [4, 2, 4, 8]),
        (HEXAGONAL, "6/mmm", "P", [(1, 0, 0), (0, 0, 1), (1, 0, 1), (2, 1, 0)], [6, 2, 12, 6]),
        (HEXAGONAL, "-3", "P", [(1, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (2, 1, 0)], [6, 2, 6, 6, 6]),
        (MONOCLINIC, "2/m", "C", [(0.5, 0.5, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], [4, 2, 2, 2]),
        (HEXAGONAL, "-3m1", "R", [(2 / 3, 1 / 3, 1 / 3), (1, 0, 0)], [6, 6]),
    ],
)
def test_orbits_of_a_volume(lattice, laue, centring, vectors, sizes):
    n = len({round(d, 3) for d in vector_orbits(volume(lattice), 6, None, laue, centring).distance})
    assert n == 6
    found = vector_orbits(volume(lattice), vectors=vectors, laue=laue, centring=centring)
    assert found.multiplicity.tolist() == sizes and not found.projected
    shells = vector_orbits(volume(lattice), 6, None, laue, centring)
    keys = [{tuple(np.round(m, 4)) for m in members} for members in shells.members]
    for r in vectors:
        assert sum(tuple(np.round(np.array(r, float), 4)) in key for key in keys) == 1


def test_projected_classes():
    """On hk0 of an F lattice (½ 0 ½) and (½ 0 -½) are one; on hk½ their sum vanishes by the mirror."""
    found = vector_orbits(plane(CUBIC), 2, None, "m-3m", "F")
    assert found.projected and found.distance == pytest.approx([2.5, 2.5 * np.sqrt(2)])
    assert np.abs(np.abs(found.vectors[0]) - [0.5, 0, 0.5]).max() < 1e-6 and found.multiplicity.tolist() == [4, 4]
    half = vector_orbits(plane(CUBIC, fixed=0.5), 1, None, "m-3m", "F")
    assert np.allclose(np.abs(half.vectors[0]), [0.5, 0.5, 0])
    assert np.allclose(zone_axis(np.array([[1, 1, 0], [0, 0, 1]]), "P"), [-1, 1, 0])
    assert zone_axis(np.array([[1, np.sqrt(2), 0], [0, 0, 1]])) is None


# -- known parameters come back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lattice", "laue", "centring", "images", "alpha"),
    [
        (CUBIC, "m-3m", "P", permutations, {(1, 0, 0): -0.06, (1, 1, 0): 0.02, (2, 1, 0): -0.007}),
        (TETRAGONAL, "4/mmm", "P", tetragonal, {(1, 0, 0): -0.1, (0, 0, 1): 0.2, (1, 0, 1): 0.03}),
        (HEXAGONAL, "6/mmm", "P", hexagonal, {(1, 0, 0): -0.05, (0, 0, 1): 0.1, (2, 1, 0): 0.03}),
        (HEXAGONAL, "-3", "P", threefold, {(1, 0, 0): -0.05, (1, 1, 1): 0.03, (1, 0, 1): -0.02}),
        (MONOCLINIC, "2/m", "C", monoclinic, {(0.5, 0.5, 0): -0.1, (1, 0, 0): 0.08, (0.5, 0.5, 1): 0.05}),
        (MONOCLINIC, None, "P", identity, {(1, 0, 0): -0.1, (0, 1, 1): 0.08, (1, -1, 0): 0.05}),
    ],
)
def test_volume_without_noise(lattice, laue, centring, images, alpha):
    v = volume(lattice, 29, 1.4)
    factor = smooth(v)
    data = v.replace(data=7 * factor * brute(v, full(alpha, images)) + 2.0)
    fit = refine_sro(data, shells=8, laue=laue, centring=centring, form_factor=factor)
    expected = full(alpha, images)
    for r, value in zip(fit.vectors, fit.alpha, strict=True):
        assert value == pytest.approx(expected.get(tuple(np.round(r, 6) + 0.0), 0.0), abs=1e-8)
    assert sum(abs(fit.alpha) > 1e-3) == len(alpha)
    assert fit.scale == pytest.approx(7) and fit.background == pytest.approx([2.0], abs=1e-6)
    assert fit.r_factor < 1e-8 and np.allclose(fit.simulate().data, data.data)
    assert np.allclose(fit.structure_factor().data, brute(v, expected))
    assert [len(m) for m in fit.orbits] == fit.multiplicity.tolist()


@pytest.mark.parametrize("axes", ["hk", "hl", "kl"])
def test_plane_shows_projected_parameters(axes):
    """α of the plane are sums along the zone axis over the sum of its own, worked out by hand."""
    alpha = full({(1, 0, 0): -0.06, (0, 0, 1): 0.1, (1, 0, 1): 0.04, (1, 1, 0): 0.03, (1, 1, 1): -0.02}, tetragonal)
    v = plane(TETRAGONAL, axes=axes)
    data = v.replace(data=smooth(v) * brute(v, alpha))
    fit = refine_sro(data, shells=5, laue="4/mmm", form_factor=smooth(v), background="none")
    assert fit.projected
    seen = [i for i, name in enumerate("hkl") if name in axes]

    def total(r):
        return sum(value for w, value in alpha.items() if all(abs(w[i] - r[i]) < 1e-6 for i in seen))

    norm = 1 + total((0, 0, 0))
    for r, value in zip(fit.vectors, fit.alpha, strict=True):
        assert value == pytest.approx(total(r) / norm, abs=1e-8)
    assert fit.scale == pytest.approx(norm)


@pytest.mark.parametrize("fixed", [0.0, 0.5, 0.3])
def test_plane_at_an_offset(fixed):
    """A crystal with a centre of symmetry only: at l = 0.3 the modulation has a sine part, which must not spoil α."""
    alpha = full({(1, 0, 0): -0.1, (1, 0, 1): 0.08, (0, 1, -1): 0.06, (0, 0, 1): 0.1}, identity)
    v = plane((5.0, 6.0, 7.0, 80, 95, 103), fixed=fixed)
    data = v.replace(data=smooth(v) * brute(v, alpha))
    fit = refine_sro(data, vectors=[(1, 0, 0), (0, 1, 0)], form_factor=smooth(v), background="none")
    assert fit.r_factor < 1e-8
    norm = 1 + 0.2 * np.cos(2 * np.pi * fixed)
    expected = (-0.1 + 0.08 * np.cos(2 * np.pi * fixed)) / norm
    first = [i for i, r in enumerate(fit.vectors) if abs(r[0]) == 1][0]
    assert np.allclose(np.abs(fit.vectors[first]), [1, 0, 0])
    assert fit.alpha[first] == pytest.approx(expected, abs=1e-8)


def test_irrational_plane_sees_every_vector():
    lattice = (5.0, 6.0, 7.0, 90, 90, 90)
    x = np.linspace(-4, 4, 90)
    v = DiffuseVolume.from_basis(np.ones((90, 90)), [x, x], [[1, 0.4142135, 0.1], [0, 0.2718281, 0.9]], [0, 0, 0], lattice)
    mirrors = lambda r: [r * s for s in itertools.product((1, -1), repeat=3)]  # noqa: E731
    alpha = full({(1, 0, 0): -0.1, (0, 0, 1): 0.05, (0, 1, 1): 0.04}, mirrors)
    data = v.replace(data=smooth(v) * brute(v, alpha))
    fit = refine_sro(data, shells=6, laue="mmm", form_factor=smooth(v))
    assert not fit.projected and fit.r_factor < 1e-7
    for r, value in zip(fit.vectors, fit.alpha, strict=True):
        assert value == pytest.approx(alpha.get(tuple(r), 0.0), abs=1e-6)


def test_size_effect():
    """Real part of Σ exp(iQ·(R + δ_R)) to first order, summed by hand; γ follows its vector under the Laue operations."""
    v = volume(TETRAGONAL, 29, 1.4)
    hkl, alpha, gamma = v.hkl(), {(1, 0, 0): -0.05, (1, 1, 0): 0.04, (0, 0, 1): 0.06}, {(1, 0, 0): 0.004, (1, 1, 0): -0.003}
    s = brute(v, full(alpha, tetragonal))
    for r, g in gamma.items():
        for image in {tuple(i) for i in tetragonal(np.array(r, float))}:
            s -= 2 * np.pi * (hkl @ (g * np.array(image))) * np.sin(2 * np.pi * (hkl @ np.array(image)))
    data = v.replace(data=smooth(v) * s)
    fit = refine_sro(data, shells=3, laue="4/mmm", form_factor=smooth(v), size_effect=True)
    found = {tuple(r): (a, g) for r, a, g in zip(fit.vectors, fit.alpha, fit.gamma, strict=True)}
    for r, value in alpha.items():
        assert found[r][0] == pytest.approx(value, abs=1e-8)
        assert found[r][1] == pytest.approx(gamma.get(r, 0.0) * np.array(r), abs=1e-8)
    plain = refine_sro(data, shells=3, laue="4/mmm", form_factor=smooth(v))
    assert plain.gamma is None and plain.r_factor > 100 * fit.r_factor
    flat = plane(TETRAGONAL)
    onplane = refine_sro(flat.replace(data=smooth(flat)), shells=3, laue="4/mmm", form_factor=smooth(flat), size_effect=True)
    assert np.abs(onplane.gamma).max() < 1e-9


# -- uncertainties -----------------------------------------------------------------------------------------------------


def _realisations(v, factor, truth, n, counts, spoil=None, **options):
    intensity = factor * truth
    intensity = intensity * counts / intensity.max() + 0.03 * counts
    z = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        y = rng.poisson(intensity).astype(float)
        if spoil is not None:
            y = spoil(y, rng)
        fit = refine_sro(v.replace(data=y, mask=rng.random(v.shape) > 0.3), form_factor=factor, **options)
        z.append(fit)
    return z


def test_uncertainties_of_a_plane():
    """40 times new noise: rms of (found - true) / σ near 1 and 95 % intervals that hold the truth; spikes do no harm."""
    alpha = {(1, 0, 0): -0.1, (1, 1, 0): 0.05, (2, 0, 0): 0.03, (2, 1, 0): -0.01}
    v = plane(TETRAGONAL, 80)
    factor = difference_form_factor(v, A, B)
    truth = brute(v, full(alpha, tetragonal))

    def spikes(y, rng):
        y[tuple(rng.integers(0, 80, (2, 40)))] += 3000
        return y

    for counts, spoil in ((400, None), (400, spikes), (5, None)):
        fits = _realisations(v, factor, truth, 40, counts, spoil, shells=4, laue="4/mmm")
        z = np.array([(f.alpha - list(alpha.values())) / f.sigma for f in fits])
        assert 0.8 < np.sqrt(np.mean(z**2)) < 1.2
        assert 0.90 <= np.mean(np.abs(z) < 1.96) <= 0.985
        assert np.abs(z.mean(0)).max() < 4 / np.sqrt(40)
        assert 0.85 < np.mean([f.chi2 for f in fits]) < 1.2


def test_uncertainties_of_a_volume():
    alpha = {(1, 0, 0): -0.06, (1, 1, 0): 0.03, (1, 1, 1): -0.01}
    v = volume(CUBIC, 25, 1.2)
    factor = smooth(v)
    fits = _realisations(v, factor, brute(v, full(alpha, permutations)), 30, 50, shells=3, laue="m-3m")
    z = np.array([(f.alpha - list(alpha.values())) / f.sigma for f in fits])
    assert 0.8 < np.sqrt(np.mean(z**2)) < 1.2 and 0.88 <= np.mean(np.abs(z) < 1.96) <= 1.0


@pytest.mark.parametrize("kind", ["given", "own counts", "scaled"])
def test_kinds_of_sigma(kind):
    """σ of √counts makes low counts heavy: the weights must come from the model, at 3 counts in the brightest pixel."""
    v = plane(TETRAGONAL, 80)
    factor, truth = difference_form_factor(v, A, B), brute(v, full({(1, 0, 0): -0.1, (1, 1, 0): 0.1}, tetragonal))
    intensity = factor * truth
    intensity = intensity * 3 / intensity.max() + 0.3
    z = []
    for seed in range(20):
        y = np.random.default_rng(seed).poisson(intensity).astype(float)
        sigma = {"given": np.sqrt(intensity), "own counts": np.sqrt(y), "scaled": None}[kind]
        gain = 0.37 if kind == "scaled" else 1.0
        fit = refine_sro(v.replace(data=gain * y, sigma=sigma), shells=2, laue="4/mmm", form_factor=factor)
        z.append((fit.alpha - [-0.1, 0.1]) / fit.sigma)
    best = refine_sro(v.replace(data=y, sigma=np.sqrt(intensity)), shells=2, laue="4/mmm", form_factor=factor)
    assert fit.sigma == pytest.approx(best.sigma, rel=0.12) and fit.scale == pytest.approx(gain * best.scale, rel=0.05)
    assert np.sqrt(np.mean(np.square(z))) < 1.35 and np.abs(np.mean(z, 0)).max() < 0.9


def test_symmetrised_data_count_once():
    """Eight equal copies of one value are one observation: σ must not shrink by √8."""
    v = plane(TETRAGONAL, 61)
    q = v.q()
    factor = 3 + np.cos(q) * np.exp(-0.1 * q)
    truth = brute(v, full({(1, 0, 0): -0.1, (1, 1, 0): 0.05}, tetragonal))
    z = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        data = v.replace(data=factor * truth + 0.3 * rng.normal(size=v.shape)).symmetrize("4/mmm")
        fit = refine_sro(data, shells=2, laue="4/mmm", form_factor=factor)
        z.append((fit.alpha - [-0.1, 0.05]) / fit.sigma)
    assert 0.75 < np.sqrt(np.mean(np.square(z))) < 1.3
    assert fit.n_independent < fit.n_observations / 6


def test_serial_correlation_is_counted():
    """Noise smoothed over neighbours: uncertainties must grow with it, and white noise must leave them alone."""
    from scipy.ndimage import uniform_filter

    v = plane(TETRAGONAL, 96)
    factor, truth = smooth(v), brute(v, full({(1, 0, 0): -0.1, (1, 1, 0): 0.05}, tetragonal))
    z = []
    for seed in range(30):
        noise = uniform_filter(np.random.default_rng(seed).normal(size=v.shape), 3, mode="wrap")
        fit = refine_sro(v.replace(data=factor * truth + noise), shells=2, laue="4/mmm", form_factor=factor)
        z.append((fit.alpha - [-0.1, 0.05]) / fit.sigma)
    assert 0.75 < np.sqrt(np.mean(np.square(z))) < 1.25 and 6 < fit.serial < 12
    white = np.random.default_rng(0).normal(size=(96, 96))
    assert serial_factor(white, np.ones((96, 96))) == pytest.approx(1.0, abs=0.05)


def test_uncertain_form_factor_widens():
    v = plane(TETRAGONAL)
    factor = smooth(v)
    noise = 0.05 * np.random.default_rng(0).normal(size=v.shape)
    data = v.replace(data=factor * brute(v, full({(1, 0, 0): -0.1}, tetragonal)) + noise)
    sure = refine_sro(data, shells=2, laue="4/mmm", form_factor=v.replace(data=factor))
    unsure = refine_sro(data, shells=2, laue="4/mmm", form_factor=v.replace(data=factor, sigma=0.2 * factor))
    assert (unsure.sigma > 1.5 * sure.sigma).all() and unsure.alpha == pytest.approx(sure.alpha)


# -- a separation ------------------------------------------------------------------------------------------------------


def _parts(v, factor, truth, **more):
    measured = v.replace(data=factor * truth + 0.02 * np.random.default_rng(0).normal(size=v.shape))
    return SimpleNamespace(
        measured=measured, form_factor=v.replace(data=factor, sigma=0.01 * factor), sro=v.replace(data=truth), scale=1.0,
        background=np.zeros(v.shape), centring="P", lattice=v.lattice, method="physics", **more,
    )  # fmt: skip


def test_separation_by_generalised_least_squares():
    """Two equivalent vectors with correlated errors: the optimum is the textbook's weighted mean."""
    v = plane(TETRAGONAL)
    found = np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [1, -1, 0], [2, 0, 0], [0, 2, 0]])
    alpha = np.array([-0.10, -0.09, 0.05, 0.051, 0.01, 0.012])
    covariance = np.diag([1e-4, 4e-4, 1e-4, 1e-4, 1e-4, 1e-4])
    covariance[0, 1] = covariance[1, 0] = 0.5e-4
    truth = brute(v, full({(1, 0, 0): -0.1, (1, 1, 0): 0.05}, tetragonal))
    parts = _parts(v, smooth(v), truth, alpha_vectors=found, alpha=alpha, alpha_covariance=covariance)
    fit = refine_sro(parts, shells=3, laue="4/mmm")
    ones, inverse = np.ones(2), np.linalg.inv(covariance[:2, :2])
    assert fit.alpha[0] == pytest.approx(ones @ inverse @ alpha[:2] / (ones @ inverse @ ones), rel=1e-6)
    assert fit.sigma[0] == pytest.approx((ones @ inverse @ ones) ** -0.5, rel=1e-6)
    assert fit.method == "separation" and fit.r_factor < 0.2 and np.isfinite(fit.simulate().data).all()
    alone = refine_sro(parts, shells=3)
    assert sorted(alone.alpha) == pytest.approx(sorted(alpha)) and len(alone.alpha) == 6
    with pytest.raises(DataError, match="beyond the vectors of the separation"):
        refine_sro(parts, shells=5, laue="4/mmm")
    with pytest.warns(PlausibilityWarning, match="differ within its orbits"):
        refine_sro(SimpleNamespace(**(vars(parts) | {"alpha": alpha * [1, 3, 1, 1, 1, 1]})), shells=3, laue="4/mmm")


def test_separation_without_covariance():
    v = plane(TETRAGONAL)
    truth = brute(v, full({(1, 0, 0): -0.1, (1, 1, 0): 0.05}, tetragonal))
    parts = _parts(v, smooth(v), truth)
    fit = refine_sro(parts, shells=2, laue="4/mmm")
    assert fit.alpha == pytest.approx([-0.1, 0.05], abs=5 * fit.sigma.max()) and fit.method == "intensity"
    bare = refine_sro(parts.measured, shells=2, laue="4/mmm", form_factor=parts.form_factor.data, background="none")
    assert (fit.sigma > bare.sigma).all()
    with pytest.raises(DataError, match="form_factor is given beside a Separation"):
        refine_sro(parts, form_factor=1.0)


# -- energies ------------------------------------------------------------------------------------------------------------


def test_interactions_from_intensity_and_from_alpha():
    """S = C / (1 + βJ) made here on a fine zone; the refined v over λ are the βJ, with calibrated uncertainties."""
    beta = full({(1, 0, 0): 0.08, (1, 1, 0): -0.02}, permutations)
    grid = np.arange(24) / 24
    zone = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1)
    energy = lambda hkl: sum(b * np.cos(2 * np.pi * (hkl @ np.array(r))) for r, b in beta.items())  # noqa: E731
    c = 1 / np.mean(1 / (1 + energy(zone)))
    v = volume(CUBIC, 25, 1.2)
    factor = smooth(v)
    intensity = 30 * factor * c / (1 + energy(v.hkl()))
    z = []
    for seed in range(12):
        data = v.replace(data=np.random.default_rng(seed).poisson(intensity).astype(float))
        result = refine_interactions(data, shells=2, laue="m-3m", form_factor=factor)
        z.append((result.beta_v - np.array([0.08, -0.02]) / c) / result.sigma)
    assert 0.6 < np.sqrt(np.mean(np.square(z))) < 1.5
    assert result.clapp_moss == pytest.approx([0.08, -0.02], abs=5 * result.sigma.max())
    assert result.lam == pytest.approx(1 / c, rel=0.02)
    exact = np.array([np.mean(c / (1 + energy(zone)) * np.cos(2 * np.pi * (zone @ r))) for r in result.fit.vectors])
    assert result.alpha == pytest.approx(exact, abs=0.003)
    assert result.structure_factor().data == pytest.approx(c / (1 + energy(v.hkl())), rel=0.05)
    assert result.alpha[0] < 0 < result.beta_v[0]  # unlike neighbours: negative α, positive energy
    from_alpha = refine_interactions(result.fit, shells=2, on="alpha")
    assert from_alpha.beta_v == pytest.approx(result.beta_v, abs=0.02) and np.isnan(from_alpha.r_factor)
    with pytest.raises(DataError, match="interactions are asked for"):
        refine_interactions(result.fit, shells=12, on="alpha")
    with pytest.raises(DataError, match="on is 'S'"):
        refine_interactions(result.fit, on="S")


# -- several sites -------------------------------------------------------------------------------------------------------


def test_two_sites():
    """Every pair of molecules summed by hand in a random finite arrangement's correlations; R and -R differ between sites."""
    sites = [Site((0, 0, 0), A, B), Site((0.5, 0.4, 0.3), B, A.rotated(np.diag([1.0, -1, -1])))]
    v = volume((5.0, 6.0, 7.0, 90, 90, 90), 25, 1.3)
    hkl, q = v.hkl(), v.q_vectors()
    f = [s.molecule_a.form_factor(q) - s.molecule_b.form_factor(q) for s in sites]
    truth = {
        (0, 0, (1, 0, 0)): -0.1, (1, 1, (0, 1, 0)): 0.08, (0, 1, (0, 0, 0)): 0.3, (0, 1, (1, 0, 0)): -0.2,
        (0, 1, (-1, 0, 0)): 0.05,
    }  # fmt: skip
    intensity = np.abs(f[0]) ** 2 + np.abs(f[1]) ** 2
    for (s, t, r), value in truth.items():
        phase = np.exp(2j * np.pi * (hkl @ (np.array(r) + sites[s].position - sites[t].position)))
        intensity = intensity + 2 * value * (f[s] * f[t].conj() * phase).real
    fit = refine_sro(v.replace(data=0.25 * intensity), sites=sites, shells=9)
    found = {(*p, tuple(r)): a for p, r, a in zip(map(tuple, fit.pairs), fit.vectors, fit.alpha, strict=True)}
    for (s, t, r), value in truth.items():
        own = found.get((s, t, r), found.get((s, t, tuple(-np.array(r)))) if s == t else None)
        assert own == pytest.approx(value, abs=1e-7)
    assert np.sum(np.abs(fit.alpha) > 1e-6) == len(truth) and fit.scale == pytest.approx(1.0)
    cell = np.array([5.0, 6.0, 7.0])
    join = fit.vectors + np.array([sites[s].position - sites[t].position for s, t in fit.pairs])
    assert fit.distance == pytest.approx(np.linalg.norm(join * cell, axis=1)) and (np.diff(fit.distance) > -1e-6).all()
    assert {"site_1", "site_2"} <= set(fit.to_dataframe().columns)
    with pytest.raises(ValueError, match="no common S"):
        fit.structure_factor()


# -- out -----------------------------------------------------------------------------------------------------------------


def test_result_goes_out(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    v = plane(TETRAGONAL, name="<test>")
    noise = 0.1 * np.random.default_rng(1).normal(size=v.shape)
    data = v.replace(data=smooth(v) * brute(v, full({(1, 0, 0): -0.1}, tetragonal)) + noise)
    fit = refine_sro(data, shells=4, laue="4/mmm", form_factor=smooth(v), concentration=0.3)
    assert np.diag(fit.correlation) == pytest.approx(1.0) and np.abs(fit.correlation).max() < 1 + 1e-9
    assert np.allclose(np.diag(fit.covariance), fit.sigma**2)
    table = fit.to_dataframe()
    assert len(table) == 4 and table["alpha"].to_numpy() == pytest.approx(fit.alpha)
    content = json.loads(fit.save(tmp_path / "fit.json").read_text())
    assert content["alpha"] == pytest.approx(fit.alpha.tolist()) and content["laue"] == "4/mmm" and content["projected"]
    assert fit.to_csv(tmp_path / "fit.csv").read_text().startswith("u,v,w,distance")
    assert "SROFit projected 4/mmm" in repr(fit) and "&lt;test&gt;" in fit._repr_html_()
    with pytest.raises(ValueError, match="read-only"):
        fit.alpha[0] = 1.0
    with pytest.raises(AttributeError):
        fit.alpha = None
    figure, axes = fit.show()
    assert len(axes) == 4
    matplotlib.pyplot.close(figure)
    energies = refine_interactions(fit)
    assert json.loads(energies.save(tmp_path / "v.json").read_text())["method"] == "intensity" and "2c(1-c)" in repr(energies)
    assert (fit.residual().data + fit.simulate().data) == pytest.approx(data.data)


# -- bad input -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"laue": "5/m"}, "laue is '5/m'"),
        ({"laue": "m-3m"}, "a symmetry that the lattice"),
        ({"laue": "4/mmm", "centring": "A"}, "centring 'A'"),
        ({"centring": "Q"}, "centring is 'Q'"),
        ({"shells": 0}, "shells is 0"),
        ({"shells": 2.5}, "shells is 2.5"),
        ({"shells": 1000}, "shells is 1000"),
        ({"vectors": [(0.5, 0, 0)]}, "no vector of a P lattice"),
        ({"vectors": [(0, 0, 1)]}, "cannot tell from the origin"),
        ({"vectors": [(1, 0)]}, "vectors has the shape"),
        ({"form_factor": -1.0}, "form_factor is -1"),
        ({"form_factor": np.ones((3, 3))}, "form_factor has the shape"),
        ({"form_factor": -np.ones((64, 64))}, "nowhere positive"),
        ({"form_factor": "flat"}, "form_factor is 'flat'"),
        ({"background": "linear"}, "background is 'linear'"),
        ({"background": 9}, "background is 9"),
        ({"background": "constant", "form_factor": 1.0}, "no data tell apart"),
        ({"concentration": 1.5}, "concentration is 1.5"),
        ({"sites": []}, "sites is no sequence"),
        ({"sites": [Site((0, 0, 0), A, B)], "laue": "4/mmm", "form_factor": None}, "laue is given beside sites"),
    ],
)
def test_bad_options(options, message):
    v = plane(TETRAGONAL)
    given = {"form_factor": smooth(v)} | options
    if "sites" in options:
        given.pop("form_factor") if given.get("form_factor") is not None else None
    with pytest.raises(DataError, match=message):
        refine_sro(v, **given)


def test_bad_data():
    with pytest.raises(DataError, match="data is a ndarray"):
        refine_sro(np.ones((5, 5)), form_factor=1.0)
    with pytest.raises(DataError, match="no lattice"):
        refine_sro(DiffuseVolume.from_pixels(np.ones((9, 9))), form_factor=1.0)
    with pytest.raises(TypeError, match="robbust"):
        refine_sro(plane(TETRAGONAL), form_factor=1.0, robbust=False)
    narrow = plane(TETRAGONAL, reach=0.3)
    with pytest.raises(DataError, match="at least one whole zone"):
        refine_sro(narrow, form_factor=smooth(narrow))
    few = plane(TETRAGONAL)
    mask = np.zeros(few.shape, bool)
    mask[3, :4] = True
    with pytest.raises(DataError, match="usable pixels for"):
        refine_sro(few.replace(mask=mask), form_factor=smooth(few))
    with pytest.raises(DataError, match="concentration is 2"):
        Site((0, 0, 0), A, B, 2)
    coarse = plane(TETRAGONAL, n=13, reach=3.0)  # steps of ½: R = 2 looks like R = 0
    with pytest.raises(DataError, match="cannot tell apart"):
        refine_sro(coarse.replace(data=np.ones(coarse.shape)), form_factor=1.0, shells=4, laue="4/mmm")


def test_doubtful_data_warn():
    v = plane(TETRAGONAL)
    h = v.hkl()
    inside = np.abs(h[..., 0] - np.round(h[..., 0])) < 0.3
    data = v.replace(data=smooth(v), mask=inside)
    with pytest.warns(PlausibilityWarning, match="of a Brillouin zone"):
        refine_sro(data, form_factor=smooth(v), shells=2, laue="4/mmm")
    strong = v.replace(data=smooth(v) * brute(v, full({(1, 0, 0): -0.24}, tetragonal)))
    with pytest.warns(PlausibilityWarning, match="outside the possible"):
        refine_sro(strong, form_factor=smooth(v), shells=2, laue="4/mmm", concentration=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refine_sro(strong, form_factor=smooth(v), shells=2, laue="4/mmm", concentration=0.4)


def test_fast_enough():
    """256² and six shells in 0.3 s, 61³ in seconds, of processor time (a busy machine is not our subject)."""
    v = plane(TETRAGONAL, 256)
    data = v.replace(data=smooth(v) * 1.0)
    factor = smooth(v)
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        refine_sro(data, shells=6, laue="4/mmm", form_factor=factor)
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 0.6
