"""Refinements of one plane or volume with different supports, forms of S and backgrounds, and the first look at it.

The first look takes the first form of S from scratch. It shows what no search could make up for: a support that is too small by
far, powder rings, Bragg peaks that are no round Gaussians, a background that is not the same all round.
"""
from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .gauss_newton import Problem
from .peaks import MISFIT, Bragg, first_heights, make_peaks
from .profile import FURTHEST, first_shape
from .refine import Look, in_proportion, refine
from .rings import Radial, even_knots, ring_functions, ring_share, rough_zones
from .starts import lattice_modes
from .states import Factors, Fields, Settings, State
from .unknowns import Arrays, build, envelope_of, largest_support, shortest_vector, unseen

if TYPE_CHECKING:
    from .solver import FactoriseOptions

FIRST_SUPPORT = 1.1             # cells
SMALLER = 0.85                  # of the shortest lattice vector: a support that holds none of them
LARGER = 1.3                    # step of the support
SEARCH_TOLERANCE = 1.5e-3       # of the misfit, while choices are still open
TOLERANCE_OF = {False: SEARCH_TOLERANCE, True: 0.2 * SEARCH_TOLERANCE}      # what holes hide goes on moving
HOPELESS = 0.5                  # log evidence a pixel: a form of S behind by more is not tried again on a larger support
SUPPORT_GAIN = 15.0             # log evidence that a larger support must win
MOST_STEPS = 15                 # of one solution, while choices are still open
RING_ROUNDS, RING_STEPS = 4, 6  # of splines for rings; steps of each of them
RINGED = 0.4                    # share of narrow rings in the squared residual of a first look: from there rings are sought at once
UNEVEN, UNEVEN_SCORE = 4, 10.0  # hat functions of an uneven background; mean square of normalised gradients that asks for it
LOOK = 5                        # steps after which a first look may be given up
LARGER_LOOKS = 2                # supports that are tried then
STUCK: Look = (LOOK, lambda state, fields: in_proportion(state))
WRONG = 0.02                    # of a Bragg peak: what its profile is wrong by, from where another is tried


