"""`factorise`: choose what the physics leaves open — support, noise, background, Bragg residues, lattice — and refine.

The refinement itself (model, priors, normal equations) is in `gauss_newton`. Here a plane or a volume is turned into such a
problem, and what is not known is chosen by the evidence (log marginal likelihood): the radius of the support of the
Patterson function on a ladder of growing radii, and whether S, log S or 1/S is the short cosine series. 1/S is the
Ornstein-Zernike (mean-field) form: the direct correlation function is short-ranged even where the order is sharp
(Krivoglaz, Theory of X-ray and thermal-neutron scattering by real crystals, 1969; Clapp & Moss, Phys. Rev. 142, 418, 1966).
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from .bragg import bragg_radius
from .finer import lengthened, longer_reach, repeating
from .gauss_newton import Basis, Factors, Problem, Settings, State, refine
from .geometry import PlaneLattice
from .links import LINKS
from .unknowns import (
    Arrays,
    arrays_of,
    build,
    corner_spread,
    default_reach,
    envelope_of,
    even_knots,
    largest_support,
    order_functions,
    ring_knots,
    shortest_vector,
    unseen,
)

FIRST_SUPPORT = 1.1             # cells
SMALLER = 0.85                  # of the shortest lattice vector: a support that holds none of them
LARGER = 1.3                    # step of the support
SEARCH_TOLERANCE = 1.5e-3       # of the misfit, while choices are still open
HOLE_PENALTY = 0.05             # log evidence a pixel
SUPPORT_GAIN = 15.0             # log evidence that a larger support must win
FIRST_STEPS = 3                 # on a larger support before it is looked at
FEW_OUTLIERS = 5e-4             # share of the pixels
LOWEST = 0.02                   # of S where its logarithm or reciprocal starts a series
START_SHARE = 0.1               # of the usual prior variance of the series at least, where a series starts from another
FEWEST = 200                    # pixels to fit
BRAGG_REACH = 8.0               # pixels around a node in which Bragg scattering is looked for


@dataclass(frozen=True)
class FactoriseOptions:
    """Choices of :func:`factorise`; every default lets the data decide.

    Attributes
    ----------
    support : float, optional
        Longest vector between atoms of the two variants, Å; chosen by the evidence when left out.
    support_vectors : (n, 3) array_like, optional
        Cartesian interatomic vectors, Å: only their neighbourhoods belong to the support (structure known).
    reach : float, optional
        Longest lattice vector with an order parameter, Å; by default what fits some 200 parameters, and up to 1000 in a plane
        whose misfit repeats from zone to zone.
    links : tuple of str
        Of ``"reciprocal"``, ``"log"``, ``"linear"``: which forms of S compete.
    background : int
        Number of radial functions of a smooth background; 0 for none.
    bragg : float, str or None
        Radius in pixels to leave out around reciprocal-lattice nodes; ``"auto"`` looks whether there is anything to leave
        out; None leaves nothing out.
    robust, polish : bool
        Down-weight outliers; refine the cell (the repeat of S) with the rest.
    centring : str
        Centring of the lattice on which the order repeats: "P", "A", "B", "C", "I", "F" or "R"; "auto" compares them on a
        plane, and takes a volume's cell for primitive.
    blank : bool
        Take areas of exactly 0 (or exactly the smallest value) with bright neighbours for not measured.
    holdout : float
        Fraction of the pixels, in blocks of 4 an edge, that R_free is computed on; the final answer uses them too.
    seed : int
        Of the choice of those blocks.
    """

    support: float | None = None
    support_vectors: Any = None
    reach: float | None = None
    links: tuple[str, ...] = ("reciprocal", "linear")
    background: int = 8
    bragg: float | str | None = "auto"
    robust: bool = True
    polish: bool = True
    centring: str = "auto"
    blank: bool = True
    holdout: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("support", "reach"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 1e-3 <= value < 1e4):
                raise DataError(f"{name} is {value!r}, expected a length above 0 in Å.")
        if isinstance(self.links, str) or not self.links or set(self.links) - {"reciprocal", "log", "linear"}:
            raise DataError(f"links is {self.links!r}, expected a tuple of some of 'reciprocal', 'log', 'linear'.")
        if not isinstance(self.background, (int, np.integer)) or self.background is True or not 0 <= self.background <= 40:
            raise DataError(f"background is {self.background!r}, expected a number of functions from 0 to 40.")
        if self.bragg is not None and self.bragg != "auto" and not (_is_number(self.bragg) and self.bragg >= 0):
            raise DataError(f"bragg is {self.bragg!r}, expected 'auto', None or a radius in pixels.")
        if not (_is_number(self.holdout) and 0.0 <= self.holdout <= 0.3):
            raise DataError(f"holdout is {self.holdout!r}, expected a fraction from 0 to 0.3.")
        if not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            raise DataError(f"seed is {self.seed!r}, expected an integer of at least 0.")


def plain_centring(name: str) -> str:
    """The centring to start from: primitive where it is still to be found."""
    return "P" if isinstance(name, str) and name.strip().lower() == "auto" else name


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, eq=False)
class Factorisation:
    """Outcome of :func:`factorise`: the refined factors and what was chosen on the way."""

    factors: Factors
    problem: Problem
    lattice: PlaneLattice
    support: float
    link: str
    bragg_radius: float
    used: Tensor                    # bool, pixels that took part
    r_free: float
    start_lattice: Tensor           # to_lattice of the Fourier sums before the cell was refined
    denominators: tuple[int, ...]   # order frequencies are integers over these
    centring: str
    evidence: dict[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------------- the search


class Fit:
    """Refinements of one set of arrays with different supports and links."""

    def __init__(self, arrays: Arrays, options: FactoriseOptions, reach: float, *, falling: bool = True) -> None:
        self.arrays, self.options, self.reach = arrays, options, reach
        self.modes = _lattice_modes(arrays)
        self.knots, self.falling = even_knots(options.background), falling
        self._problems: dict[tuple, tuple[Problem, State, Tensor]] = {}

    def problem(self, valid: Tensor, support: float, link: str, *, polish: bool, iterations: int = 40,
                tolerance: float = 3e-4) -> tuple[Problem, State]:
        settings = Settings(iterations=iterations, robust=self.options.robust, polish=polish, tolerance=tolerance, link=link,
                            positive=True)
        key = (id(valid), support, self.knots.tobytes())
        if key not in self._problems:
            envelope = envelope_of(self.arrays, valid, falling=self.falling)
            basis, start = build(self.arrays, support, self.reach, self.options, envelope, self.knots)
            problem = Problem(self.arrays.intensity, valid, basis, settings, self.arrays.sigma, self.modes)
            problem.guard(unseen(self.arrays, valid, problem.cell_shape) if len(basis.order) else None)
            # the last two: supports that are compared; `valid` is kept, so that no other tensor gets its id
            self._problems = dict([*self._problems.items()][-1:]) | {key: (problem, start, valid)}
        problem, start, _ = self._problems[key]
        return problem.under(settings), start

    def solve(self, valid: Tensor, support: float, link: str, start: State | None = None, **limits) -> Factors:
        """Refine from scratch, S = 1 and large noise, or from a state of the same basis."""
        problem, scratch = self.problem(valid, support, link, polish=self.options.polish and start is None, **limits)
        return refine(problem, scratch if start is None else start, covariance=False)

    def finish(self, clear: Tensor, held: Tensor,
               report: Callable[[str], None] = lambda text: None) -> tuple[tuple, Problem, Factors]:
        """Choose on the pixels that are not held out, refine on all of them."""
        fit, chosen = self.finer(clear & ~held, self.search(clear & ~held))
        report("refinement")
        problem, _ = fit.problem(clear, chosen[0], chosen[1], polish=self.options.polish, iterations=12)
        return chosen, problem, refine(problem, chosen[2].state)

    def finer(self, valid: Tensor, chosen: tuple[float, str, Factors, dict[str, float]]) -> tuple[Fit, tuple]:
        """The search's outcome with order vectors that reach further, where the residual repeats from zone to zone."""
        support, link, found, evidence = chosen
        reach = None if self.options.reach else longer_reach(self.arrays, self.reach)
        if reach is None or "linear" not in self.options.links:
            return self, chosen
        problem = self.problem(valid, support, link, polish=False)[0]
        if problem.hidden is not None:      # a long series would say anything there
            return self, chosen
        power = repeating(problem, found, *order_functions(self.arrays, reach)[0][:2])
        if not power:
            return self, chosen
        other = Fit(self.arrays, self.options, reach, falling=self.falling)
        other.knots = self.knots
        state = found.state if link == "linear" else self._translated(valid, support, link, "linear", found.state)
        wide, start = other.problem(valid, support, "linear", polish=False)
        start = lengthened(problem.basis, state, wide.basis, start, power)
        best = other.solve(valid, support, "linear", start, tolerance=0.2 * SEARCH_TOLERANCE)
        # what repeats may have driven D to a wide support, which S does not need any more
        support, best = other._without_lattice_vectors(valid, support, "linear", best)
        if best.evidence < found.evidence + SUPPORT_GAIN:
            return self, chosen
        return other, (support, "linear", best, evidence)

    def search(self, valid: Tensor) -> tuple[float, str, Factors, dict[str, float]]:
        """:meth:`choose`, once more with narrow background functions where the residual shows rings, if the evidence says so."""
        first, plain = self.choose(valid), self.knots
        factors = first[2]
        if len(plain) < 2:
            return first
        problem = self.problem(valid, first[0], first[1], polish=False)[0]
        weight = valid / problem.variance(factors.state, factors.fields)
        self.knots = ring_knots(self.arrays, self.arrays.intensity - factors.fields.model, weight, plain, problem.scale)
        if self.knots is plain:
            return first
        start = replace(factors.state, b=torch.as_tensor(np.interp(self.knots, plain, factors.state.b.cpu().numpy()),
                                                         device=factors.state.b.device))
        again = self._grown(valid, first[0], first[1], self.solve(valid, first[0], first[1], start, tolerance=SEARCH_TOLERANCE))
        if again[1].evidence > factors.evidence + SUPPORT_GAIN:
            return again[0], first[1], again[1], first[3]
        self.knots = plain
        return first

    def choose(self, valid: Tensor) -> tuple[float, str, Factors, dict[str, float]]:
        """Form of S and support of the largest evidence.

        The links start from scratch on a support a little longer than the cell: molecules fit into their cells, and a
        wider one would let D take periodic modulations from S at the start. Once S is known the support may grow.
        """
        support = min(self.options.support or FIRST_SUPPORT * self.arrays.cell, largest_support(self.arrays))
        found: dict[str, Factors] = {}
        holes = self.problem(valid, support, self.options.links[0], polish=False)[0].hidden is not None
        tolerance = 0.2 * SEARCH_TOLERANCE if holes else SEARCH_TOLERANCE
        for link in self.options.links:
            start = None
            if found:                       # D is nearly the same for all links
                first, other = next(iter(found.items()))
                start = self._translated(valid, support, first, link, other.state)
                if outlying(other, valid) > FEW_OUTLIERS:       # from the order of another S may run into what that left out
                    start = replace(start, alpha=torch.zeros_like(start.alpha), alpha_variance=self._fresh(valid, support, link))
            found[link] = self.solve(valid, support, link, start, tolerance=tolerance)
        evidence = {link: factors.evidence for link, factors in found.items()}
        # into holes, 1/S carries what is known of ordering; S itself knows nothing, and must be much better outside
        ahead = {link: value - (HOLE_PENALTY * float(valid.sum()) if holes and link == "linear" else 0.0)
                 for link, value in evidence.items()}
        link = max(ahead, key=ahead.get)
        support, best = self._grown(valid, support, link, found[link])
        support, best = self._without_lattice_vectors(valid, support, link, best)
        return support, link, best, evidence

    def _without_lattice_vectors(self, valid: Tensor, support: float, link: str, best: Factors) -> tuple[float, Factors]:
        """A support too small for any lattice vector, if the evidence is for it: a wider one may hold modulations that are S's.

        A form factor of one or two atoms leaves a wide support nearly empty, and periodic modulations may settle there that
        no step of the refinement brings back.
        """
        small = SMALLER * shortest_vector(self.arrays)
        holes = self.problem(valid, support, link, polish=False)[0].hidden is not None
        if self.options.support is not None or small >= support or holes:
            return support, best
        trial = self.solve(valid, small, link, tolerance=SEARCH_TOLERANCE)
        return (small, trial) if trial.evidence >= best.evidence else (support, best)

    def _grown(self, valid: Tensor, support: float, link: str, best: Factors) -> tuple[float, Factors]:
        """The support made larger for as long as the evidence asks for it."""
        most = largest_support(self.arrays)
        while self.options.support is None and support * LARGER <= most:
            trial = self._wider(valid, support, link, best)
            if trial.evidence < best.evidence + SUPPORT_GAIN:
                break
            support, best = support * LARGER, trial
        return support, best

    def _wider(self, valid: Tensor, support: float, link: str, best: Factors) -> Factors:
        """The next larger support from the solution of this one; given up where its first steps gain nothing."""
        problem, start = self.problem(valid, support * LARGER, link, polish=False, iterations=FIRST_STEPS,
                                      tolerance=SEARCH_TOLERANCE)
        before = self.problem(valid, support, link, polish=False)[0].basis
        trial = refine(problem, _carried(start, best.state, problem.basis, before), covariance=False)
        if best.evidence < trial.evidence and trial.iterations == FIRST_STEPS:
            problem.settings = replace(problem.settings, iterations=12 - FIRST_STEPS)
            trial = refine(problem, trial.state, covariance=False)
        return trial

    def _fresh(self, valid: Tensor, support: float, link: str) -> Tensor:
        """Prior variances of the series to start with."""
        return self.problem(valid, support, link, polish=False)[1].alpha_variance

    def _translated(self, valid: Tensor, support: float, first: str, link: str, state: State) -> State:
        """The state of one link as the start of another: its S, or the logarithm or reciprocal of it, as a series."""
        problem, scratch = self.problem(valid, support, link, polish=False)
        waves = problem.cell_waves
        series = 1.0 + 2.0 * waves @ state.alpha
        order = LINKS[first](series)[0]
        order = order / order.mean()
        target = {"linear": order, "log": 1.0 + order.clamp(min=LOWEST).log(), "reciprocal": 1.0 / order.clamp(min=LOWEST)}[link]
        target = target / target.mean() if link == "reciprocal" else target - target.mean() + 1.0
        alpha = (waves * target[:, None]).mean(0) / (2.0 * waves.square().mean(0))
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


