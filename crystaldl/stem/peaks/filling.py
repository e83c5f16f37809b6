"""Disks whose filling is unknown: the second step of `peaks`, for fringes that no polynomial of degree 2 describes.

Under multiple scattering the intensity inside a disk follows the rocking curve of its reflection. Thin crystals fill disks
evenly; with thickness come fringes, the closer the thicker the crystal and the longer the reflection. Where a model of the
filling is too stiff for them, what is left of the fringes pulls on the position. Here the filling is a Gaussian process

    P(p) = mean · (quadratic polynomial + a · f(p)),   ⟨f(p) f(p')⟩ = exp(-|p - p'|² / 2 ℓ²)

and its length ℓ and depth a are those of a few hypotheses under which the measured pixels are most probable (marginal
likelihood; Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapter 5): each disk says itself how closely
it is filled. What then tells the position is what no filling can imitate, the edge. The scale of the noise is measured, too.

All hypotheses share one basis, polynomials that are orthonormal over the disk, in which the process has a covariance. The
longer its length, the fewer of them it needs: hypotheses of one length work on the polynomials up to one degree.

Polynomials up to degree 9 lose part of the process of the shortest length, and thick crystals at many counts show closer
fringes yet; then the rest pulls on all disks of a family alike. Disks for which the shortest length is the most probable are
therefore fitted once more, on polynomials up to degree 14, at a cost several times that of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .likelihood import cpu_likelihood, torch_likelihood
from .varpro import FLOOR, REACH, ROUNDING, Shape, gauss_newton_step

# (ℓ in radii, a) beside the polynomial: none, then ever closer fringes, each faint or strong. Random waves have a depth of 1,
# and more where the mean lies below that of the reflection.
HYPOTHESES = (
    (2.0, 1e-3), (1.7, 0.3), (1.7, 0.9), (1.7, 2.5), (1.2, 0.6), (1.2, 2.0), (0.85, 0.5), (0.85, 1.2), (0.85, 2.5), (0.6, 1.8),
    (0.42, 1.8),
)  # fmt: skip
CLOSER = ((0.42, 1.8), (0.3, 1.8))  # asked of disks for which the last of these is the most probable, on more polynomials
EVEN = 0.5  # logarithm of how much likelier no fringes are than any one kind of them
POLYNOMIAL = 0.5  # expected size of its linear and quadratic coefficients, relative to the mean
SHORTEST = 2.0  # px: closer fringes are no longer seen as such,
SHORTEST_CLOSER = 1.5  # unless nothing else describes the disk
LOST = 1e-3  # of the variance of the filling relative to its mean, by leaving out higher degrees
HIGHEST, HIGHEST_CLOSER = 9, 14  # degree of the polynomials
SIZES = tuple((d + 1) * (d + 2) // 2 for d in range(2, HIGHEST_CLOSER + 1))  # how many there are up to each degree
POINTS = 800  # over which they are orthonormal
MARGIN = 1.5  # px: how far beyond the edge the filling is known
MEAN = 10.0  # how far c may be from what was known before
STEPS, LAST = 4, 0.02  # px: a step below this is the last one, and taken without looking where it leads
MOVED = 0.15  # px: disks that moved farther may be filled otherwise than it seemed
OUTLIERS = 6.0  # standard deviations
PROBE_ERROR = 0.02  # of the intensity: how well the shape is known, by its own counts and between its pixels
LEAST_MEAN = 0.02  # of the window's mean: no disk is taken to be fainter


Shifted = tuple[Tensor, Tensor, Tensor]  # the shape at one s and its derivatives, (n, P) each


@dataclass(frozen=True)
class Level:
    """Hypotheses of one length, on the first ``size`` functions of the basis.

    Attributes
    ----------
    first : int
        Number of the first of them among all of the filling, those that are no longer seen as such left out.
    size : int
    precision : (K, size, size) float64, of the coefficients for a mean of 1
    constant : (K,) float64, logarithm of the determinant of its inverse
    """

    first: int
    size: int
    precision: Tensor
    constant: Tensor


class Filling:
    """The Gaussian process in polynomials that are orthonormal over the disk.

    Parameters
    ----------
    shape : Shape
        Of the disk, on the same pixels.
    pixels : (P, 2) int ndarray
    radius, edge : float, px
    degree : int
        Highest degree of the basis.
    closer : bool
        Whether the hypotheses are `CLOSER`; else they are `HYPOTHESES`, and ``closer`` is a filling with the others.
    """

    def __init__(
        self, shape: Shape, pixels: np.ndarray, radius: float, edge: float, device, degree: int = HIGHEST, closer: bool = False
    ):
        self.shape, self.device, self.again = shape, device, False
        self.even = not closer  # whether the first hypothesis is none of fringes
        self._made_of, self._widest = (shape, pixels, radius, edge, device), degree == HIGHEST
        shortest = SHORTEST_CLOSER if closer else SHORTEST
        outer = (radius + 2 * edge + MARGIN) / radius
        count = np.arange(POINTS) + 0.5
        r, angle = np.sqrt(count / POINTS) * outer, count * np.pi * (3 - np.sqrt(5))
        points = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)
        lengths: dict[float, list[float]] = {}
        for length, depth in CLOSER if closer else HYPOTHESES:
            depths = lengths.setdefault(max(length, shortest / radius), [])
            depths += [depth] * (depth not in depths)
        basis, triangle = np.linalg.qr(monomials(points / outer, degree))
        basis *= np.sqrt(POINTS)  # mean square 1
        change = np.linalg.inv(triangle) * np.sqrt(POINTS)
        quadratic = basis[:, :6].T @ monomials(points, 2) / POINTS
        stiff = quadratic @ np.diag([MEAN**2] + [POLYNOMIAL**2] * 5) @ quadratic.T
        self.levels: list[Level] = []
        for length, depths in lengths.items():
            first = sum(len(level.constant) for level in self.levels)
            self.levels.append(self._level(covariance(points, points, length), depths, basis, stiff, first))
        size = max(level.size for level in self.levels)
        self.sizes = torch.tensor([n.size for n in self.levels for _ in n.constant], device=device)
        self.constant = torch.cat([level.constant for level in self.levels])
        self.precision = torch.zeros(len(self.sizes), size, size, dtype=torch.float64, device=device)
        for n in self.levels:
            self.precision[n.first : n.first + len(n.constant), : n.size, : n.size] = n.precision
        # beyond the margin there is no disk: the polynomials are kept from growing there
        scaled = pixels / (radius * outer)
        scaled = scaled / np.maximum(np.hypot(*scaled.T), 1.0)[:, None]
        self.functions = change[:, :size], radius * outer
        terms = monomials(scaled, degree) @ change[:, :size]
        i, j = np.tril_indices(size)
        place = np.zeros((size, size), dtype=np.int64)
        place[i, j] = place[j, i] = np.arange(len(i))
        three = np.column_stack([np.ones(len(pixels)), pixels / radius])
        mixed, plain = (a[:, :, None] * three[:, None, :] for a in (terms, three))
        tables = (terms, terms[:, i] * terms[:, j], three, mixed.reshape(len(pixels), -1), plain.reshape(len(pixels), -1))
        self.terms, self.pairs, self.three, self.mixed, self.plain = (
            torch.as_tensor(np.ascontiguousarray(a), dtype=torch.float32, device=device) for a in tables
        )
        self.place = torch.as_tensor(place, device=device)

    @cached_property
    def closer(self) -> Filling | None:
        """The filling with the hypotheses `CLOSER`, made when a disk first asks for it; None where there is none."""
        return Filling(*self._made_of, HIGHEST_CLOSER, closer=True) if self._widest else None

    def _level(self, process: np.ndarray, depths: list[float], basis: np.ndarray, stiff: np.ndarray, first: int) -> Level:
        """The hypotheses of one length, on as few polynomials as describe its filling."""
        prior = basis.T @ process @ basis / POINTS**2
        lost = 1 - np.cumsum(np.diagonal(prior))
        sizes = [n for n in SIZES if n <= basis.shape[1]]
        size = next((n for n in sizes if max(depths) ** 2 * lost[n - 1] < LOST), sizes[-1])
        priors = []
        for depth in depths:
            total = depth**2 * (prior[:size, :size] + 1e-6 * np.eye(size))
            total[:6, :6] += stiff
            priors.append(total)
        precision = np.linalg.inv(np.stack(priors))
        constant = np.linalg.slogdet(np.stack(priors))[1]
        tables = (torch.as_tensor(a, dtype=torch.float64, device=self.device) for a in (precision, constant))
        return Level(first, size, *tables)


    # what depends on how the functions of the basis lie on the pixels; ``at`` is what `shifted` gives first

    def shifted(self, s: Tensor, size: int) -> Shifted:
        """The shape moved by s (n, 2), and its derivatives."""
        return self.shape.shifted(s)

    def squares(self, weight: Tensor, at: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Weighted products of ``size`` functions with one another (n, F, F), and with the background (n, F, 3)."""
        wm = weight * at
        place = self.place[:size, :size].reshape(-1)
        own = ((wm * at) @ self.pairs[:, : size * (size + 1) // 2]).index_select(1, place)
        return own.reshape(-1, size, size), (wm @ self.mixed[:, : 3 * size]).reshape(-1, size, 3)

    def products(self, values: Tensor, at: Tensor, size: int) -> Tensor:
        """Products (n, F) of ``size`` functions with values (n, P)."""
        return (values * at) @ self.terms[:, :size]

    def filled(self, shifted: Shifted, c: Tensor) -> Shifted:
        """The filled disk with coefficients c (n, F), and its derivatives with respect to s."""
        filling = c @ self.terms[:, : c.shape[1]].T
        return tuple(a * filling for a in shifted)  # type: ignore[return-value]


def monomials(points: np.ndarray, degree: int) -> np.ndarray:
    """Products of powers of the coordinates (n, 2), by degree: 1, y, x, y², yx, x², …"""
    y, x = points.T
    return np.stack([y ** (d - i) * x**i for d in range(degree + 1) for i in range(d + 1)], axis=1)


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




def sums(f: Filling, w: Window, m: Tensor, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Normal matrix without the prior (n, 3 + F, 3 + F) and right-hand side (n, 3 + F), the background first.

    ``m``: the shape, as of `Filling.shifted`; ``size``: number F of functions, the first ones (by default all of them).
    """
    n, size = len(m), size or len(f.place)
    wi = w.weight * w.data
    matrix = torch.empty(n, 3 + size, 3 + size, dtype=torch.float64, device=m.device)
    matrix[:, 3:, 3:], mixed = f.squares(w.weight, m, size)
    matrix[:, 3:, :3], matrix[:, :3, 3:] = mixed, mixed.transpose(1, 2)
    matrix[:, :3, :3] = (w.weight @ f.plain).reshape(n, 3, 3)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    diagonal += 1e-7 * diagonal.amax(1, keepdim=True) + 1e-12
    return matrix, torch.cat([wi @ f.three, f.products(wi, m, size)], 1).double()


def evidence(f: Filling, w: Window, m: Tensor) -> Tensor:
    """(n, K) logarithm of the marginal likelihood of every hypothesis, up to what they have in common."""
    matrix, right = sums(f, w, m)
    mean, likelihood = w.mean.double(), cpu_likelihood if m.device.type == "cpu" else torch_likelihood
    out = likelihood(matrix, right, f.precision, f.sizes, mean**-2)
    out -= 0.5 * f.constant + torch.outer(mean.log(), f.sizes.double())
    return torch.nan_to_num(out, -torch.inf, -torch.inf, -torch.inf)


@dataclass
class Filled:
    """The linear part solved at one s, under one hypothesis for each disk."""

    prior: Tensor  # (n, F, F) precision
    factor: Tensor  # (n, 3 + F, 3 + F), of Cholesky
    c: Tensor  # (n, 3 + F): background, filling
    model: Tensor  # (n, P)
    slopes: tuple[Tensor, Tensor]  # (n, P) each: its derivatives with respect to s

    def free(self) -> Tensor:
        """(n,) number of parameters that the pixels determine."""
        inverse = torch.cholesky_inverse(self.factor)[:, 3:, 3:]
        return self.c.shape[1] - (self.prior * inverse).sum((1, 2))


def fill(f: Filling, w: Window, shifted: Shifted, level: Level, which: Tensor) -> Filled:
    """``which``: (n,) numbers of hypotheses within the level."""
    matrix, right = sums(f, w, shifted[0], level.size)
    prior = level.precision[which] / (w.mean.double() ** 2)[:, None, None]
    matrix[:, 3:, 3:] += prior
    factor = torch.linalg.cholesky_ex(matrix)[0]
    c = torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
    single = c.float()
    disk, *slopes = f.filled(shifted, single[:, 3:])
    return Filled(prior, factor, c, single[:, :3] @ f.three.T + disk, (slopes[0], slopes[1]))


@dataclass
class Fitted:
    """Linear part solved at one s: cost (n,), gradient (n, 2) and reduced normal matrix (n, 2, 2) of s."""

    cost: Tensor
    gradient: Tensor
    normal: Tensor


def project(f: Filling, w: Window, shifted: Shifted, level: Level, which: Tensor) -> Fitted:
    """Solve for filling and background, and linearise in s."""
    p = fill(f, w, shifted, level, which)
    residual = w.data - p.model
    wr = w.weight * residual
    dy, dx = p.slopes
    wdy, wdx = w.weight * dy, w.weight * dx
    gradient = torch.stack([(wr * dy).sum(1), (wr * dx).sum(1)], 1).double()
    cross = torch.stack([torch.cat([d @ f.three, f.products(d, shifted[0], level.size)], 1) for d in (wdy, wdx)], 2).double()
    half = torch.linalg.solve_triangular(p.factor, cross, upper=False)
    own = torch.stack([(wdy * dy).sum(1), (wdy * dx).sum(1), (wdx * dx).sum(1)], 1).double()
    normal = own[:, [0, 1, 1, 2]].reshape(-1, 2, 2) - half.transpose(1, 2) @ half
    bend = (p.prior @ p.c[:, 3:, None])[:, :, 0]
    return Fitted((wr * residual).sum(1).double() + (bend * p.c[:, 3:]).sum(1), gradient, normal)


@dataclass
class Refined:
    """``s`` (n, 2), ``normal`` (n, 2, 2): inverse of its covariance, ``hypothesis`` (n,): index into those of `Filling`.

    Under hypothesis 0, no fringes, ``s`` is the start and ``normal`` 0 (unless the filling works `again` on what it found).
    `CLOSER` hypotheses are numbered after the others.
    """

    s: Tensor
    normal: Tensor
    hypothesis: Tensor

    def update(self, rows: Tensor, other: Refined) -> None:
        """Put another's results in the given rows."""
        self.s[rows], self.normal[rows], self.hypothesis[rows] = other.s, other.normal, other.hypothesis


def refine(
    f: Filling, data: Tensor, use: Tensor, s: Tensor, start: tuple[Tensor, Tensor, Tensor], known: Tensor | None = None
) -> Refined:
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
    known : (n, P), optional
        Intensity that ``data`` no longer holds, but whose counting noise it has.
    """
    model, mean, noise = start
    known = torch.zeros_like(data) if known is None else known
    mean, noise = mean.abs().clamp_min(LEAST_MEAN), noise.float().clamp_min(ROUNDING)
    # the finest filling leaves the noise behind
    finest = f.levels[-1]
    last = torch.full((len(s),), len(finest.constant) - 1, device=s.device)
    shifted = f.shifted(s, finest.size)
    p = fill(f, Window(data, _weight(use, model, known, noise, mean), mean), shifted, finest, last)
    raw = use * (data - p.model) ** 2 / (p.model + known).clamp_min(FLOOR)
    noise = (raw.sum(1) / (use.sum(1) - p.free().float()).clamp_min(10)).clamp_min(ROUNDING)
    inside = use * (raw < OUTLIERS**2 * noise[:, None])
    w = Window(data, _weight(inside, p.model, known, noise, mean), mean)
    out = _under(f, w, s, shifted)
    rows = ((out.s - s).abs().amax(1) > MOVED).nonzero()[:, 0]
    if f.again and len(rows):
        at = out.s[rows]
        out.update(rows, _under(f, w.rows(rows), at, f.shifted(at, finest.size)))
    rows = (out.hypothesis == len(f.constant) - 1).nonzero()[:, 0]
    if len(rows) and f.closer is not None:
        before = (p.model[rows], mean[rows], noise[rows])
        found = refine(f.closer, data[rows], use[rows], out.s[rows], before, known[rows])
        found.hypothesis += len(f.constant)
        out.update(rows, found)
    return out


def _under(f: Filling, w: Window, s: Tensor, shifted: Shifted) -> Refined:
    """Positions under the filling that is the most probable one at s (n, 2)."""
    chances = evidence(f, w, shifted[0])
    chances[:, 0] += EVEN * f.even
    which = chances.argmax(1)
    out = Refined(s.clone(), torch.zeros(len(s), 2, 2, dtype=torch.float64, device=s.device), which)
    for level in f.levels:
        mine = ((which > 0) | f.again | (not f.even)) & (which >= level.first) & (which < level.first + len(level.constant))
        rows = mine.nonzero()[:, 0]
        if len(rows):
            first = project(f, w.rows(rows), tuple(a[rows] for a in shifted), level, which[rows] - level.first)
            out.s[rows], out.normal[rows] = _descend(f, w.rows(rows), s[rows], first, level, which[rows] - level.first)
    return out


def _descend(f: Filling, w: Window, s: Tensor, best: Fitted, level: Level, which: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Newton in s from where a polynomial got to: s (n, 2) and its normal matrix (n, 2, 2)."""
    at = s.clone()
    step = gauss_newton_step(best)
    for _ in range(STEPS):
        rows = (step.abs().amax(1) > LAST).nonzero()[:, 0]
        if len(rows) == 0:
            break
        trial = (at[rows] + step[rows]).clamp(-REACH, REACH)
        p = project(f, w.rows(rows), f.shifted(trial, level.size), level, which[rows])
        better = p.cost <= best.cost[rows]
        step[rows] = torch.where(better[:, None], gauss_newton_step(p), 0.5 * step[rows])
        for name in ("cost", "normal"):
            getattr(best, name)[rows[better]] = getattr(p, name)[better]
        at[rows[better]] = trial[better]
    sure = step.abs().amax(1, keepdim=True) <= LAST
    return torch.where(sure, (at + step).clamp(-REACH, REACH), at), best.normal


def _weight(use: Tensor, model: Tensor, known: Tensor, noise: Tensor, mean: Tensor) -> Tensor:
    """Inverse variance of the pixels: counting noise and what is not known of the shape."""
    return use / (noise[:, None] * (model + known).clamp_min(FLOOR) + PROBE_ERROR**2 * (model**2 + mean[:, None] ** 2))
