"""Scattering of free atoms: X-rays, electrons and neutrons, as functions of ``s = sin θ / λ = 1/(2d) = Q / 4π`` in Å⁻¹.

Sources, as carried by gemmi:

* X-rays: International Tables for Crystallography C (1992), table 6.1.1.4, ``f(s²) = Σ a_i exp(-b_i s²) + c`` in electrons;
* electrons: International Tables C, table 4.3.2.2 (five Gaussians, s up to 2 Å⁻¹), first Born approximation, rest mass, in Å;
* neutrons: bound coherent scattering lengths, Neutron News 3(3) (1992) 29, real parts, in fm.
"""
from __future__ import annotations

from functools import lru_cache

import numpy as np

MAX_Z = 98          # the last element of the tables
RADIATIONS = ("xray", "electron", "neutron")
UNITS = {"xray": "electrons", "electron": "Å", "neutron": "fm"}


@lru_cache(maxsize=1)
def it92_table() -> np.ndarray:
    """Coefficients ``a1 a2 a3 a4 b1 b2 b3 b4 c`` of the neutral atoms, (MAX_Z + 1, 9); row 0 is empty."""
    import gemmi

    table = np.zeros((MAX_Z + 1, 9))
    for z in range(1, MAX_Z + 1):
        coefficients = gemmi.Element(z).it92
        if coefficients is not None:
            table[z] = [*coefficients.a, *coefficients.b, coefficients.c]
    return table


@lru_cache(maxsize=3)
def scattering_table(radiation: str = "xray") -> np.ndarray:
    """All elements in one form, ``f(s²) = Σ_1..5 a_i exp(-b_i s²) + c``.

    Parameters
    ----------
    radiation : {"xray", "electron", "neutron"}

    Returns
    -------
    (MAX_Z + 1, 11) ndarray, read-only
        ``a1…a5 b1…b5 c``; row 0 (a vacancy) scatters nothing. Units as in `UNITS`.
    """
    import gemmi

    table = np.zeros((MAX_Z + 1, 11))
    if radiation == "xray":
        it92 = it92_table()
        table[:, :4], table[:, 5:9], table[:, 10] = it92[:, :4], it92[:, 4:8], it92[:, 8]
    elif radiation == "electron":
        for z in range(1, MAX_Z + 1):
            coefficients = gemmi.Element(z).c4322
            table[z, :10] = [*coefficients.a, *coefficients.b]
    elif radiation == "neutron":
        for z in range(1, MAX_Z + 1):
            table[z, 10] = gemmi.Element(z).neutron92.get_coefs()[0]
    else:
        raise ValueError(f"radiation is {radiation!r}, expected one of {', '.join(RADIATIONS)}.")
    table.setflags(write=False)
    return table


def scattering_factor(z: int, s2, radiation: str = "xray") -> np.ndarray:
    """Scattering factor of element ``z`` at ``s2 = (sin θ / λ)²`` in Å⁻² (any shape); units as in `UNITS`."""
    table = scattering_table(radiation)
    if not 1 <= z <= MAX_Z:
        raise ValueError(f"z is {z}, expected an atomic number from 1 to {MAX_Z}.")
    row = table[z]
    s2 = np.asarray(s2, dtype=float)[..., None]
    return (row[:5] * np.exp(-row[5:10] * s2)).sum(-1) + row[10]


def xray_form_factor(z: int, s2) -> np.ndarray:
    """Form factor in electrons of element ``z`` at ``s2 = (sin θ / λ)²`` in Å⁻² (any shape)."""
    return scattering_factor(z, s2, "xray")


def electron_form_factor(z: int, s2) -> np.ndarray:
    """Electron scattering factor in Å (first Born approximation, rest mass) of element ``z`` at ``s2`` in Å⁻²."""
    return scattering_factor(z, s2, "electron")


def neutron_scattering_length(z: int) -> float:
    """Bound coherent scattering length of the natural element in fm (real part)."""
    return float(scattering_factor(z, 0.0, "neutron"))
