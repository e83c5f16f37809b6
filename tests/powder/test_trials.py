"""What trial lattices say of each other."""

from __future__ import annotations

import numpy as np
import pytest

from crystaldl.powder.indexing.bravais import metric_of, niggli_cell
from crystaldl.powder.indexing.coincidences import COINCIDENCE
from crystaldl.powder.indexing.trials import Trial, _less_coincidences


def trial(bravais: str, cell, profile: float = 0.0) -> Trial:
    return Trial(bravais, metric_of(cell), 0.0, 20.0, 15.0, {}, profile)


SUBLATTICES = {
    "half an axis": ("tP", (12.0, 12.0, 6.0, 90, 90, 90), 1),
    "diagonals": ("tP", (12.0 / np.sqrt(2), 12.0 / np.sqrt(2), 12.0, 90, 90, 90), 1),
    "rhombohedral": ("hR", (6.0 / np.sqrt(2), 6.0 / np.sqrt(2), 12.0 * np.sqrt(3), 90, 90, 120), 1),
    "two ratios": ("oP", (4.0, 6.0, 12.0, 90, 90, 90), 2),
}


@pytest.mark.parametrize("name", SUBLATTICES)
def test_a_special_metric_speaks_for_the_larger_lattice(name):
    bravais, cell, owed = SUBLATTICES[name]
    cubic = trial("cF" if bravais == "hR" else "cP", (12.0, 12.0, 12.0, 90, 90, 90), -80.0)
    first, second = _less_coincidences([cubic, trial(bravais, cell)])
    assert first.profile == 0.0 and first.score == 20.0, "it has all lines of the other"
    assert second.score == 20.0 - owed * COINCIDENCE and second.allowed == 15.0 - owed * COINCIDENCE


def test_an_axis_that_is_only_nearly_special_is_its_own():
    cubic, near = trial("cP", (12.0, 12.0, 12.0, 90, 90, 90), -80.0), trial("tP", (12.0, 12.0, 6.03, 90, 90, 90))
    assert _less_coincidences([cubic, near]) == [cubic, near]


def test_a_sublattice_of_higher_symmetry_owes_nothing():
    """Forsterite's cell is no worse for a cube that it is the multiple of."""
    cube, large = trial("cP", (4.0, 4.0, 4.0, 90, 90, 90)), trial("oP", (4.0, 8.0, 12.0, 90, 90, 90), -20.0)
    assert _less_coincidences([cube, large]) == [cube, large]


def test_a_disguised_lattice_lends_nothing():
    """The primitive cell of an orthorhombic lattice, taken for triclinic, has a monoclinic superlattice; that proves nothing."""
    primitive = trial("aP", niggli_cell(np.array([4.75, 5.72, 5.09, 90, 90, 90]), "C"))
    base, above = trial("oC", (4.75, 5.72, 5.09, 90, 90, 90)), trial("mP", (3.7176, 5.09, 7.4352, 90, 100.63, 90), -30.0)
    assert _less_coincidences([base, primitive, above]) == [base, primitive, above]
    _, lent = _less_coincidences([primitive, above])
    assert lent.profile == 0.0, "unless it is not known to be orthorhombic"
