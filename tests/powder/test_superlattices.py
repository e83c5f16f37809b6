"""Superlattices that only weak lines tell."""

from __future__ import annotations

import numpy as np
import pytest

import crystaldl.powder.indexing.superlattices as module
from crystaldl.physics.lattice import cell_volume
from crystaldl.powder.indexing.bravais import metric_of, niggli_cell, same_lattice
from crystaldl.powder.indexing.extinction import predicted_reflections
from crystaldl.powder.indexing.pools import Lattice
from crystaldl.powder.indexing.superlattices import (
    Measured,
    Superlattice,
    against_chance,
    cell_of_group,
    superlattices,
    wave_groups,
    with_superlattices,
    without_centring,
)
from crystaldl.powder.prepare import AXIS_POINTS, REFERENCE_WAVELENGTH, common_axis

CELL = np.array([4.48, 8.07, 9.33, 90.0, 90.0, 90.0])
NOISE = 0.008


def pattern(weak: float, seed: int = 0, foreign: int = 0) -> Measured:
    """An orthorhombic crystal that is body-centred but for lines of ``weak`` times the strength of the others.

    ``foreign``: lines of something else.
    """
    return drawn_pattern("oP", CELL, lambda hkl: hkl.sum(1) % 2 == 0, weak, seed, foreign)


def drawn_pattern(lattice, cell, strong, weak: float, seed: int = 0, foreign: int = 0) -> Measured:
    """Lines of a lattice up to 70°, of ``weak`` times the strength where indices are not ``strong``."""
    rng = np.random.default_rng(seed)
    hkl, q2 = predicted_reflections(metric_of(cell), lattice, (2 * np.sin(np.radians(35.0)) / REFERENCE_WAVELENGTH) ** 2)
    strength = rng.exponential(1.0, len(q2)) * np.where(strong(hkl), 1.0, weak)
    x = 2 * np.degrees(np.arcsin(np.sqrt(q2) * REFERENCE_WAVELENGTH / 2))
    if foreign:
        x = np.append(x, rng.uniform(15, 65, foreign))
        strength = np.append(strength, rng.uniform(0.5, 3.0, foreign))
    axis = common_axis()
    u = (axis[:, None] - x) / 0.12
    y = (strength * (0.6 * np.exp(-4 * np.log(2) * u * u) + 0.4 / (1 + 4 * u * u))).sum(1)
    mask = ((axis > 8) & (axis < 70)).astype(np.float32)
    y = (y / y.max() + rng.normal(0, NOISE, AXIS_POINTS)) * mask
    return Measured(y, mask, 0.0, 0.0)


CENTRED = Lattice("oI", CELL, niggli_cell(CELL, "I"), 0.0, 50.0)
TRUE = niggli_cell(CELL, "P")


@pytest.mark.parametrize("seed", range(3))
def test_lines_near_the_noise_tell_the_larger_cell_together(seed):
    drawn = pattern(0.04, seed)  # single lines of up to about three times the noise
    found = with_superlattices([CENTRED], drawn)
    assert same_lattice(found[0].niggli, TRUE) and found[0].bravais == "oP" and found[0].score > 50
    assert found[1] is CENTRED, "the smaller one comes after it"


@pytest.mark.parametrize("seed", range(3))
def test_seven_cells_in_one(seed):
    """The √7 × √7 superlattice of a hexagonal one."""
    small = np.array([3.85, 3.85, 6.20, 90.0, 90.0, 120.0])
    large = small * [7**0.5, 7**0.5, 1, 1, 1, 1]
    base = Lattice("hP", small, niggli_cell(small), 0.0, 50.0)
    # a = 2a' + 3b' is a vector of the small lattice where (h + 5 k) / 7 or (h + 3 k) / 7 is whole, by the sense of the turn
    drawn = drawn_pattern("hP", large, lambda hkl: (hkl[:, 0] + 3 * hkl[:, 1]) % 7 == 0, 0.06, seed)
    found = with_superlattices([base], drawn)
    assert same_lattice(found[0].niggli, niggli_cell(large)) and found[0].score > 50


def test_the_second_superlattice_of_a_step_is_listed_behind_the_first(monkeypatch):
    """Unless it is one of the first, too, and worth no more."""
    made = lambda cell, likelihood: Superlattice(niggli_cell(cell), likelihood, 10)  # noqa: E731
    first, other, twice = CELL * [2, 1, 1, 1, 1, 1], CELL * [1, 2, 1, 1, 1, 1], CELL * [4, 1, 1, 1, 1, 1]
    base = Lattice("oP", CELL, TRUE, 0.0, 50.0)

    def scores(*answer):
        monkeypatch.setattr(module, "superlattices", lambda measured, fit: list(answer))
        monkeypatch.setattr(module, "STEPS", 1)
        found = with_superlattices([base], pattern(0.3))
        return [[x.score for x in found if same_lattice(x.niggli, niggli_cell(cell))] for cell in (first, other, twice)]

    assert scores(made(first, 9.0), made(other, 8.0)) == [[pytest.approx(54)], [pytest.approx(53)], []]
    assert scores(made(first, 9.0), made(twice, 8.0)) == [[pytest.approx(54)], [], []]
    (one,), _, (two,) = scores(made(first, 9.0), made(twice, 12.0))
    assert 53.5 < two < one == pytest.approx(54), "the first is chosen for having fewer lines that are not seen"


