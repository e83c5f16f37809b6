"""Residual Bragg peaks as unknowns: one amplitude a node, one profile for all.

What is left of Bragg scattering adds ``Σ_k a_k exp(−|x − x_k|² / 2 w²)`` to the intensity, x in pixels, x_k the nodes. The
amplitudes differ from node to node by orders of magnitude and are never negative; diffuse scattering at the nodes is D times
one number. So the weakest peaks say what S is there, and the strongest what the profile is, a round Gaussian or, where that is not
enough, an elliptic one with tails (`profile`). A profile is never known exactly:
the variance of a pixel grows by the square of a share of its Bragg intensity, which is estimated with the rest and takes the
cores of strong peaks out of the fit, not their tails.

The amplitudes are eliminated from the normal equations exactly, a node at a time (Schur complement), as far as the peaks do
not overlap. Their prior is the one of automatic relevance determination (Tipping, J. Mach. Learn. Res. 1, 211, 2001), a peak is
there or it is nothing, but never narrower than the median of the squares: where most nodes have peaks, all may have.
"""
from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .profile import Shape, shape_step

if TYPE_CHECKING:
    from .gauss_newton import Problem
    from .states import Fields, State
    from .unknowns import Arrays

WIDTHS = np.geomspace(0.4, 3.2, 25)     # pixels, of the first guess
STRONGEST = 40                  # peaks that the first guess of the width is taken from
EXTENT = 4.2                    # widths that a peak is drawn to
LARGEST = 12                    # pixels, the same
MISFIT = 0.1                    # share of the Bragg intensity that a profile is wrong by, to begin with
MISFITS = (0.01, 1.0)           # within which it is estimated
SMALLEST = 3e-3                 # of the mean intensity: how far below zero an amplitude may well be


@dataclass(frozen=True, eq=False)
class Peaks:
    """The pixels around the nodes of a plane: K nodes, P pixels each.

    Attributes
    ----------
    node : (K, 2) tensor, coordinates of the nodes in the lattice coordinates of the Fourier sums
    nearest : (K, 2) long tensor, the pixel nearest to each
    offset : (P, 2) long tensor, pixels around it
    place : (K, P) long tensor, flat numbers of the pixels (0 outside the data)
    inside : (K, P) tensor, 1 on pixels of the data and 0 outside
    """

    node: Tensor
    nearest: Tensor
    offset: Tensor
    place: Tensor
    inside: Tensor

    def profile(self, grid, width: float, shape: Shape | None = None) -> Tensor:
        """Peaks of height 1, (K, P)."""
        if shape is None:
            return torch.exp(-0.5 * self._distance2(grid) / width**2) * self.inside
        return shape.values(shape.square(self.from_centre(grid), width)) * self.inside

    def _distance2(self, grid) -> Tensor:
        return self.from_centre(grid).square().sum(-1)

    def from_centre(self, grid) -> Tensor:
        """Pixels from the nodes, (K, P, 2)."""
        return (self.nearest - _pixels(grid, self.node))[:, None] + self.offset

    def moved(self, state: State, mode: Tensor) -> Tensor:
        """Derivative of the peaks on the pixels by the amount of a mode E, which changes lattice coordinates u to u (1 + E)."""
        grid, width, shape = state.grid, state.width, state.shape
        steps = torch.stack([axis[1] - axis[0] for axis in grid.axes])
        centre = -(self.node @ mode @ torch.linalg.inv(grid.to_lattice)) / steps
        offset = self.from_centre(grid)
        if shape is None:
            fall = self.profile(grid, width) * (offset * centre[:, None]).sum(-1) / width**2
        else:
            a, b, c = shape.matrix
            along = (offset @ torch.tensor([[a, b], [b, c]], dtype=offset.dtype, device=offset.device) * centre[:, None]).sum(-1)
            fall = -2.0 * shape.slope(shape.square(offset, width)) * along / width**2 * self.inside
        return self.image(state.height[:, None] * fall, grid.shape)

    def image(self, values: Tensor, shape) -> Tensor:
        """Sum of (K, P) values on the pixels."""
        out = values.new_zeros(math.prod(shape))
        return out.index_add_(0, self.place.flatten(), values.flatten()).reshape(shape)

    def waves(self, grid, index: Tensor) -> tuple[Tensor, Tensor]:
        """exp(2πi r·u) about the nearest pixel, (P, n), and at that pixel, (K, n), of integer vectors (n, 2)."""
        nu = grid.frequencies(index)
        steps = torch.stack([axis[1] - axis[0] for axis in grid.axes])
        start = torch.stack([axis[0] for axis in grid.axes])
        near = 2.0 * math.pi * (self.offset * steps) @ nu.T
        far = 2.0 * math.pi * (start + self.nearest * steps) @ nu.T
        return torch.polar(torch.ones_like(near), near), torch.polar(torch.ones_like(far), far)

    def project(self, values: Tensor, grid, index: Tensor, sine: Tensor) -> Tensor:
        """``Σ_x v_k(x) f_a(x)`` of cosines and sines over the pixels of each node, (K, n)."""
        near, far = self.waves(grid, index)
        sums = torch.complex(values @ near.real, values @ near.imag) * far
        return torch.where(sine, sums.imag, sums.real)


