"""Disks whose filling is unknown: the second step of `peaks`, for fringes that no polynomial describes.

Under multiple scattering the intensity inside a disk follows the rocking curve of its reflection. Thin crystals fill disks
evenly; with thickness come fringes, the closer the thicker the crystal and the longer the reflection. Where a model of the
filling is too stiff for them, what is left of the fringes pulls on the position. Here the filling is a Gaussian process

    P(p) = mean · (quadratic polynomial + a · f(p)),   ⟨f(p) f(p')⟩ = exp(-|p - p'|² / 2 ℓ²)

and its length ℓ and depth a are those of a few hypotheses under which the measured pixels are most probable (marginal
likelihood; Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapter 5): each disk says itself how closely
it is filled. What then tells the position is what no filling can imitate, the edge. The scale of the noise is measured, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .varpro import FLOOR, REACH, ROUNDING, Shape, gauss_newton_step

# (ℓ in radii, a) beside the polynomial: none, then ever closer fringes, each faint or strong. Random waves have a depth of 1,
# and more where the mean lies below that of the reflection.
HYPOTHESES = (
    (2.0, 1e-3), (1.7, 0.3), (1.7, 0.9), (1.7, 2.5), (1.2, 0.6), (1.2, 2.0), (0.85, 0.5), (0.85, 1.2), (0.85, 2.5), (0.6, 1.8),
    (0.42, 1.8),
)  # fmt: skip
EVEN = 0.5  # logarithm of how much likelier no fringes are than any one kind of them
POLYNOMIAL = 0.5  # expected size of its linear and quadratic coefficients, relative to the mean
SHORTEST = 2.0  # px: closer fringes are no longer seen as such
LOST = 0.01  # of the variance of the shortest fringes, by leaving out the finest
POINTS = 400  # at which the covariance is decomposed
MARGIN = 1.5  # px: how far beyond the edge the filling is known
MEAN = 10.0  # how far c may be from what was known before
STEPS, NEAR = 4, 3e-3  # px: steps below this end the search
OUTLIERS = 6.0  # standard deviations
PROBE_ERROR = 0.02  # of the intensity: how well the shape is known, by its own counts and between its pixels
LEAST_MEAN = 0.02  # of the window's mean: no disk is taken to be fainter


class Filling:
    """The Gaussian process in a basis that all hypotheses share: the first functions of the one with the shortest fringes.

    Parameters
    ----------
    shape : Shape
        Of the disk, on the same pixels.
    pixels : (P, 2) int ndarray
    radius, edge : float, px
    """

    def __init__(self, shape: Shape, pixels: np.ndarray, radius: float, edge: float, device):
        self.shape = shape
        cases = list(dict.fromkeys((max(length, SHORTEST / radius), depth) for length, depth in HYPOTHESES))
        finest = min(length for length, _ in cases)
        outer = (radius + 2 * edge + MARGIN) / radius
        count = np.arange(POINTS) + 0.5
        r, angle = np.sqrt(count / POINTS) * outer, count * np.pi * (3 - np.sqrt(5))
        points = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)
        values, vectors = np.linalg.eigh(covariance(points, points, finest))
        values, vectors = values[::-1], vectors[:, ::-1]
        fine = int(np.searchsorted(np.cumsum(values) / values.sum(), 1 - LOST)) + 1
        basis = vectors[:, :fine] / np.sqrt(values[:fine])
        y, x = (pixels / radius).T
        polynomial = np.stack([np.ones(len(pixels)), y, x, y * y, y * x, x * x], axis=1)
        terms = np.column_stack([polynomial, covariance(pixels / radius, points, finest) @ basis])
        size = terms.shape[1]
        precision, constant = [], []
        for length, depth in cases:
            prior = np.diag([MEAN**2] + [POLYNOMIAL**2] * 5 + [1e-9] * fine)
            prior[6:, 6:] += depth**2 * (basis.T @ covariance(points, points, length) @ basis + 1e-6 * np.eye(fine))
            precision.append(np.linalg.inv(prior))
            constant.append(np.linalg.slogdet(prior)[1])
        i, j = np.triu_indices(size)
        place = np.zeros((size, size), dtype=np.int64)
        place[i, j] = place[j, i] = np.arange(len(i))
        three = np.column_stack([np.ones(len(pixels)), pixels / radius])
        mixed, plain = (a[:, :, None] * three[:, None, :] for a in (terms, three))
        tables = (terms, terms[:, i] * terms[:, j], three, mixed.reshape(len(pixels), -1), plain.reshape(len(pixels), -1))
        self.terms, self.pairs, self.three, self.mixed, self.plain = (
            torch.as_tensor(np.ascontiguousarray(a), dtype=torch.float32, device=device) for a in tables
        )
        self.place = torch.as_tensor(place, device=device)
        self.precision = torch.as_tensor(np.stack(precision), dtype=torch.float64, device=device)
        self.constant = torch.as_tensor(np.array(constant), dtype=torch.float64, device=device)


def covariance(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    """Squared-exponential covariance of points (n, 2) and (m, 2)."""
    square = ((a[:, None] - b[None]) ** 2).sum(2)
    return np.exp(-0.5 * square / length**2)


@dataclass
class Window:
    """Pixels (n, P), weights 1/variance (n, P), and the mean filling (n,) that depths are relative to."""

    data: Tensor
    weight: Tensor
    mean: Tensor

    def rows(self, rows: Tensor) -> Window:
        return Window(self.data[rows], self.weight[rows], self.mean[rows])


@dataclass
class Sums:
    """All that the linear part needs at one s: normal matrix without the prior, right-hand side, shape and derivatives."""

    matrix: Tensor  # (n, F + 3, F + 3)
    right: Tensor  # (n, F + 3)
    shifted: tuple[Tensor, Tensor, Tensor]


def sums(f: Filling, w: Window, s: Tensor) -> Sums:
    m, my, mx = f.shape.shifted(s)
    n, size = len(s), f.terms.shape[1]
    wm, wi = w.weight * m, w.weight * w.data
    matrix = torch.empty(n, size + 3, size + 3, dtype=f.precision.dtype, device=s.device)
    matrix[:, :size, :size] = ((wm * m) @ f.pairs)[:, f.place].to(matrix.dtype)
    mixed = (wm @ f.mixed).reshape(n, size, 3).to(matrix.dtype)
    matrix[:, :size, size:], matrix[:, size:, :size] = mixed, mixed.transpose(1, 2)
    matrix[:, size:, size:] = (w.weight @ f.plain).reshape(n, 3, 3).to(matrix.dtype)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    diagonal += 1e-7 * diagonal.amax(1, keepdim=True) + 1e-12
    right = torch.cat([(wi * m) @ f.terms, wi @ f.three], 1).to(matrix.dtype)
    return Sums(matrix, right, (m, my, mx))


def factorised(f: Filling, w: Window, a: Sums, which) -> tuple[Tensor, Tensor]:
    """Cholesky factor of the normal matrix under a hypothesis (an index, or one for each disk), and the coefficients."""
    size = f.terms.shape[1]
    matrix = a.matrix.clone()
    matrix[:, :size, :size] += f.precision[which] / (w.mean.to(matrix.dtype) ** 2)[:, None, None]
    factor = torch.linalg.cholesky_ex(matrix)[0]
    return factor, torch.cholesky_solve(a.right[:, :, None], factor)[:, :, 0]


def evidence(f: Filling, w: Window, a: Sums) -> Tensor:
    """(n, K) logarithm of the marginal likelihood of every hypothesis, up to what they have in common."""
    size = f.terms.shape[1]
    out = []
    for k in range(len(f.precision)):
        factor, c = factorised(f, w, a, k)
        volume = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1) + f.constant[k] + 2 * size * w.mean.to(c.dtype).log()
        out.append(0.5 * ((a.right * c).sum(1) - volume))
    return torch.nan_to_num(torch.stack(out, 1), -torch.inf, -torch.inf, -torch.inf)


@dataclass
class Fitted:
    """Linear part solved at one s: cost (n,), gradient (n, 2) and reduced normal matrix (n, 2, 2) of s, model (n, P)."""

    cost: Tensor
    gradient: Tensor
    normal: Tensor
    model: Tensor
    free: Tensor | None = None  # (n,) number of parameters that the pixels determine


def project(f: Filling, w: Window, s: Tensor, which, count: bool = False) -> Fitted:
    a = sums(f, w, s)
    size = f.terms.shape[1]
    factor, c = factorised(f, w, a, which)
    m, my, mx = a.shifted
    single = c.float()
    filling = single[:, :size] @ f.terms.T
    model = torch.addcmul(single[:, size:] @ f.three.T, m, filling)
    residual = w.data - model
    wr = w.weight * residual
    dy, dx = my * filling, mx * filling
    wdy, wdx = w.weight * dy, w.weight * dx
    gradient = torch.stack([(wr * dy).sum(1), (wr * dx).sum(1)], 1).to(c.dtype)
    cross = torch.stack([torch.cat([(d * m) @ f.terms, d @ f.three], 1) for d in (wdy, wdx)], 2).to(c.dtype)
    half = torch.linalg.solve_triangular(factor, cross, upper=False)
    own = torch.stack([(wdy * dy).sum(1), (wdy * dx).sum(1), (wdx * dx).sum(1)], 1).to(c.dtype)
    normal = own[:, [0, 1, 1, 2]].reshape(-1, 2, 2) - half.transpose(1, 2) @ half
    prior = f.precision[which] / (w.mean.to(c.dtype) ** 2)[:, None, None]
    bend = (prior @ c[:, :size, None])[:, :, 0]
    cost = (wr * residual).sum(1).to(c.dtype) + (bend * c[:, :size]).sum(1)
    free = None
    if count:
        inverse = torch.cholesky_inverse(factor)[:, :size, :size]
        free = size + 3 - (prior * inverse).sum((1, 2))
    return Fitted(cost, gradient, normal, model, free)


@dataclass
class Refined:
    """``s`` (n, 2), ``normal`` (n, 2, 2): inverse of its covariance, ``hypothesis`` (n,): index into those of `Filling`."""

    s: Tensor
    normal: Tensor
    hypothesis: Tensor


def refine(f: Filling, data: Tensor, use: Tensor, s: Tensor, start: tuple[Tensor, Tensor, Tensor]) -> Refined:
    """Positions under the most probable filling.

    Parameters
    ----------
    data : (n, P)
        Pixels over the mean of their window.
    use : (n, P)
        1 where measured, else 0.
    s : (n, 2)
    start : (n, P), (n,), (n,)
        Model of the pixels, mean filling, and scale of the variance, as a fit of lower degree left them.
    """
    model, mean, noise = start
    mean, noise = mean.abs().clamp_min(LEAST_MEAN), noise.float().clamp_min(ROUNDING)
    # the finest filling leaves the noise behind
    finest = len(f.precision) - 1
    w = Window(data, _weight(use, model, noise, mean), mean)
    p = project(f, w, s, finest, count=True)
    raw = use * (data - p.model) ** 2 / p.model.clamp_min(FLOOR)
    noise = (raw.sum(1) / (use.sum(1) - p.free.float()).clamp_min(10)).clamp_min(ROUNDING)
    use = use * (raw < OUTLIERS**2 * noise[:, None])
    w = Window(data, _weight(use, p.model, noise, mean), mean)
    chances = evidence(f, w, sums(f, w, s))
    chances[:, 0] += EVEN
    which = chances.argmax(1)
    best, at = project(f, w, s, which), s.clone()
    step = gauss_newton_step(best)
    step[which == 0] = 0.0  # the polynomial has been there
    for _ in range(STEPS):
        rows = (step.abs().amax(1) > NEAR).nonzero()[:, 0]
        if len(rows) == 0:
            break
        trial = (at[rows] + step[rows]).clamp(-REACH, REACH)
        p = project(f, w.rows(rows), trial, which[rows])
        better = p.cost <= best.cost[rows]
        step[rows] = torch.where(better[:, None], gauss_newton_step(p), 0.5 * step[rows])
        for name in ("cost", "normal"):
            getattr(best, name)[rows[better]] = getattr(p, name)[better]
        at[rows[better]] = trial[better]
    return Refined(at, best.normal, which)


def _weight(use: Tensor, model: Tensor, noise: Tensor, mean: Tensor) -> Tensor:
    """Inverse variance of the pixels: counting noise and what is not known of the shape."""
    return use / (noise[:, None] * model.clamp_min(FLOOR) + PROBE_ERROR**2 * (model**2 + mean[:, None] ** 2))
