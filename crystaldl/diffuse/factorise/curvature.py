"""The normal matrix at one state of a refinement, and what it is at a state near by.

The normal matrix is by far the dearest part of a step, and most steps hardly change it but for the common factor by which the noise
falls. The matrix of an earlier state, scaled, leads to the same minimum as long as the gradient is that of now.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .peaks import Coupling, coupling, coupling_of_now

if TYPE_CHECKING:
    from .gauss_newton import Problem
    from .states import Fields, State


@dataclass(frozen=True, eq=False)
class Curvature:
    """What is known of the normal equations from one state on.

    Attributes
    ----------
    matrix : (n, n) tensor, the normal matrix without priors
    bragg : what the heights of Bragg peaks have to do with the other parameters; None where there are none
    weights : (*shape) tensors, those of D, of S and of the pixels at that state
    modes : (k, *shape) tensor, derivatives by the lattice modes
    """

    matrix: Tensor
    bragg: Coupling | None
    weights: tuple[Tensor, Tensor, Tensor]
    modes: Tensor

    def change(self, problem: Problem, fields: Fields, weight: Tensor, modes: Tensor) -> tuple[list[float], float]:
        """By what factors the weights have grown since, and the largest share of them, or of the modes, that is not in that."""
        grown, rest = [], 0.0
        for now, then in zip(_weights(problem, fields, weight), self.weights, strict=True):
            total = float(now.sum())
            grown.append(total / max(float(then.sum()), 1e-300))
            rest = max(rest, float((now - grown[-1] * then).abs().sum()) / max(total, 1e-300))
        for now, then in zip(modes, self.modes, strict=True):
            rest = max(rest, float((weight * (now - then).square()).sum()) / max(float((weight * now.square()).sum()), 1e-300))
        return grown, rest

    def at(self, problem: Problem, state: State, fields: Fields, weight: Tensor,
           grown: list[float]) -> tuple[Tensor, Coupling | None]:
        """The matrix as it is by now for all that the factors say, and the coupling."""
        n, m = len(state.p), len(state.alpha)
        size = self.matrix.new_full((len(self.matrix),), grown[2] ** 0.5)
        size[:n] = grown[0] ** 0.5
        size[n : n + m] = grown[1] ** 0.5
        bragg = None if self.bragg is None else coupling_of_now(problem, state, fields, weight, self.bragg, size)
        return self.matrix * size[:, None] * size, bragg


def _weights(problem: Problem, fields: Fields, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    by_d = weight * (problem.basis.envelope * fields.order).square()
    return by_d, weight * (fields.factor * fields.slope).square(), weight


def curvature(problem: Problem, state: State, fields: Fields, weight: Tensor, modes: Tensor) -> tuple[Curvature, Tensor]:
    """That of a state, and the right-hand side of its normal equations."""
    matrix, right = problem.normal(state, fields, weight, modes)
    bragg = None if problem.peaks is None else coupling(problem, state, fields, weight, modes)
    return Curvature(matrix, bragg, _weights(problem, fields, weight), modes), right
