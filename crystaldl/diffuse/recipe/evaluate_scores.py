"""Simulated planes and volumes as an experimenter would have them, and how far a separation is from their truth."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..disorder import cell_structure_factor, krivoglaz_clapp_moss, lattice_vectors, prune
from ..geometry import half_space, plane_lattice
from ..molecular import Molecule, difference_form_factor
from ..separation import Separation
from ..simulate import PlaneSpec, SimulatedPlanes
from ..volume import DiffuseVolume

CELL = 48                   # points an edge of the cell in which S is compared
NEAR = 4.0                  # cells: order parameters that are compared
LEVELS = {"68": 1.0, "95": 1.959964}
"""Half widths, in standard uncertainties, of the intervals whose coverage is counted."""
_C_AXIS = 8.0               # Å, where the plane goes through the origin and c does not matter
_PIXELS = 3000              # on which the series of S is found again
_LINKS = {"linear": (lambda s: s,) * 2, "reciprocal": (lambda s: 1.0 / s,) * 2, "log": (np.log, np.exp)}


@dataclass(frozen=True)
class Score:
    """How one method did on one plane; NaN where there is nothing to compare.

    Attributes
    ----------
    s_correlation, s_error : Pearson correlation and relative RMS of S on a grid of one cell
    d_measured, d_hidden, d_all : relative RMS of D on pixels that were measured, were not, and all
    alpha_error : RMS error of α of the vectors within `NEAR` cells
    coverage : share of true values inside the intervals, by ``"alpha 68"``, ``"alpha 95"``, ``"S 68"``, …
    seconds : float
    failure : what went wrong, where there is no result
    """

    s_correlation: float = float("nan")
    s_error: float = float("nan")
    d_measured: float = float("nan")
    d_hidden: float = float("nan")
    d_all: float = float("nan")
    alpha_error: float = float("nan")
    coverage: tuple[tuple[str, float], ...] = ()
    seconds: float = float("nan")
    failure: str = ""


# ------------------------------------------------------------------------------------------ planes and volumes


def plane_volume(spec: PlaneSpec, planes: SimulatedPlanes, index: int, *, sigma: bool = False) -> DiffuseVolume:
    """One plane of a batch with the lattice that the analyst is told, on axes in reciprocal-lattice units.

    Parameters
    ----------
    spec : PlaneSpec that the plane was made from
    planes, index : the batch and the number of the plane
    sigma : bool, pass on the standard uncertainties

    Notes
    -----
    The in-plane cell is a, b and γ; c is along the normal, and such that a plane off the origin is hk1.
    """
    given, true = (getattr(planes, name)[index].double().cpu().numpy() for name in ("given_period", "period"))
    # float64 where nothing was changed: rounding would tilt the lattice against the pixels
    period = spec.period if np.array_equal(given, true) else given @ np.linalg.inv(true) @ spec.period
    direct = 2 * np.pi * np.linalg.inv(period @ spec.steps).T
    a, b = np.linalg.norm(direct, axis=1)
    gamma = float(np.degrees(np.arccos(np.clip(direct[0] @ direct[1] / (a * b), -1.0, 1.0))))
    c = 2 * np.pi / spec.offset if spec.offset else _C_AXIS
    step = np.linalg.inv(period)
    longest = np.abs(step).max(1)
    basis = np.zeros((2, 3))
    basis[:, :2] = np.where(np.abs(step) < 1e-12 * longest[:, None], 0.0, step / longest[:, None])
    centre = np.array([(n - 1) / 2 for n in planes.sro.shape[1:]] if spec.centre is None else spec.centre)
    axes = [(np.arange(n) - centre[k]) * longest[k] for k, n in enumerate(planes.sro.shape[1:])]
    to_array = lambda name: getattr(planes, name)[index].double().cpu().numpy()  # noqa: E731
    return DiffuseVolume.from_basis(
        to_array("intensity"), axes, basis, (0.0, 0.0, 1.0 if spec.offset else 0.0), (a, b, c, 90.0, 90.0, gamma),
        mask=planes.mask[index].cpu().numpy(), sigma=to_array("sigma") if sigma else None, radiation=spec.radiation,
    )  # fmt: skip


def simulated_volume(
    points: int = 101, *, counts: float = 1000.0, missing: float = 0.1, seed: int = 0
) -> tuple[DiffuseVolume, dict]:
    """A three-dimensional volume of a rod-like molecule with two orientations, and its truth.

    Parameters
    ----------
    points : int, pixels an edge; h, k and l run from -3 to 3
    counts : float, expected in the brightest pixel
    missing : float, share of pixels left out in a cone about l
    seed : int

    Returns
    -------
    volume : DiffuseVolume
    truth : dict of ``form_factor`` and ``sro`` (points, points, points), ``vectors`` (n, 3) and ``alpha`` (n,)
    """
    axis = np.linspace(-3.0, 3.0, points)
    volume = DiffuseVolume(np.zeros((points,) * 3), axis, axis, axis, (7.2, 7.2, 8.1, 90.0, 90.0, 90.0))
    rod = np.array([[0.0, 0.0, -1.9], [0.0, 0.0, 0.0], [0.0, 0.0, 1.15]])
    turn = np.array([[1.0, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]])
    variants = [Molecule((17, 6, 7), rod @ turn.T, b_iso=1.5), Molecule((17, 6, 7), -rod @ turn.T, b_iso=1.5)]
    vectors, alpha = prune(*krivoglaz_clapp_moss(
        np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]), [0.11, 0.07, -0.12, 0.04], cutoff=7.0, points=32), 1e-4)
    factor = difference_form_factor(volume, *variants)
    order = np.ones(volume.shape)
    waves = {}
    for vector, value in zip(vectors, alpha, strict=True):
        for n in vector:
            if n not in waves:
                waves[n] = np.exp(2j * np.pi * n * axis)
        x, y, z = (waves[n] for n in vector)
        order += 2 * value * ((x[:, None] * y)[:, :, None] * z).real
    rng = np.random.default_rng(seed)
    ideal = factor * order
    factor = factor * (counts / ideal.max())
    data = rng.poisson(ideal * (counts / ideal.max())).astype(float)
    h, k, l = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)
    slope = np.hypot(h, k) / np.maximum(np.abs(l), 1e-9)
    mask = slope > np.quantile(slope, missing)
    truth = {"form_factor": factor, "sro": order, "vectors": vectors, "alpha": alpha}
    return volume.replace(data=data, mask=mask, history="simulated"), truth


# ------------------------------------------------------------------------------------------ S in one cell


def cell_of(parts: Separation, size: int = CELL) -> np.ndarray:
    """S of a separated plane on ``size`` × ``size`` points of one cell; index (i, j) stands for hk = (i, j) / size.

    A fitted S is a finite cosine series (or the reciprocal or exponential of one): it is found again from some pixels and
    summed on the grid, with the refined repeats. The S of a network is folded with the repeats given.
    """
    grid = np.stack(np.meshgrid(*[np.arange(size) / size] * 2, indexing="ij"), -1).reshape(-1, 2)
    hk = _indices(parts)
    if parts.alpha_vectors is not None and parts.link in _LINKS:
        there, back = _LINKS[parts.link]
        pick = np.random.default_rng(0).permutation(parts.sro.data.size)[: max(_PIXELS, 4 * len(parts.alpha_vectors))]
        vectors = parts.alpha_vectors[:, :2]

        def waves(points: np.ndarray) -> np.ndarray:
            return np.concatenate([np.ones((len(points), 1)), 2.0 * np.cos(2 * np.pi * points @ vectors.T)], 1)

        with np.errstate(divide="ignore", invalid="ignore"):
            target = there(parts.sro.data.ravel()[pick])
        if np.isfinite(target).all():
            design = waves(hk.reshape(-1, 2)[pick])
            series = np.linalg.lstsq(design, target, rcond=1e-10)[0]
            if np.abs(design @ series - target).max() < 1e-4 * np.abs(target).max():
                return back(waves(grid) @ series).reshape(size, size)
    return fold(parts.sro.data, hk, size)


def _indices(parts: Separation) -> np.ndarray:
    """(H, W, 2) h and k of the pixels with the refined repeats."""
    volume = parts.measured
    nodes = np.rint(plane_lattice(volume, parts.centring).nodes @ volume.basis)[:, :2]
    x = np.stack(np.meshgrid(*volume.axes, indexing="ij"), -1)
    return x @ np.linalg.inv(parts.period) @ nodes


def fold(value: np.ndarray, hk: np.ndarray, size: int = CELL) -> np.ndarray:
    """Mean of a plane over all zones on a grid of one cell; grid points without pixels get theirs from the nearest."""
    place = (hk.reshape(-1, 2) % 1.0) * size
    base = np.floor(place).astype(int)
    total, weight = np.zeros((2, size, size))
    for corner in np.ndindex(2, 2):
        part = np.abs(1 - np.array(corner) - (place - base)).prod(1)
        node = tuple(((base + corner) % size).T)
        np.add.at(total, node, part * value.ravel())
        np.add.at(weight, node, part)
    out, enough = total / np.maximum(weight, 1e-12), weight > 0.25
    for width in (1.0, 2.0, 4.0, 8.0):
        if enough.all():
            break
        wide, spread = (gaussian_filter(v, width, mode="wrap") for v in (total, weight))
        fill = ~enough & (spread > 1e-3 * spread.max())
        out[fill], enough = (wide / np.maximum(spread, 1e-12))[fill], enough | fill
    return out


# ------------------------------------------------------------------------------------------ against the truth


def score(parts: Separation, spec: PlaneSpec, planes: SimulatedPlanes, index: int, seconds: float = float("nan")) -> Score:
    """Compare a separated plane with its truth."""
    factor, order = (getattr(planes, name)[index].double().cpu().numpy() for name in ("form_factor", "sro"))
    mask = planes.mask[index].cpu().numpy()
    found = cell_of(parts)
    points = max(CELL, 2 * int(np.abs(spec.vectors).max(initial=0)) + 2)
    true = cell_structure_factor(spec.vectors, spec.alpha, CELL * -(-points // CELL))
    true = true[:: len(true) // CELL, :: len(true) // CELL]
    difference = parts.form_factor.data - factor

    def relative(where: np.ndarray) -> float:
        return float(np.sqrt(np.square(difference[where]).sum() / np.square(factor[where]).sum())) if where.any() else float("nan")

    wrong, inside = _order_errors(parts, spec, found)
    coverage = [(f"alpha {level}", share) for level, share in inside]
    for name, error, part in (("S", parts.sro.data - order, parts.sro), ("D", difference, parts.form_factor)):
        if part.sigma is not None:
            coverage += [(f"{name} {k}", float((np.abs(error) <= width * part.sigma).mean())) for k, width in LEVELS.items()]
    flat = np.ptp(found) < 1e-9 or np.ptp(true) < 1e-9
    return Score(
        s_correlation=float("nan") if flat else float(np.corrcoef(found.ravel(), true.ravel())[0, 1]),
        s_error=float(np.linalg.norm(found - true) / np.linalg.norm(true)),
        d_measured=relative(mask), d_hidden=relative(~mask), d_all=relative(np.ones_like(mask)),
        alpha_error=wrong, coverage=tuple(coverage), seconds=seconds,
    )  # fmt: skip


def _order_errors(parts: Separation, spec: PlaneSpec, cell: np.ndarray) -> tuple[float, list[tuple[str, float]]]:
    """RMS error of α of all vectors within `NEAR` cells, and the share inside the stated intervals."""
    direct = 2 * np.pi * np.linalg.inv(spec.reciprocal).T
    vectors = lattice_vectors(2 * NEAR + 4)
    length = np.linalg.norm(vectors @ direct, axis=1) / np.sqrt(abs(np.linalg.det(direct)))
    vectors = vectors[length <= NEAR]
    truth = dict(zip(map(tuple, spec.vectors.tolist()), spec.alpha, strict=True))
    true = np.array([truth.get(tuple(v), 0.0) for v in vectors.tolist()])
    if parts.alpha is None:
        wave = np.fft.fft2(cell).real / cell.sum()
        found = wave[tuple(vectors.T % len(cell))]
        return float(np.sqrt(np.square(found - true).mean())), []
    own = np.rint(parts.alpha_vectors[:, :2]).astype(int)
    # vectors of a centred lattice, where one was found, are no lattice vectors of the truth and have no α to compare
    whole = np.abs(parts.alpha_vectors[:, :2] - own).max(1) < 1e-6
    own = np.where(half_space(own)[:, None], own, -own)[whole]
    sigma = np.sqrt(np.diag(parts.alpha_covariance))
    table = {tuple(v): (a, s) for v, a, s in zip(own.tolist(), parts.alpha[whole], sigma[whole], strict=True)}
    found = np.array([table.get(tuple(v), (0.0, np.nan)) for v in vectors.tolist()])
    error = np.abs(found[:, 0] - true)
    known = np.isfinite(found[:, 1])
    inside = [(k, float((error[known] <= width * found[known, 1]).mean())) for k, width in LEVELS.items()] if known.any() else []
    return float(np.sqrt(np.square(error).mean())), inside


def failed(message: str, seconds: float) -> Score:
    """The score of a method that gave no result."""
    return replace(Score(), failure=message, seconds=seconds)


def to_torch_threads(count: int | None) -> None:
    """Set the number of CPU threads, where one is given."""
    if count:
        torch.set_num_threads(count)
