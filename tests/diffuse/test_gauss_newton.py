"""Normal equations, priors and evidence of the factorisation against numerical derivatives and exact linear algebra."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import isotonic_regression, nnls

from crystaldl.diffuse.factorise.curvature import curvature
from crystaldl.diffuse.factorise.fourier import FourierGrid
from crystaldl.diffuse.factorise.gauss_newton import Basis, Problem, Settings, State
from crystaldl.diffuse.factorise.links import LINKS, order_parameters
from crystaldl.diffuse.factorise.numerics import FADE, falling, inverse_diagonal, non_negative, solve
from crystaldl.diffuse.factorise.refine import _moved, refine

EMPTY = torch.zeros(0, dtype=torch.float64)
MODES = {"aligned": [(0, 0), (1, 1)], "oblique": [(0, 0), (0, 1), (1, 0), (1, 1)]}


def example(link="linear", geometry="aligned", *, sines=False, background=2, polish=True, seed=0, n=(26, 23), **settings):
    """A small problem with all kinds of unknowns, and a state at which nothing vanishes."""
    rng = np.random.default_rng(seed)
    tensor = torch.as_tensor
    axes = tuple(tensor(np.linspace(-1.5 - 0.1 * i, 1.6, k)) for i, k in enumerate(n))
    matrix = np.eye(2) if geometry == "aligned" else np.array([[1.0, 0.21], [-0.17, 0.94]])
    denominators = (2, 1) if geometry == "aligned" else (1, 1)
    grid = FourierGrid(axes, tensor(matrix), (8, 6))
    patterson = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, -1], [3, 1]])
    order = np.array([[0, 1], [1, 0], [1, -1], [2, 1]])
    p_sine, s_sine = np.zeros(len(patterson), bool), np.zeros(len(order), bool)
    if sines:
        patterson, p_sine = np.concatenate([patterson, patterson[1:]]), np.r_[p_sine, np.ones(5, bool)]
        order, s_sine = np.concatenate([order, order]), np.r_[s_sine, np.ones(4, bool)]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    radius = x.square().sum(0).sqrt()
    radial = torch.stack([torch.exp(-radius.square()), radius])[:background]
    basis = Basis(tensor(patterson), tensor(p_sine), tensor(np.abs(patterson).sum(1) // 2), tensor(order), tensor(s_sine),
                  tensor(np.abs(order).sum(1) - 1), tuple(m // d for m, d in zip((8, 6), denominators, strict=True)),
                  torch.exp(-0.2 * radius), radial, torch.arange(background) // 2)
    p = 0.3 * rng.normal(size=len(patterson))
    p[0] = 3.0
    state = State(tensor(p), tensor(0.06 * rng.normal(size=len(order))), tensor(0.2 * rng.random(background)), grid,
                  tensor(0.5 + rng.random(4)), tensor(0.1 + rng.random(4)), tensor(np.array([0.7, 0.4])), (0.02, 0.0, 0.0))
    modes = []
    for i, j in MODES[geometry]:
        mode = torch.zeros(2, 2, dtype=torch.float64)
        mode[i, j] = 1.0
        modes.append(mode)
    valid = tensor(rng.random(n) < 0.9)
    settings = Settings(link=link, polish=polish, **({"robust": False, "poisson": False} | settings))
    intensity = tensor(rng.normal(3.0, 1.0, n))
    return Problem(intensity, valid, basis, settings, None, tuple(modes)), state


def parameters(problem, state):
    modes = len(problem.modes) if problem.settings.polish else 0
    return len(state.p) + len(state.alpha) + len(state.b) + modes


def jacobian(problem, state, held=True, step=1e-6):
    """Derivatives of the model by all unknowns; the mean that normalises S is held, as the covariance wants it."""
    mean = problem.cell_mean(state.alpha)

    def model(change):
        moved = _moved(problem, state, change)
        fields = problem.fields(moved)
        ratio = problem.cell_mean(moved.alpha) / mean if held else 1.0
        return fields.factor * fields.order * ratio + fields.background

    columns = []
    for i in range(parameters(problem, state)):
        change = torch.zeros(parameters(problem, state), dtype=torch.float64)
        change[i] = step
        columns.append(((model(change) - model(-change)) / (2 * step)).flatten())
    return torch.stack(columns)


# ---------------------------------------------------------------- normal equations


@pytest.mark.parametrize("polish", [True, False])
@pytest.mark.parametrize("sines", [False, True])
@pytest.mark.parametrize("geometry", ["aligned", "oblique"])
@pytest.mark.parametrize("link", list(LINKS))
def test_normal_equations_are_those_of_the_numerical_jacobian(link, geometry, sines, polish):
    problem, state = example(link, geometry, sines=sines, polish=polish)
    fields = problem.fields(state)
    weight = problem.valid * torch.as_tensor(np.random.default_rng(1).random(fields.model.shape))
    matrix, right = problem.normal(state, fields, weight)
    j = jacobian(problem, state)
    expected = (j * weight.flatten()) @ j.T
    scale = expected.diagonal().sqrt()
    assert matrix.shape == expected.shape
    assert ((matrix - expected) / scale[:, None] / scale).abs().max() < 1e-6
    residual = (weight * (problem.intensity - fields.model)).flatten()
    assert ((right - j @ residual) / scale).abs().max() < 1e-5


def test_fields_are_the_model_written_out():
    problem, state = example("linear", "oblique", sines=True)
    basis, fields = problem.basis, problem.fields(state)
    u = state.grid.coordinates().flatten(1).T.numpy()

    def series(values, frequency, sine):
        angle = 2 * np.pi * u @ frequency.T
        return np.where(sine.numpy(), np.sin(angle), np.cos(angle)) @ values.numpy()

    d = basis.envelope.flatten().numpy() * series(state.p, basis.patterson.numpy() / [8, 6], basis.patterson_sine)
    s = 1 + 2 * series(state.alpha, basis.order.numpy().astype(float), basis.order_sine)
    b = (state.b[:, None, None] * basis.radial).sum(0).flatten().numpy()
    assert fields.factor.flatten().numpy() == pytest.approx(d, abs=1e-10)
    assert fields.order.flatten().numpy() == pytest.approx(s, abs=1e-10)
    assert fields.model.flatten().numpy() == pytest.approx(d * s + b, abs=1e-10)


@pytest.mark.parametrize("link", list(LINKS))
def test_order_has_mean_one_over_a_cell(link):
    """For any link: on pixels that cover the cell evenly the mean of S is 1."""
    problem, state = example(link, "oblique")
    axes = (torch.arange(40, dtype=torch.float64) / 40, torch.arange(36, dtype=torch.float64) / 36)
    cell = FourierGrid(axes, torch.eye(2, dtype=torch.float64), (8, 6))
    wide = replace(problem.basis, envelope=torch.ones(40, 36, dtype=torch.float64), radial=torch.zeros(0, 40, 36).double())
    even = Problem(torch.ones(40, 36).double(), torch.ones(40, 36, dtype=torch.bool), wide, problem.settings)
    order = even.fields(replace(state, grid=cell, b=EMPTY)).order
    assert order.mean().item() == pytest.approx(1.0, abs=2e-4)
    assert float(order.max() - order.min()) > 0.2
    assert math.isinf(problem.cell_mean(state.alpha * 100)) == (link == "reciprocal")


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("link", list(LINKS))
def test_links(link):
    s = torch.linspace(0.3, 2.0, 9, dtype=torch.float64)
    value, slope = LINKS[link](s)
    numeric = (LINKS[link](s + 1e-6)[0] - LINKS[link](s - 1e-6)[0]) / 2e-6
    assert slope.numpy() == pytest.approx(numeric.numpy(), rel=1e-7)
    one = LINKS[link](torch.ones(1, dtype=torch.float64))
    assert one[0].item() == 1 and abs(one[1].item()) == 1
    assert bool((value > 0).all())


@pytest.mark.parametrize("link", list(LINKS))
def test_order_parameters_and_their_jacobian(link):
    """α_R = ⟨S cos 2πR·u⟩ over a cell, by a sum on another, finer grid; derivatives by finite differences."""
    problem, state = example(link, "aligned")
    order = problem.basis.order.numpy()
    alpha, change = order_parameters(problem, state.alpha)
    u = np.stack(np.meshgrid(np.arange(64) / 64, np.arange(60) / 60, indexing="ij"), -1).reshape(-1, 2)
    waves = np.cos(2 * np.pi * u @ order.T)
    s = LINKS[link](torch.as_tensor(1 + 2 * waves @ state.alpha.numpy()))[0].numpy()
    expected = (waves * s[:, None]).mean(0) / s.mean()
    assert alpha.numpy() == pytest.approx(expected, abs=2e-6)
    numeric = torch.empty_like(change)
    for j in range(len(state.alpha)):
        step = torch.zeros_like(state.alpha)
        step[j] = 1e-6
        numeric[:, j] = (order_parameters(problem, state.alpha + step)[0] - order_parameters(problem, state.alpha - step)[0]) / 2e-6
    assert change.numpy() == pytest.approx(numeric.numpy(), abs=1e-7)


# ---------------------------------------------------------------- priors, evidence, noise


def test_prior_is_in_the_order_of_the_unknowns():
    problem, state = example("reciprocal")
    precision, values = problem.prior(state)
    n, m, k = len(state.p), len(state.alpha), len(state.b)
    assert len(precision) == len(values) == parameters(problem, state) == n + m + k + 2
    assert values[: n + m + k].numpy() == pytest.approx(torch.cat([state.p, state.alpha, state.b]).numpy())
    assert precision[:n].numpy() == pytest.approx((1 / state.p_variance[problem.basis.patterson_shell]).numpy())
    assert precision[n : n + m].numpy() == pytest.approx((1 / state.alpha_variance[problem.basis.order_shell]).numpy())
    assert precision[n + m : n + m + k].numpy() == pytest.approx((1 / state.b_variance[problem.basis.radial_kind]).numpy())


def linear_problem(seed=3):
    """D and B only: α is held at zero by its prior, so that everything is Gaussian and exact."""
    problem, state = example("linear", "aligned", polish=False, seed=seed)
    return problem, replace(state, alpha=torch.zeros_like(state.alpha), alpha_variance=torch.full((4,), 1e-16, dtype=torch.float64))


def test_evidence_is_the_marginal_likelihood_of_a_linear_model():
    """log N(I; 0, A Λ Aᵀ + σ²) for three choices of priors, up to one constant."""
    problem, start = linear_problem()
    used = problem.valid.flatten() > 0
    y = problem.intensity.flatten()[used].numpy()
    differences = []
    for factor, noise in ((1.0, 0.5), (0.1, 0.5), (5.0, 1.3)):
        state = replace(start, p_variance=start.p_variance * factor, noise=(noise, 0.0, 0.0))
        found = refine(problem, state, adapt_prior=False, adapt_noise=False)
        columns = jacobian(problem, state).numpy()[:, used.numpy()]
        variance = 1 / problem.prior(state)[0].numpy()
        covariance = (columns.T * variance) @ columns + noise * np.eye(len(y))
        exact = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1])
        differences.append(found.evidence - exact)
    assert np.ptp(differences) < 1e-4


def test_posterior_of_a_linear_model():
    """Estimates and covariance are those of Gaussian regression."""
    problem, state = linear_problem()
    found = refine(problem, state, adapt_prior=False, adapt_noise=False)
    columns, weight = jacobian(problem, state).numpy(), (problem.valid / 0.02).flatten().numpy()
    precision = problem.prior(state)[0].numpy()
    covariance = np.linalg.inv((columns * weight) @ columns.T + np.diag(precision))
    n, m = len(state.p), len(state.alpha)
    mean = covariance @ (columns * weight) @ problem.intensity.flatten().numpy()
    assert found.state.p.numpy() == pytest.approx(mean[:n], rel=1e-6)
    assert found.state.b.numpy() == pytest.approx(mean[n + m :], rel=1e-6)
    assert found.covariance.numpy() == pytest.approx(covariance, abs=1e-9)
    chi2 = float((found.weight * (problem.intensity - found.fields.model) ** 2).sum())
    assert found.misfit == pytest.approx(chi2 / (weight > 0).sum())


def test_evidence_update_raises_the_evidence():
    problem, state = linear_problem()
    state = replace(state, p_variance=torch.full((4,), 50.0, dtype=torch.float64))
    fixed = refine(problem, state, adapt_prior=False)
    adapted = refine(problem, state)
    assert adapted.evidence > fixed.evidence + 1.0
    assert bool((adapted.state.p_variance > 0).all()) and bool((adapted.state.alpha_variance > 0).all())


@pytest.mark.parametrize("geometry", ["aligned", "oblique"])
def test_a_kept_matrix_is_that_of_now_but_for_a_factor(geometry):
    """The gradient is always that of now; a normal matrix goes with the weights, and knows when it is out of date."""
    problem, state = example("reciprocal", geometry)
    fields = problem.fields(state)
    weight = problem.valid * torch.as_tensor(np.random.default_rng(1).random(fields.model.shape))
    modes = problem.mode_columns(state, fields)
    known, right = curvature(problem, state, fields, weight, modes)
    assert torch.allclose(problem.gradient(state, fields, weight, modes), right, rtol=1e-8, atol=1e-8 * float(right.abs().max()))
    grown, rest = known.change(problem, fields, 3.0 * weight, modes)
    assert grown == pytest.approx([3.0] * 3) and rest < 1e-12
    assert torch.allclose(known.at(problem, state, fields, 3.0 * weight, grown)[0], 3.0 * known.matrix, rtol=1e-10)
    assert known.change(problem, fields, weight, -modes)[1] > 1.0
    other = problem.fields(replace(state, alpha=torch.zeros_like(state.alpha)))
    assert known.change(problem, other, weight, modes)[1] > 0.01


@pytest.mark.parametrize("link", list(LINKS))
def test_refinement_finds_what_was_put_in(link):
    """From S = 1 to the truth: pulls of all unknowns are those of a normal distribution, χ² is 1, the cell is found."""
    problem, truth = example(link, "aligned", background=1, n=(60, 56), seed=5)
    grid = truth.grid
    truth = replace(truth, grid=grid.with_lattice(grid.to_lattice * torch.tensor([1.004, 0.997], dtype=torch.float64)))
    sigma = 0.02
    rng = np.random.default_rng(6)
    intensity = problem.fields(truth).model + torch.as_tensor(rng.normal(0, sigma, (60, 56)))
    problem = Problem(intensity, problem.valid > 0, problem.basis, problem.settings, None, problem.modes)
    start = torch.zeros_like(truth.p)
    start[0] = 2.0
    state = replace(truth, p=start, alpha=torch.zeros_like(truth.alpha), b=torch.zeros_like(truth.b), grid=grid)
    found = refine(problem, state)
    assert found.state.noise[0] == pytest.approx(sigma**2, rel=0.1)
    assert found.misfit == pytest.approx(1.0, abs=0.1)
    assert found.state.grid.to_lattice.diagonal().numpy() == pytest.approx([1.004, 0.997], abs=5e-4)
    n, m = len(truth.p), len(truth.alpha)
    pulls = ((found.state.alpha - truth.alpha) / found.covariance.diagonal()[n : n + m].sqrt()).numpy()
    assert np.abs(pulls).max() < 4
    off = found.fields.factor - problem.fields(truth).factor
    assert float(off.square().mean().sqrt()) < 0.02 * float(problem.fields(truth).factor.square().mean().sqrt())


def test_order_that_fades():
    rng = np.random.default_rng(7)
    for _ in range(5):
        variance, count = torch.as_tensor(np.exp(rng.normal(0, 2, 12))), torch.as_tensor(rng.integers(1, 9, 12))
        found = falling(variance, count).numpy()
        assert np.all(found[1:] <= FADE * found[:-1] * (1 + 1e-9))
        trend = math.log(FADE) * np.arange(12)
        nearest = isotonic_regression(np.log(variance.numpy()) - trend, weights=count.numpy(), increasing=False).x
        assert np.log(found) == pytest.approx(nearest + trend)
    kept = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    assert falling(kept, torch.ones(3)).numpy() == pytest.approx(kept.numpy())


def test_noise_grows_with_the_intensity():
    """Poisson-like noise on a known model: constant and slope come back; a pixel's variance is positive."""
    problem, state = example("linear", n=(120, 110), poisson=True)
    fields = problem.fields(state)
    model = fields.model.clamp(min=0)
    noise = torch.as_tensor(np.random.default_rng(8).normal(size=model.shape)) * (0.05 + 0.2 * model).sqrt()
    problem = Problem(fields.model + noise, torch.ones_like(model, dtype=torch.bool), problem.basis, problem.settings)
    found = replace(state, noise=problem.estimate_noise(state, fields))
    expected = 0.05 + 0.2 * model
    assert float((problem.variance(found, fields) / expected - 1).abs().mean()) < 0.1