class Looks:
    """Refinements of one set of arrays."""

    def __init__(self, arrays: Arrays, options: FactoriseOptions, reach: float, *, falling: bool = True,
                 bragg: Bragg | None = None) -> None:
        self.arrays, self.options, self.reach, self.bragg = arrays, options, reach, bragg
        self.modes = lattice_modes(arrays)
        self.radial, self.falling = Radial(even_knots(options.background)), falling
        self._problems: dict[tuple, tuple[Problem, State, Tensor]] = {}
        self._refused: Factors | None = None    # with which a larger support has been tried in vain
        self._first: tuple[Tensor, tuple, Factors] | None = None
        self._in_vain: set[tuple] = set()       # splines for rings that did not do better than others
        self._too_small = 0                     # supports that leave too much of this plane
        self._ringless = False                  # rings have been sought in vain

    def supports(self) -> list[float]:
        """Radii to try, ascending: one that holds no lattice vector, a little more than a cell (molecules fit in), larger ones."""
        most = largest_support(self.arrays)
        if self.options.support is not None:
            return [min(self.options.support, most)]
        first = FIRST_SUPPORT * self.arrays.cell
        small = SMALLER * shortest_vector(self.arrays)
        count = 1 + max(int(math.log(max(most / first, 1.0)) / math.log(LARGER) + 1e-9), 0)
        larger = [min(first * LARGER**k, most) for k in range(count)]
        return [min(small, most), *(v for v in larger if v > 1.05 * small)][self._too_small :]

    def problem(self, valid: Tensor, support: float, link: str, *, polish: bool, iterations: int = 40,
                tolerance: float = 3e-4) -> tuple[Problem, State]:
        """The problem of a support and link on the pixels ``valid``, and the state to start from: S = 1 and large noise."""
        settings = Settings(iterations=iterations, robust=self.options.robust, polish=polish, tolerance=tolerance, link=link,
                            positive=True)
        key = (id(valid), support, self.radial.key)
        if key not in self._problems:
            clear = valid if self.bragg is None else valid & self.bragg.clear
            envelope = envelope_of(self.arrays, clear, falling=self.falling)
            basis, start = build(replace(self.arrays, valid=clear), support, self.reach, self.options, envelope, self.radial)
            like = next((p for p, _, _ in self._problems.values()), None)
            problem = Problem(self.arrays.intensity, valid, basis, settings, self.arrays.sigma, self.modes, like=like,
                              axes=self.arrays.grid.axes)
            if self.bragg is not None:
                start = self._with_peaks(problem, start, valid)
            problem.guard(unseen(self.arrays, valid, problem.cell.shape) if len(basis.order) else None)
            # the last three: supports that are compared; `valid` is kept, so that no other tensor gets its id
            self._problems = dict([*self._problems.items()][-2:]) | {key: (problem, start, valid)}
        problem, start, _ = self._problems[key]
        return problem.under(settings), start

    def _with_peaks(self, problem: Problem, start: State, valid: Tensor) -> State:
        own = self.bragg
        problem.peaks = own.peaks
        values = self.arrays.intensity[own.clear & valid].abs().sort().values
        problem.scale = float(values[: max(len(values) - len(values) // 200, 1)].mean())
        height = first_heights(own.peaks, self.arrays.intensity, valid, start.grid, own.width, own.shape)
        return replace(start, height=height, height_variance=height.square() + problem.scale**2, width=own.width, shape=own.shape,
                       misfit=MISFIT)

    def solve(self, valid: Tensor, support: float, link: str, start: State | None = None, trial: tuple[int, float] | None = None,
              look: Look | None = None, **limits) -> Factors:
        """Refine from scratch, S = 1 and large noise, or from a state of the same basis."""
        problem, scratch = self.problem(valid, support, link, polish=self.options.polish and start is None, **limits)
        return refine(problem, scratch if start is None else start, covariance=False, trial=trial, look=look)

    def first(self, valid: Tensor) -> Factors:
        """The first form of S on the smallest support, from scratch; what came of it last is kept."""
        key = self.radial.key
        if self._first is None or self._first[0] is not valid or self._first[1] != key:
            self._first = valid, key, self._looked(valid)
        return self._first[2]

    def _looked(self, valid: Tensor) -> Factors:
        """The first look; where the smallest support leaves a good part of the intensity, with a larger one if that is far better.

        Where D lacks that much, S runs into it, and a larger support that starts from there has a long way to go. Where rings are
        what the model lacks most, there is nothing to look at any longer.
        """
        supports, link, tolerance = self.supports(), self.options.links[0], TOLERANCE_OF[self._holes(valid)]
        wider = len(supports) > 1 and not self._too_small
        problem, start = self.problem(valid, supports[0], link, polish=self.options.polish, tolerance=tolerance,
                                      iterations=MOST_STEPS)

        def enough(state: State, fields: Fields) -> bool:
            return self._ringing(valid, problem, state, fields) or (wider and in_proportion(state))

        found = refine(problem, start, covariance=False, look=(LOOK, enough))
        if not wider or not in_proportion(found.state) or self._ringing(valid, problem, found.state, found.fields):
            return found
        for number, larger in enumerate(supports[1 : 1 + LARGER_LOOKS], 1):
            other = self.solve(valid, larger, link, look=STUCK, tolerance=tolerance, iterations=MOST_STEPS)
            if not in_proportion(other.state) and other.evidence > found.evidence + HOPELESS * float(valid.sum()):
                self._too_small = number
                return other
        return self._continued(valid, found)

    def _continued(self, valid: Tensor, found: Factors) -> Factors:
        """A first look that was broken off, to its end."""
        if found.iterations > LOOK:
            return found
        support, link, tolerance = self.supports()[0], self.options.links[0], TOLERANCE_OF[self._holes(valid)]
        problem, _ = self.problem(valid, support, link, polish=self.options.polish, tolerance=tolerance, iterations=MOST_STEPS)
        return refine(problem, found.state, covariance=False)

    def _ringing(self, valid: Tensor, problem: Problem, state: State, fields: Fields) -> bool:
        """Whether rings are what a model without them lacks most."""
        if self.radial.zones or len(self.radial) < 2 or self._ringless:
            return False
        return ring_share(self.arrays, problem.intensity - fields.model, problem.variance(state, fields), valid) > RINGED

    def _holes(self, valid: Tensor) -> bool:
        """Whether a part of the cell is hidden."""
        return self.problem(valid, self.supports()[0], self.options.links[0], polish=False)[0].hidden is not None

    def early(self, valid: Tensor) -> Factors:
        """The first look, with splines for rings where they are what it lacks most."""
        best, plain = self.first(valid), self.radial
        support, link = self.supports()[0], self.options.links[0]
        problem = self.problem(valid, support, link, polish=False)[0]
        if self._ringing(valid, problem, best.state, best.fields):
            # found before D can grow into them, they need not be sought twice
            ringed = self.ringed(valid, support, link, best, rounds=1)
            if ringed is not None and ringed.evidence > best.evidence + SUPPORT_GAIN:
                self._first = valid, self.radial.key, ringed
                return ringed
            self.radial, self._ringless = plain, True
            best = self._continued(valid, best)
            self._first = valid, plain.key, best
        return best

    def ringed(self, valid: Tensor, support: float, link: str, factors: Factors, rounds: int = RING_ROUNDS, *,
               afresh: bool = False) -> Factors | None:
        """A refinement with splines for the rings that the residual shows; None where it shows none.

        What a plain background leaves of a ring is only the part that D could not take: where it lies is seen at once, how
        sharp it is only once D has been freed of it.
        """
        plain = self.radial.plain
        problem = self.problem(valid, support, link, polish=False)[0]
        found = factors if self.radial.zones else None
        for _ in range(rounds):
            state, fields = factors.state, factors.fields
            residual = self.arrays.intensity - fields.model
            narrow = torch.einsum("k,k...->...", state.b[plain:], problem.basis.radial[plain:])
            bare, weight = replace(self.radial, zones=()), valid / problem.variance(state, fields)
            # zones that a first look at rings gave are too wide where D was too small
            seen, known = (residual + narrow, bare) if afresh else (residual, self.radial)
            zones, afresh = rough_zones(self.arrays, seen, weight, problem.scale, known), False
            radial, heights = ring_functions(self.arrays, residual + narrow, valid, zones, problem.scale, bare)
            if radial.key == self.radial.key or radial.key in self._in_vain:
                break
            before, self.radial = self.radial, radial
            b = torch.cat([state.b[:plain], torch.as_tensor(heights, device=state.b.device)])
            problem = self.problem(valid, support, link, polish=False)[0]
            trial = self.solve(valid, support, link, replace(state, b=b), tolerance=SEARCH_TOLERANCE, iterations=RING_STEPS)
            if found is not None and trial.evidence < found.evidence:
                self._in_vain.add(radial.key)
                self.radial = before
                break
            found = factors = trial
        return found

    def shaped(self, valid: Tensor) -> None:
        """Let Bragg peaks be elliptic and have tails, where round Gaussians are not what they are and the first look is better."""
        round_ones = self.bragg
        if round_ones is None or round_ones.shape is not None:
            return
        first = self.first(valid)
        if first.state.misfit <= WRONG:
            return
        wide = make_peaks(self.arrays, round_ones.width, FURTHEST)
        problem, _ = self.problem(valid, self.supports()[0], self.options.links[0], polish=False)
        shape, width = first_shape(problem, first, wide)
        peaks = make_peaks(self.arrays, width, shape.reach(width))
        kept = self._problems, self._first
        self._problems, self._first = {}, None
        self.bragg = replace(round_ones, peaks=peaks, width=width, shape=shape)
        if self.first(valid).evidence < first.evidence + SUPPORT_GAIN:
            self.bragg, (self._problems, self._first) = round_ones, kept

    def uneven(self, valid: Tensor) -> None:
        """Let the background of a plane differ from side to side, where the first look at it is much better for that."""
        if self.arrays.grid.ndim != 2 or len(self.radial.smooth) < 2 or self.radial.uneven:
            return
        first, plain = self.first(valid), self.radial
        support, link = self.supports()[0], self.options.links[0]
        self.radial = replace(plain, uneven=UNEVEN)
        problem, _ = self.problem(valid, support, link, polish=False)
        residual = first.weight * (self.arrays.intensity - first.fields.model)
        own = problem.basis.radial[problem.basis.radial_kind == 2].flatten(1)
        expected = own.square() @ first.weight.flatten()
        if float(((own @ residual.flatten()).square() / expected.clamp(min=1e-300)).mean()) > UNEVEN_SCORE:
            b, n = first.state.b, plain.plain
            b = torch.cat([b[:n], b.new_zeros(len(own)), b[n:]])
            trial = self.solve(valid, support, link, replace(first.state, b=b), tolerance=SEARCH_TOLERANCE, iterations=MOST_STEPS)
            if trial.evidence > first.evidence + SUPPORT_GAIN:
                self._first = valid, self.radial.key, trial
                return
        self.radial = plain
