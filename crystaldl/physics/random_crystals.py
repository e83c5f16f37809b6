"""Random crystals in any of the 230 space groups.

Atoms are put on Wyckoff positions found from the operations themselves: a site is the set of fixed points of one or
more symmetry elements, reached by projecting a random point onto it; its orbit gives the multiplicity. Lattice
parameters follow the crystal system; the volume follows the contents; atoms keep a minimum distance.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit

from .crystals import Crystal, covalent_radii, find_symmetry
from .lattice import cell_matrix, cell_volume
from .symmetry import CRYSTAL_SYSTEMS, SYSTEM_OF_GROUP, check_space_group, operations

# relative abundance of elements in minerals and common inorganic compounds (by count of phases they occur in)
_ABUNDANCE = {8: 30, 14: 9, 13: 7, 26: 7, 20: 8, 12: 6, 11: 6, 16: 9, 19: 3, 22: 3, 25: 4, 29: 5, 15: 4, 82: 3, 30: 3, 33: 3,
              17: 4, 9: 4, 23: 2, 56: 2, 38: 1.5, 40: 1.5, 3: 2, 5: 2, 6: 3, 7: 1.5, 24: 2, 27: 2, 28: 2, 47: 2, 50: 1.5,
              51: 2, 83: 1.5, 57: 1.5, 58: 1.5, 39: 1.5, 74: 1, 42: 1, 52: 1, 34: 1.5, 80: 1, 41: 1, 73: 1, 92: 1, 31: 1,
              32: 1, 35: 1, 37: 1, 46: 1, 48: 1, 49: 1, 53: 1, 55: 1, 60: 1, 64: 1, 70: 1, 78: 1, 79: 1, 81: 1, 4: 0.7}
_ELEMENTS = np.array(list(_ABUNDANCE))
_WEIGHTS = np.array(list(_ABUNDANCE.values()), dtype=float) / sum(_ABUNDANCE.values())


@dataclass(frozen=True)
class _Sites:
    rotations: np.ndarray          # (n, 3, 3) all operations
    translations: np.ndarray       # (n, 3)
    projectors: np.ndarray         # (m, 3, 3) onto the fixed points of operations that have any
    offsets: np.ndarray            # (m, 3)


@cache
def _sites(number: int) -> _Sites:
    ops = operations(number)
    shifts = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)], dtype=float)
    projectors, offsets = [], []
    for w, t in zip(ops.rotations, ops.translations, strict=True):
        powers = [np.eye(3)]
        while True:
            nxt = powers[-1] @ w
            if np.allclose(nxt, np.eye(3)):
                break
            powers.append(nxt)
        if len(powers) == 1:
            continue
        mean = sum(powers) / len(powers)
        # x -> mean of the cyclic images: offset_i = Σ_{j<i} Wʲ t
        partial = np.cumsum([np.zeros((3, 3))] + powers[:-1], axis=0).mean(axis=0)
        for n in shifts:
            if np.abs(mean @ (t + n)).max() < 1e-9:        # no screw or glide part: there are fixed points
                projectors.append(mean)
                offsets.append(partial @ (t + n))
    return _Sites(ops.rotations, ops.translations, np.array(projectors).reshape(-1, 3, 3), np.array(offsets).reshape(-1, 3))


@njit(cache=True, nogil=True)
def _project(x, projectors, offsets, chosen):
    """Alternate projections onto the chosen fixed sets; returns the point and whether it is fixed by all of them."""
    for _ in range(60):
        moved = 0.0
        for c in chosen:
            y = projectors[c] @ x + offsets[c]
            moved = max(moved, np.abs(y - x).max())
            x = y
        if moved < 1e-10:
            return x, True
    return x, False


@njit(cache=True, nogil=True)
def _orbit(x, rotations, translations):
    """Distinct images of x in the cell, (multiplicity, 3)."""
    n = rotations.shape[0]
    out = np.empty((n, 3))
    count = 0
    for g in range(n):
        y = rotations[g] @ x + translations[g]
        y = y - np.floor(y + 1e-9)
        new = True
        for i in range(count):
            d = 0.0
            for a in range(3):
                e = out[i, a] - y[a]
                e -= np.round(e)
                d = max(d, abs(e))
            if d < 1e-6:
                new = False
                break
        if new:
            out[count] = y
            count += 1
    return out[:count]


@njit(cache=True, nogil=True)
def _closest(new, r_new, placed, r_placed, matrix):
    """Smallest distance / (sum of radii) of the orbit's first atom (by symmetry it stands for all) to any atom."""
    best = np.inf
    for j in range(new.shape[0] + placed.shape[0]):
        own = j < new.shape[0]
        d = (new[j] if own else placed[j - new.shape[0]]) - new[0]
        r = r_new + (r_new if own else r_placed[j - new.shape[0]])
        d = d - np.round(d)
        for a in range(-1, 2):
            for b in range(-1, 2):
                for c in range(-1, 2):
                    if j == 0 and a == 0 and b == 0 and c == 0:
                        continue
                    u, v, w = d[0] + a, d[1] + b, d[2] + c
                    x = u * matrix[0, 0] + v * matrix[1, 0] + w * matrix[2, 0]
                    y = u * matrix[0, 1] + v * matrix[1, 1] + w * matrix[2, 1]
                    z = u * matrix[0, 2] + v * matrix[1, 2] + w * matrix[2, 2]
                    best = min(best, np.sqrt(x * x + y * y + z * z) / r)
    return best


