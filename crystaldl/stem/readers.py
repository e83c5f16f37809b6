"""Reading scans from files: what py4DSTEM reads, what RosettaSciIO reads, and plain arrays.

Every reader returns a `Scan`: an array (in memory, mapped or lazy) and what the file says about it, or a ready
``py4DSTEM.DataCube`` where the file is py4DSTEM's own.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, FileFormatError
from ..storage.hdf5 import check_archive, check_dataset, load, load_npy, open_hdf5

MEMORY = ("RAM", "MEMMAP")
_HDF5 = (".h5", ".hdf5", ".emd", ".py4dstem", ".hspy", ".nxs", ".hdf")
_PY4DSTEM = (".dm", ".dm3", ".dm4", ".raw", ".mib", ".gtg")
# units of other programs in the units py4DSTEM has
_LENGTHS = {"nm": (1.0, "nm"), "Å": (0.1, "nm"), "A": (0.1, "nm"), "µm": (1e3, "nm"), "um": (1e3, "nm")}
_INVERSE = {
    "1/nm": (0.1, "A^-1"), "nm^-1": (0.1, "A^-1"), "1/Å": (1.0, "A^-1"), "1/A": (1.0, "A^-1"), "mrad": (1.0, "mrad"),
}  # fmt: skip
_EXPECTED = (
    "a 4D-STEM scan that py4DSTEM (h5, emd, dm3, dm4, mib, EMPAD raw, K2 gtg) or RosettaSciIO (blo, hspy, zspy, tvips, …) "
    "reads, or npy, npz, h5 with one array"
)


@dataclass(frozen=True)
class Scan:
    """Patterns as a file holds them.

    Attributes
    ----------
    data : (Rx, Ry, Qx, Qy) or fewer dimensions, array-like
    r_pixel : (size, unit) of the scan, unit "nm" or "A"; None: not known
    q_pixel : (size, unit) of the patterns, unit "A^-1" or "mrad"; None: not known
    """

    data: Any
    r_pixel: tuple[float, str] | None = None
    q_pixel: tuple[float, str] | None = None
    metadata: dict = field(default_factory=dict)


def read_scan(path, mem: str = "RAM", *, dataset=None, raw=None, **options):
    """Read a scan; see `DataCube.from_file`.

    Returns
    -------
    Scan or py4DSTEM.DataCube
    """
    if mem not in MEMORY:
        raise DataError(f"mem is {mem!r}; expected 'RAM' or 'MEMMAP'.")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {_EXPECTED}.")
    if path.is_dir() and path.suffix not in (".zspy", ".zarr"):
        raise FileFormatError(f"{path.name} is a folder; expected {_EXPECTED}.")
    if path.is_file() and path.stat().st_size == 0:
        raise FileFormatError(f"{path.name} is empty; expected {_EXPECTED}.")
    if raw is not None:
        return _read_raw(path, mem, **raw)
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _guarded(_read_numpy, path, mem, dataset)
    if suffix in _HDF5 or (suffix not in _PY4DSTEM and _is_hdf5(path)):
        return _guarded(_read_hdf5, path, mem, dataset)
    if suffix in _PY4DSTEM or options:
        return _guarded(_read_foreign, path, mem, options)
    return _guarded(_read_rosetta, path, mem, None)


def _guarded(reader: Callable, path: Path, mem: str, extra):
    """Run a reader; whatever goes wrong inside becomes one sentence."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return reader(path, mem, extra)
    except (DataError, FileFormatError, ImportError):
        raise
    except MemoryError:
        raise FileFormatError(f"{path.name} takes more memory than there is; mem='MEMMAP' leaves it in the file.") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FileFormatError(f"{path.name} cannot be read ({reason}); expected {_EXPECTED}.") from error


# -- arrays --------------------------------------------------------------------------------------------------------


def _read_raw(path: Path, mem: str, *, shape, dtype, offset: int = 0) -> Scan:
    """Bare numbers after a header of ``offset`` bytes."""
    dtype, shape = np.dtype(dtype), tuple(int(n) for n in shape)
    need, have = int(np.prod(shape)) * dtype.itemsize + offset, path.stat().st_size
    if have < need:
        raise FileFormatError(
            f"{path.name} has {have} bytes; expected {need} for shape {shape} of {dtype} after {offset} bytes of header."
        )
    data = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    return Scan(data if mem == "MEMMAP" else np.array(data))


