"""`find_lattice`: the repeat of the order in a plane whose lattice is not known.

The order makes the intensity repeat; the form factor makes it fade. The Fourier transform of the intensity over its
smooth envelope (a two-dimensional ΔPDF in units of 1/pixel) therefore has peaks at the lattice vectors, on top of the
short interatomic vectors. The lattices on whose points it stands out (`lattice_peaks`) go through a coarse factorisation each.

An interatomic vector that is nearly a simple fraction of a lattice vector puts strong points between those of the lattice, at
every distance, so the likeliest lattice may hold the true one with an index of 2 to 18. Therefore the lattices that have the
index 2 or 3 in the best go through the same, for as long as one of them is better. Factorisation tells them apart by far: what
is between two lattice points is the form factor's then, at any distance.
"""
from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ...errors import DataError
from ..geometry import PlaneLattice, pixel_lattice, reduce_basis
from .lattice_peaks import BEHIND, coarser_lattices, lattice_evidence, likely_lattices, standing_out
from .looks import FIRST_SUPPORT, STUCK
from .search import Fit
from .states import Factors
from .unknowns import Arrays, arrays_of, default_reach, largest_support

SEEDS = 6                       # lattices that are tried by a factorisation
SHORTEST = 3.0                  # repeats an extent: a cell must repeat at least so often along its rows
CLOSEST = 7.0                   # pixels between nodes, at least
CENTRED = 0.6                   # of the typical difference of opposite pixels: what the centre must stay below
THINNED, CLOSEST_CENTRES = 4, 10    # of so many rows one, on which all centres are compared; of the best all rows
ROUNDS = 5                      # from a lattice to a coarser one, at most
CLOSE = 0.06                    # log evidence a pixel within which a brief fit does not decide
WIDEST = 2.0                    # cells: support up to which a brief fit goes, for molecules longer than a cell
FINALISTS = 3                   # of those, that are compared once more
FAR = 0.5                       # log evidence a pixel behind the best, from where no other form of S is tried
DRIFT = 0.01                    # of the cell: what a brief fit may change of it before it is thought to have run astray
SNAP = 1.2                      # pixels over the whole plane that a row may stray from the pixel axis it is laid on


NO_REPEAT = "no repeat stands out in the plane, so its lattice cannot be found; expected the lattice to be given."


def find_centre(volume, reach: float = 6.0) -> np.ndarray | None:
    """Centre of inversion of a plane in axis coordinates, to half a pixel; None where the plane has none.

    Friedel's law makes a plane through the origin even. All half-pixel centres within ``reach`` of the coordinate origin are
    compared by the mean difference of opposite pixels; the best must be far better than the rest.
    """
    data, mask = np.where(volume.mask, volume.data, 0.0), np.array(volume.mask)
    middle = [int(round(-2 * float(axis[0] / (axis[1] - axis[0])))) for axis in volume.axes]
    reach = int(2 * reach)

    def difference(shift: tuple[int, int], every: int = 1) -> float:
        """Mean difference of opposite pixels of every so many rows over their mean; infinite where there are too few."""
        take = [m + s - np.arange(0, n, k) for m, s, n, k in zip(middle, shift, data.shape, (every, 1), strict=True)]
        rows, columns = ((t >= 0) & (t < n) for t, n in zip(take, data.shape, strict=True))
        first, last = np.flatnonzero(columns)[[0, -1]] if columns.any() else (0, -1)
        here = np.arange(0, len(data), every)[rows], slice(first, last + 1)
        there = take[0][rows], take[1][columns]
        one, other = data[here], data[there[0]][:, there[1]]
        both = mask[here] & mask[there[0]][:, there[1]]
        total = one[both].sum()
        if both.sum() <= 0.1 * mask[::every].sum() or not total > 0:
            return math.inf
        return float(np.abs(one - other)[both].sum() / total)

    shifts = list(itertools.product(range(-reach, reach + 1), repeat=2))
    found = sorted((difference(shift, THINNED), shift) for shift in shifts)
    known = [value for value, _ in found if math.isfinite(value)]
    if not known:
        return None
    found = sorted((difference(shift), shift) for _, shift in found[:CLOSEST_CENTRES])
    if found[0][0] > CENTRED * np.median(known):
        return None
    steps = np.array([float(axis[1] - axis[0]) for axis in volume.axes])
    start = np.array([float(axis[0]) for axis in volume.axes])
    return start + 0.5 * (np.array(middle) + np.array(found[0][1])) * steps


