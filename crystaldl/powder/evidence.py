"""The search's side of a classification: lattices that explain the lines, checked against the whole profile.

The peak list proposes cells of every Bravais lattice (`indexing`); the best of them are fitted to the pattern itself
(`pawley`), which weighs every point, refines cell, zero shift and displacement, and yields the intensities from which
absent lines are judged (`absences`, `extinction`).
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from ..physics.lattice import cell_from_metric
from . import search_kernels
from .absences import absence_evidence
from .extinction import extinction_evidence
from .indexing import LATTICES, MARGIN, lattice_scores
from .pawley import PawleyFit, pawley_fit
from .prepare import AXIS_START, AXIS_STEP, CU_DOUBLET, REFERENCE_WAVELENGTH

log = logging.getLogger(__name__)

EXTINCTION_GROUPS = 99
#: the arrays of `Evidence`, in the order the arbiter reads them
ARRAYS = ("scores", "profile", "facts", "absences")
#: cells fitted to the profile: of each lattice, of all lattices, within this log-likelihood of the best
EACH, ALL, WITHIN = 1, 9, 9.0
#: how much one unit of the profile's log-likelihood counts beside the lines': its points are far from independent
PROFILE_WEIGHT = 0.1
#: lattices whose absent lines are examined: those within this combined score of the best
EXAMINED = 6.0


@dataclass(frozen=True, eq=False)
class Lattice:
    """A lattice that explains the lines.

    Attributes
    ----------
    bravais : str, e.g. ``"oP"``
    cell : (6,) float, a, b, c in Å and alpha, beta, gamma in degrees (conventional; hexagonal axes for hP and hR)
    score : float, log-likelihood ratio against chance: lines, and the profile's share
    zero : float, zero shift in degrees: observed minus true 2θ at low angle, displacement included
    fit : PawleyFit or None, the fit of the profile; kept for the best lattice alone
    """

    bravais: str
    cell: np.ndarray
    score: float
    zero: float
    fit: PawleyFit | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Evidence:
    """What the lattice search found for one pattern.

    Attributes
    ----------
    scores : (13,) float, from the peak list, in the order of LATTICES
    profile : (13, 3) float, from the fit of the profile: log-likelihood gained by the lines, log-likelihood of their
        intensities with all of them allowed, and what absences add to it; each relative to the best lattice, ≤ 0 but the
        last; the floor for lattices that were not fitted
    facts : (6,) float: best score, summed weight of the lines, number of lines, misfit and explained share of the best fit,
        summed height of the lines it does not explain
    absences : (2, 99) float, log-likelihood of extinction groups relative to the best of their lattice, from intensities
        and from lines seen or not, levelled off at -4 (one odd line must not decide); 0 where not examined
    lattices : tuple of Lattice, best first
    unexplained : (k, 2) float, lines that the best lattice does not explain: 1/d in Å⁻¹, height relative to the strongest
    """

    scores: np.ndarray
    profile: np.ndarray
    facts: np.ndarray
    absences: np.ndarray
    lattices: tuple[Lattice, ...]
    unexplained: np.ndarray


FLOOR = np.array([-100.0, -100.0, 0.0])


def conventional_cell(bravais: str, coefficients) -> np.ndarray:
    """(a, b, c, α, β, γ) from (A, B, C, D) of ``1/d² = h²A + k²B + l²C + hlD`` (hexagonal: ``(h² + hk + k²)A + l²C``)."""
    a, b, c, d = coefficients
    reciprocal = np.diag([a, b, c]).astype(float)
    if bravais[0] == "h":
        reciprocal[1, 1] = a
        reciprocal[0, 1] = reciprocal[1, 0] = a / 2
    reciprocal[0, 2] = reciprocal[2, 0] = d / 2
    return cell_from_metric(np.linalg.inv(reciprocal))


def _cell_of(fit: PawleyFit) -> np.ndarray:
    """Conventional cell of a fit's reciprocal metric."""
    g = fit.metric
    return cell_from_metric(
        np.linalg.inv([[g[0], g[5] / 2, g[4] / 2], [g[5] / 2, g[1], g[3] / 2], [g[4] / 2, g[3] / 2, g[2]]])
    )


@dataclass(frozen=True)
class Profile:
    """A pattern on the common axis, normalised, background removed: y, mask (AXIS_POINTS,), Kα2 ratio and ln(λ2/λ1)."""

    y: np.ndarray
    mask: np.ndarray
    ratio: float = 0.5
    doublet: float = CU_DOUBLET


def _fits(found, profile: Profile) -> dict[int, list]:
    """Fits of the most likely cells: row in LATTICES → [(score of the lines, fit, candidate), …]."""
    out: dict[int, list] = {}
    total = 0
    best = max((c[3] for c in found.candidates), default=0.0)
    for row, cell, zero, score in found.candidates:
        if score < best - WITHIN or total >= ALL:
            break
        if len(out.get(row, [])) >= EACH:
            continue
        fit = pawley_fit(profile.y, profile.mask, LATTICES[row], cell, zero, ratio=profile.ratio, doublet=profile.doublet)
        if fit is not None:
            out.setdefault(row, []).append((score, fit, cell))
            total += 1
    return out


