"""The search of a factorisation: which support of the Patterson function, which form of S, how many order vectors.

All of it is decided by the evidence. The search starts on a support that holds no lattice vector, where nothing periodic can
settle in D, and lets it grow for as long as the evidence asks for it; before a larger one is tried, the gradient along its new
vectors says whether there is anything to win (score test).
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .finer import lengthened, longer_reach, repeating
from .gauss_newton import NOISE_FLOOR, Problem
from .looks import (
    FIRST_SUPPORT,
    HOPELESS,
    LARGER,
    MOST_STEPS,
    RING_ROUNDS,
    SEARCH_TOLERANCE,
    SUPPORT_GAIN,
    TOLERANCE_OF,
    Looks,
)
from .peaks import Bragg
from .refine import refine
from .starts import carried, outlying, translated
from .states import Factors, State
from .unknowns import order_functions, patterson_functions

HOLE_PENALTY = 0.05             # log evidence a pixel
FAR = 1.0                       # the same after the first steps on the larger support
FIRST_STEPS = 3                 # on a larger support before it is looked at
FEW_OUTLIERS, LOST = 5e-4, 0.03     # share of the pixels; and where a form of S that leaves out so many is not pursued
NEGATIVE = -0.02                # of the mean of S: what is further below zero is no order
DARK, DARK_SHARE = 0.05, 0.02   # of the mean of S, and share of the cell that is darker: from where its positive part is tried


class Fit(Looks):
    """The search."""

    def other(self, *, reach: float | None = None, falling: bool | None = None, bragg: Bragg | None = None) -> Fit:
        """The same data with another reach of the order or form of the envelope, or with Bragg peaks."""
        other = Fit(self.arrays, self.options, reach or self.reach, falling=self.falling if falling is None else falling,
                    bragg=bragg or self.bragg)
        other._too_small = self._too_small
        return other

    def finish(self, clear: Tensor, seen: Tensor,
               report: Callable[[str], None] = lambda text: None) -> tuple[tuple, Problem, Factors]:
        """Choose on the pixels ``seen``, which are not held out, refine on all of ``clear``."""
        fit, (support, link, best, evidence) = self.finer(seen, self.search(seen))
        support, best = fit.grown(seen, support, link, best, math.inf)
        chosen = support, link, best, evidence
        report("refinement")
        before = fit.problem(seen, support, link, polish=False)[0]
        larger = support
        if before.hidden is None:       # wider than the evidence asks for: what is too weak to be seen must still be uncertain
            larger = next((v for v in fit.supports() if v > 1.001 * support), support)
        steps = 6 if larger > support else 12
        problem, start = fit.problem(clear, larger, link, polish=self.options.polish, iterations=steps)
        start = carried(start, best.state, problem.basis, before.basis) if larger > support else best.state
        return chosen, problem, refine(problem, start)

    def search(self, valid: Tensor) -> tuple[float, str, Factors, dict[str, float]]:
        """:meth:`choose`, once more with splines in |Q| where the residual shows rings, if the evidence says so."""
        self.shaped(valid)
        self.early(valid)
        self.uneven(valid)
        first, plain = self.choose(valid), self.radial
        support, link, factors, _ = first
        if len(plain.smooth) < 2:
            return first
        found = self.ringed(valid, support, link, factors)
        if found is None:
            return first
        again = self.grown(valid, support, link, found)
        if again[1].evidence < factors.evidence + SUPPORT_GAIN:
            self.radial = plain
            return first
        if not plain.zones and again[0] > 1.001 * self.supports()[0]:
            # rings may have driven D to a support on which it takes periodic factors from S
            ringed = self.radial
            fresh = self.choose(valid)
            if fresh[2].evidence > again[1].evidence:
                return fresh
            self.radial = ringed
        return again[0], link, again[1], first[3]

    def choose(self, valid: Tensor) -> tuple[float, str, Factors, dict[str, float]]:
        """Form of S and support of the largest evidence.

        The first form starts from scratch on the smallest support and the others from its outcome. The best of them says how far
        the support must grow, and what comes of that is where the others start once more.
        """
        best = self.early(valid)
        small, first = self.supports()[0], self.options.links[0]
        tolerance = TOLERANCE_OF[self._holes(valid)]
        others = [link for link in self.options.links[1:] if link != "positive"]
        lost = len(self.options.links) > 1 and outlying(best, valid) > LOST
        support, found = small, {first: best}
        for link in others:                     # where the first form got lost, it is no start
            start = None if lost else self._started(valid, small, first, link, best)
            found[link] = self.solve(valid, small, link, start, tolerance=tolerance, iterations=MOST_STEPS)
        leading = first
        if not lost:
            # what holes hide is all but free, and only 1/S is known to do well there
            holes, before, pixels = self._holes(valid), self.radial.key, float(valid.sum())
            leading = first if holes else self._ahead(valid, found)
            level = -math.inf if holes or self.radial.zones else found[leading].evidence - HOPELESS * pixels
            best = self.sharper(valid, small, leading, found[leading], rounds=1)
            support, best = self.grown(valid, small, leading, best, sharper=True)
            sharp = self.sharper(valid, support, leading, best)
            if sharp is not best:
                support, best = self.grown(valid, support, leading, sharp)
            found[leading] = best
            if support > small or self.radial.key != before:        # D is nearly the same for all links
                for link in [link for link, own in found.items() if link != leading and own.evidence > level]:
                    start, trial = self._started(valid, support, leading, link, best), (FIRST_STEPS, best.evidence - FAR * pixels)
                    found[link] = self.solve(valid, support, link, start, trial, tolerance=tolerance, iterations=MOST_STEPS)
        if "positive" in self.options.links[1:] and self.dark(valid, found):
            grown, found["positive"] = self.positive(valid, support, found)
        link = self._ahead(valid, found)
        best = found[link]
        if link == "positive":
            support = grown
        elif lost or link != leading:
            support, best = self.grown(valid, support, link, best)
        return support, link, best, {name: factors.evidence for name, factors in found.items()}

    def sharper(self, valid: Tensor, support: float, link: str, best: Factors, rounds: int = RING_ROUNDS) -> Factors:
        """The same with other splines for the rings that are known, if that is better: how sharp they are is seen bit by bit."""
        if not self.radial.zones:
            return best
        return self.ringed(valid, support, link, best, rounds, afresh=rounds == 1) or best

    def _ahead(self, valid: Tensor, found: dict[str, Factors]) -> str:
        """The best form of S."""
        # into holes, 1/S carries what is known of ordering; S itself knows nothing, and must be much better outside. Where it is
        # well below zero it is no order at all, and must be better by far than its positive part
        pixels, holes = float(valid.sum()), self._holes(valid)
        behind = dict.fromkeys(("linear", "positive"), HOLE_PENALTY * pixels if holes else 0.0)
        if "positive" in found and "linear" in found and float(self._series(valid, found["linear"]).min()) < NEGATIVE:
            behind["linear"] += HOPELESS * pixels
        value = {link: own.evidence - behind.get(link, 0.0) for link, own in found.items()}
        # below the floor of the noise the evidence is that of the priors alone
        scale = self.problem(valid, self.supports()[0], self.options.links[0], polish=False)[0].scale
        misfit = {link: float((own.fields.model - self.arrays.intensity)[valid].square().mean()) for link, own in found.items()
                  if value[link] > max(value.values()) - HOLE_PENALTY * pixels}
        if max(misfit.values()) < (NOISE_FLOOR * scale) ** 2 and not holes:
            return min(misfit, key=misfit.__getitem__)
        return max(value, key=value.__getitem__)

    def _series(self, valid: Tensor, found: Factors) -> Tensor:
        """The series of S on the points of a cell."""
        return 1.0 + 2.0 * self.problem(valid, self.supports()[0], "linear", polish=False)[0].cell.series(found.state.alpha)

    def positive(self, valid: Tensor, support: float, found: dict[str, Factors]) -> tuple[float, Factors]:
        """The positive part as the form of S, from the outcome of S itself or, where that is no good start, from scratch."""
        level, linear = max(own.evidence for own in found.values()), found.get("linear")
        if linear is not None and linear.evidence == level:
            start, least = self._started(valid, support, "linear", "positive", linear), level - HOPELESS * float(valid.sum())
            own = self.solve(valid, support, "positive", start, (2 * FIRST_STEPS, least), tolerance=SEARCH_TOLERANCE,
                             iterations=MOST_STEPS)
            if own.evidence > level:
                return self.grown(valid, support, "positive", own)
            if own.evidence < least:
                return support, own
        small, tolerance = self.supports()[0], TOLERANCE_OF[self._holes(valid)]
        own = self.solve(valid, small, "positive", tolerance=tolerance, iterations=2 * MOST_STEPS)
        return self.grown(valid, small, "positive", own)

    def dark(self, valid: Tensor, found: dict[str, Factors]) -> bool:
        """Whether S seems to be zero or less in a part of the cell, which no short series is."""
        if "linear" not in found:
            return True
        return float((self._series(valid, found["linear"]) < DARK).double().mean()) > DARK_SHARE

    def finer(self, valid: Tensor, chosen: tuple[float, str, Factors, dict[str, float]]) -> tuple[Fit, tuple]:
        """The search's outcome with order vectors that reach further, where the residual repeats from zone to zone."""
        support, link, found, evidence = chosen
        reach = None if self.options.reach else longer_reach(self.arrays, self.reach)
        wanted = "positive" if link == "positive" else "linear"
        if reach is None or wanted not in self.options.links:
            return self, chosen
        problem = self.problem(valid, support, link, polish=False)[0]
        if problem.hidden is not None:      # a long series would say anything there
            return self, chosen
        power = repeating(problem, found, *order_functions(self.arrays, reach)[0][:2])
        if not power:
            return self, chosen
        other = self.other(reach=reach)
        other.radial = self.radial
        state = found.state if link == wanted else self._translated(valid, support, link, wanted, found.state)
        # what repeats may have driven D to a wide support, which S does not need any more
        small = self.supports()[0]
        wide, start = other.problem(valid, small, wanted, polish=False)
        state = carried(replace(start, alpha_variance=state.alpha_variance), state, wide.basis, problem.basis)
        start = lengthened(problem.basis, state, wide.basis, start, power)
        best = other.solve(valid, small, wanted, start, tolerance=0.2 * SEARCH_TOLERANCE, iterations=MOST_STEPS)
        small, best = other.grown(valid, small, wanted, best)
        if best.evidence < found.evidence + SUPPORT_GAIN:
            return self, chosen
        return other, (small, wanted, best, evidence)

    def grown(self, valid: Tensor, support: float, link: str, best: Factors, most: float | None = None, *,
              sharper: bool = False) -> tuple[float, Factors]:
        """The support made larger for as long as the evidence asks for it; on request, so are the splines for rings on the way.

        By default not beyond what most molecules need: order that a short series lacks would go on driving it.
        """
        most = FIRST_SUPPORT * LARGER * self.arrays.cell if most is None else most
        for larger in self.supports():
            if larger <= support * 1.001:
                continue
            if larger > 1.001 * most or self._refused is best:
                break
            if self.gain(valid, support, larger, link, best) < SUPPORT_GAIN:
                break
            trial = self._wider(valid, support, larger, link, best)
            if trial.evidence < best.evidence + SUPPORT_GAIN:
                self._refused = best
                break
            # rings that D was too small to show before would drive it further
            support, best = larger, self.sharper(valid, larger, link, trial, rounds=1) if sharper else trial
        return support, best

    def gain(self, valid: Tensor, support: float, larger: float, link: str, best: Factors) -> float:
        """Log evidence that the vectors between two supports can win at most, from the gradient along them.

        Where the model is complete a gradient is a random number of known variance; a shell of n of them whose mean square is
        m times that gains ``n (m − 1 − ln m) / 2`` at the best prior variance.
        """
        problem = self.problem(valid, support, link, polish=False)[0]
        own = {tuple(v) for v in problem.basis.patterson.tolist()}
        index, sine, shell = patterson_functions(self.arrays, larger, self.options)
        more = torch.tensor([tuple(v) not in own for v in index.tolist()], device=index.device)
        if not bool(more.any()):
            return -math.inf
        index, sine, shell = index[more], sine[more], shell[more]
        fields, grid = best.fields, best.state.grid
        weight = best.weight * problem.basis.envelope * fields.order
        reach = tuple(int(v) for v in index.abs().amax(0))
        gradient = grid.project(weight * (problem.intensity - fields.model), (index, sine), reach)
        expected = 0.5 * float((weight * problem.basis.envelope * fields.order).sum())
        number = torch.bincount(shell).double()
        excess = torch.zeros_like(number).index_add(0, shell, gradient.square() / expected) / number.clamp(min=1)
        excess = excess.clamp(min=1.0)
        return 0.5 * float((number * (excess - 1.0 - excess.log())).sum())

    def _wider(self, valid: Tensor, support: float, larger: float, link: str, best: Factors) -> Factors:
        """A larger support from the solution of this one; given up where its first steps gain nothing."""
        # too small a support may have put the lattice wrong
        problem, start = self.problem(valid, larger, link, polish=self.options.polish, iterations=MOST_STEPS,
                                      tolerance=SEARCH_TOLERANCE)
        before = self.problem(valid, support, link, polish=False)[0].basis
        start = carried(start, best.state, problem.basis, before)
        return refine(problem, start, covariance=False, trial=(FIRST_STEPS, best.evidence))

    def _started(self, valid: Tensor, support: float, first: str, link: str, found: Factors) -> State:
        """The outcome of one link as the start of another."""
        if outlying(found, valid) <= FEW_OUTLIERS:
            return self._translated(valid, support, first, link, found.state)
        # from the order of another S may run into what that left out
        fresh = self.problem(valid, support, link, polish=False)[1]
        return replace(found.state, alpha=torch.zeros_like(fresh.alpha), alpha_variance=fresh.alpha_variance)

    def _translated(self, valid: Tensor, support: float, first: str, link: str, state: State) -> State:
        """The state of one link as the start of another."""
        return translated(*self.problem(valid, support, link, polish=False), first, state)
