"""Bragg peaks as unknowns: their place, their share of the normal equations, and what they leave of the order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crystaldl.diffuse.factorise.bragg import bragg_radius, residue_radius
from crystaldl.diffuse.factorise.cell import cell_of_order
from crystaldl.diffuse.factorise.numerics import quantum
from crystaldl.diffuse.factorise.peaks import Bragg, bragg_of, coupling, first_heights, first_width, make_peaks, settled
from crystaldl.diffuse.factorise.profile import Shape
from crystaldl.diffuse.factorise.refine import _objective
from crystaldl.diffuse.factorise.search import Fit
from crystaldl.diffuse.factorise.solver import FactoriseOptions, held_out
from crystaldl.diffuse.factorise.unknowns import arrays_of, default_reach
from crystaldl.diffuse.geometry import plane_lattice
from crystaldl.diffuse.molecular import Molecule, difference_form_factor
from crystaldl.diffuse.separate import separate
from crystaldl.diffuse.volume import DiffuseVolume

SQUARE, OBLIQUE = (8.0, 8.0, 7.0, 90, 90, 90), (8.0, 9.1, 7.0, 90, 90, 104)
A = Molecule(["C", "O", "C"], [[0, 0, 0], [1.2, 0.3, 0.2], [-1.1, 0.8, 0.1]], b_iso=2.0)
B = Molecule(["C", "O", "C"], [[0, 0, 0], [-0.9, 0.8, 0.1], [0.4, 1.3, 0.4]], b_iso=2.0)
ALPHA = {(1, 0, 0): 0.12, (0, 1, 0): 0.1, (1, 1, 0): 0.05, (1, -1, 0): 0.03, (2, 0, 0): 0.02, (2, 1, 0): -0.015}


def plane(cell=SQUARE, n=97, reach=4.0):
    """A plane with its D and S; order that peaks at the nodes, where Bragg scattering is."""
    x = np.linspace(-reach, reach, n)
    volume = DiffuseVolume(np.ones((n, n)), x, x, 0.0, cell)
    s = 1 + 2 * sum(a * np.cos(2 * np.pi * (volume.hkl() @ np.array(r, float))) for r, a in ALPHA.items())
    return volume, difference_form_factor(volume, A, B), s


def bragg(volume, width, profile=lambda d2: np.exp(-0.5 * d2), spread=1.2, seed=5):
    """Peaks of log-normal height at all nodes, ``width`` in pixels, of median height 1."""
    hkl = volume.hkl()[..., :2]
    pixel = 1 / (hkl[1, 0, 0] - hkl[0, 0, 0])
    node = np.round(hkl).astype(int)
    reach = np.abs(node).max()
    height = np.exp(spread * np.random.default_rng(seed).normal(size=(2 * reach + 1,) * 2))
    return height[node[..., 0] + reach, node[..., 1] + reach] * profile(((hkl - node) ** 2).sum(-1) * (pixel / width) ** 2)


def arrays(volume):
    return arrays_of(volume, plane_lattice(volume), torch.device("cpu"))


@pytest.mark.parametrize("cell", [SQUARE, OBLIQUE])
def test_peaks_lie_at_the_nodes(cell):
    volume, _, _ = plane(cell, n=61, reach=2.5)
    own = arrays(volume)
    peaks = make_peaks(own, 1.3)
    image = peaks.image(torch.ones(len(peaks.node), 1) * peaks.profile(own.grid, 1.3), own.grid.shape).numpy()
    hkl = volume.hkl()[..., :2] * 12.0                        # pixels
    nodes = 12.0 * np.stack(np.meshgrid(np.arange(-4, 5), np.arange(-4, 5)), -1).reshape(-1, 2)
    distance = np.square(hkl[..., None, :] - nodes).sum(-1)
    assert image == pytest.approx(np.exp(-0.5 * distance / 1.3**2).sum(-1), abs=2e-3)


def test_elimination_is_that_of_the_whole_normal_matrix():
    volume, d, s = plane(OBLIQUE, n=61, reach=2.5)
    volume = volume.replace(data=d * s + d.max() * bragg(volume, 0.9))
    own = arrays(volume)
    fit = Fit(own, FactoriseOptions(background=2), 12.0, bragg=Bragg(make_peaks(own, 0.9), 0.9, own.valid))
    problem, state = fit.problem(own.valid, 6.0, "linear", polish=True)
    state = replace(state, alpha=0.02 * torch.as_tensor(np.random.default_rng(1).normal(size=len(state.alpha))))
    fields = problem.fields(state)
    weight = torch.rand(own.grid.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    modes = problem.mode_columns(state, fields)
    columns = torch.cat([problem.basis.radial, modes])
    found = coupling(problem, state, fields, weight, modes)

    basis, grid = problem.basis, state.grid
    unit = torch.eye(len(state.p), dtype=torch.float64)
    to_d = torch.stack([problem._expand(grid, e, basis.patterson, basis.patterson_sine) for e in unit])
    to_d = to_d * basis.envelope * fields.order
    unit = torch.eye(len(state.alpha), dtype=torch.float64)
    stride = torch.tensor(basis.stride)
    to_s = torch.stack([fields.factor * problem._expand(grid, 2.0 * e, basis.order * stride, basis.order_sine) for e in unit])
    rows = torch.cat([to_d, to_s, columns]).flatten(1)
    profile = problem.peaks.profile(grid, state.width)
    unit = torch.eye(len(profile), dtype=torch.float64)
    peaks = torch.stack([problem.peaks.image(e[:, None] * profile, grid.shape) for e in unit]).flatten(1)
    expected = (peaks * weight.flatten()) @ rows.T
    assert (found.cross - expected).abs().max() < 1e-9 * expected.abs().max()
    diagonal = (peaks.square() * weight.flatten()).sum(1)
    assert torch.allclose(found.diagonal - found.precision, diagonal, rtol=1e-9)
    matrix, right = problem.normal(state, fields, weight, modes)
    reduced, _ = found.reduce(matrix, right)
    whole = torch.cat([torch.cat([matrix, expected.T], 1), torch.cat([expected, torch.diag(found.diagonal)], 1)])
    n = len(matrix)
    inverse = torch.linalg.inv(whole + 1e-3 * torch.diag(whole.diagonal()) * (torch.arange(len(whole)) < n))
    ours = torch.linalg.inv(reduced + 1e-3 * torch.diag(matrix.diagonal()))
    assert torch.allclose(inverse[:n, :n], ours, rtol=1e-5, atol=1e-7 * float(ours.abs().max()))


@pytest.mark.parametrize("shape", [None, Shape((1.3, 0.4, (1 + 0.16) / 1.3), 0.25, 1.7)])
def test_peaks_move_with_the_lattice(shape):
    """The derivative of the whole model by the lattice modes, peaks and all, is that of finite differences."""
    volume, d, s = plane(OBLIQUE, n=61, reach=2.5)
    own = arrays(volume.replace(data=d * s + d.max() * bragg(volume, 0.9)))
    fit = Fit(own, FactoriseOptions(background=2), 12.0, bragg=Bragg(make_peaks(own, 0.9), 0.9, own.valid, shape))
    problem, state = fit.problem(own.valid, 6.0, "linear", polish=True)
    for amount, mode, column in zip((1e-5, -2e-5, 1e-5, 3e-5), problem.modes,
                                    problem.mode_columns(state, problem.fields(state)), strict=False):
        ends = []
        for sign in (-1.0, 1.0):
            change = torch.eye(2, dtype=torch.float64) + sign * amount * mode
            moved = replace(state, grid=state.grid.with_lattice(state.grid.to_lattice @ change))
            ends.append(problem.fields(moved))
        expected = (ends[1].model - ends[0].model) / (2.0 * amount)
        assert (ends[1].peaks - ends[0].peaks).abs().max() > 0.1 * (ends[1].model - ends[0].model).abs().max()
        assert (column - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_width_of_the_peaks_is_found_in_a_few_steps():
    """Heights make up for most of a change of the width: its step must know that."""
    volume, d, s = plane()
    own = arrays(volume.replace(data=d * s + d.max() * bragg(volume, 1.3)))
    distance = torch.as_tensor(own.lattice.distance_to_node(volume.axes, np.array([a[1] - a[0] for a in volume.axes])))
    clear = own.valid & (distance > 4.0)
    fit = Fit(own, FactoriseOptions(links=("linear",)), 20.0, bragg=Bragg(make_peaks(own, 1.17), 1.17, clear))
    assert fit.first(own.valid).state.width == pytest.approx(1.3, rel=1e-3)


def edged(width=0.8):
    """A fit on counts with Bragg peaks at all nodes, many of which lie beside the data, which show no more than their feet."""
    volume, d, s = plane(n=92, reach=3.8)
    scale = 1000.0 / (d * s).max()
    counts = np.random.default_rng(3).poisson((d * s + d.max() * bragg(volume, width)) * scale).astype(float)
    own = arrays(volume.replace(data=counts))
    distance = own.lattice.distance_to_node(volume.axes, np.array([a[1] - a[0] for a in volume.axes]))
    clear = own.valid & torch.as_tensor(distance > 2.0)
    fit = Fit(own, FactoriseOptions(), default_reach(own), bragg=bragg_of(own, clear, 2.0))
    return fit, own.valid & ~held_out(own.valid, fit.options)


def test_feet_of_peaks_beside_the_data_hold_nothing_up():
    """A step may ask for any height of what is hardly seen: the other parameters must go on all the same."""
    fit, valid = edged()
    state = fit.first(valid).state
    assert state.noise[1] == pytest.approx(1.0, abs=0.1) and state.noise[2] < 1e-3
    assert float(state.height.min()) > -3e-3 * fit.problem(valid, fit.supports()[0], "reciprocal", polish=True)[0].scale


def test_settled_heights_are_the_best():
    fit, valid = edged()
    problem, state = fit.problem(valid, fit.supports()[0], "linear", polish=False)
    state = replace(state, height=state.height - 0.3 * problem.scale, width=1.1 * state.width)
    fields = problem.fields(state)
    weight = problem.weights(state, fields)
    best, found = settled(problem, state, fields, weight)
    assert torch.allclose(found.model, problem.fields(best).model, rtol=1e-12, atol=1e-9 * problem.scale)
    least = _objective(problem, best, found, weight, None)
    assert least < _objective(problem, state, fields, weight, None)
    for change in torch.randn(8, len(best.height), generator=torch.Generator().manual_seed(0)).double():
        other = replace(best, height=best.height + 1e-2 * problem.scale * change)
        assert _objective(problem, other, problem.fields(other), weight, None) > least


@pytest.mark.parametrize("width", [0.6, 1.1, 1.9])
def test_first_guess_of_the_peaks(width):
    volume, d, s = plane()
    strong = 3.0 * d.max() * bragg(volume, width)
    own = arrays(volume.replace(data=d * s + strong))
    found = first_width(own, 3.0 * width)
    assert found == pytest.approx(width, rel=0.12)
    peaks = make_peaks(own, found)
    height = first_heights(peaks, own.intensity, own.valid, own.grid, found).numpy()
    at_node = strong.ravel()[peaks.place[:, len(peaks.offset) // 2].numpy()]
    inside = peaks.inside.numpy().all(1) & (at_node > 5.0 * d.max())
    assert inside.sum() > 10 and height[inside] == pytest.approx(at_node[inside], rel=0.25)


@pytest.mark.parametrize(("width", "profile", "least"), [
    (0.7, lambda d2: np.exp(-0.5 * d2), 0.999), (2.0, lambda d2: np.exp(-0.5 * d2), 0.999),
    (1.0, lambda d2: 0.9 * np.exp(-0.5 * d2) + 0.1 / (1 + d2) ** 1.5, 0.995)])
def test_order_at_the_nodes_beneath_bragg_peaks(width, profile, least):
    """S peaks where the Bragg peaks are, which reach half the way to the next: neither may take from the other."""
    volume, d, s = plane()
    peaks = d.max() * bragg(volume, width, profile)
    scale = 1000.0 / (d * s).max()
    counts = np.random.default_rng(3).poisson((d * s + peaks) * scale) / scale
    parts = separate(volume.replace(data=counts), centring="P", progress=False)
    assert parts.bragg_radius > 0
    assert np.corrcoef(parts.sro.data.ravel(), s.ravel())[0, 1] > least
    assert np.sqrt(np.mean((parts.form_factor.data - d) ** 2) / np.mean(d**2)) < 0.03
    subtracted = parts.background.data - peaks
    assert np.sqrt(np.mean(subtracted[parts.used] ** 2)) < 0.03 * d.max()
    assert parts.r_factor < 0.15 and (parts.used & (peaks > d * s)).mean() < 0.02


def test_no_peaks_where_there_are_none():
    volume, d, s = plane()
    parts = separate(volume.replace(data=d * s), centring="P", progress=False)
    assert parts.bragg_radius == 0 and parts.used.all()


def test_peaks_too_narrow_or_weak_for_the_eye_are_found_in_the_misfit():
    """The scatter of a few pixels about each node says nothing; what a fit without peaks leaves there does."""
    volume, d, s = plane()
    peaks = 0.3 * d.max() * bragg(volume, 0.45)
    data = volume.replace(data=d * s + peaks)
    assert bragg_radius(data, plane_lattice(data), 3.0) == 0.0
    parts = separate(data, centring="P", progress=False)
    assert parts.bragg_radius > 0
    off = np.abs(parts.form_factor.data - d)
    assert np.linalg.norm(off) < 2e-3 * np.linalg.norm(d)
    assert (off < 1.96 * parts.form_factor.sigma).mean() > 0.9
    assert (np.abs(parts.sro.data - s) < 1.96 * parts.sro.sigma).mean() > 0.8


def test_sharp_order_is_no_residue():
    """Where a series is too short for the order at the nodes, the misfit there is D times one number."""
    volume, d, s = plane()
    lattice = plane_lattice(volume)
    around = np.exp(-0.5 * lattice.distance_to_node(volume.axes, np.array([x[1] - x[0] for x in volume.axes])) ** 2)
    level = 300.0 * d / d.max()
    assert residue_radius(volume, lattice, 3.0, level * around, level) == 0.0
    assert residue_radius(volume, lattice, 3.0, 300.0 * bragg(volume, 1.0), level) > 1.0
    assert residue_radius(volume, lattice, 3.0, np.random.default_rng(0).normal(size=d.shape), level) == 0.0


def test_one_count():
    rng = np.random.default_rng(0)
    counts = torch.as_tensor(rng.poisson(2.0, 500).astype(float))
    assert quantum(counts) == 1.0 and quantum(0.25 * counts) == 0.25
    assert quantum(counts + 0.3 * torch.rand(500, generator=torch.Generator().manual_seed(0)).double()) == 0.0
    assert quantum(torch.zeros(5).double()) == 0.0


def test_most_pixels_without_a_count():
    """Four of five pixels are empty: noise must not be taken for nothing, and all that is bright for outliers."""
    volume, d, s = plane()
    counts = np.random.default_rng(9).poisson(d * s * 0.22 / (d * s).mean()).astype(float)
    assert (counts == 0).mean() > 0.8
    parts = separate(volume.replace(data=counts), centring="P", progress=False)
    assert parts.r_factor < 1.7 and parts.form_factor.data.mean() == pytest.approx(counts.mean() / s.mean(), rel=0.2)
    assert np.corrcoef(parts.sro.data.ravel(), s.ravel())[0, 1] > 0.7


def test_waves_over_a_cell():
    order = torch.tensor([[0, 1], [2, -1], [1, 3]])
    sine = torch.tensor([False, True, False])
    cell = cell_of_order(order, sine)
    u = np.stack(np.meshgrid(*(np.arange(k) / k for k in cell.shape), indexing="ij"), -1).reshape(-1, 2)
    phase = 2 * np.pi * u @ order.numpy().T
    assert cell.waves.numpy() == pytest.approx(np.where(sine.numpy(), np.sin(phase), np.cos(phase)), abs=1e-12)
    values, field = torch.tensor([0.3, -0.7, 0.2]).double(), torch.rand(len(u), generator=torch.Generator().manual_seed(1)).double()
    assert cell.series(values).numpy() == pytest.approx((cell.waves @ values).numpy(), abs=1e-12)
    assert cell.project(field).numpy() == pytest.approx((cell.waves * field[:, None]).mean(0).numpy(), abs=1e-12)
    assert cell.shape == (12, 16)


def elliptic(volume, width, stretch, turn, share, tail=1.4):
    """Peaks of log-normal height: an ellipse with its long axis ``turn`` from the first axis, a share with Lorentzian tails."""
    hkl = volume.hkl()[..., :2]
    pixel = 1 / (hkl[1, 0, 0] - hkl[0, 0, 0])
    reach = int(np.abs(hkl).max()) + 1
    rng, out = np.random.default_rng(5), np.zeros(volume.shape)
    for node in np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2), -1).reshape(-1, 2):
        x, y = ((hkl - node) * pixel / width).transpose(2, 0, 1)
        u, v = (np.cos(turn) * x + np.sin(turn) * y) / stretch, (np.cos(turn) * y - np.sin(turn) * x) * stretch
        q = u * u + v * v
        out += np.exp(1.2 * rng.normal()) * ((1 - share) * np.exp(-0.5 * q) + share * (1 + q / tail) ** -1.5)
    return out


@pytest.mark.parametrize(("stretch", "turn", "share"), [(1.25, 0.5, 0.0), (1.25, 2.0, 0.3)])
def test_elliptic_peaks_with_tails(stretch, turn, share):
    """The profile is found, and the order beneath it."""
    volume, d, s = plane()
    peaks = d.max() * elliptic(volume, 0.9, stretch, turn, share)
    scale = 1000.0 / (d * s).max()
    data = volume.replace(data=np.random.default_rng(3).poisson((d * s + peaks) * scale).astype(float))
    own = arrays(data)
    distance = torch.as_tensor(own.lattice.distance_to_node(volume.axes, np.array([a[1] - a[0] for a in volume.axes])))
    fit = Fit(own, FactoriseOptions(links=("linear",)), 20.0, bragg=bragg_of(own, own.valid & (distance > 3.0), 3.0))
    fit.shaped(own.valid)
    state = fit.first(own.valid).state
    assert state.width == pytest.approx(0.9, rel=0.02) and state.shape.axes == pytest.approx((stretch, 1 / stretch), rel=0.02)
    a, b, c = state.shape.matrix
    assert 0.5 * np.arctan2(-2 * b, c - a) % np.pi == pytest.approx(turn, abs=0.05)
    far = state.shape.values(torch.tensor([16.0, 40.0]).double()).numpy()
    assert far == pytest.approx(share * (1 + np.array([16.0, 40.0]) / 1.4) ** -1.5, rel=0.15, abs=2e-3)
    parts = separate(data, centring="P", progress=False)
    assert np.corrcoef(parts.sro.data.ravel(), s.ravel())[0, 1] > 0.998


def test_round_peaks_stay_round():
    volume, d, s = plane()
    scale = 1000.0 / (d * s).max()
    data = np.random.default_rng(3).poisson((d * s + d.max() * bragg(volume, 1.0)) * scale).astype(float)
    own = arrays(volume.replace(data=data))
    distance = torch.as_tensor(own.lattice.distance_to_node(volume.axes, np.array([a[1] - a[0] for a in volume.axes])))
    fit = Fit(own, FactoriseOptions(links=("linear",)), 20.0, bragg=bragg_of(own, own.valid & (distance > 3.0), 3.0))
    fit.shaped(own.valid)
    assert fit.bragg.shape is None and fit.first(own.valid).state.shape is None


def test_derivatives_of_a_profile():
    shape, width = Shape((1.3, 0.4, (1 + 0.16) / 1.3), 0.25, 1.7), 1.1
    offset = torch.tensor([[0.3, -0.8], [2.0, 1.5], [-4.0, 3.0]]).double()
    small = 1e-6
    for k, found in enumerate(shape.derivatives(offset, width)):
        ends = []
        for sign in (1, -1):
            values = [*shape.matrix, shape.share, np.log(shape.tail)]
            values[k] += sign * small
            other = Shape(tuple(values[:3]), values[3], float(np.exp(values[4])))
            ends.append(other.values(other.square(offset, width)))
        assert found.numpy() == pytest.approx(((ends[0] - ends[1]) / (2 * small)).numpy(), rel=1e-5, abs=1e-10)
