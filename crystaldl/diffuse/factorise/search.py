"""The search of a factorisation: which support of the Patterson function, which form of S, how many order vectors.

All of it is decided by the evidence. The search starts on a support that holds no lattice vector, where nothing periodic can
settle in D, and lets it grow for as long as the evidence asks for it; before a larger one is tried, the gradient along its new
vectors says whether there is anything to win (score test).
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .finer import lengthened, longer_reach, repeating
from .gauss_newton import Problem, refine
from .links import LINKS
from .peaks import MISFIT, Peaks, first_heights, first_width, make_peaks
from .profile import FURTHEST, Shape, first_shape
from .rings import Radial, even_knots, ring_functions, rough_zones
from .states import Basis, Factors, Settings, State
from .unknowns import (
    Arrays,
    build,
    envelope_of,
    largest_support,
    order_functions,
    patterson_functions,
    shortest_vector,
    unseen,
)

if TYPE_CHECKING:
    from .solver import FactoriseOptions

FIRST_SUPPORT = 1.1             # cells
SMALLER = 0.85                  # of the shortest lattice vector: a support that holds none of them
LARGER = 1.3                    # step of the support
SEARCH_TOLERANCE = 1.5e-3       # of the misfit, while choices are still open
TOLERANCE_OF = {False: SEARCH_TOLERANCE, True: 0.2 * SEARCH_TOLERANCE}      # from scratch; what holes hide goes on moving
HOLE_PENALTY = 0.05             # log evidence a pixel
SUPPORT_GAIN = 15.0             # log evidence that a larger support must win
MOST_STEPS = 15                 # of one solution, while choices are still open
RING_ROUNDS = 4                 # of splines for rings
UNEVEN, UNEVEN_SCORE = 4, 10.0  # hat functions of an uneven background; mean square of normalised gradients that asks for it
FIRST_STEPS = 3                 # on a larger support before it is looked at
WRONG = 0.02                    # of a Bragg peak: what its profile is wrong by, from where another is tried
FEW_OUTLIERS, LOST = 5e-4, 0.03     # share of the pixels; and where a form of S that leaves out so many is not pursued
DARK, DARK_SHARE = 0.05, 0.02   # of the mean of S, and share of the cell that is darker: from where its positive part is tried
LOWEST = 0.02                   # of S where its logarithm or reciprocal starts a series
START_SHARE = 0.1               # of the usual prior variance of the series at least, where a series starts from another


@dataclass(frozen=True, eq=False)
class Bragg:
    """Bragg peaks to be fitted: where they are, how wide to begin with, and which pixels they leave alone (bool)."""

    peaks: Peaks
    width: float
    clear: Tensor
    shape: Shape | None = None


def bragg_of(arrays: Arrays, clear: Tensor, radius: float) -> Bragg | None:
    """Peaks at the nodes of a plane of about ``radius`` pixels; ``clear`` is what is further away."""
    width = first_width(arrays, radius)
    peaks = make_peaks(arrays, width)
    return None if peaks is None else Bragg(peaks, width, clear)


class Fit:
    """Refinements of one set of arrays with different supports and links."""

    def __init__(self, arrays: Arrays, options: FactoriseOptions, reach: float, *, falling: bool = True,
                 bragg: Bragg | None = None) -> None:
        self.arrays, self.options, self.reach, self.bragg = arrays, options, reach, bragg
        self.modes = _lattice_modes(arrays)
        self.radial, self.falling = Radial(even_knots(options.background)), falling
        self._problems: dict[tuple, tuple[Problem, State, Tensor]] = {}
        self._refused: Factors | None = None    # with which a larger support has been tried in vain
        self._first: tuple[Tensor, tuple, Factors] | None = None

    def other(self, *, reach: float | None = None, falling: bool | None = None, bragg: Bragg | None = None) -> Fit:
        """The same data with another reach of the order or form of the envelope, or with Bragg peaks."""
        return Fit(self.arrays, self.options, reach or self.reach, falling=self.falling if falling is None else falling,
                   bragg=bragg or self.bragg)

    def supports(self) -> list[float]:
        """Radii to try, ascending: one that holds no lattice vector, a little more than a cell (molecules fit in), larger ones."""
        most = largest_support(self.arrays)
        if self.options.support is not None:
            return [min(self.options.support, most)]
        first = FIRST_SUPPORT * self.arrays.cell
        small = SMALLER * shortest_vector(self.arrays)
        count = 1 + max(int(math.log(max(most / first, 1.0)) / math.log(LARGER) + 1e-9), 0)
        larger = [min(first * LARGER**k, most) for k in range(count)]
        return [min(small, most), *(v for v in larger if v > 1.05 * small)]

    # ------------------------------------------------------------------ one refinement

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
            problem = Problem(self.arrays.intensity, valid, basis, settings, self.arrays.sigma, self.modes, like=like)
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

    def solve(self, valid: Tensor, support: float, link: str, start: State | None = None, **limits) -> Factors:
        """Refine from scratch, S = 1 and large noise, or from a state of the same basis."""
        problem, scratch = self.problem(valid, support, link, polish=self.options.polish and start is None, **limits)
        return refine(problem, scratch if start is None else start, covariance=False)

    # ------------------------------------------------------------------ the search

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
            fresh = self.choose(valid)
            if fresh[2].evidence > again[1].evidence:
                return fresh
        return again[0], link, again[1], first[3]

    def ringed(self, valid: Tensor, support: float, link: str, factors: Factors) -> Factors | None:
        """A refinement with splines for the rings that the residual shows; None where it shows none.

        What a plain background leaves of a ring is only the part that D could not take: where it lies is seen at once, how
        sharp it is only once D has been freed of it.
        """
        plain = self.radial.plain
        problem = self.problem(valid, support, link, polish=False)[0]
        found = None
        # once they are known, one look at what a form or support that fits better leaves of them
        for _ in range(1 if self.radial.zones else RING_ROUNDS):
            state, fields = factors.state, factors.fields
            residual = self.arrays.intensity - fields.model
            zones = rough_zones(self.arrays, residual, valid / problem.variance(state, fields), problem.scale, self.radial)
            narrow = torch.einsum("k,k...->...", state.b[plain:], problem.basis.radial[plain:])
            radial, heights = ring_functions(self.arrays, residual + narrow, valid, zones, problem.scale,
                                             replace(self.radial, zones=()))
            if radial.key == self.radial.key:
                break
            before, self.radial = self.radial, radial
            b = torch.cat([state.b[:plain], torch.as_tensor(heights, device=state.b.device)])
            problem = self.problem(valid, support, link, polish=False)[0]
            trial = self.solve(valid, support, link, replace(state, b=b), tolerance=SEARCH_TOLERANCE, iterations=MOST_STEPS)
            if found is not None and trial.evidence < found.evidence:
                self.radial = before
                break
            found = factors = trial
        return found

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
            b = torch.cat([first.state.b, first.state.b.new_zeros(len(own))])
            trial = self.solve(valid, support, link, replace(first.state, b=b), tolerance=SEARCH_TOLERANCE, iterations=MOST_STEPS)
            if trial.evidence > first.evidence + SUPPORT_GAIN:
                self._first = valid, self.radial.key, trial
                return
        self.radial = plain

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

    def first(self, valid: Tensor) -> Factors:
        """The first form of S on the smallest support, from scratch; what came of it last is kept."""
        key = self.radial.key
        if self._first is None or self._first[0] is not valid or self._first[1] != key:
            support, link = self.supports()[0], self.options.links[0]
            tolerance = TOLERANCE_OF[self._holes(valid)]
            self._first = valid, key, self.solve(valid, support, link, tolerance=tolerance, iterations=MOST_STEPS)
        return self._first[2]

    def _holes(self, valid: Tensor) -> bool:
        """Whether a part of the cell is hidden."""
        return self.problem(valid, self.supports()[0], self.options.links[0], polish=False)[0].hidden is not None

    def choose(self, valid: Tensor) -> tuple[float, str, Factors, dict[str, float]]:
        """Form of S and support of the largest evidence.

        The first form starts from scratch on the smallest support, the others from its outcome once the support has grown.
        """
        support, first = self.supports()[0], self.options.links[0]
        holes = self._holes(valid)
        tolerance = TOLERANCE_OF[holes]
        best, plain = self.first(valid), self.radial
        others = [link for link in self.options.links[1:] if link != "positive"]
        alone = {}
        if outlying(best, valid) > LOST:
            alone = {link: self.solve(valid, support, link, tolerance=tolerance, iterations=MOST_STEPS) for link in others}
        if min(outlying(own, valid) for own in (best, *alone.values())) > LOST and len(plain) > 1 and not plain.zones:
            # rings that no form of S can do without, found before D can grow into them, need not be sought twice
            ringed = self.ringed(valid, support, first, best)
            if ringed is not None and ringed.evidence > best.evidence + SUPPORT_GAIN:
                best, alone = ringed, {}
            else:
                self.radial = plain
        small, lost = support, len(self.options.links) > 1 and outlying(best, valid) > LOST
        if not lost:
            support, best = self.grown(valid, support, first, best)
        found = {first: best}
        for link in others:                     # D is nearly the same for all links
            start = None if lost else self._translated(valid, support, first, link, best.state)
            if start is not None and outlying(best, valid) > FEW_OUTLIERS:
                # from the order of another S may run into what that left out
                start = replace(start, alpha=torch.zeros_like(start.alpha), alpha_variance=self._fresh(valid, support, link))
            found[link] = alone[link] if lost and link in alone else self.solve(
                valid, support, link, start, tolerance=tolerance, iterations=MOST_STEPS)
        if "positive" in self.options.links[1:] and self.dark(valid, support, found):
            other = self.solve(valid, small, "positive", tolerance=tolerance, iterations=2 * MOST_STEPS)
            grown, found["positive"] = self.grown(valid, small, "positive", other)
        evidence = {link: factors.evidence for link, factors in found.items()}
        # into holes, 1/S carries what is known of ordering; S itself knows nothing, and must be much better outside
        ahead = {link: value - (HOLE_PENALTY * float(valid.sum()) if holes and link in ("linear", "positive") else 0.0)
                 for link, value in evidence.items()}
        link = max(ahead, key=ahead.get)
        best = found[link]
        support = grown if link == "positive" else support
        if link not in (first, "positive"):
            support, best = self.grown(valid, support, link, best)
        return support, link, best, evidence

    def dark(self, valid: Tensor, support: float, found: dict[str, Factors]) -> bool:
        """Whether S seems to be zero or less in a part of the cell, which no short series is."""
        if "linear" not in found:
            return True
        problem = self.problem(valid, support, "linear", polish=False)[0]
        series = 1.0 + 2.0 * problem.cell.series(found["linear"].state.alpha)
        return float((series < DARK).double().mean()) > DARK_SHARE

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

    def grown(self, valid: Tensor, support: float, link: str, best: Factors, most: float | None = None) -> tuple[float, Factors]:
        """The support made larger for as long as the evidence asks for it.

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
            support, best = larger, trial
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
        problem, start = self.problem(valid, larger, link, polish=self.options.polish, iterations=FIRST_STEPS,
                                      tolerance=SEARCH_TOLERANCE)
        before = self.problem(valid, support, link, polish=False)[0].basis
        trial = refine(problem, carried(start, best.state, problem.basis, before), covariance=False)
        if best.evidence < trial.evidence and trial.iterations == FIRST_STEPS:
            problem.settings = replace(problem.settings, iterations=MOST_STEPS - FIRST_STEPS)
            trial = refine(problem, trial.state, covariance=False)
        return trial

    def _fresh(self, valid: Tensor, support: float, link: str) -> Tensor:
        """Prior variances of the series to start with."""
        return self.problem(valid, support, link, polish=False)[1].alpha_variance

    def _translated(self, valid: Tensor, support: float, first: str, link: str, state: State) -> State:
        """The state of one link as the start of another: its S, or the logarithm or reciprocal of it, as a series."""
        problem, scratch = self.problem(valid, support, link, polish=False)
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


def _lattice_modes(arrays: Arrays) -> tuple[Tensor, ...]:
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