def find_lattice(volume, options, *, centre: np.ndarray | None = None, device: torch.device | str = "cpu") -> np.ndarray:
    """Primitive reciprocal-lattice vectors of a plane, in pixels.

    Parameters
    ----------
    volume : DiffuseVolume
        From `DiffuseVolume.from_pixels`; the beam centre is the origin.
    options : FactoriseOptions
    centre : (2,) ndarray, optional
        From `find_centre`.
    device : torch.device

    Returns
    -------
    (2, 2) ndarray
        Rows: nodes of the plane relative to the origin, in axis coordinates (pixels).

    Raises
    ------
    DataError
        No repeat stands out.
    """
    flat, _ = flattened(volume)
    transform = _transform(flat, volume.axes)
    size = np.abs(standing_out(transform))
    cells = likely_lattices(transform, SHORTEST / min(volume.shape), SEEDS)
    if not cells:
        raise DataError(NO_REPEAT)
    least = BEHIND * lattice_evidence(size, *transform[1:], cells[0])
    coarse = volume.rebin(2) if min(volume.shape) >= 160 else volume
    links = tuple(link for link in options.links if link != "positive") or options.links
    quick = replace(options, links=links, background=0, polish=True, support=None, reach=None)
    tried: list[tuple[float, np.ndarray, np.ndarray]] = []
    brief = BriefFit(coarse, quick, device)

    def attempt(dual: np.ndarray) -> None:
        nodes = _laid(dual, volume.shape)
        if nodes is not None and not any(_same(nodes, known, volume.shape) for _, known, _ in tried):
            value, refined = brief(pixel_lattice(nodes, centre))
            tried.append((value, nodes, refined))

    for dual in cells:
        attempt(dual)
    if not tried:
        raise DataError(NO_REPEAT)
    for _ in range(ROUNDS):
        best = max(tried, key=lambda entry: entry[0])
        for dual in coarser_lattices(np.linalg.inv(best[1]).T):
            if lattice_evidence(size, *transform[1:], dual) >= least:
                attempt(dual)
        if max(tried, key=lambda entry: entry[0]) is best:
            break
    return _decided(volume, [entry for entry in tried if entry[0] > best[0] - CLOSE * float(coarse.mask.sum())],
                    replace(quick, links=options.links), centre, device)


def _decided(volume, found: list[tuple[float, np.ndarray, np.ndarray]], options, centre, device) -> np.ndarray:
    """The best of lattices that a brief fit can hardly tell apart, by a longer one at full resolution."""
    found = sorted(found, key=lambda entry: -entry[0])[:FINALISTS]
    if len(found) == 1:
        return found[0][2]
    return max((coarse_fit(volume, pixel_lattice(nodes, centre), options, device, whole=True) for _, nodes, _ in found),
               key=lambda entry: entry[0])[1]


def _laid(dual: np.ndarray, shape) -> np.ndarray | None:
    """Nodes in pixels, laid on pixel axes where they nearly are; None where they are too close or too far apart."""
    rows = reduce_basis(_combinations(dual), np.eye(2))
    nodes = _along_axes(np.linalg.inv(rows).T, shape)
    nodes = reduce_basis(_combinations(nodes), np.eye(2))
    length = np.linalg.norm(nodes, axis=1)
    return nodes if length.min() >= CLOSEST and length.max() * SHORTEST <= max(shape) else None


def _along_axes(nodes: np.ndarray, shape) -> np.ndarray:
    """The same nodes, on the pixel axes where those of a rectangular or a centred rectangular lattice nearly are."""
    around = _combinations(nodes)
    edges = []
    for i in (0, 1):
        along = around[(np.abs(around[:, 1 - i]) * shape[i] < SNAP * around[:, i]) & (around[:, i] > 0)]
        if not len(along):
            return nodes
        edges.append(float(along[:, i].min()))
    number = edges[0] * edges[1] / abs(np.linalg.det(nodes))
    if abs(number - round(number)) > 0.05 or round(number) not in (1, 2):
        return nodes
    if round(number) == 1:
        return np.diag(edges)
    return 0.5 * np.array([[edges[0], edges[1]], [edges[0], -edges[1]]])


def _same(a: np.ndarray, b: np.ndarray, shape) -> bool:
    u = a @ np.linalg.inv(b)
    repeats = max(shape) / np.linalg.norm(b, axis=1).min()
    return bool(np.all(np.abs(u - np.round(u)) < 0.25 / repeats) and abs(abs(np.linalg.det(np.round(u))) - 1) < 1e-6)


