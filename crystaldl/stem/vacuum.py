"""The probe from the scan itself: patterns that hold the direct beam alone, or else the central disk."""

from __future__ import annotations

import logging
import warnings

import numpy as np
from scipy import ndimage

from ..errors import DataError, PlausibilityWarning
from .probe import Probe

log = logging.getLogger(__name__)

FAINT = 0.01  # of the direct beam: what rises less beside it does not spoil a vacuum pattern
NOISY = 0.05  # where noise could hide more than this, no pattern passes for vacuum
MOST = 64  # vacuum patterns that are averaged
HOT = 4.0  # times its neighbours, and the mean
STARTS = (1.0, 1.8, 0.6)  # times the radius of the central disk


def probe_from_scan(patterns) -> Probe:
    """Build the probe from patterns of a scan; ``source`` says how.

    A pattern counts as vacuum where nothing of the size of the probe rises above 1 % of the direct beam beside it. The
    brightest of these are centred on one another to a fraction of a pixel and averaged. Without any, the probe is an even
    disk, its radius and edge those of the disks of the patterns (`crystaldl.stem.outline`), or where these are too faint
    that of the central disk of the mean pattern, with a warning.

    Parameters
    ----------
    patterns : (n, Qx, Qy)
        NaN where not measured.

    Raises
    ------
    DataError
        Neither is found.
    """
    patterns = without_hot_pixels(np.asarray(patterns))
    try:
        rough = Probe.from_patterns(patterns)
        rise, peak = besides_the_beam(patterns, rough.radius)
        vacuum = np.flatnonzero(rise < FAINT)
        vacuum = vacuum[peak[vacuum] > 0.7 * peak[vacuum].max()] if vacuum.size else vacuum
        if vacuum.size:
            chosen = vacuum[np.argsort(-peak[vacuum], kind="stable")[:MOST]]
            mean = _mean_centred(patterns[chosen], rough.radius)
            probe = Probe.from_array(mean, f"{vacuum.size} vacuum patterns of {len(patterns)} looked at")
        else:
            probe = _from_disks(patterns, rough)
    except DataError as error:
        raise DataError(f"probe='auto' found none: {error}") from error
    log.info("probe: radius %.2f px, from %s", probe.radius, probe.source)
    return probe


def without_hot_pixels(patterns: np.ndarray) -> np.ndarray:
    """Patterns (n, H, W) with NaN in pixels whose mean stands out from all their neighbours'; the same array without any.

    The probe covers several pixels, so that no pixel of a disk is several times as bright as the next.
    """
    if patterns.ndim != 3 or patterns.size == 0 or patterns.dtype.kind not in "buif":
        return patterns
    values = np.asarray(patterns, dtype=np.float32)
    finite = np.isfinite(values)
    mean = np.where(finite, values, 0).sum(0, dtype=float) / np.maximum(finite.sum(0), 1)
    around = np.ones((3, 3), dtype=bool)
    around[1, 1] = False
    next_to_it = ndimage.maximum_filter(mean, footprint=around, mode="constant")
    hot = mean - np.median(mean) > HOT * np.maximum(next_to_it - np.median(mean), 0) + HOT * mean.mean()
    return np.where(hot, np.nan, values) if hot.any() else patterns


def _from_disks(patterns: np.ndarray, rough: Probe) -> Probe:
    """The outline of the disks; a beam stop may have left a part of the central disk, so a start may be far off."""
    from .outline import outline

    for factor in STARTS:
        start = rough
        if factor != 1:
            start = Probe.synthetic(factor * rough.radius, rough.shape, centre=rough.centre, source=rough.source)
        found = outline(patterns, start)
        if found is not None:
            return found
    warnings.warn(
        f"probe='auto' found no vacuum pattern and too few clear disks; its radius of {rough.radius:.3g} px is that of the "
        "central disk of the mean pattern and may be off: pass the probe over vacuum where there is one.",
        PlausibilityWarning,
        stacklevel=5,
    )
    return rough


def besides_the_beam(patterns, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """What rises beside the direct beam as a fraction of it, and the height of the direct beam, for each pattern.

    Both after averaging over the size of the probe and less the pattern's median. Infinite where noise could hide a disk
    or there is no beam.
    """
    rise, peak = np.full(len(patterns), np.inf), np.zeros(len(patterns))
    width = max(1, int(round(1.5 * radius)))
    x, y = np.indices(patterns.shape[1:])
    for i, pattern in enumerate(patterns):
        values = np.asarray(pattern, dtype=np.float32)
        median = np.nanmedian(values)
        if not np.isfinite(median):
            continue
        smooth = ndimage.uniform_filter(np.nan_to_num(values - median, nan=0.0, posinf=0.0, neginf=0.0), width)
        top = np.unravel_index(np.argmax(smooth), smooth.shape)
        beside = smooth[np.hypot(x - top[0], y - top[1]) > 2 * radius + width]
        if beside.size == 0 or not smooth[top] > 0:
            continue
        peak[i] = smooth[top]
        noise = 1.4826 * np.median(np.abs(beside - np.median(beside))) / peak[i]
        if 5 * noise < NOISY:
            rise[i] = max(beside.max() / peak[i] - 5 * noise, 0.0)
    return rise, peak


def _mean_centred(patterns, radius: float) -> np.ndarray:
    """Mean of patterns whose beams are moved onto that of the first."""
    reach = int(np.ceil(radius + 4))
    total, first = np.zeros(patterns.shape[1:]), None
    for pattern in patterns:
        values = np.asarray(pattern, dtype=float)
        values = np.nan_to_num(values - np.nanmedian(values), nan=0.0)
        smooth = ndimage.uniform_filter(values, max(1, int(radius)))
        top = np.unravel_index(np.argmax(smooth), smooth.shape)
        window = tuple(slice(max(t - reach, 0), t + reach + 1) for t in top)
        disk = np.clip(values[window], 0, None)
        disk = np.where(disk > 0.2 * np.percentile(disk, 95), disk, 0)
        centre = np.array(ndimage.center_of_mass(disk)) + [w.start for w in window]
        first = centre if first is None else first
        total += ndimage.shift(values, first - centre, order=3, mode="nearest")
    return total / len(patterns)
