"""Crystals: structure libraries and symmetry-preserving variation (substitution, strain, jitter).

Random crystals are in `crystaldl.physics.random_crystals`.
"""
from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from ..errors import FileFormatError
from .lattice import cell_from_metric, cell_volume, metric_tensor
from .symmetry import check_space_group


@dataclass(frozen=True)
class Crystal:
    """An ordered crystal: every atom of one conventional cell.

    Attributes
    ----------
    numbers : (n,) int, atomic numbers
    positions : (n, 3) float, fractional coordinates
    cell : (6,) float, a, b, c in Å and alpha, beta, gamma in degrees
    space_group : int, 1…230
    name, source : str
    occupancy : (n,) float or None, site occupancies (None: all 1)
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    space_group: int
    name: str = ""
    source: str = ""
    occupancy: np.ndarray | None = None
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "numbers", np.asarray(self.numbers, dtype=np.int64))
        object.__setattr__(self, "positions", np.asarray(self.positions, dtype=float).reshape(-1, 3))
        object.__setattr__(self, "cell", np.asarray(self.cell, dtype=float))
        check_space_group(self.space_group)
        if len(self.numbers) != len(self.positions):
            raise ValueError(f"positions has {len(self.positions)} rows but numbers has {len(self.numbers)}; they must agree.")

    @property
    def volume(self) -> float:
        """Cell volume, Å³."""
        return cell_volume(self.cell)

    def symmetry(self, symprec: float = 0.01):
        """spglib's symmetry of this very cell: number, rotations (m, 3, 3), translations (m, 3), atom permutations (m, n).

        Atoms of one element with different occupancies are different.
        """
        if symprec not in self._cache:
            self._cache[symprec] = _symmetry(self, symprec)
        return self._cache[symprec]


@dataclass(frozen=True)
class CellSymmetry:
    """Symmetry found in a given cell with atoms at ``positions``."""

    number: int
    rotations: np.ndarray
    translations: np.ndarray
    positions: np.ndarray

    @cached_property
    def permutations(self) -> np.ndarray:
        """(operations, atoms) int: entry ``[g, j]`` is the atom onto which operation g moves atom j."""
        moved = np.einsum("gij,nj->gni", self.rotations, self.positions) + self.translations[:, None]
        out = np.empty(moved.shape[:2], dtype=int)
        for g, points in enumerate(moved):
            delta = points[:, None] - self.positions[None]
            delta -= np.round(delta)
            out[g] = np.argmin((delta**2).sum(-1) - 1e-9 * np.eye(len(points)), axis=1)  # of two in one place, the atom itself
        return out


def find_symmetry(cell, positions, numbers, symprec: float = 0.01):
    """spglib's symmetry dataset of a cell, or None where it finds none."""
    from .lattice import cell_matrix

    return _dataset(cell_matrix(cell), positions, numbers, symprec)


def _dataset(matrix, positions, numbers, symprec: float):
    """spglib's symmetry dataset of lattice vectors (rows of ``matrix``) and atoms, or None where it finds none."""
    import warnings

    import spglib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return spglib.get_symmetry_dataset((matrix, positions, numbers), symprec=symprec)
        except Exception as error:  # spglib >= 2.7 raises its own error type where older versions return None
            if type(error).__module__.startswith("spglib"):
                return None
            raise


def kinds_of(numbers, occupancy=None) -> np.ndarray:
    """(n,) ints, the same for atoms of one element and (to 2 %) one occupancy: what symmetry may map onto each other."""
    if occupancy is None:
        return np.asarray(numbers)
    return 100 * np.asarray(numbers) + np.rint(50 * np.asarray(occupancy)).astype(int)


def standardised(cell, positions, numbers, occupancy=None, name: str = "", source: str = "", symprec: float = 0.02):
    """The crystal in spglib's conventional cell, its space group as found; None where spglib finds none."""
    kinds = kinds_of(numbers, occupancy)
    data = find_symmetry(cell, positions, kinds, symprec)
    if data is None:
        return None
    names, first = np.unique(kinds, return_index=True)
    which = first[np.searchsorted(names, data.std_types)]
    share = None if occupancy is None or np.all(np.asarray(occupancy) == 1) else np.asarray(occupancy)[which]
    return Crystal(np.asarray(numbers)[which], data.std_positions, cell_from_metric(data.std_lattice @ data.std_lattice.T),
                   int(data.number), name, source, share)


