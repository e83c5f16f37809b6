"""Reading volumes from files: by content first, then by the layout of the HDF5 tree.

Yell 1.0, Meerkat (both generations), DISCUS, numpy and EMD are read here; the NeXus family ("Disorder scattering 1.0",
Mantid MDHisto, NXdata, nxrefine) in ``readers_nexus``.  Each reader makes a `Grid`; `read_volume` settles the lattice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, FileFormatError
from ...storage.hdf5 import check_members, first_line, load, load_npy, open_hdf5
from ..checks import check_lattice, check_number, check_radiation
from ..volume import DiffuseVolume

__all__ = ["Grid", "from_emd", "read_volume", "real_array", "text_of", "unusable"]

_EXPECTED = (
    "a diffuse-scattering volume (EMD, Yell 1.0, Meerkat, Disorder scattering 1.0, Mantid MDHisto, NXdata, nxrefine, "
    "DISCUS or .npy)"
)
_HDF5, _NPY = b"\x89HDF\r\n\x1a\n", b"\x93NUMPY"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x89PNG": "a PNG image",
    b"II*\x00": "a TIFF image",
    b"%PDF": "a PDF document",
    b"CDF": "a NetCDF file",
}
# what DISCUS writes where it has no cell: a unit metric
_PLACEHOLDER = (1.0, 1.0, 1.0, 90.0, 90.0, 90.0)


def unusable(name: str, found: str, expected: str = _EXPECTED) -> FileFormatError:
    """The one sentence about a file that cannot be read."""
    return FileFormatError(f"{name}: {found}; expected {expected}.")


@dataclass
class Grid:
    """What a file holds, before it is known to be usable: axes and hkl vectors in the order of data."""

    data: np.ndarray
    axes: list[np.ndarray]
    basis: np.ndarray = field(default_factory=lambda: np.eye(3))
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))
    lattice: Any = None
    mask: np.ndarray | None = None
    sigma: np.ndarray | None = None
    radiation: str | None = None
    name: str = ""
    history: tuple[str, ...] = ()

    def without_single_layers(self) -> Grid:
        """Axes of one point become part of the origin: a volume of one layer is a plane."""
        keep = [i for i, axis in enumerate(self.axes) if len(axis) > 1]
        origin = np.array(self.origin, dtype=np.float64)
        for i, axis in enumerate(self.axes):
            if i not in keep:
                origin += float(axis[0]) * self.basis[i]
        shape = tuple(len(self.axes[i]) for i in keep)

        def flat(array):
            return None if array is None else np.asarray(array).reshape(shape)

        return Grid(
            flat(self.data), [self.axes[i] for i in keep], np.asarray(self.basis)[keep], origin, self.lattice,
            flat(self.mask), flat(self.sigma), self.radiation, self.name, self.history,
        )  # fmt: skip


def read_volume(
    path, *, lattice=None, radiation: str | None = None, name: str | None = None, axes=None, missing=None, dataset=None
) -> DiffuseVolume:
    """Read a volume or a plane.

    Parameters
    ----------
    path : str or Path
    lattice : (6,) sequence, optional
        Cell in Å and degrees; wins over the file's.  Needed when the file has none.
    radiation : {"xray", "neutron", "electron"}, optional
        By default what the file says (Mantid files: neutron), else "xray".
    name : str, optional
        By default the file's title, else its name without the ending.
    axes : sequence of three, optional
        For ``.npy`` files: h, k and l as for `DiffuseVolume`.  Without them (and without a lattice) a two-dimensional
        array is read by `DiffuseVolume.from_pixels`.
    missing : float, optional
        A value that stands for "not measured" in this file, besides NaN and the file's own mask: 0 or -1, say.
    dataset : str, optional
        For HDF5 files with several volumes: the path of the NXdata group (or EMD node) to take.

    Returns
    -------
    DiffuseVolume

    Raises
    ------
    FileNotFoundError
    FileFormatError
        A folder, a truncated file, one that is neither HDF5 nor numpy, or a layout that is not known.
    DataError
        No lattice in the file and none given; or a bad argument.
    """
    path = Path(path)
    head = _head(path)
    if lattice is not None:
        lattice = check_lattice(lattice)
    if radiation is not None:
        radiation = check_radiation(radiation)
    if missing is not None:
        missing = check_number(missing, "missing")
    if head.startswith(_NPY):
        return _read_npy(path, axes, missing, lattice=lattice, radiation=radiation or "xray", name=name or path.stem)
    if axes is not None:
        raise DataError(f"axes are given but {path.name} has its own; they are expected for .npy files only.")
    found = _read_hdf5(path, dataset)
    if isinstance(found, DiffuseVolume):
        return _adapt(found, lattice, radiation, name, missing)
    cell = lattice or found.lattice
    if cell is None or (lattice is None and np.allclose(cell, _PLACEHOLDER)):
        kind = "no unit cell" if cell is None else "only a placeholder (1, 1, 1, 90, 90, 90) for its unit cell"
        raise DataError(f"{path.name} has {kind}; pass lattice=(a, b, c, alpha, beta, gamma) in Å and degrees.")
    found.lattice, found.radiation = cell, radiation or found.radiation or "xray"
    found.name = name or found.name or path.stem
    try:
        return _volume(found, missing)
    except DataError as error:
        raise FileFormatError(f"{path.name}: {error}") from None


def _volume(grid: Grid, missing) -> DiffuseVolume:
    grid = grid.without_single_layers()
    if missing is not None:
        usable = grid.data != missing
        grid.mask = usable if grid.mask is None else grid.mask & usable
    data = np.where(np.isfinite(grid.data), grid.data, np.nan)
    sigma = None
    if grid.sigma is not None and np.nanmax(grid.sigma, initial=0.0) > 0:
        sigma = np.where(np.isfinite(grid.sigma) & (grid.sigma > 0), grid.sigma, np.nan)
    return DiffuseVolume._from_parts(
        data, grid.axes, grid.basis, grid.origin, check_lattice(grid.lattice), mask=grid.mask, sigma=sigma,
        radiation=grid.radiation, name=grid.name, history=grid.history,
    )  # fmt: skip


def _adapt(volume, lattice, radiation, name, missing) -> DiffuseVolume:
    """A volume of our own with what the caller knows better."""
    if missing is not None:
        volume = volume.replace(mask=volume.mask & (volume.data != missing), history=f"missing={missing:g}")
    return DiffuseVolume._from_parts(
        volume.data, volume.axes, volume.basis, volume.origin, lattice or volume.lattice, sigma=volume.sigma,
        radiation=radiation or volume.radiation, name=volume.name if name is None else name, history=volume.history,
    )  # fmt: skip


def _head(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {_EXPECTED}.")
    if path.is_dir():
        raise unusable(path.name, "this is a folder")
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        raise unusable(path.name, f"it cannot be read ({error.strerror or error})", "a readable file") from None
    if not head:
        raise unusable(path.name, "the file is empty")
    for magic, kind in _FOREIGN.items():
        if head.startswith(magic):
            raise unusable(path.name, f"this looks like {kind}")
    return head


# -- numpy ---------------------------------------------------------------------------------------------------------


def _read_npy(path: Path, axes, missing, *, lattice, radiation, name) -> DiffuseVolume:
    try:
        data = load_npy(path)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise unusable(path.name, f"this .npy file is damaged or holds objects ({first_line(error)})") from None
    if (axes is None) != (lattice is None):
        given, absent = ("lattice", "axes") if axes is None else ("axes", "lattice")
        raise DataError(f"{given} is given for {path.name} without {absent}; a .npy file needs both, or neither for pixels.")
    mask = None if missing is None else np.asarray(data != missing)
    if axes is None:
        if data.ndim == 3:
            raise DataError(f"{path.name} is 3-D and a .npy file has no axes; pass axes=(h, k, l) and lattice.")
        return DiffuseVolume.from_pixels(data, mask=mask, radiation=radiation, name=name)
    try:
        h, k, l = axes
    except (TypeError, ValueError):
        raise DataError("axes is no sequence of three; expected (h, k, l), one of them a number for a plane.") from None
    return DiffuseVolume(data, h, k, l, lattice, mask=mask, radiation=radiation, name=name)


# -- HDF5 ----------------------------------------------------------------------------------------------------------


def _read_hdf5(path: Path, dataset: str | None) -> Grid | DiffuseVolume:
    import h5py

    if not h5py.is_hdf5(path):
        with path.open("rb") as stream:
            if stream.read(8) == _HDF5:
                raise unusable(path.name, "its HDF5 header is damaged or truncated", "a whole HDF5 file")
        raise unusable(path.name, "this is neither HDF5 nor .npy")
    with open_hdf5(path, "a whole HDF5 file", load=False) as file:
        return _layout(file, path, dataset)


def _layout(file, path: Path, dataset: str | None) -> Grid | DiffuseVolume:
    from . import nexus as readers_nexus

    if dataset is not None:
        if dataset not in file:
            raise DataError(f"dataset is {dataset!r}, which {path.name} does not have; it holds {', '.join(list(file)[:8])}.")
        node = file[dataset]
        if node.attrs.get("emd_group_type") is not None:
            return _read_emd(path, file, dataset)
        return readers_nexus.read_nxdata(file, node, path)
    if "emd_group_type" in file.attrs or any(text_of(g.attrs.get("emd_group_type")) == "root" for g in _groups(file)):
        return _read_emd(path, file, None)
    if "rebinned_data" in file and "number_of_pixels_rebinned" in file:
        return _read_meerkat(file, path.name)
    if "data" in file and "lower_limits" in file and ("step_sizes" in file or "step_size" in file):
        return _read_yell(file, path.name)
    if "MDHistoWorkspace" in file:
        return readers_nexus.read_mdhisto(file, path)
    found = readers_nexus.find_nxdata(file)
    if found is not None:
        return readers_nexus.read_nxdata(file, found, path)
    content = ", ".join(list(file)[:8]) or "nothing"
    raise unusable(path.name, f"this HDF5 file has a layout that is not known (it holds {content})")


def _groups(file):
    import h5py

    return [node for node in (file.get(key) for key in file) if isinstance(node, h5py.Group)]


def real_array(node, name: str) -> np.ndarray:
    """The values of an HDF5 data set as float64; complex numbers and text are no intensities."""
    values = load(node)
    if not isinstance(values, (np.ndarray, np.generic)) or values.dtype.kind not in "biuf":
        kind = "complex" if np.iscomplexobj(values) else "not numeric"
        raise unusable(name, f"{node.name} is {kind}", "real intensities")
    return np.asarray(values, dtype=np.float64)


def text_of(value) -> str:
    """Text of an HDF5 string, whatever its kind."""
    value = load(value) if hasattr(value, "id") else value  # an HDF5 data set
    while isinstance(value, (np.ndarray, list)) and len(value):
        value = value[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)


def decimal(values) -> np.ndarray:
    """Flat float64 numbers as they were meant: a step stored as float32(0.08) becomes 0.08."""
    values = np.ravel(values)
    return np.array([float(str(v)) for v in values]) if values.dtype == np.float32 else values.astype(np.float64)


def _cell(file):
    return decimal(load(file["unit_cell"]))[:6] if "unit_cell" in file else None


def _read_yell(file, name: str) -> Grid:
    """Yell 1.0 and DISCUS: data in the order h, k, l; one layer along an axis that a plane does not have.

    ``is_direct`` is not looked at: programs write it wrongly.
    """
    data = real_array(file["data"], name)
    if not 2 <= data.ndim <= 3:
        raise unusable(name, f"its data has the shape {data.shape}", "a plane or a volume")
    shape = data.shape + (1,) * (3 - data.ndim)
    low, step = (decimal(load(file[key])) for key in ("lower_limits", "step_sizes" if "step_sizes" in file else "step_size"))
    low, step = (np.append(v, np.zeros(3))[:3] for v in (low, step))
    basis, origin = np.eye(3), np.zeros(3)
    vectors = [f"step_sizes_{axis}" for axis in ("abs", "ord", "top")]
    if all(v in file for v in vectors):
        rows = np.array([decimal(load(file[v]))[:3] for v in vectors])
        if np.abs(rows - np.diag(np.diag(rows))).max() > 1e-9 and all(r.any() for r, n in zip(rows, shape, strict=True) if n > 1):
            # oblique sections: count steps from the corner
            basis, origin, low, step = rows, low, np.zeros(3), np.ones(3)
    axes = [a + s * np.arange(n) for a, s, n in zip(low, step, shape, strict=True)]
    return Grid(
        data.reshape(shape), axes, basis, origin, _cell(file),
        sigma=real_array(file["sigma"], name).reshape(shape) if "sigma" in file else None,
        radiation=text_of(file["radiation"]) if "radiation" in file else None,
        name=text_of(file["title"]) if "title" in file else "",
    )  # fmt: skip


def _read_meerkat(file, name: str) -> Grid:
    """First generation of Meerkat: summed intensities and how many detector pixels fell into each voxel."""
    counts = real_array(file["number_of_pixels_rebinned"], name)
    total = real_array(file["rebinned_data"], name)
    data = np.full(total.shape, np.nan)
    np.divide(total, counts, out=data, where=counts > 0)
    if "lower_limits" in file:
        low, step = (decimal(load(file[key])) for key in ("lower_limits", "step_sizes" if "step_sizes" in file else "step_size"))
        axes = [a + s * np.arange(n) for a, s, n in zip(low, step, data.shape, strict=True)]
    else:
        top = decimal(load(file["maxind"]))
        axes = [np.linspace(-m, m, n) if n > 1 else np.zeros(1) for m, n in zip(top, data.shape, strict=True)]
    return Grid(data, axes, lattice=_cell(file))


# -- EMD -----------------------------------------------------------------------------------------------------------


def _read_emd(path: Path, file, dataset: str | None) -> DiffuseVolume:
    import h5py

    from ..files import volume_of_group

    if dataset is None:
        found = []

        def visit(key, node):
            if isinstance(node, h5py.Group) and "metadatabundle/diffuse_volume" in node:
                found.append(key)

        file.visititems(visit)
        if not found:
            raise unusable(path.name, "this EMD file holds no diffuse volume", "one written by DiffuseVolume.save")
        if len(found) > 1:
            raise DataError(f"{path.name} holds {len(found)} diffuse volumes; pass dataset, one of {', '.join(found)}.")
        dataset = found[0]
    check_members(file[dataset], path.name, links=False)
    return volume_of_group(file[dataset])


def from_emd(node) -> DiffuseVolume:
    """The volume in an ``emdfile.Array`` that `crystaldl.diffuse.writers.to_emd` made, exactly as it was.

    Raises
    ------
    FileFormatError
        Metadata named "diffuse_volume" are missing.
    """
    if "diffuse_volume" not in getattr(node, "metadata", {}):
        raise FileFormatError("this EMD node has no metadata 'diffuse_volume'; expected one written by DiffuseVolume.save.")
    facts = node.metadata["diffuse_volume"]
    axes = [np.asarray(facts[f"axis_{i}"]) for i in range(np.ndim(node.data))]
    children = list(node._branch.keys())
    sigma = node.tree("sigma").data if "sigma" in children else None
    lattice = None if facts["lattice"] is None else tuple(float(v) for v in facts["lattice"])
    basis, origin = np.asarray(facts["basis"]), np.asarray(facts["origin"])
    return DiffuseVolume._from_parts(
        np.asarray(node.data), axes, basis, origin, lattice, sigma=sigma, radiation=facts["radiation"],
        name=facts["title"], history=tuple(facts["history"]),
    )  # fmt: skip
