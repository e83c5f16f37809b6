"""Fast electrons: wavelength, relativistic factor and elastic scattering factors.

Scattering factors are the five Gaussians of Peng, Ren, Dudarev & Whelan (Acta Cryst. A52:257, 1996; International
Tables C, table 4.3.2.2) as carried by gemmi: ``f(s) = Σ a_i exp(-b_i s²)`` in Å with ``s = q / 2`` and q = 1/d in Å⁻¹,
for electrons at rest (first Born approximation); the relativistic factor enters through `coupling`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

REST_ENERGY = 510.99895  # keV
HC = 12.398420  # keV Å
MAX_Z = 98


def wavelength(voltage: float) -> float:
    """Relativistic wavelength in Å at an accelerating voltage in kV."""
    if not voltage > 0:
        raise ValueError(f"voltage is {voltage!r}; expected a positive number of kV.")
    return HC / np.sqrt(voltage * (2 * REST_ENERGY + voltage))


def coupling(voltage: float) -> float:
    """``γ / π``: turns ``Σ f exp(-2πi g·r) / volume`` (Å⁻²) into ``U = 2 m e V / h²`` (Å⁻²)."""
    return (1 + voltage / REST_ENERGY) / np.pi


@lru_cache(maxsize=1)
def gaussians() -> tuple[np.ndarray, np.ndarray]:
    """Coefficients a (Å) and b (Å²) of the neutral atoms, (MAX_Z + 1, 5) each; row 0 is empty."""
    import gemmi

    a, b = np.zeros((MAX_Z + 1, 5)), np.zeros((MAX_Z + 1, 5))
    for z in range(1, MAX_Z + 1):
        coefficients = gemmi.Element(z).c4322
        if coefficients is not None:
            a[z], b[z] = coefficients.a, coefficients.b
    return a, b


def form_factor(z: int, q) -> np.ndarray:
    """Scattering factor in Å of element ``z`` at ``q = 1/d`` in Å⁻¹ (any shape)."""
    if not 1 <= z <= MAX_Z:
        raise ValueError(f"z is {z}; expected an atomic number from 1 to {MAX_Z}.")
    a, b = gaussians()
    s2 = 0.25 * np.asarray(q, dtype=float)[..., None] ** 2
    return (a[z] * np.exp(-b[z] * s2)).sum(-1)
