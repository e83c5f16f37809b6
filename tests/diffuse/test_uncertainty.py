"""Standard uncertainties against explicit error propagation, and against repeated noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crystaldl.diffuse.factorise.fourier import FourierGrid
from crystaldl.diffuse.factorise.gauss_newton import Problem
from crystaldl.diffuse.factorise.links import LINKS, order_parameters
from crystaldl.diffuse.factorise.refine import refine
from crystaldl.diffuse.factorise.states import Factors
from crystaldl.diffuse.factorise.uncertainty import _rim, hidden_mode, mean_drift, sigma_maps, variance_map

from .test_gauss_newton import example, parameters


@pytest.mark.parametrize("matrix", [np.diag([1.0, 0.7]), np.array([[0.9, 0.3], [-0.2, 0.8]])], ids=["aligned", "oblique"])
@pytest.mark.parametrize("sines", [False, True])
def test_variance_map_is_the_quadratic_form(matrix, sines):
    rng = np.random.default_rng(0)
    axes = (torch.linspace(-1, 1.2, 17, dtype=torch.float64), torch.linspace(-0.7, 1.5, 13, dtype=torch.float64))
    grid = FourierGrid(axes, torch.as_tensor(matrix), (6, 5))
    index = torch.as_tensor(rng.integers(-3, 4, (8, 2)))
    sine = torch.as_tensor(rng.random(8) < 0.5) if sines else torch.zeros(8, dtype=torch.bool)
    half = rng.normal(size=(8, 8))
    covariance = half @ half.T
    angle = 2 * np.pi * grid.coordinates().flatten(1).T.numpy() @ (index.numpy() / [6, 5]).T
    f = np.where(sine.numpy(), np.sin(angle), np.cos(angle))
    found = variance_map(grid, torch.as_tensor(covariance), index, sine)
    assert found.shape == (17, 13)
    assert found.flatten().numpy() == pytest.approx(np.einsum("xa,ab,xb->x", f, covariance, f), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("sines", [False, True])
@pytest.mark.parametrize("link", list(LINKS))
def test_sigma_maps_are_propagated_errors(link, sines):
    """σ² = J C Jᵀ with numerical derivatives of D and S, the normalisation of S to mean 1 included."""
    problem, state = example(link, "aligned", sines=sines, polish=False)
    rng = np.random.default_rng(1)
    half = rng.normal(size=(parameters(problem, state),) * 2) * 0.01
    covariance = torch.as_tensor(half @ half.T)
    fields = problem.fields(state)
    factors = Factors(state, fields, problem.valid, covariance, 1.0, 0.0, 1)
    n, m = len(state.p), len(state.alpha)
    mean, step = problem.cell_mean(state.alpha), 1e-6

    def parts(change):
        moved = replace(state, p=state.p + change[:n], alpha=state.alpha + change[n : n + m])
        found = problem.fields(moved)
        # the covariance is that of p for an S whose mean is held
        return found.factor * problem.cell_mean(moved.alpha) / mean, found.order

    rows_d, rows_s = [], []
    for i in range(n + m):
        change = torch.zeros(n + m, dtype=torch.float64)
        change[i] = step
        up, down = parts(change), parts(-change)
        rows_d.append((up[0] - down[0]) / (2 * step))
        rows_s.append((up[1] - down[1]) / (2 * step))
    c = covariance[: n + m, : n + m]
    for found, rows in zip(sigma_maps(problem, factors), (rows_d, rows_s), strict=True):
        j = torch.stack(rows)
        expected = torch.einsum("axy,ab,bxy->xy", j, c, j).clamp(min=0).sqrt()
        assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("link", list(LINKS))
def test_mean_drift(link):
    problem, state = example(link)
    drift = mean_drift(problem, state.alpha)
    for i in range(len(drift)):
        step = torch.zeros_like(drift)
        step[i] = 1e-6
        up, down = (np.log(problem.cell_mean(state.alpha + s)) for s in (step, -step))
        assert drift[i].item() == pytest.approx((up - down) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("link", ["linear", "reciprocal"])
def test_uncertainties_are_those_of_repeated_noise(link):
    """Twenty-four noisy copies: the scatter of D, S and α about the truth is what each refinement states."""
    problem, truth = example(link, "aligned", polish=False, background=0, n=(40, 36), seed=2)
    exact, rng = problem.fields(truth), np.random.default_rng(3)
    n, m = len(truth.p), len(truth.alpha)
    alpha = order_parameters(problem, truth.alpha)[0]
    pulls_d, pulls_s, pulls_a = [], [], []
    wide = replace(truth, p_variance=truth.p_variance * 100, alpha_variance=truth.alpha_variance * 100)
    for _ in range(24):
        noisy = exact.model + torch.as_tensor(rng.normal(0, 0.1, exact.model.shape))
        copy = Problem(noisy, problem.valid > 0, problem.basis, problem.settings)
        found = refine(copy, replace(wide, noise=(0.01, 0.0, 0.0)), adapt_prior=False)
        sigma_d, sigma_s = sigma_maps(copy, found)
        pulls_d.append(((found.fields.factor - exact.factor) / sigma_d).flatten())
        pulls_s.append(((found.fields.order - exact.order) / sigma_s).flatten())
        value, change = order_parameters(copy, found.state.alpha)
        spread = (change @ found.covariance[n : n + m, n : n + m] @ change.T).diagonal().sqrt()
        pulls_a.append((value - alpha) / spread)
    for pulls in (pulls_d, pulls_s, pulls_a):
        assert 0.8 < float(torch.cat(pulls).square().mean().sqrt()) < 1.2


def test_rim_of_a_hidden_part_across_the_edge_of_the_cell():
    hidden = torch.zeros(32, 48, dtype=torch.bool)
    hidden[-2:, :3] = hidden[:2, :3] = True
    rim = _rim(hidden.flatten(), (32, 48)).reshape(32, 48)
    assert int(rim.sum()) == 8 * 9 - 4 * 3 and not bool((rim & hidden).any())
    assert bool(rim[3, -3]) and not bool(rim[4, 0]) and not bool(rim[0, 6])


def test_what_is_hidden_may_be_at_the_level_of_the_rest_or_of_the_rim():
    """A peak within the holes that is continued at the level of the rest still shows in the rim, and the other way round."""
    problem, state = example("linear")
    middle = torch.stack(torch.meshgrid(*(torch.arange(k) / k for k in problem.cell.shape), indexing="ij")).flatten(1)
    hidden = ((middle + 0.5) % 1.0 - 0.5).square().sum(0).sqrt() < 0.15
    problem.guard(hidden)
    order = 1.0 + 2.0 * problem.cell.waves @ state.alpha
    order = order / order.mean()
    rim = _rim(hidden, problem.cell.shape)
    steps = [abs(float(order[hidden].mean() - order[part].mean())) for part in (~hidden, rim)]
    mode = hidden_mode(problem, state)
    assert mode.share == pytest.approx(float(hidden.double().mean()))
    assert mode.spread == pytest.approx(max(steps) / np.sqrt(3.0))