@pytest.mark.parametrize("seed", range(3))
def test_no_larger_cell_where_there_are_no_such_lines(seed):
    assert with_superlattices([CENTRED], pattern(0.0, seed))[0] is CENTRED
    full = Lattice("oP", CELL, TRUE, 0.0, 50.0)
    assert with_superlattices([full], pattern(0.3, seed))[0] is full


@pytest.mark.parametrize("seed", range(6))
def test_lines_of_a_second_phase_make_no_larger_cell(seed):
    full = Lattice("oP", CELL, TRUE, 0.0, 50.0)
    assert with_superlattices([full], pattern(0.3, seed, foreign=10))[0] is full


def test_a_lattice_stands_in_the_list_once():
    low = Lattice("oP", CELL, TRUE, 0.0, 7.0)
    found = with_superlattices([CENTRED, low], pattern(0.05))
    assert sum(same_lattice(lattice.niggli, TRUE) for lattice in found) == 1
    assert with_superlattices([], pattern(0.05)) == []


@pytest.mark.parametrize("seed", range(3))
def test_the_cell_without_its_centring_comes_after_it_where_its_lines_are_not_seen(seed):
    other = Lattice("aP", np.array([4.1, 5.3, 6.7, 81.0, 95.0, 99.0]), np.array([4.1, 5.3, 6.7, 81.0, 95.0, 99.0]), 0.0, 20.0)
    found = with_superlattices([CENTRED, other], pattern(0.0, seed))
    assert found[0] is CENTRED and found[2] is other
    assert found[1].bravais == "oP" and same_lattice(found[1].niggli, TRUE) and np.array_equal(found[1].cell, CELL)
    assert 20 < found[1].score < CENTRED.score


def test_a_lattice_that_was_almost_as_likely_stays_second():
    other = Lattice("aP", np.array([4.1, 5.3, 6.7, 81.0, 95.0, 99.0]), np.array([4.1, 5.3, 6.7, 81.0, 95.0, 99.0]), 0.0, 49.0)
    assert with_superlattices([CENTRED, other], pattern(0.0))[1] is other


@pytest.mark.parametrize(("lattice", "cell", "letter", "times"), [
    ("cF", [5.43, 5.43, 5.43, 90, 90, 90], "F", 4), ("hR", [4.91, 4.91, 17.1, 90, 90, 120], "R", 3),
    ("mC", [9.7, 8.9, 5.2, 90, 105.0, 90], "C", 2),
])  # fmt: skip
def test_the_cell_without_its_centring_has_all_of_its_points(lattice, cell, letter, times):
    fit = pattern(0.0).fit(lattice, metric_of(cell), 0.0)
    plain = without_centring(pattern(0.0), fit)
    assert cell_volume(plain.niggli) == pytest.approx(times * cell_volume(niggli_cell(cell, letter)), rel=0.01)
    assert plain.places > 0


def test_two_centrings_of_one_cell_lead_to_one_cell_without():
    other = Lattice("oC", CELL, niggli_cell(CELL, "C"), 0.0, 48.0)
    found = with_superlattices([CENTRED, other], pattern(0.0))
    assert sum(same_lattice(lattice.niggli, TRUE) for lattice in found) == 1 and len(found) == 3


def test_a_primitive_lattice_has_no_centring_to_lose():
    drawn = pattern(0.3)
    assert without_centring(drawn, drawn.fit("oP", metric_of(CELL), 0.0)) is None


def test_how_plain_a_superlattice_is_follows_its_lines():
    likelihoods = []
    for weak in (0.0, 0.04, 0.1):
        drawn = pattern(weak)
        fit = drawn.fit("oI", metric_of(CELL), 0.0)
        own = [s.likelihood for s in superlattices(drawn, fit) if same_lattice(s.niggli, TRUE)]
        likelihoods.append(max(own, default=0.0))
    assert likelihoods[0] < 3 < likelihoods[1] < likelihoods[2]


def test_wave_vectors_of_a_cubic_cell():
    cell = np.array([4.0, 4.0, 4.0, 90.0, 90.0, 90.0])
    groups = wave_groups(cell)
    made = [(len(g), cell_of_group(cell, g)) for g in groups]
    for n, niggli in made:
        assert cell_volume(niggli) == pytest.approx(64.0 * n, rel=1e-6)
    for n, a, centring in ((2, 8.0, "F"), (4, 8.0, "I"), (8, 8.0, "P")):  # of k = ½½½, ½½0 and ½00 with their equivalents
        wanted = niggli_cell([a, a, a, 90, 90, 90], centring)
        assert any(m == n and same_lattice(cell, wanted, 1e-4) for m, cell in made), centring


def test_chance_lines_tell_nothing_and_cost_little():
    rng = np.random.default_rng(0)
    norm = np.full(40, 500.0)
    values = [against_chance(rng.normal(size=40), norm, 0.02) for _ in range(200)]
    assert np.mean(values) < 0 and np.max(values) < 3
    seen = rng.normal(size=40) + rng.exponential(2.0, 40)
    assert against_chance(seen, norm, 0.02) > 10
    assert against_chance(np.zeros(0), np.zeros(0), 0.02) == pytest.approx(0.0)
