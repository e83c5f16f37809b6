"""Files of the powder wing's objects: EMD 1.0, read back as they were."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import FileFormatError
from ..physics.wavelengths import Radiation
from ..storage.records import Record, Records
from .pattern import PowderPattern

__all__ = ["RECORDS"]

_AXES = "2θ in degrees, strictly increasing; wavelengths in Å; NaN is not measured"


def _pattern() -> Record:
    return Record(
        PowderPattern,
        units={"two_theta": "degrees", "intensity": "intensity", "sigma": "intensity", "background": "intensity"},
        conventions=f"{_AXES}.",
        pack=_fields_of_pattern,
        unpack=_pattern_of_fields,
    )


def _peaks() -> Record:
    from .peaks import PeakList

    units = {"position": "degrees", "position_sigma": "degrees", "d": "Å", "fwhm": "degrees"}
    return Record(PeakList, units, f"Lines in order of 2θ; position is that of Kα1; {_AXES}.")


def _lattice() -> Record:
    from .indexing.evidence import Lattice

    return Record(Lattice, {"cell": "Å and degrees", "zero": "degrees"})


def _known_crystal() -> Record:
    from .families import KnownCrystal

    return Record(KnownCrystal, {})


def _classification() -> Record:
    from .result import Classification

    numbers = "Entry n - 1 of space_group_probabilities belongs to space group n of International Tables"
    return Record(Classification, {"primitive_volume": "Å^3"}, f"{numbers}; of the pattern: {_AXES}.")


RECORDS = Records(
    {
        "PowderPattern": _pattern, "PeakList": _peaks, "Lattice": _lattice, "Classification": _classification,
        "KnownCrystal": _known_crystal,
        "Radiation": lambda: Record(Radiation, {"wavelength": "Å", "alpha2": "Å"}),
    },
    expected="a file of a PowderPattern or Classification from crystaldl",
)  # fmt: skip


def _fields_of_pattern(pattern: PowderPattern) -> dict[str, Any]:
    names = ("two_theta", "intensity", "sigma", "radiation", "name", "metadata", "background_subtracted", "background")
    return {name: getattr(pattern, name) for name in names}


def _pattern_of_fields(
    two_theta=None, intensity=None, sigma=None, radiation=None, name="", metadata=None, background_subtracted=False,
    background=None, **_,
) -> PowderPattern:  # fmt: skip
    """A pattern whose arrays are fit to be one; derived patterns may be shorter than what a user may construct."""
    if not isinstance(two_theta, np.ndarray) or two_theta.ndim != 1 or two_theta.size < 2:
        raise FileFormatError("the pattern in it has no axis; expected two_theta, at least 2 points.")
    two_theta = np.array(two_theta, dtype=np.float64)
    if not (
        np.all(np.isfinite(two_theta)) and np.all(np.diff(two_theta) > 0) and two_theta[0] > 0 and two_theta[-1] < 180
    ):
        raise FileFormatError("the axis of the pattern in it is damaged; expected 2θ rising inside (0, 180) degrees.")
    columns = {"intensity": intensity, "sigma": sigma, "background": background}
    for key, column in columns.items():
        if column is None and key != "intensity":
            continue
        if not isinstance(column, np.ndarray) or column.shape != two_theta.shape or np.isinf(column).any():
            raise FileFormatError(f"the {key} of the pattern in it is damaged; expected {two_theta.size} numbers.")
        columns[key] = np.array(column, dtype=np.float64)
    if np.isnan(columns["intensity"]).all() or not isinstance(radiation, Radiation):
        raise FileFormatError("the pattern in it has no measured point or no radiation; expected both.")
    if metadata is not None and not isinstance(metadata, dict):
        raise FileFormatError(f"the metadata of the pattern in it are a {type(metadata).__name__}; expected a dict.")
    new = object.__new__(PowderPattern)
    new._set(
        two_theta, columns["intensity"], columns["sigma"], radiation, str(name), metadata or {}, bool(background_subtracted),
        columns["background"],
    )  # fmt: skip
    return new
