"""Crystals to simulate: prototypes dressed with elements, random cells of low and high symmetry, zone axes.

A family (a prototype with its elements, or a random crystal) has one number, so that whole families can be kept out of
training.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import gcd

import numpy as np

from ...physics.crystals import Crystal, covalent_radii
from ...physics.lattice import cell_matrix
from ...physics.random_crystals import random_crystal

_FCC = ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))


def _face_centred(*sites) -> list[tuple[float, float, float]]:
    return [tuple((np.array(s) + t) % 1.0) for s in sites for t in _FCC]


@dataclass(frozen=True)
class Prototype:
    """Sites by species, shape of the cell, and a/(sum of covalent radii of the first bond)."""

    name: str
    species: tuple[int, ...]
    positions: tuple[tuple[float, float, float], ...]
    shape: tuple[float, float, float, float, float, float]
    factor: float
    space_group: int
    pools: tuple[str, ...]


_Q = 0.25
_U, _T, _W = 0.305, 1 / 3, 0.375
PROTOTYPES = (
    Prototype("fcc", (0,) * 4, tuple(_FCC), (1, 1, 1, 90, 90, 90), 1.48, 225, ("metal",)),
    Prototype("bcc", (0, 0), ((0, 0, 0), (0.5, 0.5, 0.5)), (1, 1, 1, 90, 90, 90), 1.19, 229, ("metal",)),
    Prototype("hcp", (0, 0), ((_T, 2 * _T, _Q), (2 * _T, _T, 3 * _Q)), (1, 1, 1.6, 90, 90, 120), 1.07, 194, ("metal",)),
    Prototype(
        "diamond", (0,) * 8, tuple(_face_centred((0, 0, 0), (_Q, _Q, _Q))), (1, 1, 1, 90, 90, 90), 2.43, 227, ("semi",)
    ),
    Prototype(
        "zincblende", (0,) * 4 + (1,) * 4, tuple(_face_centred((0, 0, 0), (_Q, _Q, _Q))),
        (1, 1, 1, 90, 90, 90), 2.28, 216, ("three", "five"),
    ),
    Prototype(
        "wurtzite", (0, 0, 1, 1),
        ((_T, 2 * _T, 0), (2 * _T, _T, 0.5), (_T, 2 * _T, _W), (2 * _T, _T, 0.5 + _W)),
        (1, 1, 1.63, 90, 90, 120), 1.62, 186, ("three", "five"),
    ),
    Prototype(
        "rocksalt", (0,) * 4 + (1,) * 4, tuple(_face_centred((0, 0, 0), (0.5, 0.5, 0.5))),
        (1, 1, 1, 90, 90, 90), 2.05, 225, ("cation", "anion"),
    ),
    Prototype("CsCl", (0, 1), ((0, 0, 0), (0.5, 0.5, 0.5)), (1, 1, 1, 90, 90, 90), 1.13, 221, ("metal", "metal")),
    Prototype(
        "fluorite", (0,) * 4 + (1,) * 8, tuple(_face_centred((0, 0, 0), (_Q, _Q, _Q), (_Q, _Q, 3 * _Q))),
        (1, 1, 1, 90, 90, 90), 2.28, 225, ("cation", "anion"),
    ),
    Prototype(
        "perovskite", (0, 1, 2, 2, 2),
        ((0.5, 0.5, 0.5), (0, 0, 0), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5)),
        (1, 1, 1, 90, 90, 90), 1.75, 221, ("large", "small", "anion"),
    ),
    Prototype(
        "rutile", (0, 0, 1, 1, 1, 1),
        ((0, 0, 0), (0.5, 0.5, 0.5), (_U, _U, 0), (1 - _U, 1 - _U, 0), (0.5 + _U, 0.5 - _U, 0.5), (0.5 - _U, 0.5 + _U, 0.5)),
        (1, 1, 0.645, 90, 90, 90), 2.05, 136, ("small", "anion"),
    ),
    Prototype(
        "Cu3Au", (0, 1, 1, 1), tuple(_FCC), (1, 1, 1, 90, 90, 90), 1.45, 221, ("metal", "metal"),
    ),
    Prototype("L10", (0, 1), ((0, 0, 0), (0.5, 0.5, 0.5)), (1, 1, 1.3, 90, 90, 90), 1.02, 123, ("metal", "metal")),
    Prototype(
        "molybdenite", (0, 0, 1, 1, 1, 1),
        ((_T, 2 * _T, _Q), (2 * _T, _T, 3 * _Q),
         (_T, 2 * _T, 0.621), (2 * _T, _T, 0.121), (2 * _T, _T, 0.379), (_T, 2 * _T, 0.879)),
        (1, 1, 3.9, 90, 90, 120), 1.23, 194, ("small", "chalcogen"),
    ),
)  # fmt: skip
#: space groups of random crystals: those that compounds commonly have, low symmetry first
RANDOM_GROUPS = (1, 2, 4, 5, 12, 14, 15, 19, 33, 36, 62, 63, 74, 82, 88, 129, 136, 139, 141, 148, 166, 167, 186, 194)
POOLS = {
    "metal": (12, 13, 22, 24, 26, 27, 28, 29, 30, 40, 41, 42, 44, 45, 46, 47, 72, 73, 74, 75, 77, 78, 79, 82),
    "semi": (6, 14, 32, 50),
    "three": (5, 13, 31, 49, 30, 48, 29),
    "five": (7, 15, 33, 51, 16, 34, 52),
    "cation": (3, 11, 12, 19, 20, 22, 25, 26, 28, 37, 38, 40, 47, 56, 58, 82),
    "large": (20, 38, 39, 56, 57, 60, 64, 82, 19),
    "small": (13, 22, 23, 24, 25, 26, 27, 28, 40, 41, 42, 72, 73, 74),
    "anion": (8, 9, 16, 17, 34, 7),
    "chalcogen": (16, 34, 52),
}


@dataclass(frozen=True)
class Specimen:
    """A crystal, its direction of view and the conditions that belong to it.

    Attributes
    ----------
    crystal : Crystal
    b_iso : float
        Displacement parameter B of all atoms, Å².
    zone : (3,) int
        Direction [uvw] along the beam.
    family : int
        Number of the family, for splits.
    """

    crystal: Crystal
    b_iso: float
    zone: tuple[int, int, int]
    family: int


def prototype_crystal(prototype: Prototype, rng: np.random.Generator) -> Crystal:
    """A prototype dressed with elements of its pools; its cell follows the covalent radii, within a few per cent."""
    elements: list[int] = []
    for pool in prototype.pools:
        elements.append(int(rng.choice([z for z in POOLS[pool] if z not in elements])))
    radii = covalent_radii()
    bond = radii[elements[0]] + radii[elements[-1]]
    a = prototype.factor * bond * rng.uniform(0.96, 1.06)
    shape = np.array(prototype.shape, dtype=float)
    if prototype.shape[2] != 1:
        shape[2] *= rng.uniform(0.95, 1.05)
    cell = np.concatenate([a * shape[:3], shape[3:]])
    numbers = [elements[s] for s in prototype.species]
    name = f"{prototype.name} {'-'.join(map(str, elements))}"
    return Crystal(numbers, prototype.positions, cell, prototype.space_group, name, "prototype")


def zone_axes(limit: int = 3) -> list[tuple[int, int, int]]:
    """Coprime directions [uvw] up to ``limit``, one of each ± pair."""
    out = []
    for u, v, w in product(range(-limit, limit + 1), repeat=3):
        first = next((i for i in (u, v, w) if i), 0)
        if first > 0 and gcd(gcd(abs(u), abs(v)), abs(w)) == 1:
            out.append((u, v, w))
    return out


def random_specimen(seed: int, family: int) -> Specimen:
    """The specimen of a family: the crystal depends on ``family`` alone, zone and displacements also on ``seed``."""
    own = np.random.default_rng((7, family))
    if own.random() < 0.6:
        crystal = prototype_crystal(PROTOTYPES[own.integers(len(PROTOTYPES))], own)
    else:
        crystal = _random_cell(own)
    rng = np.random.default_rng((11, family, seed))
    axes = zone_axes()
    length = np.linalg.norm(np.array(axes) @ cell_matrix(crystal.cell), axis=1)
    # low-index axes are what people tilt to: short repeats first, long ones still there
    weight = np.exp(-0.8 * length / length.min())
    zone = axes[rng.choice(len(axes), p=weight / weight.sum())]
    return Specimen(crystal, float(rng.uniform(0.2, 1.0)), zone, family)


def _random_cell(rng: np.random.Generator) -> Crystal:
    while True:
        group = int(rng.choice(RANDOM_GROUPS))
        try:
            crystal = random_crystal(group, rng, max_atoms=24, verify=False, attempts=8)
        except RuntimeError:
            continue
        if crystal.cell[:3].max() < 16:
            return crystal


def held_out(family: int) -> bool:
    """Whether a family is kept out of training: every eighth."""
    return family % 8 == 5


def orthogonal_cell(crystal: Crystal, zone, limit: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The smallest cell with orthogonal edges whose third edge lies along ``zone``.

    Returns
    -------
    edges : (3,) Å
    numbers : (n,) int
    positions : (n, 3) fractional, in that cell

    Raises
    ------
    ValueError
        No such cell with indices up to ``limit`` exists.
    """
    matrix = cell_matrix(crystal.cell)
    c = np.array(zone) @ matrix
    grid = np.array([v for v in product(range(-limit, limit + 1), repeat=3) if any(v)])
    vectors = grid @ matrix
    length = np.linalg.norm(vectors, axis=1)
    across = np.abs(vectors @ c) < 1e-6 * length * np.linalg.norm(c)
    grid, vectors, length = grid[across], vectors[across], length[across]
    best, volume = None, np.inf
    for i in np.argsort(length)[:40]:
        square = np.flatnonzero(np.abs(vectors @ vectors[i]) < 1e-6 * length * length[i])
        if square.size:
            j = square[np.argmin(length[square])]
            if length[i] * length[j] < volume - 1e-6:
                best, volume = (i, j), length[i] * length[j]
    if best is None:
        raise ValueError(f"zone is {tuple(zone)}, along which {crystal.name or 'the crystal'} has no orthogonal cell.")
    basis = np.stack([grid[best[0]], grid[best[1]], np.array(zone)])
    if np.linalg.det(basis) < 0:
        basis[1] *= -1
    return _fill_cell(crystal, basis, matrix)


def _fill_cell(crystal: Crystal, basis: np.ndarray, matrix: np.ndarray):
    """Edges, atomic numbers and positions of the supercell spanned by integer rows of ``basis``."""
    edges = np.linalg.norm(basis @ matrix, axis=1)
    inverse = np.linalg.inv(basis)
    corners = np.array(list(product((0, 1), repeat=3))) @ basis
    low, high = corners.min(0) - 1, corners.max(0) + 1
    shifts = np.array(list(product(*(range(a, b + 1) for a, b in zip(low, high, strict=True)))))
    all_positions = (crystal.positions[:, None] + shifts[None]).reshape(-1, 3) @ inverse
    numbers = np.repeat(crystal.numbers, len(shifts))
    inside = ((all_positions > -1e-7) & (all_positions < 1 - 1e-7)).all(1)
    return edges, numbers[inside], all_positions[inside] % 1.0
