"""What the lattice says about a plane or a volume: which direct-space vectors its pixels can see.

A frequency ``f`` (cycles a unit of the axis coordinates) belongs to the direct-space vector whose projection on the plane
has the length ``2π sqrt(f · M⁻¹ · f)`` with the metric ``M`` of Q in the axis coordinates. The order is a sum over the
frequencies that are dual to the reciprocal lattice in the plane.
"""
from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..errors import DataError

CENTRING = {
    "P": ((0, 0, 0),),
    "A": ((0, 0, 0), (0, 1, 1)),
    "B": ((0, 0, 0), (1, 0, 1)),
    "C": ((0, 0, 0), (1, 1, 0)),
    "I": ((0, 0, 0), (1, 1, 1)),
    "F": ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)),
    "R": ((0, 0, 0), (4, 2, 2), (2, 4, 4)),
}
"""Lattice points of the centred cells: in halves of the cell edges, in sixths for R (obverse setting)."""


def centring_vectors(centring: str) -> np.ndarray:
    """Lattice points in one cell, (n, 3), in fractions of the edges."""
    letter = centring.strip().upper() if isinstance(centring, str) else centring
    if not isinstance(letter, str) or letter not in CENTRING:
        raise DataError(f"centring is {centring!r}, expected one of {', '.join(CENTRING)}.")
    centring = letter
    return np.array(CENTRING[centring], dtype=float) / (6.0 if centring == "R" else 2.0)


def allowed(hkl: np.ndarray, centring: str) -> np.ndarray:
    """Whether integer ``hkl`` (..., 3) are points of the reciprocal lattice, not extinct by the centring."""
    phase = np.asarray(hkl) @ centring_vectors(centring).T
    return np.all(np.abs(phase - np.round(phase)) < 1e-6, axis=-1)


@dataclass(frozen=True, eq=False)
class PlaneLattice:
    """The lattice as a plane or volume sees it.

    Attributes
    ----------
    nodes : (ndim, ndim) ndarray
        Rows: primitive vectors of the reciprocal lattice within the plane, in axis coordinates.
    dual : (ndim, ndim) ndarray
        Rows: primitive frequencies of the order, ``dual @ nodes.T = 1``.
    metric : (ndim, ndim) ndarray
        ``|r|² = f · metric · f`` of a frequency, Å² (units of 1/pixel² where the scale is unknown).
    shift : (ndim,) ndarray
        A node lies at this point of axis coordinates (all zeros for planes through a reciprocal-lattice point).
    even_order, even_factor : bool
        Whether S(x) = S(−x) and D(x) = D(−x) about the centre.
    centre : (ndim,) ndarray, optional
        Centre in axis coordinates; the coordinate origin when left out.
    """

    nodes: np.ndarray
    dual: np.ndarray
    metric: np.ndarray
    shift: np.ndarray
    has_nodes: bool
    even_order: bool
    even_factor: bool
    centre: np.ndarray | None = None

    def length(self, frequency: np.ndarray) -> np.ndarray:
        """Length of frequencies (..., ndim), Å."""
        return np.sqrt(np.einsum("...i,ij,...j->...", frequency, self.metric, frequency))

    @property
    def cell_measure(self) -> float:
        """Area (volume) of the primitive direct cell seen by the plane, Å² (Å³)."""
        return float(abs(np.linalg.det(self.dual)) * math.sqrt(np.linalg.det(self.metric)))

    def distance_to_node(self, axes: tuple[np.ndarray, ...], steps: np.ndarray) -> np.ndarray:
        """Distance of every pixel to the nearest node of the plane, in pixels."""
        x = np.stack(np.meshgrid(*axes, indexing="ij"), -1) - self.shift
        u = x @ self.dual.T
        base = np.floor(u)
        best = np.full(u.shape[:-1], np.inf)
        for corner in itertools.product((0, 1), repeat=u.shape[-1]):
            offset = (u - base - np.array(corner)) @ self.nodes
            best = np.minimum(best, np.square(offset / steps).sum(-1))
        return np.sqrt(best)


def plane_lattice(volume, centring: str = "P") -> PlaneLattice:
    """The lattice of a `DiffuseVolume` with known cell."""
    basis, origin = np.asarray(volume.basis, float), np.asarray(volume.origin, float)
    ndim = len(basis)
    nodes = reduce_basis(_nodes_in_span(basis, centring), np.asarray(volume.q_metric(), float))
    dual = np.linalg.inv(nodes).T
    metric = 4.0 * math.pi**2 * np.linalg.inv(volume.q_metric())
    shift, has_nodes = _node_shift(basis, origin, centring)
    twice = _node_shift(basis, 2.0 * origin, centring)
    through_origin = np.linalg.norm(origin - basis.T @ np.linalg.lstsq(basis.T, origin, rcond=None)[0]) < 1e-6
    # S(x) = S(-x): −Q = −o − x must differ from o − x by a node, and the node's in-plane part be a period; whether a node
    # lies at x = 0 does not matter
    even_order = ndim == 3 or bool(twice[1] and _is_period(twice[0], dual))
    return PlaneLattice(nodes, dual, metric, shift, has_nodes, even_order,
                        bool(through_origin and not np.any(np.abs(origin) > 1e-9)))