def _read_numpy(path: Path, mem: str, dataset) -> Scan:
    if path.suffix.lower() == ".npy":
        return Scan(np.load(path, mmap_mode="r", allow_pickle=False) if mem == "MEMMAP" else load_npy(path))
    check_archive(path)
    with np.load(path, allow_pickle=False) as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files}
        return Scan(arrays[_chosen(shapes, dataset, path.name)])


def _chosen(shapes: dict[str, tuple], dataset, file: str) -> str:
    """The name of the array that holds patterns: the one asked for, or the only one that can be."""
    if dataset is not None:
        if dataset not in shapes:
            raise FileFormatError(f"dataset is {dataset!r} but {file} holds {', '.join(shapes) or 'no arrays'}.")
        return dataset
    for least in (4, 3, 2):
        found = [name for name, shape in shapes.items() if _dimensions(shape) >= least and min(shape[-2:]) >= 16]
        if len(found) == 1:
            return found[0]
        if found:
            sizes = ", ".join(f"{name} {shapes[name]}" for name in found)
            raise FileFormatError(f"{file} holds several arrays that may be patterns ({sizes}); pass dataset=NAME.")
    raise FileFormatError(f"{file} holds no array of patterns; expected {_EXPECTED}.")


def _dimensions(shape: tuple) -> int:
    """Number of dimensions, single ones before the patterns not counted."""
    return sum(n > 1 for n in shape[:-2]) + min(len(shape), 2)


def _squeezed(data, scan_dimensions: int = 2):
    """Drop single dimensions between scan and pattern until four are left."""
    while len(data.shape) > scan_dimensions + 2:
        single = [i for i, n in enumerate(data.shape[:-2]) if n == 1]
        if not single:
            raise FileFormatError(f"the array has the shape {data.shape}; expected four dimensions (Rx, Ry, Qx, Qy).")
        data = data[tuple(0 if i == single[-1] else slice(None) for i in range(len(data.shape)))]
    return data


# -- HDF5 ----------------------------------------------------------------------------------------------------------


def _is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5 by its content, whatever its name."""
    import h5py

    return path.is_file() and h5py.is_hdf5(path)


def _read_hdf5(path: Path, mem: str, dataset):
    import emdfile
    import h5py
    from py4DSTEM.io.parsefiletype import _is_arina, legacy

    if not h5py.is_hdf5(path):
        raise FileFormatError(f"{path.name} is no HDF5 file; expected {_EXPECTED}.")
    with open_hdf5(path, _EXPECTED, load=False):
        pass  # its tree can be walked
    if emdfile._is_EMD_file(str(path)):
        return _read_emd(path, mem, dataset)
    if dataset is None and legacy.is_py4DSTEM_file(str(path)):
        return _read_py4dstem(path)
    if dataset is None and _is_arina(str(path)):
        return _read_foreign(path, "RAM", {})  # py4DSTEM cannot map these
    return _read_any_hdf5(path, mem, dataset)


def _read_py4dstem(path: Path):
    from .bragg import read_emd, walk

    node = read_emd(path)
    cubes = [v for v in (node, *walk(node)) if type(v).__name__ == "DataCube"]
    if not cubes:
        raise FileFormatError(f"{path.name} is a py4DSTEM file without a DataCube; expected one with a scan.")
    return cubes[0]


def _read_emd(path: Path, mem: str, dataset):
    """py4DSTEM's own files: read by py4DSTEM, or the array mapped and the calibration read beside it."""
    if mem == "RAM" and dataset is None:
        return _read_py4dstem(path)
    from py4DSTEM import DataCube
    from py4DSTEM.data import Calibration

    with _kept_open(path, mem) as file:
        cubes = []
        file.visititems(lambda _, node: cubes.append(node) if _is_cube(node) else None)
        cubes = [node for node in cubes if dataset is None or node.name.strip("/") == dataset.strip("/")]
        if not cubes:
            raise FileFormatError(f"{path.name} holds no DataCube{f' at {dataset!r}' if dataset else ''}; expected a scan.")
        node = cubes[0]
        root = file[node.name.strip("/").split("/")[0]]
        place = root.get("metadatabundle/calibration")
        calibration = Calibration.from_h5(place) if place is not None else None
        if calibration is not None:
            calibration._params.pop("_target_paths", None)
            calibration._params.pop("_root_treepath", None)
        check_dataset(node["data"], path.name, mapped=mem == "MEMMAP")
        data = node["data"] if mem == "MEMMAP" else load(node["data"])
        return DataCube(data, name=node.name.rsplit("/", 1)[-1], calibration=calibration)


