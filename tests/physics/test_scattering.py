"""Atomic scattering factors against International Tables C."""

from __future__ import annotations

import numpy as np
import pytest

from crystaldl.physics.scattering import (
    MAX_Z,
    RADIATIONS,
    electron_form_factor,
    neutron_scattering_length,
    scattering_factor,
    scattering_table,
    xray_form_factor,
)


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


@pytest.mark.parametrize(
    ("z", "f0"),
    [  # International Tables C, table 4.3.1.1: electron scattering factors of neutral atoms at s = 0, Å
        (1, 0.529), (6, 2.509), (8, 1.983), (13, 5.889), (14, 5.828), (26, 7.165), (29, 5.600), (79, 10.573),
    ],
)  # fmt: skip
def test_electron_factors_at_rest(z, f0):
    assert float(electron_form_factor(z, 0.0)) == pytest.approx(f0, rel=2e-3)


@pytest.mark.parametrize("z", [6, 8, 14, 26, 29, 47, 79])
def test_mott_bethe(z):
    """f_e = m e² / (8π ε0 h²) (Z - f_x) / s², the constant being 0.023934 Å⁻¹: two tables, one physics."""
    s2 = np.linspace(0.2, 1.4, 25) ** 2
    assert electron_form_factor(z, s2) == pytest.approx(0.0239337 * (z - xray_form_factor(z, s2)) / s2, rel=0.01)


@pytest.mark.parametrize(
    ("z", "length"),
    [(1, -3.739), (6, 6.646), (7, 9.36), (8, 5.803), (22, -3.438), (23, -0.3824), (26, 9.45), (28, 10.3)],
)
def test_neutron_lengths(z, length):
    """Sears, Neutron News 3 (1992) 26, in fm; the same at every angle."""
    assert neutron_scattering_length(z) == pytest.approx(length, abs=0.011)
    assert scattering_factor(z, [0.0, 0.3, 4.0], "neutron") == pytest.approx(np.full(3, neutron_scattering_length(z)))


def test_one_table_for_all():
    """The common form agrees with gemmi's own evaluation, element by element."""
    import gemmi

    for z in range(1, MAX_Z + 1):
        element = gemmi.Element(z)
        for s2 in (0.0, 0.04, 0.6):
            assert scattering_factor(z, s2, "electron") == pytest.approx(element.c4322.calculate_sf(s2), rel=1e-5)
            if element.it92 is not None:
                assert scattering_factor(z, s2, "xray") == pytest.approx(element.it92.calculate_sf(s2), rel=1e-5)
    for radiation in RADIATIONS:
        table = scattering_table(radiation)
        assert table.shape == (MAX_Z + 1, 11) and not table.flags.writeable and not table[0].any()


def test_unknown_radiation():
    with pytest.raises(ValueError, match="radiation is 'muon', expected one of xray, electron, neutron"):
        scattering_factor(6, 0.1, "muon")