def pattern_evidence(peaks: np.ndarray, limits, profile: Profile) -> Evidence:
    """Search lattices for one peak list (n, ≥3) as `crystaldl.powder.prepare.find_peaks` gives it, and fit the profile."""
    found = lattice_scores(peaks)
    table, absences = np.tile(FLOOR, (len(LATTICES), 1)), np.zeros((2, EXTINCTION_GROUPS))
    facts = np.array([found.score.max(), found.weight, found.lines, 0.0, 0.0, 0.0])
    fits = _fits(found, profile)
    if not fits:
        return Evidence(found.score, table, facts, absences, _unfitted(found), np.zeros((0, 2)))
    misfit = min(fit.misfit for entries in fits.values() for _, fit, _ in entries)
    # the profile re-orders the cells of a lattice, and its log-likelihood joins the lines'
    value = lambda e: e[0] + PROFILE_WEIGHT * e[1].gain / misfit  # noqa: E731
    best = {row: max(entries, key=value) for row, entries in fits.items()}
    top = max(map(value, best.values()))
    intensities = {row: absence_evidence(fit) for row, (_, fit, _) in best.items()}
    for row, (_, fit, _) in best.items():
        allowed, groups = intensities[row]
        table[row] = fit.gain / misfit, allowed, logsumexp(list(groups.values())) - np.log(len(groups))
    rows = list(best)
    table[rows] = np.maximum(table[rows] - [*table[rows, :2].max(0), 0.0], FLOOR)
    order = sorted(best, key=lambda row: value(best[row]))
    for row in order:  # the best lattice has the last word where two share an extinction group (trigonal and hexagonal)
        if value(best[row]) > top - EXAMINED:
            _, fit, cell = best[row]
            seen = extinction_evidence(LATTICES[row], cell, fit.zero, peaks[:, :3], limits)
            for k, values in enumerate((intensities[row][1], seen)):
                absences[k, list(values)] = levelled(np.array(list(values.values())))
    winner = best[order[-1]][1]
    odd = unexplained_lines(peaks, winner)
    facts[3:] = winner.misfit, winner.explained, min(odd[:, 1].sum(), 3.0)
    lattices = tuple(
        Lattice(
            LATTICES[row],
            _cell_of(best[row][1]),
            float(value(best[row])),
            best[row][1].zero + best[row][1].displacement,
            winner if row == order[-1] else None,
        )
        for row in reversed(order)
    )
    return Evidence(found.score, table, facts, absences, lattices, odd)


def unexplained_lines(peaks: np.ndarray, fit: PawleyFit, reach: float = 0.8) -> np.ndarray:
    """Peaks farther than ``reach`` line widths from every line of the fit and standing out of its curve: (k, 2)."""
    q, height = np.exp(peaks[:, 0]), np.exp(peaks[:, 1])
    x = np.degrees(2 * np.arcsin(np.clip(q * REFERENCE_WAVELENGTH / 2, 0, 0.999)))
    theta = np.radians(fit.position / 2)
    lines = fit.position + fit.zero + fit.displacement * np.cos(theta)
    nearest = np.abs(x[:, None] - lines[None]).argmin(1)
    far = np.abs(x - lines[nearest]) > reach * fit.width[nearest]
    at = np.round((x - AXIS_START) / AXIS_STEP).astype(int) - fit.first
    inside = (at >= 0) & (at < len(fit.curve))
    calculated = np.where(inside, fit.curve[np.clip(at, 0, len(fit.curve) - 1)], 0.0)
    odd = far & inside & (height > 2.0 * calculated) & (np.exp(peaks[:, 2]) > 5.0)
    return np.stack([q[odd], height[odd]], 1)[np.argsort(-height[odd])]


def levelled(values: np.ndarray) -> np.ndarray:
    """Log-likelihoods relative to the best, ``v → -4 (1 - exp(v / 4))``."""
    return 4.0 * np.expm1((values - values.max()) / 4.0)


def _unfitted(found) -> tuple[Lattice, ...]:
    """Lattices that no fit could check, best first."""
    return tuple(
        Lattice(LATTICES[row], conventional_cell(LATTICES[row], cell), score, zero)
        for row, cell, zero, score in found.candidates
        if score > found.score.max() - MARGIN
    )


@lru_cache(maxsize=1)
def _announce_compilation() -> None:
    """Say why the very first search after an installation takes half a minute."""
    cached = Path(search_kernels.__file__).parent.glob("__pycache__/search_kernels.*.nbi")
    if "NUMBA_CACHE_DIR" not in os.environ and not any(cached):
        log.warning("compiling the lattice search, once per installation: about half a minute")


def _numpy(values) -> np.ndarray:
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


def gather_evidence(
    prepared, y, mask, ratio, doublet: float | np.ndarray = CU_DOUBLET, workers: int | None = None
) -> list[Evidence]:
    """Evidence for a batch; search and fits release the GIL and run on all cores.

    Parameters
    ----------
    prepared : mapping with ``peaks`` (B, n, 4), ``peak_mask`` (B, n) and ``limits`` (B, 2)
    y, mask : (B, AXIS_POINTS) normalised pattern with Kα2, and which points were measured
    ratio : (B,) Kα2/Kα1
    doublet : float or (B,), ln(λ2/λ1)
    """
    peaks, peak_mask, limits = (_numpy(prepared[k]) for k in ("peaks", "peak_mask", "limits"))
    y, mask, ratio = _numpy(y), _numpy(mask), _numpy(ratio)
    doublet = np.broadcast_to(_numpy(doublet), ratio.shape)
    _announce_compilation()
    jobs = [
        (p[m].astype(float), r, Profile(a, b, float(c), float(d)))
        for p, m, r, a, b, c, d in zip(peaks, peak_mask, limits, y, mask, ratio, doublet, strict=True)
    ]
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(jobs) == 1:
        return [pattern_evidence(*job) for job in jobs]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda job: pattern_evidence(*job), jobs))
