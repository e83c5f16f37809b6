"""Reduction of lattices and the symmetry of their metric: from a primitive cell to its Bravais lattices.

A lattice of lines is its reciprocal metric ``g = (A, B, C, D, E, F)``, ``Q = 1/d² = h²A + k²B + l²C + klD + hlE + hkF`` in
Å⁻², in the conventional cell of a Bravais lattice. Cells are ``(a, b, c, α, β, γ)`` in Å and degrees.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from ...physics.crystals import find_symmetry
from ...physics.lattice import cell_from_metric, cell_volume, metric_tensor

__all__ = ["BRAVAIS", "HIGHEST_GROUP", "alike", "cell_of", "derivative_index", "hermite_forms", "lattice_lengths", "lattices_of",
           "metric_of", "niggli_cell", "reciprocal_metric", "same_lattice", "shortest_vector", "sparser", "system_of"]  # fmt: skip

#: Bravais lattice -> (code of the system, code of the centring, multiplicity of a general line times centring factor)
BRAVAIS = {
    "cP": (0, 0, 48), "cI": (0, 1, 96), "cF": (0, 2, 192), "tP": (1, 0, 16), "tI": (1, 1, 32), "hP": (2, 0, 24),
    "hR": (2, 4, 36), "oP": (3, 0, 8), "oI": (3, 1, 16), "oF": (3, 2, 32), "oC": (3, 3, 16), "mP": (4, 0, 4),
    "mC": (4, 3, 8), "aP": (5, 0, 2),
}  # fmt: skip
#: symmorphic space group of the highest symmetry of each lattice
HIGHEST_GROUP = {
    "aP": 2, "mP": 10, "mC": 12, "oP": 47, "oC": 65, "oF": 69, "oI": 71, "tP": 123, "tI": 139, "hR": 166, "hP": 191,
    "cP": 221, "cF": 225, "cI": 229,
}  # fmt: skip
_LATTICE_OF_GROUP = {number: name for name, number in HIGHEST_GROUP.items()}
_STEPS = np.array([v for v in product((-2, -1, 0, 1, 2), repeat=3) if v > (0, 0, 0)], float)
#: coefficients of the metric's a², b², c², bc, ac, ab in the squared lengths of those steps
_FORMS = np.concatenate([_STEPS**2, 2 * _STEPS[:, [1, 0, 0]] * _STEPS[:, [2, 2, 1]]], 1)
_TURNS = np.array([[[p, q], [r, s]] for p, q, r, s in product(range(-3, 4), repeat=4) if p * s - q * r in (1, -1)])
#: vectors of a primitive cell in terms of the axes of a centred one
_PRIMITIVE = {
    "P": np.eye(3),
    "I": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2,
    "F": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
    "C": np.array([[1, -1, 0], [1, 1, 0], [0, 0, 2]]) / 2,
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}
#: lattice points of a conventional cell
LATTICE_POINTS = {"P": 1, "C": 2, "I": 2, "R": 3, "F": 4}
_SYSTEMS = {"c": "cubic", "t": "tetragonal", "o": "orthorhombic", "m": "monoclinic", "a": "triclinic"}


def system_of(bravais: str) -> str:
    """Crystal system that a Bravais lattice stands for; ``hR`` counts as trigonal, ``hP`` as hexagonal."""
    return {"hR": "trigonal", "hP": "hexagonal"}.get(bravais) or _SYSTEMS[bravais[0]]


def metric_of(cell) -> np.ndarray:
    """(A, B, C, D, E, F) of a cell."""
    r = np.linalg.inv(metric_tensor(cell))
    return np.array([r[0, 0], r[1, 1], r[2, 2], 2 * r[1, 2], 2 * r[0, 2], 2 * r[0, 1]])


def cell_of(g) -> np.ndarray:
    """(a, b, c, α, β, γ) of (A, B, C, D, E, F): (6,), or (n, 6) of (n, 6)."""
    direct = np.linalg.inv(reciprocal_metric(g))
    edges = np.sqrt(np.diagonal(direct, axis1=-2, axis2=-1))
    cosines = np.stack([direct[..., i, j] / (edges[..., i] * edges[..., j]) for i, j in ((1, 2), (0, 2), (0, 1))], -1)
    return np.concatenate([edges, np.degrees(np.arccos(np.clip(cosines, -1, 1)))], -1)


def reciprocal_metric(g) -> np.ndarray:
    """Metric tensor of the reciprocal lattice, (..., 3, 3), of (A, B, C, D, E, F)."""
    a, b, c, d, e, f = np.moveaxis(np.asarray(g, float), -1, 0)
    return np.stack([a, f / 2, e / 2, f / 2, b, d / 2, e / 2, d / 2, c], -1).reshape(*a.shape, 3, 3)


def shortest_vector(g, bravais) -> np.ndarray:
    """Length of the shortest lattice vector in Å, (n,), of metrics (n, 6) and Bravais lattices (n,).

    Looked for among the sums of up to two of each vector of a primitive cell: all of it for cells near reduction.
    """
    direct, out = np.linalg.inv(reciprocal_metric(g)), np.zeros(len(g))
    centring = np.array([name[1] for name in bravais])
    for letter, turn in _PRIMITIVE.items():
        own = centring == letter
        metric = turn @ direct[own] @ turn.T
        squares = metric[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] @ _FORMS.T
        out[own] = np.sqrt(np.maximum(squares.min(1, initial=np.inf), 0.0))
    return out


def niggli_cell(cell, centring: str = "P") -> np.ndarray:
    """The Niggli-reduced cell: the same for every description of a lattice (Křivý & Gruber 1976, through gemmi)."""
    import gemmi

    vector = gemmi.GruberVector(gemmi.UnitCell(*cell), centring)
    vector.niggli_reduce()
    return np.array(vector.cell_parameters())


def same_lattice(first, second, tolerance: float = 0.01) -> bool:
    """Whether two Niggli cells describe the same lattice: they agree within a relative tolerance.

    Compared are the volume and the twelve shortest lattice vectors, which do not jump where a reduced cell changes type.
    """
    return bool(alike(lattice_lengths(first), lattice_lengths(second), tolerance))


def alike(first, second, tolerance: float = 0.01) -> np.ndarray:
    """Whether `lattice_lengths` (..., 13) are those of the same lattice, (...)."""
    return (np.abs(first / second - 1.0) < tolerance).all(-1)


def lattice_lengths(cell) -> np.ndarray:
    """The twelve shortest vectors and the cube root of the volume, Å: the same for every description of a lattice.

    (13,) of a Niggli cell (6,), or (n, 13) of (n, 6).
    """
    cell = np.asarray(cell, float)
    edges, cosines = cell[..., :3], np.cos(np.radians(cell[..., 3:]))
    products = np.stack([edges[..., i] * edges[..., j] for i, j in ((1, 2), (0, 2), (0, 1))], -1)
    metric = np.stack([edges * edges, products * cosines], -2)
    squares = metric.reshape(*cell.shape[:-1], 6) @ _FORMS.T
    ca, cb, cg = np.moveaxis(cosines, -1, 0)
    volume = edges.prod(-1) * np.sqrt(np.maximum(1 - ca * ca - cb * cb - cg * cg + 2 * ca * cb * cg, 0.0))
    return np.concatenate([np.sqrt(np.sort(squares, -1)[..., :12]), np.cbrt(volume)[..., None]], -1)


def _in_order(bravais: str, cell: np.ndarray) -> np.ndarray:
    """Axes of orthorhombic cells in rising order (oC: a < b), monoclinic ones with the shortest a and c and β ≥ 90°."""
    cell = np.array(cell, float)
    if bravais in ("oP", "oI", "oF"):
        cell[:3] = np.sort(cell[:3])
    elif bravais == "oC":
        cell[:2] = np.sort(cell[:2])
    elif bravais[0] == "m":
        return _monoclinic(bravais, cell)
    return cell


def _monoclinic(bravais: str, cell: np.ndarray) -> np.ndarray:
    """The description with the shortest axes a and c; a C lattice keeps its C (never I) centring."""
    a, b, c, _, beta, _ = cell
    across = a * c * np.cos(np.radians(beta))
    # the centring (½ ½ 0) maps on itself if, in (a', c') = (p a + q c, r a + s c), p is odd and q is even
    turns = _TURNS if bravais == "mP" else _TURNS[(_TURNS[:, 0, 0] % 2 == 1) & (_TURNS[:, 0, 1] % 2 == 0)]
    new = np.einsum("nij,jk,nlk->nil", turns, np.array([[a * a, across], [across, c * c]]), turns)
    new = new[new[:, 0, 1] < 1e-9 * a * c]
    order = np.lexsort((new[:, 0, 0].round(6), np.trace(new, axis1=1, axis2=2).round(6)))
    (aa, ac), (_, cc) = new[order[0]]
    a, c = np.sqrt(aa), np.sqrt(cc)
    return np.array([a, b, c, 90.0, np.degrees(np.arccos(np.clip(ac / (a * c), -1, 1))), 90.0])


def lattices_of(niggli, tolerances=(0.003, 0.01, 0.025, 0.05)) -> list[tuple[str, np.ndarray]]:
    """Bravais lattices that a lattice is, or nearly is: (name, conventional cell), without repetition.

    Parameters
    ----------
    niggli : (6,) array_like
    tolerances : sequence of float
        Relative distances by which the lattice may miss a symmetry.
    """
    found = {"aP": np.asarray(niggli, float)}
    size = cell_volume(niggli) ** (1 / 3)
    closest: dict[str, tuple[float, np.ndarray]] = {}

    def look(tolerance: float) -> str | None:
        data = find_symmetry(niggli, [[0.0, 0.0, 0.0]], [1], tolerance * size)
        name = None if data is None else _LATTICE_OF_GROUP.get(int(data.number))
        if name is not None and tolerance < closest.get(name, (np.inf,))[0]:
            closest[name] = tolerance, np.asarray(data.std_lattice)
        return name

    wide, *between, close = sorted(tolerances, reverse=True)
    name = look(wide)
    # what is no more than triclinic when it may be far off, or the same far and close, is so in between
    if name != "aP" and look(close) != name:
        for tolerance in between:
            look(tolerance)
    for name, (_, lattice) in sorted(closest.items(), key=lambda item: item[1][0]):
        found.setdefault(name, _in_order(name, cell_from_metric(lattice @ lattice.T)))
    return list(found.items())


def sparser(niggli, n: int) -> list[np.ndarray]:
    """Cells whose lines are a part of the lines of a lattice: all with an n times smaller volume, not reduced.

    Their reciprocal lattices are the sublattices of index ``n``, one for each integer matrix of determinant n in Hermite
    normal form.
    """
    star = reciprocal_metric(metric_of(niggli))
    return [cell_from_metric(np.linalg.inv(m @ star @ m.T)) for m in hermite_forms(n)]


def hermite_forms(n: int) -> list[np.ndarray]:
    """The integer matrices (3, 3) of determinant n in Hermite normal form: one for each sublattice of index n."""
    return [
        np.array([[i, p, q], [0, j, r], [0, 0, k]])
        for i, j, k in product(range(1, n + 1), repeat=3)
        if i * j * k == n
        for p, q, r in product(range(j), range(k), range(k))
    ]


def derivative_index(large, small, tolerance: float = 0.01) -> int:
    """Index n ≤ 6 of the sublattice that the Niggli cell ``large`` (n times the volume) is of ``small``; 0 if it is none.

    Every axis of the larger cell has to be a vector of the smaller one, angles between them included.
    """
    ratio = cell_volume(large) / cell_volume(small)
    n = round(ratio)
    if not 2 <= n <= 6 or abs(ratio / n - 1) > 2.5 * tolerance:
        return 0
    wanted, metric = metric_tensor(large), metric_tensor(small)
    vectors = np.array(list(product(range(-4, 5), repeat=3)))
    squares = np.einsum("ni,ij,nj->n", vectors, metric, vectors)
    choices = [vectors[np.abs(np.sqrt(squares / wanted[i, i]) - 1) < tolerance] for i in range(3)]
    near = lambda u, v, i, j: abs(u @ metric @ v - wanted[i, j]) < 2 * tolerance * np.sqrt(wanted[i, i] * wanted[j, j])  # noqa: E731
    for u in choices[0]:
        for v in choices[1]:
            if near(u, v, 0, 1) and any(near(u, w, 0, 2) and near(v, w, 1, 2) for w in choices[2]):
                return n
    return 0
