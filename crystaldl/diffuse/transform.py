"""New volumes from a volume: Bragg peaks masked, background subtracted, pixels averaged."""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.interpolate import make_smoothing_spline

from ..errors import DataError
from .checks import check_number
from .geometry import allowed, centring_vectors
from .grid import interpolate, steps, to_index

__all__ = ["punch_bragg", "radial_background", "rebin", "subtract_background"]


#: Bragg nodes within reach of one pixel that `punch_bragg` looks at
MOST_NODES = 4000


def punch_bragg(volume, radius=0.1, *, centring: str = "P", units: str = "rlu", extra=None):
    """Mask the pixels around Bragg reflections; nothing is filled in.

    Parameters
    ----------
    volume : DiffuseVolume
        Plane or volume; a plane loses the pixels that lie within reach of reflections above and below it, too.
    radius : float or (3,) sequence
        With ``units="rlu"`` the semi-axes of an ellipsoid along h, k and l, in r.l.u. (a number: the same along all
        three).  With ``units="inv_angstrom"`` the radius of a sphere in Å⁻¹, 2π inside.
    centring : {"P", "A", "B", "C", "I", "F", "R"}
        Which reflections there are; "R" is obverse on hexagonal axes.
    units : {"rlu", "inv_angstrom"}
    extra : (n, 3) array_like, optional
        Propagation vectors τ of superstructures, in r.l.u.: G + τ and G - τ are masked around every reflection G.

    Returns
    -------
    DiffuseVolume

    Raises
    ------
    DataError
        An unknown centring or unit, a radius that leaves nothing.
    """
    if volume.lattice is None:
        raise DataError("the lattice of this plane is not known (from_pixels); punch_bragg needs hkl axes.")
    centring_vectors(centring)
    if units not in ("rlu", "inv_angstrom"):
        raise DataError(f"units is {units!r}; expected 'rlu' or 'inv_angstrom'.")
    if units == "rlu":
        try:
            semi = np.broadcast_to(np.asarray(radius, dtype=np.float64), 3)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            semi = np.zeros(3)
        if not (np.isfinite(semi).all() and (semi > 0).all()):
            raise DataError(f"radius is {radius!r}; expected a positive number or three, in r.l.u.")
        scale, reach = np.diag(1 / semi), semi
    else:
        size = check_number(radius, "radius", "Å⁻¹", above=0.0)
        reciprocal = volume.reciprocal_basis()
        scale = reciprocal / size
        # |h| = |Q·a| / 2π, so a sphere reaches radius·a/2π along h
        reach = size * np.array(volume.lattice[:3]) / (2 * np.pi)
    if np.prod(2.0 * np.ceil(reach)) > MOST_NODES:
        raise DataError(f"radius is {radius!r}; it masks every measured pixel, or reaches over more than {MOST_NODES} nodes.")
    mask, shifts = volume.mask.copy(), _satellites(extra)
    for rows, hkl in _slabs(volume):
        for shift in shifts:
            mask[rows] &= ~_near_node(hkl.reshape(-1, 3) - shift, scale, reach, centring).reshape(hkl.shape[:-1])
    if not mask.any():
        raise DataError(f"radius is {radius!r}; it masks every measured pixel.")
    return volume.replace(mask=mask, history=f"punch_bragg({radius!r}, centring={centring!r}, units={units!r})")


