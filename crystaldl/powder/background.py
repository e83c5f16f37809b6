"""Smooth backgrounds of powder patterns, through pybaselines."""

from __future__ import annotations

import math
import warnings
from numbers import Real

import numpy as np

from ..errors import DataError
from .transform import counting_sigma

__all__ = ["METHODS", "estimate_background", "subtract"]

METHODS = ("arpls", "asls", "snip", "polynomial")

# Beyond this many points the estimate is made on averages of neighbours: a background has no finer detail, and the
# banded solvers then take a few milliseconds.
_MAX_POINTS = 1800
# Lines of a laboratory pattern are 0.05 to 0.5° wide, amorphous humps 5 to 20°: what is wider than this is background.
_DEFAULT_WIDTH = 3.0


def subtract(pattern, method: str = "arpls", width: float | None = None):
    """A new pattern without its background, which it keeps as ``.background``.

    Uncertainties of raw counts are set from the counts before subtraction.  Intensities between lines scatter about
    zero and are not clipped.
    """
    background = estimate_background(pattern.two_theta, pattern.intensity, method=method, width=width)
    sigma = counting_sigma(pattern)
    return pattern._derive(
        intensity=pattern.intensity - background,
        sigma=None if sigma is None else np.array(sigma),
        subtracted=True,
        background=background,
    )


def estimate_background(two_theta, intensity, method: str = "arpls", width: float | None = None) -> np.ndarray:
    """The smooth background under the lines.

    Parameters
    ----------
    two_theta, intensity : (n,) arrays
        Degrees, increasing; NaN intensity is not measured and bears no weight.
    method : {"arpls", "asls", "snip", "polynomial"}
        Asymmetrically reweighted penalised least squares (Baek et al., Analyst 140, 250 (2015)), asymmetric least
        squares (Eilers 2003), statistics-sensitive peak clipping (Ryan et al. 1988), or an iterated polynomial of
        degree 6 (modified polyfit, Lieber and Mahadevan-Jansen 2003).
    width : float, optional
        Features narrower than this (degrees) are lines, wider ones background.  Default 3°, or less for patterns
        shorter than 15°, or more where the lines themselves are wide.

    Returns
    -------
    (n,) array, finite everywhere.
    """
    if method not in METHODS:
        raise DataError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    x, y = np.asarray(two_theta, dtype=np.float64), np.asarray(intensity, dtype=np.float64)
    span = x[-1] - x[0]
    if width is not None and not (isinstance(width, Real) and 0 < width <= span):
        raise DataError(f"width is {width!r}; expected a number of degrees above 0 and at most the range of {span:g}°.")
    grid, coarse = _coarse(x, y)
    step = grid[1] - grid[0]
    if width is None:
        width = max(min(_DEFAULT_WIDTH, span / 5), 12 * _line_width(coarse) * step)
    width = max(width, 4 * step)
    return np.interp(x, grid, _run(grid, coarse, method, width / step))


def _run(grid, y, method, points: float) -> np.ndarray:
    from pybaselines import Baseline
    from pybaselines.utils import ParameterWarning

    with warnings.catch_warnings():
        # Raised for noiseless data, where the reweighting has nothing to estimate; the last baseline is the answer.
        warnings.simplefilter("ignore", ParameterWarning)
        return _fit(Baseline, grid, y, method, points)


def _fit(baseline, grid, y, method, points: float) -> np.ndarray:
    fitter = baseline(x_data=grid, check_finite=False)
    if method == "snip":
        return fitter.snip(y, max_half_window=max(2, round(points / 2)), decreasing=True, smooth_half_window=1)[0]
    if method == "polynomial":
        return fitter.modpoly(y, poly_order=6)[0]
    # A second-order Whittaker smoother halves a wave of period 2π lam^(1/4); a line is half a wave, hence 2^4.
    lam = max((points / (2 * math.pi)) ** 4, 1.0) * 16
    if method == "asls":
        return fitter.asls(y, lam=lam, p=0.005, max_iter=30)[0]
    return fitter.arpls(y, lam=lam, max_iter=40, tol=1e-3)[0]


def _coarse(x, y) -> tuple[np.ndarray, np.ndarray]:
    """Averages on a uniform grid of at most `_MAX_POINTS`, gaps filled by straight lines."""
    good = np.isfinite(y)
    n = min(_MAX_POINTS, x.size)
    grid = np.linspace(x[0], x[-1], n)
    index = np.clip(np.rint((x[good] - x[0]) / (grid[1] - grid[0])).astype(int), 0, n - 1)
    count = np.bincount(index, minlength=n)
    total = np.bincount(index, y[good], n)
    filled = count > 0
    return grid, np.interp(grid, grid[filled], total[filled] / count[filled])


def _line_width(y) -> float:
    """Rough full width at half maximum of the strong lines, in points (median over the highest maxima)."""
    from scipy.signal import find_peaks, peak_widths

    height = np.percentile(y, 99.5) - np.median(y)
    if height <= 0:
        return 1.0
    tops, _ = find_peaks(y, prominence=height / 3)
    if tops.size == 0:
        return 1.0
    return float(np.median(peak_widths(y, tops, rel_height=0.5)[0]))
