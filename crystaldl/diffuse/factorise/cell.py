"""The order's cosines and sines on a grid over one repeat."""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class OrderCell:
    """A grid fine enough for the sharpest cosine there is.

    Attributes
    ----------
    shape : tuple of int, points along each order coordinate
    order : (m, ndim) long tensor, the vectors R
    sine : (m,) bool tensor, sin(2π R·u) in place of cos
    """

    shape: tuple[int, ...]
    order: Tensor
    sine: Tensor

    @cached_property
    def waves(self) -> Tensor:
        """cos or sin of 2π R·u, (product of shape, m)."""
        order, device = self.order, self.order.device
        if not len(order):
            return torch.zeros(math.prod(self.shape), 0, dtype=torch.float64, device=device)
        cosines = torch.ones(1, len(order), dtype=torch.float64, device=device)
        sines = torch.zeros_like(cosines)
        for i, n in enumerate(self.shape):
            turn = 2.0 * math.pi * torch.arange(n, dtype=torch.float64, device=device)[:, None] * order[:, i] / n
            c, s = turn.cos(), turn.sin()
            before_c, before_s = cosines[:, None], sines[:, None]
            cosines, sines = (before_c * c - before_s * s).flatten(0, 1), (before_s * c + before_c * s).flatten(0, 1)
        return torch.where(self.sine, sines, cosines) if bool(self.sine.any()) else cosines

    @cached_property
    def _place(self) -> Tensor:
        """Flat numbers of the vectors in the discrete Fourier transform of the grid."""
        place = torch.zeros(len(self.order), dtype=torch.long, device=self.order.device)
        for i, n in enumerate(self.shape):
            place = place * n + self.order[:, i] % n
        return place

    def series(self, values: Tensor) -> Tensor:
        """``Σ values · waves`` on the points of the grid, (product of shape,)."""
        zero = torch.zeros_like(values)
        table = torch.zeros(math.prod(self.shape), dtype=torch.complex128, device=values.device)
        table.index_add_(0, self._place, torch.complex(torch.where(self.sine, zero, values), torch.where(self.sine, -values, zero)))
        return torch.fft.ifftn(table.reshape(self.shape), norm="forward").real.flatten()

    def project(self, field: Tensor) -> Tensor:
        """Mean of ``field · waves`` over the points of the grid, (m,)."""
        table = torch.fft.fftn(field.reshape(self.shape), norm="forward").flatten()[self._place]
        return torch.where(self.sine, -table.imag, table.real)


def cell_of_order(order: Tensor, sine: Tensor, known: tuple[Any, OrderCell] | None = None) -> OrderCell:
    """The grid of the integer vectors ``order`` (m, ndim), sines where ``sine`` (m,) says so.

    ``known`` may be a basis and its cell, which is taken where the vectors are the same.
    """
    if known is not None and torch.equal(known[0].order, order) and torch.equal(known[0].order_sine, sine):
        return known[1]
    shape = tuple(4 * int(v) + 4 for v in order.abs().amax(0)) if len(order) else (1,) * order.shape[1]
    return OrderCell(shape, order, sine)
