"""Bragg vectors with uncertainties: `DiskTable`, what it adds to a ``py4DSTEM.BraggVectors``, and files of both.

A ``BraggVectors`` holds (qx, qy, intensity) of each disk. The standard uncertainties and confidences of the same disks
travel beside it, as a plain ``emdfile.PointList`` in its tree: py4DSTEM saves and reads it along with the vectors and
needs not know what it is. `table_of` puts the two together again.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..errors import DataError, FileFormatError, PlausibilityWarning
from ..storage.hdf5 import checked_path, first_line, open_hdf5
from ..storage.records import write_emd

CONVENTIONS = (
    "Scan positions are (Rx, Ry) and pixels of a pattern (Qx, Qy) = (row, column); positions and their sigma in px unless "
    "calibrated; strain slices e_xx, e_yy, e_xy are positive for tension, theta is in radians from y towards x."
)
COMPANION = "disk_table"  # name of the PointList in the tree of the Bragg vectors
COLUMNS = ("positions", "sigma", "intensity", "confidence", "fitted")
_VECTORS = np.dtype([("qx", float), ("qy", float), ("intensity", float)])
_BESIDE = np.dtype([("sigma_qx", float), ("sigma_qy", float), ("confidence", float), ("fitted", float), ("pattern", np.int64)])


@dataclass(frozen=True, eq=False, repr=False)
class DiskTable:
    """All disks of a scan in flat arrays, sorted by pattern (pattern index = rx · Ry + ry).

    Attributes
    ----------
    scan_shape : (Rx, Ry)
    pattern_shape : (Qx, Qy)
    offsets : (Rx · Ry + 1,) int64, disks of pattern p are rows offsets[p] to offsets[p + 1]
    positions : (N, 2) float64, (qx, qy) = (row, column) on the detector, px
    sigma : (N, 2) float64, their standard uncertainties from counting statistics, px; NaN: not known
    intensity : (N,) float64, what py4DSTEM sees: counts, or a network's estimate of the structure factor
    confidence : (N,) float64 in [0, 1]; NaN: not known
    fitted : (N,) float64, fitted sum of the disk above its background, whatever the method; NaN: not known
    searched : (Rx, Ry) bool, positions in which disks were looked for
    provenance : mapping, how they were found (method, model, options, probe, versions)
    """

    scan_shape: tuple[int, int]
    pattern_shape: tuple[int, int]
    offsets: np.ndarray
    positions: np.ndarray
    sigma: np.ndarray
    intensity: np.ndarray
    confidence: np.ndarray
    fitted: np.ndarray
    searched: np.ndarray
    provenance: Mapping = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("offsets", "positions", "sigma", "intensity", "confidence", "fitted", "searched"):
            array = np.asarray(getattr(self, name)).view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    @classmethod
    def from_disks(cls, disks, *, scan_shape, pattern_shape, searched, provenance=None) -> DiskTable:
        """Of `Disks` (or anything with its arrays) whose pattern numbers count scan positions."""
        scan_shape, pattern_shape = (tuple(int(n) for n in shape) for shape in (scan_shape, pattern_shape))
        order = np.argsort(disks.pattern, kind="stable")
        counts = np.bincount(disks.pattern, minlength=scan_shape[0] * scan_shape[1])
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        columns = (getattr(disks, name)[order] for name in COLUMNS)
        return cls(scan_shape, pattern_shape, offsets, *columns, searched, provenance or {})

    @property
    def pattern(self) -> np.ndarray:
        """(N,) int64, the pattern of each disk."""
        return np.repeat(np.arange(self.offsets.size - 1), np.diff(self.offsets))

    @property
    def counts(self) -> np.ndarray:
        """(Rx, Ry) int64, number of disks at each position."""
        return np.diff(self.offsets).reshape(self.scan_shape)

    def where(self, keep) -> DiskTable:
        """The disks for which ``keep`` (N,) is True."""
        counts = np.bincount(self.pattern[keep], minlength=self.offsets.size - 1)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        columns = (getattr(self, name)[keep] for name in COLUMNS)
        return DiskTable(self.scan_shape, self.pattern_shape, offsets, *columns, self.searched, self.provenance)

    def rows(self, rx: int, ry: int) -> slice:
        """The rows of one scan position."""
        n_x, n_y = self.scan_shape
        if not (-n_x <= rx < n_x and -n_y <= ry < n_y):
            raise DataError(f"position ({rx}, {ry}) lies outside the scan of {n_x} × {n_y} positions.")
        p = (rx % n_x) * n_y + ry % n_y
        return slice(int(self.offsets[p]), int(self.offsets[p + 1]))

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        how = self.provenance.get("method", "unknown method")
        return f"<DiskTable {len(self):,} disks in {self.scan_shape[0]} × {self.scan_shape[1]} patterns; {how}>"


# -- to and from py4DSTEM ------------------------------------------------------------------------------------------


def to_bragg_vectors(table: DiskTable, calibration=None, name: str = "braggvectors"):
    """A ``py4DSTEM.BraggVectors`` with the table beside it.

    Parameters
    ----------
    table : DiskTable
    calibration : py4DSTEM Calibration, optional
        Copied.
    """
    from py4DSTEM import BraggVectors

    if calibration is not None:
        calibration = calibration.copy(name="calibration")
    bragg = BraggVectors(table.scan_shape, table.pattern_shape, name=name, calibration=calibration)
    vectors = np.empty(len(table), dtype=_VECTORS)
    vectors["qx"], vectors["qy"] = table.positions.T
    vectors["intensity"] = table.intensity
    fill_point_lists(bragg._v_uncal, vectors, table.offsets)
    bragg.setcal()
    attach_table(bragg, table)
    return bragg


def fill_point_lists(array, vectors, offsets) -> None:
    """Put rows of a structured array into a ``PointListArray``, one slice (a copy) to each position."""
    ry = array.shape[1]
    for p in range(offsets.size - 1):
        array[p // ry, p % ry].data = vectors[offsets[p] : offsets[p + 1]].copy()


def attach_table(bragg, table: DiskTable) -> None:
    """Hang the uncertainties into the tree of Bragg vectors that hold the same disks."""
    from emdfile import Metadata, PointList

    beside = np.empty(len(table), dtype=_BESIDE)
    beside["sigma_qx"], beside["sigma_qy"] = table.sigma.T
    beside["confidence"], beside["fitted"], beside["pattern"] = table.confidence, table.fitted, table.pattern
    node = PointList(beside, name=COMPANION)
    about = {"provenance": json.dumps(dict(table.provenance), default=str)}
    node.metadata = Metadata(name="disk_table", data={**about, "searched": np.asarray(table.searched, dtype=np.uint8)})
    with contextlib.redirect_stdout(io.StringIO()):
        bragg.tree(node, force=True)
    bragg.disk_table = table


def table_of(bragg) -> DiskTable:
    """The disks of Bragg vectors in flat arrays, with their uncertainties where they are known.

    Vectors that py4DSTEM found, or whose disks were changed since, have NaN for sigma and confidence.

    Parameters
    ----------
    bragg : py4DSTEM.BraggVectors

    Raises
    ------
    TypeError
        Not Bragg vectors.
    """
    raw = getattr(bragg, "_v_uncal", None)
    if raw is None or not hasattr(bragg, "Rshape"):
        raise TypeError(
            f"bragg is a {type(bragg).__name__}; expected py4DSTEM.BraggVectors, as find_bragg_disks or "
            "find_Bragg_disks return."
        )
    scan_shape, pattern_shape = (tuple(int(n) for n in shape) for shape in (bragg.Rshape, bragg.Qshape))
    lists = [np.atleast_1d(raw[i, j].data) for i in range(scan_shape[0]) for j in range(scan_shape[1])]
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in lists])]).astype(np.int64)
    vectors = np.concatenate(lists) if lists else np.zeros(0, _VECTORS)
    positions = np.stack([vectors["qx"], vectors["qy"]], axis=1).astype(float)
    intensity = np.array(vectors["intensity"], dtype=float)
    kept = getattr(bragg, "disk_table", None)
    if isinstance(kept, DiskTable) and _same(kept, offsets, positions, intensity):
        return kept
    sigma = np.full((len(vectors), 2), np.nan)
    confidence = fitted = np.full(len(vectors), np.nan)
    searched, provenance = np.ones(scan_shape, dtype=bool), {}
    beside = bragg._branch[COMPANION] if COMPANION in bragg._branch.keys() else None  # noqa: SIM118
    if beside is not None:
        pattern = np.repeat(np.arange(offsets.size - 1), np.diff(offsets))
        if len(beside) == pattern.size and np.array_equal(beside["pattern"], pattern):
            sigma = np.stack([beside["sigma_qx"], beside["sigma_qy"]], axis=1).astype(float)
            confidence, fitted = (np.array(beside[name], dtype=float) for name in ("confidence", "fitted"))
            about = beside.metadata["disk_table"]
            searched = np.array(about["searched"], dtype=bool).reshape(scan_shape)
            provenance = json.loads(about["provenance"])
        else:
            warnings.warn(
                "the disks of bragg were changed after they were found; their uncertainties are no longer known.",
                PlausibilityWarning,
                stacklevel=2,
            )
    return DiskTable(
        scan_shape, pattern_shape, offsets, positions, sigma, intensity, confidence, fitted, searched, provenance
    )


def _same(table: DiskTable, offsets, positions, intensity) -> bool:
    """Whether a table still describes the vectors as they are."""
    return (
        np.array_equal(table.offsets, offsets)
        and np.array_equal(table.positions, positions)
        and np.array_equal(table.intensity, intensity)
    )


def points_of(table: DiskTable, rx: int, ry: int):
    """The disks of one pattern as ``py4DSTEM.QPoints``, with ``sigma`` (n, 2) and ``confidence`` (n,) as attributes."""
    from py4DSTEM.data import QPoints

    rows = table.rows(rx, ry)
    vectors = np.empty(rows.stop - rows.start, dtype=_VECTORS)
    vectors["qx"], vectors["qy"] = table.positions[rows].T
    vectors["intensity"] = table.intensity[rows]
    points = QPoints(vectors)
    points.sigma, points.confidence = table.sigma[rows], table.confidence[rows]
    return points


# -- files ---------------------------------------------------------------------------------------------------------


def save_emd(path, node, kind: str | None = None) -> Path:
    """Write an emdfile node and its tree to an EMD 1.0 file; an interrupted write leaves an old file whole.

    Parameters
    ----------
    path : str or Path
        Replaced if it exists.
    node : emdfile Node or Root (a ``DataCube``, ``BraggVectors``, …)
    kind : str, optional
        Class of the object for `crystaldl.read`; by default that of the node.
    """
    kind = type(node).__name__ if kind is None else kind
    return write_emd(path, node, kind, CONVENTIONS)


def save_bragg(path, bragg) -> Path:
    """Write Bragg vectors and their uncertainties; plain ``py4DSTEM.read`` opens the file.

    Raises
    ------
    TypeError
        Not Bragg vectors.
    """
    table = table_of(bragg)
    # a strain map in the same tree could be written, but py4DSTEM could not read the file again
    clean = to_bragg_vectors(table, bragg.calibration, name=bragg.name)
    return save_emd(path, clean)


def read_bragg(path):
    """Read the Bragg vectors of a file, from `save_bragg` or from py4DSTEM.

    Raises
    ------
    FileNotFoundError
        No such file.
    FileFormatError
        No EMD file, or one without Bragg vectors.
    """
    node = read_emd(path)
    found = [v for v in (node, *walk(node)) if type(v).__name__ == "BraggVectors"]
    if not found:
        raise FileFormatError(f"{Path(path).name} holds no Bragg vectors; expected a file of BraggVectors.")
    bragg = found[0]
    try:
        bragg.disk_table = table_of(bragg)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        found = f"{Path(path).name} holds damaged Bragg vectors ({first_line(error)})"
        raise FileFormatError(f"{found}; expected whole ones.") from error
    return bragg


def read_emd(path):
    """Read an EMD 1.0 or older py4DSTEM file quietly: whatever ``py4DSTEM.read`` returns."""
    import h5py
    import py4DSTEM

    path = checked_path(path, "an EMD file")
    if h5py.is_hdf5(path):
        with open_hdf5(path, "an EMD file", links=False):
            pass  # whole, and no larger than it can be
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            node = py4DSTEM.read(str(path), verbose=False)
    except Exception as error:
        raise FileFormatError(f"{path.name} cannot be read as a py4DSTEM file ({first_line(error)}).") from error
    if isinstance(node, list):
        raise FileFormatError(f"{path.name} holds several data trees ({', '.join(map(str, node))}); expected one.")
    return node


def walk(node):
    """Every node below one, depth first."""
    for key in getattr(getattr(node, "_branch", None), "keys", list)():
        child = node._branch[key]
        yield child
        yield from walk(child)
