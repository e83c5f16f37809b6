"""The search's side of a classification: lattices that explain the lines, checked against the whole profile.

The peak list proposes cells of every Bravais lattice (`quick_search`, `trials`); the best of them are fitted to the pattern
itself (`pawley`), which weighs every point, refines cell, zero shift and displacement, and yields the intensities from
which absent lines are judged (`absences`, `extinction`).
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from ...physics.lattice import cell_volume
from ...physics.symmetry import BRAVAIS_LATTICES
from ..line_scales import search_lines
from ..prepare import AXIS_START, AXIS_STEP, CU_DOUBLET, REFERENCE_WAVELENGTH, common_axis, strip_doublet
from . import search_kernels
from .absences import absence_evidence
from .bravais import LATTICE_POINTS, cell_of, shortest_vector
from .deep_search import side_by_side
from .extinction import extinction_evidence
from .pawley import PawleyFit, compared, pawley_fit
from .pools import Pool
from .quick_search import LATTICES, MARGIN, LatticeScores
from .sieve import make_sieve
from .trials import LEVEL, NOTHING, Trial, Trials, metric_of_search, trial_lattices, worth_fitting

log = logging.getLogger(__name__)

EXTINCTION_GROUPS = 99
#: the arrays of `Evidence`, in the order the arbiter reads them
ARRAYS = ("scores", "profile", "facts", "absences")
#: what speaks for extinction groups: rows of `Evidence.absences`
ABSENCES = ("intensities", "seen", "positions")
#: how much a lattice can be behind in the scores of positions
FAR = 30.0
#: how much one unit of the quick search's, of the profile's and of the sieve's log-likelihood counts beside that of the
#: positions
QUICK_WEIGHT, PROFILE_WEIGHT, SIEVE_WEIGHT = 0.5, 0.15, 0.15
#: lattices whose absent lines are examined: those within this combined score of the best
EXAMINED = 20.0


@dataclass(frozen=True, eq=False)
class Lattice:
    """A lattice that explains the lines.

    Attributes
    ----------
    bravais : str, e.g. ``"oP"``
    cell : (6,) float, a, b, c in Å and alpha, beta, gamma in degrees (conventional; hexagonal axes for hP and hR)
    score : float, log-likelihood ratio against chance: positions and intensities of the lines, and the profile's share
    zero : float, zero shift in degrees: observed minus true 2θ at low angle, displacement included
    fit : PawleyFit or None, the fit of the profile; a classification keeps it for its first lattice alone
    """

    bravais: str
    cell: np.ndarray
    score: float
    zero: float
    fit: PawleyFit | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Evidence:
    """What the lattice search found for one pattern; rows in the order of BRAVAIS_LATTICES.

    Attributes
    ----------
    scores : (14, 3) float, log-likelihoods relative to the best lattice, ≤ 0: of the quick search (intensities count; -10
        where nothing near the best was found), of the closer one (positions count; -30 there), of the latter when only the
        lines that extinction groups allow are expected
    profile : (14, 10) float, from the fit of the profile: log-likelihood gained by the lines and that of their intensities
        with all of them allowed, each relative to the best lattice, ≤ 0; what absences add to the latter; 1 (0 and the
        floor elsewhere for lattices that were not fitted); explained share relative to the best, ≤ 0; smallest misfit over
        this one less 1, ≤ 0; ln of the number of lines; ln of the primitive cell's volume in Å³; ln of the shortest lattice
        vector in Å; score of the sieve relative to the best, ≤ 0
    facts : (8,) float: best quick score, summed weight of the lines, number of lines, misfit and explained share of the best
        fit, summed height of the lines it does not explain, best score of the closer search, its lead over other lattices
    absences : (3, 99) float, log-likelihood of extinction groups relative to the best of their lattice, from intensities,
        from lines seen or not, and from the positions of all lines, levelled off at -4 (one odd line must not decide); 0
        where not examined
    lattices : tuple of Lattice, best first
    unexplained : (k, 2) float, lines that the best lattice does not explain: 1/d in Å⁻¹, height relative to the strongest
    peaks : (n, 4) float, the lines that were searched, as `crystaldl.powder.line_scales.search_lines` gives them
    """

    scores: np.ndarray
    profile: np.ndarray
    facts: np.ndarray
    absences: np.ndarray
    lattices: tuple[Lattice, ...]
    unexplained: np.ndarray
    peaks: np.ndarray


FLOOR = np.array([-100.0, -100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -100.0])
#: columns that are relative to the best lattice
RELATIVE = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0, 1], bool)


@dataclass(frozen=True)
class Profile:
    """A pattern on the common axis, normalised, background removed: y, mask (AXIS_POINTS,), Kα2 ratio and ln(λ2/λ1)."""

    y: np.ndarray
    mask: np.ndarray
    ratio: float = 0.5
    doublet: float = CU_DOUBLET

    def fit(self, trial: Trial) -> PawleyFit | None:
        """The trial lattice fitted to the pattern."""
        return pawley_fit(
            self.y, self.mask, trial.bravais, trial.metric, trial.zero, ratio=self.ratio, doublet=self.doublet
        )


def _scores(quick: LatticeScores, trials: Trials, chosen: dict[int, Trial]) -> np.ndarray:
    """(14, 3) as in `Evidence`; a search that found nothing says nothing: zeros."""
    out = np.zeros((len(BRAVAIS_LATTICES), 3))
    if quick.candidates:
        out[:, 0] = -MARGIN
        out[[BRAVAIS_LATTICES.index(name) for name in LATTICES], 0] = quick.score - quick.score.max()
    if trials.found:
        out[:, 1:] = -FAR
        own = {BRAVAIS_LATTICES.index(name): of_kind[0] for name, of_kind in trials.found.items()} | chosen
        for row, trial in own.items():
            out[row, 1:] = trial.score - trials.score(), trial.allowed - trials.allowed()
    return np.maximum(out, [-MARGIN, -FAR, -FAR])


@dataclass(frozen=True, eq=False)
class Findings:
    """What the search of one pattern yields before it is weighed: scores of the quick search, trials, and fits of the best
    trials, a tuple of (Trial, PawleyFit)."""

    quick: LatticeScores
    trials: Trials
    fits: tuple


def find_lattices(peaks: np.ndarray, profile: Profile, pool: Executor | None = None, known: Pool = NOTHING) -> Findings:
    """Search lattices for one peak list (n, 4) as `crystaldl.powder.line_scales.search_lines` gives it, and fit the profile.

    The threads of ``pool`` change nothing but the time. ``known``: cells of crystals that the pattern looks like.
    """
    sieve = partial(make_sieve, profile.y, profile.mask, peaks, profile.ratio, profile.doublet)
    quick, trials = trial_lattices(peaks, sieve, pool, known)
    found = list(trials.found.values())
    for row, cell, zero, score in () if found else quick.candidates:  # the closer search had too few lines
        name = LATTICES[row]
        found.append((Trial(name, metric_of_search(name, cell), zero, score, score, {}),))
    trial = worth_fitting(t for own in found for t in own)
    fits = compared(side_by_side(pool, *(partial(profile.fit, t) for t in trial)), profile.y, profile.mask)
    return Findings(quick, trials, tuple((t, fit) for t, fit in zip(trial, fits, strict=True) if fit is not None))


def _chosen(fits, misfit: float) -> tuple[dict[int, tuple[Trial, PawleyFit]], dict[int, float]]:
    """The best lattice of every kind, row in BRAVAIS_LATTICES → (trial, fit), and the value of each."""
    out, value = {}, {}
    most, best = max(t.profile for t, _ in fits), max(fit.gain for _, fit in fits)
    for t, fit in fits:
        row = BRAVAIS_LATTICES.index(t.bravais)
        # lines of another phase, which a large cell explains with ease, must not decide
        behind = max(t.profile - most, -LEVEL), max((fit.gain - best) / max(misfit, 1.0), -LEVEL)
        new = t.allowed + SIEVE_WEIGHT * behind[0] + PROFILE_WEIGHT * behind[1]
        if new > value.get(row, -np.inf):
            out[row], value[row] = (t, fit), new
    return out, value


def weigh(findings: Findings, peaks: np.ndarray, limits) -> Evidence:
    """What the findings say; ``limits``: ln(1/d) of the first and last measured point."""
    quick, trials, fits = findings.quick, findings.trials, findings.fits
    table, absences = np.tile(FLOOR, (len(BRAVAIS_LATTICES), 1)), np.zeros((len(ABSENCES), EXTINCTION_GROUPS))
    top = trials.score()
    facts = np.array([quick.score.max(), quick.weight, quick.lines, 0.0, 0.0, 0.0, top, min(trials.lead, FAR)])
    if not fits:
        return Evidence(_scores(quick, trials, {}), table, facts, absences, (), np.zeros((0, 2)), peaks)
    misfit = min(fit.misfit for _, fit in fits)
    chosen, value = _chosen(fits, misfit)
    scores = _scores(quick, trials, {row: trial for row, (trial, _) in chosen.items()} if trials.found else {})
    value = {row: v + QUICK_WEIGHT * scores[row, 0] for row, v in value.items()}
    intensities = {row: absence_evidence(fit) for row, (_, fit) in chosen.items()}
    for row, (trial, fit) in chosen.items():
        table[row] = _profile_row(trial, fit, misfit, *intensities[row])
    rows = list(chosen)
    best = np.where(RELATIVE, table[rows].max(0), 0.0)
    table[rows] = np.maximum(table[rows] - best, np.where(FLOOR < 0, FLOOR, -np.inf))
    order = sorted(chosen, key=value.get)
    for row in order:  # the best lattice has the last word where two share an extinction group (trigonal and hexagonal)
        if value[row] > value[order[-1]] - EXAMINED:
            trial, fit = chosen[row]
            seen = extinction_evidence(fit.lattice, fit.metric, fit.zero, peaks[:, :3], limits)
            for k, values in enumerate((intensities[row][1], seen, trial.groups)):
                if values:
                    absences[k, list(values)] = levelled(np.array(list(values.values())))
    winner = chosen[order[-1]][1]
    odd = unexplained_lines(peaks, winner)
    facts[3:6] = winner.misfit, winner.explained, min(odd[:, 1].sum(), 3.0)
    shift = QUICK_WEIGHT * quick.score.max()  # scores are against chance, values relative to the best lines
    lattices = tuple(_lattice(chosen[row][1], value[row] + shift) for row in reversed(order))
    return Evidence(scores, table, facts, absences, lattices, odd, peaks)


def pattern_evidence(
    peaks: np.ndarray, limits, profile: Profile, pool: Executor | None = None, known: Pool = NOTHING
) -> Evidence:
    """`find_lattices` and `weigh`."""
    return weigh(find_lattices(peaks, profile, pool, known), peaks, limits)


def _profile_row(trial: Trial, fit: PawleyFit, misfit: float, allowed: float, groups: dict[int, float]) -> list[float]:
    """What the arbiter reads of a fit, see `Evidence`; not yet relative to the best."""
    volume = cell_volume(cell_of(fit.metric)) / LATTICE_POINTS[fit.lattice[1]]
    shortest = shortest_vector(fit.metric[None], [fit.lattice])[0]
    absent = np.logaddexp.reduce(list(groups.values())) - np.log(len(groups))
    return [fit.gain / max(misfit, 1.0), allowed, absent, 1.0, fit.explained, misfit / fit.misfit - 1.0, np.log(len(fit.intensity)),
            np.log(volume), np.log(shortest), trial.profile]  # fmt: skip


def _lattice(fit: PawleyFit, score: float) -> Lattice:
    return Lattice(fit.lattice, cell_of(fit.metric), float(score), fit.zero + fit.displacement, fit)


def decided(evidence: Evidence, probability: np.ndarray) -> tuple[tuple[Lattice, ...], np.ndarray]:
    """Lattices in the order of their probability, the first with its fit, and the lines foreign to the first.

    Parameters
    ----------
    probability : (14,) of the Bravais lattices, all evidence weighed
    """
    if not evidence.lattices:
        return (), evidence.unexplained
    first, *others = sorted(evidence.lattices, key=lambda c: -probability[BRAVAIS_LATTICES.index(c.bravais)])
    odd = evidence.unexplained if first is evidence.lattices[0] else unexplained_lines(evidence.peaks, first.fit)
    return (first, *(replace(c, fit=None) for c in others)), odd


def unexplained_lines(peaks: np.ndarray, fit: PawleyFit, reach: float = 0.8) -> np.ndarray:
    """Peaks farther than ``reach`` line widths from every line of the fit and standing out of its curve: (k, 2)."""
    q, height = np.exp(peaks[:, 0]), np.exp(peaks[:, 1])
    x = np.degrees(2 * np.arcsin(np.clip(q * REFERENCE_WAVELENGTH / 2, 0, 0.999)))
    lines = fit.observed(fit.q2)
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


@lru_cache(maxsize=1)
def _announce_compilation() -> None:
    """Say why the very first search after an installation takes a minute."""
    cached = Path(search_kernels.__file__).parent.glob("__pycache__/search_kernels.*.nbi")
    if "NUMBA_CACHE_DIR" not in os.environ and not any(cached):
        log.warning("compiling the lattice search, once per installation: about a minute")


def _numpy(values) -> np.ndarray:
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


def listed_lines(y: np.ndarray, mask: np.ndarray, ratio: np.ndarray, doublet: np.ndarray) -> list[np.ndarray]:
    """Peak lists of normalised patterns, Kα2 taken off first."""
    z = np.empty_like(y)
    for value in np.unique(doublet):
        rows = doublet == value
        z[rows] = strip_doublet(torch.as_tensor(y[rows]), torch.as_tensor(ratio[rows]), float(value)).numpy()
    return [search_lines(row, measured) for row, measured in zip(z * mask, mask, strict=True)]


def _limits(mask: np.ndarray) -> np.ndarray:
    """ln(1/d) of the first and last measured point."""
    measured = np.flatnonzero(mask > 0)
    ends = common_axis()[measured[[0, -1]]]
    return np.log(2.0 * np.sin(np.radians(ends / 2)) / REFERENCE_WAVELENGTH)


def gather_evidence(y, mask, ratio, doublet: float | np.ndarray = CU_DOUBLET, workers: int | None = None, known=None):
    """Evidence for a batch, a list; search and fits release the GIL and run on all cores.

    Parameters
    ----------
    y, mask : (B, AXIS_POINTS) normalised pattern with Kα2, and which points were measured
    ratio : (B,) Kα2/Kα1
    doublet : float or (B,), ln(λ2/λ1)
    known : sequence of Pool, cells of crystals that each pattern looks like
    """
    y, mask, ratio = _numpy(y), _numpy(mask), _numpy(ratio)
    doublet = np.broadcast_to(_numpy(doublet), ratio.shape)
    _announce_compilation()
    jobs = [
        (p, _limits(b), Profile(a, b, float(c), float(d)))
        for p, a, b, c, d in zip(listed_lines(y, mask, ratio, doublet), y, mask, ratio, doublet, strict=True)
    ]
    hints = list(known) if known is not None else [NOTHING] * len(jobs)
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        return [pattern_evidence(*job, None, hint) for job, hint in zip(jobs, hints, strict=True)]
    with ThreadPoolExecutor(workers) as pool:
        if len(jobs) == 1:
            return [pattern_evidence(*jobs[0], pool, hints[0])]
        return list(pool.map(lambda job, hint: pattern_evidence(*job, None, hint), jobs, hints))