def _carried(start: State, old: State, basis: Basis, before: Basis) -> State:
    """The larger support begun from the solution of the smaller one."""
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


def _node_spacing(lattice: PlaneLattice, steps: np.ndarray) -> float:
    """Shortest distance between nodes of the plane, pixels."""
    return float(np.linalg.norm(lattice.nodes / steps, axis=1).min())


def _held_out(valid: Tensor, options: FactoriseOptions, block: int = 4) -> Tensor:
    """Random blocks of pixels that the choice of the link does not see, bool."""
    if options.holdout == 0.0:
        return torch.zeros_like(valid)
    coarse = [-(-n // block) for n in valid.shape]
    chosen = np.random.default_rng(options.seed).random(coarse) < options.holdout
    for axis in range(valid.ndim):
        chosen = chosen.repeat(block, axis=axis)
    held = torch.as_tensor(chosen[tuple(slice(0, n) for n in valid.shape)].copy(), device=valid.device)
    return held & valid


def r_factor(measured: Tensor, model: Tensor, where: Tensor) -> float:
    """``Σ |I − model| / Σ |I|`` over the pixels ``where``; NaN where there are none."""
    total = float(measured[where].abs().sum())
    return float((measured - model)[where].abs().sum()) / total if total > 0 else math.nan


def _check_enough(arrays: Arrays) -> None:
    axes = [a.cpu().numpy() for a in arrays.grid.axes]
    spread = [float(np.ptp(c)) for c in corner_spread(axes, arrays.grid.to_lattice.cpu().numpy())]
    zones = np.abs(np.linalg.inv(arrays.dual)).max(0)
    if any(s < z * 0.999 for s, z in zip(spread, zones, strict=True)):
        raise DataError(f"the data span {min(spread):.2g} of a reciprocal cell, expected at least one whole zone along every axis.")
    measured = int(arrays.valid.sum())
    if measured < FEWEST:
        raise DataError(f"only {measured} pixels are measured, expected at least {FEWEST}.")
    if float(arrays.intensity[arrays.valid].mean()) <= 0:
        raise DataError("data has a mean of zero or less, expected positive diffuse intensity.")


def factorise(volume, lattice: PlaneLattice, options: FactoriseOptions = FactoriseOptions(), *,
              device: torch.device | str = "cpu", report: Callable[[str], None] = lambda text: None) -> Factorisation:
    """Separate one plane or volume into D, S and background.

    Parameters
    ----------
    volume : DiffuseVolume
    lattice : PlaneLattice
        From `geometry.plane_lattice`, or `geometry.pixel_lattice` where the scale is not known.
    options : FactoriseOptions
    device : torch.device
        float64 is needed: CPU or CUDA.
    report : callable
        Told what is being done, in a word.

    Returns
    -------
    Factorisation

    Raises
    ------
    DataError
        Less than one zone, fewer than 200 measured pixels, no positive intensity.
    """
    arrays = arrays_of(volume, lattice, torch.device(device))
    _check_enough(arrays)
    fit = Fit(arrays, options, options.reach or default_reach(arrays))
    steps = np.array([float(axis[1] - axis[0]) for axis in volume.axes])
    clear, radius = arrays.valid, 0.0
    if lattice.has_nodes and options.bragg is not None:
        keep = min(BRAGG_REACH, 0.28 * _node_spacing(lattice, steps))
        radius = bragg_radius(volume, lattice, keep) if options.bragg == "auto" else float(options.bragg)
        distance = torch.as_tensor(lattice.distance_to_node(volume.axes, steps), device=arrays.valid.device)
        clear = arrays.valid & (distance > radius) if radius else arrays.valid
        if int(clear.sum()) < FEWEST:
            raise DataError(f"bragg is {radius:g} pixels, which leaves {int(clear.sum())} pixels; expected at least {FEWEST}.")
    report("search")
    held = _held_out(clear, options)
    chosen, problem, final = fit.finish(clear, held, report)
    if options.robust and outlying(final, clear) > FEW_OUTLIERS:
        # residues that some order or background explains hold on to an envelope: the other one may not be caught by them
        other = Fit(arrays, options, fit.reach, falling=False)
        if other.solve(clear & ~held, *chosen[:2], tolerance=SEARCH_TOLERANCE).evidence > chosen[2].evidence:
            again = other.finish(clear, held)
            if again[2].evidence > final.evidence:
                chosen, problem, final = again
    support, link, found, evidence = chosen
    free = r_factor(arrays.intensity, found.fields.model, held)
    return Factorisation(final, problem, lattice, support, link, radius, clear, free, arrays.grid.to_lattice,
                         arrays.denominators, plain_centring(options.centring), evidence)