def test_stated_uncertainties_are_inflated_where_the_scatter_is_larger():
    problem, state = example("linear", n=(60, 56))
    fields, sigma = problem.fields(state), torch.full((60, 56), 0.1, dtype=torch.float64)
    noise = torch.as_tensor(np.random.default_rng(9).normal(0, 0.2, (60, 56)))
    given = Problem(fields.model + noise, torch.ones(60, 56, dtype=torch.bool), problem.basis, problem.settings, sigma)
    found = replace(state, noise=given.estimate_noise(state, fields))
    assert given.variance(found, fields).numpy() == pytest.approx(0.04, rel=0.1)
    right = Problem(fields.model + noise / 2, torch.ones(60, 56, dtype=torch.bool), problem.basis, problem.settings, sigma)
    assert right.estimate_noise(state, fields)[0] < 0.002


def test_outliers_and_unmeasured_pixels_have_no_weight():
    problem, state = example("linear", robust=True)
    model = problem.fields(state).model.clone()
    model[3, 4] += 60.0
    model[5, 6] -= 1.2                                # 8.5 σ without the slack
    spiked = Problem(model, problem.valid > 0, problem.basis, problem.settings)
    valid = spiked.valid.clone()
    valid[3, 4] = valid[5, 6] = 1.0
    spiked.valid = valid
    weight = spiked.weights(state, spiked.fields(state))
    assert weight[3, 4] == 0 and 0 < weight[5, 6] < weight.max()
    assert bool((weight[valid == 0] == 0).all())


