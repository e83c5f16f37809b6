"""Pairs of variants that share one site of a disordered crystal: molecules, ions, octahedra, atoms, vacancies.

Everything is made here from covalent radii and valences, nothing is read from a library of molecules: chains and rings
grown bond by bond, planar or not, with hydrogens on what valences stay free; ions and coordination polyhedra; single
atoms. A pair is made of one of them by rotation, reorientation about a crystallographic axis, substitution, a
vacancy or a displacement, or of two different ones. Coordinates are in Å from the centre of the site.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..errors import FileFormatError

VALENCE = {1: 1, 6: 4, 7: 3, 8: 2, 9: 1, 15: 3, 16: 2, 17: 1, 35: 1, 53: 1}
_GROWING = ((6, 7, 8, 16, 9, 17, 35), (0.66, 0.13, 0.10, 0.03, 0.03, 0.035, 0.015))
# isovalent exchanges within an organic molecule
_EXCHANGE = {
    1: (9, 17, 35), 9: (1, 17), 17: (1, 35, 9, 53), 35: (17, 1, 53), 53: (17, 35), 8: (16, 7), 16: (8,), 7: (6, 8, 15),
    6: (7, 14), 15: (7,),
}  # fmt: skip
_CHEMISTRY = {  # centre atoms that ions and coordination polyhedra of each shape take
    "tetrahedron": (5, 7, 13, 14, 15, 16, 17, 22, 24, 25, 30, 34, 42, 74),
    "octahedron": (12, 13, 14, 15, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 40, 41, 42, 44, 45, 46, 50, 51, 72, 73, 74, 75, 77, 78),
    "triangle": (5, 6, 7), "square": (28, 29, 46, 78, 79), "line": (6, 7, 16, 47, 80), "bent": (7, 8, 16),
    "pyramid": (7, 15, 16, 33, 34),
}  # fmt: skip
_SHAPES = {
    "tetrahedron": [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)],
    "octahedron": [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)],
    "triangle": [(1, 0, 0), (-0.5, 0.75**0.5, 0), (-0.5, -(0.75**0.5), 0)],
    "square": [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)],
    "line": [(1, 0, 0), (-1, 0, 0)],
    "bent": [(0.79, 0.61, 0), (-0.79, 0.61, 0)],
    "pyramid": [(0.94, 0, -0.34), (-0.47, 0.814, -0.34), (-0.47, -0.814, -0.34)],
}
_LIGANDS = ((8, 9, 17, 35, 16), (0.47, 0.26, 0.14, 0.06, 0.07))
_ATOMS = tuple(z for z in range(3, 84) if z not in (2, 10, 18, 36, 43, 54, 61))
PAIR_KINDS = ("rotation", "reorientation", "substitution", "vacancy", "displaced", "different")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two variants of a site; unpacks as ``z_a, xyz_a, z_b, xyz_b``.

    Attributes
    ----------
    z_a, z_b : (n,) atomic numbers, none for a vacancy
    xyz_a, xyz_b : (n, 3) Å from the centre of the site
    family : str
        Composition of what the pair was made of; pairs that share molecules share it, so split training from evaluation by it.
    kind : one of `PAIR_KINDS`
    cell : (a, b, c) in Å where the source says it, else None; a and b span the plane
    """

    z_a: np.ndarray
    xyz_a: np.ndarray
    z_b: np.ndarray
    xyz_b: np.ndarray
    family: str = ""
    kind: str = ""
    cell: tuple | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.z_a, self.xyz_a, self.z_b, self.xyz_b))

    def transformed(self, matrix) -> Pair:
        """Both variants multiplied by a (3, 3) rotation: ``xyz @ matrix.T``."""
        matrix = np.asarray(matrix, dtype=float).T
        return Pair(self.z_a, self.xyz_a @ matrix, self.z_b, self.xyz_b @ matrix, self.family, self.kind, self.cell)


@lru_cache(maxsize=1)
def _radii() -> np.ndarray:
    """Covalent radii in Å by atomic number (Cordero et al., Dalton Trans. 2008, 2832, as carried by gemmi)."""
    import gemmi

    return np.array([0.0] + [gemmi.Element(z).covalent_r for z in range(1, 99)])


def bond_length(z1: int, z2: int) -> float:
    """Single-bond length in Å as the sum of covalent radii."""
    radii = _radii()
    return float(radii[z1] + radii[z2])


