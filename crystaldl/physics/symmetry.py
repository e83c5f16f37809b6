"""Space groups: crystal system, Bravais lattice, powder extinction group, operations.

Everything here is indexed by the space-group number 1…230 of International Tables A in the reference setting that
gemmi gives (unique axis b, hexagonal axes for rhombohedral groups). Arrays over groups have 230 entries, entry
``number - 1`` belonging to group ``number``.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations, product

import gemmi
import numpy as np

CRYSTAL_SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
_FIRST_NUMBER = (1, 3, 16, 75, 143, 168, 195)
#: crystal system (0…6, index into CRYSTAL_SYSTEMS) of each space group, (230,)
SYSTEM_OF_GROUP = np.searchsorted(_FIRST_NUMBER, np.arange(1, 231), side="right") - 1

BRAVAIS_LATTICES = ("aP", "mP", "mC", "oP", "oC", "oI", "oF", "tP", "tI", "hP", "hR", "cP", "cI", "cF")
_FAMILY = "amothhc"
#: letter of the crystal family of each crystal system
FAMILIES = dict(zip(CRYSTAL_SYSTEMS, _FAMILY, strict=True))


def check_space_group(number: int, argument: str = "space_group") -> int:
    """The number as an int, or a ValueError naming ``argument``."""
    if isinstance(number, (bool, np.bool_)) or not 1 <= int(number) <= 230 or int(number) != number:
        raise ValueError(f"{argument} is {number!r}, expected a space-group number from 1 to 230.")
    return int(number)


@cache
def space_group(number: int) -> gemmi.SpaceGroup:
    """gemmi's space group in the reference setting (origin choice 2 where there are two)."""
    check_space_group(number, "number")
    # gemmi lists origin choice 1 first; choice 2 puts the inversion centre at the origin, as databases do
    for group in gemmi.spacegroup_table():
        if group.number == number and group.is_reference_setting():
            return group
    return gemmi.find_spacegroup_by_number(number)


@lru_cache(maxsize=1)
def symbols() -> tuple[str, ...]:
    """Short Hermann-Mauguin symbols of the 230 groups, e.g. ``"P21/c"``."""
    # gemmi writes H for rhombohedral groups on hexagonal axes; International Tables write R
    return tuple(space_group(n).short_name().replace("H", "R", 1) for n in range(1, 231))


@lru_cache(maxsize=1)
def bravais_of_group() -> np.ndarray:
    """Index into BRAVAIS_LATTICES of each space group, (230,)."""
    out = np.empty(230, dtype=int)
    for n in range(1, 231):
        centring = space_group(n).hm[0]
        family = _FAMILY[SYSTEM_OF_GROUP[n - 1]]
        letter = "C" if centring in "AB" else centring      # A-centred polar groups share the C lattice
        out[n - 1] = BRAVAIS_LATTICES.index(family + letter)
    return out


@dataclass(frozen=True)
class Operations:
    """Symmetry operations ``x' = rotations @ x + translations`` (fractional), centring included: (n, 3, 3), (n, 3)."""

    rotations: np.ndarray
    translations: np.ndarray


@cache
def operations(number: int) -> Operations:
    """All operations of a space group per conventional cell, translations in [0, 1)."""
    ops = list(space_group(number).operations())
    rotations = np.array([op.rot for op in ops], dtype=float) / gemmi.Op.DEN
    translations = np.array([op.tran for op in ops], dtype=float) / gemmi.Op.DEN
    return Operations(rotations, translations % 1.0)


