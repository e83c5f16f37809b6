"""Structural models of a disordered site: molecules, and the form factor of a pair of them.

``F(Q) = Σ_j occ_j f_j(s²) exp(-B_j s²) exp(i Q·r_j)``, s = sin θ / λ = |Q| / 4π; f from `crystaldl.physics.scattering` for
X-rays (electrons), electrons (Å) or neutrons (fm). Positions are Cartesian, in Å, a along x and b in the xy plane, from the
centre of the site (the node that stands for it in the lattice).
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError, FileFormatError
from ..physics.lattice import metric_tensor
from ..physics.scattering import MAX_Z, scattering_table

__all__ = ["Molecule", "difference_form_factor", "is_pair"]

_SLAB = 2_000_000
_NOTHING = (None, ".", "?")


@dataclass(frozen=True, eq=False)
class Molecule:
    """Atoms that may occupy a site.  No atoms at all is a vacancy.

    Parameters
    ----------
    elements : (n,) sequence of symbols or atomic numbers
    xyz : (n, 3) array_like, Cartesian Å from the centre of the site
    b_iso : float or (n,) array_like, Å²
        Isotropic displacement parameters B = 8π²U.
    occupancy : float or (n,) array_like
    name : str
    """

    elements: tuple[int, ...]
    xyz: np.ndarray
    b_iso: np.ndarray = 0.0
    occupancy: np.ndarray = 1.0
    name: str = ""

    def __post_init__(self):
        z = _numbers_of(self.elements)
        xyz = _table(self.xyz, "xyz", (len(z), 3))
        object.__setattr__(self, "elements", z)
        object.__setattr__(self, "xyz", xyz)
        for name in ("b_iso", "occupancy"):
            values = getattr(self, name)
            values = _table(np.full(len(z), values) if np.ndim(values) == 0 else values, name, (len(z),))
            if (values < 0).any():
                raise DataError(f"{name} holds {values.min():g}; expected values of at least 0.")
            object.__setattr__(self, name, values)

    # ------------------------------------------------------------------ construction

    @classmethod
    def vacancy(cls, name: str = "vacancy") -> Molecule:
        """Nothing on the site."""
        return cls((), np.zeros((0, 3)), name=name)

    @classmethod
    def from_xyz(cls, path, *, b_iso=0.0, centre=None) -> Molecule:
        """Read an xyz file: the number of atoms, a comment, then element and Cartesian Å a line.

        Parameters
        ----------
        path : str or Path
        b_iso : float, Å²
        centre : (3,) or "mean" or None
            Point that becomes the origin; None leaves coordinates as they are.
        """
        path = Path(path)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            n = int(lines[0])
            rows = [line.split() for line in lines[2 : 2 + n]]
            if len(rows) != n:
                raise IndexError
            elements = [int(row[0]) if row[0].isdigit() else row[0] for row in rows]
            xyz = np.array([[float(v) for v in row[1:4]] for row in rows]).reshape(n, 3)
        except (IndexError, ValueError):
            expected = "the number of atoms, a comment, and so many lines 'El x y z'"
            raise FileFormatError(f"{path.name} is no xyz file; expected {expected}.") from None
        return cls(elements, xyz - _centre(xyz, centre), b_iso, name=path.stem)

    @classmethod
    def from_cif(cls, path, *, labels=None, disorder_group=None, centre=None, block: int = 0) -> Molecule:
        """Atoms of a CIF as they are listed, without symmetry copies.

        Parameters
        ----------
        path : str or Path
        labels : sequence of str, optional
            Only these atoms.
        disorder_group : int or str, optional
            Atoms of this ``_atom_site_disorder_group``, with full occupancy (the variant is wholly there), and those in
            no group as well.
        centre : (3,) or "mean" or None
            Cartesian point that becomes the origin.
        block : int, number of the data block
        """
        import gemmi

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; expected a CIF.")
        try:
            document = gemmi.cif.read(str(path))
            structure = gemmi.make_small_structure_from_block(document[block])
        except (ValueError, RuntimeError, IndexError) as error:
            raise FileFormatError(f"{path.name} cannot be read as a CIF ({(str(error).splitlines() or ['damaged'])[0]}).") from None
        sites = list(structure.sites)
        groups = _disorder_groups(document[block], sites)
        if labels is not None:
            missing = set(labels) - {s.label for s in sites}
            if missing:
                raise DataError(f"labels holds {sorted(missing)[0]!r}, which {path.name} does not list.")
            chosen = [i for i, s in enumerate(sites) if s.label in set(labels)]
        else:
            chosen = list(range(len(sites)))
        if disorder_group is not None:
            wanted = str(disorder_group).lstrip("-")
            chosen = [i for i in chosen if groups[i] in ("", wanted)]
            if not any(groups[i] == wanted for i in chosen):
                raise DataError(f"disorder_group is {disorder_group!r}; {path.name} has the groups {sorted(set(groups) - {''})}.")
        sites, groups = [sites[i] for i in chosen], [groups[i] for i in chosen]
        if not sites:
            raise FileFormatError(f"{path.name} lists no atoms.")
        xyz = np.array([structure.cell.orthogonalize(s.fract).tolist() for s in sites])
        b_iso = np.array([8 * np.pi**2 * _u_iso(s, structure.cell) for s in sites])
        occupancy = [1.0 if disorder_group is not None and g else s.occ for s, g in zip(sites, groups, strict=True)]
        return cls([s.element.atomic_number for s in sites], xyz - _centre(xyz, centre), b_iso, occupancy, path.stem)

    @classmethod
    def from_pymatgen(cls, molecule, *, b_iso=0.0, centre=None) -> Molecule:
        """Of a pymatgen Molecule (or anything with ``species`` and ``cart_coords``)."""
        xyz = np.asarray(molecule.cart_coords, dtype=float)
        name = str(getattr(molecule, "formula", ""))
        return cls([int(s.Z) for s in molecule.species], xyz - _centre(xyz, centre), b_iso, name=name)

    @classmethod
    def from_ase(cls, atoms, *, b_iso=0.0, centre=None) -> Molecule:
        """Of an ASE Atoms object (anything with ``get_atomic_numbers()`` and ``get_positions()``)."""
        xyz = np.asarray(atoms.get_positions(), dtype=float)
        return cls([int(z) for z in atoms.get_atomic_numbers()], xyz - _centre(xyz, centre), b_iso)

    @classmethod
    def of(cls, value, argument: str = "molecule") -> Molecule:
        """A Molecule from whatever stands for one; None is a vacancy."""
        if isinstance(value, cls):
            return value
        if value is None:
            return cls.vacancy()
        if hasattr(value, "get_atomic_numbers") and hasattr(value, "get_positions"):
            return cls.from_ase(value)
        if hasattr(value, "cart_coords") and hasattr(value, "species"):
            return cls.from_pymatgen(value)
        if isinstance(value, (tuple, list)) and len(value) in (2, 3):
            return cls(*value)
        raise DataError(f"{argument} is a {type(value).__name__}; expected a Molecule, an ASE or pymatgen one, or (elements, xyz).")

    # ------------------------------------------------------------------ changes

    def rotated(self, matrix) -> Molecule:
        """Turned about the origin by a (3, 3) matrix: ``xyz @ matrix.T``."""
        matrix = _table(matrix, "matrix", (3, 3))
        return Molecule(self.elements, self.xyz @ matrix.T, self.b_iso, self.occupancy, self.name)

    def translated(self, shift) -> Molecule:
        """Moved by (3,) Å."""
        return Molecule(self.elements, self.xyz + _table(shift, "shift", (3,)), self.b_iso, self.occupancy, self.name)

    # ------------------------------------------------------------------ scattering

    def form_factor(self, q, radiation: str = "xray") -> np.ndarray:
        """Complex F at Cartesian ``q`` (..., 3) in Å⁻¹, 2π inside."""
        try:
            q = np.asarray(q, dtype=float)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            q = np.zeros(0)
        if q.ndim == 0 or q.shape[-1] != 3:
            raise DataError(f"q has the shape {q.shape}; expected (..., 3) Cartesian components in Å⁻¹.")
        table = scattering_table(radiation)
        flat = q.reshape(-1, 3)
        out = np.zeros(len(flat), dtype=complex)
        n = len(self.elements)
        if n == 0:
            return out.reshape(q.shape[:-1])
        kinds, kind = np.unique(np.stack([np.array(self.elements, dtype=float), self.b_iso], 1), axis=0, return_inverse=True)
        kind = np.ravel(kind)
        for part in np.array_split(np.arange(len(flat)), max(1, len(flat) * n // _SLAB)):
            if not part.size:
                continue
            place = slice(part[0], part[-1] + 1)
            s2 = np.square(flat[place]).sum(1) / (16 * np.pi**2)
            for k, (z, b) in enumerate(kinds):
                row, mine = table[int(z)], kind == k
                f = row[10] + np.exp(-np.outer(s2, row[5:10])) @ row[:5]
                phase = flat[place] @ self.xyz[mine].T
                out[place] += f * np.exp(-b * s2) * (np.exp(1j * phase) @ self.occupancy[mine])
        return out.reshape(q.shape[:-1])

    @property
    def formula(self) -> str:
        """Elements and their numbers, as in ``"C6 H6"``."""
        import gemmi

        names = [gemmi.Element(z).name for z in self.elements]
        return " ".join(f"{n}{names.count(n) if names.count(n) > 1 else ''}" for n in sorted(set(names))) or "vacancy"

    def __repr__(self) -> str:
        return f"<Molecule{f' {self.name!r}' if self.name else ''}: {self.formula}>"


def is_pair(value) -> bool:
    """Whether this can be two molecules (a volume, a number or an array of numbers cannot)."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    return all(v is None or not isinstance(v, (int, float, np.ndarray, np.generic)) for v in value) and any(
        isinstance(v, (Molecule, tuple)) or hasattr(v, "get_positions") or hasattr(v, "cart_coords") for v in value
    )


