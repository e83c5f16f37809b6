"""Writing volumes: EMD 1.0 (everything kept), Yell 1.0 and NXdata. An interrupted write leaves an old file whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..storage.atomic import replacing
from ..storage.records import fill_emd
from .naming import axis_names

__all__ = ["FORMATS", "to_emd", "write_volume"]

CONVENTIONS = (
    "A pixel (i, j, ...) lies at hkl = origin + axis_0[i] basis[0] + axis_1[j] basis[1] + ...; hkl in reciprocal lattice units, "
    "the lattice in Å and degrees; NaN is not measured."
)
FORMATS = ("emd", "yell", "nxdata")
_ENDINGS = {".h5": "emd", ".hdf5": "emd", ".emd": "emd", ".nxs": "nxdata", ".nx5": "nxdata", ".nexus": "nxdata"}


def write_volume(volume, path, *, format: str | None = None) -> Path:
    """Write a volume to a file.

    Parameters
    ----------
    volume : DiffuseVolume
    path : str or Path
    format : {"emd", "yell", "nxdata"}, optional
        By the ending: ``.h5``, ``.hdf5`` and ``.emd`` are EMD, ``.nxs`` and ``.nx5`` NXdata.  Yell 1.0 shares the
        ending .h5, so it has to be asked for; it holds no orientation but h, k, l.

    Returns
    -------
    Path

    Raises
    ------
    DataError
        An unknown format or ending, or a volume that the format cannot hold.
    """
    path = Path(path)
    if format is None:
        format = _ENDINGS.get(path.suffix.lower())
        if format is None:
            raise DataError(f"path ends in {path.suffix!r}; expected one of {', '.join(_ENDINGS)}, or format.")
    if format not in FORMATS:
        raise DataError(f"format is {format!r}; expected one of {', '.join(FORMATS)}.")
    write = {"emd": _write_emd, "yell": _write_yell, "nxdata": _write_nxdata}[format]
    with replacing(path) as beside:
        write(volume, beside)
    return path


# -- EMD -----------------------------------------------------------------------------------------------------------


def to_emd(volume, name: str = "diffuse_volume", parent=None):
    """The volume as an ``emdfile.Array`` in a tree, with sigma as its child and everything else as metadata.

    Plain emdfile reads it; `crystaldl.diffuse.readers.read.from_emd` makes the same volume of it.  NaN is "not measured".

    Parameters
    ----------
    volume : DiffuseVolume
    name : str
        Of the node.
    parent : emdfile.Node, optional
        What to hang it on, a root or a node of a tree; by default a new root named "crystaldl".

    Returns
    -------
    emdfile.Array
    """
    import emdfile

    units = ["pixels" if volume.lattice is None else "r.l.u."] * volume.ndim
    calibration = {"dims": [np.array(a) for a in volume.axes], "dim_names": list(axis_names(volume)), "dim_units": units}
    node = emdfile.Array(np.array(volume.data), name=name, units="intensity", **calibration)
    # emdfile keeps two numbers of a linear axis; these are the axes to the last digit
    exact = {f"axis_{i}": np.array(axis) for i, axis in enumerate(volume.axes)}
    facts = {
        "format": "crystaldl diffuse volume 1",
        "basis": np.array(volume.basis),
        "origin": np.array(volume.origin),
        "lattice": None if volume.lattice is None else np.array(volume.lattice),
        "radiation": volume.radiation,
        "title": volume.name,
        "history": volume.history,
        **exact,
    }
    node.metadata = emdfile.Metadata("diffuse_volume", facts)
    (emdfile.Root(name="crystaldl") if parent is None else parent).tree(node)
    if volume.sigma is not None:
        node.tree(emdfile.Array(np.array(volume.sigma), name="sigma", units="intensity", **calibration))
    return node


def _write_emd(volume, path: Path) -> None:
    fill_emd(path, to_emd(volume).root, "DiffuseVolume", CONVENTIONS)


# -- Yell ----------------------------------------------------------------------------------------------------------


def _write_yell(volume, path: Path) -> None:
    import h5py

    if volume.lattice is None:
        raise DataError("the lattice of this plane is not known (from_pixels); Yell files need one, write EMD instead.")
    places = [int(np.argmax(vector)) for vector in volume.basis]
    if not np.array_equal(volume.basis, np.eye(3)[places]) or places != sorted(places):
        raise DataError("the axes are not h, k and l; Yell 1.0 holds no other orientation, write EMD or NXdata instead.")
    low, step, shape = volume.origin.copy(), np.ones(3), [1, 1, 1]
    for place, axis in zip(places, volume.axes, strict=True):
        low[place] += axis[0]
        step[place] = (axis[-1] - axis[0]) / (axis.size - 1)
        shape[place] = axis.size
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "Yell 1.0"
        file["format"] = np.bytes_("Yell 1.0")
        file["data"] = volume.data.reshape(shape)
        file["lower_limits"], file["step_sizes"] = low, step
        file["unit_cell"] = np.array(volume.lattice)
        file["is_direct"] = False
        # Yell opens data sets by name and does not mind these
        file["radiation"] = np.bytes_(volume.radiation)
        file["title"] = volume.name
        if volume.sigma is not None:
            file["sigma"] = volume.sigma.reshape(shape)


# -- NXdata --------------------------------------------------------------------------------------------------------


def _write_nxdata(volume, path: Path) -> None:
    import h5py

    if volume.lattice is None:
        raise DataError("the lattice of this plane is not known (from_pixels); NXdata files need one, write EMD instead.")
    names = [n if n in ("h", "k", "l") else f"axis_{i}" for i, n in enumerate(axis_names(volume))]
    plain = not any(n.startswith("axis_") for n in names)
    with h5py.File(path, "w") as file:
        file.attrs["NX_class"], file.attrs["default"] = "NXroot", "entry"
        entry = file.create_group("entry")
        entry.attrs["NX_class"], entry.attrs["default"] = "NXentry", "data"
        entry["title"] = volume.name
        group = entry.create_group("data")
        group.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": names, "radiation": volume.radiation})
        group["data"] = volume.data
        for i, (name, axis) in enumerate(zip(names, volume.axes, strict=True)):
            group[name] = axis
            group[name].attrs["units"] = "r.l.u."
            group.attrs[f"{name}_indices"] = i
        if volume.sigma is not None:
            group["data_errors"] = volume.sigma
        group["data_mask"] = (~volume.mask).astype(np.uint8)  # NeXus: nonzero is masked
        group["basis"], group["origin"] = volume.basis, volume.origin
        if plain:
            for i, letter in enumerate("hkl"):
                if letter not in names:
                    group[letter] = volume.origin[i]
        group["history"] = "\n".join(volume.history)
        sample = entry.create_group("sample")
        sample.attrs["NX_class"] = "NXsample"
        sample["unit_cell"] = np.array(volume.lattice)
        for key, value in zip(("a", "b", "c", "alpha", "beta", "gamma"), volume.lattice, strict=True):
            sample[f"unitcell_{key}"] = value
        probe = {"xray": "x-ray"}.get(volume.radiation, volume.radiation)
        source = entry.create_group("instrument/source")
        source.attrs["NX_class"], source.parent.attrs["NX_class"] = "NXsource", "NXinstrument"
        source["probe"] = probe
