"""Conversions between 2θ (degrees), d (Å), 1/d and q = 2π/d (Å⁻¹), by Bragg's law λ = 2 d sin θ."""

from __future__ import annotations

import numpy as np

from ..errors import DataError

__all__ = ["d_to_two_theta", "inverse_d_to_two_theta", "q_to_two_theta", "two_theta_to_inverse_d"]


def two_theta_to_inverse_d(two_theta, wavelength: float) -> np.ndarray:
    """1/d = 2 sin θ / λ in Å⁻¹, of 2θ in degrees."""
    return 2.0 * np.sin(np.radians(np.asarray(two_theta, dtype=np.float64)) / 2) / wavelength


def inverse_d_to_two_theta(inverse_d, wavelength: float) -> np.ndarray:
    """2θ in degrees of 1/d in Å⁻¹; NaN beyond 2θ = 180°, where this wavelength cannot reach."""
    with np.errstate(invalid="ignore"):
        return 2.0 * np.degrees(np.arcsin(np.asarray(inverse_d, dtype=np.float64) * wavelength / 2))


def d_to_two_theta(d, wavelength: float) -> np.ndarray:
    """2θ in degrees of d in Å; DataError when some d is not positive or lies below λ/2."""
    d = _positive(d, "d", "Å")
    if d.min() <= wavelength / 2:
        raise DataError(f"d reaches down to {d.min():.4g} Å; with λ = {wavelength:.4g} Å it must stay above λ/2.")
    return inverse_d_to_two_theta(1.0 / d, wavelength)


def q_to_two_theta(q, wavelength: float) -> np.ndarray:
    """2θ in degrees of q in Å⁻¹; DataError when some q is not positive or reaches 4π/λ."""
    q = _positive(q, "q", "Å⁻¹")
    limit = 4 * np.pi / wavelength
    if q.max() >= limit:
        raise DataError(
            f"q reaches up to {q.max():.4g} Å⁻¹; with λ = {wavelength:.4g} Å it must stay below 4π/λ = {limit:.4g}."
        )
    return inverse_d_to_two_theta(q / (2 * np.pi), wavelength)


def _positive(values, name: str, unit: str) -> np.ndarray:
    try:
        values = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"{name} is not numeric; expected numbers in {unit}.") from None
    if values.ndim != 1 or values.size == 0 or not np.all(values > 0) or not np.all(np.isfinite(values)):
        raise DataError(f"{name} must be a one-dimensional array of finite numbers above 0, in {unit}.")
    return values