def formula(z) -> str:
    """Hill formula of atomic numbers: ``C2H6O``; ``vacancy`` when there is none."""
    import gemmi

    z = np.asarray(z, int)
    if not len(z):
        return "vacancy"
    names = [gemmi.Element(int(k)).name for k in z]
    carbon = "C" in names
    order = sorted(set(names), key=lambda n: (n != "C", n != "H", n) if carbon else (False, False, n))
    return "".join(f"{n}{names.count(n) if names.count(n) > 1 else ''}" for n in order)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix (3, 3) uniform over SO(3), from a random quaternion."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def axis_rotation(axis, degrees: float) -> np.ndarray:
    """Rotation matrix about ``axis`` by Rodrigues' formula."""
    x, y, z = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    t = np.radians(degrees)
    return np.eye(3) + np.sin(t) * k + (1 - np.cos(t)) * (k @ k)


class _Builder:
    """A molecule while it grows: elements, positions, bonds used and neighbours."""

    def __init__(self, rng: np.random.Generator, planar: bool) -> None:
        self.rng, self.planar = rng, planar
        self.z: list[int] = []
        self.xyz: list[np.ndarray] = []
        self.free: list[int] = []
        self.neighbours: list[list[int]] = []

    def add(self, z: int, position, parents=(), order: int = 1) -> int:
        index = len(self.z)
        self.z.append(z), self.xyz.append(np.asarray(position, dtype=float))
        self.free.append(VALENCE[z]), self.neighbours.append([])
        for p in parents:
            self.bond(index, p, order)
        return index

    def bond(self, i: int, j: int, order: int = 1) -> None:
        for a, b in ((i, j), (j, i)):
            self.neighbours[a].append(b)
            self.free[a] -= order

    def ring(self, size: int, aromatic: bool) -> None:
        """A ring of carbon with hetero atoms that do not touch; puckered unless aromatic, planar or of three.

        Aromatic atoms spend one valence more. Hetero atoms sit where their bonds to the carbon neighbours have the right length.
        """
        length, shrink = (1.39, 0.915) if aromatic else (1.53, 1.0)
        lift = 0.0 if aromatic or self.planar or size == 3 else 0.22
        turn = 2 * np.pi / size
        carbon = np.sqrt(length**2 - 4 * lift**2) / (2 * np.sin(turn / 2))
        hetero = self.rng.random(size) < 0.2
        hetero[-1] &= not hetero[0]
        for k in range(size):
            z, radius = 6, carbon
            if hetero[k] and not (k and hetero[k - 1]):
                z = int(self.rng.choice((7, 8, 16)) if size == 5 or not aromatic else 7)
                reach = (shrink * bond_length(6, z)) ** 2 - 4 * lift**2 - (carbon * np.sin(turn)) ** 2
                radius = carbon * np.cos(turn) + np.sqrt(max(reach, 0.0))
            else:
                hetero[k] = False
            index = self.add(z, (radius * np.cos(turn * k), radius * np.sin(turn * k), lift * (-1) ** k))
            if k:
                self.bond(index, index - 1)
        self.bond(0, size - 1)
        if aromatic:
            self.free = [max(0, f - 1) for f in self.free]

    def direction(self, i: int, length: float, clearance: float) -> np.ndarray | None:
        """A bond direction from atom i, far from its other bonds and clear of all other atoms; None if there is none."""
        trial = self.rng.normal(size=(64, 3))
        if self.planar:
            trial[:, 2] = 0.0
        trial /= np.linalg.norm(trial, axis=1, keepdims=True)
        others = [self.xyz[j] - self.xyz[i] for j in self.neighbours[i]]
        if others:
            unit = np.array(others) / np.linalg.norm(others, axis=1, keepdims=True)
            worst = (trial @ unit.T).max(1)
            wanted = -0.5 if self.planar or len(others) + self.free[i] <= 3 else -0.33
            score = np.abs(worst - wanted) + 0.05 * self.rng.random(64)
        else:
            score = self.rng.random(64)
        end = self.xyz[i] + length * trial
        rest = np.array([x for j, x in enumerate(self.xyz) if j != i])
        if len(rest):
            score[np.linalg.norm(end[:, None] - rest[None], axis=-1).min(1) < clearance] = np.inf
        best = int(np.argmin(score))
        return trial[best] if np.isfinite(score[best]) and score[best] < 0.5 else None

    def grow(self, z: int, order: int = 1) -> bool:
        """Bond a new atom to a random atom with enough free valences; False when there is no room."""
        able = [i for i, f in enumerate(self.free) if f >= order]
        if not able or VALENCE[z] < order:
            return False
        i = int(self.rng.choice(able))
        length = bond_length(self.z[i], z) * (1.0, 0.87, 0.78)[order - 1]
        way = self.direction(i, length, 1.7 if z == 1 else 2.1)
        if way is None:
            return False
        self.add(z, self.xyz[i] + length * way, (i,), order)
        return True

    def hydrogens(self) -> None:
        for i in range(len(self.z)):
            for _ in range(self.free[i]):
                length = bond_length(self.z[i], 1)
                way = self.direction(i, length, 1.5)
                if way is None and self.planar:
                    self.planar = False
                    way = self.direction(i, length, 1.5)
                    self.planar = True
                if way is None or len(self.z) >= 20:
                    break
                self.add(1, self.xyz[i] + length * way, (i,))


