"""Autoindexing: how unit cells, of any system and without prior knowledge, are judged by the lines of a powder pattern.

Trial cells come from low-angle lines: with low indices for cubic to monoclinic lattices (`trial_cells`), from six lines
or from a plane of the reciprocal lattice and three more lines for any lattice (`autoindex_kernels`). Each line of a trial
cell is weighed by its log-likelihood ratio against chance,

    ``ln( ε + (1 - ε) N(Q_obs - Q_calc; σ_Q) / ρ(Q) )``,    ``ρ = 2π V √Q / (m c)``,

with the cell volume V, the multiplicity m of a general line and the centring factor c: a close hit among few predicted
lines counts much, a hit that a dense cell cannot miss counts nothing, and a line that is not explained costs ``ln ε``. So
large cells and low symmetry pay, and some lines of an impurity do no harm. The best cells are refined together with the
zero shift, reduced, brought to the highest symmetry their metric allows, and ranked by the same likelihood less a price for
every free parameter. Compare the figures of merit M (de Wolff 1968) and F (Smith & Snyder 1979), which weigh all lines alike
and are reported beside it.
"""

from __future__ import annotations

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
    system_of,
)
from .pools import FLOORS, IndexOptions, Lattice, LineTable, Pool

__all__ = [
    "beyond_doubt",
    "convincing",
    "distinct",
    "misfits",
    "raised",
    "ranked",
    "sift",
    "unexplained",
]

#: share of the lines, by weight, that the best lattice may leave where no other comes near
LEFT_OVER = 0.25


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


def sift(pool: Pool, lines: LineTable, options: IndexOptions, thorough: bool = False) -> Pool:
    """The trial cells worth a closer look: refined on the low-angle lines, then on twice as many, if ``thorough`` on all."""
    pool = pool.improve(lines.head(options.lines), options, (0.015, 0.010), 4.0, 3)
    pool = _best_of_each(pool, 100, 20, [b for b in BRAVAIS if b != "aP"])
    pool = pool.improve(lines.head(2 * options.lines), options, (0.012, 0.008), 3.0, 4)
    if thorough and len(lines.two_theta) > 2 * options.lines:
        pool = _best_of_each(pool, 150, 20).improve(lines.head(3 * options.lines), options, (0.012, 0.008), 3.0, 3)
    return _best_of_each(pool, 60, 6)


def _best_of_each(pool: Pool, count: int, own: int, lattices=tuple(BRAVAIS)) -> Pool:
    """The best cells, and the best ones of each of some Bravais lattices."""
    return sum((pool[pool.bravais == b].best(own) for b in lattices), pool.best(count))


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


def convincing(
    found: list[Lattice], lines: LineTable, options: IndexOptions, score: float, lead: float, apart: float
) -> bool:
    """Whether the best lattice explains the lines closely, nearly all of them, and far better than the next one.

    ``lead``, ``apart``: over the next lattice, and over the next one that is neither sub- nor superlattice of it.
    """
    if not found or found[0].score < score:
        return False
    few = lines.head(options.lines)
    lost = unexplained(found[0], few)
    if lost.all():
        return False
    close = np.median(misfits(found[0], few)[~lost] / np.hypot(1.5 * few.sigma[~lost], 0.006)) < 1.2
    if not close or few.weight[lost].sum() > max(options.impurities, 1.0) + 0.1:
        return False
    best = found[0].score
    return bool(best - _second(found, kin=True) > lead and best - _second(found, kin=False) > apart)


def beyond_doubt(found: list[Lattice], lines: LineTable, options: IndexOptions, score: float, apart: float) -> bool:
    """Whether no other lattice comes near the best one and its sub- and superlattices, although some lines are left over."""
    if not found or found[0].score < score:
        return False
    few = lines.head(options.lines)
    if few.weight[unexplained(found[0], few)].sum() > LEFT_OVER * few.weight.sum():
        return False
    return found[0].score - _second(found, kin=False) > apart


def _second(found: list[Lattice], kin: bool) -> float:
    """Score of the second lattice, or of the best one that is no ``kin`` of the first; 0 where there is none."""
    best = found[0].niggli
    for lattice in found[1:]:
        if kin or not (derivative_index(lattice.niggli, best) or derivative_index(best, lattice.niggli)):
            return lattice.score
    return 0.0
