"""What FamilyNet says of a crystal besides its space group: names and cells of its families, and labels not believed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import gemmi
import numpy as np
import torch
from torch import Tensor

from ...physics.symmetry import SYSTEM_OF_GROUP

if TYPE_CHECKING:
    from .families import FamilyTask

_ANIONS = (1, 7, 8, 9, 16, 17, 34, 35, 52, 53)  # last in formulas


def title(crystal) -> str:
    """A crystal's name as a reader knows it: the library's where that is a name, else its formula."""
    name = crystal.name.split("/")[-1].removesuffix(".cif")
    _, _, mineral = name.partition("-")
    if re.match("[A-Z][a-z]{2}", mineral):  # TiO2-Rutile
        return mineral
    if name and not name.startswith("POSCAR") and "_" not in name:
        return name
    numbers, counts = np.unique(crystal.numbers, return_counts=True)
    counts = counts // np.gcd.reduce(counts)
    order = np.lexsort((numbers, np.isin(numbers, _ANIONS)))
    return "".join(gemmi.Element(int(numbers[i])).name + (str(counts[i]) if counts[i] > 1 else "") for i in order)


def counterparts(task: FamilyTask, p: np.ndarray, least: float = 0.3) -> np.ndarray:
    """The library's family that each measured one looks like, (measured families,); -1 where none of its space group does.

    ``p`` (n, families + 1) is what a network of the library alone says of the measured patterns; families of one name count
    together, and must have ``least``.
    """
    first, names = len(np.unique(task.family)), np.array(task.names)
    out = np.full(first, -1)
    for k in range(first):
        mean = p[task.family == k, :-1].mean(0)
        mean[:first], mean[task.group_of_family != task.group_of_family[k]] = 0.0, 0.0
        best = int(mean.argmax())
        if mean[names == names[best]].sum() >= least:
            out[k] = best
    return out


def doubted(task: FamilyTask, p: np.ndarray, known: float = 0.3, own: float = 0.03, other: float = 0.4) -> np.ndarray:
    """The library's family that is believed instead of a measured pattern's label, (measured families,); -1 where none is.

    A few in a hundred labels of measured patterns are wrong (quartz on a triclinic mineral). A pattern without look-alikes is
    doubted where the library's network, arguments as for `counterparts`, has a known crystal (probability ``known``), of
    the label's crystal system with a share of at most ``own``, and of one space group with a share of ``other``.
    """
    first, system = len(np.unique(task.family)), SYSTEM_OF_GROUP[task.group_of_family - 1]
    out = np.full(first, -1)
    for k in range(first):
        rows = task.family == k
        mean = p[rows, :-1].mean(0)
        mean[:first] = 0.0
        total, same = mean.sum(), mean[system == system[k]].sum()
        group = np.bincount(task.group_of_family, weights=mean, minlength=231)
        if rows.sum() == 1 and total > known and same < own * total and group.max() > other * total:
            out[k] = np.where(task.group_of_family == group.argmax(), mean, 0.0).argmax()
    return out


def cells_of(task: FamilyTask, twin: np.ndarray) -> np.ndarray:
    """Cells of the families, (families, 6), those of measured ones from their ``twin`` as `counterparts` gives it; else NaN."""
    cells, first = task.cells(), len(twin)
    cells[:first] = np.where(twin[:, None] < 0, np.nan, cells[twin])
    return cells


def shipped_facts(task: FamilyTask, p: np.ndarray) -> tuple[dict[str, Tensor], int]:
    """What FamilyNet is given besides its weights: names, space groups and cells of the families; number of labels doubted.

    Measured families have the name and the cell of the library's crystal that they look like; ``p`` as for `counterparts`.
    """
    twin, instead = counterparts(task, p), doubted(task, p)
    twin, first = np.where(instead < 0, twin, instead), len(twin)
    groups, names, cells = task.group_of_family.copy(), np.array(task.names, object), cells_of(task, twin)
    groups[:first] = np.where(instead < 0, groups[:first], groups[instead])
    names[:first] = np.where(twin < 0, "", names[twin])
    text = torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8)
    facts = {"groups": torch.as_tensor(groups - 1).float(), "cells": torch.as_tensor(cells.ravel()).float(), "text": text}
    return facts, int((instead >= 0).sum())
