"""`save` and `read`: one pair for the data and the results of all techniques, in files of EMD 1.0.

emdfile, py4DSTEM and plain h5py open what is written; units are attributes of the arrays, and class, format, version and
conventions are attributes of the file. Nothing in a file names code to run.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import FileFormatError

__all__ = ["read", "save"]

# Class of an object -> the wing that keeps it.
_WINGS = {
    "PowderPattern": "powder", "Classification": "powder", "PeakList": "powder",
    "DiffuseVolume": "diffuse", "Separation": "diffuse", "SROFit": "diffuse", "InteractionFit": "diffuse",
    "FormFactorComparison": "diffuse", "DeltaPDF": "diffuse",
    "DataCube": "stem", "BraggVectors": "stem", "StrainMap": "stem", "Probe": "stem",
}  # fmt: skip
_EXPECTED = f"a file of EMD 1.0 from crystaldl or py4DSTEM ({', '.join(_WINGS)})"


def save(path: str | os.PathLike, obj: Any) -> Path:
    """Write an object to a file of EMD 1.0; an interrupted write leaves an old file whole.

    Parameters
    ----------
    path : str or path-like, ending in .h5, .hdf5 or .emd
        Replaced if it exists.
    obj : object
        ``PowderPattern``, ``Classification``, ``PeakList``; ``DiffuseVolume``, ``Separation``, ``SROFit``,
        ``InteractionFit``, ``FormFactorComparison``, ``DeltaPDF``; ``DataCube``, py4DSTEM's ``BraggVectors``, a
        ``StrainMap`` from `fit_strain`, a probe, and any other node of py4DSTEM or emdfile.

    Returns
    -------
    Path

    Raises
    ------
    TypeError
        No such object, or ``path`` is no path.
    DataError
        Another ending, or the object holds something that EMD does not.
    FileNotFoundError, IsADirectoryError, OSError
        There is no folder to write in, ``path`` is one, or it cannot be written in.

    Examples
    --------
    >>> cdl.save("quartz.h5", pattern.classify())
    >>> cdl.read("quartz.h5").space_group
    152
    """
    if not isinstance(path, (str, os.PathLike)):
        swapped = "; the path comes first" if isinstance(obj, (str, os.PathLike)) else ""
        raise TypeError(f"path is a {type(path).__name__}; expected text or a pathlib.Path{swapped}.")
    wing = next((w for w in map(_wing_of, type(obj).__mro__) if w), None)
    if wing is None:
        raise TypeError(f"obj is a {type(obj).__name__}; expected one of {', '.join(_WINGS)}.")
    return import_module(f"crystaldl.{wing}.files").RECORDS.save(path, obj)


def read(path: str | os.PathLike) -> Any:
    """Read an object that `save` (or its own ``.save``) wrote, or py4DSTEM.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    object
        Of the class that was saved. From py4DSTEM's files a scan is a `DataCube`; other nodes are py4DSTEM's own.

    Raises
    ------
    TypeError
        ``path`` is no path.
    FileNotFoundError
    FileFormatError
        Not HDF5, damaged, larger than this machine, or nothing that is known. Measured data in formats of other programs
        are read by ``PowderPattern.from_file``, ``DiffuseVolume.from_file`` and ``DataCube.from_file``.
    """
    from .storage.hdf5 import open_hdf5

    with open_hdf5(path, _EXPECTED, load=False) as file:
        kind = _kind(file, Path(path).name)
    wing = _WINGS.get(kind, "stem")
    return import_module(f"crystaldl.{wing}.files").RECORDS.open(path, kind)


def _wing_of(cls: type) -> str | None:
    """The wing that may keep objects of a class, by the module that it comes from."""
    module = cls.__module__.split(".")
    if module[0] == "crystaldl" and len(module) > 1 and cls.__name__ in _WINGS:
        return module[1]
    return "stem" if module[0] in ("py4DSTEM", "emdfile") else None


def _kind(file: Any, name: str) -> str:
    """Class of the object in an open file: as noted, else by what it looks like."""
    import h5py

    from .storage.records import class_of

    kind = class_of(file)
    if kind in _WINGS or kind == "Node":
        return kind
    if kind:
        raise FileFormatError(f"{name}: this file holds a {kind[:60]!r}; expected {_EXPECTED}.")
    if "separation/metadatabundle/separation" in file:
        return "Separation"
    found: set[str] = set()

    def look(key: str, node: Any) -> None:
        if not isinstance(node, h5py.Group):
            return
        if "metadatabundle/diffuse_volume" in node:
            found.add("DiffuseVolume")
        if "metadatabundle/strain" in node and "strainmap" in node:
            found.add("StrainMap")
        label = node.attrs.get("python_class", "")
        found.add(label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label))

    file.visititems(look)
    for known in ("DiffuseVolume", "StrainMap", "DataCube", "BraggVectors"):
        if known in found:
            return known
    if found - {""} or "4DSTEM_experiment" in file or "4DSTEM_simulation" in file:
        return "Node"
    content = ", ".join(list(file)[:8]) or "nothing"
    raise FileFormatError(
        f"{name}: this HDF5 file holds {content}; expected {_EXPECTED}. PowderPattern.from_file, DiffuseVolume.from_file "
        "and DataCube.from_file read formats of other programs."
    )
