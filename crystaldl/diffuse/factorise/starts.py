"""Where a solution starts from that of another support or another form of S."""
from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .gauss_newton import Problem
from .links import LINKS
from .states import Basis, Factors, State
from .unknowns import Arrays

LOWEST = 0.02                   # of S where its logarithm or reciprocal starts a series
START_SHARE = 0.1               # of the usual prior variance of the series at least, where a series starts from another


def outlying(factors: Factors, valid: Tensor) -> float:
    """Share of the pixels that the robust weights leave out."""
    return float((factors.weight[valid] == 0).double().mean())


def carried(start: State, old: State, basis: Basis, before: Basis) -> State:
    """One support begun from the solution of another."""
    where = {tuple(v): i for i, v in enumerate(torch.cat([before.patterson, before.patterson_sine[:, None]], 1).tolist())}
    rows = torch.cat([basis.patterson, basis.patterson_sine[:, None]], 1).tolist()
    place = torch.tensor([where.get(tuple(v), -1) for v in rows], device=old.p.device)
    p = torch.where(place >= 0, old.p[place.clamp(min=0)], torch.zeros_like(start.p))
    variance = start.p_variance.clone()
    n = min(len(variance), len(old.p_variance))
    variance[:n] = old.p_variance[:n]
    variance[n:] = old.p_variance.median()
    # a small support explains little and may have talked the order down
    return replace(old, p=p, p_variance=variance, alpha_variance=torch.maximum(old.alpha_variance, start.alpha_variance))


def translated(problem: Problem, scratch: State, first: str, state: State) -> State:
    """The state of a form of S as the start of that of a problem: its S, or the logarithm or reciprocal of it, as a series.

    ``scratch`` is the state that the problem starts from otherwise.
    """
    link = problem.settings.link
    cell = problem.cell
    series = 1.0 + 2.0 * cell.series(state.alpha)
    order = LINKS[first](series)[0]
    order = order / order.mean()
    target = {"linear": order, "positive": order, "log": 1.0 + order.clamp(min=LOWEST).log(),
              "reciprocal": 1.0 / order.clamp(min=LOWEST)}[link]
    target = target / target.mean() if link == "reciprocal" else target - target.mean() + 1.0
    alpha = cell.project(target)        # the mean square of a wave is a half
    for _ in range(12):                 # the truncated series must stay where the link is defined
        if math.isfinite(problem.cell_mean(alpha)):
            break
        alpha = 0.5 * alpha
    shell = problem.basis.order_shell
    power = torch.zeros_like(scratch.alpha_variance).index_add(0, shell, alpha.square())
    power = power / torch.bincount(shell, minlength=len(power)).clamp(min=1)
    return replace(state, alpha=alpha, alpha_variance=torch.maximum(power, START_SHARE * scratch.alpha_variance))


def lattice_modes(arrays: Arrays) -> tuple[Tensor, ...]:
    """Small changes of the cell that keep lattice rows on the pixel axes; all changes where they are not on them."""
    ndim, device = arrays.grid.ndim, arrays.intensity.device
    pairs = [(i, i) for i in range(ndim)]
    if not arrays.grid.aligned:
        pairs = [(i, j) for i in range(ndim) for j in range(ndim)]
    modes = []
    for i, j in pairs:
        mode = torch.zeros(ndim, ndim, dtype=torch.float64, device=device)
        mode[i, j] = 1.0
        modes.append(mode)
    return tuple(modes)
