"""Short-range order against exact solutions of the Ising model, enumeration and direct sums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ellipk

from crystaldl.diffuse import disorder as d
from crystaldl.errors import DataError


@pytest.mark.parametrize("j", [-0.6, -0.2, 0.3, 0.7])
def test_chain_is_exact(j):
    """Ising 1925: ⟨σ_0 σ_n⟩ = (tanh(-J))^n without a field."""
    _, alpha = d.ising_correlations({(1,): j}, 0.5, (8192,), sweeps=300, samples=60, cutoff=6, seed=3)
    assert alpha == pytest.approx(np.tanh(-j) ** np.arange(1, 7), abs=0.012)


def test_chain_of_any_composition():
    """In a field the correlations are powers of the ratio of the transfer matrix's eigenvalues."""
    j, share = 0.5, 0.2

    def solve(field):
        spin = np.array([1, -1])
        transfer = np.exp(-j * np.outer(spin, spin) + field * (spin[:, None] + spin) / 2)
        value, vector = np.linalg.eigh(transfer)
        return vector[:, 1] ** 2 @ spin, value[0] / value[1]

    ratio = solve(brentq(lambda h: solve(h)[0] - (2 * share - 1), -5, 5))[1]
    _, alpha = d.ising_correlations([[[1]], [j]], share, (8192,), sweeps=300, samples=60, cutoff=4, seed=1)
    assert alpha == pytest.approx(ratio ** np.arange(1, 5), abs=0.012)


@pytest.mark.parametrize("k", [0.2, 0.32])
def test_square_lattice_is_onsagers(k):
    """Onsager 1944: the nearest-neighbour correlation of the square lattice above its transition (K < 0.4407)."""
    kappa = 2 * np.sinh(2 * k) / np.cosh(2 * k) ** 2
    exact = 0.5 / np.tanh(2 * k) * (1 + 2 / np.pi * (2 * np.tanh(2 * k) ** 2 - 1) * ellipk(kappa**2))
    for sign in (1, -1):
        vectors, alpha = d.ising_correlations({(1, 0): sign * k, (0, 1): sign * k}, 0.5, (96, 96), sweeps=200, samples=30, seed=5)
        near = np.abs(vectors).sum(1) == 1
        assert alpha[near].mean() == pytest.approx(-sign * exact, abs=0.01)


def test_small_lattice_is_enumerated():
    """All 12,870 half-filled 4 × 4 lattices with their Boltzmann weights: detailed balance, with bonds that meet themselves."""
    interactions = {(1, 0): 0.25, (0, 1): -0.15, (1, 1): 0.1, (2, 0): 0.08}
    spins = []
    for chosen in itertools.combinations(range(16), 8):
        spin = -np.ones(16)
        spin[list(chosen)] = 1
        spins.append(spin)
    spins = np.array(spins).reshape(-1, 4, 4)
    energy = sum(j * (spins * np.roll(spins, r, (1, 2))).sum((1, 2)) for r, j in interactions.items())
    weight = np.exp(-energy)
    weight /= weight.sum()
    occupation = d.ising_configurations(interactions, 0.5, (4, 4), sweeps=50, samples=40_000, interval=2, seed=2)
    assert (occupation.sum((1, 2)) == 8).all()
    drawn = 2.0 * occupation - 1
    for r in ((1, 0), (0, 1), (1, 1), (1, 2), (2, 2)):
        exact = (weight * (spins * np.roll(spins, r, (1, 2))).mean((1, 2))).sum()
        assert (drawn * np.roll(drawn, r, (1, 2))).mean() == pytest.approx(exact, abs=0.006)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_high_temperature(share):
    """α = -4c(1-c)J to first order, in three dimensions, and zero beyond the interaction to that order."""
    j = np.array([0.03, -0.02])
    bonds = ([(1, 0, 0), (0, 1, 1)], j)
    vectors, alpha = d.ising_correlations(bonds, share, (24, 24, 24), sweeps=30, samples=60, cutoff=1.5, seed=4)
    found = [alpha[(vectors == r).all(1)][0] for r in ((1, 0, 0), (0, 1, 1), (0, 1, -1))]
    assert found == pytest.approx([*(-4 * share * (1 - share) * j), 0.0], abs=0.005)


