"""Strain maps from Bragg vectors: origin, basis, robust lattice fit, and a filled ``py4DSTEM.StrainMap``.

Conventions (py4DSTEM's): x is axis 0 and y axis 1 of the calibrated diffraction plane. e_xx > 0 is tension: the lattice
of the crystal is larger along x and its disks are closer together. theta is in radians and positive for a rotation of
the lattice from y towards x, which is clockwise in an image drawn with rows downwards. With F the deformation of the
crystal against the reference, reciprocal vectors change by g' = F⁻ᵀ g.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import asdict
from functools import partial

import numpy as np

from ...errors import DataError, PlausibilityWarning
from ..bragg import DiskTable, table_of
from .basis import choose_basis
from .deformation import calibration_map, reference_change, rotated, strain_from_change, strain_jacobian
from .details import StrainDetails, StrainOptions
from .lattice import FitLimits, LatticeFit, fit_lattices
from .origin import find_direct_beam, lattice_phase

__all__ = ["SLICES", "StrainDetails", "StrainOptions", "filled_map", "fit_strain"]

SLICES = ("e_xx", "e_yy", "e_xy", "theta", "mask", "error")


def fit_strain(bragg, reference="median", *, basis=None, robust=True, mask=None, options: StrainOptions | None = None):
    """Fit the lattice at every scan position and compare it with a reference.

    The Bragg vectors stay as they are; the map carries a copy whose origin is calibrated.

    Parameters
    ----------
    bragg : py4DSTEM.BraggVectors
    reference : "median", (Rx, Ry) bool array, or (g1, g2)
        What has no strain: the median lattice of all fitted positions, that of a region, or vectors (px, calibrated
        axes), which then are also the start of the fits.
    basis : (g1, g2), optional
        Start of the fits, px in calibrated axes; by default found from the disks.
    robust : bool
        False: plain weighted least squares.
    mask : (Rx, Ry) bool array, optional
        True where to fit.
    options : StrainOptions, optional

    Returns
    -------
    py4DSTEM.StrainMap
        Slices e_xx, e_yy, e_xy, theta (rad), mask (0 or 1) and error (px, root mean square residual); NaN where masked.
        Its own methods work (``show_strain``, ``get_strain`` with another reference, …). ``.details`` is a
        `StrainDetails` with uncertainties and intensities; ``.show()`` draws the map in per cent and ``.save(path)``
        writes all of it (`read_strain`).

    Raises
    ------
    TypeError, DataError, ValueError
        One sentence each, before any fit.
    """
    options = StrainOptions() if options is None else options
    if not isinstance(options, StrainOptions):
        raise TypeError(f"options is a {type(options).__name__}; expected StrainOptions.")
    if not isinstance(robust, (bool, np.bool_)):
        raise TypeError(f"robust is a {type(robust).__name__}; expected True or False.")
    table = table_of(bragg)
    mask = _scan_mask(mask, table.scan_shape, "mask")
    region, given = _reference(reference, table.scan_shape)
    start = given if basis is None else _pair(basis, "basis")
    linear = calibration_map(bragg.calibration, bragg.calstate, table.scan_shape)
    table = _selected(table, mask, options)
    table, fit, start = _fit(table, bragg, start, linear, robust, options, absolute=given is not None)
    vectors = fit.vectors @ linear.transpose(0, 2, 1)
    if not np.isfinite(vectors[:, 0, 0]).any():
        raise DataError(
            f"bragg gave no lattice at any of {vectors.shape[0]} positions (at least {options.min_disks} disks on one "
            "lattice each); expected more disks, another basis, or a smaller min_disks."
        )
    _warn_few(table, vectors, options)
    chosen = _reference_vectors(region, given, vectors)
    spread = np.zeros((len(vectors), 4, 4))
    spread[:, :2, :2] = spread[:, 2:, 2:] = linear
    covariance = spread @ fit.covariance @ spread.transpose(0, 2, 1)
    return _strain_map(bragg, table, fit, (vectors, covariance, start, chosen), options)


# -- what came in --------------------------------------------------------------------------------------------------


def _scan_mask(mask, scan_shape, name: str) -> np.ndarray:
    if mask is None:
        return np.ones(scan_shape, dtype=bool)
    array = np.asarray(mask)
    if array.dtype != bool or array.shape != tuple(scan_shape):
        raise DataError(
            f"{name} has the shape {array.shape} and type {array.dtype}; expected a bool array of the scan's shape "
            f"{tuple(scan_shape)}."
        )
    if not array.any():
        raise DataError(f"{name} is False everywhere; expected some positions.")
    return array


def _pair(pair, name: str) -> np.ndarray:
    try:
        array = np.array(pair, dtype=float)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        array = np.empty(0)
    if array.shape != (2, 2) or not np.isfinite(array).all():
        raise DataError(f"{name} is {pair!r}; expected (g1, g2), two vectors (qx, qy) in px.")
    if abs(np.linalg.det(array)) < 0.05 * np.prod(np.linalg.norm(array, axis=1)):
        raise DataError(f"{name} has g1 and g2 (almost) parallel; expected two directions.")
    return array


def _reference(reference, scan_shape) -> tuple[np.ndarray, np.ndarray | None]:
    """The region whose median is the reference, (Rx, Ry) bool, or the vectors given in its place, (2, 2)."""
    if isinstance(reference, str):
        if reference != "median":
            raise DataError(f"reference is {reference!r}; expected 'median', a bool array, or (g1, g2).")
        return np.ones(scan_shape, dtype=bool), None
    if isinstance(reference, np.ndarray) and (reference.dtype == bool or reference.shape != (2, 2)):
        return _scan_mask(reference, scan_shape, "reference"), None
    return np.ones(scan_shape, dtype=bool), _pair(reference, "reference")


def _selected(table: DiskTable, mask, options: StrainOptions) -> DiskTable:
    """The table without masked positions and doubtful disks."""
    keep = mask.ravel()[table.pattern] & np.isfinite(table.positions).all(1)
    keep &= ~(table.confidence < options.min_confidence)
    if not keep.any():
        raise DataError(f"bragg holds no disks to fit ({len(table)} before selection); expected some in most patterns.")
    return table.where(keep)


# -- the fit -------------------------------------------------------------------------------------------------------


def _fit(
    table: DiskTable, bragg, start, linear, robust: bool, options: StrainOptions, absolute: bool
) -> tuple[DiskTable, LatticeFit, np.ndarray]:
    """The disks used, lattices on the detector, and the basis they started from in calibrated axes."""
    origin, prior = _origin(table, bragg, options)
    back = np.linalg.inv(linear.mean(0)).T
    if start is None:
        basis = choose_basis(*_sample(table, origin))
    else:
        basis = start @ back
    free = options.origin == "lattice"
    expected = lattice_phase(table.offsets, table.positions, origin, basis) if free else origin
    if options.max_order is not None:
        fraction = (table.positions - expected[table.pattern]) @ np.linalg.inv(basis)
        table = table.where(np.abs(fraction).max(1) < options.max_order + 0.5)
    limits = FitLimits(**{name: getattr(options, name) for name in FitLimits.__dataclass_fields__})
    fit = fit_lattices(
        table.offsets, table.positions, table.sigma, expected, basis, prior=prior, limits=limits, robust=robust,
        absolute=absolute,
    )  # fmt: skip
    return table, fit, basis @ linear.mean(0).T


def _origin(table: DiskTable, bragg, options: StrainOptions) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) expected origins and (2,) the weight of that expectation, px⁻²."""
    known = bragg.calibration.get_origin() if bragg.calibration is not None else None
    shape = (*table.scan_shape, 2)
    if options.origin == "calibrated":
        if known is None:
            raise DataError(
                "options.origin is 'calibrated' but bragg has no calibrated origin; expected one, or another origin."
            )
        where = np.broadcast_to(np.stack(np.broadcast_arrays(*known), axis=-1), shape).reshape(-1, 2).astype(float)
        return where, np.full(2, 1e6)
    strength = np.where(np.isfinite(table.fitted), table.fitted, table.intensity)
    beam = find_direct_beam(
        table.offsets, table.positions, strength, table.scan_shape, order=2 if options.origin == "parabola" else 1
    )
    if options.origin == "direct":
        return np.where(np.isfinite(beam.measured), beam.measured, beam.smooth), np.full(2, 1e6)
    if options.origin in ("plane", "parabola"):
        return beam.smooth, 1 / np.maximum(beam.scatter, 1e-3) ** 2
    return beam.smooth, np.zeros(2)


