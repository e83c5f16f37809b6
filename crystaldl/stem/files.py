"""Files of the objects of the stem wing: EMD 1.0 as py4DSTEM writes and reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileFormatError
from ..storage.records import Record, Records, check_ending
from .bragg import read_bragg, read_emd, save_bragg, save_emd
from .probe import Probe

__all__ = ["read_object", "save_object"]

EXPECTED = "a file of a DataCube, BraggVectors, StrainMap or Probe"


def _probe(image=None, centre=(), radius=0.0, edge=0.0, source="", **_) -> Probe:
    numbers = np.array([*centre, radius, edge], dtype=float)
    if not isinstance(image, np.ndarray) or image.ndim != 2 or numbers.size != 4 or not np.isfinite(numbers).all():
        raise FileFormatError("the probe in it is damaged; expected an image with centre, radius and edge.")
    return Probe(image, (float(numbers[0]), float(numbers[1])), float(radius), float(edge), str(source))


_CENTRE = "Pixels are (row, column); the plateau of the image is near 1."
#: The classes of this wing that are no nodes of py4DSTEM.
RECORDS = Records(
    {"Probe": lambda: Record(Probe, {"centre": "px", "radius": "px", "edge": "px"}, _CENTRE, unpack=_probe)}
)


def save_object(path, value) -> Path:
    """Write a `DataCube`, Bragg vectors, a strain map, a probe or another node of emdfile.

    Raises
    ------
    TypeError, DataError, FileNotFoundError, OSError
    """
    if value in RECORDS:
        return RECORDS.write(path, value)
    check_ending(path)
    kind = type(value).__name__
    if kind == "BraggVectors":
        return save_bragg(path, value)
    if kind == "StrainMap":
        from .strain_files import save_strain

        return save_strain(path, value)
    return save_emd(path, value, kind if kind == "DataCube" else "Node")


def read_object(path, kind: str) -> Any:
    """Read what `save_object` or py4DSTEM wrote, given the class of the object.

    Raises
    ------
    TypeError, FileNotFoundError, FileFormatError
    """
    if kind == "DataCube":
        from .datacube import DataCube

        return DataCube.from_file(path)
    if kind == "BraggVectors":
        return read_bragg(path)
    if kind == "StrainMap":
        from .strain_files import read_strain

        return read_strain(path)
    if kind == "Probe":
        return RECORDS.read(path, EXPECTED)
    node = read_emd(path)
    if type(node).__name__ == "DataCube":  # in a file of an older py4DSTEM
        from .datacube import DataCube

        return DataCube.upgrade(node)
    return node
