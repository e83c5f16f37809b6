"""Strain maps in EMD files.

py4DSTEM can write a ``StrainMap`` but not read one. A file from here holds the map as a plain ``RealSlice`` with labelled
slices, the Bragg vectors it was fitted to, and the details, all of which plain py4DSTEM opens; `read_strain` makes the
whole ``StrainMap`` of them again.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ...errors import DataError, FileFormatError
from ...storage.hdf5 import first_line
from ..bragg import read_emd, save_emd, table_of, to_bragg_vectors, walk
from .details import StrainDetails, StrainOptions
from .fit import SLICES, filled_map

# arrays of the details, each a node of its own
_ARRAYS = ("sigma", "covariance", "g1", "g2", "origin", "basis", "reference", "n_disks", "residual", "hk", "intensity")
_LATER = ("fitted",)  # which the first files did not have


def save_strain(path, strain) -> Path:
    """Write a strain map, its Bragg vectors and its details; an interrupted write leaves an old file whole.

    Parameters
    ----------
    path : str or Path, ending in .h5, .hdf5 or .emd
    strain : py4DSTEM StrainMap from `fit_strain`
    """
    from emdfile import Array, Metadata
    from py4DSTEM.data import RealSlice

    details = getattr(strain, "details", None)
    if not isinstance(details, StrainDetails):
        raise DataError(f"strain is a {type(strain).__name__} without details; expected the result of fit_strain.")
    bragg = to_bragg_vectors(table_of(strain.braggvectors), strain.calibration, name="braggvectors")
    root = bragg.root
    root.tree(RealSlice(data=np.array(strain.data), name="strainmap", slicelabels=list(SLICES)), force=True)
    for name in (*_ARRAYS, *_LATER):
        root.tree(Array(data=np.array(getattr(details, name)), name=f"strain_{name}"), force=True)
    about = {
        "excess": details.excess, "options": asdict(details.options), "provenance": details.provenance,
        "calstate": dict(strain.calstate),
    }  # fmt: skip
    root.metadata = Metadata(name="strain", data={"details": json.dumps(about, default=str)})
    return save_emd(path, root, "StrainMap")


def read_strain(path):
    """Read what `save_strain` wrote: a ``py4DSTEM.StrainMap`` with its details.

    Raises
    ------
    FileNotFoundError, FileFormatError
        No such file, or one without a strain map of `save_strain`.
    """
    node = read_emd(path)
    root = getattr(node, "root", node)
    found = {child.name: child for child in walk(root)}
    needed = ("braggvectors", "strainmap", *(f"strain_{name}" for name in _ARRAYS))
    missing = [name for name in needed if name not in found]
    if missing or "strain" not in root.metadata:
        raise FileFormatError(f"{Path(path).name} holds no strain map; expected a file from save_strain.")
    try:
        about = json.loads(root.metadata["strain"]["details"])
        arrays = {name: np.array(found[f"strain_{name}"].data) for name in _ARRAYS}
        for name in _LATER:
            node = found.get(f"strain_{name}")
            arrays[name] = np.full_like(arrays["intensity"], np.nan) if node is None else np.array(node.data)
        details = StrainDetails(
            **arrays, excess=float(about["excess"]), options=StrainOptions(**about["options"]), provenance=about["provenance"]
        )
        bragg = found["braggvectors"]
        bragg.setcal(**about["calstate"])
        return filled_map(bragg, np.array(found["strainmap"].data), details)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        found = f"{Path(path).name} holds a damaged strain map ({first_line(error)})"
        raise FileFormatError(f"{found}; expected a whole one.") from error