def difference_form_factor(volume, molecule_a, molecule_b, *, concentration: float = 0.5) -> np.ndarray:
    """``D = c (1 - c) |F_A - F_B|²`` on the pixels of a volume, (*shape), for the volume's radiation.

    Parameters
    ----------
    volume : DiffuseVolume
    molecule_a, molecule_b : Molecule (or what `Molecule.of` takes)
    concentration : float, share c of A
    """
    a, b = Molecule.of(molecule_a, "molecule_a"), Molecule.of(molecule_b, "molecule_b")
    q = volume.q_vectors()
    amplitude = a.form_factor(q, volume.radiation) - b.form_factor(q, volume.radiation)
    return concentration * (1 - concentration) * (amplitude.real**2 + amplitude.imag**2)


# -- details ---------------------------------------------------------------------------------------------------------


def _numbers_of(elements) -> tuple[int, ...]:
    import gemmi

    try:
        elements = list(elements)
    except TypeError:
        raise DataError(f"elements is {elements!r}; expected a sequence of symbols or atomic numbers.") from None
    out = []
    for element in elements:
        if isinstance(element, str):
            z = gemmi.Element(element.strip().capitalize()).atomic_number
        elif isinstance(element, (int, np.integer)) and not isinstance(element, bool):
            z = int(element)
        else:
            z = 0
        if not 1 <= z <= MAX_Z:
            raise DataError(f"elements holds {element!r}; expected symbols or atomic numbers from 1 to {MAX_Z}.")
        out.append(z)
    return tuple(out)


