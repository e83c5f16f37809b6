"""Gauss-Newton on a :class:`~crystaldl.diffuse.factorise.gauss_newton.Problem`, priors and noise going along."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .curvature import Curvature, curvature
from .evidence import log_evidence, updated_prior
from .gauss_newton import NOISE_FLOOR, PROPORTION, Problem
from .numerics import solve
from .peaks import Coupling, precision_of, settled, updated_peaks
from .states import Factors, Fields, State

KEPT = 0.12                     # change of the weights up to which the normal matrix of an earlier step will do
OLDEST = 3                      # steps in a row that may do with it, unless hardly anything has changed
COMPARED = 0.05                 # the same for the evidence

Look = tuple[int, Callable[[State, Fields], bool]]


class _Equations:
    """Normal equations of a refinement at the state where it is; the matrix is that of an earlier one while it will do."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        # Bragg peaks change with their width and heights, too
        self._limit = KEPT if problem.peaks is None else -1.0
        self._known: Curvature | None = None
        self._age = 0

    def at(self, state: State, fields: Fields, weight: Tensor,
           change: float | None = None) -> tuple[Tensor, Tensor, Coupling | None]:
        """Matrix and right-hand side without priors, the heights of Bragg peaks eliminated, and what that took."""
        modes = self.problem.mode_columns(state, fields)
        grown, rest = ([], math.inf) if self._known is None else self._known.change(self.problem, fields, weight, modes)
        if self._age >= OLDEST and rest > COMPARED:
            rest = math.inf
        self.exact = not rest <= (self._limit if change is None else change)
        self.good = self.exact or rest <= COMPARED
        self._age = 0 if self.exact else self._age + 1
        if self.exact:
            self._known, right = curvature(self.problem, state, fields, weight, modes)
            matrix, bragg = self._known.matrix, self._known.bragg
        else:
            matrix, bragg = self._known.at(self.problem, state, fields, weight, grown)
            right = self.problem.gradient(state, fields, weight, modes)
        if bragg is not None:
            matrix, right = bragg.reduce(matrix, right)
        return matrix, right, bragg

    def forget(self) -> None:
        self._known = None


def refine(problem: Problem, state: State, *, adapt_prior: bool = True, adapt_noise: bool = True,
           covariance: bool = True, trial: tuple[int, float] | None = None, look: Look | None = None) -> Factors:
    """Gauss-Newton with evidence updates of the prior and noise variances until nothing moves; the covariance on request.

    ``trial`` is a number of steps and the evidence that they must have brought for others to follow; ``look`` a number of steps
    and what says of a state whether none follow.
    """
    settings, equations = problem.settings, _Equations(problem)
    fields = problem.fields(state)
    weight = problem.weights(state, fields)
    damping, calm, iteration, moved = 0.0, 0, 0, True
    before = problem.mean_misfit(fields, weight)
    while iteration < settings.iterations:
        iteration += 1
        if moved:
            matrix, right, bragg = equations.at(state, fields, weight)
            precision, values = problem.prior(state)
            extra = problem.guard_precision(state)
            here = _objective(problem, state, fields, weight, extra)
            matrix, right = _guarded(matrix, right, state, extra)
        total = _with_diagonal(matrix, precision + damping * (precision + matrix.diagonal()))
        damped = damping > 0.0
        step, factor = solve(total, right - precision * values)
        found = _searched(problem, state, step, (weight, extra), here)
        moved = found is not None
        if found is None:
            if not equations.exact:         # the matrix of an earlier state is to blame, perhaps
                equations.forget()
                moved, iteration = True, iteration - 1
                continue
            damping = max(10.0 * damping, 1e-3)
            if damping > 1.0:
                break
            continue
        damping = 0.0 if damping < 1e-4 else damping / 10.0
        state, fields = _adapted(problem, *found, weight, factor if adapt_prior else None, bragg)
        if adapt_noise:
            state = replace(state, noise=problem.estimate_noise(state, fields))
        weight = problem.weights(state, fields)
        misfit = problem.mean_misfit(fields, weight)
        # what is hidden goes on moving when the rest has long been fitted to better than the floor of the noise
        least = 0.0 if extra is not None else (NOISE_FLOOR * problem.scale) ** 2
        calm = calm + 1 if abs(before - misfit) <= max(settings.tolerance * misfit, least) else 0
        if (look is not None and iteration == look[0] and look[1](state, fields)) or (
                trial is not None and iteration == trial[0] and _in_vain(equations, (state, fields, weight), trial[1])):
            break
        if trial is not None and iteration == trial[0]:
            calm = 0
        elif calm == 2:
            if equations.good:
                break
            # the steps that change nothing any more must be true ones
            equations.forget()
            calm = 1
        before = misfit
    # once nothing moves any more, the last matrix is good enough to compare, though not to state uncertainties
    if covariance or calm < 2 or damped:
        factor, precision, extra, bragg = _settled_curvature(equations, (state, fields, weight), -1.0 if covariance else COMPARED)
    misfit = float((weight * (problem.intensity - fields.model).square()).sum() / (weight > 0).sum())
    evidence = _evidence(problem, state, fields, (factor, precision, extra), bragg)
    return Factors(state, fields, weight, torch.cholesky_inverse(factor) if covariance else None, misfit, evidence, iteration)


