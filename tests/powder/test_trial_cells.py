"""Trial cells of minerals of which only strong lines are seen, at indices that low-angle lines hardly have."""

from __future__ import annotations

import numpy as np
import pytest
from test_sieve import one, scan, sieve_of

from crystaldl.powder.indexing import deep_search
from crystaldl.powder.indexing.bravais import BRAVAIS, cell_of, niggli_cell, reciprocal_metric, same_lattice
from crystaldl.powder.indexing.pools import IndexOptions, LineTable
from crystaldl.powder.indexing.trial_cells import boxes, high_symmetry
from crystaldl.powder.indexing.trials import line_table_of

WAVELENGTH = 1.54059
#: cells, and strong lines such as scans of the minerals show
ENSTATITE = (5.18, 8.82, 18.23, 90, 90, 90)
ENSTATITE_LINES = "0 2 0, 1 2 1, 0 2 4, 1 2 2, 0 1 6, 1 1 5, 1 3 1, 2 0 2, 1 2 5, 2 0 5, 1 3 5, 0 6 0, 2 3 1"
DIOPSIDE = (9.75, 8.92, 5.25, 90, 105.9, 90)
DIOPSIDE_LINES = "1 1 0, 2 0 0, 2 2 0, 2 -2 1, 3 1 0, 3 -1 1, 1 -3 1, 2 2 1, 3 3 0, 3 -3 1, 4 -2 1, 1 5 0, 5 -3 1"
RIEBECKITE = (9.82, 18.0, 5.33, 90, 103.7, 90)
RIEBECKITE_LINES = "1 1 0, 1 3 0, 0 4 0, 1 3 1, 2 4 0, 3 1 0, 3 3 0, 3 -3 1, 1 5 1, 0 6 1, 2 0 -2, 3 -5 1, 2 6 1"


def strong_lines(cell, hkl: str) -> LineTable:
    h = np.array([line.split() for line in hkl.split(",")], float)
    star = reciprocal_metric(one("aP", cell).g[0])
    x = 2 * np.degrees(np.arcsin(np.sqrt(np.einsum("ni,ij,nj->n", h, star, h)) * WAVELENGTH / 2))
    order, n = np.argsort(x), len(x)
    return LineTable(x[order], np.full(n, 0.01), np.ones(n), WAVELENGTH, order, np.ones(n))


def holds(pool, bravais, cell) -> bool:
    want = niggli_cell(cell, "PIFCR"[BRAVAIS[bravais][1]])
    own = pool[pool.bravais == bravais]
    return any(same_lattice(niggli_cell(cell_of(g), "PIFCR"[BRAVAIS[bravais][1]]), want) for g in own.g)


@pytest.mark.parametrize(("cell", "hkl"), [(DIOPSIDE, DIOPSIDE_LINES), (RIEBECKITE, RIEBECKITE_LINES)])
def test_chain_silicates_from_lines_of_hk0_and_hk1(cell, hkl):
    """None of their h0l zones is seen, and no line 0k1 at low angle."""
    found = high_symmetry(strong_lines(cell, hkl), 0.0, ("monoclinic",))
    assert holds(found, "mC", cell)
    assert (np.diff(found[found.bravais == "mC"].score) <= 0).all()


def test_a_long_axis_from_strong_lines_of_higher_index():
    lines = strong_lines(ENSTATITE, ENSTATITE_LINES)
    assert not holds(high_symmetry(lines, 0.0, ("orthorhombic",)), "oP", ENSTATITE)
    assert holds(boxes(lines, 0.0, IndexOptions()), "oP", ENSTATITE)


def test_boxes_come_from_the_strong_lines():
    """Five weak lines of another phase among the lowest do not keep the cell from being found."""
    lines = strong_lines(ENSTATITE, ENSTATITE_LINES)
    odd = np.array([11.3, 14.9, 17.2, 22.7, 26.1])
    x = np.concatenate([odd, lines.two_theta])
    height = np.r_[np.full(5, 0.02), lines.height]
    order = np.argsort(x)
    mixed = LineTable(x[order], np.full(len(x), 0.01), np.full(len(x), 1.0), WAVELENGTH, order, height[order])
    assert holds(boxes(mixed, 0.0, IndexOptions(impurities=5)), "oP", ENSTATITE)


def test_too_few_lines_make_no_box():
    assert len(boxes(strong_lines(ENSTATITE, "0 2 0, 1 2 1, 0 2 4, 1 2 2"), 0.0, IndexOptions())) == 0


def test_kin_is_found_in_its_own_symmetry():
    """A quarter of an orthorhombic cell: the lines of the whole are too many for a triclinic cell, not for this one."""
    a, b, c, *angles = ENSTATITE
    sieve, peaks = sieve_of(scan("oP", ENSTATITE, noise=0.003))
    start, gain = sieve.refine(one("oP", (a, b / 2, c / 2, *angles)), 3, 1.0)
    best = deep_search.kin(start, sieve, sieve.temper(gain[0])).best(1)
    assert best.bravais[0] == "oP" and np.sort(cell_of(best.g[0])[:3]) == pytest.approx(np.sort(ENSTATITE[:3]), rel=2e-3)
    assert line_table_of(peaks).height is not None
