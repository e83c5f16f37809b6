"""Crystals of the American Mineralogist Crystal Structure Database, from the file that the package larixite carries.

Downs & Hall-Wallace, Am. Mineral. 88, 247 (2003). Nothing of it is part of crystaldl: `pip install --no-deps larixite`
brings the file (``amcsd_cif1.db``, SQLite; about 9,000 structures, those with few sites), and training reads it from there.
"""

from __future__ import annotations

import json
import re
import sqlite3
from base64 import b64decode
from contextlib import closing
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import gemmi
import numpy as np

from ..errors import FileFormatError
from .crystals import Crystal
from .minerals import Sites, expanded

_SCALE = 4e6  # coordinates are stored as integers of this fraction
_QUERY = """select cif.id, minerals.name, compound, pub_title, a, b, c, alpha, beta, gamma, atoms_sites, atoms_x, atoms_y, atoms_z,
atoms_occupancy, symmetry_xyz, formula from cif join minerals on minerals.id = cif.mineral_id
join spacegroups on spacegroups.id = cif.spacegroup_id order by cif.id"""
_PRESSURE = re.compile(r"\bP\s*=\s*([\d.]+)\s*(GPa|kbar|kb)", re.IGNORECASE)
_TEMPERATURE = re.compile(r"\bT\s*=\s*(-?[\d.]+)\s*(deg|C\b|K\b)", re.IGNORECASE)
_WATER = {"Wat": "O", "Ow": "O", "Oh": "O", "OH": "O", "W": "O"}


def amcsd_file() -> Path | None:
    """The database file of the installed package larixite, or None."""
    spec = find_spec("larixite")
    roots = list(spec.submodule_search_locations) if spec and spec.submodule_search_locations else []
    return next((f for root in roots for f in [Path(root) / "amcsd_cif1.db"] if f.is_file()), None)


@lru_cache(maxsize=1)
def read_amcsd(path) -> tuple[Crystal, ...]:
    """Structures near ambient conditions, expanded to their conventional cells (spglib's), whose listed space group holds.

    The last file read is remembered: a minute's work. Mixed sites become their main element with the occupancy that scatters
    alike at small angles. ``name`` is the mineral's, else its formula.

    Raises
    ------
    FileNotFoundError
    FileFormatError
        Not such a database.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {str(path)!r}, which is not a file; expected the database amcsd_cif1.db of larixite.")
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            rows = connection.execute(_QUERY).fetchall()
    except sqlite3.Error as error:
        raise FileFormatError(f"{path.name} cannot be read ({error}); expected the database amcsd_cif1.db of larixite.") from None
    return tuple(c for c in map(_crystal, rows) if c is not None)


def _ambient(title: str) -> bool:
    """Whether a structure's title names no pressure above 1 GPa and no temperature far from a room's."""
    for value, unit in _PRESSURE.findall(title):
        if float(value.rstrip(".") or 0) > (1 if unit.lower() == "gpa" else 10):
            return False
    for value, unit in _TEMPERATURE.findall(title):
        kelvin = float(value.rstrip(".") or 0) + (0 if unit == "K" else 273)
        if not 250 < kelvin < 350:
            return False
    return True


def _numbers(text) -> np.ndarray:
    """Stored fractions; empty where there are none."""
    if text in (None, 0, "0", "None"):
        return np.zeros(0)
    return np.frombuffer(b64decode(text), dtype="<i4") / _SCALE


def _element(label: str, formula: set[str]) -> int:
    """Atomic number of a site label such as ``CaM2``, ``OA1``, ``Wat``; 0 where it names none."""
    letters = re.sub(r"[^A-Za-z].*", "", label)
    letters = _WATER.get(letters, letters)
    for symbol in (letters[:2], letters[:1]):
        if symbol in formula or (symbol in ("O", "H", "D")):
            return gemmi.Element("H" if symbol == "D" else symbol).atomic_number
    return 0


def _crystal(row) -> Crystal | None:
    """One record, or None where it is incomplete, not ambient, too large, or its symmetry is not as listed."""
    number, name, compound, title, *cell = row[:10]
    listed, x, y, z, occupancy, symmetry, formula = row[10:]
    if not _ambient(f"{compound} {title}") or listed in (None, "0") or "hypothetical" in f"{compound} {title}".lower():
        return None
    try:
        cell = np.array([float(v) for v in cell])
        labels, xyz = json.loads(listed), np.stack([_numbers(v) for v in (x, y, z)], 1)
        ops = [gemmi.Op(s) for s in json.loads(symmetry)]
        share = _numbers(occupancy)
        elements = [_element(v, set(re.findall(r"[A-Z][a-z]?", formula))) for v in labels]
    except (ValueError, TypeError, AttributeError, RuntimeError):
        return None
    share = np.where(np.abs(share) > 1.5, 1.0, share) if len(share) else np.ones(len(xyz))
    if 0 in elements or not len(elements) == len(xyz) == len(share) or np.any(np.abs(xyz) > 1.9):
        return None
    group = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(ops))
    if group is None:
        return None
    name = str(name) if name != "<missing>" else "".join(str(formula).split())
    sites = Sites(np.array(elements), xyz, share)
    return expanded(sites, cell, ops, group.number, name=name, source=f"AMCSD {number}")