def test_subset_least_squares_equals_nnls():
    rng = np.random.default_rng(10)
    for _ in range(20):
        columns, target = rng.random((24, 3)), np.abs(rng.normal(1, 0.5, 24)) + 0.1
        columns[:, 0] = 1
        found = non_negative(torch.as_tensor(columns), torch.as_tensor(target))
        expected, _ = nnls(columns / target[:, None], np.ones(24))
        assert found == pytest.approx(expected, abs=1e-8)


def test_solve_is_scaled():
    rng = np.random.default_rng(11)
    half = rng.normal(size=(6, 6))
    scale = 10.0 ** np.array([-6, -3, 0, 3, 6, 8])
    matrix = scale[:, None] * (half @ half.T + np.eye(6)) * scale
    right = rng.normal(size=6) * scale
    x, factor = solve(torch.as_tensor(matrix), torch.as_tensor(right))
    assert x.numpy() * scale == pytest.approx(np.linalg.solve(half @ half.T + np.eye(6), right / scale), rel=1e-8)
    assert (factor @ factor.T).numpy() / np.outer(scale, scale) == pytest.approx(half @ half.T + np.eye(6), rel=1e-8)


def test_diagonal_of_the_inverse():
    a = np.random.default_rng(4).normal(size=(40, 40))
    a = a @ a.T + np.eye(40)
    factor = torch.linalg.cholesky(torch.as_tensor(a))
    assert inverse_diagonal(factor).numpy() == pytest.approx(np.diag(np.linalg.inv(a)), rel=1e-9)


def test_a_background_below_zero_is_pulled_up():
    """Only a negative coefficient feels the extra precision."""
    problem, state = example(positive=True)
    n, m = len(state.p), len(state.alpha)
    above, _ = problem.prior(replace(state, b=torch.tensor([0.4, 0.1], dtype=torch.float64)))
    below, _ = problem.prior(replace(state, b=torch.tensor([-0.4, 0.1], dtype=torch.float64)))
    assert below[n + m] > 1e3 * above[n + m]
    below[n + m] = above[n + m]
    assert torch.equal(above, below)


def test_an_outlier_costs_evidence():
    """A spike that the weights leave out must not look better than a pixel that is explained, nor ruin everything."""
    problem, state = example(robust=True, poisson=True)
    plain = refine(problem, state)
    spoilt = problem.intensity.clone()
    place = tuple(torch.nonzero(problem.valid > 0)[50].tolist())
    spoilt[place] = plain.fields.model[place] + 200.0
    other = Problem(spoilt, problem.valid > 0, problem.basis, problem.settings, None, problem.modes)
    found = refine(other, state)
    assert float(found.weight[place]) == 0
    assert plain.evidence - 40.0 < found.evidence < plain.evidence
