"""Cells of `index` judged by the whole profile."""

from __future__ import annotations

import numpy as np
import pytest

import crystaldl as cdl
from crystaldl.physics.lattice import cell_volume
from crystaldl.powder.indexing.bravais import niggli_cell, same_lattice
from crystaldl.powder.indexing.pools import IndexOptions, Lattice, line_table
from crystaldl.powder.indexing.profile_search import ProfileSearch

DIOPSIDE = niggli_cell([9.746, 8.899, 5.251, 90.0, 105.63, 90.0], "C")


@pytest.fixture(scope="module")
def diopside():
    pattern = cdl.load_example("powder/diopside")
    return pattern, line_table(pattern.peaks())


def test_the_profile_finds_what_the_lines_did_not(diopside):
    pattern, lines = diopside
    found = ProfileSearch(pattern, lines, IndexOptions()).joined([])
    assert found[0].bravais == "mC" and same_lattice(found[0].niggli, DIOPSIDE)
    assert all(a.score >= b.score for a, b in zip(found, found[1:], strict=False))
    lengths = [tuple(np.round(c.niggli, 2)) for c in found]
    assert len(set(lengths)) == len(lengths), "a lattice stands in the list once"


def test_a_wrong_cell_of_the_lines_comes_after_it(diopside):
    pattern, lines = diopside
    wrong = np.array([6.1, 7.3, 4.9, 90.0, 101.0, 90.0])
    given = [Lattice("mP", wrong, niggli_cell(wrong), 0.0, 500.0)]
    found = ProfileSearch(pattern, lines, IndexOptions()).joined(given)
    assert same_lattice(found[0].niggli, DIOPSIDE) and found[0].score < 500, "scores are made anew"


def test_what_was_not_asked_for_is_left_out(diopside):
    pattern, lines = diopside
    options = IndexOptions(systems=("triclinic", "orthorhombic"), max_volume=300.0)
    found = ProfileSearch(pattern, lines, options).joined([])
    assert {c.bravais[0] for c in found} <= {"a", "o"}
    assert all(cell_volume(c.niggli) < 306 for c in found)


def test_a_short_scan_keeps_the_answer_of_the_lines(diopside):
    pattern, lines = diopside
    inside = (pattern.two_theta > 25) & (pattern.two_theta < 33)
    short = cdl.PowderPattern(pattern.two_theta[inside], pattern.intensity[inside], "CuKa")
    given = [Lattice("mC", np.array([9.7, 8.9, 5.3, 90, 105.0, 90]), DIOPSIDE, 0.0, 10.0)]
    assert ProfileSearch(short, lines, IndexOptions()).joined(given) == given
