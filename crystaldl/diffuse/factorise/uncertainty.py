"""Standard uncertainties of D, S and α from the covariance of a factorisation.

The variance of a Fourier series at a pixel, ``Σ_ab C_ab f_a f_b``, is itself a Fourier series over sums and differences
of the vectors: the covariance is added up into a table of those and summed once, exact and as cheap as the series.

Where no pixel sees a part of the cell (punched holes sit at the same point of every zone), the series continues S into it, and
no covariance of a series that is taken for true says how far that may be wrong. What is hidden may be as continued, at the
level of the rest, or at that of its rim: the mean over the hidden part is taken for uncertain by what a uniform distribution
between the first and the further of the others is away from the first, their difference over √3. A peak within the holes that
is continued at the level of the rest still shows in the rim. With it goes the scale, since S has mean 1 (:class:`HiddenMode`).
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .fourier import FourierGrid, cell_place
from .gauss_newton import Problem
from .links import LINKS, order_parameters
from .states import Factors, State

RIM = 16                        # of the cell: width of what counts as the rim of a hidden part


@dataclass(frozen=True, eq=False)
class HiddenMode:
    """S → (S + t) / (1 + t f) on the hidden part of the cell, S / (1 + t f) elsewhere, D → D (1 + t f).

    Attributes
    ----------
    share : float, f, of the cell that no pixel sees
    spread : float, standard uncertainty of t
    inside : (*shape) tensor, 1 on pixels of the hidden part and 0 elsewhere
    order : (m,) tensor, dα / dt but for the normalisation: ``⟨1_hidden cos 2πR·u⟩``
    """

    share: float
    spread: float
    inside: Tensor
    order: Tensor


def hidden_mode(problem: Problem, state: State) -> HiddenMode | None:
    """What is not known of the part of the cell that no pixel sees; None where all of it is seen."""
    if problem.hidden is None:
        return None
    order = LINKS[problem.settings.link](1.0 + 2.0 * problem.cell.series(state.alpha))[0]
    order = order / order.mean()
    hidden = ~problem.seen
    level = order[hidden].mean()
    others = (problem.seen, _rim(hidden, problem.cell.shape))
    spread = max(abs(float(level - order[part].mean())) for part in others) / math.sqrt(3.0)
    grid = state.grid
    parts = tuple(m // s for m, s in zip(grid.divisions, problem.basis.stride, strict=True))
    inside = hidden[cell_place(grid.coordinates().flatten(1), parts, problem.cell.shape)].reshape(grid.shape).double()
    return HiddenMode(float(hidden.double().mean()), spread, inside, problem.cell.project(hidden.double()))


def _rim(hidden: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The points around the hidden ones, as far as a sixteenth of the cell; all that are seen where that is nothing."""
    near = hidden.reshape(shape)
    for i, n in enumerate(shape):
        steps = range(-(n // RIM), n // RIM + 1)
        near = torch.stack([near.roll(k, i) for k in steps]).any(0)
    rim = near.flatten() & ~hidden
    return rim if bool(rim.any()) else ~hidden


def variance_map(grid: FourierGrid, covariance: Tensor, index: Tensor, sine: Tensor) -> Tensor:
    """``Σ_ab C_ab f_a f_b`` on the pixels, f = cos or sin(2π r·u); covariance (n, n), index (n, ndim)."""
    reach = 2 * index.abs().amax(0)
    sizes = tuple(int(2 * r + 1) for r in reach)
    tables = covariance.new_zeros(2, _product(sizes))

    def add(table: int, vectors: Tensor, values: Tensor) -> None:
        place = torch.zeros(vectors.shape[:-1], dtype=torch.long, device=index.device)
        for i, n in enumerate(sizes):
            place = place * n + vectors[..., i] + reach[i]
        tables[table].index_add_(0, place.flatten(), values.flatten())

    plus, minus = index[:, None] + index[None], index[:, None] - index[None]
    half = 0.5 * covariance
    a, b = sine[:, None], sine[None]
    zero = torch.zeros_like(half)
    # cos cos = ½[c(−) + c(+)]; sin sin = ½[c(−) − c(+)]; cos a sin b = ½[s(+) − s(−)]; sin a cos b = ½[s(+) + s(−)]
    add(0, minus, torch.where(a == b, half, zero))
    add(0, plus, torch.where(a & b, -half, torch.where(a | b, zero, half)))
    if bool(sine.any()):
        add(1, plus, torch.where(a != b, half, zero))
        add(1, minus, torch.where(a & ~b, half, torch.where(b & ~a, -half, zero)))
    ranges = [torch.arange(-int(r), int(r) + 1, device=index.device) for r in reach]
    box = torch.stack(torch.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, len(sizes))
    used = (tables != 0).any(0)
    return grid.synthesize(tables[0][used], tables[1][used], box[used]).clamp(min=0.0)


def _product(sizes) -> int:
    out = 1
    for n in sizes:
        out *= n
    return out


def sigma_maps(problem: Problem, factors: Factors) -> tuple[Tensor, Tensor]:
    """Standard uncertainties of D and of S on all pixels, normalisation of S to mean 1 included."""
    basis, state, fields = problem.basis, factors.state, factors.fields
    n, m = len(state.p), len(state.alpha)
    covariance = factors.covariance
    c_pp, c_ss, c_ps = covariance[:n, :n], covariance[n : n + m, n : n + m], covariance[:n, n : n + m]
    drift = mean_drift(problem, state.alpha)
    stride = torch.tensor(basis.stride, device=basis.order.device)
    common = float(drift @ c_ss @ drift)
    var_d = basis.envelope.square() * variance_map(state.grid, c_pp, basis.patterson, basis.patterson_sine)
    both = basis.envelope * problem._expand(state.grid, c_ps @ drift, basis.patterson, basis.patterson_sine)
    var_d = var_d + 2.0 * fields.factor * both + fields.factor.square() * common
    index = basis.order * stride
    var_s = 4.0 * fields.slope.square() * variance_map(state.grid, c_ss, index, basis.order_sine)
    both = fields.slope * problem._expand(state.grid, 2.0 * c_ss @ drift, index, basis.order_sine)
    var_s = var_s - 2.0 * fields.order * both + fields.order.square() * common
    mode = hidden_mode(problem, state)
    if mode is not None:
        var_d = var_d + (mode.share * mode.spread * fields.factor).square()
        var_s = var_s + (mode.spread * (mode.inside - mode.share * fields.order)).square()
    return var_d.clamp(min=0.0).sqrt(), var_s.clamp(min=0.0).sqrt()


def mean_drift(problem: Problem, alpha: Tensor) -> Tensor:
    """Relative change of the unnormalised mean of S over a cell with the coefficients of its series."""
    if problem.settings.link == "linear":
        return torch.zeros_like(alpha)
    order, slope = LINKS[problem.settings.link](1.0 + 2.0 * problem.cell.series(alpha))
    return 2.0 * problem.cell.project(slope) / order.mean()


def order_covariance(problem: Problem, factors: Factors) -> tuple[Tensor, Tensor]:
    """Warren-Cowley α of the basis vectors and their covariance, with what is hidden."""
    state = factors.state
    n, m = len(state.p), len(state.alpha)
    alpha, jacobian = order_parameters(problem, state.alpha)
    covariance = jacobian @ factors.covariance[n : n + m, n : n + m] @ jacobian.T
    mode = hidden_mode(problem, state)
    if mode is not None:
        change = mode.spread * (mode.order - mode.share * alpha)
        covariance = covariance + torch.outer(change, change)
    return alpha, covariance