def _table(values, name: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise DataError(f"{name} is not an array of numbers; expected the shape {shape}.") from None
    if array.size == 0 and 0 in shape:
        array = array.reshape(shape)
    if array.shape != shape:
        raise DataError(f"{name} has the shape {array.shape}; expected {shape}.")
    if not np.isfinite(array).all():
        raise DataError(f"{name} holds values that are not finite.")
    array.setflags(write=False)
    return array


def _centre(xyz: np.ndarray, centre) -> np.ndarray:
    if centre is None:
        return np.zeros(3)
    if isinstance(centre, str):
        if centre != "mean":
            raise DataError(f"centre is {centre!r}; expected 'mean', three Cartesian Å, or None.")
        return xyz.mean(0)
    return _table(centre, "centre", (3,))


def _disorder_groups(block, sites) -> list[str]:
    """The disorder group of each site as text, "" for none; a minus sign (near a symmetry element) is dropped."""
    column = block.find("_atom_site_", ["label", "?disorder_group"])
    found = {}
    for row in column:
        value = row.str(1) if row.has(1) else ""
        found[row.str(0)] = "" if value in _NOTHING else value.lstrip("-")
    return [found.get(s.label, "") for s in sites]


def _u_iso(site, cell) -> float:
    """U_iso, or the equivalent of an anisotropic tensor, ``Σ_ij U_ij a*_i a*_j a_i·a_j / 3``."""
    if site.u_iso or not site.aniso.nonzero():
        return float(site.u_iso)
    metric = metric_tensor(cell.parameters)
    star = np.sqrt(np.diag(np.linalg.inv(metric)))
    return float((np.array(site.aniso.as_mat33().tolist()) * np.outer(star, star) * metric).sum() / 3)
