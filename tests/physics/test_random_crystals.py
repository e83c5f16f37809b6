"""Random crystals: their symmetry, distances and reproducibility."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import spglib

from crystaldl.physics.crystals import covalent_radii
from crystaldl.physics.lattice import cell_matrix, cell_volume
from crystaldl.physics.random_crystals import random_cell, random_crystal
from crystaldl.physics.symmetry import CRYSTAL_SYSTEMS, SYSTEM_OF_GROUP


@pytest.fixture(scope="module")
def one_of_each():
    rng = np.random.default_rng(11)
    return [random_crystal(number, rng, max_atoms=60) for number in range(1, 231)]


def closest_contact(crystal):
    """Smallest distance over the sum of covalent radii."""
    matrix, radii = cell_matrix(crystal.cell), covalent_radii()[crystal.numbers]
    shifts = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3)), float) @ matrix
    delta = crystal.positions[:, None] - crystal.positions[None]
    delta = (delta - np.round(delta)) @ matrix
    distance = np.linalg.norm(delta[:, :, None] + shifts[None, None], axis=-1)
    distance[distance < 1e-6] = np.inf
    return (distance.min(-1) / (radii[:, None] + radii[None])).min()


def test_spglib_confirms_every_group(one_of_each):
    for number, crystal in enumerate(one_of_each, start=1):
        assert crystal.space_group == number
        found = spglib.get_symmetry_dataset((cell_matrix(crystal.cell), crystal.positions, crystal.numbers), symprec=0.01)
        assert found.number == number


def test_composition_and_distances(one_of_each):
    for crystal in one_of_each:
        assert len(crystal.numbers) == len(crystal.positions) > 0
        assert crystal.numbers.min() >= 1 and crystal.numbers.max() <= 98
        assert np.isfinite(crystal.positions).all()
        if len(crystal.numbers) <= 100:
            assert closest_contact(crystal) > 0.67


def test_cells_follow_the_system(one_of_each):
    for crystal in one_of_each:
        a, b, c, alpha, beta, gamma = crystal.cell
        system = CRYSTAL_SYSTEMS[SYSTEM_OF_GROUP[crystal.space_group - 1]]
        if system == "cubic":
            assert a == b == c
        if system in ("tetragonal", "trigonal", "hexagonal"):
            assert a == b
        if system in ("orthorhombic", "tetragonal", "cubic"):
            assert (alpha, beta, gamma) == (90, 90, 90)
        if system in ("trigonal", "hexagonal"):
            assert (alpha, beta, gamma) == (90, 90, 120)
        if system == "monoclinic":
            assert alpha == gamma == 90 and beta > 90
        assert crystal.cell[:3].min() >= 2.2 and crystal.cell[:3].max() <= 45


@pytest.mark.parametrize("number", [1, 15, 62, 167, 227])
def test_seed_decides(number):
    one, two, other = (random_crystal(number, np.random.default_rng(s)) for s in (5, 5, 6))
    assert np.array_equal(one.positions, two.positions) and np.array_equal(one.cell, two.cell)
    assert np.array_equal(one.numbers, two.numbers)
    assert not np.array_equal(one.cell, other.cell)


@pytest.mark.parametrize("system", CRYSTAL_SYSTEMS)
def test_volume_of_random_cells(system):
    rng = np.random.default_rng(0)
    for volume in (50.0, 900.0):
        assert cell_volume(random_cell(system, volume, rng)) == pytest.approx(volume)


def test_bad_input():
    with pytest.raises(ValueError, match="space_group is 0"):
        random_crystal(0, np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="no crystal of space group 230 found in 0 draws"):
        random_crystal(230, np.random.default_rng(0), attempts=0)
