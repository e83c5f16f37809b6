"""Detail of S beyond the usual order vectors: whether the misfit repeats from zone to zone, and the start of a longer series.

The order of a finite crystal, a supercell of a simulation for instance, is rough on the scale of one over its size, and exactly
periodic: what a short series leaves of it looks like noise in one zone, but is the same in all of them.
"""
from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .gauss_newton import Problem
from .states import Basis, Factors, State

REPEATS = 2.0                   # mean squared normalised gradient along further order vectors, from which they are wanted
MOST_ORDER = 1000               # unknowns of S in a plane
FEWEST_MORE = 1.2               # times as many unknowns, or it is not worth while


def longer_reach(arrays, reach: float) -> float | None:
    """The longest reach in a plane that is affordable; None where the usual one is nearly that."""
    if arrays.grid.ndim != 2:
        return None
    most = MOST_ORDER if arrays.even[1] else MOST_ORDER // 2
    longest = math.sqrt(2.0 * most * arrays.cell**2 / math.pi)
    return longest if longest > math.sqrt(FEWEST_MORE) * reach else None


def repeating(problem: Problem, factors: Factors, order: Tensor, sine: Tensor) -> float:
    """Mean square of α along those of the order vectors that the problem lacks, 0 where it is no more than noise.

    Along a vector without which the model is complete the gradient is a random number of known variance.
    """
    own = {tuple(v) for v in problem.basis.order.tolist()}
    more = torch.tensor([tuple(v) not in own for v in order.tolist()], device=order.device)
    order, sine = order[more], sine[more]
    if len(order) < (FEWEST_MORE - 1.0) * len(own):
        return 0.0
    fields = factors.fields
    # of S itself, whatever its form in the problem
    weighted = factors.weight * fields.factor
    reach = tuple(int(v) for v in order.abs().amax(0))
    gradient = factors.state.grid.project(weighted * (problem.intensity - fields.model), (order, sine), reach,
                                          problem.basis.stride)
    expected = 0.5 * float((weighted * fields.factor).sum())
    excess = float((gradient.square() / expected).mean())
    # a step along one vector alone changes α by gradient / (4 expected) · 2
    return excess / (4.0 * expected) if excess > REPEATS else 0.0


def lengthened(short: Basis, state: State, wide: Basis, start: State, least: float) -> State:
    """A state of one basis as the start of another with more order vectors, of that prior variance at least."""
    place = {tuple(v): i for i, v in enumerate(torch.cat([short.order, short.order_sine[:, None]], 1).tolist())}
    rows = torch.tensor([place.get(tuple(v), -1) for v in torch.cat([wide.order, wide.order_sine[:, None]], 1).tolist()],
                        device=state.alpha.device)
    alpha = torch.where(rows >= 0, state.alpha[rows.clamp(min=0)], torch.zeros_like(start.alpha))
    variance = start.alpha_variance.clone()
    n = min(len(variance), len(state.alpha_variance))
    variance[:n] = torch.maximum(state.alpha_variance[:n], variance[:n])
    return replace(state, alpha=alpha, alpha_variance=variance.clamp(min=least))
