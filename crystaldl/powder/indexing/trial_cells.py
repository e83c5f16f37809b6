"""Trial cells from a few lines of a pattern.

Of high symmetry from low indices of low-angle lines; monoclinic ones also from a rectangular zone hk0 and two lines of the layer
hk1, which chain silicates show where they have no line h0l or 0k1; orthorhombic ones also from strong lines with higher indices, as
those of long cells have; of any lattice from six lines, or from planes of the reciprocal lattice.
"""

from __future__ import annotations

import numpy as np

from . import autoindex_kernels as kernels
from . import search_kernels, zone_kernels
from .pools import IndexOptions, LineTable, Pool
from .trial_indices import (
    CODES_F,
    CODES_O,
    PAIRS_H,
    PAIRS_T,
    RECTANGLES,
    STACKS_C,
    STACKS_P,
    THIRDS_C,
    THIRDS_P,
    ZONES_M,
    wide_codes,
)

__all__ = ["any_lattice", "boxes", "high_symmetry"]

#: lines that trial cells of `boxes` come from: strongest of so many
STRONGEST, AMONG = 8, 16
#: rectangular zones that are completed to monoclinic cells
RECTANGULAR = 40


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
        for row, forms in ((11, STACKS_P), (12, STACKS_C)):
            rectangles = zone_kernels.find_rectangles(table, low_many, RECTANGLES, row == 12, RECTANGULAR)
            search_kernels.search_stacks(table, low_many, rectangles, forms, row, best, cells, -1e3)
    return _pool(best, cells, zero)


def boxes(lines: LineTable, zero: float, options: IndexOptions, count: int = 200) -> Pool:
    """Orthorhombic cells from three of the strong lines, with higher indices than `high_symmetry` tries.

    They have to explain half of these lines before they are scored. Nothing is tried with fewer than five.
    """
    table, strong = lines.head(options.lines).table(0.035, zero), lines.head(AMONG).strong(STRONGEST).table(0.035, zero)
    if len(strong) < 5:
        return Pool()
    table = np.ascontiguousarray(table[np.argsort(-table[:, 2], kind="stable")])
    rows = len(search_kernels.LATTICES)
    best, cells = np.full((rows, count), -1e3), np.zeros((rows, count, 4))
    search_kernels.search_boxes(table, strong, wide_codes(), len(strong) // 2, 7, 11, best, cells, -1e3)
    return _pool(best, cells, zero)


def _pool(best: np.ndarray, cells: np.ndarray, zero: float) -> Pool:
    """Cells of `search_kernels`: scores (rows, count) and (A, B, C, D) of each."""
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
