"""Cells of low symmetry from few lines, judged by the whole profile, and the kin of good cells.

Three to six low-angle lines make trial cells (`autoindex_kernels`), many thousands of them; the lines alone cannot tell the
right one from the others where they are few, broad or overlap. The profile can (`sieve`). What it prefers is completed by
the lattices related to it: sublattices and superlattices, those of higher symmetry that its metric nearly bears, and those
of lower symmetry that a small strain makes of it.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import lru_cache

import numpy as np

from ...physics.lattice import cell_from_metric, metric_tensor
from . import autoindex_kernels, zone_kernels
from .bravais import LATTICE_POINTS, cell_of, hermite_forms, lattices_of, metric_of, niggli_cell, reciprocal_metric
from .judgement import distinct
from .pools import IndexOptions, LineTable, Pool
from .sieve import Sieve
from .trial_cells import high_symmetry
from .trial_indices import ZONES_M

__all__ = ["as_primitive", "cubic", "descended", "kin", "lifted", "looked_at", "low_symmetry", "side_by_side"]

#: trial cells kept of those that lines make, by the likelihood of the lines; largest volume looked for, Å³
HEAP, LARGEST = 2500, 1500.0
#: lines that give axes, angles, and the next layer of a plane; planes
AXES, ANGLES, LAYER, ZONES = 12, 16, 13, 50
#: cells kept of each monoclinic lattice
MONOCLINIC = 200
#: shortest edge of cubic cells that are tried, Å, ratio from one to the next, those of each centring that the whole profile judges
EDGE, EDGE_STEP, EDGES = 3.0, 1.0012, 60
#: lines, and 1/d² (Å⁻²), up to which the first look goes
FIRST_LINES, FIRST_TOP = 20, 0.25
#: different cells that the whole profile judges, those that are kept, and those whose kin is looked at and how many at once
SECOND, KEPT, BEST, PARENTS = 80, 60, 24, 8
#: of the kin of a generation, those that are looked at in every symmetry: best by score, and by gain
LIKELY = 30
#: gain in score for which another generation of kin is looked at
BETTER = 2.0
#: strains that lower the symmetry, as shares: no more than a line width, but no less than makes lines split
STRAINS = (0.004, 0.012)


def side_by_side(pool: Executor | None, *jobs):
    """Results of functions without arguments, run on the threads of a pool where there is one."""
    return [job() for job in jobs] if pool is None else list(pool.map(lambda job: job(), jobs))


def _seeds(lines: LineTable, zero: float, options: IndexOptions, planes: bool) -> Pool:
    """Primitive cells from six lines, or from planes and three lines."""
    table = lines.head(18).table(0.03, zero)
    for least in (0.3, 0.1):
        base = np.sort(table[table[:, 2] > least, 0])
        if len(base) > 6:
            break
    n = len(base)
    if n < 5:
        return Pool()
    q = table[:, 0]
    guess = np.median(np.arange(6, len(q) + 1) / (2 * np.pi / 3 * q[5:] ** 1.5)) if len(q) > 6 else 100.0
    volumes = max(0.4 * guess, 8.0), min(max(12.0 * guess, 600.0), LARGEST)
    scores, cells = np.full(HEAP, -1e3), np.zeros((HEAP, 6))
    rest = volumes[0], volumes[1], options.lost, scores, cells
    if planes:
        found = zone_kernels.find_zones(table, base[:12], ZONES_M, ZONES)
        autoindex_kernels.search_layers(table, base[:LAYER], found, *rest)
    else:
        autoindex_kernels.search_triclinic(table, base, min(AXES, n), min(ANGLES, n), *rest)
    made = scores > -999.0
    count = int(made.sum())
    return Pool(cells[made], np.full(count, zero), np.full(count, "aP"), scores[made])


def low_symmetry(lines: LineTable, few: LineTable, zero: float, sieve: Sieve, options: IndexOptions, pool=None) -> Pool:
    """The best primitive cells that lines, ``zero`` taken off, make: refined and scored by the profile."""
    cells, *more = side_by_side(
        pool,
        lambda: _seeds(lines, zero, options, True),
        lambda: _seeds(lines, zero, options, False),
        lambda: high_symmetry(few, zero, ("monoclinic",), 9, MONOCLINIC),
    )
    first, _ = sieve.refine(sum(more, cells), 2, 5.0, _first_top(lines, zero))
    likely = distinct(first.best(400), SECOND)[0]
    # without symmetry, too: a start that is a little off finds its way through more dimensions
    second, gain = sieve.refine(likely + as_primitive(likely[likely.bravais != "aP"], SECOND), 5, 5.0)
    return sieve.refine(second, 0, sieve.temper(gain.max()))[0].best(KEPT) if len(second) else second


def looked_at(pool: Pool, lines: LineTable, sieve: Sieve, count: int) -> Pool:
    """The ``count`` best different lattices of a pool by the profile, its low angles first: refined and scored."""
    first, _ = sieve.refine(pool, 3, 5.0, _first_top(lines, 0.0))
    second, gain = sieve.refine(first, 4, 5.0)
    return distinct(sieve.refine(second, 0, sieve.temper(gain.max()))[0], count)[0] if len(second) else second


def cubic(lines: LineTable, sieve: Sieve, count: int) -> Pool:
    """The ``count`` best different cubic cells of all edges, by the profile: where few lines stand alone, none need be indexed."""
    top, likely = _first_top(lines, 0.0), Pool()
    for name in ("cP", "cI", "cF"):
        longest = (LATTICE_POINTS[name[1]] * IndexOptions().largest(name)) ** (1 / 3)
        edges = np.exp(np.arange(np.log(EDGE), np.log(longest), np.log(EDGE_STEP)))
        g, zero = edges[:, None] ** -2 * [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], np.zeros(len(edges))
        likely += sieve.refine(Pool(g, zero, np.full(len(g), name), zero), 3, 5.0, top)[0].best(EDGES)
    cells, gain = sieve.refine(likely, 4, 5.0)
    return distinct(sieve.refine(cells, 0, sieve.temper(gain.max()))[0], count)[0] if len(cells) else cells


def _first_top(lines: LineTable, zero: float) -> float:
    """1/d² up to which a first look goes."""
    q = lines.head(FIRST_LINES).table(0.01, zero)[:, 0]
    return max(min(1.03 * q[-1], FIRST_TOP), 1.03 * q[min(7, len(q) - 1)])


def as_primitive(pool: Pool, count: int) -> Pool:
    """The best ``count`` different lattices of a pool, in Niggli cells without symmetry."""
    kept, cells = distinct(pool, count)
    g = np.array([metric_of(cell) for cell in cells]).reshape(-1, 6)
    return Pool(g, kept.zero, np.full(len(kept), "aP"), kept.score)


@lru_cache(maxsize=1)
def _indices() -> np.ndarray:
    """Matrices (n, 3, 3) from a reciprocal basis to those of sub- and superlattices of index 2 and 3."""
    return np.array([turn for n in (2, 3) for m in hermite_forms(n) for turn in (m, np.linalg.inv(m))])


def kin(pool: Pool, sieve: Sieve, temper: float, rounds: int = 4) -> Pool:
    """Cells with the sub- and superlattices of the best, and of the best of those: refined and scored.

    All in every symmetry that they bear: many lines that fall together by symmetry are cheap, and dear without it. Twice at
    least, and ``rounds`` times while the best becomes better.
    """
    for turn in range(rounds):
        before = pool.score.max(initial=-np.inf)
        parents = as_primitive(pool, PARENTS)
        star, turns = reciprocal_metric(parents.g)[:, None], _indices()
        new = turns @ star @ turns.transpose(0, 2, 1)
        g = new[..., [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] * [1, 1, 1, 2, 2, 2]
        g, zero = g.reshape(-1, 6), np.repeat(parents.zero, len(turns))
        own, gain = sieve.refine(Pool(g, zero, np.full(len(g), "aP"), np.zeros(len(g))), 2, temper)
        likely = np.union1d(np.argsort(-own.score)[:LIKELY], np.argsort(-gain)[:LIKELY])
        pool += own + sieve.refine(lifted(own[likely], len(likely)), 2, temper)[0]
        pool = sieve.refine(distinct(pool.best(300), BEST)[0], 6, temper)[0]
        if turn and pool.score.max(initial=-np.inf) < before + BETTER:
            break
    return pool


def lifted(pool: Pool, count: int = BEST) -> Pool:
    """The best ``count`` different cells in every symmetry that their metric bears, or nearly bears."""
    out, different = Pool(), as_primitive(pool, count)
    for g, zero in zip(different.g, different.zero, strict=True):
        found = lattices_of(niggli_cell(cell_of(g)))
        names, metrics = np.array([n for n, _ in found], "U2"), np.array([metric_of(cell) for _, cell in found])
        out += Pool(metrics, np.full(len(found), zero), names, np.zeros(len(found)))
    return out


def descended(pool: Pool) -> Pool:
    """Lattices of lower symmetry close to those of a pool: each strained a little along and across its axes."""
    out = Pool()
    for g, zero, name in zip(pool.g, pool.zero, pool.bravais, strict=True):
        if name == "aP":
            continue
        metric = metric_tensor(cell_of(g))
        seen = set()
        for size in STRAINS:
            for i, j in ((1, 2), (0, 2), (0, 1), (0, 0), (2, 2)):
                for sign in (1, -1) if i == j else (1,):
                    strain = np.eye(3)
                    strain[i, j] += sign * size * (2.0 if i != j else 1.0)
                    new = niggli_cell(cell_from_metric(_strained(metric, strain)), name[1])
                    lower, cell = lattices_of(new, (2e-4, 1e-4))[-1]
                    key = (lower, *np.round(cell, 3))
                    if lower not in (name, "aP") and key not in seen:
                        seen.add(key)
                        out += Pool(metric_of(cell)[None], np.array([zero]), np.array([lower], "U2"), np.zeros(1))
    return out


def _strained(metric, strain) -> np.ndarray:
    """Metric tensor after a strain given along Cartesian axes on which a ∥ x and b lies in the xy plane."""
    basis = np.linalg.cholesky(metric)
    return basis @ strain @ strain.T @ basis.T
