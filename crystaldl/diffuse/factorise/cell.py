"""The order's cosines and sines on a grid over one repeat."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class OrderCell:
    """A grid fine enough for the sharpest cosine there is.

    Attributes
    ----------
    shape : tuple of int, points along each order coordinate
    waves : (product of shape, m) tensor, cos or sin of 2π R·u
    """

    shape: tuple[int, ...]
    waves: Tensor


def cell_of_order(order: Tensor, sine: Tensor, known: tuple[Any, OrderCell] | None = None) -> OrderCell:
    """The grid and waves of the integer vectors ``order`` (m, ndim), sines where ``sine`` (m,) says so.

    ``known`` may be a basis and its cell, which is taken where the vectors are the same.
    """
    if known is not None and torch.equal(known[0].order, order) and torch.equal(known[0].order_sine, sine):
        return known[1]
    if not len(order):
        return OrderCell((1,) * order.shape[1], torch.zeros(1, 0, dtype=torch.float64, device=order.device))
    shape = tuple(4 * int(v) + 4 for v in order.abs().amax(0))
    cosines, sines = [torch.ones(1, len(order), dtype=torch.float64, device=order.device)], []
    sines.append(torch.zeros_like(cosines[0]))
    for i, n in enumerate(shape):
        turn = 2.0 * math.pi * torch.arange(n, dtype=torch.float64, device=order.device)[:, None] * order[:, i] / n
        c, s = turn.cos(), turn.sin()
        before_c, before_s = cosines[-1][:, None], sines[-1][:, None]
        cosines.append((before_c * c - before_s * s).flatten(0, 1))
        sines.append((before_s * c + before_c * s).flatten(0, 1))
    return OrderCell(shape, torch.where(sine, sines[-1], cosines[-1]) if bool(sine.any()) else cosines[-1])
