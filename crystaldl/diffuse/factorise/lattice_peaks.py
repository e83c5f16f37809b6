"""Lattices that the Fourier transform of a plane suggests: which of them its points stand out on.

Between the atoms of the two variants the transform is strong too, and nearer to the origin. But only lattice vectors go on to
any distance. So every value is compared with those of the same distance from the origin, and a lattice is judged by what all
its points have of that: by the evidence that, ring by ring, they are drawn from a wider distribution than the rest.
"""
from __future__ import annotations

import itertools
import math

import numpy as np
from numba import njit
from scipy.ndimage import maximum_filter, uniform_filter1d

FARTHEST = 0.36                 # cycles a pixel to which lattice points are looked at
RING = 0.02                     # cycles a pixel: width of the rings that share a variance
LARGEST = 25.0                  # times the mean square of its ring that a point counts at most
STRONGEST = 40                  # peaks that may span a lattice
KEPT = 12                       # lattices that are refined
BEHIND = 0.6                    # of the largest evidence: what another must have to be likely
INDICES = (2, 3)                # of a lattice in one that is tried in its place
REACHES = (0.12, 0.2, 0.3)      # cycles a pixel to which the points of a lattice are fitted, one after the other
SAME = 0.05                     # in units of one lattice that another may stray from it
PAD = 4                         # the transform is so many times finer than the plane

Transform = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Real part and the frequencies of its axes."""


def standing_out(transform: Transform) -> np.ndarray:
    """The transform over its root mean square at the same distance from the origin."""
    real, f0, f1 = transform
    step = f0[1] - f0[0]
    ring = (np.hypot(f0[:, None], f1[None]) / (PAD * step)).astype(int)
    number = np.bincount(ring.ravel())
    square = np.bincount(ring.ravel(), np.square(real).ravel()) / np.maximum(number, 1)
    level = uniform_filter1d(square, 7, mode="nearest")
    return real / np.sqrt(np.maximum(level, 1e-12 * level.max()))[ring]


def peaks_of(size: np.ndarray, f0: np.ndarray, f1: np.ndarray, nearest: float, count: int = STRONGEST) -> np.ndarray:
    """Frequencies of the largest maxima in a half plane, (n, 2)."""
    r = np.hypot(f0[:, None], f1[None])
    top = (maximum_filter(size, 9) == size) & (r > nearest) & (r < FARTHEST)
    top &= (f0[:, None] > 1e-9) | ((np.abs(f0[:, None]) <= 1e-9) & (f1[None] > 0))
    top[[0, -1]] = False
    top[:, [0, -1]] = False
    rows, columns = np.nonzero(top)
    order = np.argsort(-size[rows, columns], kind="stable")[:count]
    return np.array([_vertex(size, f0, f1, i, j) for i, j in zip(rows[order], columns[order], strict=True)]).reshape(-1, 2)


def _vertex(size: np.ndarray, f0: np.ndarray, f1: np.ndarray, i: int, j: int) -> tuple[float, float]:
    out = []
    for three, axis, index in ((size[i - 1 : i + 2, j], f0, i), (size[i, j - 1 : j + 2], f1, j)):
        below, here, above = three
        curve = below - 2.0 * here + above
        shift = 0.5 * (below - above) / curve if curve < 0 else 0.0
        out.append(axis[index] + float(np.clip(shift, -0.5, 0.5)) * (axis[1] - axis[0]))
    return out[0], out[1]


def reduced(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Lagrange's shortest basis of the lattice of two vectors, as rows."""
    for _ in range(100):
        if a @ a > b @ b:
            a, b = b, a
        turns = round(float(a @ b / (a @ a)))
        if turns == 0:
            break
        b = b - turns * a
    return np.array([a, b])


