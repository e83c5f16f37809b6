"""A volume or plane as the unknowns of a factorisation: tensors, support of the Patterson function, lattice vectors."""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from scipy.optimize import nnls
from torch import Tensor

from ...errors import DataError
from ..geometry import PlaneLattice, axis_scales, denominators, vectors_within
from .fourier import FourierGrid, cell_place
from .rings import Radial
from .states import Basis, State

PADDING = 1.15                  # repeat of D over extent of the data: room for values that do not match at the edges
EDGE = 1.5                      # zones of that room at least
ONE_SIDED = 1.2                 # times as many unknowns, beyond which an even D is not worth its cosines
SHELL = 0.4                     # width of the Patterson shells that share a prior variance, Å
SHELL_CELLS = 0.07              # the same where the scale of Q is not known, in cells
MOST = {2: (1300, 230), 3: (3000, 300)}
"""Most unknowns of D and of S, by dimension."""
RESOLVED = 0.8                  # cycles a pixel of the finest order frequency: zones fall differently on the pixels
SAME = 0.5                      # the same where all zones fall alike on the pixels
ALIKE = 0.02                    # pixels that zones may stray from that over the whole of the data
FALL_WIDTHS = (0.05, 0.15, 0.4)     # of |Q|² as a fraction of its largest, over which the scattering of atoms falls
VECTOR_RADIUS = 0.9             # Å around each interatomic vector of a given structure


@dataclass(frozen=True, eq=False)
class Arrays:
    """The data as tensors, and the lattice in the coordinates of the Fourier sums."""

    intensity: Tensor
    valid: Tensor
    sigma: Tensor | None
    grid: FourierGrid
    dual: np.ndarray                 # (ndim, ndim) rows: order frequencies in the coordinates u
    metric: np.ndarray               # of frequencies in the coordinates u, Å²
    denominators: tuple[int, ...]
    lattice: PlaneLattice
    radius: Tensor                   # |Q| of the pixels as a fraction of the largest
    cell: float                      # mean repeat, Å
    even: tuple[bool, bool]          # D, S
    to_frequency: np.ndarray | None  # (3, ndim): Cartesian Å to frequencies in u; None where the scale is not known


def arrays_of(volume, lattice: PlaneLattice, device: torch.device) -> Arrays:
    """Tensors of a volume or plane (float64; unmeasured pixels are 0 with ``valid`` False)."""
    data = torch.as_tensor(np.where(volume.mask, volume.data, 0.0), dtype=torch.float64, device=device)
    valid = torch.as_tensor(np.array(volume.mask), device=device)
    sigma = _uncertainties(volume)
    if sigma is not None:
        sigma = torch.as_tensor(sigma, dtype=torch.float64, device=device)
    centre = np.zeros(volume.ndim) if lattice.centre is None else lattice.centre
    axes = tuple(torch.as_tensor(axis - c, dtype=torch.float64, device=device)
                 for axis, c in zip(volume.axes, centre, strict=True))
    ndim = volume.ndim
    scale = axis_scales(lattice.dual)
    dual = lattice.dual / scale
    parts = denominators(dual)
    if all(parts):
        to_lattice, metric = np.diag(scale), lattice.metric * np.outer(scale, scale)
    else:                                   # lattice rows run across the pixels
        to_lattice, dual, parts = lattice.dual.T, np.eye(ndim), (1,) * ndim
        metric = lattice.dual @ lattice.metric @ lattice.dual.T
    divisions, even_factor = _divisions([a.numpy(force=True) for a in axes], to_lattice, parts, lattice.even_factor)
    grid = FourierGrid(axes, torch.as_tensor(to_lattice, dtype=torch.float64, device=device), divisions)
    x = np.stack(np.meshgrid(*volume.axes, indexing="ij"), -1)
    to_frequency = None
    if volume.lattice is None:
        q2 = np.square(x - centre).sum(-1)
    else:
        q2 = np.square(volume.q())
        to_frequency = (volume.basis @ volume.reciprocal_basis()).T @ np.linalg.inv(to_lattice).T / (2.0 * math.pi)
    radius = torch.as_tensor(np.sqrt(q2 / q2.max()), device=device)
    cell = lattice.cell_measure ** (1.0 / ndim)
    return Arrays(data, valid, sigma, grid, dual, metric, parts, lattice, radius, cell,
                  (even_factor, lattice.even_order), to_frequency)