def random_molecule(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A molecule of 2 to 20 atoms (C, N, O, H, F, S, Cl, Br), (z, xyz), its centroid at the origin."""
    build = _Builder(rng, bool(rng.random() < 0.45))
    if rng.random() < 0.5:
        aromatic = bool(rng.random() < 0.6)
        size = rng.choice((5, 6), p=(0.25, 0.75)) if aromatic else rng.choice((3, 4, 5, 6), p=(0.1, 0.2, 0.35, 0.35))
        build.ring(int(size), aromatic)
        heavy = len(build.z) + int(rng.integers(0, 4))
    else:
        build.add(int(rng.choice(_GROWING[0][:4], p=np.array(_GROWING[1][:4]) / sum(_GROWING[1][:4]))), np.zeros(3))
        heavy = int(rng.integers(2, 8))
    for _ in range(3 * heavy):
        if len(build.z) >= heavy:
            break
        z = int(rng.choice(_GROWING[0], p=_GROWING[1]))
        build.grow(z, int(rng.choice((1, 2, 3), p=(0.78, 0.19, 0.03))))
    if rng.random() < 0.85 or len(build.z) < 2:
        build.hydrogens()
    xyz = np.array(build.xyz)
    return np.array(build.z), xyz - xyz.mean(0)


def random_polyhedron(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An ion or coordination polyhedron MX_n, (z, xyz), M at the origin; slightly distorted in a third of the cases."""
    shape = str(rng.choice(list(_SHAPES), p=(0.28, 0.38, 0.1, 0.06, 0.06, 0.06, 0.06)))
    centre = int(rng.choice(_CHEMISTRY[shape]))
    ligand = 1 if centre in (7, 8) and rng.random() < 0.6 else int(rng.choice(_LIGANDS[0], p=_LIGANDS[1]))
    xyz = np.array(_SHAPES[shape], dtype=float)
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    shrink = rng.uniform(0.84, 0.94) if centre < 20 and ligand != 1 else rng.uniform(0.96, 1.04)
    xyz *= bond_length(centre, ligand) * shrink
    if rng.random() < 0.33:
        xyz = xyz @ np.diag(np.exp(rng.normal(0, 0.06, 3))) + rng.normal(0, 0.04, xyz.shape)
    return np.array([centre] + [ligand] * len(xyz)), np.concatenate([np.zeros((1, 3)), xyz])


def signed_atoms(z_a, xyz_a, z_b, xyz_b) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atoms of Δρ: (z, xyz, sign) of A (+1) and B (-1) without those that both share (same element within 0.001 Å)."""
    z_a, z_b = np.asarray(z_a, int).reshape(-1), np.asarray(z_b, int).reshape(-1)
    xyz_a, xyz_b = np.asarray(xyz_a, float).reshape(-1, 3), np.asarray(xyz_b, float).reshape(-1, 3)
    distance = np.linalg.norm(xyz_a[:, None] - xyz_b[None], axis=-1)
    same = (distance < 1e-3) & (z_a[:, None] == z_b[None])
    keep_a, keep_b = z_a > 0, z_b > 0
    for i, j in np.argwhere(same):
        if keep_a[i] and keep_b[j]:
            keep_a[i] = keep_b[j] = False
    sign = np.concatenate([np.ones(keep_a.sum()), -np.ones(keep_b.sum())])
    return np.concatenate([z_a[keep_a], z_b[keep_b]]), np.concatenate([xyz_a[keep_a], xyz_b[keep_b]]), sign


def _reorientation(rng) -> np.ndarray:
    """A proper or improper operation of a crystallographic point group about x, y or z or a diagonal."""
    axis = [(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 1, 1)][rng.choice(5, p=(0.45, 0.17, 0.17, 0.11, 0.1))]
    degrees = float(rng.choice((180, 90, 120, 60, 0), p=(0.4, 0.25, 0.15, 0.1, 0.1)))
    sign = -1.0 if degrees == 0 or rng.random() < 0.3 else 1.0
    return sign * axis_rotation(axis, degrees)


def _substituted(z: np.ndarray, xyz: np.ndarray, molecular: bool, rng) -> np.ndarray:
    """The same geometry with one atom, or all of one kind, of another element."""
    z = z.copy()
    chosen = int(rng.integers(len(z)))
    if molecular:
        heavy = np.flatnonzero(z > 1)
        chosen = int(rng.choice(heavy)) if len(heavy) and rng.random() < 0.6 else chosen
        other = int(rng.choice(_EXCHANGE.get(int(z[chosen]), (6,))))
    else:
        other = int(rng.choice(_LIGANDS[0])) if chosen else int(rng.choice(_CHEMISTRY["octahedron"]))
    alike = z == z[chosen]
    if rng.random() < (0.5 if molecular else 0.7):
        z[alike] = other
    else:
        z[chosen] = other
    return z


def _base(rng) -> tuple[np.ndarray, np.ndarray, str]:
    what = rng.choice(("molecule", "polyhedron", "atom"), p=(0.65, 0.27, 0.08))
    if what == "atom":
        return np.array([int(rng.choice(_ATOMS))]), np.zeros((1, 3)), "atom"
    z, xyz = random_molecule(rng) if what == "molecule" else random_polyhedron(rng)
    return z, xyz, str(what)


def _variant(z, xyz, what, kind, rng) -> tuple[np.ndarray, np.ndarray]:
    """The second variant of a site, made from the first."""
    if kind == "rotation":
        return z, xyz @ random_rotation(rng).T
    if kind == "reorientation":
        return z, xyz @ _reorientation(rng).T
    if kind == "substitution":
        return (np.array([int(rng.choice(_ATOMS))]) if what == "atom" else _substituted(z, xyz, what == "molecule", rng)), xyz
    if kind == "vacancy":
        if what == "atom" or rng.random() < 0.75:
            return z[:0], xyz[:0]
        keep = np.arange(len(z)) != rng.integers(len(z))
        return z[keep], xyz[keep]
    if kind == "displaced":
        return z, xyz + rng.uniform(0.15, 1.2) * random_rotation(rng)[0]
    other, place, _ = _base(rng)
    return other, place


def random_pair(rng: np.random.Generator) -> Pair:
    """A random pair of variants of one site.

    Parameters
    ----------
    rng : numpy Generator, the only source of chance

    Returns
    -------
    Pair, which unpacks as ``z_a, xyz_a, z_b, xyz_b``; the longest distance between atoms of Δρ is at most 11 Å and Δρ is not zero
    """
    while True:
        z, xyz, what = _base(rng)
        xyz = xyz @ random_rotation(rng).T if rng.random() < 0.6 else xyz
        share = (0.0, 0.0, 0.6, 0.22, 0.18, 0.0) if what == "atom" else (0.34, 0.2, 0.22, 0.08, 0.06, 0.1)
        kind = str(rng.choice(PAIR_KINDS, p=share))
        z_b, xyz_b = _variant(z, xyz, what, kind, rng)
        if len(signed_atoms(z, xyz, z_b, xyz_b)[0]) == 0:
            continue
        both = np.concatenate([xyz, xyz_b])
        if np.linalg.norm(both[:, None] - both[None], axis=-1).max() > 11.0:
            continue
        names = sorted({formula(z), formula(z_b)} - {"vacancy"})
        return Pair(z, xyz, z_b, xyz_b, f"{what}:{'/'.join(names)}", kind)


def pairs_from_library(path) -> list[Pair]:
    """Pairs from a JSON list of named molecules, for development and evaluation.

    Each entry has ``name``, ``group``, ``lattice`` (a, b, c in Å) and ``Z_xyz_angstrom``. ``X`` and ``X_R`` make a rotation
    pair of the family ``X``; entries without such a partner are paired with the next of their group (a substitution) about
    their first atom. The library's molecules lie in its xz plane: here x, z, -y become x, y, z and the cell a, c, b, so that
    the plane is ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {path}, where there is no file; expected a JSON list of molecules.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        table = {e["name"]: (np.array(e["Z_xyz_angstrom"], dtype=float), tuple(e["lattice"]), e["group"]) for e in entries}
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, OverflowError) as error:
        expected = "a JSON list of molecules with name, group, lattice and Z_xyz_angstrom"
        raise FileFormatError(f"{path.name} cannot be read ({error!r}); expected {expected}.") from error

    def place(rows, centre=0.0):
        xyz = rows[:, 1:] - centre
        return rows[:, 0].astype(int), np.stack([xyz[:, 0], xyz[:, 2], -xyz[:, 1]], 1)

    pairs, single = [], {}
    for name, (rows, cell, group) in table.items():
        cell = (cell[0], cell[2], cell[1])
        if f"{name}_R" in table:
            pairs.append(Pair(*place(rows), *place(table[f"{name}_R"][0]), name, "rotation", cell))
        elif not name.endswith("_R"):
            single.setdefault(group, []).append((name, rows, cell))
    for members in single.values():
        for k, (name, rows, cell) in enumerate(members):
            other, next_rows, _ = members[(k + 1) % len(members)]
            if other != name:
                a, b = place(rows, rows[0, 1:]), place(next_rows, next_rows[0, 1:])
                pairs.append(Pair(*a, *b, f"{name}/{other}", "substitution", cell))
    return pairs
