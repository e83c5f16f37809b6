"""What the lattice of a classified pattern leaves unexplained, as a pattern of its own: a way to a second phase."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import maximum_filter1d

from ..errors import DataError
from .axes import inverse_d_to_two_theta, two_theta_to_inverse_d
from .pattern import PowderPattern
from .prepare import AXIS_START, AXIS_STEP, REFERENCE_WAVELENGTH

__all__ = ["fitted_curve", "remainder"]

#: a difference of less than this share of the fit, or of its maximum within so many widths, is the fit's own error
OWN_ERROR, NEAR, WIDTHS = 0.25, 0.1, 2.0
#: share of the fit's maximum below which it says nothing
BENEATH = 0.01


def fitted_curve(result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """2θ on the pattern's own axis (degrees), measured and calculated intensity without background, (m,) each.

    The fit lives on the common axis and its own scale; one factor, by least squares, brings it back.
    """
    fit, pattern = result.lattices[0].fit, result.pattern
    common = AXIS_START + AXIS_STEP * (fit.first + np.arange(len(fit.curve)))
    x = inverse_d_to_two_theta(two_theta_to_inverse_d(common, REFERENCE_WAVELENGTH), pattern.radiation.wavelength)
    clean = pattern if pattern.background_subtracted else pattern.subtract_background()
    good = ~clean.mask
    inside = np.isfinite(x) & (x >= clean.two_theta[good][0]) & (x <= clean.two_theta[good][-1])
    measured = np.interp(x[inside], clean.two_theta[good], clean.intensity[good])
    curve = fit.curve[inside].astype(float)
    design = np.stack([curve, np.ones_like(curve)], 1)
    factor = np.linalg.lstsq(design, measured, rcond=None)[0] if inside.any() else np.zeros(2)
    return x[inside], measured, design @ factor


def remainder(result) -> PowderPattern:
    """The pattern less the fit of its first lattice; see `crystaldl.powder.result.Classification.remainder`."""
    if not result.lattices or result.lattices[0].fit is None:
        raise DataError(
            f"result of method {result.method!r} holds no fitted lattice; expected one of 'auto' or 'indexing' that found a "
            "lattice, made in this session."
        )
    x, measured, curve = fitted_curve(result)
    rest = measured - curve
    reach = int(WIDTHS * np.median(result.lattices[0].fit.width) / AXIS_STEP)
    near = maximum_filter1d(curve, 2 * reach + 1) if len(curve) else curve
    own = np.maximum(OWN_ERROR * curve, NEAR * near)
    known = (near > BENEATH * curve.max(initial=0.0)) & (np.abs(rest) < own)
    rest = np.where(known, np.nan, np.maximum(rest, 0.0))
    name = f"{result.pattern.name}, remainder".removeprefix(", ")
    return PowderPattern(x, rest, result.pattern.radiation, name, background_subtracted=True)
