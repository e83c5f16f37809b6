"""Direct beam, basis and lattice fit against lattices that are known."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from synthetic_lattices import G, deformation, lattices

from crystaldl.errors import DataError
from crystaldl.stem.strain.basis import choose_basis
from crystaldl.stem.strain.lattice import fit_lattices
from crystaldl.stem.strain.origin import find_direct_beam, lattice_phase

ANGLE = np.pi / 3


def same_lattice(a, b, tolerance):
    """Whether two bases span one lattice."""
    change = b @ np.linalg.inv(a)
    return np.abs(change - np.rint(change)).max() < tolerance and abs(abs(np.linalg.det(np.rint(change))) - 1) < 1e-9


def points(basis, radius=70.0, keep=lambda h, k: True):
    reach = range(-12, 13)
    out = np.array([h * basis[0] + k * basis[1] for h in reach for k in reach if (h or k) and keep(h, k)])
    return out[np.hypot(*out.T) < radius]


BASES = {
    "square": np.array([[16.0, 0.0], [0.0, 16.0]]),
    "hexagonal": 15 * np.array([[1.0, 0.0], [np.cos(ANGLE), np.sin(ANGLE)]]),
    "oblique": np.array([[14.0, 3.0], [-2.0, 25.0]]),
    "long": np.array([[11.0, 0.5], [1.0, 33.0]]),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_basis_of_plain_lattices(name, turn):
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    basis = BASES[name] @ rotation
    found = choose_basis(points(basis))
    assert same_lattice(basis, found, 1e-6)
    g1, g2 = found
    assert g1[0] > 0 and np.linalg.norm(g1) <= 1.01 * np.linalg.norm(g2)
    assert np.linalg.det(found) > 0 and abs(g1 @ g2) <= 0.51 * (g1 @ g1)


def test_basis_where_short_reflections_are_absent():
    """Diamond along [110]: 111, 200-type rows; the lattice of what is there, not of the shortest two."""
    basis = np.array([[10.0, 0.0], [0.0, 14.0]])
    found = choose_basis(points(basis, keep=lambda h, k: (h + k) % 2 == 0))
    assert same_lattice(np.array([[10.0, 14.0], [10.0, -14.0]]), found, 1e-6)


def test_basis_with_a_weak_superlattice():
    basis = np.array([[9.0, 0.0], [0.0, 9.0]])
    all_points = points(basis, 60)
    weak = np.rint(all_points @ np.linalg.inv(basis)).sum(1) % 2 != 0
    found = choose_basis(np.repeat(all_points, np.where(weak, 3, 40), axis=0))
    assert same_lattice(basis, found, 1e-4)


@settings(max_examples=10, deadline=None)
@example(length=24.0, ratio=1.6875, angle=80.0, turn=52.0, seed=0)
@given(
    length=st.floats(10, 25), ratio=st.floats(1, 1.8), angle=st.floats(62, 118), turn=st.floats(0, 180),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_basis_survives_missing_and_false_disks(length, ratio, angle, turn, seed):
    rng = np.random.default_rng(seed)
    a, t = np.radians(angle), np.radians(turn)
    basis = length * np.array([[np.cos(t), np.sin(t)], [ratio * np.cos(t + a), ratio * np.sin(t + a)]])
    q = np.concatenate([points(basis, 80)] * 12)
    q = q[rng.random(len(q)) > 0.4]
    q = q + rng.normal(0, 0.1, q.shape)
    false = rng.uniform(-80, 80, (len(q) // 9, 2))
    assert same_lattice(basis, choose_basis(np.vstack([q, false])), 0.05)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.array([[15.0, 0.0]]), "1 distinct disks"),
        (np.arange(-4, 5)[:, None] * np.array([[15.0, 2.0]]), "single row"),
        (np.random.default_rng(1).uniform(-90, 90, (70, 2)), "no single lattice"),
    ],
)
def test_no_basis_is_said(vectors, message):
    with pytest.raises(DataError, match=message):
        choose_basis(vectors)


def test_direct_beam_with_descan_and_brighter_reflections():
    model = lattices(deformation(), (12, 15), noise=0.05, missing=0.25, false=0.1, descan=9.0, seed=4)
    strength = model.intensity.copy()
    rng = np.random.default_rng(0)
    pattern = np.repeat(np.arange(180), np.diff(model.offsets))
    for p in rng.choice(180, 40, replace=False):  # thick specimen: a reflection outshines the direct beam
        rows = np.flatnonzero(pattern == p)
        strength[rng.choice(rows)] = 5000
    beam = find_direct_beam(model.offsets, model.q, strength, model.shape)
    assert np.abs(beam.smooth - model.origin).max() < 0.1
    found = np.isfinite(beam.measured[:, 0])
    assert 0.6 < found.mean() < 0.9  # a quarter of all disks is missing
    assert np.abs(beam.measured - model.origin)[found].max() < 0.7


def test_direct_beam_where_a_reflection_is_brighter_in_whole_regions():
    """A wedge: in four rows of seven one and the same reflection outshines the direct beam."""
    model = lattices(deformation(), (7, 8), noise=0.05, missing=0.1, descan=1.0, seed=1)
    strength = model.intensity.copy()
    pattern = np.repeat(np.arange(56), np.diff(model.offsets))
    hk = np.rint((model.q - model.origin[pattern]) @ np.linalg.inv(G)).astype(int)
    strength[(hk == 0).all(1)] = 900
    for row, node in ((0, (1, 0)), (2, (0, 1)), (3, (1, 0)), (5, (-1, 1))):
        strength[(pattern // 8 == row) & (hk == node).all(1)] = 1500
    beam = find_direct_beam(model.offsets, model.q, strength, model.shape)
    assert np.abs(beam.smooth - model.origin).max() < 0.2


def test_phase_finds_the_lattice_without_a_direct_beam():
    model = lattices(deformation(), (6, 6), noise=0.05)
    rng = np.random.default_rng(0)
    wrong = model.origin + rng.uniform(-0.4, 0.4, (36, 2)) @ G
    assert np.abs(lattice_phase(model.offsets, model.q, wrong, G) - model.origin).max() < 0.2


@pytest.mark.parametrize("robust", [True, False])
def test_fit_is_exact_without_noise(robust):
    rng = np.random.default_rng(2)
    model = lattices(deformation(*rng.normal(0, 0.015, (4, 100))), (10, 10), missing=0.3)
    fit = fit_lattices(model.offsets, model.q, np.full_like(model.q, np.nan), model.origin, G, robust=robust)
    assert np.abs(fit.vectors - model.vectors).max() < 1e-9
    assert np.abs(fit.origin - model.origin).max() < 1e-9
    assert fit.excess < 1e-5


def z_scores(fit, model):
    z = (fit.vectors - model.vectors).reshape(-1, 4) / np.sqrt(np.einsum("pii->pi", fit.covariance))
    return z[np.isfinite(z).all(1)]


@pytest.mark.parametrize(("missing", "false"), [(0.0, 0.0), (0.3, 0.1)])
def test_uncertainties_are_calibrated(missing, false):
    rng = np.random.default_rng(5)
    f = deformation(*rng.normal(0, 0.01, (4, 1600)))
    model = lattices(f, (40, 40), noise=0.05, missing=missing, false=false)
    fit = fit_lattices(model.offsets, model.q, model.sigma, model.origin, G)
    assert np.isfinite(fit.residual).mean() > 0.995
    z = z_scores(fit, model)
    assert np.all(np.abs(np.sqrt((z**2).mean(0)) - 1) < 0.1)
    assert fit.excess < 0.02


@pytest.mark.parametrize("sigma", ["unknown", "too small"])
def test_uncertainties_come_from_the_scatter_where_sigma_does_not_explain_it(sigma):
    model = lattices(deformation(), (30, 30), noise=0.06, missing=0.2)
    stated = np.full_like(model.q, np.nan) if sigma == "unknown" else np.full_like(model.q, 0.005)
    fit = fit_lattices(model.offsets, model.q, stated, model.origin, G)
    assert 0.04 < fit.excess < 0.09
    assert np.all(np.abs(np.sqrt((z_scores(fit, model) ** 2).mean(0)) - 1) < 0.2)


def test_false_disks_do_not_move_the_robust_fit():
    model = lattices(deformation(), (30, 30), noise=0.02, missing=0.2, false=0.1)
    arguments = (model.offsets, model.q, model.sigma, model.origin, G)
    robust, plain = (fit_lattices(*arguments, robust=r) for r in (True, False))
    error = [np.sqrt(np.nanmean((f.vectors - model.vectors) ** 2)) for f in (robust, plain)]
    assert error[0] < 0.01 < 0.02 < error[1]
    assert robust.weight[model.false].mean() < 0.1 < 0.8 < robust.weight[~model.false].mean()


def test_positions_without_a_lattice_get_no_fit():
    model = lattices(deformation(), (3, 3), noise=0.02)
    q = model.q.copy()
    rows = slice(model.offsets[4], model.offsets[5])
    q[rows] = np.random.default_rng(1).uniform(40, 210, q[rows].shape)
    fit = fit_lattices(model.offsets, q, model.sigma, model.origin, G)
    assert np.isnan(fit.vectors[4]).all() and np.isnan(fit.covariance[4]).all() and np.isnan(fit.residual[4])
    assert np.isfinite(np.delete(fit.vectors, 4, axis=0)).all()


def test_a_row_of_disks_gives_no_fit():
    model = lattices(deformation(), (2, 2))
    on_row = np.abs((model.q - model.origin[0]) @ np.linalg.inv(G))[:, 1] < 0.3
    counts = [on_row[a:b].sum() for a, b in zip(model.offsets[:-1], model.offsets[1:], strict=True)]
    q = model.q[on_row]
    fit = fit_lattices(np.cumsum([0, *counts]), q, np.full_like(q, 0.02), model.origin, G)
    assert np.isnan(fit.vectors).all()


def test_speed():
    """At least 5,000 positions a second on one core."""
    model = lattices(deformation(), (64, 64), noise=0.05, missing=0.3, false=0.05)
    arguments = (model.offsets, model.q, model.sigma, model.origin, G)
    fit_lattices(*arguments)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        fit_lattices(*arguments)
        seconds.append(time.process_time() - start)
    assert 64 * 64 / min(seconds) > 5000


def test_disks_that_move_together_make_the_lattice_uncertain():
    """A shift of all disks of a pattern away from the beam, as under multiple scattering: σ tells, where it used to be silent."""
    model = lattices(deformation(), (20, 20), noise=0.03, missing=0.2)
    rng = np.random.default_rng(8)
    pattern = np.repeat(np.arange(400), np.diff(model.offsets))
    outwards = model.q - model.origin[pattern]
    length = np.hypot(*outwards.T)[:, None]
    outwards = np.where(length > 3, outwards / np.maximum(length, 1e-9), 0)
    still = fit_lattices(model.offsets, model.q, model.sigma, model.origin, G)
    moved = model.q + rng.normal(0, 0.08, 400)[pattern, None] * outwards
    fit = fit_lattices(model.offsets, moved, model.sigma, model.origin, G)
    assert still.shift < 0.02 and fit.shift == pytest.approx(0.08, rel=0.25)
    z = z_scores(fit, model)
    assert np.all(np.abs(np.sqrt((z**2).mean(0)) - 1) < 0.2)


def test_what_all_patterns_share_counts_by_half_between_lattices_of_a_scan():
    model = lattices(deformation(), (20, 20), noise=0.03, missing=0.2)
    pattern = np.repeat(np.arange(400), np.diff(model.offsets))
    outwards = model.q - model.origin[pattern]
    length = np.hypot(*outwards.T)[:, None]
    moved = model.q + 0.08 * np.where(length > 3, outwards / np.maximum(length, 1e-9), 0)
    arguments = (model.offsets, moved, model.sigma, model.origin, G)
    absolute, relative = (fit_lattices(*arguments, absolute=a) for a in (True, False))
    assert absolute.shift > 0.07 and 0.3 < relative.shift / absolute.shift < 0.65
    assert np.allclose(absolute.vectors, relative.vectors)
    assert (np.einsum("pii->p", absolute.covariance) > np.einsum("pii->p", relative.covariance)).all()


def test_uncertain_disks_that_err_together_count_for_less(monkeypatch):
    """Disks seen shifted inwards by a third of their sigma feign less strain than by weights of 1/sigma² alone."""
    model = lattices(deformation(), (12, 12), noise=0.08)
    sigma = model.sigma * np.exp(np.random.default_rng(2).normal(0, 0.6, len(model.q)))[:, None]
    pattern = np.repeat(np.arange(144), np.diff(model.offsets))
    outwards = model.q - model.origin[pattern]
    length = np.linalg.norm(outwards, axis=1, keepdims=True)
    true = model.q - 0.35 * sigma * np.where(length > 5, outwards / np.maximum(length, 1), 0.0)

    def scale():
        fit = fit_lattices(model.offsets, true, sigma, model.origin, G)
        return np.mean(np.linalg.inv(G) @ fit.vectors - np.eye(2), axis=0).diagonal().mean()

    ours = scale()
    monkeypatch.setattr("crystaldl.stem.strain.lattice._importance", lambda variance: np.ones(len(variance)))
    plain = scale()
    assert plain < 0 and abs(ours) < 0.85 * abs(plain)