def coarse_fit(volume, lattice: PlaneLattice, options, device, *, whole: bool = False) -> tuple[float, np.ndarray]:
    """Evidence of a factorisation with these nodes, brief or ``whole`` as it is at full length, and the nodes as refined.

    Support and reach are those of the lattice's own cell: a molecule fits into the right one, and not into a part of it.
    """
    if not whole:
        return BriefFit(volume, options, device)(lattice)
    arrays = arrays_of(volume, lattice, torch.device(device))
    best = Fit(arrays, options, default_reach(arrays)).choose(arrays.valid)[2]
    return best.evidence, _refined(lattice, arrays, best)


class BriefFit:
    """Brief factorisations of one plane with one lattice after the other.

    The form of S that has done best so far comes first; where it is far behind what it did then, no other is tried.
    """

    def __init__(self, volume, options, device) -> None:
        self.volume, self.options, self.device = volume, options, torch.device(device)
        self.links = list(options.links)
        self.best = -math.inf

    def __call__(self, lattice: PlaneLattice) -> tuple[float, np.ndarray]:
        """Evidence and nodes as refined."""
        arrays = arrays_of(self.volume, lattice, self.device)
        reach = max(min(default_reach(arrays), 4.5 * arrays.cell), 1.01 * float(lattice.length(lattice.dual).max()))
        fit = Fit(arrays, self.options, reach)
        support = min(FIRST_SUPPORT * arrays.cell, 0.7 * largest_support(arrays))
        found: dict[str, Factors] = {}
        for link in self.links:
            found[link] = fit.solve(arrays.valid, support, link, iterations=10, tolerance=5e-3, look=STUCK)
            if found[link].evidence < self.best - FAR * float(arrays.valid.sum()):
                break
        link = max(found, key=lambda name: found[name].evidence)
        best = fit.grown(arrays.valid, support, link, found[link], WIDEST * arrays.cell)[1]
        if best.evidence > self.best:
            self.best = best.evidence
            self.links.sort(key=lambda name: name != link)
        return best.evidence, _refined(lattice, arrays, best)


def _refined(lattice: PlaneLattice, arrays: Arrays, found: Factors) -> np.ndarray:
    """Nodes after a fit, unless it has run astray."""
    start, end = arrays.grid.to_lattice.cpu().numpy(), found.state.grid.to_lattice.cpu().numpy()
    moved = start @ np.linalg.inv(end)
    return lattice.nodes @ (moved if np.abs(moved - np.eye(len(moved))).max() < DRIFT else np.eye(len(moved)))


def _combinations(nodes: np.ndarray) -> np.ndarray:
    grid = np.array([n for n in itertools.product(range(-3, 4), repeat=2) if any(n)])
    return grid @ nodes


def flattened(volume) -> tuple[np.ndarray, np.ndarray]:
    """Intensity over its smooth envelope, minus 1; 0 where not measured."""
    mask = np.array(volume.mask)
    data = np.where(mask, volume.data, 0.0)
    cap = np.percentile(data[mask], 99.5)
    data = np.minimum(data, cap)
    width = 0.08 * min(volume.shape)
    covered = gaussian_filter(mask.astype(float), width, mode="constant")
    smooth = gaussian_filter(data, width, mode="constant") / np.maximum(covered, 1e-3)
    floor = 0.05 * np.percentile(smooth[mask], 90)
    flat = np.where(mask, data / np.maximum(smooth, floor) - 1.0, 0.0)
    flat[mask] -= flat[mask].mean()
    return flat, mask


def _transform(flat: np.ndarray, axes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Real part of the windowed, fourfold padded transform and the frequencies of its axes, cycles a pixel."""
    n, m = flat.shape
    window = np.outer(np.hanning(n + 2)[1:-1], np.hanning(m + 2)[1:-1])
    sizes = (4 * n, 4 * m)
    spectrum = np.fft.fft2(flat * window, s=sizes)
    f0, f1 = np.fft.fftfreq(sizes[0]), np.fft.fftfreq(sizes[1])
    # coordinates start at axes[i][0], so that an even pattern is real
    phase = np.exp(-2j * np.pi * (f0[:, None] * axes[0][0] + f1[None] * axes[1][0]))
    real = np.fft.fftshift((spectrum * phase).real) / window.sum()
    return real, np.fft.fftshift(f0), np.fft.fftshift(f1)
