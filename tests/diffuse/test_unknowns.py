"""What a factorisation is made of before anything is refined: envelope, Bragg radius, and what no pixel sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crystaldl.diffuse.factorise.bragg import bragg_radius
from crystaldl.diffuse.factorise.links import LINKS
from crystaldl.diffuse.factorise.numerics import LEAF, inverse_diagonal
from crystaldl.diffuse.factorise.search import Fit
from crystaldl.diffuse.factorise.solver import FactoriseOptions
from crystaldl.diffuse.factorise.states import Factors
from crystaldl.diffuse.factorise.uncertainty import hidden_mode, order_covariance, sigma_maps
from crystaldl.diffuse.factorise.unknowns import arrays_of, envelope_of
from crystaldl.diffuse.geometry import plane_lattice
from crystaldl.diffuse.volume import DiffuseVolume

from .test_gauss_newton import example
from .test_peaks import plane as molecular_plane

CELL = (6.0, 6.0, 7.0, 90, 90, 90)


def plane(n=96, reach=4.5):
    x = np.linspace(-reach, reach, n)
    return DiffuseVolume(np.ones((n, n)), x, x, 0.0, CELL)


def atoms(q):
    """Square of a scattering factor with a Debye-Waller factor."""
    return (3.0 * np.exp(-0.9 * q**2 / 4) + 2.0 * np.exp(-0.1 * q**2 / 4)) ** 2 * np.exp(-0.05 * q**2)


# ---------------------------------------------------------------- rings


def test_rings_do_not_leave_a_wide_support_behind(monkeypatch):
    """Rings that D took for its own on a wide support are found later: the search must come back from there."""
    volume, d, s = molecular_plane()
    q = volume.q() / volume.q().max()
    data = d * s + 0.2 * d.max() * np.exp(-0.5 * ((q - 0.45) / 0.03) ** 2)
    own = arrays_of(volume.replace(data=data), plane_lattice(volume), torch.device("cpu"))
    fit = Fit(own, FactoriseOptions(links=("linear",)), 20.0)
    widest, choose, calls = fit.supports()[2], fit.choose, []

    def misled(valid):
        calls.append(len(fit.radial))
        if len(calls) > 1:
            return choose(valid)
        best = fit.solve(valid, widest, "linear", iterations=6)
        return widest, "linear", best, {"linear": best.evidence}

    monkeypatch.setattr(fit, "early", fit.first)            # nor are they found at once
    monkeypatch.setattr(fit, "choose", misled)
    support, _, found, _ = fit.search(own.valid)
    assert len(calls) == 2 and calls[1] > calls[0], "once more, with narrow background functions"
    assert support < widest
    assert np.corrcoef(found.fields.order.numpy().ravel(), s.ravel())[0, 1] > 0.9999


# ---------------------------------------------------------------- envelope


def test_the_envelope_is_that_of_the_atoms_and_not_of_the_molecule():
    """Rings of a molecular modulation belong to D / g, whose transform ends at the support: g must not follow them."""
    volume = plane()
    q = volume.q()
    modulation = 1.0 + 0.5 * np.cos(4.5 * q)
    arrays = arrays_of(volume.replace(data=atoms(q) * modulation), plane_lattice(volume), torch.device("cpu"))
    g = envelope_of(arrays, arrays.valid).numpy()
    order = np.argsort(q.ravel())
    assert (np.diff(g.ravel()[order]) <= 1e-9 * g.max()).all(), "it never rises"
    followed = g / atoms(q)
    assert followed.std() / followed.mean() < 0.5 * modulation.std() / modulation.mean()


def test_the_envelope_of_atoms_alone_is_exact():
    volume = plane()
    q = volume.q()
    arrays = arrays_of(volume.replace(data=atoms(q)), plane_lattice(volume), torch.device("cpu"))
    ratio = envelope_of(arrays, arrays.valid).numpy() / atoms(q)
    assert ratio == pytest.approx(ratio.mean(), rel=0.08)


# ---------------------------------------------------------------- Bragg peaks


def spots(volume, width, seed=0):
    hk = volume.hkl()[..., :2]
    node = np.round(hk).astype(int)
    strength = np.random.default_rng(seed).lognormal(0.0, 1.5, (11, 11))[node[..., 0] + 5, node[..., 1] + 5]
    step = float(volume.axes[0][1] - volume.axes[0][0])
    return strength * np.exp(-np.square((hk - node) / step).sum(-1) / (2 * width**2))


def test_a_factor_that_varies_fast_is_no_bragg_scattering():
    """Around a node D changes as much as it does between the nodes, which Bragg scattering does not."""
    volume = plane(n=128, reach=3.3)
    hk = volume.hkl()[..., :2]
    factor = 1.0 + 0.95 * np.cos(2 * np.pi * (0.9 * hk[..., 0] + 0.31 * hk[..., 1]))
    order = 1.0 + 0.3 * np.cos(2 * np.pi * hk).sum(-1)
    assert bragg_radius(volume.replace(data=factor * order), plane_lattice(volume), 5.0) == 0.0


@pytest.mark.parametrize("width", [0.8, 1.4])
def test_tails_of_bragg_peaks_are_left_out(width):
    volume = plane(n=161)
    diffuse = 10.0 * (1.0 + 0.3 * np.cos(2 * np.pi * volume.hkl()[..., :2]).sum(-1))
    bright = spots(volume, width) * 60.0
    radius = bragg_radius(volume.replace(data=diffuse + bright), plane_lattice(volume), 5.0)
    lattice = plane_lattice(volume)
    steps = np.array([float(a[1] - a[0]) for a in volume.axes])
    outside = lattice.distance_to_node(volume.axes, steps) > radius
    assert 2.0 * width < radius <= 6.0
    assert np.median(bright[outside & (lattice.distance_to_node(volume.axes, steps) < radius + 0.75)]) < 0.1 * 16


# ---------------------------------------------------------------- what no pixel sees


def hidden_example(link):
    problem, state = example(link, polish=False)
    away = torch.zeros(len(problem.cell.waves), dtype=torch.bool)
    away[: len(away) // 8] = True
    problem.guard(away)
    return problem, state


@pytest.mark.parametrize("link", list(LINKS))
def test_hidden_parts_make_the_scale_uncertain(link):
    """D, S and α move together as S changes by a constant in the hidden part of the cell, and its mean stays 1."""
    problem, state = hidden_example(link)
    mode = hidden_mode(problem, state)
    cell = LINKS[link](1.0 + 2.0 * problem.cell.waves @ state.alpha)[0]
    cell = cell / cell.mean()
    hidden = ~problem.seen
    assert mode.share == pytest.approx(float(hidden.double().mean()))
    assert mode.spread == pytest.approx(float((cell[hidden].mean() - cell[~hidden].mean()).abs()) / 3**0.5)
    size = len(state.p) + len(state.alpha) + len(state.b)
    fields = problem.fields(state)
    factors = Factors(state, fields, problem.valid, 1e-24 * torch.eye(size, dtype=torch.float64), 1.0, 0.0, 1)
    sigma_d, sigma_s = sigma_maps(problem, factors)
    assert sigma_d.numpy() == pytest.approx((mode.share * mode.spread * fields.factor).abs().numpy())
    t = 1e-6
    moved = cell + t * hidden.double()
    change = (moved / moved.mean() - cell) / t
    waves = problem.cell.waves
    alpha, covariance = order_covariance(problem, factors)
    expected = mode.spread * (waves * change[:, None]).mean(0)
    assert covariance.diagonal().sqrt().numpy() == pytest.approx(expected.abs().numpy(), rel=1e-4)
    assert 0 < float(mode.inside.mean()) < 1 and set(mode.inside.unique().tolist()) == {0.0, 1.0}
    outside = mode.inside == 0
    assert sigma_s[outside].numpy() == pytest.approx((mode.spread * mode.share * fields.order[outside]).abs().numpy())
    assert float(sigma_s[~outside].mean()) > 2.0 * float(sigma_s[outside].mean())
    assert len(alpha) == len(state.alpha)


def test_a_cell_that_is_seen_has_no_hidden_mode():
    problem, state = example(polish=False)
    assert hidden_mode(problem, state) is None


# ---------------------------------------------------------------- the search


@pytest.mark.parametrize(("first", "link"), [("reciprocal", "linear"), ("linear", "reciprocal"), ("linear", "log")])
def test_a_link_starts_from_the_order_of_another(first, link):
    volume = plane(64, 3.3)
    arrays = arrays_of(volume, plane_lattice(volume), torch.device("cpu"))
    fit = Fit(arrays, FactoriseOptions(), 18.0)
    problem, state = fit.problem(arrays.valid, 5.0, first, polish=False)
    alpha = torch.zeros_like(state.alpha)
    alpha[:2] = torch.tensor([0.06, -0.04], dtype=alpha.dtype)
    state = replace(state, alpha=alpha)
    before = problem.fields(state).order
    other = fit.problem(arrays.valid, 5.0, link, polish=False)[0]
    after = other.fields(fit._translated(arrays.valid, 5.0, first, link, state)).order
    assert float((after - before).abs().max()) < 5e-3 and float(before.std()) > 0.1


def test_a_large_triangle_is_inverted_by_halves():
    n = 3 * LEAF + 5
    a = np.random.default_rng(4).normal(size=(n, n))
    a = a @ a.T + np.eye(n)
    found = inverse_diagonal(torch.linalg.cholesky(torch.as_tensor(a)))
    assert found.numpy() == pytest.approx(np.diag(np.linalg.inv(a)), rel=1e-8)