# Extinction symbols in the order of International Tables A, table 3.1.4.1, keyed by the lowest space-group number.
_EXTINCTION_SYMBOLS = {
    1: "P -", 3: "P 1 - 1", 4: "P 1 21 1", 5: "C 1 - 1", 7: "P 1 c 1", 9: "C 1 c 1", 14: "P 1 21/c 1",
    16: "P - - -", 17: "P - - 21", 18: "P 21 21 -", 19: "P 21 21 21", 20: "C - - 21", 21: "C - - -", 22: "F - - -",
    23: "I - - -", 26: "P - - a", 27: "P c c -", 29: "P c a -", 30: "P n c -", 31: "P - - n", 32: "P b a -",
    33: "P n a -", 34: "P n n -", 36: "C - c -", 37: "C c c -", 39: "C - - (ab)", 41: "C - c (ab)", 43: "F d d -",
    45: "I b a -", 46: "I - (ac) -", 48: "P n n n", 50: "P b a n", 52: "P n n a", 54: "P c c a", 56: "P c c n",
    60: "P b c n", 61: "P b c a", 68: "C c c (ab)", 70: "F d d d", 73: "I b c a",
    75: "P - - -", 76: "P 41 - -", 77: "P 42 - -", 79: "I - - -", 80: "I 41 - -", 85: "P n - -", 86: "P 42/n - -",
    88: "I 41/a - -", 90: "P - 21 -", 92: "P 41 21 -", 94: "P 42 21 -", 100: "P - b -", 101: "P - c -",
    102: "P - n -", 103: "P - c c", 104: "P - n c", 105: "P - - c", 106: "P - b c", 108: "I - c -", 109: "I - - d",
    110: "I - c d", 114: "P - 21 c", 125: "P n b -", 126: "P n n c", 130: "P n c c", 133: "P n b c", 134: "P n n -",
    137: "P n - c", 138: "P n c -", 141: "I a - d", 142: "I a c d",
    143: "P - - -", 144: "P 31 - -", 146: "R - -", 158: "P - c -", 159: "P - - c", 161: "R - c",
    169: "P 61 - -", 171: "P 62 - -", 173: "P 63 - -", 184: "P - c c",
    195: "P - - -", 196: "F - - -", 197: "I - - -", 198: "P 21 - -", 201: "P n - -", 203: "F d - -", 205: "P a - -",
    206: "I a - -", 208: "P 42 - -", 210: "F 41 - -", 212: "P 41 - -", 214: "I 41 - -", 218: "P - - n",
    219: "F - - c", 220: "I - - d", 222: "P n - n", 228: "F d - c", 230: "I a - d",
}


# P 62 - - extinguishes the same lines as P 31 - -, and cubic P 42 - - the same as P 21 - -: the Tables keep these apart by
# Laue class, and so do we, to count the field's 99.
_KEPT_APART = frozenset({171, 172, 180, 181, 208})


@lru_cache(maxsize=1)
def _extinction() -> tuple[np.ndarray, tuple[str, ...], tuple[tuple[int, ...], ...]]:
    hkl = np.array(list(product(range(-6, 7), repeat=3)), dtype=np.int32)
    # an orthorhombic cell may be named in six ways: take the lowest pattern over axis permutations
    renamed = [np.ravel_multi_index(tuple((hkl[:, list(p)] + 6).T), (13, 13, 13)) for p in permutations(range(3))]
    classes: dict[tuple, list[int]] = {}
    for n in range(1, 231):
        family = _FAMILY[SYSTEM_OF_GROUP[n - 1]]
        absent = np.asarray(space_group(n).operations().systematic_absences(hkl), dtype=bool)
        if family == "o":
            absent = min((absent[index] for index in renamed), key=lambda v: v.tobytes())
        classes.setdefault((family, n in _KEPT_APART, absent.tobytes()), []).append(n)
    members = sorted(classes.values())
    index = np.empty(230, dtype=int)
    for i, numbers in enumerate(members):
        index[np.array(numbers) - 1] = i
    names = tuple(_EXTINCTION_SYMBOLS.get(numbers[0], f"as {symbols()[numbers[0] - 1]}") for numbers in members)
    return index, names, tuple(tuple(m) for m in members)


def extinction_of_group() -> np.ndarray:
    """Index of the powder extinction group of each space group, (230,).

    Two space groups share an extinction group when they belong to the same crystal family and extinguish the same
    reflections, up to the naming of orthorhombic axes: what powder intensities can tell apart at best. Derived from
    the operations; the 99 classes are those of International Tables A, table 3.1.4.1.
    """
    return _extinction()[0]


def extinction_symbols() -> tuple[str, ...]:
    """Extinction symbols (International Tables A) in the order of the indices of `extinction_of_group`."""
    return _extinction()[1]


def extinction_members() -> tuple[tuple[int, ...], ...]:
    """Space-group numbers of each extinction group."""
    return _extinction()[2]