def lattice_points(dual: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Integers (n, 2) and points of a half plane of a lattice to a distance, the origin left out."""
    most = np.ceil(reach * np.linalg.norm(np.linalg.inv(dual), axis=0)).astype(int)
    index = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in most), indexing="ij"), -1).reshape(-1, 2)
    index = index[(index[:, 0] > 0) | ((index[:, 0] == 0) & (index[:, 1] > 0))]
    points = index @ dual
    near = np.hypot(*points.T) <= reach
    return index[near], points[near]


def lattice_evidence(size: np.ndarray, f0: np.ndarray, f1: np.ndarray, dual: np.ndarray, reach: float = FARTHEST) -> float:
    """Log evidence that the points of a lattice stand out: in each ring ``n (m − 1 − ln m) / 2`` of their mean square m."""
    most = np.ceil(reach * np.linalg.norm(np.linalg.inv(dual), axis=0)).astype(np.int64)
    start, step = np.array([f0[0], f1[0]]), np.array([f0[1] - f0[0], f1[1] - f1[0]])
    number, total = _rings_of_points(size, start, step, np.asarray(dual, dtype=np.float64), most, reach)
    some = number > 0
    mean = np.maximum(total[some] / number[some], 1.0)
    return 0.5 * float((number[some] * (mean - 1.0 - np.log(mean))).sum())


@njit(cache=True)
def _rings_of_points(size, start, step, dual, most, reach):
    """Number and sum of squares of the points of :func:`lattice_points` on the transform, ring by ring."""
    number, total = np.zeros(int(reach / RING) + 2), np.zeros(int(reach / RING) + 2)
    for p in range(most[0] + 1):
        for q in range(-most[1] if p > 0 else 1, most[1] + 1):
            x, y = p * dual[0, 0] + q * dual[1, 0], p * dual[0, 1] + q * dual[1, 1]
            length = math.hypot(x, y)
            if length > reach:
                continue
            i, j = int(np.rint((x - start[0]) / step[0])), int(np.rint((y - start[1]) / step[1]))
            if 0 <= i < size.shape[0] and 0 <= j < size.shape[1]:
                ring = int(length / RING)
                number[ring] += 1.0
                total[ring] += min(size[i, j] ** 2, LARGEST)
    return number, total


def finer_lattices(dual: np.ndarray) -> list[np.ndarray]:
    """The lattices in which one has the index 2 or 3."""
    a, b = dual
    out = []
    for n in INDICES:
        out += [reduced((a + k * b) / n, b) for k in range(n)] + [reduced(a, b / n)]
    return out


def coarser_lattices(dual: np.ndarray) -> list[np.ndarray]:
    """The lattices that have the index 2 or 3 in one."""
    a, b = dual
    out = []
    for n in INDICES:
        out += [reduced(n * a, b + k * a) for k in range(n)] + [reduced(a, n * b)]
    return out


def fitted(size: np.ndarray, f0: np.ndarray, f1: np.ndarray, dual: np.ndarray) -> np.ndarray:
    """A lattice laid through the maxima nearest to its points, further and further out."""
    for reach in REACHES:
        index, points = lattice_points(dual, reach)
        i = np.rint((points[:, 0] - f0[0]) / (f0[1] - f0[0])).astype(int)
        j = np.rint((points[:, 1] - f1[0]) / (f1[1] - f1[0])).astype(int)
        near = (i > 2) & (i < len(f0) - 3) & (j > 2) & (j < len(f1) - 3)
        found, weight = [], []
        for k, (row, column) in enumerate(zip(i, j, strict=True)):
            if not near[k]:
                found.append((0.0, 0.0))
                weight.append(0.0)
                continue
            around = size[row - 2 : row + 3, column - 2 : column + 3]
            up, left = np.unravel_index(int(around.argmax()), around.shape)
            clear = 0 < up < 4 and 0 < left < 4
            found.append(_vertex(size, f0, f1, row - 2 + int(up), column - 2 + int(left)))
            weight.append(max(float(around.max()) - 1.0, 0.0) if clear else 0.0)
        w = np.sqrt(weight)[:, None]
        if np.count_nonzero(w) < 3 or np.linalg.matrix_rank(index * w) < 2:
            return dual
        dual = np.linalg.lstsq(index * w, np.array(found) * w, rcond=None)[0]
    return reduced(*dual)


def likely_lattices(transform: Transform, nearest: float, count: int) -> list[np.ndarray]:
    """The lattices of the largest evidence, duals as rows (cycles a pixel), best first; those far behind left out.

    Parameters
    ----------
    transform : real part and frequencies
    nearest : float
        Cycles a pixel: no lattice vector is shorter.
    count : int
        How many to return.
    """
    _, f0, f1 = transform
    size = np.abs(standing_out(transform))
    peaks = np.concatenate([peaks_of(size, f0, f1, nearest), peaks_of(np.abs(transform[0]), f0, f1, nearest)])
    found: list[tuple[float, np.ndarray]] = []

    def add(dual: np.ndarray) -> None:
        if np.linalg.norm(dual[0]) < nearest or abs(np.linalg.det(dual)) < 0.15 * math.prod(np.linalg.norm(dual, axis=1)):
            return
        found.append((lattice_evidence(size, f0, f1, dual), dual))

    for a, b in itertools.combinations(peaks, 2):
        if abs(a[0] * b[1] - a[1] * b[0]) > 0.15 * np.linalg.norm(a) * np.linalg.norm(b):
            add(reduced(a, b))
    best = _different(found)
    for _ in range(3):              # a lattice found by its stronger points alone may lie in another
        found = []
        for value, dual in best:
            own = fitted(size, f0, f1, dual)
            found.append((value, dual))
            for other in (own, *finer_lattices(own)):
                add(other)
        best = _different(found)
    return [dual for value, dual in best[:count] if value >= BEHIND * best[0][0]]


def _different(found: list[tuple[float, np.ndarray]]) -> list[tuple[float, np.ndarray]]:
    """The best few, best first, without what is nearly the lattice of a better one."""
    out: list[tuple[float, np.ndarray]] = []
    inverse = np.zeros((0, 2, 2))
    for value, dual in sorted(found, key=lambda pair: -pair[0]):
        turn = dual @ inverse
        stray = np.abs(turn - np.rint(turn)).max((1, 2))
        if not np.any((stray < SAME) & (np.abs(np.abs(np.linalg.det(turn)) - 1.0) < 2.0 * SAME)):
            out.append((value, dual))
            inverse = np.concatenate([inverse, np.linalg.inv(dual)[None]])
        if len(out) == KEPT:
            break
    return out
