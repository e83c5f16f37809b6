"""Autoindexing: unit cells, of any system and without prior knowledge, that explain the lines of a powder pattern.

Trial cells come from low-angle lines: with low indices for cubic to monoclinic lattices (`search_kernels`), from six lines
or from a plane of the reciprocal lattice and three more lines for any lattice (`autoindex_kernels`), on a grid of zero
shifts. Each line of a trial cell is weighed by its log-likelihood ratio against chance,

    ``ln( ε + (1 - ε) N(Q_obs - Q_calc; σ_Q) / ρ(Q) )``,    ``ρ = 2π V √Q / (m c)``,

with the cell volume V, the multiplicity m of a general line and the centring factor c: a close hit among few predicted
lines counts much, a hit that a dense cell cannot miss counts nothing, and a line that is not explained costs ``ln ε``. So
large cells and low symmetry pay, and some lines of an impurity do no harm. The best cells are refined together with the
zero shift, reduced, brought to the highest symmetry their metric allows, and ranked by the same likelihood less a price for
every free parameter. Compare the figures of merit M (de Wolff 1968) and F (Smith & Snyder 1979), which weigh all lines alike
and are reported beside it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from ...physics.lattice import cell_volume
from . import autoindex_kernels as kernels
from . import search_kernels, zone_kernels
from .bravais import (
    BRAVAIS,
    cell_of,
    derivative_index,
    lattice_lengths,
    lattices_of,
    metric_of,
    niggli_cell,
    shortest_vector,
    sparser,
    system_of,
)
from .coincidences import owes
from .trial_indices import CODES_F, CODES_O, PAIRS_H, PAIRS_T, RECTANGLES, THIRDS_C, THIRDS_P, ZONES_M

__all__ = ["SYSTEMS", "IndexOptions", "Lattice", "LineTable", "Pool", "any_lattice", "common_zero", "convincing", "distinct",
           "find_lattices", "high_symmetry", "line_table", "raised", "ranked", "sift"]  # fmt: skip

#: largest primitive cells that are looked for, Å³, by crystal family: few parameters need few lines
LARGEST = {"c": 27000.0, "t": 12000.0, "h": 12000.0, "a": 3000.0}
SYSTEMS = ("cubic", "tetragonal", "hexagonal", "trigonal", "orthorhombic", "monoclinic", "triclinic")
#: log-likelihood that a free parameter of the cell has to earn
PRICE = 2.0
#: systematic errors of lines in degrees that are tried
FLOORS = (0.0025, 0.005, 0.010)
#: the strongest lines, which make trial cells too: low-angle lines may be those of a second phase
STRONG = 14
#: share of lines with three times the usual error: overlaps, tails
TAIL = 0.2


@dataclass(frozen=True)
class IndexOptions:
    """What to search, see `crystaldl.powder.pattern.PowderPattern.index`."""

    systems: tuple[str, ...] = SYSTEMS
    max_volume: float | None = None
    lines: int = 20
    impurities: float = 2.0
    zero_limit: float = 0.15
    volume_hint: float | None = None
    time_limit: float = 30.0

    @property
    def lost(self) -> float:
        """Share of lines that are expected to stay unexplained."""
        return min(max(self.impurities, 0.6) / self.lines, 0.3)

    def largest(self, bravais: str = "aP") -> float:
        """Largest volume of a primitive cell in Å³: what was asked for, or what the search reaches (`LARGEST`)."""
        return LARGEST.get(bravais[0], LARGEST["a"]) if self.max_volume is None else self.max_volume

    @property
    def prior(self) -> float:
        """Standard deviation expected of the zero shift, degrees."""
        return self.zero_limit / 1.5


@dataclass(frozen=True)
class LineTable:
    """Lines as the search sees them, in order of 2θ; (n,) each.

    Attributes
    ----------
    two_theta, sigma : degrees, with counting statistics only
    weight : 0…1, that it is a line of its own
    wavelength : float, Å
    source : index of the line (the strongest where several were merged) in the list that was given
    height : intensity on any scale; all alike where it is not known
    """

    two_theta: np.ndarray
    sigma: np.ndarray
    weight: np.ndarray
    wavelength: float
    source: np.ndarray
    height: np.ndarray | None = None

    def __len__(self) -> int:
        return self.two_theta.size

    @property
    def slope(self) -> np.ndarray:
        """dQ/d2θ in Å⁻² per degree."""
        return np.radians(1.0) * 2.0 * np.sin(np.radians(self.two_theta)) / self.wavelength**2

    def head(self, n: int) -> LineTable:
        """The ``n`` lines of lowest angle, doubtful ones not counted."""
        last = np.searchsorted(np.cumsum(self.weight > 0.3), n, side="left") + 1
        return self[:last]

    def __getitem__(self, index) -> LineTable:
        columns = (self.two_theta, self.sigma, self.weight, self.source, self.height)
        x, sigma, weight, source, height = (None if v is None else v[index] for v in columns)
        return LineTable(x, sigma, weight, self.wavelength, source, height)

    def strong(self, n: int) -> LineTable:
        """The strongest of the first ``3 n`` lines: hardly any of them belong to a second phase."""
        few = self.head(3 * n)
        if few.height is None or len(few) <= n:
            return few
        return few[np.sort(np.argsort(-few.height * few.weight, kind="stable")[:n])]

    def table(self, floor: float, zero: float = 0.0) -> np.ndarray:
        """(n, 4) for the kernels: Q, σ_Q, weight, weighted gain of a perfect hit; ``floor`` (degrees) adds to σ."""
        q = (2.0 * np.sin(np.radians((self.two_theta - zero) / 2)) / self.wavelength) ** 2
        sigma = np.hypot(1.5 * self.sigma, floor) * self.slope
        gain = self.weight * np.log(1.0 / (kernels.SQRT_TWO_PI * sigma * np.sqrt(q)))
        return np.ascontiguousarray(np.stack([q, sigma, self.weight, gain], 1))


def line_table(peaks) -> LineTable:
    """Lines of a `PeakList` for the search: what a fit split is put together again, feet of strong lines count little."""
    x, order = np.sort(peaks.position), np.argsort(peaks.position)
    sigma, area = peaks.position_sigma[order].copy(), peaks.intensity[order].copy()
    significance, width = peaks.significance[order].copy(), _usual_width(peaks.fwhm[order], area)
    source = order.copy()
    i = 0
    while i < len(x) - 1:
        if x[i + 1] - x[i] > 0.6 * width[i] or min(area[i : i + 2]) < 0.3 * max(area[i : i + 2]):
            i += 1
            continue
        share = area[i + 1] / (area[i] + area[i + 1])
        source[i] = source[i] if share < 0.5 else source[i + 1]
        gap = x[i + 1] - x[i]
        x[i] += share * gap
        sigma[i] = np.hypot(np.hypot((1 - share) * sigma[i], share * sigma[i + 1]), 0.2 * min(share, 1 - share) * gap)
        area[i] += area[i + 1]
        significance[i] = max(significance[i], significance[i + 1])
        x, sigma, area, significance, width, source = (
            np.delete(v, i + 1) for v in (x, sigma, area, significance, width, source)
        )
    weight = 1.0 / (1.0 + np.exp(-(significance - 6.0) / 1.5))
    gap = np.abs(x[:, None] - x[None])
    ratio = area[None] / area[:, None]
    # how often a line this close to a stronger one is a line of its own, on simulated patterns
    for reach, stronger, trust in ((1.0, 1.0, 0.6), (3.0, 15.0, 0.3), (1.3, 3.3, 0.2)):
        weight *= np.where(((gap < reach * width[:, None]) & (ratio > stronger)).any(1), trust, 1.0)
    return LineTable(x, sigma, weight, peaks.radiation.wavelength, source, area)


def _usual_width(fwhm, area) -> np.ndarray:
    """Width expected at each line: the median of the nine nearest, at least; a split line is too narrow."""
    out = np.empty_like(fwhm)
    for i in range(len(fwhm)):
        low = max(min(i - 4, len(fwhm) - 9), 0)
        near = slice(low, low + 9)
        out[i] = np.median(np.repeat(fwhm[near], 1 + (3 * area[near] / area[near].max()).astype(int)))
    return out


# ---------------------------------------------------------------------------------------------- candidates


@dataclass
class Pool:
    """Cells under examination: metric, start of the zero shift, Bravais lattice, score."""

    g: np.ndarray = field(default_factory=lambda: np.zeros((0, 6)))
    zero: np.ndarray = field(default_factory=lambda: np.zeros(0))
    bravais: np.ndarray = field(default_factory=lambda: np.zeros(0, "U2"))
    score: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.zero)

    def __getitem__(self, index) -> Pool:
        return Pool(self.g[index], self.zero[index], self.bravais[index], self.score[index])

    def __add__(self, other: Pool) -> Pool:
        return Pool(*(np.concatenate([getattr(self, k), getattr(other, k)]) for k in ("g", "zero", "bravais", "score")))

    def improve(self, lines: LineTable, options: IndexOptions, floors, wide: float, rounds: int) -> Pool:
        """Refined and scored: log-likelihood ratio less the price of the free parameters; failures are left out."""
        if not len(self):
            return self
        codes = np.array([BRAVAIS[b] for b in self.bravais])
        settings = (options.lost, TAIL, wide, rounds, options.prior)
        tables = (lines.table(floor) for floor in floors)
        score, g, zero = kernels.improve_all(*tables, lines.slope, self.g, self.zero, codes, settings)
        good = score > -1e8
        good[good] = shortest_vector(g[good], self.bravais[good]) > search_kernels.SHORTEST
        return Pool(g, zero, self.bravais, score - PRICE * kernels.FREE[codes[:, 0]])[good]

    def best(self, count: int) -> Pool:
        return self[np.argsort(-self.score, kind="stable")[:count]]


def high_symmetry(lines: LineTable, zero: float, systems, base: int = 9, count: int = 24) -> Pool:
    """Cubic to monoclinic cells from low indices of low-angle lines."""
    table = lines.table(0.035, zero)
    table = np.ascontiguousarray(table[np.argsort(-lines.weight, kind="stable")])
    low = np.sort(table[table[:, 2] > 0.4, 0])
    low_few, low_many = low[:base], low[: base + 3]
    rows = len(search_kernels.LATTICES)
    best, cells = np.full((rows, count), -1e3), np.zeros((rows, count, 4))
    if "cubic" in systems:
        search_kernels.search_cubic(table, low_few, best, cells, -1e3)
    if "tetragonal" in systems:
        search_kernels.search_uniaxial(table, low_few, PAIRS_T, 3, 5, best, cells, -1e3)
    if "hexagonal" in systems or "trigonal" in systems:
        search_kernels.search_uniaxial(table, low_few, PAIRS_H, 5, 7, best, cells, -1e3)
    if "orthorhombic" in systems:
        search_kernels.search_orthorhombic(table, low_few, CODES_O, 7, 11, best, cells, -1e3)
        search_kernels.search_orthorhombic(table, low_few, CODES_F, 10, 11, best, cells, -1e3)
    if "monoclinic" in systems:
        zones = zone_kernels.find_zones(table, low_many, ZONES_M, 50)
        # where b is short, the low-angle lines are all h0l: k comes from farther ones
        for row, thirds in ((11, THIRDS_P), (12, THIRDS_C)):
            search_kernels.search_monoclinic(table, low[: base + 14], zones, thirds, row, best, cells, -1e3)
        for row, centred in ((11, False), (12, True)):
            rectangles = zone_kernels.find_rectangles(table, low_many, RECTANGLES, centred, 16)
            search_kernels.search_oblique(table, low_many, rectangles, row, best, cells, -1e3)
    row, rank = np.nonzero(best > 0.0)
    found = cells[row, rank]
    g = np.zeros((len(row), 6))
    g[:, :3], g[:, 4] = found[:, :3], found[:, 3]
    names = np.array(search_kernels.LATTICES)[row].astype("U2")
    hexagonal = np.char.startswith(names, "h")
    g[hexagonal, 5] = g[hexagonal, 0]
    return Pool(g, np.full(len(row), zero), names, best[row, rank])


def _volume_range(lines: LineTable, options: IndexOptions) -> tuple[float, float]:
    """Plausible volumes of a primitive cell from the number of lines: N(Q) = (2π/3) V Q^1.5 predicted at most are seen."""
    q = lines.table(0.01)[:, 0]
    guess = np.median(np.arange(6, len(q) + 1) / (2 * np.pi / 3 * q[5:] ** 1.5)) if len(q) > 6 else 100.0
    low, high = 0.4 * guess, 7.0 * guess
    if options.volume_hint:
        low, high = 0.2 * options.volume_hint, 1.25 * options.volume_hint
    return max(low, 8.0), min(high, options.largest())


def any_lattice(lines: LineTable, zero: float, options: IndexOptions, axes=12, angles=16, layer=13, zones=80) -> Pool:
    """Primitive cells of any lattice from six low-angle lines, and from planes of the reciprocal lattice."""
    table = lines.head(18).table(0.03, zero)
    base = np.sort(table[table[:, 2] > 0.3, 0])
    if len(base) < 7:
        return Pool()
    limits = _volume_range(lines.head(options.lines), options)
    scores, cells = np.full(2500, 0.0), np.zeros((2500, 6))
    n = len(base)
    kernels.search_triclinic(table, base, min(axes, n), min(angles, n), *limits, options.lost, scores, cells)
    planes = zone_kernels.find_zones(table, base[:12], ZONES_M, zones)
    kernels.search_layers(table, base[:layer], planes, *limits, options.lost, scores, cells)
    keep = scores > 0.0
    count = int(keep.sum())
    return Pool(cells[keep], np.full(count, zero), np.full(count, "aP"), scores[keep])


@dataclass(frozen=True)
class Lattice:
    """A lattice that explains the lines: Bravais lattice, conventional and Niggli cell, zero shift (degrees), log-likelihood
    ratio less the price of the free parameters."""

    bravais: str
    cell: np.ndarray
    niggli: np.ndarray
    zero: float
    score: float


def distinct(pool: Pool, limit: int) -> tuple[Pool, np.ndarray]:
    """The best ``limit`` different lattices, one entry each, and their Niggli cells."""
    order = np.argsort(-pool.score, kind="stable")
    known, cells = [], []
    for i, cell in zip(order, cell_of(pool.g[order]), strict=True):
        try:
            cell = niggli_cell(cell, "PIFCR"[BRAVAIS[pool.bravais[i]][1]])
        except (RuntimeError, ValueError):
            continue
        if np.isfinite(cell).all():
            known.append(i)
            cells.append(cell)
    known, cells = np.array(known, int), np.array(cells).reshape(-1, 6)
    lengths, left = lattice_lengths(cells), np.ones(len(known), bool)
    kept: list[int] = []
    while left.any() and len(kept) < limit:
        first = int(left.argmax())
        kept.append(first)
        left &= (np.abs(lengths / lengths[first] - 1) >= 0.006).any(1)
    return pool[known[kept]], cells[kept]


def sift(pool: Pool, lines: LineTable, options: IndexOptions) -> Pool:
    """The trial cells worth a closer look: refined on the low-angle lines, then on twice as many."""
    pool = pool.improve(lines.head(options.lines), options, (0.015, 0.010), 4.0, 3)
    parts = [pool.best(100)] + [pool[pool.bravais == b].best(20) for b in BRAVAIS if b != "aP"]
    pool = sum(parts[1:], parts[0]).improve(lines.head(2 * options.lines), options, (0.012, 0.008), 3.0, 4)
    parts = [pool.best(60)] + [pool[pool.bravais == b].best(6) for b in BRAVAIS]
    return sum(parts[1:], parts[0])


def raised(pool: Pool, lines: LineTable, options: IndexOptions, limit: int = 25) -> Pool:
    """The best different lattices in every symmetry that their metric bears, or nearly bears, refined and scored."""
    pool, cells = distinct(pool, limit)
    both = {"hexagonal", "trigonal"}
    wanted = set(options.systems) | (both if both & set(options.systems) else set())
    lifted = Pool()
    for i, cell in enumerate(cells):
        for name, conventional in lattices_of(cell):
            if system_of(name) in wanted:
                lifted += Pool(metric_of(conventional)[None], pool.zero[i : i + 1], np.array([name]), np.zeros(1))
    # how precise the lines are is not known: each cell may choose, so that a closer fit to precise lines counts more
    tries = [lifted.improve(lines.head(3 * options.lines), options, (1.4 * f, f), 3.0, 5) for f in FLOORS]
    return sum(tries[1:], tries[0])


def _rank(pool: Pool, lines: LineTable, options: IndexOptions, limit: int = 25) -> list[Lattice]:
    """Different lattices, each raised to the symmetry that the lines bear, best first."""
    return ranked(raised(pool, lines, options, limit), options, limit)


def ranked(lifted: Pool, options: IndexOptions, limit: int = 25) -> list[Lattice]:
    """Different lattices of a pool, each in the symmetry that scores best, best first."""
    pool, cells = distinct(lifted, limit)
    out = []
    for i, cell in enumerate(cells):
        conventional = cell_of(pool.g[i])
        small = cell_volume(cell) < 1.02 * options.largest(str(pool.bravais[i]))
        if small and pool.score[i] > 0 and abs(pool.zero[i]) < options.zero_limit + 0.02:
            out.append(Lattice(str(pool.bravais[i]), conventional, cell, float(pool.zero[i]), float(pool.score[i])))
    return out


def misfits(lattice: Lattice, lines: LineTable) -> np.ndarray:
    """(n,) distances in degrees of the lines from the nearest line of the lattice."""
    table = lines.table(0.010, lattice.zero)
    _, centring, _ = BRAVAIS[lattice.bravais]
    g = metric_of(lattice.cell)
    return np.array([kernels.nearest(q, g, centring, 0.2 * q)[0] for q in table[:, 0]]) / lines.slope


def unexplained(lattice: Lattice, lines: LineTable, tolerance: float = 3.5) -> np.ndarray:
    """(n,) bool: lines farther than ``tolerance`` σ (σ at least 0.01°) from every line of the lattice."""
    return misfits(lattice, lines) > tolerance * np.hypot(1.5 * lines.sigma, 0.010)


def convincing(found: list[Lattice], lines: LineTable, options: IndexOptions, score: float, lead: float) -> bool:
    """Whether the best lattice explains the lines closely, nearly all of them, and far better than the next one."""
    if not found or found[0].score < score:
        return False
    few = lines.head(options.lines)
    lost = unexplained(found[0], few)
    if lost.all():
        return False
    close = np.median(misfits(found[0], few)[~lost] / np.hypot(1.5 * few.sigma[~lost], 0.006)) < 1.2
    second = found[1].score if len(found) > 1 else 0.0
    return bool(
        close and few.weight[lost].sum() <= max(options.impurities, 1.0) + 0.1 and found[0].score - second > lead
    )


def find_lattices(lines: LineTable, options: IndexOptions, report=lambda what: None) -> list[Lattice]:
    """Lattices that explain the lines, best first.

    Parameters
    ----------
    lines : LineTable
    options : IndexOptions
    report : callable, told in words what is being done
    """
    start = time.monotonic()
    step = options.zero_limit / 3
    high = tuple(s for s in options.systems if s not in ("monoclinic", "triclinic"))
    pool, found = Pool(), []
    few, strong = lines.head(options.lines), lines.strong(STRONG)
    for zero in (0.0, 1.5 * step, -1.5 * step) if high else ():
        report(f"cubic to orthorhombic, zero shift {zero:+.2f}°")
        pool += sift(high_symmetry(few, zero, high), lines, options)
        found = _rank(pool, lines, options)
        if convincing(found, lines, options, 40.0, 6.0):
            return _finish(pool, found, lines, options, report)
        if zero == 0.0:
            pool += sift(high_symmetry(strong, zero, high), lines, options)
        found = _rank(pool, lines, options)
        if convincing(found, lines, options, 40.0, 6.0):
            return _finish(pool, found, lines, options, report)
    if not {"monoclinic", "triclinic"} & set(options.systems):
        return _finish(pool, found, lines, options, report)
    waiting, tried = [0.0, -1.2 * step, 1.2 * step, -2.4 * step, 2.4 * step], []
    while waiting:
        zero = waiting.pop(0)
        tried.append(zero)
        report(f"monoclinic and triclinic, zero shift {zero:+.2f}°")
        cells = any_lattice(lines, zero, options)
        pool += sift(cells + any_lattice(strong, zero, options) if zero == 0.0 else cells, lines, options)
        if "monoclinic" in options.systems:
            for more, base, count in ((0, 9, 24), (8, 12, 60)):
                trials = high_symmetry(lines.head(options.lines + more), zero, ("monoclinic",), base, count)
                pool += sift(trials, lines, options)
        found = _rank(pool, lines, options)
        if convincing(found, lines, options, 30.0, 8.0) or time.monotonic() - start > options.time_limit:
            break
        likely = common_zero(found)
        if min(abs(likely - z) for z in tried) > 0.4 * step:
            waiting = [likely, *(z for z in waiting if abs(z - likely) > 0.6 * step)]
    return _finish(pool, found, lines, options, report)


def common_zero(found: list[Lattice]) -> float:
    """The zero shift (degrees) that the best lattices agree on: even wrong ones do."""
    return float(np.median([lattice.zero for lattice in found[:5]])) if found else 0.0


def _finish(pool: Pool, found: list[Lattice], lines: LineTable, options: IndexOptions, report) -> list[Lattice]:
    """Try smaller cells whose lines suffice, and leave out superlattices of a better cell that explain no more lines."""
    report("smaller cells")
    smaller = [(lattice.zero, cell) for lattice in found[:6] for n in (2, 3) for cell in sparser(lattice.niggli, n)]
    if smaller:
        g = np.array([metric_of(cell) for _, cell in smaller])
        trials = Pool(g, np.array([zero for zero, _ in smaller]), np.full(len(g), "aP"), np.zeros(len(g)))
        trials = trials.improve(lines.head(2 * options.lines), options, (0.012, 0.008), 3.0, 4)
        if len(trials) and trials.score.max() > 0.6 * found[0].score:
            found = _rank(pool + trials.best(20), lines, options)
    missed = [float(lines.weight[unexplained(lattice, lines)].sum()) for lattice in found]
    kept: list[int] = []
    for i, lattice in enumerate(found):
        copies = (j for j in kept if derivative_index(lattice.niggli, found[j].niggli) and not owes(found[j], lattice))
        if not any(missed[i] > missed[j] - 0.8 for j in copies):
            kept.append(i)
    report("done")
    return [found[i] for i in kept]
