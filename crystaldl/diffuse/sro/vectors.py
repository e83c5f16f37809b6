"""Lattice vectors in the groups that share one Warren-Cowley parameter: shells, Laue orbits, classes of a plane.

An operation W moves fractional coordinates, and so lattice vectors, as ``R' = W R``; α is the same for the orbit, and for R
and -R. On a plane of reciprocal space with zone axis n (the lattice vector normal to it) all ``R + m n`` give the same
modulation, so only their sum ``A = Σ_m α(R + m n) exp(2πi m t)`` can be known, t being the offset of the plane (l of hkl for
n = [001]): the *projected* parameter. It is real for t = 0 or ½, and elsewhere where a mirror lies in the plane.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import DataError
from ...physics.lattice import cell_matrix, metric_tensor
from ..geometry import centring_vectors
from ..symmetry import laue_operations

__all__ = ["VectorOrbits", "in_lattice", "lattice_points", "vector_orbits", "zone_axis"]

SAME_LENGTH = 2e-3      # lattice vectors whose lengths differ by less (relative) are one shell
MAX_SHELLS = 60
_EPS = 1e-6


@dataclass(frozen=True, eq=False)
class VectorOrbits:
    """Groups of lattice vectors with one parameter each, shortest first.

    Attributes
    ----------
    vectors : (n, 3), a representative of each
    members : tuple of (m, 3) arrays
        All vectors of the orbit, R and -R. For a plane one vector for each in-plane class of the orbit.
    operations : (g, 3, 3) int, those of the class in use: of a plane, the ones that keep its zone axis or turn it round
    signs : (g,), +1 or -1 as they keep it or turn it round (+1 for all of a volume)
    distance : (n,) Å; for a plane the length of the projection along the zone axis
    zone_axis : (3,) array or None
        None for a volume, and for a plane in irrational orientation, where every vector is a class of its own.
    offset : float, t; 0 for a volume
    """

    vectors: np.ndarray
    members: tuple[np.ndarray, ...]
    operations: np.ndarray
    signs: np.ndarray
    distance: np.ndarray
    zone_axis: np.ndarray | None = None
    offset: float = 0.0

    @property
    def multiplicity(self) -> np.ndarray:
        return np.array([len(m) for m in self.members], dtype=int)

    @property
    def projected(self) -> bool:
        return self.zone_axis is not None

    @property
    def quadrature(self) -> bool:
        """Whether A may be complex: a plane at an offset other than a multiple of ½."""
        return self.projected and abs(2 * self.offset - round(2 * self.offset)) > _EPS

    def __len__(self) -> int:
        return len(self.vectors)


def in_lattice(vectors, centring: str, tolerance: float = 1e-3) -> np.ndarray:
    """(n,) bool: which fractional vectors are lattice vectors."""
    rest = np.asarray(vectors, dtype=float)[:, None, :] - centring_vectors(centring)
    return (np.abs(rest - np.round(rest)).max(-1) < tolerance).any(1)


def lattice_points(lattice, radius: float, centring: str = "P") -> np.ndarray:
    """All lattice vectors with 0 < |R| ≤ radius (Å), both signs, shortest first: (n, 3)."""
    metric = metric_tensor(lattice)
    reach = np.floor(radius * np.sqrt(np.diag(np.linalg.inv(metric))) + 1).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, 3)
    points = (grid[:, None, :] + centring_vectors(centring)).reshape(-1, 3)
    length = np.sqrt(np.einsum("ni,ij,nj->n", points, metric, points))
    keep = (length > _EPS) & (length <= radius * (1 + 1e-9))
    return points[keep][np.argsort(length[keep], kind="stable")]


def zone_axis(basis, centring: str = "P") -> np.ndarray | None:
    """The shortest lattice vector normal to two hkl vectors, or None where no short one is (irrational orientation)."""
    normal = np.cross(basis[0], basis[1])
    normal = normal / np.abs(normal).max()
    for sixths in range(1, 73):  # largest component in sixths of a cell edge
        trial = normal * (sixths / 6.0)
        if in_lattice(trial[None], centring, 1e-5)[0]:
            first = trial[np.flatnonzero(np.abs(trial) > _EPS)[-1]]
            return np.round(np.sign(first) * trial * 6) / 6 + 0.0
    return None


def vector_orbits(volume, shells=None, vectors=None, laue: str | None = None, centring: str = "P") -> VectorOrbits:
    """The parameters that a volume or plane can hold.

    Parameters
    ----------
    volume : DiffuseVolume (its geometry is used, not its data)
    shells : int
        Number of shells of equal length. A shell may hold several orbits.
    vectors : (n, 3) array_like, in place of shells
    laue : str or None
        Laue class; None sets only R and -R equal.
    centring : str, one of `geometry.CENTRING`

    Raises
    ------
    DataError
        Anything that is not as above; a class or centring that the lattice does not have; vectors that are none of
        the lattice's or that a plane cannot see.
    """
    operations = laue_operations(laue or "-1", volume.lattice)
    _check_centring(operations, centring, laue)
    axis = zone_axis(volume.basis, centring) if volume.ndim == 2 else None
    offset, signs = 0.0, np.ones(len(operations))
    if axis is not None:
        offset = float(volume.origin @ axis)
        turned = operations @ axis
        same, opposite = (np.abs(turned - s * axis).max(1) < _EPS for s in (1, -1))
        operations, signs = operations[same | opposite], np.where(same, 1.0, -1.0)[same | opposite]
    maker = _Maker(volume, operations, signs, axis, offset, centring)
    if vectors is not None:
        return maker.from_vectors(vectors)
    return maker.from_shells(_check_shells(shells))


def _check_shells(shells) -> int:
    if isinstance(shells, (bool, np.bool_)) or not isinstance(shells, (int, np.integer)) or not 1 <= shells <= MAX_SHELLS:
        raise DataError(f"shells is {shells!r}; expected a whole number from 1 to {MAX_SHELLS}.")
    return int(shells)


def _check_centring(operations, centring: str, laue) -> None:
    points = centring_vectors(centring)
    moved = np.einsum("gij,nj->gni", operations, points).reshape(-1, 3)
    if not in_lattice(moved, centring).all():
        raise DataError(f"laue is {laue!r} and centring {centring!r}; a lattice of that centring does not have this symmetry.")


class _Maker:
    """Sorts lattice vectors into orbits."""

    def __init__(self, volume, operations, signs, axis, offset, centring):
        self.volume, self.operations, self.signs = volume, operations, signs
        self.axis, self.offset, self.centring = axis, offset, centring
        metric = metric_tensor(volume.lattice)
        # a measured cell obeys its symmetry roughly: equivalent vectors get one length
        metric = np.einsum("gji,jk,gkl->il", operations, metric, operations) / len(operations)
        self.axis_length = 0.0
        self.metric, self.full = metric, metric
        if axis is not None:
            along = metric @ axis
            self.axis_length = float(np.sqrt(axis @ along))
            self.metric = metric - np.outer(along, along) / (axis @ along)

    def length(self, vectors, metric) -> np.ndarray:
        return np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", vectors, metric, vectors), 0.0))

    def key(self, vectors) -> np.ndarray:
        """What tells vectors apart here: themselves in a volume, their class in a plane; (n, 3 or 2) integers."""
        seen = vectors if self.axis is None else vectors @ self.volume.basis.T
        return np.round(np.asarray(seen) * 1e5).astype(np.int64)

    def from_shells(self, shells: int) -> VectorOrbits:
        a, b, c = np.linalg.norm(cell_matrix(self.volume.lattice), axis=1)
        radius = 1.05 * max(min(a, b, c), 1e-3) * np.sqrt(shells)
        while True:
            found = self._within(radius)
            distance = found[1]
            new = np.flatnonzero(np.diff(distance) > SAME_LENGTH * distance[1:]) + 1
            if len(new) >= shells:  # one more shell was begun, so the last asked for is whole
                return self._orbits(found[0][: new[shells - 1]])
            radius *= 1.25

    def _within(self, radius: float):
        """Vectors (shortest of each class) up to a projected length, and these lengths, sorted."""
        points = lattice_points(self.volume.lattice, float(np.hypot(radius, self.axis_length / 2)), self.centring)
        length = self.length(points, self.metric)
        keep = (length <= radius) & (np.abs(self.key(points)).max(1) > 0)
        points, length = points[keep], length[keep]
        order = np.lexsort((self._untidiness(points), np.round(self.length(points, self.full), 6), np.round(length, 6)))
        points, length = points[order], length[order]
        _, first = np.unique(self.key(points), axis=0, return_index=True)
        first.sort()
        first = first[[self._survives(p) for p in points[first]]]
        return points[first], length[first]

    @staticmethod
    def _untidiness(points) -> np.ndarray:
        """Low for the vector one would write down: small indices, few negative ones, falling: (1,1,0), not (0,-1,1)."""
        return np.abs(points).sum(1) + 2.0 * (points < -_EPS).sum(1) - points @ np.array([1e-2, 1e-4, 1e-6])

    def from_vectors(self, vectors) -> VectorOrbits:
        try:
            points = np.atleast_2d(np.asarray(vectors, dtype=float))
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise DataError(f"vectors is {vectors!r}; expected an (n, 3) array of lattice vectors.") from None
        if points.ndim != 2 or points.shape[1] != 3 or not len(points):
            raise DataError(f"vectors has the shape {points.shape}; expected (n, 3), one lattice vector a row.")
        good = np.isfinite(points).all(1)
        good[good] = in_lattice(points[good], self.centring)
        if not good.all():
            bad = ", ".join(f"{v:g}" for v in points[~good][0])
            raise DataError(f"vectors holds ({bad}), which is no vector of a {self.centring} lattice.")
        invisible = np.abs(self.key(points)).max(1) == 0
        if invisible.any():
            bad = ", ".join(f"{v:g}" for v in points[invisible][0])
            why = "which is α(000) = 1" if self.axis is None else "which this plane cannot tell from the origin"
            raise DataError(f"vectors holds ({bad}), {why}; expected other lattice vectors.")
        length = self.length(points, self.metric)
        return self._orbits(points[np.argsort(length, kind="stable")])

    def _orbits(self, points) -> VectorOrbits:
        taken: set[tuple] = set()
        chosen, members, distance = [], [], []
        for point in points:
            if tuple(self.key(point[None])[0]) in taken:
                continue
            images = np.concatenate([self.operations @ point, -(self.operations @ point)])
            keys = self.key(images)
            _, first = np.unique(keys, axis=0, return_index=True)
            taken.update(map(tuple, keys[first]))
            if not self._survives(point):
                continue
            best = images[np.argmin(self._untidiness(images))] if self.axis is None else point
            chosen.append(np.round(best, 6) + 0.0)
            members.append(_frozen(np.round(images[first], 6) + 0.0))
            distance.append(self.length(images[first], self.metric).mean())
        if not chosen:
            raise DataError("vectors leaves nothing to refine: symmetry makes every one of them vanish on this plane.")
        order = np.argsort(np.round(distance, 4), kind="stable")
        return VectorOrbits(
            _frozen(np.array(chosen)[order]), tuple(members[i] for i in order), self.operations, self.signs,
            _frozen(np.array(distance)[order]), self.axis, self.offset,
        )  # fmt: skip

    def _survives(self, point) -> bool:
        """Symmetry may send a class onto itself with the opposite sign (t = ½): such a parameter is zero."""
        if self.axis is None or abs(2 * self.offset - round(2 * self.offset)) > _EPS:
            return True
        images = self.operations @ point
        same = (self.key(images) == self.key(point[None])).all(1)
        steps = (images[same] - point) @ self.axis / (self.axis @ self.axis)
        return bool(np.abs(np.exp(2j * np.pi * self.offset * steps).sum()) > 0.5)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
