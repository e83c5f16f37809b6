"""Trial lattices of a prepared pattern: of all fourteen Bravais lattices, from one list of lines, scored alike.

What the quick search proposes (`quick_search`, intensities count) and what autoindexing finds (`trial_cells`, positions count)
is refined on the same lines, raised to every symmetry its metric bears, and scored by the log-likelihood of `judgement`;
the best of every kind once more with absent lines in mind (`allowed_lines`). Cells of low symmetry are looked for only where
no lattice of high symmetry explains the lines convincingly.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from ..prepare import AXIS_STEP, REFERENCE_WAVELENGTH
from . import autoindex_kernels as kernels
from .allowed_lines import allowed_score
from .bravais import BRAVAIS, cell_of, derivative_index, metric_of, niggli_cell, sparser
from .coincidences import exact_multiples, prices
from .deep_search import as_primitive, cubic, descended, kin, lifted, looked_at, low_symmetry, side_by_side
from .judgement import convincing, distinct, raised, ranked, sift, unexplained
from .pools import FLOORS, PRICE, SYSTEMS, TAIL, IndexOptions, Lattice, LineTable, Pool
from .quick_search import LATTICES, LatticeScores, excess_width, lattice_scores, reliability
from .sieve import Sieve
from .trial_cells import boxes, high_symmetry

__all__ = ["Trial", "Trials", "line_table_of", "metric_of_search", "trial_lattices", "worth_fitting"]

_OPTIONS = IndexOptions(impurities=3.0, zero_limit=0.15, hold=False)
#: lattices of one kind that are examined for absent lines, and how far (sieve's score) behind the best of all a kind may be
EXAMINED, HOPELESS = 3, 200.0
#: how far behind the best of its kind, by the lines, a lattice may be
NEAR = 10.0
#: those of one kind that are handed on
EACH = 2
#: how much a unit of the sieve's score counts beside the likelihood of the lines, and how far behind the best it can be: the
#: lines of another phase, which a large cell explains with ease, must not decide
PROFILE_WEIGHT, LEVEL = 0.3, 100.0
#: trials that are fitted to the profile: at most, and how far behind the best
ALL, WITHIN = 14, 20.0
#: different cells whose kin is looked at, and whose symmetry is lowered
KIN, DESCENDED = 30, 4
#: weight of the lines that a larger cell has to explain beyond those of a smaller one
WORTH = 0.8
#: or the score of the sieve beyond that of the smaller one
BEYOND = 10.0
#: error of a line's position as a share of its excess width
BLEND = 0.3
#: zero shift in degrees of a second search, and gain relative to that of the listed lines that makes it needless
ZERO, SETTLED = 0.08, 1.08
#: score of the lines without which no cell of low symmetry ends a search
CREDIBLE = 12.0
#: cells of each lattice of high symmetry that the profile looks at, and different ones that it keeps
MANY, RAW = 100, 24
#: cubic cells of the many that the profile looks at
CUBIC = 8
NOTHING = Pool()
_HIGH = tuple(s for s in SYSTEMS if s not in ("monoclinic", "triclinic"))


@dataclass(frozen=True, eq=False)
class Trial:
    """A lattice as the search leaves it: ``metric`` (6,) coefficients of h², k², l², kl, hl, hk in 1/d² (Å⁻²) of the
    conventional cell, ``zero`` shift in degrees, ``score`` log-likelihood ratio less the price of free parameters.

    ``allowed`` is this score when only the lines that extinction groups allow are expected, ``groups`` the log-likelihood of
    each of them relative to the best; ``profile`` the score of `sieve.Sieve.refine` relative to the best, 0 where the lines
    alone convince.
    """

    bravais: str
    metric: np.ndarray
    zero: float
    score: float
    allowed: float
    groups: dict[int, float]
    profile: float = 0.0

    @property
    def value(self) -> float:
        """By which trials are compared: lines and profile together."""
        return self.allowed + PROFILE_WEIGHT * max(self.profile, -LEVEL)


@dataclass(frozen=True, eq=False)
class Trials:
    """Trial lattices of a pattern.

    Attributes
    ----------
    found : dict of Bravais lattice → tuple of Trial, the most likely different lattices of each, best first
    lead : float, value of the best lattice less that of the next
    """

    found: dict[str, tuple[Trial, ...]]
    lead: float

    def score(self) -> float:
        """The best score of the lines; 0 where nothing was found."""
        return max((t.score for own in self.found.values() for t in own), default=0.0)

    def allowed(self) -> float:
        """The best score with absent lines in mind; 0 where nothing was found."""
        return max((t.allowed for own in self.found.values() for t in own), default=0.0)


def worth_fitting(trials) -> list[Trial]:
    """The best trials, by lines and profile: those that are fitted to the pattern."""
    found = sorted(trials, key=lambda t: -t.value)
    lowest = found[0].value - WITHIN - PROFILE_WEIGHT * LEVEL * any(t.profile < 0 for t in found) if found else 0.0
    return [t for t in found[:ALL] if t.value > lowest]


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
    weight = reliability(ln_q, ln_height, ln_significance)
    return LineTable(two_theta, sigma, weight, REFERENCE_WAVELENGTH, order, np.exp(ln_height))


def _seeds(quick: LatticeScores) -> Pool:
    """The candidates of the quick search."""
    if not quick.candidates:
        return Pool()
    names = [LATTICES[row] for row, *_ in quick.candidates]
    g = np.array([metric_of_search(name, cell) for name, (_, cell, _, _) in zip(names, quick.candidates, strict=True)])
    zero, score = (np.array([c[k] for c in quick.candidates]) for k in (2, 3))
    return Pool(g, zero, np.array(names, "U2"), score)


def trial_lattices(
    peaks: np.ndarray,
    sieve: Callable[[], Sieve],
    pool: Executor | None = None,
    known: Pool = NOTHING,
    any_edge: bool = False,
) -> tuple[LatticeScores, Trials]:
    """Search lattices by the lines and, where these are not convincing, by the profile: the quick search, and all trials.

    Parameters
    ----------
    peaks : (n, 4) as `crystaldl.powder.line_scales.search_lines` gives them
    sieve : callable that makes the sieve of the pattern
    pool : Executor, optional
        Threads for parts of the search; they change nothing but the time.
    known : Pool
        Cells of crystals that the pattern looks like. One that explains the profile spares the search for low symmetry.
    any_edge : bool
        Whether cubic cells of all edges are tried on the profile, see `deep_search.cubic`.
    """
    if len(peaks) < 4:
        return lattice_scores(peaks), Trials({}, 0.0)
    lines = line_table_of(peaks)
    few = lines.head(_OPTIONS.lines)
    quick, high = side_by_side(pool, lambda: lattice_scores(peaks), lambda: high_symmetry(few, 0.0, _HIGH, count=MANY))
    few_high = sum((high[high.bravais == b].best(24) for b in BRAVAIS), Pool())
    cells = sift(_seeds(quick) + few_high + known, lines, _OPTIONS)
    by_lines = raised(cells, lines, _OPTIONS) if len(cells) else cells
    found = ranked(by_lines, _OPTIONS)
    if convincing(found, lines, _OPTIONS, 40.0, 6.0, 6.0):
        by_lines += _smaller(found, lines)
        trials = _trials([trial for name in BRAVAIS for trial in _of_lines(by_lines, name, lines)], lines)
    else:
        judged = _by_profile(high, by_lines, lines, sieve(), pool, known, any_edge)
        trials = _trials([trial for name in BRAVAIS for trial in _of_profile(judged, name, lines)], lines)
    order = sorted((t for own in trials.values() for t in own), key=lambda t: -t.value)
    return quick, Trials(trials, order[0].value - order[1].value if len(order) > 1 else 0.0)


def _by_profile(
    high: Pool, by_lines: Pool, lines: LineTable, sieve: Sieve, pool: Executor | None, known: Pool, any_edge: bool
) -> Pool:
    """Cells of all systems, those of low symmetry looked for in earnest, refined and scored by the profile.

    ``high``: cells of high symmetry as they were found; where lines are few or overlap, a poor one by the lines may be right.
    """
    few = lines.head(_OPTIONS.lines)
    judged, _ = sieve.refine(distinct(by_lines, 40)[0], 4, 3.0)
    judged += looked_at(high + boxes(lines, 0.0, _OPTIONS), lines, sieve, RAW)
    if any_edge:
        judged += cubic(lines, sieve, CUBIC)
    near = known + known.improve(lines.head(2 * _OPTIONS.lines), _OPTIONS, (0.012, 0.008), 3.0, 4)
    own, gain = sieve.refine(near, 4, 3.0)
    judged += own
    if not _settled(own, gain, sieve):
        judged += low_symmetry(lines, few, 0.0, sieve, _OPTIONS, pool)
        judged, gain = sieve.refine(judged, 0, 3.0)
        zero = float(np.median(judged.best(5).zero)) if len(judged) else 0.0  # even wrong cells agree on its sign
        if not _settled(judged, gain, sieve, lines):
            zero = float(np.copysign(ZERO, zero))
            judged += low_symmetry(lines, few, zero, sieve, _OPTIONS, pool)
            judged += looked_at(high_symmetry(few, zero, _HIGH, count=MANY), lines, sieve, RAW)
    judged = _completed(judged, sieve)
    own, _ = sieve.refine(by_lines.best(200), 2, sieve.temper(_most(judged, sieve)))
    return judged + own


def _settled(pool: Pool, gain: np.ndarray, sieve: Sieve, lines: LineTable | None = None) -> bool:
    """Whether a cell explains the pattern as well as the right one should: clearly better than the listed lines do.

    Where ``lines`` are given, one below tetragonal has to predict them, too, not only to have reflections where intensity is.
    """
    if not len(pool):
        return False
    best = int(np.argmax(pool.score))
    if pool.bravais[best][0] not in "amo":
        return gain[best] > sieve.listed
    credible = lines is None or _by_lines(pool[[best]], lines)[0] > CREDIBLE
    return credible and gain[best] > SETTLED * sieve.listed


def _most(pool: Pool, sieve: Sieve) -> float:
    """The largest gain of a pool."""
    return max(sieve.refine(pool, 0, 1.0)[1].max(initial=0.0), 0.0)


def _completed(pool: Pool, sieve: Sieve) -> Pool:
    """The best cells of a pool with their kin, in every symmetry, scored with one T."""
    temper = sieve.temper(_most(pool, sieve))
    pool, _ = sieve.refine(pool, 0, temper)
    cells = kin(as_primitive(pool.best(300), KIN), sieve, temper)
    best, _ = sieve.refine(lifted(cells), 6, temper)
    lower, _ = sieve.refine(descended(distinct(best, DESCENDED)[0]), 5, temper)
    best, gain = sieve.refine(pool.best(60) + best + lower, 4, temper)
    return sieve.refine(best, 0, min(temper, sieve.temper(gain.max(initial=0.0))))[0]


def _trials(trials: list[Trial], lines: LineTable) -> dict[str, tuple[Trial, ...]]:
    """The best lattices of every kind.

    Superlattices of a better one of the same family that explain no more lines and no more of the profile are left out;
    one of higher symmetry stays, because it has fewer parameters to explain them with.
    """
    kept: list[tuple[Trial, np.ndarray, float]] = []
    more = lambda trial, other: trial.profile > other.profile + BEYOND  # noqa: E731
    for trial in sorted(_less_coincidences(trials), key=lambda t: -t.value):
        cell, niggli = cell_of(trial.metric), _niggli(trial)
        missed = unexplained(Lattice(trial.bravais, cell, niggli, trial.zero, trial.score), lines)
        weight = float(lines.weight[missed].sum())
        family = [entry for entry in kept if entry[0].bravais[0] == trial.bravais[0]]
        if not any(weight > w - WORTH and not more(trial, t) and derivative_index(niggli, c) for t, c, w in family):
            kept.append((trial, niggli, weight))
    found: dict[str, tuple[Trial, ...]] = {}
    for trial, *_ in kept:
        found[trial.bravais] = (*found.get(trial.bravais, ()), trial)[:EACH]
    return found


def _niggli(trial: Trial) -> np.ndarray:
    return niggli_cell(cell_of(trial.metric), "PIFCR"[BRAVAIS[trial.bravais][1]])


def _less_coincidences(trials: list[Trial]) -> list[Trial]:
    """Trials, those scored lower that owe their lines to a larger lattice of higher symmetry, see `coincidences`.

    The score of the profile of the larger one is then that of the sublattice at least, since it has all of its lines.
    """
    pairs = exact_multiples([t.bravais for t in trials], [_niggli(t) for t in trials])
    profile = [t.profile for t in trials]
    for i, j, _ in pairs:
        profile[j] = max(profile[j], trials[i].profile)
    return [
        replace(t, score=t.score - p, allowed=t.allowed - p, profile=seen) if p or seen > t.profile else t
        for t, p, seen in zip(trials, prices(pairs, len(trials)).tolist(), profile, strict=True)
    ]


def _by_lines(pool: Pool, lines: LineTable) -> np.ndarray:
    """Log-likelihood ratio of the lines against chance for cells as they are, less the price of free parameters, (n,)."""
    few, codes = lines.head(3 * _OPTIONS.lines), np.array([BRAVAIS[b] for b in pool.bravais])
    settings = (_OPTIONS.lost, TAIL, 3.0, 0, _OPTIONS.prior, 0.0)
    scores = [
        kernels.improve_all(few.table(f), few.table(f), few.slope, pool.g, pool.zero, codes, settings)[0]
        for f in FLOORS
    ]
    return np.max(scores, 0) - PRICE * kernels.FREE[codes[:, 0]]


def _of_profile(pool: Pool, name: str, lines: LineTable) -> list[Trial]:
    """The best lattices of one kind: by the profile, and one by the lines."""
    own, top = pool[pool.bravais == name], pool.score.max(initial=-np.inf)
    if not len(own) or own.score.max() < top - max(0.5 * abs(top), HOPELESS):
        return []
    best = distinct(own, 12)[0]
    scores = _by_lines(best, lines)
    keep = set(np.argsort(-best.score, kind="stable")[:EXAMINED]) | set(np.argsort(-scores, kind="stable")[:1])
    out = []
    for i in sorted(keep):
        allowed, groups = allowed_score(name, best.g[i], float(best.zero[i]), lines, _OPTIONS)
        behind = min(float(best.score[i]) - top, 0.0)
        out.append(Trial(name, best.g[i], float(best.zero[i]), float(scores[i]), allowed, groups, behind))
    return out


def _of_lines(pool: Pool, name: str, lines: LineTable) -> list[Trial]:
    """The best lattices of one kind by the lines alone."""
    own = pool[pool.bravais == name]
    if not len(own):
        return []
    best = distinct(own[own.score > own.score.max() - NEAR], EXAMINED + 1)[0]
    scored = (allowed_score(name, g, float(z), lines, _OPTIONS) for g, z in zip(best.g, best.zero, strict=True))
    return [Trial(name, best.g[i], float(best.zero[i]), float(best.score[i]), *found) for i, found in enumerate(scored)]


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