def _slabs(volume, most: int = 1_000_000):
    """(slice of the first axis, hkl of its pixels), about ``most`` pixels at a time."""
    rest = np.meshgrid(*volume.axes[1:], indexing="ij")
    layer = volume.origin + sum(x[..., None] * vector for x, vector in zip(rest, volume.basis[1:], strict=True))
    first = volume.axes[0].reshape(-1, *(1,) * layer.ndim)
    height = max(1, most * 3 // layer.size)
    for start in range(0, len(first), height):
        rows = slice(start, start + height)
        yield rows, layer + first[rows] * volume.basis[0]


def _satellites(extra) -> np.ndarray:
    shifts = np.zeros((1, 3))
    if extra is None:
        return shifts
    try:
        tau = np.atleast_2d(np.asarray(extra, dtype=np.float64))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        tau = np.zeros(0)
    if tau.ndim != 2 or tau.shape[1:] != (3,) or not np.isfinite(tau).all():
        raise DataError("extra is no list of propagation vectors; expected (n, 3) numbers in r.l.u.")
    return np.unique(np.concatenate([shifts, tau, -tau]), axis=0)


def _near_node(hkl, scale, reach, centring: str) -> np.ndarray:
    """Which points lie within the ellipsoid |Δhkl @ scale| ≤ 1 of an allowed node; ``reach``: its extent along h, k, l."""
    hit = np.zeros(len(hkl), dtype=bool)
    small = (reach < 0.5).all()
    base = np.round(hkl) if small else np.floor(hkl)
    spans = [(0,)] * 3 if small else [range(1 - int(np.ceil(r)), int(np.ceil(r)) + 1) for r in reach]
    fraction = hkl - base
    for corner in product(*spans):
        near = np.flatnonzero(np.square((fraction - corner) @ scale).sum(axis=1) <= 1 + 1e-9)
        near = near[~hit[near]]
        hit[near] = allowed(base[near] + corner, centring)
    return hit


# -- background ----------------------------------------------------------------------------------------------------


def subtract_background(volume, background=None, *, scale: float = 1.0, quantile: float = 0.1, smooth: float | None = None):
    """Subtract a background; never makes a pixel unmeasured, and keeps what falls below zero.

    Parameters
    ----------
    volume : DiffuseVolume
    background : None, "radial", DiffuseVolume or array_like
        None or "radial": a smooth function of |Q| under the data, see `radial_background`.  A volume (an empty-sample
        measurement, say) is interpolated at the same hkl; an array has the shape of data.  Where these were not
        measured their own radial mean stands in.
    scale : float
        Factor on the background.
    quantile, smooth
        Of the radial background.

    Returns
    -------
    DiffuseVolume
        Uncertainties of a background volume are added in quadrature; a radial background counts as exact.

    Raises
    ------
    DataError
    """
    scale = check_number(scale, "scale")
    spread, note = None, "radial"
    if background is None or (isinstance(background, str) and background == "radial"):
        values = radial_background(volume, quantile=quantile, smooth=smooth)
        note = f"radial, quantile={quantile:g}"
    elif isinstance(background, str):
        raise DataError(f"background is {background!r}; expected None, 'radial', a DiffuseVolume or an array.")
    elif isinstance(background, type(volume)):
        values, spread, note = *_background_volume(volume, background), f"volume {background.name!r}"
    else:
        like = volume.replace(data=_same_shape(background, volume.shape), mask=None, sigma=None)
        values, note = _complete(volume, like.data), "array"
    sigma = volume.sigma
    if sigma is not None and spread is not None:
        sigma = np.hypot(sigma, scale * np.where(np.isfinite(spread), spread, 0.0))
    entry = f"subtract_background({note}, scale={scale:g})"
    return volume.replace(data=volume.data - scale * values, sigma=sigma, history=entry)


def _same_shape(values, shape):
    try:
        found = np.shape(values)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"background is a {type(values).__name__}; expected an array of the shape {shape}.") from None
    if found != shape:
        raise DataError(f"background has the shape {found} but data has {shape}; both must be the same.")
    return values


def _background_volume(volume, background):
    if (volume.lattice is None) != (background.lattice is None):
        raise DataError("background and volume must both have a lattice, or both be planes of pixels.")
    index, residual = to_index(background, volume.hkl())
    index = np.where((residual > 0.5 * steps(background).min())[..., None], -10.0, index)
    values, spread = interpolate(background, index)
    if not np.isfinite(values[volume.mask]).any():
        raise DataError("background does not overlap the measured pixels of this volume.")
    return _complete(volume, values), spread


def _radius(volume) -> np.ndarray:
    """|Q| in Å⁻¹, or pixels from the centre where the lattice is not known."""
    return volume.q() if volume.lattice is not None else np.linalg.norm(volume.hkl(), axis=-1)


def _complete(volume, values) -> np.ndarray:
    """Fill NaN by the radial mean of the rest."""
    known = np.isfinite(values)
    if known.all():
        return values
    radius = _radius(volume)
    bins, centre, index = _bins(radius, radius[known].size)
    n = np.bincount(index[known], minlength=bins)
    mean = np.bincount(index[known], values[known], bins)[n > 0] / n[n > 0]
    return np.where(known, values, np.interp(radius, centre[n > 0], mean))


def _bins(radius, n: int):
    bins = int(np.clip(np.sqrt(n) / 2, 8, 200))
    top = radius.max() * (1 + 1e-9) or 1.0
    index = np.minimum((radius / top * bins).astype(int), bins - 1)
    return bins, (np.arange(bins) + 0.5) * top / bins, index


