"""Autoindexing: unit cells, of any system and without prior knowledge, that explain the lines of a powder pattern.

Trial cells come from low-angle lines: with low indices for cubic to monoclinic lattices (`trial_cells`), from six lines
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

import numpy as np

from ...physics.lattice import cell_volume
from . import autoindex_kernels as kernels
from .bravais import (
    BRAVAIS,
    cell_of,
    derivative_index,
    lattice_lengths,
    lattices_of,
    metric_of,
    niggli_cell,
    sparser,
    system_of,
)
from .coincidences import owes
from .pools import FLOORS, IndexOptions, Lattice, LineTable, Pool
from .trial_cells import any_lattice, boxes, high_symmetry

__all__ = [
    "common_zero",
    "convincing",
    "distinct",
    "find_lattices",
    "misfits",
    "raised",
    "ranked",
    "sift",
    "unexplained",
]

#: the strongest lines, which make trial cells too: low-angle lines may be those of a second phase
STRONG = 14


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
    if "orthorhombic" in options.systems:
        report("orthorhombic, strong lines")
        pool += sift(boxes(lines, 0.0, options), lines, options)
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
