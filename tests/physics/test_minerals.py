"""The table of minerals: its crystals hold together, and agree with what handbooks say of them."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest

from crystaldl.physics.lattice import cell_matrix
from crystaldl.physics.minerals import Sites, expanded, minerals

# density in g/cm³ and space group, from handbooks of mineralogy
KNOWN = {"Albite": (2.62, 2), "Kyanite": (3.6, 2), "Malachite": (4.0, 14), "Vesuvianite": (3.4, 126), "Dravite": (3.05, 160),
         "Cordierite": (2.55, 66), "Staurolite": (3.75, 12), "Enstatite": (3.2, 61), "Talc": (2.75, 2),
         "Spodumene": (3.15, 15)}  # fmt: skip


def by_name():
    return {c.name: c for c in minerals()}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_density_and_symmetry(name):
    crystal = by_name()[name]
    share = 1.0 if crystal.occupancy is None else crystal.occupancy
    mass = (np.array([gemmi.Element(int(z)).weight for z in crystal.numbers]) * share).sum()
    density, group = KNOWN[name]
    assert mass / crystal.volume * 1.66054 == pytest.approx(density, rel=0.06)
    assert crystal.space_group == group == crystal.symmetry().number


def nearest(crystal, first, second):
    """Distances from each atom of ``first`` (atomic numbers) to the nearest of ``second``, Å."""
    a, b = (crystal.positions[np.isin(crystal.numbers, z)] for z in (first, second))
    delta = a[:, None] - b[None]
    distance = np.linalg.norm((delta - np.round(delta)) @ cell_matrix(crystal.cell), axis=2)
    return np.where(distance < 0.01, np.inf, distance).min(1)


def test_atoms_keep_their_distance():
    assert len(minerals()) > 100 and len(by_name()) == len(minerals())
    for crystal in minerals():
        assert crystal.symmetry().number == crystal.space_group and crystal.source, crystal.name
        heavy = crystal.numbers[crystal.numbers > 1]
        assert nearest(crystal, heavy, heavy).min() > 1.2, crystal.name
        if 14 in heavy:
            bonds = nearest(crystal, [14], [8])
            assert bonds.min() > 1.5 and bonds.max() < 1.72, crystal.name


def test_another_symmetry_is_no_crystal():
    ops = list(gemmi.SpaceGroup("P -1").operations())
    salt = Sites(np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), np.ones(2))
    cell = np.array([3.988, 3.988, 3.988, 60, 60, 60])
    assert expanded(salt, cell, ops, 2) is None
    assert expanded(salt, cell, ops, 225).space_group == 225