def test_monte_carlo_agrees_with_mean_field_when_hot():
    j = {(1, 0): 0.04, (0, 1): 0.04, (1, 1): -0.03, (1, -1): -0.03}
    vectors, alpha = d.ising_correlations(j, 0.3, (96, 96), sweeps=50, samples=80, cutoff=2.5, seed=8)
    _, mean_field = d.krivoglaz_clapp_moss(list(j), [4 * 0.3 * 0.7 * v for v in j.values()], cutoff=2.5)
    assert alpha == pytest.approx(mean_field, abs=0.008)


def test_seeds():
    first, again, other = (d.ising_correlations({(1, 0): 0.2}, 0.4, (32, 32), sweeps=20, samples=4, seed=s)[1] for s in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_warren_cowley_by_hand():
    rng = np.random.default_rng(0)
    occupation = (rng.random((12, 10)) < 0.4).astype(int)
    vectors, alpha = d.warren_cowley(occupation, 3.2)
    c = occupation.mean()
    for r, value in zip(vectors, alpha, strict=True):
        pairs = (occupation * np.roll(occupation, -r, (0, 1))).mean()
        by_hand = 1 - (c - pairs) / (c * (1 - c))           # 1 - P_AB / c_B, the definition of Cowley 1950
        assert value == pytest.approx(by_hand + (1 - by_hand) / 120)
    stacked = d.warren_cowley(np.stack([occupation, occupation]), 3.2, stack=True)[1]
    assert stacked == pytest.approx(alpha)


def test_random_occupation_is_unbiased():
    rng = np.random.default_rng(1)
    site = np.arange(64) < 20
    stack = np.array([rng.permutation(site) for _ in range(4000)]).reshape(-1, 8, 8)
    alpha = d.warren_cowley(stack, 3.5, stack=True)[1]
    assert alpha.mean() == pytest.approx(0.0, abs=0.0015)          # -1/63 = -0.016 without the correction


def test_ordered_crystal():
    i, j = np.indices((12, 12))
    vectors, alpha = d.warren_cowley((i + j) % 2, 2.5)
    assert alpha + (alpha - 1) / 143 == pytest.approx((-1.0) ** vectors.sum(1), abs=1e-9)


def test_lattice_vectors():
    hexagonal = np.array([[1.0, -0.5], [-0.5, 1.0]])
    for cutoff, shells in ((1.01, 6), (1.75, 12), (2.01, 18)):
        vectors = d.lattice_vectors(cutoff, hexagonal)
        assert 2 * len(vectors) == shells
        both = np.concatenate([vectors, -vectors])
        assert len(np.unique(both, axis=0)) == shells
    assert len(d.lattice_vectors(1.0, ndim=3)) == 3 and len(d.lattice_vectors(3.0, ndim=1)) == 3
    length = np.linalg.norm(d.lattice_vectors(4.0), axis=1)
    assert (np.diff(length) >= -1e-12).all()


def test_cell_agrees_with_the_sum():
    rng = np.random.default_rng(0)
    vectors = d.lattice_vectors(3.0, ndim=2)
    alpha = rng.normal(0, 0.1, len(vectors))
    h = np.stack(np.meshgrid(np.arange(16) / 16, np.arange(16) / 16, indexing="ij"), -1)
    assert d.cell_structure_factor(vectors, alpha, 16) == pytest.approx(d.structure_factor(vectors, alpha, h))
    both, twice = np.concatenate([vectors, -vectors]), np.concatenate([alpha, alpha])
    assert d.structure_factor(vectors, alpha, h) == pytest.approx(1 + np.cos(2 * np.pi * h @ both.T) @ twice)
    assert d.cell_structure_factor(vectors, alpha).mean() == pytest.approx(1.0)       # 000 counts once


def test_krivoglaz_clapp_moss():
    vectors, beta = np.array([[1, 0], [0, 1], [1, 1]]), np.array([0.2, 0.1, -0.05])
    found, alpha = d.krivoglaz_clapp_moss(vectors, beta, points=64)
    s = d.cell_structure_factor(found, alpha, 64)
    h = np.arange(64) / 64
    field = 2 * (0.2 * np.cos(2 * np.pi * h)[:, None] + 0.1 * np.cos(2 * np.pi * h) - 0.05 * np.cos(2 * np.pi * (h[:, None] + h)))
    shape = s * (1 + field)
    assert shape == pytest.approx(np.full_like(shape, shape.mean()), rel=1e-6)        # C / (1 + βJ)
    assert s.mean() == pytest.approx(1.0) and s.min() > 0
    weak = d.krivoglaz_clapp_moss(vectors, 1e-4 * beta, cutoff=1.5)
    value = {tuple(v): a for v, a in zip(*weak, strict=True)}
    assert [value[tuple(v)] for v in vectors] == pytest.approx(-1e-4 * beta, rel=1e-3)
    with pytest.raises(DataError, match="beta_j makes 1 \\+ βJ as low as"):
        d.krivoglaz_clapp_moss(vectors, 5 * beta)


def test_damped_oscillator():
    vectors = np.array([[1, 0], [0, 2], [2, 1]])
    alpha = d.damped_oscillator(vectors, 0.5, 0.8, 1.1)
    n = np.array([1, 2, 5**0.5])
    assert alpha == pytest.approx(0.5 * np.exp(-0.8 * n) * np.cos(1.1 * n))
    long = d.damped_oscillator(vectors, 0.5, 0.8, 1.1, metric=np.diag([25.0, 25.0]))
    assert long == pytest.approx(alpha)                     # in units of the shortest lattice vector


@pytest.mark.parametrize("lorentzian", [True, False])
def test_peaks_are_positive(lorentzian):
    vectors = d.lattice_vectors(25.0)
    alpha = d.peaked(vectors, [[0.5, 0.25], [0.1, 0.3]], [0.5, 0.4], np.diag([0.45, 0.6]), lorentzian=lorentzian)
    s = d.cell_structure_factor(vectors, alpha, 128)
    assert s.min() > 0.09 and s.mean() == pytest.approx(1.0)
    assert np.unravel_index(s.argmax(), s.shape) in ((64, 32), (64, 96))


def test_prune_keeps_an_admissible_truth():
    vectors = d.lattice_vectors(4.0)
    alpha = d.damped_oscillator(vectors, 0.9, 0.5, 2.4)
    assert d.minimum(vectors, alpha) < -0.1
    kept, shrunk = d.prune(vectors, alpha)
    assert d.minimum(kept, shrunk) == pytest.approx(0.0, abs=1e-6)
    assert shrunk / alpha == pytest.approx(np.full(len(alpha), shrunk[0] / alpha[0]))
    assert len(d.prune(vectors, np.linspace(-1e-5, 0.04, len(vectors)), 1e-2)[0]) < len(vectors)


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.3])
def test_projection_is_the_plane_of_three_dimensions(offset):
    vectors, alpha = d.krivoglaz_clapp_moss([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], [0.05, 0.1, -0.08, 0.04], points=24)
    plane, coefficients, mean = d.project_to_plane(vectors, alpha, offset)
    hk = np.random.default_rng(0).random((20, 2))
    hkl = np.concatenate([hk, np.full((20, 1), offset)], 1)
    assert mean * d.structure_factor(plane, coefficients, hk) == pytest.approx(d.structure_factor(vectors, alpha, hkl))