def _sample(table: DiskTable, origin, most: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    """Vectors from the direct beam, and their confidence, of at most so many disks spread over the scan."""
    vectors = table.positions - origin[table.pattern]
    weight = np.where(np.isfinite(table.confidence), table.confidence, 1.0) + 1e-3
    step = -(-len(vectors) // most)
    patterns = table.pattern % step == 0 if step > 1 else slice(None)
    return vectors[patterns], weight[patterns]


def _warn_few(table: DiskTable, vectors, options: StrainOptions) -> None:
    """Say so where most patterns that have disks enough lie on no lattice near the basis."""
    enough = np.diff(table.offsets) >= options.min_disks
    fitted = int(np.isfinite(vectors[enough, 0, 0]).sum())
    if fitted < 0.5 * enough.sum():
        warnings.warn(
            f"only {fitted} of {int(enough.sum())} positions with disks enough have a lattice like the basis; the others "
            "are masked (another crystal, another basis, or too many false disks).",
            PlausibilityWarning,
            stacklevel=3,
        )


def _reference_vectors(region, given, vectors) -> np.ndarray:
    good = np.isfinite(vectors[:, 0, 0])
    if given is None:
        good &= region.ravel()
        if not good.any():
            raise DataError("reference selects no position with a fitted lattice; expected another region.")
        return np.median(vectors[good], axis=0)
    median = np.median(vectors[good], axis=0)
    if np.linalg.norm(given - median) > 0.2 * np.linalg.norm(median):
        raise DataError(
            f"reference is {np.round(given, 2).tolist()} px but the fitted lattice is {np.round(median, 2).tolist()} "
            "px; expected the same basis."
        )
    return given


# -- the map -------------------------------------------------------------------------------------------------------


def _strain_map(bragg, table: DiskTable, fit: LatticeFit, lattice, options: StrainOptions):
    """The filled map and its details; ``lattice`` is (vectors, covariance, basis, reference) in calibrated axes."""
    vectors, covariance, basis, reference = lattice
    shape = table.scan_shape
    angle = np.radians(options.coordinate_rotation)
    strain = strain_from_change(reference_change(vectors, reference), options.measure)
    values = rotated(strain, angle).reshape(4, *shape)
    jacobian = strain_jacobian(reference, angle)
    variance = np.einsum("ia,pab,ib->ip", jacobian, covariance, jacobian)
    hk, (intensity, fitted) = _reflections(table, fit, reference)
    details = StrainDetails(
        sigma=np.sqrt(variance).reshape(4, *shape), covariance=covariance.reshape(*shape, 4, 4),
        g1=vectors[:, 0].reshape(*shape, 2), g2=vectors[:, 1].reshape(*shape, 2), origin=fit.origin.reshape(*shape, 2),
        basis=np.array(basis), reference=np.array(reference), n_disks=fit.n_disks.reshape(shape),
        residual=fit.residual.reshape(shape), excess=fit.excess, hk=hk, intensity=intensity, fitted=fitted,
        options=options, provenance={**table.provenance, "strain": asdict(options)},
    )  # fmt: skip
    good = np.isfinite(values[:1])
    return filled_map(bragg, np.concatenate([values, good, details.residual[None]]), details)


def _reflections(table: DiskTable, fit: LatticeFit, reference, most: int = 400) -> tuple[np.ndarray, list]:
    """Indices of the reflections on the lattice, by length, and images of the intensity and the fitted intensity of each."""
    on = fit.weight > 0
    n_patterns = table.offsets.size - 1
    wide = 1 << 20  # one number for each pair of indices sorts faster than rows
    code, which = np.unique((fit.hk[on, 0].astype(np.int64) * wide) + fit.hk[on, 1], return_inverse=True)
    second = (code + wide // 2) % wide - wide // 2
    hk, counts = np.stack([(code - second) // wide, second], axis=1), np.bincount(which, minlength=len(code))
    # what is seen at fewer than one position in a hundred are chance hits of false disks
    often = np.flatnonzero(counts >= 0.01 * np.isfinite(fit.residual).sum())
    frequent = np.sort(often[np.argsort(-counts[often], kind="stable")[:most]])
    frequent = frequent[np.argsort(np.hypot(*(hk[frequent] @ reference).T), kind="stable")]
    place = np.full(len(hk), -1)
    place[frequent] = np.arange(len(frequent))
    row, pattern = place[which], table.pattern[on]
    images = []
    for value in (table.intensity[on], table.fitted[on]):
        known = (row >= 0) & np.isfinite(value)
        image = np.full((len(frequent), n_patterns), -np.inf)
        np.maximum.at(image, (row[known], pattern[known]), value[known])
        image[np.isneginf(image)] = np.nan
        images.append(image.reshape(-1, *table.scan_shape).astype(np.float32))
    return hk[frequent].astype(int), images


def _empty_map(bragg, origin):
    """A ``StrainMap`` on a copy of the Bragg vectors whose origin is that of the fitted lattices."""
    from py4DSTEM import BraggVectors, StrainMap

    calibration = bragg.calibration.copy(name="calibration")
    copy = BraggVectors(bragg.Rshape, bragg.Qshape, name=bragg.name, calibration=calibration)
    copy.set_raw_vectors(bragg._v_uncal)
    missing = ~np.isfinite(origin[..., 0])
    filled = np.where(missing[..., None], np.nanmedian(origin, axis=(0, 1)), origin)
    calibration.set_origin((filled[..., 0], filled[..., 1]))
    # which of the calibrations apply stays as it was
    copy.setcal(**{**bragg.calstate, "center": True})
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", message="Real to reciprocal space rotation")
        return StrainMap(copy)


def filled_map(bragg, data, details: StrainDetails):
    """A ``StrainMap`` of Bragg vectors with these slices (6, Rx, Ry), and all that py4DSTEM's own methods look for."""
    from emdfile import PointList
    from py4DSTEM.data import RealSlice

    from ..plot import show_strain

    out = _empty_map(bragg, details.origin)
    out.data[:] = data
    g1, g2 = details.reference
    mask = out.data[4].astype(bool)
    lattice = np.concatenate([np.zeros((*mask.shape, 2)), details.g1, details.g2], axis=-1).transpose(2, 0, 1)
    labels = ("x0", "y0", "g1x", "g1y", "g2x", "g2y", "error", "mask")
    # py4DSTEM has zeros where there is no fit
    lattice = np.nan_to_num(np.concatenate([lattice, details.residual[None], mask[None]]))
    out.g1g2_map = RealSlice(data=lattice, slicelabels=labels, name="g1g2_map")
    labels = ("e_xx", "e_yy", "e_xy", "theta", "mask")
    angle = np.radians(details.options.coordinate_rotation)
    unrotated = rotated(out.data[:4].reshape(4, -1), -angle).reshape(4, *mask.shape)
    out.strainmap_g1g2 = RealSlice(data=np.concatenate([unrotated, mask[None]]), slicelabels=labels, name="strain_map")
    out.mask = mask
    out.g0, out.g1, out.g2 = tuple(map(float, out.origin)), tuple(map(float, g1)), tuple(map(float, g2))
    nodes = np.zeros(len(details.hk), dtype=[("qx", float), ("qy", float), ("g1_ind", int), ("g2_ind", int)])
    nodes["qx"], nodes["qy"] = (details.hk @ details.reference).T
    nodes["g1_ind"], nodes["g2_ind"] = details.hk.T
    out.braggdirections = PointList(nodes, name="braggdirections")
    out.g = {"x": nodes["qx"] + out.g0[0], "y": nodes["qy"] + out.g0[1]}
    out.max_peak_spacing = details.options.tolerance * float(np.linalg.norm(details.reference, axis=1).min())
    out.coordinate_rotation_degrees = details.options.coordinate_rotation
    out.coordinate_rotation_radians = angle
    out.details = details
    out.show, out.save = partial(show_strain, out), partial(_save, out)
    return out


def _save(strain, path):
    from .files import save_strain

    return save_strain(path, strain)
