"""Cells, metric tensors and Bragg's law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crystaldl.physics.lattice import (
    cell_from_metric,
    cell_matrix,
    cell_volume,
    inverse_d,
    inverse_d_from_two_theta,
    metric_tensor,
    two_theta_from_inverse_d,
)

lengths = st.floats(2.0, 30.0)
angles = st.floats(60.0, 118.0)


@pytest.mark.parametrize(
    ("cell", "hkl", "d"),
    [  # d-spacings as printed in the powder data of these materials, Å
        ([5.43102] * 3 + [90] * 3, (1, 1, 1), 3.1356),
        ([5.43102] * 3 + [90] * 3, (2, 2, 0), 1.9201),
        ([5.43102] * 3 + [90] * 3, (4, 2, 2), 1.1086),
        ([5.6402] * 3 + [90] * 3, (2, 0, 0), 2.8201),
        ([4.15682] * 3 + [90] * 3, (1, 1, 0), 2.9393),  # LaB6
        ([4.7592, 4.7592, 12.992, 90, 90, 120], (0, 1, 2), 3.4797),  # corundum
        ([4.7592, 4.7592, 12.992, 90, 90, 120], (1, 0, 4), 2.5510),
        ([4.9134, 4.9134, 5.4052, 90, 90, 120], (1, 0, 1), 3.3434),  # quartz
        ([4.9896, 4.9896, 17.061, 90, 90, 120], (1, 0, 4), 3.0355),  # calcite
        ([4.5937, 4.5937, 2.9587, 90, 90, 90], (1, 1, 0), 3.2482),  # rutile
        ([5.1505, 5.2116, 5.3173, 90, 99.23, 90], (-1, 1, 1), 3.1650),  # baddeleyite
    ],
)
def test_textbook_spacings(cell, hkl, d):
    assert 1 / inverse_d(hkl, cell)[0] == pytest.approx(d, abs=1.5e-3)


def test_known_volumes_and_angles():
    assert cell_volume([2, 3, 4, 90, 90, 90]) == pytest.approx(24)
    assert cell_volume([3, 3, 5, 90, 90, 120]) == pytest.approx(45 * np.sqrt(3) / 2)
    # silicon 111 with copper Kα1
    assert two_theta_from_inverse_d(np.sqrt(3) / 5.43102, 1.540593) == pytest.approx(28.4424, abs=1e-3)
    assert np.isnan(two_theta_from_inverse_d(2.0, 1.54))


@settings(deadline=None, max_examples=60)
@given(lengths, lengths, lengths, angles, angles, angles)
def test_cell_and_metric_are_inverse(a, b, c, alpha, beta, gamma):
    assume(alpha + beta + gamma < 355 and 2 * max(alpha, beta, gamma) < alpha + beta + gamma - 3)
    cell = np.array([a, b, c, alpha, beta, gamma])
    metric = metric_tensor(cell)
    assert cell_from_metric(metric) == pytest.approx(cell, rel=1e-9)
    assert cell_volume(cell) ** 2 == pytest.approx(np.linalg.det(metric), rel=1e-9)
    # rows are the lattice vectors; the reciprocal metric is that of the dual basis
    m = cell_matrix(cell)
    assert np.linalg.norm(m, axis=1) == pytest.approx([a, b, c])
    hkl = np.array([[1, -2, 3], [0, 1, 1]])
    assert inverse_d(hkl, cell) == pytest.approx(np.linalg.norm(hkl @ np.linalg.inv(m).T, axis=1), rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.3, 2.5), st.floats(1.0, 170.0))
def test_bragg_both_ways(wavelength, two_theta):
    q = inverse_d_from_two_theta(two_theta, wavelength)
    assert two_theta_from_inverse_d(q, wavelength) == pytest.approx(two_theta, abs=1e-9)
    assert wavelength == pytest.approx(2 / q * np.sin(np.radians(two_theta / 2)))


def test_impossible_cell():
    with pytest.raises(ValueError, match="cell has the angles"):
        cell_matrix([5, 5, 5, 60, 60, 130])
