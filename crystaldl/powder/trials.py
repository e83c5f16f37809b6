"""Trial lattices of a prepared pattern: of all fourteen Bravais lattices, from one list of lines, scored alike.

What the quick search proposes (`indexing`, intensities count) and what autoindexing finds (`autoindex`, positions count)
is refined on the same lines, raised to every symmetry its metric bears, and scored by the log-likelihood of `autoindex`;
the best of every kind once more with absent lines in mind (`allowed_lines`). Cells of low symmetry are looked for only where
no lattice of high symmetry explains the lines convincingly.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from .allowed_lines import allowed_score
from .autoindex import (
    SYSTEMS,
    IndexOptions,
    Lattice,
    LineTable,
    Pool,
    any_lattice,
    common_zero,
    convincing,
    distinct,
    high_symmetry,
    raised,
    ranked,
    sift,
    unexplained,
)
from .bravais import BRAVAIS, cell_of, derivative_index, metric_of, niggli_cell, sparser
from .indexing import LATTICES, LatticeScores, excess_width, lattice_scores, reliability
from .prepare import AXIS_STEP, REFERENCE_WAVELENGTH

__all__ = ["Trial", "Trials", "line_table_of", "metric_of_search", "side_by_side", "trial_lattices"]

_OPTIONS = IndexOptions(impurities=3.0)
#: lattices of one kind that are examined for absent lines: how many, and how far behind the best of that kind
EXAMINED, NEAR = 4, 10.0
#: those of one kind that are handed on
EACH = 2
#: weight of the lines that a larger cell has to explain beyond those of a smaller one
WORTH = 0.8
#: error of a line's position as a share of its excess width
BLEND = 0.3
#: zero shift in degrees worth a second search
AGAIN = 0.02
_HIGH = tuple(s for s in SYSTEMS if s not in ("monoclinic", "triclinic"))


@dataclass(frozen=True, eq=False)
class Trial:
    """A lattice as the search leaves it: ``metric`` (6,) coefficients of h², k², l², kl, hl, hk in 1/d² (Å⁻²) of the
    conventional cell, ``zero`` shift in degrees, ``score`` log-likelihood ratio less the price of free parameters.

    ``allowed`` is this score when only the lines that extinction groups allow are expected, ``groups`` the log-likelihood of
    each of them relative to the best.
    """

    bravais: str
    metric: np.ndarray
    zero: float
    score: float
    allowed: float
    groups: dict[int, float]


@dataclass(frozen=True, eq=False)
class Trials:
    """Trial lattices of a pattern.

    Attributes
    ----------
    found : dict of Bravais lattice → tuple of Trial, the most likely different lattices of each, best `allowed` first
    lead : float, score of the best lattice less that of the best different one
    """

    found: dict[str, tuple[Trial, ...]]
    lead: float

    def score(self) -> float:
        """The best score of all; 0 where nothing was found."""
        return max((own[0].score for own in self.found.values()), default=0.0)

    def allowed(self) -> float:
        """The best score with absent lines in mind; 0 where nothing was found."""
        return max((own[0].allowed for own in self.found.values()), default=0.0)


def metric_of_search(lattice: str, cell) -> np.ndarray:
    """(6,) coefficients of h², k², l², kl, hl, hk from the (A, B, C, D) of the quick search."""
    a, b, c, d = cell
    if lattice[0] == "h":
        return np.array([a, a, c, 0.0, 0.0, a])
    return np.array([a, b, c, 0.0, d, 0.0])


def line_table_of(peaks: np.ndarray) -> LineTable:
    """Lines of the autoindexing from the peak list (n, 4) of `crystaldl.powder.line_scales.search_lines`."""
    order = np.argsort(peaks[:, 0])
    ln_q, ln_height, ln_significance, ln_width = peaks[order, :4].T
    two_theta = np.degrees(2 * np.arcsin(np.clip(np.exp(ln_q) * REFERENCE_WAVELENGTH / 2, 0, 0.999)))
    # the error of a maximum is about its width over the ratio of signal to noise, and more where it may be a blend
    sigma = np.clip(AXIS_STEP * np.exp(ln_width - ln_significance), 0.002, 0.05)
    sigma = np.hypot(sigma, np.minimum(BLEND * AXIS_STEP * excess_width(ln_height, ln_width), 0.2))
    return LineTable(two_theta, sigma, reliability(ln_q, ln_height, ln_significance), REFERENCE_WAVELENGTH, order)


def _seeds(quick: LatticeScores) -> Pool:
    """The candidates of the quick search."""
    if not quick.candidates:
        return Pool()
    names = [LATTICES[row] for row, *_ in quick.candidates]
    g = np.array([metric_of_search(name, cell) for name, (_, cell, _, _) in zip(names, quick.candidates, strict=True)])
    zero, score = (np.array([c[k] for c in quick.candidates]) for k in (2, 3))
    return Pool(g, zero, np.array(names, "U2"), score)


def side_by_side(pool: Executor | None, *jobs):
    """Results of functions without arguments, run on the threads of a pool where there is one."""
    return [job() for job in jobs] if pool is None else list(pool.map(lambda job: job(), jobs))


def trial_lattices(peaks: np.ndarray, pool: Executor | None = None) -> tuple[LatticeScores, Trials]:
    """Search and score lattices: what the quick search says, and all trials refined together.

    Parameters
    ----------
    peaks : (n, 4) as `crystaldl.powder.line_scales.search_lines` gives them
    pool : Executor, optional
        Threads for parts of the search; they change nothing but the time.
    """
    if len(peaks) < 4:
        return lattice_scores(peaks), Trials({}, 0.0)
    lines = line_table_of(peaks)
    few = lines.head(_OPTIONS.lines)
    quick, high = side_by_side(pool, lambda: lattice_scores(peaks), lambda: high_symmetry(few, 0.0, _HIGH))
    cells = sift(_seeds(quick) + high, lines, _OPTIONS)
    lifted = raised(cells, lines, _OPTIONS) if len(cells) else cells
    found = ranked(lifted, _OPTIONS)
    if not convincing(found, lines, _OPTIONS, 40.0, 6.0):
        cells += _low_symmetry(lines, few, 0.0, pool)
        lifted = raised(cells, lines, _OPTIONS) if len(cells) else cells
        found = ranked(lifted, _OPTIONS)
        zero = common_zero(found)  # with it, the right lattice may come out
        if abs(zero) > AGAIN and not convincing(found, lines, _OPTIONS, 30.0, 8.0):
            cells += _low_symmetry(lines, few, zero, pool)
            lifted = raised(cells, lines, _OPTIONS)
            found = ranked(lifted, _OPTIONS)
    lifted += _smaller(found, lines)
    found = ranked(lifted, _OPTIONS)
    lead = found[0].score - found[1].score if len(found) > 1 else 0.0
    return quick, Trials(_trials(lifted, lines), lead)


def _low_symmetry(lines: LineTable, few: LineTable, zero: float, pool: Executor | None) -> Pool:
    """Triclinic and monoclinic cells from lines with a zero shift taken off."""
    parts = side_by_side(
        pool,
        lambda: sift(any_lattice(lines, zero, _OPTIONS), lines, _OPTIONS),
        lambda: sift(high_symmetry(few, zero, ("monoclinic",)), lines, _OPTIONS),
    )
    return parts[0] + parts[1]


def _trials(pool: Pool, lines: LineTable) -> dict[str, tuple[Trial, ...]]:
    """The best lattices of every kind.

    Superlattices of a better one of the same family that explain no more lines are left out; one of higher symmetry stays,
    because it has fewer parameters to explain them with.
    """
    trials = [trial for name in BRAVAIS for trial in _of_lattice(pool, name, lines)]
    kept: list[tuple[Trial, np.ndarray, float]] = []
    for trial in sorted(trials, key=lambda t: -t.allowed):
        cell = cell_of(trial.metric)
        niggli = niggli_cell(cell, "PIFCR"[BRAVAIS[trial.bravais][1]])
        missed = unexplained(Lattice(trial.bravais, cell, niggli, trial.zero, trial.score), lines)
        weight = float(lines.weight[missed].sum())
        family = [entry for entry in kept if entry[0].bravais[0] == trial.bravais[0]]
        if not any(weight > w - WORTH and derivative_index(niggli, small) for _, small, w in family):
            kept.append((trial, niggli, weight))
    found: dict[str, tuple[Trial, ...]] = {}
    for trial, *_ in kept:
        found[trial.bravais] = (*found.get(trial.bravais, ()), trial)[:EACH]
    return found


def _of_lattice(pool: Pool, name: str, lines: LineTable) -> list[Trial]:
    """The best lattices of one kind."""
    own = pool[pool.bravais == name]
    if not len(own):
        return []
    best = distinct(own[own.score > own.score.max() - NEAR], EXAMINED)[0]
    scored = (allowed_score(name, g, float(z), lines, _OPTIONS) for g, z in zip(best.g, best.zero, strict=True))
    return [
        Trial(name, best.g[i], float(best.zero[i]), float(best.score[i]), *found) for i, found in enumerate(scored)
    ]


def _smaller(found, lines: LineTable) -> Pool:
    """Smaller cells than the best ones whose lines suffice, in every symmetry they bear."""
    cells = [(lattice.zero, cell) for lattice in found[:4] for n in (2, 3) for cell in sparser(lattice.niggli, n)]
    if not cells:
        return Pool()
    g = np.array([metric_of(cell) for _, cell in cells])
    trials = Pool(g, np.array([zero for zero, _ in cells]), np.full(len(g), "aP"), np.zeros(len(g)))
    trials = trials.improve(lines.head(2 * _OPTIONS.lines), _OPTIONS, (0.012, 0.008), 3.0, 4)
    trials = trials[trials.score > 0.6 * found[0].score].best(8)
    return raised(trials, lines, _OPTIONS, 8) if len(trials) else trials

