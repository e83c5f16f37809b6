"""`factorise`: choose what the physics leaves open — support, noise, background, Bragg residues, lattice — and refine.

The refinement itself (model, priors, normal equations) is in `gauss_newton`. Here a plane or a volume is turned into such a
problem, and what is not known is chosen by the evidence (log marginal likelihood; `search`): the radius of the support of the
Patterson function on a ladder of growing radii, and whether S, its positive part, log S or 1/S is the short cosine series. 1/S is
the Ornstein-Zernike (mean-field) form: the direct correlation function is short-ranged even where the order is sharp
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

from ...errors import DataError
from ..geometry import PlaneLattice
from .bragg import bragg_radius, residue_radius
from .gauss_newton import Problem
from .links import LINKS
from .looks import SEARCH_TOLERANCE
from .peaks import bragg_of
from .search import FEW_OUTLIERS, LOST, Fit
from .starts import outlying
from .states import Factors, Fields
from .unknowns import Arrays, arrays_of, corner_spread, default_reach

FEWEST = 200                    # pixels to fit
SHARE = 0.25                    # of the diffuse intensity: Bragg intensity above which a pixel does not count for R
AT_NODE = 1.0                   # pixels from a node, where nothing counts for R if there are peaks
FOUND = 0.3                     # of the outliers of a first look: what Bragg peaks must leave of them at most
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
        Of ``"reciprocal"``, ``"log"``, ``"linear"``, ``"positive"``: which forms of S compete; the last, if it does not come first,
        where S is dark in a part of the cell.
    background : int
        Number of radial functions of a smooth background; 0 for none.
    bragg : float, str or None
        Radius in pixels to leave out around reciprocal-lattice nodes; ``"auto"`` looks whether there is Bragg scattering, which
        is fitted on a plane (`peaks`) and left out in a volume; None leaves nothing out.
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
    links: tuple[str, ...] = ("reciprocal", "linear", "positive")
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
        if isinstance(self.links, str) or not self.links or set(self.links) - set(LINKS):
            raise DataError(f"links is {self.links!r}, expected a tuple of some of {', '.join(map(repr, LINKS))}.")
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


def _node_spacing(lattice: PlaneLattice, steps: np.ndarray) -> float:
    """Shortest distance between nodes of the plane, pixels."""
    return float(np.linalg.norm(lattice.nodes / steps, axis=1).min())


def held_out(valid: Tensor, options: FactoriseOptions, block: int = 4) -> Tensor:
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


def without_peaks(fields: Fields, valid: Tensor) -> Tensor:
    """The pixels where no more than a share of the intensity is of Bragg peaks."""
    return valid & (fields.peaks < SHARE * (fields.model - fields.peaks).abs())


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


def _residues(volume, lattice: PlaneLattice, fit: Fit, clear: Tensor, reach: float, found: tuple[Problem, Factors]):
    """Bragg peaks that the misfit of a plane shows and the data did not, as a fit with them and their radius; or None."""
    problem, factors = found
    weight = problem.valid / problem.variance(factors.state, factors.fields)
    rest = problem.intensity - factors.fields.model
    misfit, level = ((v * weight.sqrt()).cpu().numpy() for v in (rest, factors.fields.factor))
    radius = residue_radius(volume, lattice, reach, misfit, level)
    if not radius:
        return None
    steps = np.array([axis[1] - axis[0] for axis in volume.axes])
    distance = torch.as_tensor(lattice.distance_to_node(volume.axes, steps), device=clear.device)
    # their width is that of the misfit: the data at the strongest nodes may be order
    bragg = bragg_of(replace(fit.arrays, intensity=rest), clear & (distance > radius), radius)
    return None if bragg is None else (fit.other(bragg=bragg), radius)


def _seen_early(volume, lattice: PlaneLattice, fit: Fit, clear: Tensor, seen: Tensor, reach: float) -> tuple[Fit, float]:
    """The fit with Bragg peaks where the first look at a plane says that it cannot do without them; and their radius."""
    first = fit.first(seen)
    lost = outlying(first, seen)
    if lost > FEW_OUTLIERS:
        problem = fit.problem(seen, fit.supports()[0], fit.options.links[0], polish=False)[0]
        found = _residues(volume, lattice, fit, clear, reach, (problem, first))
        if found is not None:
            again = found[0].first(seen)
            if outlying(again, seen) < FOUND * lost and (lost > LOST or again.evidence > first.evidence):
                return found
    return fit, 0.0


def _with_residues(volume, lattice: PlaneLattice, fit: Fit, clear: Tensor, seen: Tensor, outcome: tuple,
                   reach: float) -> tuple[Fit, tuple, float]:
    """The outcome once more with Bragg peaks, where a plane's misfit shows some that the data did not; and their radius."""
    found = _residues(volume, lattice, fit, clear, reach, outcome[1:])
    if found is None:
        return fit, outcome, 0.0
    other, radius = found
    try:
        again = other.finish(clear, seen)
    except DataError:               # nothing that could be fitted: what is there without peaks stands
        return fit, outcome, 0.0
    return (other, again, radius) if again[2].evidence > outcome[2].evidence else (fit, outcome, 0.0)


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
    searching = lattice.has_nodes and options.bragg == "auto" and arrays.grid.ndim == 2
    if lattice.has_nodes and options.bragg is not None:
        keep = min(BRAGG_REACH, 0.28 * _node_spacing(lattice, steps))
        radius = bragg_radius(volume, lattice, keep) if options.bragg == "auto" else float(options.bragg)
        distance = torch.as_tensor(lattice.distance_to_node(volume.axes, steps), device=arrays.valid.device)
        clear = arrays.valid & (distance > radius) if radius else arrays.valid
        if radius and options.bragg == "auto" and arrays.grid.ndim == 2:
            fit.bragg = bragg_of(arrays, clear, radius)
            clear = clear if fit.bragg is None else arrays.valid
        if int(clear.sum()) < FEWEST:
            raise DataError(f"bragg is {radius:g} pixels, which leaves {int(clear.sum())} pixels; expected at least {FEWEST}.")
    report("search")
    held = held_out(clear, options)
    seen = clear & ~held
    if searching and radius == 0.0:
        fit, radius = _seen_early(volume, lattice, fit, clear, seen, keep)
    chosen, problem, final = fit.finish(clear, seen, report)
    if searching and radius == 0.0 and outlying(final, clear) > FEW_OUTLIERS:
        fit, (chosen, problem, final), radius = _with_residues(volume, lattice, fit, clear, seen, (chosen, problem, final), keep)
    if options.robust and outlying(final, clear) > FEW_OUTLIERS:
        # residues that some order or background explains hold on to an envelope: the other one may not be caught by them
        other = fit.other(falling=False)
        if other.solve(seen, *chosen[:2], tolerance=SEARCH_TOLERANCE).evidence > chosen[2].evidence:
            again = other.finish(clear, seen)
            if again[2].evidence > final.evidence:
                chosen, problem, final = again
    support, link, found, evidence = chosen
    used = clear
    if final.fields.peaks is not None:
        used = without_peaks(final.fields, clear) & (distance > AT_NODE)
    free = r_factor(arrays.intensity, found.fields.model, held & used)
    return Factorisation(final, problem, lattice, support, link, radius, used, free, arrays.grid.to_lattice,
                         arrays.denominators, plain_centring(options.centring), evidence)