def _divisions(axes, to_lattice: np.ndarray, parts: tuple[int, ...], even: bool) -> tuple[tuple[int, ...], bool]:
    """Steps of direct space a lattice vector, so that D need not repeat within the data, and whether D is taken for even.

    D must be free at the edges over the width of its finest detail, about a zone. An even one repeats its mirror image too:
    data that lie on one side of the centre need room for both, or, where that is many more unknowns, sines.
    """

    def padded(extent: list[float]) -> tuple[int, ...]:
        return tuple(int(math.ceil(max(PADDING * e, e + EDGE * p) / p)) * p for e, p in zip(extent, parts, strict=True))

    corners = corner_spread(axes, to_lattice)
    plain = padded([float(np.ptp(c)) for c in corners])
    mirrored = padded([2.0 * float(np.abs(c).max()) for c in corners])
    even = even and 0.5 * math.prod(mirrored) <= ONE_SIDED * math.prod(plain)
    return (mirrored if even else plain), even


def _uncertainties(volume) -> np.ndarray | None:
    """Given σ with gaps filled; None where there are none, or where they are only the square roots of the counts themselves.

    Weights from a pixel's own count favour what fluctuated down; the variance is then taken from the model instead.
    """
    if volume.sigma is None:
        return None
    sigma = np.where(volume.mask, np.nan_to_num(volume.sigma), 0.0)
    known = sigma[volume.mask] > 0
    if not known.any():
        return None
    variance, counts = np.square(sigma[volume.mask][known]), volume.data[volume.mask][known]
    bright = counts > np.median(counts)
    if bright.sum() > 20 and np.median(counts) > 0:
        ratio = variance[bright] / counts[bright]
        if np.median(np.abs(ratio / np.median(ratio) - 1.0)) < 1e-3:
            return None
    return np.where(sigma > 0, sigma, np.median(sigma[volume.mask][known]))


def corner_spread(axes, to_lattice: np.ndarray) -> list[np.ndarray]:
    corners = np.array(np.meshgrid(*[[a[0], a[-1]] for a in axes], indexing="ij")).reshape(len(axes), -1).T
    return list((corners @ to_lattice).T)


# ---------------------------------------------------------------------- basis


def envelope_of(arrays: Arrays, valid: Tensor, bins: int = 24, *, falling: bool = True) -> Tensor:
    """Smooth radial fall-off ``g(|Q|)`` of the intensity: mean in rings, a falling curve through its logarithm.

    As atoms scatter, ``log g`` falls all the way, ever more slowly but for the Debye-Waller factor: ``c − Σ c_k h_k``, ``c_k ≥ 0``,
    with h = |Q|² and ``1 − exp(−|Q|² / w)``. A curve free to follow the rings would take the molecule's own modulation, and D / g
    would not end at the support any more. Without ``falling`` it may: a polynomial of degree 4 in |Q|², which Bragg residues
    in some of the rings leave alone elsewhere.
    """
    ring = (arrays.radius * (bins - 1e-6)).long()[valid]
    values = arrays.intensity[valid]
    order = torch.argsort(values)
    ring, values = ring[order], values[order]
    means, number = np.full(bins, np.nan), np.zeros(bins)
    for i in range(bins):
        own = values[ring == i]
        if len(own) >= 8:
            cut = len(own) // (5 if falling else 20)        # where Bragg residues sit
            means[i], number[i] = float(own[: len(own) - cut].mean()), len(own)
    floor = 1e-3 * np.nanmax(means)
    if not floor > 0:
        raise DataError("data has no positive mean in any ring of |Q|; expected diffuse intensity above background.")
    known = np.isfinite(means)
    centre = (np.arange(bins) + 0.5) / bins
    level = np.log(np.maximum(means[known], floor))
    square = arrays.radius.cpu().numpy() ** 2
    if not falling:
        smooth = _polynomial(centre[known] ** 2, level, square)
        return torch.as_tensor(np.exp(smooth), device=arrays.intensity.device)
    weight = np.sqrt(number[known])
    columns = np.concatenate([np.ones((1, len(level))), -np.ones((1, len(level))), -_falls(centre[known] ** 2)])
    coefficients, _ = nnls((columns * weight).T, level * weight)
    falls = np.einsum("k,k...->...", coefficients[2:], _falls(square))
    return torch.as_tensor(np.exp(coefficients[0] - coefficients[1] - falls), device=arrays.intensity.device)