def _with_diagonal(matrix: Tensor, more: Tensor) -> Tensor:
    out = matrix.clone()
    out.diagonal().add_(more)
    return out


def in_proportion(state: State) -> bool:
    """Whether what the model leaves is as much of it as may be taken for noise."""
    return state.noise[2] > 0.999 * PROPORTION**2


def _adapted(problem: Problem, state: State, fields: Fields, weight: Tensor, factor: Tensor | None,
             bragg: Coupling | None) -> tuple[State, Fields]:
    """The state with priors and Bragg peaks as they are best by now."""
    if factor is not None:
        state = updated_prior(problem, state, factor)
    if bragg is None:
        return state, fields
    state = updated_peaks(problem, state, fields, weight, bragg)
    return state, problem.fields(state)


def _in_vain(equations: _Equations, place: tuple[State, Fields, Tensor], least: float) -> bool:
    """Whether the evidence at a state is no more than that."""
    *curvature, bragg = _settled_curvature(equations, place, COMPARED)
    return _evidence(equations.problem, *place[:2], tuple(curvature), bragg) <= least


def _settled_curvature(equations: _Equations, place: tuple[State, Fields, Tensor],
                       change: float) -> tuple[Tensor, Tensor, Tensor | None, Coupling | None]:
    """Cholesky factor of the posterior precision at a state, prior precision, what the guard adds, and the coupling."""
    state, problem = place[0], equations.problem
    extra = problem.guard_precision(state)
    matrix, _, bragg = equations.at(*place, change)
    matrix, _ = _guarded(matrix, torch.zeros_like(matrix[0]), state, extra)
    precision, _ = problem.prior(state)
    return solve(_with_diagonal(matrix, precision), precision)[1], precision, extra, bragg


def _evidence(problem: Problem, state: State, fields: Fields, curvature: tuple[Tensor, Tensor, Tensor | None],
              bragg: Coupling | None) -> float:
    """Log evidence, Bragg peaks and all."""
    evidence = log_evidence(problem, state, fields, curvature)
    return evidence if bragg is None else evidence + bragg.log_evidence(state.height, precision_of(problem, state))


def _searched(problem: Problem, state: State, step: Tensor, terms: tuple[Tensor, Tensor | None],
              here: float) -> tuple[State, Fields] | None:
    """The first point along a step, halving and more, that is no worse than where it starts; None where there is none."""
    length = 1.0
    for _ in range(6):
        trial = _moved(problem, state, step * length)
        if math.isfinite(problem.cell_mean(trial.alpha)):
            fields = problem.fields(trial)
            if problem.peaks is not None:
                trial, fields = settled(problem, trial, fields, terms[0])
            if _objective(problem, trial, fields, *terms) <= here:
                return trial, fields
        length *= 0.35
    return None


def _guarded(matrix: Tensor, right: Tensor, state: State, extra: Tensor | None) -> tuple[Tensor, Tensor]:
    if extra is None:
        return matrix, right
    n, m = len(state.p), len(state.alpha)
    matrix, right = matrix.clone(), right.clone()
    matrix[n : n + m, n : n + m] += extra
    right[n : n + m] -= extra @ state.alpha
    return matrix, right


def _moved(problem: Problem, state: State, step: Tensor) -> State:
    n, m, k = len(state.p), len(state.alpha), len(state.b)
    grid = state.grid
    if problem.settings.polish and problem.modes:
        amount = step[n + m + k :]
        change = sum(a * mode for a, mode in zip(amount, problem.modes, strict=True))
        grid = grid.with_lattice(grid.to_lattice @ (torch.eye(grid.ndim, dtype=torch.float64, device=step.device) + change))
    return replace(state, p=state.p + step[:n], alpha=state.alpha + step[n : n + m], b=state.b + step[n + m : n + m + k], grid=grid)


def _objective(problem: Problem, state: State, fields: Fields, weight: Tensor, extra: Tensor | None) -> float:
    precision, values = problem.prior(state)
    prior = float((precision * values.square()).sum())
    if extra is not None:
        prior += float(state.alpha @ extra @ state.alpha)
    if problem.peaks is not None:
        prior += float((precision_of(problem, state) * state.height.square()).sum())
    return float((weight * (problem.intensity - fields.model).square()).sum()) + prior
