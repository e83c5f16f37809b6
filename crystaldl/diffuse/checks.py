"""What may become a `DiffuseVolume`: each check raises one sentence that names the argument, before any work."""

from __future__ import annotations

import math

import numpy as np

from ..errors import DataError
from ..physics.lattice import cell_matrix

__all__ = [
    "AXIS_NAMES",
    "RADIATIONS",
    "check_axes",
    "check_basis",
    "check_data",
    "check_lattice",
    "check_mask",
    "check_number",
    "check_radiation",
    "check_sequence",
    "check_sigma",
    "hkl_geometry",
]

AXIS_NAMES = ("h", "k", "l")
RADIATIONS = ("xray", "neutron", "electron")
#: largest departure of an axis from uniform, in steps
UNIFORM = 1e-3


def check_data(data, name: str = "data") -> np.ndarray:
    """The intensities as a new C-ordered float64 array of 2 or 3 dimensions, NaN where not measured.

    Negative values are welcome: neutrons, backgrounds that were subtracted and size effects make them.
    """
    array = _numbers(data, name)
    if array.ndim not in (2, 3):
        raise DataError(f"{name} has the shape {array.shape}; expected a plane (2-D) or a volume (3-D).")
    if min(array.shape) < 2:
        raise DataError(f"{name} has the shape {array.shape}; expected at least 2 points along every axis.")
    if np.isinf(array).any():
        raise DataError(f"{name} holds infinite values; expected finite numbers, or NaN where nothing was measured.")
    return array


def check_mask(mask, shape: tuple[int, ...]) -> np.ndarray | None:
    """The mask as a new bool array, True where measured and usable, or None."""
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.shape != shape:
        raise DataError(f"mask has the shape {array.shape} but data has {shape}; both must be the same.")
    if array.dtype.kind == "b":
        return np.array(array, dtype=bool, order="C")
    if array.dtype.kind not in "iuf" or not np.isin(array, (0, 1)).all():
        raise DataError("mask holds values other than 0 and 1; expected booleans, True where data was measured.")
    return np.ascontiguousarray(array == 1)


def check_sigma(sigma, shape: tuple[int, ...]) -> np.ndarray | None:
    """The standard uncertainties as a new float64 array, NaN where unknown (also given as 0), or None."""
    if sigma is None:
        return None
    array = _numbers(sigma, "sigma")
    if array.shape != shape:
        raise DataError(f"sigma has the shape {array.shape} but data has {shape}; both must be the same.")
    if np.isinf(array).any() or (array < 0).any():
        raise DataError(
            "sigma holds negative or infinite values; expected standard uncertainties, 0 or NaN where unknown."
        )
    array[array == 0] = np.nan
    return array


def check_lattice(lattice) -> tuple[float, ...]:
    """The cell ``(a, b, c, alpha, beta, gamma)`` in Å and degrees as six floats; takes a ``gemmi.UnitCell`` too."""
    expected = "(a, b, c, alpha, beta, gamma) in Å and degrees"
    if lattice is None:
        raise DataError(
            f"lattice is None; expected {expected}, or DiffuseVolume.from_pixels for a plane whose lattice is not known."
        )
    try:
        cell = np.asarray(getattr(lattice, "parameters", lattice), dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"lattice is {lattice!r}; expected {expected}.") from None
    if cell.shape != (6,):
        raise DataError(f"lattice has the shape {cell.shape}; expected six numbers, {expected}.")
    if not np.isfinite(cell).all() or (cell <= 0).any() or (cell[3:] >= 180).any():
        text = ", ".join(f"{v:g}" for v in cell)
        raise DataError(f"lattice is ({text}); expected positive lengths in Å and angles between 0 and 180°.")
    try:
        cell_matrix(cell)
    except ValueError:
        text = ", ".join(f"{v:g}" for v in cell[3:])
        raise DataError(f"lattice has the angles {text}°, which close no cell; expected a positive volume.") from None
    return tuple(cell.tolist())


def check_radiation(radiation) -> str:
    """One of `RADIATIONS`."""
    if radiation not in RADIATIONS:
        raise DataError(f"radiation is {radiation!r}; expected one of {', '.join(RADIATIONS)}.")
    return str(radiation)


