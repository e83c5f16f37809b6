"""The forms of S: S itself, its positive part, its logarithm or its reciprocal as a short cosine series."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .gauss_newton import Problem

ROUNDED = 0.1                   # of the mean: above and below zero, where the positive part goes over into zero

# S and its derivative as functions of the series s = 1 + Σ 2 α_R cos(2π Q·R), up to normalisation
LINKS = {
    "linear": lambda s: (s, torch.ones_like(s)),
    "positive": lambda s: (
        torch.where(s < ROUNDED, (s + ROUNDED).clamp(min=0.0).square() / (4.0 * ROUNDED), s),
        ((s + ROUNDED) / (2.0 * ROUNDED)).clamp(0.0, 1.0),
    ),
    "log": lambda s: (torch.exp(s - 1.0), torch.exp(s - 1.0)),
    "reciprocal": lambda s: (1.0 / s, -1.0 / s.square()),
}


def order_parameters(problem: Problem, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Warren-Cowley α of the basis vectors from the series, and their Jacobian: α_R = ⟨S cos 2πR·u⟩ over a cell."""
    if problem.settings.link == "linear":
        return alpha, torch.eye(len(alpha), dtype=alpha.dtype, device=alpha.device)
    waves = problem.cell.waves
    order, slope = LINKS[problem.settings.link](1.0 + 2.0 * problem.cell.series(alpha))
    mean = order.mean()
    value = problem.cell.project(order) / mean
    change = 2.0 * (waves.T * slope) @ waves / len(order) / mean
    drift = 2.0 * problem.cell.project(slope) / mean
    return value, change - value[:, None] * drift