def random_cell(system: str, volume: float, rng: np.random.Generator) -> np.ndarray:
    """A conventional cell of a crystal system (hexagonal axes for trigonal) with the given volume in Å³."""
    ratio = np.exp(rng.normal(0.0, 0.35, 3))
    angles = np.array([90.0, 90.0, 90.0])
    if system == "triclinic":
        sign = rng.choice([-1, 1])                       # Niggli cells: all acute or all obtuse
        angles = 90.0 + sign * np.abs(rng.normal(0.0, 12.0, 3)).clip(0.3, 29.0)
    elif system == "monoclinic":
        angles[1] = 90.0 + abs(rng.normal(8.0, 11.0)) + 0.2
    elif system in ("tetragonal", "trigonal", "hexagonal"):
        ratio = np.array([1.0, 1.0, np.exp(rng.normal(0.2, 0.55))])
        if system != "tetragonal":
            angles[2] = 120.0
    elif system == "cubic":
        ratio = np.ones(3)
    cell = np.concatenate([ratio, angles])
    cell[:3] *= (volume / cell_volume(cell)) ** (1 / 3)
    return cell


def _composition(rng: np.random.Generator) -> np.ndarray:
    k = rng.choice([1, 2, 3, 4, 5], p=[0.06, 0.28, 0.36, 0.22, 0.08])
    return rng.choice(_ELEMENTS, size=k, replace=False, p=_WEIGHTS)


def _choose_orbits(number, rng, max_atoms):
    """Elements and sites: a list of (atomic number, indices of symmetry elements the site lies on)."""
    sites = _sites(number)
    elements = _composition(rng)
    target = int(np.exp(rng.uniform(np.log(max(4, len(sites.rotations) // 8)), np.log(max_atoms)))) + 1
    chosen, atoms = [], 0
    for attempt in range(60):
        z = elements[attempt] if attempt < len(elements) else rng.choice(elements)
        k = rng.choice([0, 1, 2, 3], p=[0.4, 0.25, 0.2, 0.15])
        pick = rng.integers(0, len(sites.projectors), k) if len(sites.projectors) else np.zeros(0, np.int64)
        point, fixed = _project(rng.random(3), sites.projectors, sites.offsets, pick.astype(np.int64))
        if not fixed:
            continue
        multiplicity = len(_orbit(point, sites.rotations, sites.translations))
        if atoms + multiplicity > max_atoms and chosen:
            continue
        chosen.append((int(z), pick.astype(np.int64), multiplicity))
        atoms += multiplicity
        if atoms >= target and len(chosen) >= len(elements) - 1:
            break
    return chosen


def _place(number, chosen, cell, rng, factor):
    sites, radii = _sites(number), covalent_radii()
    matrix = cell_matrix(cell)
    placed, r_placed, numbers = np.zeros((0, 3)), np.zeros(0), []
    tightest = np.inf
    for z, pick, _ in chosen:
        for _try in range(40):
            point, fixed = _project(rng.random(3), sites.projectors, sites.offsets, pick)
            if not fixed:
                continue
            orbit = _orbit(point, sites.rotations, sites.translations)
            closest = _closest(orbit, radii[z], placed, r_placed, matrix)
            if closest >= factor:
                placed = np.concatenate([placed, orbit])
                r_placed = np.concatenate([r_placed, np.full(len(orbit), radii[z])])
                numbers += [z] * len(orbit)
                tightest = min(tightest, closest)
                break
    return np.array(numbers, dtype=np.int64), placed, tightest


def _content_volume(numbers) -> float:
    """Typical volume in Å³ of the atoms: about 9 for oxygen, 12 for silicon, 24 for calcium."""
    return float((3.0 * covalent_radii()[numbers] ** 3 + 8.0).sum())


def random_crystal(space_group: int, rng: np.random.Generator, *, max_atoms: int = 120, verify: bool = True,
                   attempts: int = 40) -> Crystal:
    """A random crystal whose symmetry is the asked-for space group.

    Parameters
    ----------
    space_group : int, 1…230
    rng : numpy Generator
    max_atoms : int
        Largest number of atoms a cell (a single orbit may exceed it).
    verify : bool
        Check the realised symmetry with spglib and draw again where atoms on special positions made it higher.
    attempts : int
        Draws before giving up.

    Raises
    ------
    RuntimeError
        When no draw has the symmetry asked for.
    """
    number = check_space_group(space_group)
    system = CRYSTAL_SYSTEMS[SYSTEM_OF_GROUP[number - 1]]
    for attempt in range(attempts):
        chosen = _choose_orbits(number, rng, max_atoms * (1 + attempt // 8))
        if not chosen:
            continue
        contents = np.repeat([z for z, _, _ in chosen], [m for _, _, m in chosen])
        openness = rng.uniform(0.8, 1.5)
        cell = random_cell(system, _content_volume(contents) * max(openness, 1.3) * (1 + 0.1 * attempt), rng)
        factor = rng.uniform(0.68, 0.85)
        numbers, positions, tightest = _place(number, chosen, cell, rng, factor)
        if len(numbers) == 0:
            continue
        # atoms that found no room leave voids: shrink to the volume of what is there, as far as distances allow
        wanted = (_content_volume(numbers) * openness / cell_volume(cell)) ** (1 / 3)
        cell[:3] *= min(1.0, max(wanted, factor / tightest))
        if cell[:3].min() < 2.2 or cell[:3].max() > 45.0:
            continue
        if verify:
            data = find_symmetry(cell, positions, numbers, 0.02)
            if data is None or int(data.number) != number:
                continue
        return Crystal(numbers, positions, cell, number, f"random {number}", "random")
    raise RuntimeError(f"no crystal of space group {number} found in {attempts} draws.")
