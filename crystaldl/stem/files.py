"""Files of the objects of the stem wing: EMD 1.0 as py4DSTEM writes and reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import FileFormatError
from ..storage.records import Form, Record, Records
from .bragg import read_bragg, read_emd, save_bragg, save_emd
from .probe import Probe

__all__ = ["RECORDS"]


def _probe(image=None, centre=(), radius=0.0, edge=0.0, source="", **_) -> Probe:
    numbers = np.array([*centre, radius, edge], dtype=float)
    if not isinstance(image, np.ndarray) or image.ndim != 2 or numbers.size != 4 or not np.isfinite(numbers).all():
        raise FileFormatError("the probe in it is damaged; expected an image with centre, radius and edge.")
    return Probe(image, (float(numbers[0]), float(numbers[1])), float(radius), float(edge), str(source))


def _write_strain(path, value) -> Path:
    from .strain.files import save_strain

    return save_strain(path, value)


def _read_strain(path):
    from .strain.files import read_strain

    return read_strain(path)


def _read_cube(path):
    from .datacube import DataCube

    return DataCube.from_file(path)


def _read_node(path):
    node = read_emd(path)
    if type(node).__name__ == "DataCube":  # in a file of an older py4DSTEM
        from .datacube import DataCube

        return DataCube.upgrade(node)
    return node


_CENTRE = "Pixels are (row, column); the plateau of the image is near 1."
RECORDS = Records(
    {"Probe": lambda: Record(Probe, {"centre": "px", "radius": "px", "edge": "px"}, _CENTRE, unpack=_probe)},
    forms={
        "BraggVectors": Form(save_bragg, read_bragg),
        "StrainMap": Form(_write_strain, _read_strain),
        "DataCube": Form(lambda path, value: save_emd(path, value, "DataCube"), _read_cube),
        "*": Form(lambda path, value: save_emd(path, value, "Node"), _read_node),
    },
    expected="a file of a DataCube, BraggVectors, StrainMap or Probe",
)