def _polynomial(place: np.ndarray, level: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Chebyshev series through ``level``; beyond the places it goes on falling as it did, and never rises."""
    series = Chebyshev.fit(place, level, min(4, len(place) - 1), domain=(0.0, 1.0))
    first, last = place[[0, -1]]
    return series(np.clip(square, first, last)) + min(float(series.deriv()(last)), 0.0) * np.maximum(square - last, 0.0)


def _falls(square: np.ndarray) -> np.ndarray:
    """Rising functions of |Q|² as a fraction of its largest, smooth and without end in direct space but short."""
    return np.stack([square, *(1.0 - np.exp(-square / w) for w in FALL_WIDTHS)])


def unseen(arrays: Arrays, valid: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Which points of a grid over one repeat of the order no valid pixel is near, bool (product of shape,).

    The repeat is the box of one unit of each order coordinate (integers over the denominators).
    """
    parts = arrays.denominators
    place = cell_place(arrays.grid.coordinates()[:, valid], parts, shape).cpu().numpy()
    seen = np.bincount(place, minlength=math.prod(shape)).reshape(shape) > 0
    for i, (n, d) in enumerate(zip(shape, parts, strict=True)):
        step = abs(float(arrays.grid.axes[i][1] - arrays.grid.axes[i][0])) * float(arrays.grid.to_lattice[:, i].abs().max()) / d
        near = seen.copy()
        for k in range(1, int(math.ceil(0.75 * n * step)) + 1):
            near |= np.roll(seen, k, axis=i) | np.roll(seen, -k, axis=i)
        seen = near
    return torch.as_tensor(~seen.ravel(), device=valid.device)


def patterson_index(arrays: Arrays, support: float, vectors=None) -> np.ndarray:
    """Integer vectors of the fine direct-space grid within the support, half space."""
    rows = np.diag([1.0 / m for m in arrays.grid.divisions])
    index = vectors_within(rows, arrays.metric, support)
    if vectors is None:
        return index
    r = index @ rows
    near = np.zeros(len(r), dtype=bool)
    for f in np.concatenate([vectors, -vectors, np.zeros((1, r.shape[1]))]):
        step = r - f
        near |= np.einsum("ni,ij,nj->n", step, arrays.metric, step) <= VECTOR_RADIUS**2
    return index[near]


def largest_support(arrays: Arrays) -> float:
    """Radius whose support has as many unknowns as are affordable, Å."""
    ndim, most = arrays.grid.ndim, MOST[arrays.grid.ndim][0]
    density = math.prod(arrays.grid.divisions) / math.sqrt(np.linalg.det(arrays.metric))
    ball = math.pi if ndim == 2 else 4.0 * math.pi / 3.0
    most = most if arrays.even[0] else most / 2
    return (2.0 * most / (ball * density)) ** (1.0 / ndim)


def shortest_vector(arrays: Arrays) -> float:
    """Length of the shortest frequency of the order, Å."""
    found = vectors_within(arrays.dual, arrays.metric, 1.01 * float(arrays.lattice.length(arrays.lattice.dual).max()))
    rows = found[np.any(found != 0, axis=1)] @ arrays.dual
    return float(np.sqrt(np.einsum("ni,ij,nj->n", rows, arrays.metric, rows).min()))


def default_reach(arrays: Arrays) -> float:
    """Longest order vector, Å: as many parameters as are affordable."""
    ndim, most = arrays.grid.ndim, MOST[arrays.grid.ndim][1]
    ball = math.pi if ndim == 2 else 4.0 * math.pi / 3.0
    measure = arrays.cell**ndim
    most = most if arrays.even[1] else most / 2
    return (2.0 * most * measure / ball) ** (1.0 / ndim)


def finest(arrays: Arrays) -> float:
    """Cycles a pixel of the finest order frequency that the pixels tell from coarser ones."""
    nodes = np.stack([row / float(x[1] - x[0]) for row, x in zip(arrays.lattice.nodes.T, arrays.grid.axes, strict=True)])
    zones = max(n / max(np.abs(row).max(), 1.0) for n, row in zip(arrays.grid.shape, nodes, strict=True))
    return SAME + 1e-9 if np.abs(nodes - np.round(nodes)).max() * zones <= ALIKE else RESOLVED


def order_functions(arrays: Arrays, reach: float) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, ...]]:
    """Order vectors within ``reach`` in units of a stride, which of them are sines, and their shells; the stride."""
    integers = vectors_within(arrays.dual, arrays.metric, reach)
    integers = integers[np.any(integers != 0, axis=1)]
    steps = np.array([float(x[1] - x[0]) for x in arrays.grid.axes])
    cycles = integers @ arrays.dual @ arrays.grid.to_lattice.cpu().numpy().T * steps
    integers = integers[np.all(np.abs(cycles) <= finest(arrays), axis=1)]
    if not len(integers):
        shortest = float(np.sqrt(np.diag(arrays.dual @ arrays.metric @ arrays.dual.T)).min())
        raise DataError(f"reach is {reach:.3g}, shorter than the shortest lattice vector; expected at least {shortest:.3g}.")
    f = integers @ arrays.dual
    f_length = np.sqrt(np.einsum("ni,ij,nj->n", f, arrays.metric, f))
    order = np.round(f * np.array(arrays.denominators)).astype(int)
    shell = np.maximum(np.round(f_length / (0.5 * arrays.cell)).astype(int) - 1, 0)
    stride = tuple(m // d for m, d in zip(arrays.grid.divisions, arrays.denominators, strict=True))
    return _functions(order, shell, arrays.even[1], arrays.intensity.device), stride


def patterson_functions(arrays: Arrays, support: float, options) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of D within a support, which of them are sines, and their shells."""
    index = patterson_index(arrays, support, support_frequencies(arrays, options.support_vectors))
    r = index / np.array(arrays.grid.divisions)
    length = np.sqrt(np.einsum("ni,ij,nj->n", r, arrays.metric, r))
    shell = SHELL if arrays.to_frequency is not None else SHELL_CELLS * arrays.cell
    return _functions(index, np.round(length / shell).astype(int), arrays.even[0], arrays.intensity.device)


def build(arrays: Arrays, support: float, reach: float, options, envelope: Tensor, radial: Radial) -> tuple[Basis, State]:
    """Basis functions and the state to start from: D = envelope, S = 1."""
    device = arrays.intensity.device
    p = patterson_functions(arrays, support, options)
    s, stride = order_functions(arrays, reach)
    at = torch.stack(torch.meshgrid(*(axis / axis.abs().max() for axis in arrays.grid.axes), indexing="ij"))
    basis = Basis(*p, *s, stride, envelope, radial.functions(arrays.radius, at), radial.kind(device))
    start = torch.zeros(len(p[0]), dtype=torch.float64, device=device)
    start[0] = 1.0                          # the zero vector comes first
    shells_p, shells_s = int(p[2].max()) + 1, int(s[2].max()) + 1
    fade = 0.02 * torch.exp(-0.6 * torch.arange(shells_s, dtype=torch.float64, device=device))
    values = arrays.intensity[arrays.valid].sort().values
    values = values[: max(len(values) - len(values) // 200, 2)]        # one absurd pixel must not set the scale
    level = float(values.abs().mean())
    spread = max(float(values.var()), (0.1 * level) ** 2)
    state = State(
        start, torch.zeros(len(s[0]), dtype=torch.float64, device=device),
        torch.zeros(len(basis.radial), dtype=torch.float64, device=device), arrays.grid,
        torch.ones(shells_p, dtype=torch.float64, device=device), fade,
        torch.full((3,), (0.1 * level) ** 2, dtype=torch.float64, device=device), (0.1 * spread, 0.0, 0.0),
    )
    return basis, state


def _functions(index: np.ndarray, shell: np.ndarray, even: bool, device) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines of all vectors, and sines of all but zero where the function need not be even."""
    sine = np.zeros(len(index), dtype=bool)
    if not even:
        other = np.any(index != 0, axis=1)
        index = np.concatenate([index, index[other]])
        sine = np.concatenate([sine, np.ones(int(other.sum()), dtype=bool)])
        shell = np.concatenate([shell, shell[other]])
    return (torch.as_tensor(index, device=device), torch.as_tensor(sine, device=device),
            torch.as_tensor(shell, device=device))


def support_frequencies(arrays: Arrays, vectors) -> np.ndarray | None:
    if vectors is None:
        return None
    if arrays.to_frequency is None:
        raise DataError("support_vectors is given, but the plane has no lattice; expected one, which gives lengths their unit.")
    vectors = np.atleast_2d(np.asarray(vectors, dtype=float))
    if vectors.shape[1] != 3 or not np.all(np.isfinite(vectors)):
        raise DataError(f"support_vectors has the shape {vectors.shape}, expected finite Cartesian vectors (n, 3) in Å.")
    return vectors @ arrays.to_frequency
