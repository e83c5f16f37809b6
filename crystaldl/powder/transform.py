"""New patterns from a pattern: crop, rebin, another wavelength, Kα2 removed."""

from __future__ import annotations

import math

import numpy as np

from ..errors import DataError, WavelengthError
from ..physics.wavelengths import Radiation, resolve_radiation
from . import axes

__all__ = ["counting_sigma", "crop", "rebin", "strip_kalpha2", "to_wavelength"]


def counting_sigma(pattern) -> np.ndarray | None:
    """Standard uncertainties: the pattern's own, or √N where the intensities are plainly raw counts, else None.

    Raw counts are recognised by being whole numbers with at least ten distinct values and no background removed; the
    uncertainty of an observed count N is taken as √max(N, 1).
    """
    if pattern.sigma is not None:
        return pattern.sigma
    y = pattern.intensity[~pattern.mask]
    if pattern.background_subtracted or np.any(y != np.round(y)) or np.unique(y).size < 10:
        return None
    return np.sqrt(np.maximum(pattern.intensity, 1.0))


def crop(pattern, low=None, high=None):
    """The points with low ≤ 2θ ≤ high, in degrees; DataError when fewer than two measured points remain."""
    low = -math.inf if low is None else _number(low, "low")
    high = math.inf if high is None else _number(high, "high")
    if not low < high:
        raise DataError(f"low is {low:g} and high is {high:g}; low must be the smaller one, in degrees 2θ.")
    keep = (pattern.two_theta >= low) & (pattern.two_theta <= high)
    if np.count_nonzero(keep & ~pattern.mask) < 2:
        x = pattern.two_theta
        raise DataError(f"no measured points lie in {low:g} to {high:g}°; the pattern spans {x[0]:g} to {x[-1]:g}°.")
    return _select(pattern, keep)


def rebin(pattern, step, how: str = "mean"):
    """Average or add up the points in bins of width ``step``.

    Bin centres are integer multiples of ``step`` (degrees), so that patterns rebinned alike share their points.  Every
    point stands for the cell between the midpoints to its neighbours, and a cell that straddles two bins is shared
    between them in proportion.  ``"mean"`` divides by the measured share of the bin and keeps the intensity scale;
    ``"sum"`` keeps the total Σ I.  Uncertainties are propagated with the same weights.  A bin with less than half of
    its width measured becomes NaN under ``"mean"``; bins at the ends without any point are dropped.
    """
    step = _number(step, "step")
    if how not in ("mean", "sum"):
        raise DataError(f"how is {how!r}; expected 'mean' or 'sum'.")
    x = pattern.two_theta
    if not pattern.step * 0.999 <= step <= (x[-1] - x[0]) / 2:
        raise DataError(
            f"step is {step:g}°; expected at least the pattern's own step of {pattern.step:.4g}° and at most half its range."
        )
    cell, index, share = _overlaps(x, step)
    good = ~pattern.mask[cell]
    cell, index, share = cell[good], index[good], share[good]
    first = index.min()
    index -= first
    n = index.max() + 1
    width = np.gradient(x)[cell] * share
    weight = share if how == "sum" else width
    covered = np.bincount(index, width, n)
    total = np.bincount(index, weight * pattern.intensity[cell], n)
    sigma = None
    if pattern.sigma is not None:
        sigma = np.sqrt(np.bincount(index, (weight * pattern.sigma[cell]) ** 2, n))
    empty = covered < (step / 2 if how == "mean" else 1e-12)
    norm = np.where(empty, np.nan, covered if how == "mean" else 1.0)
    keep = slice(int(np.argmin(empty)), n - int(np.argmin(empty[::-1])))
    return pattern._derive(
        two_theta=((np.arange(n) + first) * step)[keep],
        intensity=(total / norm)[keep],
        sigma=None if sigma is None else (sigma / norm)[keep],
        background=None,
    )


def _overlaps(x: np.ndarray, step: float):
    """Which cell falls in which bin, and with which share of the cell: three flat arrays (cell, bin, share)."""
    middle = (x[1:] + x[:-1]) / 2
    edges = np.concatenate(([2 * x[0] - middle[0]], middle, [2 * x[-1] - middle[-1]]))
    low, high = edges[:-1] / step + 0.5, edges[1:] / step + 0.5
    first, last = np.floor(low + 1e-9).astype(int), np.floor(high - 1e-9).astype(int)
    count = last - first + 1
    cell = np.repeat(np.arange(x.size), count)
    offset = np.arange(cell.size) - np.repeat(np.cumsum(count) - count, count)
    index = first[cell] + offset
    share = np.minimum(high[cell], index + 1) - np.maximum(low[cell], index)
    return cell, index, share / (high - low)[cell]