def make_peaks(arrays, width: float, reach: int | None = None) -> Peaks | None:
    """Peaks of about that width, or that are drawn so far, at all nodes of a plane; None where there are no nodes on it."""
    lattice, grid = arrays.lattice, arrays.grid
    reach = reach or min(int(math.ceil(EXTENT * width)), LARGEST)
    axes = [axis.cpu().numpy() for axis in grid.axes]
    centre = np.zeros(2) if lattice.centre is None else lattice.centre
    corners = np.array(list(itertools.product(*((axis[0], axis[-1]) for axis in axes))))
    number = (corners - (lattice.shift - centre)) @ lattice.dual.T
    low, high = np.floor(number.min(0)).astype(int) - 1, np.ceil(number.max(0)).astype(int) + 1
    count = np.stack(np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij"), -1).reshape(-1, 2)
    x = count @ lattice.nodes + (lattice.shift - centre)
    device = grid.to_lattice.device
    node = torch.as_tensor(x, device=device) @ grid.to_lattice
    nearest = _pixels(grid, node).round().long()
    span = torch.arange(-reach, reach + 1, device=device)
    offset = torch.cartesian_prod(span, span)
    offset = offset[offset.square().sum(1) <= (reach + 0.5) ** 2]
    pixel = nearest[:, None] + offset
    size = torch.tensor(grid.shape, device=device)
    there = ((pixel >= 0) & (pixel < size)).all(-1)
    place = torch.where(there, pixel[..., 0] * grid.shape[1] + pixel[..., 1], 0)
    keep = (there & arrays.valid.flatten()[place]).any(1)
    if not bool(keep.any()):
        return None
    return Peaks(node[keep], nearest[keep], offset, place[keep], there[keep].double())


def _pixels(grid, node: Tensor) -> Tensor:
    """Pixel coordinates of points given in lattice coordinates, (K, 2)."""
    steps = torch.stack([axis[1] - axis[0] for axis in grid.axes])
    start = torch.stack([axis[0] for axis in grid.axes])
    return (node @ torch.linalg.inv(grid.to_lattice) - start) / steps


def first_width(arrays, radius: float) -> float:
    """Width of the strongest peaks: the Gaussian on a level ground that fits them best, pixels."""
    around = make_peaks(arrays, (radius + 2.0) / EXTENT)
    if around is None:
        return radius / 2.5
    values = arrays.intensity.flatten()[around.place]
    distance2 = around._distance2(arrays.grid)
    measured = around.inside * arrays.valid.flatten()[around.place]
    core, ring = measured * (distance2 <= 1.5), measured * (distance2 > radius**2)
    whole = (core.sum(1) > 3) & (ring.sum(1) > 3) & (measured.mean(1) > 0.9)
    if not bool(whole.any()):
        return radius / 2.5
    ground = (values * ring).sum(1) / ring.sum(1).clamp(min=1)
    excess = torch.where(whole, (values * core).sum(1) / core.sum(1).clamp(min=1) - ground, -math.inf)
    strong = torch.argsort(excess, descending=True)[: min(STRONGEST, max(int(whole.sum()) // 4, 3))]
    strong = strong[excess[strong] > 0]
    if not len(strong):
        return radius / 2.5
    own, measured = values[strong] / excess[strong, None], measured[strong]
    misfit = [float(_line(own, torch.exp(-0.5 * distance2[strong] / w**2), measured)[1].median()) for w in WIDTHS]
    return float(WIDTHS[int(np.argmin(misfit))])


def _line(values: Tensor, shape: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """a of the best ``c + a · shape`` through each row of values, and the sum of squares that is left."""
    number = inside.sum(1, keepdim=True).clamp(min=1)
    v = (values - (values * inside).sum(1, keepdim=True) / number) * inside
    s = (shape - (shape * inside).sum(1, keepdim=True) / number) * inside
    amplitude = (v * s).sum(1) / s.square().sum(1).clamp(min=1e-12)
    return amplitude, (v - amplitude[:, None] * s).square().sum(1)


def first_heights(peaks: Peaks, intensity: Tensor, valid: Tensor, grid, width: float, shape: Shape | None = None) -> Tensor:
    """Heights above a level ground, not negative, (K,)."""
    measured = peaks.inside * valid.flatten()[peaks.place]
    return _line(intensity.flatten()[peaks.place], peaks.profile(grid, width, shape), measured)[0].clamp(min=0.0)


@dataclass(frozen=True, eq=False)
class Bragg:
    """Bragg peaks to be fitted: where they are, how wide to begin with, and which pixels they leave alone (bool)."""

    peaks: Peaks
    width: float
    clear: Tensor
    shape: Shape | None = None


def bragg_of(arrays: Arrays, clear: Tensor, radius: float) -> Bragg | None:
    """Peaks at the nodes of a plane of about ``radius`` pixels; ``clear`` is what is further away."""
    width = first_width(arrays, radius)
    peaks = make_peaks(arrays, width)
    return None if peaks is None else Bragg(peaks, width, clear)


@dataclass(frozen=True, eq=False)
class Coupling:
    """What the amplitudes have to do with the other parameters at a state, for their elimination."""

    cross: Tensor                   # (K, n)
    diagonal: Tensor                # (K,) with the prior
    right: Tensor                   # (K,)
    precision: Tensor               # (K,) of the prior

    def reduce(self, matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Normal equations of the other parameters once the amplitudes are eliminated."""
        scaled = self.cross / self.diagonal[:, None]
        return matrix - self.cross.T @ scaled, right - scaled.T @ self.right

    def log_evidence(self, height: Tensor, precision: Tensor) -> float:
        """The part of the amplitudes in the log evidence; their prior is that of the heights as they are now."""
        log_det = float((self.diagonal / self.precision).log().sum())
        return -0.5 * (log_det + float((precision * height.square()).sum()))


def precision_of(problem: Problem, state: State) -> Tensor:
    """Prior precision of the amplitudes: their own, and a steep one below zero."""
    return 1.0 / state.height_variance + (state.height < 0).double() * _below(problem)


def _below(problem: Problem) -> float:
    return 1.0 / (SMALLEST * problem.scale) ** 2


def settled(problem: Problem, state: State, fields: Fields, weight: Tensor) -> tuple[State, Fields]:
    """The state with the best heights for what its other parameters say, and its fields.

    A step that takes the heights for free would send those that the data hardly hold (of nodes beside the data, of which only
    the foot is seen) far below zero, where nothing is allowed: one of them would hold up all the other parameters.
    """
    peaks, grid = problem.peaks, state.grid
    profile = peaks.profile(grid, state.width, state.shape)
    own = weight.flatten()[peaks.place] * profile
    diagonal, free = (own * profile).sum(1), 1.0 / state.height_variance
    residual = (problem.intensity - fields.model).flatten()[peaks.place]
    right = (own * residual).sum(1) + diagonal * state.height
    height = right / (diagonal + free + (right < 0).double() * _below(problem))
    bragg = peaks.image(height[:, None] * profile, grid.shape)
    state = replace(state, height=height)
    return state, replace(fields, model=fields.model - fields.peaks + bragg, peaks=bragg)


def coupling(problem: Problem, state: State, fields: Fields, weight: Tensor, modes: Tensor) -> Coupling:
    """Rows of the normal matrix that belong to the amplitudes; ``modes`` are the derivatives by the lattice modes."""
    peaks, basis, grid = problem.peaks, problem.basis, state.grid
    profile = peaks.profile(grid, state.width, state.shape)
    flat = weight.flatten()[peaks.place] * profile
    stride = torch.tensor(basis.stride, device=basis.order.device)
    gs = (basis.envelope * fields.order).flatten()[peaks.place]
    both = (fields.factor * fields.slope).flatten()[peaks.place]
    cross = torch.cat([
        peaks.project(flat * gs, grid, basis.patterson, basis.patterson_sine),
        2.0 * peaks.project(flat * both, grid, basis.order * stride, basis.order_sine),
        torch.stack([(flat * own.flatten()[peaks.place]).sum(1) for own in (*basis.radial, *modes)], 1),
    ], 1)
    precision = precision_of(problem, state)
    residual = (problem.intensity - fields.model).flatten()[peaks.place]
    return Coupling(cross, (flat * profile).sum(1) + precision, (flat * residual).sum(1) - precision * state.height, precision)


def coupling_of_now(problem: Problem, state: State, fields: Fields, weight: Tensor, old: Coupling, size: Tensor) -> Coupling:
    """A coupling of an earlier state as it is by now; the weights of the other parameters have grown by ``size`` (n,) squared."""
    peaks = problem.peaks
    profile = peaks.profile(state.grid, state.width, state.shape)
    flat = weight.flatten()[peaks.place] * profile
    precision = precision_of(problem, state)
    own = (flat * profile).sum(1)
    height = (own / (old.diagonal - old.precision).clamp(min=1e-300)).clamp(max=1e12).sqrt()
    residual = (problem.intensity - fields.model).flatten()[peaks.place]
    right = (flat * residual).sum(1) - precision * state.height
    return Coupling(old.cross * height[:, None] * size, own + precision, right, precision)


def updated_peaks(problem: Problem, state: State, fields: Fields, weight: Tensor, found: Coupling) -> State:
    """Variances of the amplitudes, width, and what the profile is wrong by, a step each."""
    peaks, grid = problem.peaks, state.grid
    # where most nodes have a peak, no node is known to have none: what is weak says less about S there than what is absent
    least = max((SMALLEST * problem.scale) ** 2, float(state.height.square().median()))
    variance = (state.height.square() + 1.0 / found.diagonal).clamp(min=least)
    profile = peaks.profile(grid, state.width, state.shape)
    own = weight.flatten()[peaks.place]
    residual = (problem.intensity - fields.model).flatten()[peaks.place]
    shape = state.shape
    if shape is None:
        slope = state.height[:, None] * profile * peaks._distance2(grid) / state.width**3
        # a wider peak is a lower one: the part of the slope that the heights do not make up for
        share = (own * slope * profile).sum(1) / (own * profile.square()).sum(1).clamp(min=1e-300)
        slope = slope - share[:, None] * profile
        change = float((own * slope * residual).sum()) / max(float((own * slope.square()).sum()), 1e-300)
        width = state.width + float(np.clip(change, -0.1 * state.width, 0.1 * state.width))
    else:
        shape, width = shape_step(peaks, state, residual, own * peaks.inside)
    part = state.height[:, None] * profile
    strong = (own > 0) & (part > 2.0 * (fields.model - fields.peaks).flatten()[peaks.place].abs() + 0.5 * problem.scale)
    misfit = state.misfit
    if int(strong.sum()) > 30:
        noise = problem.variance(replace(state, misfit=0.0), fields).flatten()[peaks.place][strong]
        misfit = _misfit(residual[strong].square(), part[strong].square(), noise)
    return replace(state, height_variance=variance, width=width, shape=shape, misfit=misfit)


def _misfit(residual2: Tensor, part2: Tensor, noise: Tensor) -> float:
    """The share m of a peak for which half of the residuals lie within 0.6745 √(noise + m² part²)."""
    low, high = MISFITS
    for _ in range(10):
        middle = math.sqrt(low * high)
        if float((residual2 / (noise + middle**2 * part2)).median()) > 0.6745**2:
            low = middle
        else:
            high = middle
    return low if low == MISFITS[0] else high