def pixel_lattice(nodes: np.ndarray, centre: np.ndarray | None = None) -> PlaneLattice:
    """A plane without a scale from its nodes in pixels; lengths come out in units of 1/pixel.

    ``centre`` is the centre of inversion in axis coordinates. Without it neither S nor D is taken to be even.
    """
    where = np.zeros(len(nodes)) if centre is None else np.asarray(centre, float)
    even = centre is not None
    return PlaneLattice(nodes, np.linalg.inv(nodes).T, np.eye(len(nodes)), where, even, even, even, where)


def _is_period(x: np.ndarray, dual: np.ndarray) -> bool:
    u = dual @ x
    return bool(np.all(np.abs(u - np.round(u)) < 1e-6))


def _nodes_in_span(basis: np.ndarray, centring: str) -> np.ndarray:
    """Short reciprocal-lattice vectors within the span of ``basis``, as axis coordinates, (n, ndim)."""
    reach = 6
    grid = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    grid = grid[np.any(grid != 0, axis=1) & allowed(grid, centring)]
    coordinates, _, rank, _ = np.linalg.lstsq(basis.T, grid.T.astype(float), rcond=None)
    inside = np.abs(basis.T @ coordinates - grid.T).max(0) < 1e-6
    found = coordinates[:, inside].T
    if np.linalg.matrix_rank(found, tol=1e-6) < len(basis):
        raise DataError(
            "the plane contains no two reciprocal-lattice directions with indices up to 6; expected one such as 'hk0' or 'hhl'.")
    return found


def reduce_basis(vectors: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """Primitive basis (rows) of the lattice spanned by ``vectors``: the shortest, nearest to the axes where they tie."""
    length = np.einsum("ni,ij,nj->n", vectors, metric, vectors)
    leading = np.sum(np.abs(vectors) > 1e-9, axis=1) + 0.01 * (vectors < -1e-9).sum(1)
    order = np.lexsort((leading, np.round(length / length.max(), 9)))
    chosen: list[np.ndarray] = []
    for vector in vectors[order]:
        trial = np.array([*chosen, vector])
        gram = trial @ metric @ trial.T
        if np.linalg.det(gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))) > 1e-6:
            chosen.append(vector)
        if len(chosen) == vectors.shape[1]:
            break
    rows = np.array(chosen)
    # rows in the order of the axes they follow, pointing up: keeps aligned planes aligned
    best = max(itertools.permutations(range(len(rows))), key=lambda p: sum(abs(rows[p[i], i]) for i in range(len(rows))))
    rows = rows[list(best)]
    return rows * np.sign(np.where(np.abs(np.diag(rows)) > 1e-9, np.diag(rows), 1.0))[:, None]


def _node_shift(basis: np.ndarray, origin: np.ndarray, centring: str) -> tuple[np.ndarray, bool]:
    """Axis coordinates of a reciprocal-lattice point of the plane ``origin + span(basis)``, and whether it has any."""
    reach = 6
    grid = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    grid = grid[allowed(grid, centring)]
    offset = grid - origin
    coordinates = np.linalg.lstsq(basis.T, offset.T, rcond=None)[0]
    on = np.abs(basis.T @ coordinates - offset.T).max(0) < 1e-6
    if not on.any():
        return np.zeros(len(basis)), False
    points = coordinates[:, on].T
    return points[np.argmin(np.square(points).sum(1))], True


def denominators(dual: np.ndarray) -> tuple[int, ...]:
    """Smallest integers that turn every dual frequency into integers, an axis each; 0 where there is none up to 12."""
    out = []
    for column in dual.T:
        parts = [Fraction(float(v)).limit_denominator(12) for v in column]
        exact = all(abs(float(p) - v) < 1e-7 for p, v in zip(parts, column, strict=True))
        out.append(math.lcm(*(p.denominator for p in parts)) if exact else 0)
    return tuple(out)


def axis_scales(dual: np.ndarray) -> np.ndarray:
    """What to divide the coordinates' frequencies by so that `denominators` finds integers, where lattice rows run along the axes.

    1 where the frequencies are rational already, or where nothing makes them so; the longest along the axis otherwise (pixels,
    or a unit that has nothing to do with the cell).
    """
    out = np.ones(dual.shape[1])
    for i, (column, known) in enumerate(zip(dual.T, denominators(dual), strict=True)):
        longest = float(np.abs(column).max())
        if not known and longest > 0 and denominators(column[:, None] / longest)[0]:
            out[i] = longest
    return out


def half_space(index: np.ndarray, *, zero: bool = True) -> np.ndarray:
    """Which integer vectors (n, ndim) to keep so that of r and −r only one stays: first non-zero index positive.

    ``zero`` says whether the vector 0 stays.
    """
    index = np.atleast_2d(np.asarray(index))
    sign = np.zeros(len(index), dtype=int)
    for column in index.T:
        sign = np.where(sign == 0, np.sign(column), sign)
    return sign >= 0 if zero else sign > 0


def vectors_within(rows: np.ndarray, metric: np.ndarray, radius: float) -> np.ndarray:
    """Integer combinations ``n`` of the frequency rows with ``|n @ rows| ≤ radius`` (Å), half space, nearest first."""
    gram = rows @ metric @ rows.T
    reach = np.floor(radius * np.sqrt(np.diag(np.linalg.inv(gram))) + 1e-9).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, len(rows))
    length = np.sqrt(np.einsum("ni,ij,nj->n", grid, gram, grid))
    keep = (length <= radius * (1 + 1e-9)) & half_space(grid)
    return grid[keep][np.argsort(length[keep], kind="stable")]
