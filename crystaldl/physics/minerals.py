"""Crystals from the sites of their asymmetric unit, and the table of minerals that ships with the package.

The table (``minerals.json``) holds minerals with many sites that free structure libraries leave out, for training: cells,
symmetry and approximate coordinates, each with the refinement that they follow. Many are recalled from the literature, or
interpolated, as ``source`` says, and were checked by contents, symmetry and bond lengths alone; references were not looked up
again. Do not cite coordinates from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import gemmi
import numpy as np

from .crystals import Crystal, standardised
from .lattice import cell_matrix

_TOO_MANY = 400  # atoms a cell
_SAME_SITE = 0.35  # Å: atoms this near share a mixed site


@dataclass(frozen=True)
class Sites:
    """Sites of an asymmetric unit: atomic numbers (n,), fractional positions (n, 3), occupancies (n,)."""

    numbers: np.ndarray
    positions: np.ndarray
    occupancy: np.ndarray


@lru_cache(maxsize=1)
def minerals() -> tuple[Crystal, ...]:
    """The crystals of the table, in conventional cells."""
    table = json.loads(files(__package__).joinpath("minerals.json").read_text(encoding="utf-8"))
    found = []
    for row in table:
        group = gemmi.SpaceGroup(row["hm"])
        numbers, xyz, occupancy = zip(*((s[0], s[1:4], s[4] if len(s) > 4 else 1.0) for s in row["sites"]), strict=True)
        sites = Sites(np.array([gemmi.Element(e).atomic_number for e in numbers]), np.array(xyz, float), np.array(occupancy, float))
        cell = np.array(row["cell"], float)
        crystal = expanded(sites, cell, list(group.operations()), group.number, row["name"], row["source"])
        if crystal is None:
            raise ValueError(f"{row['name']} of minerals.json does not have the space group listed there, {row['hm']}.")
        found.append(crystal)
    return tuple(found)


def expanded(sites: Sites, cell: np.ndarray, operations, group: int, name: str = "", source: str = "") -> Crystal | None:
    """The crystal of some sites in its conventional cell (spglib's).

    Mixed sites become their main element with the occupancy that scatters alike at small angles.

    Parameters
    ----------
    cell : (6,) a, b, c in Å and angles in degrees, in the setting of ``sites`` and ``operations``
    operations : sequence of gemmi.Op, centring included
    group : space-group number, 1…230

    Returns
    -------
    Crystal; None where the atoms have another symmetry than ``group``, or there are more than 400 of them
    """
    atoms = _all_atoms(sites, operations, cell)
    if atoms is None:
        return None
    found = standardised(cell, *atoms, name=name, source=source)
    return found if found is not None and found.space_group == group else None


def _merged(numbers: np.ndarray, share: np.ndarray) -> tuple[int, float]:
    """The main element of a mixed site and the occupancy with which it scatters as the mixture does."""
    weight = numbers * share
    main = int(numbers[np.argmax(weight)])
    return main, float(weight.sum() / main)


def _all_atoms(sites: Sites, ops, cell) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """All atoms (positions, numbers, occupancies) of the cell; sites at one place are one atom."""
    numbers, xyz, share = sites.numbers, sites.positions, sites.occupancy
    matrix = cell_matrix(cell)
    done = np.zeros(len(xyz), bool)
    positions, kinds, occupancies = [], [], []
    for i in range(len(xyz)):
        if done[i]:
            continue
        delta = xyz - xyz[i]
        near = ~done & (np.linalg.norm((delta - np.round(delta)) @ matrix, axis=1) < _SAME_SITE)
        done |= near
        number, weight = _merged(numbers[near], share[near])
        orbit = np.array([op.apply_to_xyz(xyz[i].tolist()) for op in ops]) % 1.0
        delta = orbit[:, None] - orbit[None]
        same = np.linalg.norm((delta - np.round(delta)) @ matrix, axis=2) < _SAME_SITE
        first = np.flatnonzero(same.argmax(1) == np.arange(len(orbit)))
        # the mean of coinciding copies lies exactly on the special position
        shift = delta - np.round(delta)
        mean = orbit - (shift * same[..., None]).sum(1) / same.sum(1)[:, None]
        positions.append(mean[first])
        kinds.append(np.full(len(first), number))
        occupancies.append(np.full(len(first), weight))
    if not positions or sum(map(len, positions)) > _TOO_MANY:
        return None
    return np.concatenate(positions), np.concatenate(kinds), np.concatenate(occupancies)
