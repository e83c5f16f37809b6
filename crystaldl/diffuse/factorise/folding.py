"""Half of a plane's pixels: where everything that is summed is even, opposite pixels are added up first.

Cosines of a centred plane are the same at x and −x. With the weights of both in one of them, Fourier sums run over half of the
pixels, and are real.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .fourier import FourierGrid

WORTH = 0.75                    # of the pixels that the half may have at most
EXACT = 1e-6                    # pixels that opposite pixels may be off


@dataclass(frozen=True, eq=False)
class Fold:
    """The pixels of one half of a plane, x ≥ 0, and which pixels of the plane they are.

    Attributes
    ----------
    axes : tuple of (n_i,) tensors, of the half, which may reach beyond the plane
    one, other : (H,) long tensors, flat number of each pixel and of its opposite; 0 where there is none
    share, share_other : (H,) tensors, what either counts: 1, a half on the line x = 0, which has both, 0 where there is none
    back : (N,) long tensor, flat number in the half of each pixel of the plane
    """

    axes: tuple[Tensor, ...]
    one: Tensor
    other: Tensor
    share: Tensor
    share_other: Tensor
    back: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    def grid(self, grid: FourierGrid) -> FourierGrid:
        """Fourier sums over the half."""
        return grid.of_half(self.axes)

    def folded(self, values: Tensor) -> Tensor:
        """Sum of opposite pixels, (..., *shape) → (..., *half)."""
        flat = values.flatten(-2)
        out = flat.index_select(-1, self.one).mul_(self.share).add_(flat.index_select(-1, self.other).mul_(self.share_other))
        return out.unflatten(-1, self.shape)

    def half(self, values: Tensor) -> Tensor:
        """Even functions on the half, whose values on the plane are given."""
        place = torch.where(self.share > 0, self.one, self.other)
        return values.flatten(-2).index_select(-1, place).unflatten(-1, self.shape)

    def whole(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Even functions on the plane, whose values on the half are given."""
        return values.flatten(-2).index_select(-1, self.back).unflatten(-1, shape)


class Unfolded:
    """All pixels, where they have no opposites."""

    def grid(self, grid: FourierGrid) -> FourierGrid:
        return grid

    def folded(self, values: Tensor) -> Tensor:
        return values

    def half(self, values: Tensor) -> Tensor:
        return values

    def whole(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        return values


def fold_of(axes: tuple[Tensor, ...]) -> Fold | Unfolded:
    """The half of a plane whose origin lies on a pixel or half-way between two, along both axes."""
    if len(axes) != 2:
        return Unfolded()
    sizes = [len(axis) for axis in axes]
    twice = [2.0 * float(axis[0] / (axis[1] - axis[0])) for axis in axes]
    start = [round(v) for v in twice]
    if any(abs(v - w) > EXACT for v, w in zip(twice, start, strict=True)):
        return Unfolded()
    device = axes[0].device
    last = [max(n - 1, -s) for n, s in zip(sizes, start, strict=True)]
    first = [math.ceil(-start[0] / 2), min(0, -start[1] - sizes[1] + 1)]
    number = [torch.arange(a, b + 1, device=device) for a, b in zip(first, last, strict=True)]
    if len(number[0]) * len(number[1]) > WORTH * sizes[0] * sizes[1]:
        return Unfolded()

    def places(i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        there = ((i >= 0) & (i < sizes[0]))[:, None] & ((j >= 0) & (j < sizes[1]))
        return torch.where(there, i[:, None] * sizes[1] + j, 0).flatten(), there.double().flatten()

    (one, share), (other, share_other) = places(*number), places(-start[0] - number[0], -start[1] - number[1])
    on_line = (2 * number[0] + start[0] == 0).double().repeat_interleave(len(number[1]))
    share, share_other = share * (1.0 - 0.5 * on_line), share_other * (1.0 - 0.5 * on_line)
    rows, columns = (torch.arange(n, device=device) for n in sizes)
    above = (2 * rows + start[0] >= 0)[:, None]
    row = torch.where(above, rows[:, None], -start[0] - rows[:, None]) - first[0]
    column = torch.where(above, columns, -start[1] - columns) - first[1]
    half = tuple((0.5 * s + n.double()) * float(axis[1] - axis[0]) for s, n, axis in zip(start, number, axes, strict=True))
    return Fold(half, one, other, share, share_other, (row * len(number[1]) + column).flatten())