def _symmetry(crystal: Crystal, symprec: float) -> CellSymmetry:
    data = find_symmetry(crystal.cell, crystal.positions, kinds_of(crystal.numbers, crystal.occupancy), symprec)
    if data is None:
        identity = np.eye(3)[None]
        return CellSymmetry(1, identity, np.zeros((1, 3)), crystal.positions)
    return CellSymmetry(int(data.number), data.rotations.astype(float), data.translations, crystal.positions)


# ---------------------------------------------------------------------------------------------- libraries

def read_library(path) -> list[Crystal]:
    """Crystals of a JSON library: a list of ``{"name", "src", "sg", "abc", "ang", "Z", "xyz"}``, plain or gzipped.

    Raises
    ------
    FileNotFoundError
    FileFormatError
        Not such a list, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {str(path)!r}, which is not a file; expected a JSON library of crystals.")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            records = json.load(stream)
        return [Crystal(r["Z"], r["xyz"], [*r["abc"], *r["ang"]], r["sg"], r.get("name", ""), r.get("src", "")) for r in records]
    except (OSError, EOFError, zlib.error, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        reason = str(error) or type(error).__name__
        raise FileFormatError(f"{path.name} cannot be read ({reason[:120]}); expected a JSON list of crystals.") from None


def read_cif(path) -> Crystal:
    """The first structure of a CIF, expanded to all atoms of its cell; mixed sites keep their occupancies.

    Raises
    ------
    FileNotFoundError
    FileFormatError
        Not a CIF, or one without a structure.
    """
    import gemmi

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {str(path)!r}, which is not a file; expected a CIF.")
    try:
        structure = gemmi.read_small_structure(str(path))
        sites = [s for s in structure.get_all_unit_cell_sites() if s.element.atomic_number > 0]
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise FileFormatError(f"path is {str(path)!r}, which does not read as a CIF ({error}).") from None
    if not sites:
        raise FileFormatError(f"path is {str(path)!r}, a CIF without atomic sites; expected a crystal structure.")
    group = structure.spacegroup
    cell = structure.cell
    return Crystal([s.element.atomic_number for s in sites], [[s.fract.x, s.fract.y, s.fract.z] for s in sites],
                   [cell.a, cell.b, cell.c, cell.alpha, cell.beta, cell.gamma], group.number if group else 1,
                   structure.name, path.name, np.array([s.occ for s in sites]))


def aflow_prototypes() -> list[Crystal]:
    """The AFLOW prototypes that pymatgen carries, read from its data file without importing pymatgen.

    Empty where pymatgen is not installed. Cells are brought to the conventional setting by spglib.
    """
    from importlib.util import find_spec

    spec = find_spec("pymatgen")
    roots = list(spec.submodule_search_locations) if spec and spec.submodule_search_locations else []
    files = [f for root in roots for f in Path(root).glob("analysis/**/aflow_prototypes.json*")]
    if not files:
        return []
    opener = gzip.open if files[0].suffix == ".gz" else open
    with opener(files[0], "rt", encoding="utf-8") as stream:
        records = json.load(stream)
    out = []
    for record in records:
        structure = record["snl"] if "lattice" in record["snl"] else record["snl"]["structure"]
        numbers = [_atomic_number(site["species"][0]["element"]) for site in structure["sites"]]
        data = _dataset(structure["lattice"]["matrix"], [s["abc"] for s in structure["sites"]], numbers, 0.01)
        if data is not None:
            out.append(Crystal(data.std_types, data.std_positions, cell_from_metric(data.std_lattice @ data.std_lattice.T),
                               int(data.number), record["tags"].get("mineral", ""), "AFLOW prototypes (pymatgen)"))
    return out


def _atomic_number(symbol: str) -> int:
    import gemmi

    return gemmi.Element(symbol).atomic_number


# ---------------------------------------------------------------------------------------------- variation

#: elements that replace one another in minerals and compounds (similar radius and charge), by atomic number
SUBSTITUTION_FAMILIES = (
    (3, 11, 19, 37, 55, 47), (4, 12, 25, 26, 27, 28, 29, 30), (20, 38, 56, 63, 48, 82), (13, 24, 26, 31, 21, 23, 22),
    (39, 57, 58, 60, 64, 66, 70), (14, 32, 22, 50, 40, 72), (41, 73, 23, 51, 15, 33), (42, 74, 24), (44, 45, 46, 77, 78, 79),
    (8, 16, 34, 52), (9, 17, 35, 53), (7, 15, 33, 51, 83), (5, 6, 14), (26, 27, 28, 29, 24, 25), (81, 82, 80, 49),
)


@lru_cache(maxsize=1)
def _partners() -> dict[int, np.ndarray]:
    table: dict[int, set[int]] = {}
    for family in SUBSTITUTION_FAMILIES:
        for z in family:
            table.setdefault(z, set()).update(family)
    return {z: np.array(sorted(v)) for z, v in table.items()}


@lru_cache(maxsize=1)
def covalent_radii() -> np.ndarray:
    """Covalent radii in Å by atomic number (Cordero et al. 2008, through gemmi); index 0 unused."""
    import gemmi

    return np.array([0.0] + [gemmi.Element(z).covalent_r for z in range(1, 99)])


def substitute(crystal: Crystal, rng: np.random.Generator, probability: float = 0.7) -> Crystal:
    """Replace whole elements by chemically similar ones, and scale the cell with the sum of radii.

    Different elements stay different, so no new symmetry can arise from the substitution.
    """
    species = np.unique(crystal.numbers)
    new = species.copy()
    taken = set()
    for i, z in enumerate(species):
        choices = _partners().get(int(z), np.array([z]))
        choices = [c for c in choices if c not in taken and (c == z or c not in species)]
        new[i] = rng.choice(choices) if choices and rng.random() < probability else z
        if new[i] in taken:
            new[i] = z
        taken.add(int(new[i]))
    if np.unique(new).size < species.size:
        return crystal
    numbers = new[np.searchsorted(species, crystal.numbers)]
    radii = covalent_radii()
    scale = radii[np.minimum(numbers, 96)].mean() / radii[np.minimum(crystal.numbers, 96)].mean()
    cell = crystal.cell.copy()
    cell[:3] *= np.clip(scale, 0.7, 1.4)
    return replace(crystal, numbers=numbers, cell=cell, _cache={})


def strain(crystal: Crystal, rng: np.random.Generator, sigma: float = 0.05, volume_sigma: float = 0.08) -> Crystal:
    """A random strain of the cell that keeps the crystal system: isotropic plus shape, averaged over the point group.

    ``sigma`` and ``volume_sigma`` are standard deviations of the strain components and of the linear size.
    """
    rotations = crystal.symmetry().rotations
    e = rng.normal(0.0, sigma, (3, 3))
    deform = np.eye(3) * np.exp(rng.normal(0.0, volume_sigma)) + 0.5 * (e + e.T)
    from .lattice import cell_matrix

    m = cell_matrix(crystal.cell) @ deform
    metric = m @ m.T
    # a metric invariant under every operation: G' = <Wᵀ G W>
    metric = np.einsum("gki,kl,glj->ij", rotations, metric, rotations) / len(rotations)
    if np.linalg.det(metric) <= 0:
        return crystal
    return replace(crystal, cell=cell_from_metric(metric), _cache=dict(crystal._cache))


def jitter(crystal: Crystal, rng: np.random.Generator, sigma: float = 0.1) -> Crystal:
    """Random displacements (Å, standard deviation ``sigma``) of the free coordinates, symmetry kept."""
    symmetry = crystal.symmetry()
    g = np.sqrt(np.diag(metric_tensor(crystal.cell)))
    raw = rng.normal(0.0, sigma, crystal.positions.shape) / g
    total = np.zeros_like(raw)
    for w, p in zip(symmetry.rotations, symmetry.permutations, strict=True):
        np.add.at(total, p, raw @ w.T)
    # the average shrinks the displacement by about sqrt(orbit length): restore the asked-for size
    shift = total / np.sqrt(len(symmetry.rotations))
    norm = np.sqrt(((shift * g) ** 2).sum(-1).mean()) + 1e-12
    return replace(crystal, positions=crystal.positions + shift * min(1.0, 2.0 * sigma / norm), _cache=dict(crystal._cache))
