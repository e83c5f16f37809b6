"""Files of the results of the diffuse wing: EMD 1.0, read back as they were.

Volumes and separations have forms of their own (`writers.to_emd`, `separation_files`); a volume inside a result has the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import FileFormatError
from ..storage.hdf5 import load
from ..storage.records import Form, Record, Records
from .checks import check_lattice
from .volume import DiffuseVolume
from .writers import CONVENTIONS, to_emd, write_volume

__all__ = ["RECORDS", "volume_of_group"]


def volume_of_group(group) -> DiffuseVolume:
    """The volume in an HDF5 group that `writers.to_emd` made, exactly as it was."""
    import emdfile

    facts = emdfile.Metadata.from_h5(group["metadatabundle/diffuse_volume"])._params
    data = load(group["data"])
    axes = [np.asarray(facts[f"axis_{i}"]) for i in range(np.ndim(data))]
    lattice = None if facts["lattice"] is None else check_lattice(facts["lattice"])
    sigma = load(group["sigma/data"]) if "sigma" in group else None
    history, title = facts["history"], facts["title"]
    if not isinstance(history, tuple) or not isinstance(title, str):
        raise FileFormatError(f"the volume {group.name} in it is damaged; expected its history and title.")
    return DiffuseVolume._from_parts(
        data, axes, facts["basis"], facts["origin"], lattice,
        sigma=sigma, radiation=facts["radiation"], name=title, history=history,
    )  # fmt: skip


# -- records -------------------------------------------------------------------------------------------------------


def _orbits() -> Record:
    from .sro.vectors import VectorOrbits

    return Record(VectorOrbits, _LENGTHS)


def _fit() -> Record:
    from .sro.result import SROFit

    units = {**_LENGTHS, "calculated": "intensity", "form_factor": "intensity", "gamma": "cell edges"}
    meaning = "alpha is positive where like neighbours are preferred; sigma and covariance are those of alpha."
    return Record(SROFit, units, f"{_VECTORS} {meaning} {CONVENTIONS}")


def _interactions() -> Record:
    from .sro.models import InteractionFit

    meaning = "beta_v = 2c(1-c) V/kT is positive where unlike neighbours are preferred."
    return Record(InteractionFit, _LENGTHS, f"{_VECTORS} {meaning} {CONVENTIONS}")


def _comparison() -> Record:
    from .compare_result import FormFactorComparison

    return Record(
        FormFactorComparison,
        {"b_iso": "Å^2", "rotation": "radians"},
        f"Arrays are in the order of names. {CONVENTIONS}",
    )


def _delta_pdf() -> Record:
    from .delta_pdf import DeltaPDF

    meaning = "Axes in units of the lattice vectors; positive where there are more pairs than on average."
    return Record(DeltaPDF, {"lattice": "Å and degrees"}, meaning)


def _write_separation(path, value) -> Path:
    from .separation_files import write_separation

    return write_separation(value, path)


def _read_separation(path):
    from .separation_files import read_separation

    return read_separation(path)


_VECTORS = "Lattice vectors in fractions of the cell edges a, b, c; distances in Å."
_LENGTHS = {"vectors": "cell edges", "distance": "Å"}
RECORDS = Records(
    {
        "SROFit": _fit, "InteractionFit": _interactions, "FormFactorComparison": _comparison, "DeltaPDF": _delta_pdf,
        "VectorOrbits": _orbits, "DiffuseVolume": lambda: Record(DiffuseVolume, node=to_emd, load=volume_of_group),
    },
    marks={"diffuse_volume": "DiffuseVolume"},
    forms={
        "DiffuseVolume": Form(lambda path, value: write_volume(value, path, format="emd"), DiffuseVolume.from_file),
        "Separation": Form(_write_separation, _read_separation),
    },
    expected="a file of an SROFit, InteractionFit, FormFactorComparison or DeltaPDF from crystaldl",
)  # fmt: skip
