"""Moduli of structure factors from the disks of a pattern, by rank.

Under multiple scattering no single disk tells |V_g|. Two things help, both measured on patterns of crystals kept out of
training (docs/accuracy.md). Friedel pairs: g and -g have one |V_g| (Friedel's law, the same within what absorption
does), but a small tilt takes one of them nearer to the Ewald sphere and the other away from it, so their mean is closer
to it than either. And the estimate of a network that finds disks errs differently from the fitted intensity: kinematically
|V_g| goes with the square root of the intensity, and their product ranks reflections better than either. An estimate from all
disks of the pattern together (`crystaldl.stem.reflections`) has seen the intensities and ranks better alone.
"""

from __future__ import annotations

import numpy as np

from ..errors import DataError


def structure_factors(hk, fitted, estimate=None) -> np.ndarray:
    """|V_g| of reflections relative to the strongest one, to rank them rather than to measure them.

    ``sqrt(mean of the pair's intensities) · (mean of the pair's estimates)``; without either, the other alone.

    Parameters
    ----------
    hk : (M, 2) int array_like
        Indices on the lattice of the pattern; the direct beam (0, 0) may be among them.
    fitted : (M, …) array_like
        Intensity of each above its background, any unit, of one or many patterns; NaN: no such disk.
    estimate : (M, …) array_like, optional
        A network's |V_g|, any unit; NaN: no such disk.

    Returns
    -------
    (M, …) float64, 1 for the strongest of each pattern; NaN for the direct beam and where there is no such disk

    Raises
    ------
    DataError
        Shapes that do not belong together.
    """
    hk, fitted = np.asarray(hk), np.asarray(fitted, dtype=float)
    if hk.ndim != 2 or hk.shape[1] != 2 or hk.dtype.kind not in "iu":
        raise DataError(f"hk has the shape {hk.shape} and type {hk.dtype}; expected integers (M, 2).")
    estimate = np.full_like(fitted, np.nan) if estimate is None else np.asarray(estimate, dtype=float)
    for name, values in (("fitted", fitted), ("estimate", estimate)):
        if values.ndim < 1 or len(values) != len(hk) or values.shape != fitted.shape:
            raise DataError(f"{name} has the shape {values.shape}; expected one row for each of {len(hk)} reflections.")
    opposite = _opposite(hk)
    root, other = np.sqrt(_pairs(fitted, opposite)), _pairs(estimate, opposite)
    out = np.where(np.isfinite(root) & np.isfinite(other), root * other, np.nan)
    # per pattern: what some reflections lack is left out for all, since products and factors do not compare
    for alone in (root, other):
        out = np.where(np.isfinite(out).any(0), out, alone)
    out[(hk == 0).all(1)] = np.nan
    top = np.max(np.nan_to_num(out), axis=0, initial=0.0)
    return out / np.where(top > 0, top, np.nan)


def _opposite(hk: np.ndarray) -> np.ndarray:
    """(M,) row of -g of each reflection, -1 where it is not among them."""
    place = {tuple(row): i for i, row in enumerate(hk.tolist())}
    return np.array([place.get((-h, -k), -1) for h, k in hk.tolist()], dtype=int).reshape(len(hk))


def _pairs(values: np.ndarray, opposite: np.ndarray) -> np.ndarray:
    """Positive values (M, …), each the mean with that of -g where there is one; NaN stays NaN."""
    values = np.where(values > 0, values, np.nan)
    paired = (opposite >= 0).reshape(-1, *(1,) * (values.ndim - 1))
    other = np.where(paired, values[opposite], np.nan)
    return np.where(np.isfinite(other), 0.5 * (values + other), values)