def check_axes(axes, shape: tuple[int, ...], names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """One-dimensional, increasing, uniform axes as new float64 arrays that are exactly uniform."""
    out = tuple(_axis(axis, name) for axis, name in zip(axes, names, strict=True))
    lengths = tuple(axis.size for axis in out)
    if lengths != shape:
        raise DataError(
            f"data has the shape {shape} but {', '.join(names)} have {', '.join(map(str, lengths))} points; "
            f"expected data of the shape {lengths}."
        )
    return out


def _axis(values, name: str) -> np.ndarray:
    axis = _numbers(values, name)
    if axis.ndim != 1 or axis.size < 2:
        raise DataError(f"{name} has the shape {axis.shape}; expected a one-dimensional axis of at least 2 points.")
    if not np.isfinite(axis).all():
        raise DataError(f"{name} holds values that are not finite; expected an axis in reciprocal lattice units.")
    steps = np.diff(axis)
    if (steps <= 0).any():
        where = int(np.flatnonzero(steps <= 0)[0])
        raise DataError(
            f"{name} is not increasing at index {where + 1} ({axis[where]:.6g} is followed by {axis[where + 1]:.6g}); "
            "flip the axis together with the data."
        )
    step = (axis[-1] - axis[0]) / (axis.size - 1)
    uniform = np.linspace(axis[0], axis[-1], axis.size)
    worst = np.abs(axis - uniform).max()
    if worst > UNIFORM * step:
        raise DataError(
            f"{name} is not uniform: it departs by {worst / step:.3g} steps from equal steps of {step:.6g}; "
            f"at most {UNIFORM:g} steps are expected."
        )
    return uniform


def hkl_geometry(h, k, l, ndim: int):
    """Which of h, k, l are axes: (axes, names, basis (ndim, 3), origin (3,))."""
    values = dict(zip(AXIS_NAMES, (h, k, l), strict=True))
    fixed = [name for name, value in values.items() if value is not None and np.ndim(value) == 0]
    if ndim == 3 and fixed:
        raise DataError(f"{fixed[0]} is a single number but data is 3-D; expected three axes, one per dimension.")
    if ndim == 2 and len(fixed) != 1:
        found = " and ".join(fixed) + " are numbers" if fixed else "none of h, k, l is a number"
        raise DataError(f"data is 2-D and {found}; expected one number (the fixed index of the plane) and two axes.")
    names = tuple(name for name in AXIS_NAMES if name not in fixed)
    origin = np.zeros(3)
    for name in fixed:
        origin[AXIS_NAMES.index(name)] = check_number(values[name], name)
    basis = np.eye(3)[[AXIS_NAMES.index(name) for name in names]]
    return tuple(values[name] for name in names), names, basis, origin


def check_basis(basis, origin, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of hkl vectors that the axes run along, linearly independent, and the hkl of the axes' zero."""
    rows, start = _numbers(basis, "basis"), _numbers(origin, "origin")
    if rows.shape != (ndim, 3):
        raise DataError(f"basis has the shape {rows.shape}; expected ({ndim}, 3), one hkl vector per axis of data.")
    if start.shape != (3,):
        raise DataError(f"origin has the shape {start.shape}; expected three indices h, k, l.")
    if not (np.isfinite(rows).all() and np.isfinite(start).all()):
        raise DataError("basis and origin must be finite indices h, k, l.")
    lengths = np.linalg.norm(rows, axis=1)
    if (lengths == 0).any() or np.linalg.svd(rows / lengths[:, None], compute_uv=False)[-1] < 1e-6:
        raise DataError("basis holds vectors that are zero or linearly dependent; expected independent hkl vectors.")
    return rows, start


def check_number(value, name: str, unit: str = "", *, above: float = -math.inf) -> float:
    """A finite float larger than ``above``."""
    kind = f"a number{f' in {unit}' if unit else ''}{f' above {above:g}' if above > -math.inf else ''}"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"{name} is {value!r}; expected {kind}.") from None
    if isinstance(value, (bool, np.bool_)) or not math.isfinite(number) or number <= above:
        raise DataError(f"{name} is {value!r}; expected {kind}.")
    return number


def _numbers(values, name: str) -> np.ndarray:
    """A new C-ordered float64 array; masked elements become NaN."""
    if values is None:
        raise DataError(f"{name} is None; expected an array of numbers.")
    masked = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # ragged lists; a tensor on a GPU
        raise DataError(f"{name} cannot be turned into an array; expected numbers.") from None
    if np.iscomplexobj(array):
        raise DataError(f"{name} is complex; expected real numbers (intensities, not amplitudes).")
    if array.dtype.kind not in "biufO":
        raise DataError(f"{name} is of type {array.dtype}; expected numbers.")
    try:
        array = np.array(array, dtype=np.float64, order="C")
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{name} is not numeric; expected real numbers.") from None
    except MemoryError:
        raise DataError(f"{name} has the shape {array.shape}, which does not fit into memory; expected fewer pixels.") from None
    if masked is not None:
        array[masked] = np.nan
    return array


def check_sequence(values, n: int, name: str = "axes") -> list:
    """A list of ``n`` entries."""
    try:
        values = list(values)
    except TypeError:
        values = None
    if values is None or len(values) != n:
        found = "no sequence" if values is None else f"{len(values)} entries"
        raise DataError(f"{name} has {found}; expected {n}, one per axis of data.")
    return values
