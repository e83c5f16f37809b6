"""What `refine_sro` may be given: data, form factor and background, checked and put on the same pixels."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError, PlausibilityWarning
from ..grid import SNAP, steps
from ..symmetry import plane_operations
from ..volume import DiffuseVolume
from .vectors import lattice_points, zone_axis

__all__ = ["Inputs", "is_separation", "period_basis", "pixel_share", "prepare_inputs", "resolve_background", "resolve_factor",
           "zone_coverage"]

_BINS = 8
_FLAT = 1e-6


@dataclass(frozen=True, eq=False)
class Inputs:
    """Data on pixels, ready to be fitted.

    Attributes
    ----------
    volume : DiffuseVolume, the intensity
    factor : (*shape) D, NaN where not known
    factor_sigma : (*shape) or None
    fixed : (*shape) background that is subtracted before the fit
    powers : tuple of int, powers of (|Q| / |Q|max)² of the free background
    separation : the Separation the data came in, or None
    """

    volume: DiffuseVolume
    factor: np.ndarray
    factor_sigma: np.ndarray | None
    fixed: np.ndarray
    powers: tuple[int, ...]
    separation: Any = None  # a Separation, or None

    @property
    def used(self) -> np.ndarray:
        """(*shape) bool: measured, with a known form factor and background."""
        return self.volume.mask & np.isfinite(self.factor) & np.isfinite(self.fixed)

    def q2(self) -> np.ndarray:
        """(|Q| / |Q|max)² of the pixels."""
        q2 = np.square(self.volume.q())
        return q2 / q2.max()


def is_separation(data) -> bool:
    """Whether this is a result of `separate` (anything that has its parts)."""
    return all(hasattr(data, name) for name in ("measured", "form_factor", "sro"))


def check_volume(data, argument: str = "data") -> DiffuseVolume:
    if not isinstance(data, DiffuseVolume):
        raise DataError(f"{argument} is a {type(data).__name__}; expected a DiffuseVolume or a Separation.")
    if data.lattice is None:
        raise DataError(f"{argument} has no lattice (from_pixels); expected a DiffuseVolume with h, k, l and a lattice.")
    return data


def prepare_inputs(data, form_factor, background) -> Inputs:
    """Bring data, form factor and background to the same pixels; one-sentence errors before any work."""
    if is_separation(data):
        if form_factor is not None:
            raise DataError("form_factor is given beside a Separation, which has its own; expected one or the other.")
        return _from_separation(data, background)
    volume = check_volume(data)
    if form_factor is None:
        return _from_separation(volume.separate(method="physics"), background)
    factor, spread = resolve_factor(form_factor, volume)
    fixed, powers = resolve_background(background, volume, factor)
    return Inputs(volume, factor, spread, fixed, powers)


def _from_separation(parts, background) -> Inputs:
    volume, refined = parts.measured, check_volume(parts.form_factor, "data.form_factor")
    if volume.shape != refined.shape:
        raise DataError(f"data.form_factor has the shape {refined.shape} but data.measured has {volume.shape}.")
    same = volume.lattice == refined.lattice and np.array_equal(volume.basis, refined.basis) and all(
        np.array_equal(a, b) for a, b in zip(volume.axes, refined.axes, strict=True)
    )
    if not same:  # the separation found or refined the lattice
        volume = refined.replace(data=volume.data, mask=volume.mask, sigma=volume.sigma, name=volume.name)
    factor = _like(parts.form_factor.data, volume, "form_factor")
    spread = None if parts.form_factor.sigma is None else np.array(parts.form_factor.sigma)
    fixed, powers = resolve_background(None if isinstance(background, str) and background == "auto" else background, volume, factor)
    own = getattr(parts, "background", None)
    if own is not None:
        fixed = fixed + _like(own.data if isinstance(own, DiffuseVolume) else own, volume, "background")
    return Inputs(volume, factor, spread, fixed, powers, parts)


def resolve_factor(form_factor, volume: DiffuseVolume) -> tuple[np.ndarray, np.ndarray | None]:
    """D and its sigma (or None) on the pixels of a volume, from whatever stands for a form factor."""
    from ..molecular import difference_form_factor, is_pair

    spread = None
    if is_pair(form_factor):
        factor = difference_form_factor(volume, *form_factor)
    elif isinstance(form_factor, DiffuseVolume):
        same = form_factor.shape == volume.shape and all(
            np.allclose(a, b, atol=1e-6) for a, b in zip(form_factor.axes, volume.axes, strict=True)
        )
        if not (same and np.allclose(form_factor.basis, volume.basis) and np.allclose(form_factor.origin, volume.origin)):
            raise DataError("form_factor is a DiffuseVolume on other pixels than data; both must have the same axes.")
        factor, spread = form_factor.data, form_factor.sigma
    elif callable(form_factor):
        factor = _like(form_factor(volume.hkl()), volume, "form_factor(hkl)")
    elif np.ndim(form_factor) == 0:
        factor = np.full(volume.shape, _number(form_factor))
    else:
        factor = _like(form_factor, volume, "form_factor")
    known = factor[volume.mask]
    if not np.isfinite(known).any():
        raise DataError("form_factor is not known on any measured pixel.")
    if np.nanmax(known) <= 0:
        raise DataError(f"form_factor is nowhere positive (largest value {np.nanmax(known):.4g}); expected |F_A - F_B|².")
    return np.array(factor, dtype=float), None if spread is None else np.array(spread)


def _number(value) -> float:
    expected = "a DiffuseVolume, an array, a function of hkl, a pair of molecules or a number"
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"form_factor is {value!r}; expected {expected}.") from None
    if not np.isfinite(value) or value <= 0:
        raise DataError(f"form_factor is {value:g}; expected a positive number, or {expected}.")
    return value


def _like(values, volume: DiffuseVolume, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"{name} is not an array of real numbers.") from None
    if array.shape != volume.shape:
        raise DataError(f"{name} has the shape {array.shape} but data has {volume.shape}; both must be the same.")
    return np.array(array)


def resolve_background(background, volume: DiffuseVolume, factor) -> tuple[np.ndarray, tuple[int, ...]]:
    """What is subtracted, and the powers of the free background."""
    zero = np.zeros(volume.shape)
    if background is None:
        return zero, ()
    if isinstance(background, str):
        if background not in ("auto", "constant", "none"):
            raise DataError(f"background is {background!r}; expected 'auto', 'constant', 'none', a degree or an array.")
        flat = np.nanstd(factor) <= _FLAT * np.nanmean(np.abs(factor))
        if background == "none" or (background == "auto" and flat):
            return zero, ()
        if flat:
            raise DataError("background is 'constant' and form_factor is constant too, which no data tell apart; expected 'none'.")
        return zero, (0,)
    if isinstance(background, DiffuseVolume):
        return _like(background.data, volume, "background"), ()
    if np.ndim(background) == 0:
        if isinstance(background, (bool, np.bool_)) or int(background) != background or not 0 <= background <= 4:
            raise DataError(f"background is {background!r}; expected a degree in |Q|² from 0 to 4, 'constant', 'none' or an array.")
        return zero, tuple(range(int(background) + 1))
    return _like(background, volume, "background"), ()


# -- how much the pixels know --------------------------------------------------------------------------------------


def pixel_share(volume: DiffuseVolume) -> np.ndarray | None:
    """1 / number of pixels that hold the same average, after `symmetrize`; None where pixels are independent.

    Equivalent pixels of a symmetrised volume repeat one value: to count them all would make standard uncertainties too
    small by the root of their number.
    """
    names = [m.group(1) for m in (re.match(r"symmetrize\('([^']+)'", entry) for entry in volume.history) if m]
    if not names:
        return None
    operations = plane_operations(volume, names[-1])
    step, back = steps(volume), np.linalg.pinv(volume.basis)
    start = np.array([axis[0] for axis in volume.axes])
    first = volume.origin + start @ volume.basis
    grids = np.ogrid[tuple(slice(n) for n in volume.shape)]
    size = volume.data.size
    lowest = np.arange(size).reshape(volume.shape)
    stride = np.array([int(np.prod(volume.shape[i + 1 :])) for i in range(volume.ndim)])
    for operation in operations:
        matrix = step[:, None] * (volume.basis @ operation @ back) / step
        shift = (first @ operation @ back - volume.origin @ back - start) / step
        whole, offset = np.round(matrix).astype(int), np.round(shift).astype(int)
        if np.abs(matrix - whole).max() * max(volume.shape) > SNAP or np.abs(shift - offset).max() > SNAP:
            return np.full(volume.shape, 1.0 / len(operations))  # interpolated: no pixel is exactly another
        inside, flat = np.ones(volume.shape, bool), 0
        for j, n in enumerate(volume.shape):
            place = sum(g * a for g, a in zip(grids, whole[:, j], strict=True)) + offset[j]
            inside &= (place >= 0) & (place < n)
            flat = flat + place * stride[j]
        np.minimum(lowest, flat, out=lowest, where=inside)
    count = np.bincount(lowest[volume.mask], minlength=size)
    return 1.0 / np.maximum(count[lowest], 1)


def period_basis(volume: DiffuseVolume, centring: str) -> np.ndarray | None:
    """(ndim, ndim) rows p: the shortest independent frequencies of S along the axes; None for an irrational plane.

    ``x @ p.T`` counts zones, x being the coordinates along the axes.
    """
    if volume.ndim == 2 and zone_axis(volume.basis, centring) is None:
        return None
    radius = 1.2 * max(volume.lattice[:3])
    axis_length = 0.0
    if volume.ndim == 2:
        from ...physics.lattice import metric_tensor

        axis = zone_axis(volume.basis, centring)
        axis_length = float(np.sqrt(axis @ metric_tensor(volume.lattice) @ axis))
    frequency = lattice_points(volume.lattice, radius + axis_length, centring) @ volume.basis.T
    metric = np.linalg.inv(volume.q_metric())
    length = np.einsum("ni,ij,nj->n", frequency, metric, frequency)
    chosen: list[np.ndarray] = []
    for p in frequency[np.argsort(np.round(length, 9), kind="stable")]:
        if np.linalg.matrix_rank(np.array([*chosen, p]), tol=1e-6) == len(chosen) + 1:
            chosen.append(p)
        if len(chosen) == volume.ndim:
            break
    return np.array(chosen)


def zone_coverage(volume: DiffuseVolume, centring: str, used: np.ndarray) -> tuple[float, float]:
    """Part of one zone that the pixels cover when folded into it: (all pixels, the used ones)."""
    basis = period_basis(volume, centring)
    if basis is None:
        return 1.0, 1.0
    width = np.abs(basis) @ steps(volume)
    bins = np.clip(np.floor(1.0 / width + 1e-6), 1, _BINS).astype(int)
    flat = np.zeros(volume.shape, dtype=np.int64)
    for p, n in zip(basis, bins, strict=True):
        zones = sum((axis * f).reshape([-1 if m == i else 1 for m in range(volume.ndim)])
                    for i, (axis, f) in enumerate(zip(volume.axes, p, strict=True)))
        flat = flat * n + np.floor(zones * n + 0.5 + 1e-6).astype(np.int64) % n
    total = int(np.prod(bins))
    return len(np.unique(flat)) / total, len(np.unique(flat[used])) / total


def check_coverage(inputs: Inputs, centring: str, parameters: int) -> None:
    """Less than a zone or less pixels than parameters is an error, a zone with hidden parts a warning."""
    used = inputs.used
    n = int(used.sum())
    if n <= parameters:
        raise DataError(f"data has {n} usable pixels for {parameters} parameters; expected more pixels, or fewer shells.")
    whole, seen = zone_coverage(inputs.volume, centring, used)
    if whole < 0.9:
        raise DataError(f"data covers {whole:.0%} of a Brillouin zone; short-range order needs at least one whole zone.")
    if seen < 0.9:
        warnings.warn(
            f"the measured pixels see {seen:.0%} of a Brillouin zone; the parameters rest on the model in what is hidden.",
            PlausibilityWarning,
            stacklevel=4,
        )