def radial_background(volume, *, quantile: float = 0.1, smooth: float | None = None) -> np.ndarray:
    """A smooth isotropic background under the data: air, glass or fluorescence.

    In each shell of |Q| the given quantile of the measured pixels is taken; a cubic smoothing spline through these,
    weighted by their numbers and constant beyond them, is the background.  Diffuse scattering that fills a whole
    shell counts as background; noise puts the quantile a little below the true level.

    Parameters
    ----------
    volume : DiffuseVolume
        Mask its Bragg peaks first.  With few pixels between peaks a lower quantile is safer.
    quantile : float
        In (0, 1).
    smooth : float, optional
        Details narrower than about this are smoothed away, in Å⁻¹ (pixels where the lattice is not known); by
        default a sixteenth of the range.

    Returns
    -------
    ndarray like data, finite everywhere
    """
    quantile = check_number(quantile, "quantile", above=0.0)
    if quantile >= 1:
        raise DataError(f"quantile is {quantile:g}; expected a number between 0 and 1.")
    radius = _radius(volume)
    r, y = radius[volume.mask], volume.data[volume.mask]
    bins, _, index = _bins(r, r.size)
    order = np.lexsort((y, index))
    count = np.bincount(index, minlength=bins)
    first = np.cumsum(count) - count
    full = count >= max(4, min(20, r.size // (4 * bins)))
    if np.count_nonzero(full) < 5:
        return np.full(volume.shape, np.quantile(y, quantile))
    place = first[full] + quantile * (count[full] - 1)
    low = place.astype(int)
    ordered = y[order]
    values = ordered[low] + (place - low) * (ordered[np.minimum(low + 1, ordered.size - 1)] - ordered[low])
    centre = np.bincount(index, r, bins)[full] / count[full]
    span = centre[-1] - centre[0]
    width = span / 16 if smooth is None else check_number(smooth, "smooth", "Å⁻¹", above=0.0)
    weight = count[full] / count[full].mean()
    # the spline's equivalent kernel has the width (λ · spacing)^(1/4)
    spline = make_smoothing_spline(centre, values, weight, lam=(width / 2) ** 4 / (span / (centre.size - 1)))
    return spline(np.clip(radius, centre[0], centre[-1]))


# -- rebinning -----------------------------------------------------------------------------------------------------


def rebin(volume, factors):
    """Average blocks of pixels.

    A block counts where at least half of its pixels were measured, and is their mean.  With an odd factor the blocks
    are laid so that one is centred on the zero of the axis, where the axis has it; rows that do not fill the last
    (or first) block share it with unmeasured ones.

    Parameters
    ----------
    volume : DiffuseVolume
    factors : int or sequence of int
        Pixels per block along each axis.

    Returns
    -------
    DiffuseVolume
        With sigma propagated for independent pixels; an unknown sigma counts as the mean of the block's others.

    Raises
    ------
    DataError
    """
    factors = _check_factors(factors, volume.shape)
    pads, cuts, axes = [], [], []
    for axis, step, f in zip(volume.axes, steps(volume), factors, strict=True):
        zero = int(round(-axis[0] / step))
        centred = f % 2 and 0 <= zero < axis.size and abs(axis[0] + zero * step) < 0.01 * step
        front = int(((f - 1) // 2 - zero) % f) if centred else 0
        back = int(-(axis.size + front) % f)
        n = (axis.size + front + back) // f
        # a block at the end that is mostly padding can never be half measured
        cut = slice(int(2 * front > f), n - int(2 * back > f))
        if cut.stop - cut.start < 2:
            raise DataError(f"factors are {tuple(factors)}; fewer than two blocks remain of {axis.size} pixels.")
        pads.append((front, back))
        cuts.append(cut)
        axes.append((axis[0] + step * ((f - 1) / 2 - front) + step * f * np.arange(n))[cut])
    cut = tuple(cuts)
    mask = _blocks(np.pad(volume.mask, pads), factors)[cut]
    count = mask.sum(axis=-1)
    total = np.where(mask, _blocks(np.pad(volume.data, pads), factors)[cut], 0.0).sum(axis=-1)
    norm = np.where(2 * count >= np.prod(factors), count, np.nan)
    if not np.isfinite(norm).any():
        raise DataError(f"factors are {tuple(factors)}; no block of that size is half measured.")
    sigma = None
    if volume.sigma is not None:
        variance = _blocks(np.pad(np.square(volume.sigma), pads, constant_values=np.nan), factors)[cut]
        known = np.isfinite(variance)
        with np.errstate(invalid="ignore"):
            sigma = np.sqrt(np.where(known, variance, 0.0).sum(axis=-1) / known.sum(axis=-1) / norm)
    return volume._derive(total / norm, axes, sigma=sigma, history=f"rebin({tuple(factors)})")


def _check_factors(factors, shape) -> list[int]:
    try:
        values = [factors] * len(shape) if np.ndim(factors) == 0 else list(factors)
    except (TypeError, ValueError, RuntimeError):
        values = []
    whole = all(isinstance(f, (int, np.integer)) and not isinstance(f, bool) for f in values)
    if len(values) != len(shape) or not whole or min(values) < 1:
        raise DataError(f"factors is {factors!r}; expected one whole number ≥ 1, or {len(shape)}, one per axis.")
    if any(f > n // 2 for f, n in zip(values, shape, strict=True)):
        raise DataError(f"factors is {factors!r}; expected at most half of the shape {shape}, so that two blocks remain.")
    return [int(f) for f in values]


def _blocks(array, factors):
    """(n1, n2[, n3], block) view of whole blocks."""
    split = [m for n, f in zip(array.shape, factors, strict=True) for m in (n // f, f)]
    ndim = array.ndim
    order = [2 * i for i in range(ndim)] + [2 * i + 1 for i in range(ndim)]
    moved = array.reshape(split).transpose(order)
    return moved.reshape(*moved.shape[:ndim], -1)
