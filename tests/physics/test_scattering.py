"""Atomic scattering factors against International Tables C."""

from __future__ import annotations

import numpy as np
import pytest

from crystaldl.physics.scattering import MAX_Z, xray_form_factor


def test_forward_scattering_counts_electrons():
    z = np.arange(1, MAX_Z + 1)
    f = np.array([xray_form_factor(int(k), 0.0) for k in z])
    assert f == pytest.approx(z, rel=5e-3)


@pytest.mark.parametrize(
    ("z", "s", "f"),
    [  # International Tables C, table 6.1.1.1: mean scattering factors of free atoms, sin θ / λ in Å⁻¹
        (6, 0.1, 5.126), (6, 0.2, 3.581), (6, 0.3, 2.502), (6, 0.4, 1.950), (6, 0.5, 1.685),
        (8, 0.1, 7.245), (8, 0.2, 5.623), (8, 0.3, 4.089), (8, 0.4, 3.010),
        (13, 0.2, 9.16), (13, 0.4, 6.77), (14, 0.2, 9.67), (14, 0.4, 7.20),
    ],
)  # fmt: skip
def test_tabulated_values(z, s, f):
    assert float(xray_form_factor(z, s * s)) == pytest.approx(f, rel=0.015, abs=0.02)


def test_hydrogen_is_bonded():
    """Stewart, Davidson and Simpson (1965): contracted by its bond, above the free atom 1 / (1 + (2π a0 s)²)²."""
    s = np.array([0.1, 0.2, 0.3])
    free = (1 + (2 * np.pi * 0.529177 * s) ** 2) ** -2
    bonded = xray_form_factor(1, s**2)
    assert (bonded > free).all() and (bonded < 1.5 * free).all()


def test_shape_and_decline():
    s2 = np.linspace(0, 1.0, 30).reshape(5, 6)
    for z in range(1, MAX_Z + 1):
        f = xray_form_factor(z, s2)
        assert f.shape == s2.shape
        assert (np.diff(f.ravel()) < 1e-3).all() and f.min() > -0.05


@pytest.mark.parametrize("z", [0, -1, 99])
def test_unknown_element(z):
    with pytest.raises(ValueError, match=f"z is {z}"):
        xray_form_factor(z, 0.1)


def test_agrees_with_pymatgens_electron_table():
    """pymatgen turns Doyle and Turner's electron factors into X-ray ones: an independent table."""
    pytest.importorskip("pymatgen")
    from pymatgen.analysis.diffraction.xrd import ATOMIC_SCATTERING_PARAMS

    s2 = np.linspace(0.002, 0.2, 20)
    for symbol, z in (("O", 8), ("Na", 11), ("Si", 14), ("Ca", 20), ("Fe", 26), ("Zr", 40), ("Pb", 82)):
        a = np.array(ATOMIC_SCATTERING_PARAMS[symbol])
        peer = z - 41.78214 * s2 * (a[:, 0] * np.exp(-a[:, 1] * s2[:, None])).sum(1)
        assert xray_form_factor(z, s2) == pytest.approx(peer, rel=0.03)
