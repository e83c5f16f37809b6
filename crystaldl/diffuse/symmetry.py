"""Laue classes, and averaging a volume over the operations of one.

An operation is an integer matrix W that moves fractional coordinates as x' = W x; indices, as rows, move as
``hkl' = hkl @ W``, whatever the angles of the cell.  Intensities are those of a kinematic crystal: all 11 Laue classes
hold the inversion (Friedel's law).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from itertools import product

import gemmi
import numpy as np

from ..errors import DataError, PlausibilityWarning
from ..physics.lattice import metric_tensor
from .checks import check_number
from .grid import SNAP, interpolate, steps

__all__ = ["LAUE_CLASSES", "compatible", "laue_operations", "plane_operations", "symmetrize"]

# Name -> a space group in gemmi's table whose point group it is.
_GROUPS = {
    "-1": "P -1",
    "2/m": "P 1 2/m 1",
    "112/m": "P 1 1 2/m",
    "2/m11": "P 2/m 1 1",
    "mmm": "P m m m",
    "4/m": "P 4/m",
    "4/mmm": "P 4/m m m",
    "-3": "P -3",
    "-3m1": "P -3 m 1",
    "-31m": "P -3 1 m",
    "6/m": "P 6/m",
    "6/mmm": "P 6/m m m",
    "m-3": "P m -3",
    "m-3m": "P m -3 m",
}
_RHOMBOHEDRAL = {"-3": "R -3:R", "-3m1": "R -3 m:R"}
_ALIASES = {"12/m1": "2/m", "-3m": "-3m1", "m3": "m-3", "m3m": "m-3m"}

#: the names that `laue_operations` knows; "2/m" has its unique axis along b, "112/m" along c, "2/m11" along a, and
#: "-3m" stands for "-3m1"
LAUE_CLASSES = (*_GROUPS, "-3m")

#: how far the metric may be from the symmetry, as a cosine or twice a relative length: about 1° or 1 %
TOLERANCE = 0.02
# Weight of the pooled scatter in the variance of an orbit's own few values, in degrees of freedom.
_PRIOR = 4.0
_CHUNK = 4_000_000


@cache
def _operations(symbol: str) -> np.ndarray:
    group = gemmi.find_spacegroup_by_name(symbol).operations()
    matrices = np.unique([np.array(op.rot) // gemmi.Op.DEN for op in group.sym_ops], axis=0)
    return _identity_first(matrices)


def _identity_first(matrices: np.ndarray) -> np.ndarray:
    own = (matrices == np.eye(3, dtype=matrices.dtype)).all(axis=(1, 2))
    out = np.concatenate([matrices[own], matrices[~own]])
    out.setflags(write=False)
    return out


def laue_operations(laue: str, lattice=None) -> np.ndarray:
    """The operations of a Laue class in the axes of a lattice, the identity first.

    Parameters
    ----------
    laue : str
        One of `LAUE_CLASSES`.
    lattice : (6,) sequence, optional
        Cell in Å and degrees.  With it, "-3" and "-3m1" are also found on rhombohedral axes, and "m-3" and "m-3m" in
        the primitive setting of a centred cubic lattice; without it, standard axes are meant.

    Returns
    -------
    (n, 3, 3) ndarray of int, read-only

    Raises
    ------
    DataError
        An unknown class, or a lattice that does not have its symmetry.
    """
    name = "".join(str(laue).split()).lower() if isinstance(laue, str) else laue
    name = _ALIASES.get(name, name) if isinstance(name, str) else name
    if not isinstance(name, str) or name not in _GROUPS:
        raise DataError(f"laue is {laue!r}; expected one of {', '.join(LAUE_CLASSES)}.")
    matrices = _operations(_GROUPS[name])
    if lattice is None or compatible(matrices, lattice):
        return matrices
    if name in _RHOMBOHEDRAL and compatible(_operations(_RHOMBOHEDRAL[name]), lattice):
        return _operations(_RHOMBOHEDRAL[name])
    if name in ("m-3", "m-3m"):
        matrices = _lattice_symmetry(tuple(lattice))
        if len(matrices) == 48:
            return matrices if name == "m-3m" else _tetrahedral(matrices)
    cell = ", ".join(f"{v:g}" for v in lattice)
    raise DataError(f"laue is {laue!r}, a symmetry that the lattice ({cell}) does not have to within 1 % and 1°.")


def compatible(matrices, lattice, tolerance: float = TOLERANCE) -> bool:
    """Whether every operation keeps the metric tensor, Wᵀ G W = G, to ``tolerance`` of the lengths squared."""
    metric = metric_tensor(lattice)
    scale = np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    moved = np.einsum("nji,jk,nkl->nil", matrices, metric, matrices)
    return bool((np.abs(moved - metric) <= tolerance * scale).all())


@cache
def _lattice_symmetry(lattice: tuple[float, ...]) -> np.ndarray:
    """All integer matrices with elements -1, 0, 1 that keep the metric: the holohedry of a reduced cell."""
    matrices = np.array(list(product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
    matrices = matrices[np.abs(np.round(np.linalg.det(matrices))) == 1]
    metric = metric_tensor(lattice)
    scale = np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    moved = np.einsum("nji,jk,nkl->nil", matrices, metric, matrices)
    return _identity_first(matrices[(np.abs(moved - metric) <= TOLERANCE * scale).all(axis=(1, 2))])


def _tetrahedral(matrices: np.ndarray) -> np.ndarray:
    """m-3 out of m-3m: the threefold axes, the twofold axes that are squares of fourfold ones, and the inversion."""
    proper = matrices[np.round(np.linalg.det(matrices)) == 1]
    trace = np.trace(proper, axis1=1, axis2=2)
    fourfold = proper[trace == 1]
    kept = np.concatenate([proper[(trace == 3) | (trace == 0)], np.unique(fourfold @ fourfold, axis=0)])
    return _identity_first(np.concatenate([kept, -kept]))


# -- operations on a grid ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Map:
    """Index coordinates n of a pixel move to ``n @ matrix + shift``."""

    matrix: np.ndarray
    shift: np.ndarray

    def exact(self, shape) -> _Map | None:
        """The map in whole numbers, or None where it does not send nodes to nodes."""
        whole, shift = np.round(self.matrix), np.round(self.shift)
        corners = np.array(list(product(*((0, n - 1) for n in shape))))
        if np.abs(corners @ (self.matrix - whole) + self.shift - shift).max() > SNAP:
            return None
        return _Map(whole.astype(np.int64), shift.astype(np.int64))


def plane_operations(volume, laue: str) -> np.ndarray:
    """The operations of the class that keep the plane (all of them for a volume): (n, 3, 3), the identity first."""
    return _kept(volume, laue)[0]


def _kept(volume, laue: str) -> tuple[np.ndarray, list[_Map]]:
    if volume.lattice is None:
        raise DataError("the lattice of this plane is not known (from_pixels); its Laue symmetry needs hkl axes.")
    matrices = laue_operations(laue, volume.lattice)
    step = steps(volume)
    back = np.linalg.pinv(volume.basis)
    start = np.array([axis[0] for axis in volume.axes])
    first = volume.origin + start @ volume.basis
    extent = (np.array(volume.shape) - 1) * step
    kept, maps = [], []
    for matrix in matrices:
        vectors, corner = volume.basis @ matrix, first @ matrix - volume.origin
        leaves = np.abs(extent @ np.abs(vectors - vectors @ back @ volume.basis)).max()
        if max(leaves, np.abs(corner - corner @ back @ volume.basis).max()) > SNAP * step.min():
            continue
        kept.append(matrix)
        maps.append(_Map(step[:, None] * (vectors @ back) / step, (corner @ back - start) / step))
    return np.array(kept), maps


def symmetrize(volume, laue: str, *, outlier_sigma: float | None = 4.0):
    """Average over Laue-equivalent pixels; unmeasured ones are filled from what their equivalents measured.

    For a plane, only the operations that keep it are used.  Where the grid maps onto itself, pixels are matched one to
    one; otherwise equivalents are interpolated linearly from measured neighbours (uncertainties then take the
    interpolated values for independent).  The mean is not weighted: weights of counting data favour low counts.

    Parameters
    ----------
    volume : DiffuseVolume
    laue : str
        One of `LAUE_CLASSES`.
    outlier_sigma : float or None
        With three or more equivalents, a value is left out when it is further from their median than so many times
        the largest of: 1.4826 times the median absolute deviation (MAD), the typical scatter of equivalents of that
        intensity in this volume, its own sigma.  None keeps all.  Data of less than a few counts a pixel should be
        rebinned first, or keep all: their scatter is no bell curve.

    Returns
    -------
    DiffuseVolume
        With ``sigma``: propagated where the input has it, else the standard error of the equivalents' mean, their
        variance being shrunk towards that of equivalents of like intensity (four degrees of freedom).

    Raises
    ------
    DataError
        Unknown class, a lattice without that symmetry, or a plane without lattice.
    """
    if outlier_sigma is not None:
        outlier_sigma = check_number(outlier_sigma, "outlier_sigma", above=0.0)
    _, maps = _kept(volume, laue)
    if len(maps) == 1:
        warnings.warn(
            f"laue is {laue!r}, of which only the identity keeps this plane; nothing is averaged.",
            PlausibilityWarning,
            stacklevel=3,
        )
        return volume
    orbits = _Orbits(volume, maps)
    merge = _Merge(orbits, outlier_sigma)
    data, sigma = np.full(volume.data.size, np.nan), np.full(volume.data.size, np.nan)
    rejected = used = 0
    for part in np.array_split(orbits.targets, max(1, orbits.targets.size * len(maps) // _CHUNK)):
        data[part], sigma[part], n, bad = merge(part)
        used, rejected = used + n, rejected + bad
    data, sigma = (a[orbits.representative].reshape(volume.shape) for a in (data, sigma))
    filled = np.count_nonzero(np.isfinite(data) & ~volume.mask) / data.size
    return volume.replace(
        data=data,
        mask=None,
        sigma=sigma if np.isfinite(sigma).any() else None,
        history=f"symmetrize({laue!r}, outlier_sigma={outlier_sigma}): {len(maps)} operations, "
        f"{rejected / max(used, 1):.2%} rejected, {filled:.1%} filled",
    )


class _Orbits:
    """Which pixels are equivalent to which, and what they measured."""

    def __init__(self, volume, maps):
        self.volume = volume
        exact = [m.exact(volume.shape) for m in maps]
        self.exact = all(m is not None for m in exact)
        self.maps = exact if self.exact else maps
        everything = np.arange(volume.data.size)
        self.representative = self._representatives() if self.exact else everything
        self.targets = np.flatnonzero(self.representative == everything) if self.exact else everything

    def _representatives(self) -> np.ndarray:
        """The lowest flat index among the equivalents of each pixel: the maps form a group, so all agree."""
        shape = self.volume.shape
        lowest = np.arange(self.volume.data.size).reshape(shape)
        stride = np.array([int(np.prod(shape[i + 1 :])) for i in range(len(shape))])
        grids = np.ogrid[tuple(slice(n) for n in shape)]
        for m in self.maps:
            inside, flat = np.ones(shape, dtype=bool), int(m.shift @ stride)
            for j, n in enumerate(shape):
                place = sum((g * a for g, a in zip(grids, m.matrix[:, j], strict=True) if a), start=m.shift[j])
                inside &= (place >= 0) & (place < n)
            flat = flat + sum(g * a for g, a in zip(grids, m.matrix @ stride, strict=True))
            np.minimum(lowest, flat, out=lowest, where=inside)
        return lowest.ravel()

    def gather(self, pixels):
        """Values, sigmas (or None) of the equivalents, (n_maps, n), NaN where none, and how often a pixel meets itself."""
        volume, n = self.volume, pixels.size
        place = np.stack(np.unravel_index(pixels, volume.shape), axis=-1)
        values = np.full((len(self.maps), n), np.nan)
        sigmas = None if volume.sigma is None else values.copy()
        repeats = np.zeros(n, dtype=int)
        for i, m in enumerate(self.maps):
            moved = place @ m.matrix + m.shift
            repeats += (np.abs(moved - place) < 0.25).all(axis=1)
            if not self.exact:
                values[i], sigma = interpolate(volume, moved)
                if sigmas is not None:
                    sigmas[i] = sigma
                continue
            inside = ((moved >= 0) & (moved < volume.shape)).all(axis=1)
            flat = np.ravel_multi_index(tuple(moved[inside].T), volume.shape)
            values[i, inside] = volume.data.ravel()[flat]
            if sigmas is not None:
                sigmas[i, inside] = volume.sigma.ravel()[flat]
        return values, sigmas, repeats


class _Merge:
    """Robust mean and standard uncertainty of equivalents.

    A pixel on a symmetry element is met several times by itself, and so are all of its equivalents, equally often:
    medians and means do not mind, numbers of observations are divided by that count.
    """

    def __init__(self, orbits: _Orbits, outlier_sigma: float | None):
        self.orbits, self.limit = orbits, outlier_sigma
        self.level = self.scatter = self.variance = None
        n = orbits.targets.size
        sample = orbits.targets if n <= 50_000 else np.random.default_rng(0).choice(orbits.targets, 50_000, replace=False)
        self._learn(*orbits.gather(sample))

    def _learn(self, values, sigmas, repeats):
        """Typical scatter of equivalents, in bins of like intensity."""
        median, level, count = _median(values)
        enough = count >= 2 * repeats
        if np.count_nonzero(enough) < 20:
            return
        values, median, level, repeats = values[:, enough], median[enough], level[enough], repeats[enough]
        count = count[enough] / repeats
        deviation = np.abs(values - median) * np.sqrt(count / (count - 1))
        order = np.argsort(level, kind="stable")
        bins = np.array_split(order, int(np.clip(order.size // 50, 1, 24)))
        self.level = np.array([level[b].mean() for b in bins])
        # a tenth of the values may be outliers before the 90th percentile notices
        self.scatter = np.array([np.nanpercentile(deviation[:, b], 90) / 1.645 for b in bins])
        fallback = np.array([np.sqrt(np.nanmean(np.square(deviation[:, b]))) for b in bins])
        self.scatter = np.where(self.scatter > 0, self.scatter, fallback)
        # here pairs that contradict each other go as well: they tell nothing about what is usual
        usual = np.abs(values - median) <= 4.0 * np.interp(level, self.level, self.scatter)
        keep = usual & self._accept(values, None if sigmas is None else sigmas[:, enough], median, level, count)
        mean, n = _mean(values, keep)
        squares = np.where(keep, np.square(values - mean), 0.0).sum(axis=0) / repeats
        freedom = np.maximum(n / repeats - 1, 0)
        self.variance = np.array([squares[b].sum() / max(freedom[b].sum(), 1.0) for b in bins])

    def _accept(self, values, sigmas, median, level, count):
        """Which values stay: those near the median, by the largest of the three scales."""
        ok = np.isfinite(values)
        if self.limit is None:
            return ok
        deviation = np.abs(values - median)
        scale = 1.4826 * _median(deviation)[0]
        if self.level is not None:
            scale = np.maximum(scale, np.interp(level, self.level, self.scatter))
        scale = np.maximum(scale, 1e-9 * np.abs(median))
        scale = scale if sigmas is None else np.fmax(scale, sigmas)
        return ok & ((deviation <= self.limit * scale) | (count < 3))

    def __call__(self, pixels):
        """(mean, sigma, values met, values rejected) of these pixels."""
        values, sigmas, repeats = self.orbits.gather(pixels)
        median, level, count = _median(values)
        keep = self._accept(values, sigmas, median, level, count / repeats)
        mean, n = _mean(values, keep)
        met, bad = int(count.sum()), int(count.sum() - n.sum())
        n = n / repeats
        squares = np.where(keep, np.square(values - mean), 0.0).sum(axis=0) / repeats
        usual = np.nan if self.variance is None else np.interp(level, self.level, self.variance)
        with np.errstate(invalid="ignore", divide="ignore"):
            if sigmas is not None:
                known = keep & np.isfinite(sigmas)
                variance = usual = np.where(known, np.square(sigmas), 0.0).sum(axis=0) / known.sum(axis=0)
            elif self.variance is None:
                variance = np.where(n > 1, squares / (n - 1), np.nan)
            else:
                variance = (squares + _PRIOR * usual) / (np.maximum(n - 1, 0) + _PRIOR)
            of_mean = variance / n
            if self.limit is not None:
                # two that contradict each other: neither can be called the outlier, so the mean knows no better than both
                clash = (n == 2) & (squares > self.limit**2 * usual)
                of_mean = np.where(clash, np.maximum(of_mean, squares / 2), of_mean)
        return mean, np.sqrt(of_mean), met, bad


def _median(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median along axis 0 of the values that are not NaN, the lower of the middle two, and how many values these are.

    The lower one tells the intensity of two equivalents of which one is too bright.
    """
    ordered = np.sort(values, axis=0)  # NaN last
    count = np.isfinite(values).sum(axis=0)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(values) - 1)
    lower, upper = (np.take_along_axis(ordered, i[None], 0)[0] for i in (low, high))
    return 0.5 * (lower + upper), lower, count


def _mean(values, keep) -> tuple[np.ndarray, np.ndarray]:
    n = keep.sum(axis=0)
    return np.where(keep, values, 0.0).sum(axis=0) / np.where(n > 0, n, np.nan), n
