"""X-ray scattering factors of free atoms.

Source: International Tables for Crystallography C (1992), table 6.1.1.4, as carried by gemmi:
``f(s²) = Σ a_i exp(-b_i s²) + c`` with ``s = sin θ / λ = 1/(2d)`` in Å⁻¹.
"""
from __future__ import annotations

from functools import lru_cache

import numpy as np

MAX_Z = 98          # the last element of the table


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


def xray_form_factor(z: int, s2) -> np.ndarray:
    """Form factor in electrons of element ``z`` at ``s2 = (sin θ / λ)²`` in Å⁻² (any shape)."""
    if not 1 <= z <= MAX_Z:
        raise ValueError(f"z is {z}, expected an atomic number from 1 to {MAX_Z}.")
    row = it92_table()[z]
    s2 = np.asarray(s2, dtype=float)[..., None]
    return (row[:4] * np.exp(-row[4:8] * s2)).sum(-1) + row[8]
