"""The common profile of Bragg peaks that are not round Gaussians: a pseudo-Voigt function of any ellipse.

With ``q = d·M·d / w²``, d from the centre in pixels, det M = 1, a peak of height 1 is ``(1 − η) exp(−q / 2) + η (1 + q / τ)^−1.5``.
M, η, τ and the width w are estimated with the rest, a Gauss-Newton step of all of them at a time; the heights, which make up for
most of what a profile changes, are taken out of the step. Round Gaussians are what peaks are taken for until the evidence says
otherwise.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .gauss_newton import Problem
    from .peaks import Peaks
    from .states import Factors, State

SHARE, TAIL = 0.1, 2.0          # η and τ to begin with
TAILS = (0.3, 12.0)             # within which τ is estimated
STEP = 0.15                     # of M, η, log τ: largest change in a step
RIDGE = 1e-4                    # of the diagonal of a step's normal matrix
FOOT = 3e-4                     # of the height: where a peak may end
FURTHEST = 16                   # pixels, the same
FIRST_STEPS, FIRST_MISFIT = 25, 0.1     # of the first guess, and the share that it takes the profile to be wrong by


@dataclass(frozen=True)
class Shape:
    """M by its elements (1, 1), (1, 2) and (2, 2); share η of the Lorentzian; its τ."""

    matrix: tuple[float, float, float] = (1.0, 0.0, 1.0)
    share: float = SHARE
    tail: float = TAIL

    def square(self, offset: Tensor, width: float) -> Tensor:
        """q of positions (..., 2)."""
        x, y = offset[..., 0], offset[..., 1]
        a, b, c = self.matrix
        return (a * x * x + 2.0 * b * x * y + c * y * y) / width**2

    def values(self, q: Tensor) -> Tensor:
        """The profile."""
        return (1.0 - self.share) * torch.exp(-0.5 * q) + self.share * (1.0 + q / self.tail) ** -1.5

    def slope(self, q: Tensor) -> Tensor:
        """Its derivative by q."""
        fall = -1.5 / self.tail * (1.0 + q / self.tail) ** -2.5
        return -0.5 * (1.0 - self.share) * torch.exp(-0.5 * q) + self.share * fall

    def derivatives(self, offset: Tensor, width: float) -> list[Tensor]:
        """By the elements of M (any determinant), by η and by log τ."""
        x, y = offset[..., 0] / width, offset[..., 1] / width
        q = self.square(offset, width)
        slope, relative = self.slope(q), 1.0 + q / self.tail
        return [slope * x * x, 2.0 * slope * x * y, slope * y * y, relative**-1.5 - torch.exp(-0.5 * q),
                1.5 * self.share * (q / self.tail) * relative**-2.5]

    @property
    def axes(self) -> tuple[float, float]:
        """Widths along the longest and the shortest direction over the mean."""
        a, b, c = self.matrix
        middle, spread = 0.5 * (a + c), math.hypot(0.5 * (a - c), b)
        return (middle - spread) ** -0.5, (middle + spread) ** -0.5

    def reach(self, width: float) -> int:
        """Pixels from the centre to the foot."""
        gauss = self.axes[0] * math.sqrt(-2.0 * math.log(FOOT))
        lorentz = self.axes[0] * math.sqrt(self.tail * max((max(self.share, 1e-9) / FOOT) ** (2.0 / 3.0) - 1.0, 0.0))
        return min(int(math.ceil(width * max(gauss, lorentz))), FURTHEST)

    def moved(self, step: list[float], width: float) -> tuple[Shape, float]:
        """The shape and width after a step of the derivatives' parameters, which is cut to what may be trusted."""
        step = [min(max(v, -STEP), STEP) for v in step]
        a, b, c = (v + s * v0 for v, s, v0 in zip(self.matrix, step[:3], (self.matrix[0], 1.0, self.matrix[2]), strict=True))
        b = min(max(b, -0.95 * math.sqrt(a * c)), 0.95 * math.sqrt(a * c))
        root = math.sqrt(a * c - b * b)
        tail = min(max(self.tail * math.exp(step[4]), TAILS[0]), TAILS[1])
        share = min(max(self.share + step[3], 0.0), 1.0)
        return Shape((a / root, b / root, c / root), share, tail), width / math.sqrt(root)


def shape_step(peaks: Peaks, state: State, residual: Tensor, weight: Tensor) -> tuple[Shape, float]:
    """Shape and width a step on; residual and weight (K, P) on the pixels of the peaks."""
    shape, offset = state.shape, peaks.from_centre(state.grid)
    profile = peaks.profile(state.grid, state.width, shape)
    scale = (shape.matrix[0], 1.0, shape.matrix[2], 1.0, 1.0)
    slopes, own = [], weight * profile
    power = (own * profile).sum(1).clamp(min=1e-300)
    for value, unit in zip(shape.derivatives(offset, state.width), scale, strict=True):
        slope = state.height[:, None] * value * peaks.inside * unit
        # the part that the heights do not make up for
        slopes.append((slope - ((own * slope).sum(1) / power)[:, None] * profile).flatten())
    table = torch.stack(slopes)
    weighted = table * weight.flatten()
    matrix = weighted @ table.T
    diagonal = matrix.diagonal().clone()
    matrix = matrix + torch.diag(RIDGE * diagonal + 1e-12 * diagonal.max() + 1e-300)
    step = torch.linalg.solve(matrix, weighted @ residual.flatten())
    return shape.moved(step.tolist(), state.width)


def first_shape(problem: Problem, found: Factors, peaks: Peaks) -> tuple[Shape, float]:
    """Shape and width of the peaks beside the diffuse intensity of a fit with round ones, all pixels being believed."""
    state, fields, grid = found.state, found.fields, found.state.grid
    rest = (problem.intensity - fields.model + fields.peaks).flatten()
    valid = problem.valid.flatten()[peaks.place] * peaks.inside
    state = replace(state, shape=Shape(), misfit=0.0, height=rest.new_zeros(len(peaks.node)))
    noise = problem.variance(state, fields).flatten()[peaks.place]
    for _ in range(FIRST_STEPS):
        profile = peaks.profile(grid, state.width, state.shape)
        part = state.height[:, None] * profile
        weight = valid / (noise + (FIRST_MISFIT * part).square())
        image = peaks.image(part, grid.shape).flatten()
        own = (rest - image)[peaks.place] + part
        height = ((weight * profile * own).sum(1) / (weight * profile.square()).sum(1).clamp(min=1e-300)).clamp(min=0.0)
        state = replace(state, height=height)
        residual = (rest - peaks.image(height[:, None] * profile, grid.shape).flatten())[peaks.place]
        shape, width = shape_step(peaks, state, residual, weight)
        state = replace(state, shape=shape, width=width)
    return state.shape, state.width