def test_projection_needs_a_mirror():
    with pytest.raises(DataError, match="offset is 0.3 and alpha differs between uvw and uv-w"):
        d.project_to_plane([[1, 0, 1]], [0.2], 0.3)
    plane, alpha, mean = d.project_to_plane([[1, 0, 1]], [0.2], 0.5)
    assert (plane == [[1, 0]]).all() and alpha == pytest.approx([-0.2]) and mean == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: d.ising_correlations({(1, 0): 0.1}, 0.5, (32,)), "interactions have vectors of shape"),
        (lambda: d.ising_correlations({(0, 0): 0.1}, 0.5, (32, 32)), "R = 0"),
        (lambda: d.ising_correlations({(1, 0): 0.1, (-1, 0): 0.1}, 0.5, (32, 32)), "twice"),
        (lambda: d.ising_correlations({(1, 0): 0.1}, 1.5, (32, 32)), "concentration is 1.5"),
        (lambda: d.ising_correlations({(1, 0): 0.1}, 0.5, (2, 32)), "shape is"),
        (lambda: d.ising_correlations({(1, 0): 0.1}, 0.5, (8, 8), samples=0), "samples"),
        (lambda: d.warren_cowley(np.full((8, 8), 0.5), 2), "other than 0 and 1"),
        (lambda: d.warren_cowley(np.ones((8, 8)), 2), "one species only"),
        (lambda: d.warren_cowley(np.eye(8), 4), "cutoff is 4 cells"),
        (lambda: d.peaked([[1, 0]], [[0, 0]], [1.2], np.eye(2)), "weights are"),
        (lambda: d.cell_structure_factor([[9, 0]], [0.1], 16), "points is 16"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(DataError, match=message):
        call()
