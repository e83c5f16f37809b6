"""What the data say about their own priors: variances of the shells, and the evidence (log marginal likelihood).

Evidence maximisation after MacKay, Neural Comput. 4, 415 (1992).
"""
from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .numerics import falling, inverse_diagonal

if TYPE_CHECKING:
    from .gauss_newton import Problem
    from .states import Fields, State

OUTLIERS, OUTLIER_RANGE = 0.01, 4.0     # share of pixels that may be anything; within so many mean intensities
CONTRAST = 4.0                  # largest prior variance of D / g


def updated_prior(problem: Problem, state: State, factor: Tensor) -> State:
    """MacKay's fixed point, a step: variance of a shell = Σ θ² / γ with γ the well-determined parameters."""
    variance = inverse_diagonal(factor)
    n, m = len(state.p), len(state.alpha)
    basis = problem.basis

    def shells(values: Tensor, spread: Tensor, index: Tensor, old: Tensor) -> Tensor:
        zero = torch.zeros_like(old)
        determined = zero.index_add(0, index, (1.0 - spread / old[index]).clamp(min=1e-3))
        power = zero.index_add(0, index, values.square())
        new = torch.where(determined > 0, power / determined, old)
        return new.clamp(min=1e-7 * float(old.max()))

    p_new = shells(state.p, variance[:n], basis.patterson_shell, state.p_variance)
    p_new = p_new / max(1.0, 0.5 * float(p_new[basis.patterson_shell].sum()) / CONTRAST)
    b_new, kind = state.b_variance, basis.radial_kind
    if len(state.b):
        spread = variance[n + m : n + m + len(state.b)]
        determined = torch.zeros_like(b_new).index_add(0, kind, (1.0 - spread / b_new[kind]).clamp(min=1e-2))
        power = torch.zeros_like(b_new).index_add(0, kind, state.b.square())
        b_new = torch.where(determined > 0, power / determined.clamp(min=1e-300), b_new).clamp(min=(1e-4 * problem.scale) ** 2)
    return replace(
        state,
        b_variance=b_new,
        p_variance=p_new,
        alpha_variance=falling(shells(state.alpha, variance[n : n + m], basis.order_shell, state.alpha_variance),
                                torch.bincount(basis.order_shell, minlength=len(state.alpha_variance))),
    )


def log_evidence(problem: Problem, state: State, fields: Fields, curvature: tuple[Tensor, Tensor, Tensor | None]) -> float:
    """Laplace approximation of the log marginal likelihood, up to a constant of the data.

    ``curvature`` is the Cholesky factor of the posterior precision, the prior precision in it, and what the guard added.

    A pixel is noise about the model or, rarely, anything: otherwise what is left out as an outlier would cost nothing.
    """
    factor, prior, extra = curvature
    precision, values = problem.prior(state)
    measured = problem.valid > 0
    variance = problem.variance(state, fields)[measured]
    likelihood = -0.5 * ((problem.intensity - fields.model)[measured].square() / variance + variance.log())
    if problem.settings.robust:
        anything = math.log(OUTLIERS * math.sqrt(2.0 * math.pi) / (OUTLIER_RANGE * problem.scale))
        likelihood = torch.logaddexp(likelihood, torch.full_like(likelihood, anything))
    log_det = 2.0 * float(factor.diagonal().log().sum()) - float(prior.log().sum())
    penalty = float((precision * values.square()).sum())
    if extra is not None:
        n, m = len(state.p), len(state.alpha)
        own = prior[n : n + m].rsqrt()
        log_det -= float(torch.linalg.slogdet(torch.eye(m, dtype=own.dtype, device=own.device) + own[:, None] * extra * own)[1])
        penalty += float(state.alpha @ extra @ state.alpha)
    return float(likelihood.sum()) - 0.5 * (penalty + log_det)
