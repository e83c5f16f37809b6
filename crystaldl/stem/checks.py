"""What may become a `DataCube`, and which of its patterns are meant: each check raises one sentence before any work."""

from __future__ import annotations

import numpy as np

from ..errors import DataError

SMALLEST = 16  # px: no pattern has fewer rows or columns
LARGEST = 8192  # no detector has more; py4DSTEM makes coordinates of every pixel


def check_data(data, name: str = "data"):
    """A four-dimensional array of patterns, in memory or not; one pattern or a line of patterns gets scan axes.

    Parameters
    ----------
    data : array-like of shape (Rx, Ry, Qx, Qy), (R, Qx, Qy) or (Qx, Qy)
        Kept as it is where it has ``shape``, ``dtype`` and four dimensions (memory maps, HDF5 datasets, dask arrays).

    Raises
    ------
    DataError
        Not numeric, empty, of another number of dimensions, or with patterns below 16 × 16 px.
    """
    if not (hasattr(data, "shape") and hasattr(data, "dtype")):
        try:
            data = np.asarray(data)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise DataError(f"{name} cannot be turned into an array; expected patterns (Rx, Ry, Qx, Qy).") from None
    if not hasattr(data.dtype, "kind"):  # a torch tensor
        data = np.asarray(data)
    if isinstance(data, np.ma.MaskedArray):
        data = np.ma.filled(data.astype(float), np.nan)
    if data.dtype.kind not in "buif":
        raise DataError(f"{name} is of type {data.dtype}; expected real numbers.")
    if len(data.shape) in (2, 3):
        # a line of patterns becomes one row of the scan
        data = data if hasattr(data, "reshape") else np.asarray(data)
        data = data.reshape((1,) * (4 - len(data.shape)) + tuple(data.shape))
    if len(data.shape) != 4:
        raise DataError(f"{name} has the shape {tuple(data.shape)}; expected four dimensions (Rx, Ry, Qx, Qy).")
    if 0 in data.shape:
        raise DataError(f"{name} is empty (shape {tuple(data.shape)}); expected patterns (Rx, Ry, Qx, Qy).")
    if max(data.shape[2:]) > LARGEST:
        raise DataError(f"{name} has patterns of {data.shape[2]} × {data.shape[3]} px; expected at most {LARGEST} px a side.")
    if min(data.shape[2:]) < SMALLEST:
        raise DataError(
            f"{name} has patterns of {data.shape[2]} × {data.shape[3]} px; expected at least {SMALLEST} × {SMALLEST} px, "
            "as the last two of four dimensions."
        )
    return data


def check_selection(selection, scan_shape) -> tuple[str, np.ndarray]:
    """Which patterns ``data`` selects: ("scan" | "one" | "some", (n, 2) scan positions in order).

    Parameters
    ----------
    selection : None, (rx, ry), (list of rx, list of ry), or (Rx, Ry) bool array
    """
    n_x, n_y = scan_shape
    expected = "expected None, (rx, ry), (list of rx, list of ry), or a bool array of the scan's shape"
    if selection is None:
        return "scan", np.argwhere(np.ones(scan_shape, dtype=bool))
    if isinstance(selection, np.ndarray) and selection.dtype == bool:
        if selection.shape != tuple(scan_shape):
            raise DataError(f"data is a bool array of shape {selection.shape}; expected the scan's shape {scan_shape}.")
        if not selection.any():
            raise DataError("data is False everywhere; expected some positions.")
        return "some", np.argwhere(selection)
    if not isinstance(selection, tuple | list) or len(selection) != 2:
        raise DataError(f"data is a {type(selection).__name__}; {expected}.")
    single = all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in selection)
    try:
        rx, ry = (np.atleast_1d(np.asarray(v)) for v in selection)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"data holds no whole numbers; {expected}.") from None
    if rx.shape != ry.shape or rx.ndim != 1 or rx.dtype.kind not in "iu" or ry.dtype.kind not in "iu" or not rx.size:
        raise DataError(f"data holds lists of {rx.size} and {ry.size} values; {expected}, of whole numbers.")
    outside = (rx < -n_x) | (rx >= n_x) | (ry < -n_y) | (ry >= n_y)
    if outside.any():
        i = int(np.flatnonzero(outside)[0])
        raise DataError(f"data names position ({rx[i]}, {ry[i]}) outside the scan of {n_x} × {n_y} positions.")
    return "one" if single else "some", np.stack([rx % n_x, ry % n_y], axis=1)