@contextlib.contextmanager
def _kept_open(path: Path, mem: str):
    """An HDF5 file that stays open when its data are mapped and nothing went wrong."""
    import h5py

    file = h5py.File(path, "r")
    try:
        yield file
    except BaseException:
        file.close()
        raise
    if mem == "RAM":
        file.close()


def _is_cube(node) -> bool:
    import h5py

    if not isinstance(node, h5py.Group):
        return False
    name = node.attrs.get("python_class", "")
    return (name.decode() if isinstance(name, bytes) else str(name)) == "DataCube" and "data" in node


def _read_any_hdf5(path: Path, mem: str, dataset) -> Scan:
    import h5py

    shapes: dict[str, tuple] = {}

    def note(name, node):
        if isinstance(node, h5py.Dataset) and node.ndim >= 2 and node.dtype.kind in "buif":
            shapes[name] = node.shape

    with _kept_open(path, mem) as file:
        file.visititems(note)
        data = file[_chosen(shapes, dataset, path.name)]
        check_dataset(data, path.name, mapped=mem == "MEMMAP")
        if mem == "MEMMAP" and data.ndim == 4:
            return Scan(data)
        if mem == "MEMMAP":
            import dask.array as da

            # blocks of many of the file's chunks: a file may have millions of these
            return Scan(_squeezed(da.from_array(data, chunks="auto")))
        data = load(data)
        return Scan(_squeezed(data.astype(data.dtype.newbyteorder("="))))


# -- other programs' files -----------------------------------------------------------------------------------------


def _read_foreign(path: Path, mem: str, options):
    import py4DSTEM

    node = py4DSTEM.import_file(str(path), mem=mem, **(options or {}))
    if type(node).__name__ == "DataCube":
        return node
    return Scan(_squeezed(node.data))


def _read_rosetta(path: Path, mem: str, _) -> Scan:
    try:
        import rsciio
    except ImportError:
        raise ImportError(
            f"{path.name}: not a format that py4DSTEM reads, and RosettaSciIO, which may read it, is not installed; "
            "expected the package rosettasciio, or another format."
        ) from None
    from importlib import import_module

    suffix = path.suffix.lstrip(".").lower()
    plugins = [p for p in rsciio.IO_PLUGINS if suffix in [e.lower() for e in p["file_extensions"]]]
    if not plugins or not suffix:
        raise FileFormatError(f"{path.name} ends in {path.suffix or 'nothing'}, which no reader knows; expected {_EXPECTED}.")
    reader = import_module(plugins[0]["api"]).file_reader
    signals = [s for s in reader(str(path), lazy=mem == "MEMMAP") if np.ndim(s["data"]) >= 2]
    if not signals:
        raise FileFormatError(f"{path.name} holds no patterns; expected {_EXPECTED}.")
    signal = max(signals, key=lambda s: int(np.prod(s["data"].shape)))
    axes = signal["axes"]
    return Scan(
        _squeezed(signal["data"]),
        _pixel([a for a in axes if a.get("navigate")], _LENGTHS),
        _pixel([a for a in axes if not a.get("navigate")], _INVERSE),
        {"original": signal.get("metadata", {})},
    )


def _pixel(axes: list[dict], known: dict[str, tuple[float, str]]) -> tuple[float, str] | None:
    """Size and unit that all axes share, in the units py4DSTEM has."""
    sizes = {(float(a.get("scale", 0)), str(a.get("units", ""))) for a in axes}
    if len(sizes) != 1:
        return None
    (size, unit) = sizes.pop()
    if unit not in known or not size > 0:
        return None
    factor, name = known[unit]
    return size * factor, name
