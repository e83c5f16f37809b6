"""Small numerical tools of the factorisation."""
from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ...errors import DataError

LEAF = 96                        # rows of a triangle that is inverted at once
FADE = 0.75                      # of the variance of the series from one shell, half a cell, to the next


def non_negative(columns: Tensor, target: Tensor) -> list[float]:
    """Coefficients ≥ 0 of a few columns, by relative least squares over all subsets."""
    count = columns.shape[1]
    best, found = math.inf, [float(target.mean())] + [0.0] * (count - 1)
    rows, ones = columns / target[:, None], torch.ones_like(target)
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(count), n) for n in range(1, count + 1)):
        solution = torch.linalg.lstsq(rows[:, chosen], ones[:, None]).solution[:, 0]
        misfit = float((rows[:, chosen] @ solution - 1.0).square().sum())
        if misfit < best and bool((solution >= 0).all()):
            best, found = misfit, [0.0] * count
            for i, value in zip(chosen, solution.tolist(), strict=True):
                found[i] = value
    return found


def quantum(values: Tensor) -> float:
    """One count: the smallest value where all others are whole multiples of it; 0 where they are not."""
    size = values[values != 0].abs()
    if not len(size):
        return 0.0
    least = float(size.min())
    ratio = size / least
    whole = float(ratio.max()) < 1e6 and bool(((ratio - ratio.round()).abs() < 1e-4 * ratio.clamp(max=100.0)).all())
    return least if whole else 0.0


def solve(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Solution and Cholesky factor of a symmetric positive system, scaled to unit diagonal first."""
    scale = matrix.diagonal().clamp(min=1e-300).rsqrt()
    scaled = (matrix * scale[:, None]).mul_(scale)
    jitter, added = 1e-13, 0.0
    while True:
        scaled.diagonal().add_(jitter - added)
        factor, info = torch.linalg.cholesky_ex(scaled)
        if int(info) == 0:
            break
        jitter, added = 10.0 * jitter, jitter
        if jitter > 1.0:
            raise DataError("the data are too degenerate to factorise (their normal equations have no solution).")
    return torch.cholesky_solve((right * scale)[:, None], factor)[:, 0] * scale, factor.div_(scale[:, None])


def inverse_diagonal(factor: Tensor) -> Tensor:
    """Diagonal of ``(L Lᵀ)⁻¹`` from the Cholesky factor L: sums of squares down the columns of L⁻¹."""
    if factor.device.type != "cpu":
        return torch.cholesky_inverse(factor).diagonal()
    if not bool((factor.diagonal() != 0).all()):
        raise DataError("the data are too degenerate to factorise (their normal equations are singular).")
    inverse = torch.zeros_like(factor)
    _invert_triangle(factor, inverse)
    return inverse.square_().sum(0)


def _invert_triangle(factor: Tensor, out: Tensor) -> None:
    """Inverse of a lower triangle by halves: nearly all of it is matrix products, which LAPACK's own routine is not."""
    n = len(factor)
    if n <= LEAF:
        eye = torch.eye(n, dtype=factor.dtype, device=factor.device)
        out.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))
        return
    k = n // 2
    _invert_triangle(factor[:k, :k], out[:k, :k])
    _invert_triangle(factor[k:, k:], out[k:, k:])
    torch.mm(out[k:, k:], (factor[k:, :k] @ out[:k, :k]).neg_(), out=out[k:, :k])


def falling(variance: Tensor, count: Tensor) -> Tensor:
    """The nearest sequence that falls by ``FADE`` a shell at least, in the logarithm (pool adjacent violators).

    Order fades with distance. Without this a spike hidden in the holes around the nodes, the same α for all vectors,
    would cost nothing.
    """
    trend = math.log(FADE) * torch.arange(len(variance), dtype=variance.dtype, device=variance.device)
    blocks: list[list[float]] = []
    for value, weight in zip((variance.log() - trend).tolist(), count.tolist(), strict=True):
        blocks.append([value, max(float(weight), 1e-6), 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            value2, weight2, length2 = blocks.pop()
            value1, weight1, length1 = blocks.pop()
            total = weight1 + weight2
            blocks.append([(value1 * weight1 + value2 * weight2) / total, total, length1 + length2])
    flat = [value for value, _, length in blocks for _ in range(length)]
    return (torch.tensor(flat, dtype=variance.dtype, device=variance.device) + trend).exp()