def to_wavelength(pattern, wavelength):
    """Move every point to the 2θ at which ``wavelength`` would meet the same d.

    The axis becomes non-uniform.  A Kα doublet stays one, with its own relative splitting: the data still hold it.
    Points that the new wavelength cannot reach (d ≤ λ/2) are dropped.
    """
    target = resolve_radiation(wavelength)
    x = axes.inverse_d_to_two_theta(pattern.inverse_d, target.wavelength)
    keep = np.isfinite(x) & (x < 180)
    if keep.sum() < 2:
        raise DataError(
            f"wavelength is {target.wavelength:g} Å; it reaches none of the d spacings of this pattern, "
            f"which begin at {pattern.d[0]:.4g} Å."
        )
    source = pattern.radiation
    scale = target.wavelength / source.wavelength
    moved = Radiation(
        f"{target} (measured with {source})" if target.name != source.name else source.name,
        target.wavelength,
        None if source.alpha2 is None else source.alpha2 * scale,
        source.alpha2_ratio,
        source.anode if abs(scale - 1) < 1e-9 else None,
        source.doublet if source.alpha2 is not None or abs(scale - 1) < 1e-9 else False,
    )
    return _select(pattern._derive(two_theta=np.where(keep, x, np.inf), radiation=moved), keep)


def strip_kalpha2(pattern):
    """Remove the Kα2 part of a doublet by Rachinger's correction (J. Sci. Instrum. 25, 254 (1948)).

    I(2θ) = I1(2θ) + r I1(2θ') d(2θ')/d(2θ) with sin θ' = (λ1/λ2) sin θ is solved for I1 from the low-angle end upwards,
    I1 being linear between points.  A doublet whose presence is unknown is taken as present.  Points that were not
    measured stay so, and count as their interpolation.  Noise is amplified and can make small negative values.

    Raises
    ------
    WavelengthError
        When the radiation is a single line.
    """
    radiation = pattern.radiation.as_doublet() if pattern.radiation.doublet is None else pattern.radiation
    if radiation.alpha2 is None:
        raise WavelengthError(f"radiation is {radiation}, a single line; a Kα doublet is expected to strip Kα2 from.")
    x = pattern.two_theta
    ratio = radiation.wavelength / radiation.alpha2
    sine = np.sin(np.radians(x / 2)) * ratio
    source = 2 * np.degrees(np.arcsin(sine))
    jacobian = ratio * np.cos(np.radians(x / 2)) / np.sqrt(1 - sine**2)
    strength = radiation.alpha2_ratio * jacobian
    where = np.clip(np.searchsorted(x, source, side="right") - 1, -1, x.size - 2)
    fraction = np.where(where >= 0, (source - x[where]) / (x[where + 1] - x[where]), 0.0)
    missing = pattern.mask
    y = pattern.intensity.copy()
    y[missing] = np.interp(x[missing], x[~missing], y[~missing])
    variance = None if pattern.sigma is None else np.square(pattern.sigma)
    first, variance = _solve_doublet(y, variance, strength, where, fraction)
    first[missing] = np.nan
    return pattern._derive(
        intensity=first,
        sigma=None if variance is None else np.sqrt(variance),
        radiation=radiation.as_single(),
        background=None,
    )


def _solve_doublet(y, variance, strength, where, fraction):
    """Back-substitution for the Kα1 profile; plain floats are several times faster here than numpy scalars."""
    out, var = [0.0] * y.size, [0.0] * y.size
    given = [0.0] * y.size if variance is None else variance.tolist()
    values, strengths, lows, parts = y.tolist(), strength.tolist(), where.tolist(), fraction.tolist()
    for i, (value, s, j, t) in enumerate(zip(values, strengths, lows, parts, strict=True)):
        if j < 0:  # the Kα1 line lies before the start: the tail is taken as flat
            out[i], var[i] = value / (1 + s), given[i]
        elif j + 1 < i:
            out[i] = value - s * ((1 - t) * out[j] + t * out[j + 1])
            var[i] = given[i] + s * s * ((1 - t) ** 2 * var[j] + t * t * var[j + 1])
        else:  # the point itself is one of the two neighbours (splitting below one step)
            j = min(j, i - 1)
            t = t if j + 1 == i and lows[i] == j else 1.0
            out[i] = (value - s * (1 - t) * out[j]) / (1 + s * t)
            var[i] = (given[i] + (s * (1 - t)) ** 2 * var[j]) / (1 + s * t) ** 2
    return np.array(out), None if variance is None else np.array(var)


def _select(pattern, keep):
    fields = ("two_theta", "intensity", "sigma", "background")
    return pattern._derive(**{f: None if (a := getattr(pattern, f)) is None else a[keep] for f in fields})


def _number(value, name: str) -> float:
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"{name} is {value!r}; expected a number in degrees.") from None
    if not math.isfinite(value):
        raise DataError(f"{name} is {value}; expected a finite number in degrees.")
    return value
