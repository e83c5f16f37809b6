"""Variable projection of one shifted shape times a polynomial, plus a linear background: the kernel of `peaks`.

All sums over the pixels of a window are products with a fixed matrix of monomials. Sizes: n disks, P pixels of the
window, monomials ordered by degree, of which the first F describe the filling and the first 3 the background.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

REACH = 2.5  # px: how far a shape may be shifted within its window
FLOOR = 0.05  # smallest variance, relative to the mean of the window (read-out noise, and what the shape leaves over)
MAX_STEP = 1.0  # px
ROUNDING = 1e-9  # smallest χ² in units of the window's mean: what single precision leaves of a flat window
EXPONENTS = tuple((i, d - i) for d in range(5) for i in range(d, -1, -1))  # 15 monomials, ordered by degree
COUNT = (1, 3, 6, 10, 15)  # of monomials up to each degree
_AT = {e: k for k, e in enumerate(EXPONENTS)}


class Shape:
    """A shape sampled around the middle of ``image`` (odd, square), ready to be shifted by cubic B-splines.

    Parameters
    ----------
    image : (2 m + 1, 2 m + 1) ndarray
        The shape at steps of 1/``fine`` px, centred on the middle, zero towards the edges.
    pixels : (P, 2) int ndarray
        Offsets of the window's pixels from its middle; ``fine * (abs(pixels) + 4) <= m``.
    unit : float
        Length that scales the coordinates of the polynomial (the disk's radius), px.
    degree : 0, 1 or 2
        Of the polynomial.
    emphasis : (P,) ndarray, optional
        Factors of the pixels' weights.
    fine : int
        Samples of the image a pixel.
    """

    def __init__(
        self, image: np.ndarray, pixels: np.ndarray, unit: float, degree: int, device, emphasis=None, fine: int = 1
    ):
        self.degree, self.filling, self.fine = degree, COUNT[degree], fine
        emphasis = np.ones(len(pixels)) if emphasis is None else emphasis
        self.emphasis = torch.as_tensor(emphasis, dtype=torch.float32, device=device)
        exponents = EXPONENTS[: COUNT[max(2 * degree, degree + 1, 2)]]
        middle = image.shape[0] // 2
        reach = int(np.ceil(fine * REACH)) + 1
        taps = np.arange(-reach, reach + 1)
        coefficients = ndimage.spline_filter(image, order=3, mode="mirror")
        rows = fine * pixels[:, 0] - taps[:, None, None] + middle
        columns = fine * pixels[:, 1] - taps[None, :, None] + middle
        table = coefficients[rows, columns].reshape(taps.size**2, -1)
        scaled = pixels / unit
        monomials = np.stack([scaled[:, 0] ** i * scaled[:, 1] ** j for i, j in exponents], axis=1)
        y, x = (np.indices(image.shape) - middle) / (fine * unit)
        sums = [(image * y**i * x**j).sum() / fine**2 for i, j in EXPONENTS[: self.filling]]
        self.table, self.taps, self.monomials, self.sums = (
            torch.as_tensor(np.ascontiguousarray(a), dtype=torch.float32, device=device)
            for a in (table, taps, monomials, sums)
        )
        self.squares, self.mixed, self.plain = (
            torch.tensor([[_AT[(a[0] + b[0], a[1] + b[1])] for b in EXPONENTS[:n]] for a in EXPONENTS[:m]], device=device)
            for m, n in ((self.filling, self.filling), (self.filling, 3), (3, 3))
        )

    def shifted(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The shape moved by s (n, 2), and its derivatives with respect to s: (n, P) each."""
        weights = spline_weights(self.taps, s, self.fine)
        out = weights.reshape(3 * len(s), -1) @ self.table
        return out.reshape(3, len(s), -1).unbind(0)


def spline_weights(taps: Tensor, s: Tensor, fine: int) -> Tensor:
    """Weights (3, n, T, T) of B-spline coefficients for images moved by s (n, 2) px, and for their derivatives."""
    t = taps - fine * s[:, :, None]
    a = t.abs()
    tail = (2 - a).clamp_min(0)
    value = torch.where(a < 1, 2 / 3 - a**2 + a**3 / 2, tail**3 / 6)
    slope = fine * torch.where(a < 1, 2 * t - 1.5 * t * a, 0.5 * t.sign() * tail**2)
    (y, x), (dy, dx) = value.unbind(1), slope.unbind(1)
    return torch.stack([a[:, :, None] * b[:, None] for a, b in ((y, x), (dy, x), (y, dx))])


@dataclass
class Projection:
    """The linear part solved at one s, and what the next step needs. Sizes (n, …)."""

    cost: Tensor  # weighted squares plus prior
    coefficients: Tensor  # (n, F + 3): filling (F), background (3)
    gradient: Tensor  # (n, 2)
    normal: Tensor  # (n, 2, 2): reduced normal matrix of s
    total_variance: Tensor  # (n,) of the integrated shape, under unit weights
    model: Tensor  # (n, P)

    def update(self, rows: Tensor, other: Projection, chosen: Tensor) -> None:
        """Put the chosen entries of another projection in the given rows."""
        for name in self.__dataclass_fields__:
            getattr(self, name)[rows] = getattr(other, name)[chosen]


def project(shape: Shape, data: Tensor, weight: Tensor, s: Tensor, prior: Tensor) -> Projection:
    """Solve for filling and background at s, and linearise in s.

    Parameters
    ----------
    data, weight : (n, P)
    s : (n, 2)
    prior : (n, F) float64
        Precision of the filling's coefficients around 0.
    """
    m, my, mx = shape.shifted(s)
    mono, f = shape.monomials, shape.filling
    terms, three = mono[:, :f], mono[:, :3]
    wm, wi = weight * m, weight * data
    n = len(s)
    matrix = torch.empty(n, f + 3, f + 3, dtype=torch.float64, device=data.device)
    matrix[:, :f, :f] = _taken((wm * m) @ mono[:, : COUNT[2 * shape.degree]], shape.squares)
    mixed = _taken(wm @ mono[:, : COUNT[shape.degree + 1]], shape.mixed)
    matrix[:, :f, f:], matrix[:, f:, :f] = mixed, mixed.transpose(1, 2)
    matrix[:, f:, f:] = _taken(weight @ mono[:, :6], shape.plain)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    diagonal += 1e-7 * diagonal.amax(1, keepdim=True) + 1e-12
    diagonal[:, :f] += prior
    right = torch.cat([(wm * data) @ terms, wi @ three], 1).double()
    factor = torch.linalg.cholesky_ex(matrix)[0]
    c = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
    single = c.float()
    filling = single[:, :f] @ terms.T
    model = torch.addcmul(single[:, f:] @ three.T, m, filling)
    residual = data - model
    wr = weight * residual
    dy, dx = my * filling, mx * filling
    wdy, wdx = weight * dy, weight * dx
    gradient = torch.stack([(wr * dy).sum(1), (wr * dx).sum(1)], 1).double()
    cross = [torch.cat([(d * m) @ terms, d @ three], 1).double() for d in (wdy, wdx)]
    total = torch.zeros(n, f + 3, dtype=torch.float64, device=data.device)
    total[:, :f] = shape.sums
    columns = torch.stack([*cross, total], 2)
    solved = torch.cholesky_solve(columns, factor)
    own = torch.stack([(wdy * dy).sum(1), (wdy * dx).sum(1), (wdx * dx).sum(1)], 1).double()
    normal = own[:, [0, 1, 1, 2]].reshape(n, 2, 2) - columns[:, :, :2].transpose(1, 2) @ solved[:, :, :2]
    cost = (wr * residual).sum(1).double() + (prior * c[:, :f] ** 2).sum(1)
    return Projection(cost, c, gradient, normal, (total * solved[:, :, 2]).sum(1), model)


def _taken(sums: Tensor, at: Tensor) -> Tensor:
    """Columns of sums (n, k) in the shape of their indices ``at``."""
    return sums.index_select(1, at.reshape(-1)).reshape(len(sums), *at.shape)


def gauss_newton_step(p: Projection) -> Tensor:
    """Step in s (n, 2), at most `MAX_STEP` long."""
    h = p.normal
    a, b, d = h[:, 0, 0] * 1.001, h[:, 0, 1], h[:, 1, 1] * 1.001
    determinant = (a * d - b * b).clamp_min(1e-30)
    gy, gx = p.gradient.unbind(1)
    step = torch.stack([(d * gy - b * gx) / determinant, (a * gx - b * gy) / determinant], 1)
    step = torch.nan_to_num(step, 0.0, 0.0, 0.0)
    length = step.norm(dim=1, keepdim=True)
    return (step * (MAX_STEP / length.clamp_min(MAX_STEP))).float()


@dataclass
class Solution:
    """What `minimise` ends with; ``weight`` is what remained of the pixels' weights."""

    s: Tensor
    projection: Projection
    chi2: Tensor
    weight: Tensor


def minimise(shape: Shape, data: Tensor, use: Tensor, s: Tensor, settings, known: Tensor | None = None) -> Solution:
    """Least squares in s with everything linear projected out.

    Two steps settle the weights (Poisson: 1 over the model), the outliers and the scale of the prior, which then stay
    as they are, so that further steps have one cost to lower.

    Parameters
    ----------
    data : (n, P)
        Pixels over the mean of their window.
    use : (n, P)
        1 where measured, else 0.
    s : (n, 2)
        Start.
    settings : crystaldl.stem.peaks.refine.FitSettings
    known : (n, P), optional
        Intensity that ``data`` no longer holds, but whose counting noise it has.
    """
    known = torch.zeros_like(data) if known is None else known
    shrink = torch.full((shape.filling,), settings.filling**-2, dtype=torch.float64, device=s.device)
    shrink[0] = 0.0
    free = shape.filling + 5
    prior = (1e-3 * shrink).expand(len(s), -1)
    weight = use * shape.emphasis
    for _ in range(2):
        p = project(shape, data, weight, s, prior)
        weight = use / (p.model + known).clamp_min(FLOOR)
        misfit = weight * (data - p.model) ** 2
        chi2 = misfit.sum(1) / (use.sum(1) - free).clamp_min(1)
        use = use * (misfit < settings.outliers**2 * chi2[:, None])
        weight = weight * use * shape.emphasis
        mean = ((p.coefficients[:, : shape.filling] * shape.sums).sum(1) / shape.sums[0]).abs()
        prior = shrink * (chi2.double() / mean.clamp_min(1e-3) ** 2)[:, None]
        s = (s + gauss_newton_step(p)).clamp(-REACH, REACH)
    best, at = project(shape, data, weight, s, prior), s
    step = gauss_newton_step(best)
    for _ in range(settings.iterations - 2):
        rows = (step.abs().amax(1) > settings.tolerance).nonzero()[:, 0]  # only those still on their way
        if len(rows) == 0:
            break
        trial = (at[rows] + step[rows]).clamp(-REACH, REACH)
        p = project(shape, data[rows], weight[rows], trial, prior[rows])
        better = p.cost <= best.cost[rows]
        step[rows] = torch.where(better[:, None], gauss_newton_step(p), 0.5 * step[rows])
        best.update(rows[better], p, better)
        at[rows[better]] = trial[better]
    last = step * (step.abs().amax(1, keepdim=True) <= settings.tolerance)
    # the scale of the variance from where the counts are: with the floor, dark pixels would make it too small
    used = (weight > 0).float()
    scatter = (used * (data - best.model) ** 2).sum(1) / (used * (best.model + known).clamp_min(FLOOR / 5)).sum(1)
    count = used.sum(1)
    chi2 = (scatter * count / (count - free).clamp_min(1)).double().clamp_min(ROUNDING)
    return Solution((at + last).clamp(-REACH, REACH), best, chi2, weight)
