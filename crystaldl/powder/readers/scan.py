"""What a reader returns, and the helpers all readers share."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np

from ...errors import FileFormatError
from ...physics.wavelengths import LINES, Radiation, resolve_radiation

__all__ = ["Scan", "floats", "lab_radiation", "merge_scans", "split_runs", "uniform_axis", "unusable"]

#: No powder pattern has more points; a header that says so is not one.
MAX_POINTS = 5_000_000


@dataclass
class Scan:
    """One scan as a file holds it: axis in degrees 2θ, intensity, and what the header says.

    ``radiation`` is None when the file does not name a wavelength.
    """

    two_theta: np.ndarray
    intensity: np.ndarray
    sigma: np.ndarray | None = None
    radiation: Radiation | None = None
    name: str = ""
    metadata: dict = field(default_factory=dict)
    background_subtracted: bool = False


def unusable(name: str, found: str, expected: str) -> FileFormatError:
    """The one sentence every reader fails with: file, what it looks like, what was expected."""
    return FileFormatError(f"{name}: {found}; expected {expected}.")


def floats(text: str | None, name: str, what: str) -> np.ndarray:
    """Numbers separated by white space or commas."""
    try:
        return np.array((text or "").replace(",", " ").split(), dtype=np.float64)
    except ValueError:
        raise unusable(name, f"{what} holds text that is not a number", "numbers") from None


def uniform_axis(start: float, step: float, n: int, name: str) -> np.ndarray:
    """start + step·i in degrees; FileFormatError when the three cannot be those of a powder scan."""
    finite = all(isinstance(v, Real) and np.isfinite(v) for v in (start, step))
    if not finite or not 0 < n <= MAX_POINTS or step == 0 or not -10 < start + step * (n - 1) < 200:
        raise unusable(
            name, f"its header says {n} points from {start:g}° in steps of {step:g}°", "a scan below 180° 2θ"
        )
    return start + step * np.arange(n)


def lab_radiation(alpha1=None, alpha2=None, ratio=None, anode=None) -> Radiation | None:
    """Radiation of a header's fields, any of which may be absent, zero or not a number.

    A header that lists Kα1 and Kα2 describes the tube, not the optics: the tables of an instrument name both lines
    even behind a Kα1 monochromator.  So the doublet is left open (``doublet=None``) for the data to decide, and the
    header's Kα1 is kept.  A wavelength that is not a line of a tube is a single one.
    """
    alpha1 = _length(alpha1)
    anode = str(anode or "").strip().strip("\x00").capitalize()
    if alpha1 is not None:
        return resolve_radiation(alpha1)
    if anode in LINES:
        return resolve_radiation(LINES[anode][0])
    return None


def _length(value) -> float | None:
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return value if np.isfinite(value) and 0.01 < value < 20 else None


def merge_scans(scans: list[Scan], name: str) -> Scan:
    """One scan of several ranges.

    Ranges with equal axes are added up.  Ranges that continue each other are joined; where they overlap the earlier
    one stays, and a UserWarning says so.  Otherwise the longest is taken, with a UserWarning.
    """
    scans = [s for s in scans if s.two_theta.size > 1]
    if not scans:
        raise unusable(name, "no scan with points in it", "at least one 2θ scan")
    first = scans[0]
    if len(scans) == 1:
        return first
    if all(_same_axis(s, first) for s in scans):
        sigma = None
        if all(s.sigma is not None for s in scans):
            sigma = np.sqrt(np.sum([np.square(s.sigma) for s in scans], axis=0))
        total = np.sum([s.intensity for s in scans], axis=0)
        meta = {**first.metadata, "scans_added": len(scans)}
        return replace(first, intensity=total, sigma=sigma, metadata=meta)
    scans = sorted(scans, key=lambda s: s.two_theta[0])
    if all(a.two_theta[-1] < b.two_theta[-1] for a, b in zip(scans[:-1], scans[1:], strict=True)):
        return _join(scans, name)
    longest = max(scans, key=lambda s: s.two_theta.size)
    _warn(
        f"{name} holds {len(scans)} overlapping scans; the longest, {longest.two_theta[0]:g} to "
        f"{longest.two_theta[-1]:g}°, was taken."
    )
    return longest


def _same_axis(a: Scan, b: Scan) -> bool:
    return a.two_theta.shape == b.two_theta.shape and bool(np.allclose(a.two_theta, b.two_theta))


def _join(scans: list[Scan], name: str) -> Scan:
    ends = [-np.inf] + [s.two_theta[-1] for s in scans[:-1]]
    keep = [s.two_theta > end for s, end in zip(scans, ends, strict=True)]
    dropped = sum(int((~k).sum()) for k in keep)
    if dropped:
        _warn(f"{name} holds {len(scans)} ranges that overlap; {dropped} points of later ranges were left out.")

    def column(field):
        parts = [getattr(s, field) for s in scans]
        return (
            None if any(p is None for p in parts) else np.concatenate([p[k] for p, k in zip(parts, keep, strict=True)])
        )

    meta = {k: v for k, v in scans[0].metadata.items() if not isinstance(v, np.ndarray)}
    return replace(
        scans[0],
        two_theta=column("two_theta"),
        intensity=column("intensity"),
        sigma=column("sigma"),
        metadata={**meta, "scans_joined": len(scans)},
    )


def split_runs(scan: Scan) -> list[Scan]:
    """The rising ranges of a table in which the axis starts again; the scan itself when that is not what it holds."""
    breaks = np.flatnonzero(np.diff(scan.two_theta) <= 0) + 1
    sizes = np.diff(np.concatenate(([0], breaks, [scan.two_theta.size])))
    if not 1 <= breaks.size <= 20 or sizes.min() < 2 or np.median(sizes) < 20:
        return [scan]
    cuts = np.split(np.arange(scan.two_theta.size), breaks)
    fields = ("two_theta", "intensity", "sigma")
    return [replace(scan, **{f: None if (v := getattr(scan, f)) is None else v[c] for f in fields}) for c in cuts]


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=6)
