"""What may become a `PowderPattern`: each check raises one sentence that names the argument, before any work."""

from __future__ import annotations

import numpy as np

from ..errors import DataError

__all__ = ["MIN_POINTS", "check_axis", "check_intensity", "check_sigma"]

MIN_POINTS = 50


def check_axis(two_theta) -> tuple[np.ndarray, bool]:
    """The 2θ axis as a new float64 array, increasing, and whether it had to be reversed."""
    x = _numbers(two_theta, "two_theta")
    if x.size < MIN_POINTS:
        raise DataError(f"two_theta has {x.size} points; at least {MIN_POINTS} are expected.")
    bad = int(np.count_nonzero(~np.isfinite(x)))
    if bad:
        raise DataError(f"two_theta holds {bad} values that are not finite; every angle must be a number in degrees.")
    steps = np.diff(x)
    reverse = bool(np.all(steps < 0))
    if not reverse and not np.all(steps > 0):
        where = int(np.flatnonzero(steps <= 0)[0])
        kind = "repeats a value" if steps[where] == 0 else "is not sorted"
        raise DataError(
            f"two_theta {kind} at index {where + 1} ({x[where]:.6g} is followed by {x[where + 1]:.6g}); "
            "it must rise strictly."
        )
    if x.min() <= 0 or x.max() >= 180:
        raise DataError(
            f"two_theta spans {x.min():.6g} to {x.max():.6g}; expected degrees between 0 and 180, both excluded."
        )
    return (x[::-1].copy() if reverse else x), reverse


def check_intensity(intensity, n: int, *, allow_negative: bool, reverse: bool) -> np.ndarray:
    """The intensity as a new float64 array, NaN where not measured."""
    y = _numbers(intensity, "intensity")
    if y.size != n:
        raise DataError(f"two_theta has {n} points but intensity has {y.size}; both must have the same length.")
    if np.isinf(y).any():
        raise DataError("intensity holds infinite values; expected finite numbers, or NaN where nothing was measured.")
    measured = y[~np.isnan(y)]
    if measured.size < MIN_POINTS:
        raise DataError(
            f"intensity has {measured.size} measured points (the others are NaN); at least {MIN_POINTS} are expected."
        )
    low, high = measured.min(), measured.max()
    if low == high:
        raise DataError(f"intensity is constant ({low:.6g} everywhere); a pattern with lines is expected.")
    if low < 0 and not allow_negative:
        raise DataError(
            f"intensity holds negative values (down to {low:.6g}); counts are expected, or pass "
            "background_subtracted=True for data whose background is removed."
        )
    return y[::-1].copy() if reverse else y


def check_sigma(sigma, n: int, *, reverse: bool) -> np.ndarray | None:
    """The standard uncertainties as a new float64 array, or None."""
    if sigma is None:
        return None
    s = _numbers(sigma, "sigma")
    if s.size != n:
        raise DataError(f"two_theta has {n} points but sigma has {s.size}; both must have the same length.")
    if np.isinf(s).any() or np.any(s < 0):
        raise DataError(
            "sigma holds negative or infinite values; expected standard uncertainties, 0 or NaN if unknown."
        )
    return s[::-1].copy() if reverse else s


def _numbers(values, name: str) -> np.ndarray:
    """A new one-dimensional float64 array; masked elements become NaN."""
    if values is None:
        raise DataError(f"{name} is None; expected a one-dimensional array of numbers.")
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # ragged lists; a tensor on a GPU
        raise DataError(f"{name} cannot be turned into an array; expected one-dimensional numbers.") from None
    if array.ndim != 1:
        raise DataError(f"{name} has {array.ndim} dimensions (shape {array.shape}); expected a one-dimensional array.")
    if np.iscomplexobj(array):
        raise DataError(f"{name} is complex; expected real numbers.")
    if array.dtype.kind not in "iufO":
        raise DataError(f"{name} is of type {array.dtype}; expected numbers.")
    try:
        array = np.array(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{name} is not numeric; expected real numbers.") from None
    except MemoryError:
        raise DataError(f"{name} has the shape {array.shape}, which does not fit into memory; expected fewer points.") from None
    if masked is not None:
        array[masked] = np.nan
    return array
