"""How probable the pixels of a disk are under many Gaussian priors: batches of small Cholesky decompositions.

For each disk there is one normal matrix A and right-hand side b of a linear fit (unknowns in order, the first three of them
free), and for each hypothesis a prior precision Λ of those that follow. With L Lᵀ = A + s Λ, the logarithm of the likelihood
is, up to what depends on the prior alone, ½ |L⁻¹ b|² - ln det L.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

FREE = 3  # unknowns without a prior, which come first


def torch_likelihood(matrix: Tensor, right: Tensor, precision: Tensor, sizes: Tensor, scale: Tensor) -> Tensor:
    """Logarithms (n, K) of the likelihood under K hypotheses, on any device.

    Parameters
    ----------
    matrix : (n, 3 + F, 3 + F) float64
    right : (n, 3 + F) float64
    precision : (K, F, F) float64
    sizes : (K,) int
        How many of the F unknowns each hypothesis has.
    scale : (n,) float64
        Factor of the precisions.
    """
    out = []
    for own, size in zip(precision, sizes.tolist(), strict=True):
        n = FREE + size
        total = matrix[:, :n, :n].clone()
        total[:, FREE:, FREE:] += scale[:, None, None] * own[:size, :size]
        factor = torch.linalg.cholesky_ex(total)[0]
        half = torch.linalg.solve_triangular(factor, right[:, :n, None], upper=False)[..., 0]
        out.append(0.5 * (half**2).sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1))
    return torch.stack(out, 1)


def cpu_likelihood(matrix: Tensor, right: Tensor, precision: Tensor, sizes: Tensor, scale: Tensor) -> Tensor:
    """The same on the processor, compiled: several times as fast as batches of LAPACK's calls."""
    out = np.empty((len(matrix), len(sizes)))
    arrays = (np.ascontiguousarray(a.numpy()) for a in (matrix, right, precision, sizes, scale))
    _likelihood(*arrays, out)
    return torch.from_numpy(out)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _likelihood(matrix, right, precision, sizes, scale, out):  # pragma: no cover - compiled
    """Four disks at a time: what the processor computes in one instruction. The right-hand side is one more row."""
    n = len(matrix)
    most = matrix.shape[1]
    a = np.zeros((most + 1, most, 4))
    low = np.zeros((most + 1, most, 4))
    s = np.empty(4)
    for begin in range(0, n, 4):
        for lane in range(4):
            disk = min(begin + lane, n - 1)
            s[lane] = scale[disk]
            for j in range(most):
                a[most, j, lane] = right[disk, j]
                for i in range(j, most):
                    a[i, j, lane] = matrix[disk, i, j]
        for k in range(len(sizes)):
            size = FREE + sizes[k]
            for j in range(size):
                for row in range(j, size + 1):
                    i = row if row < size else most
                    p = precision[k, i - FREE, j - FREE] if j >= FREE and row < size else 0.0
                    t0, t1 = a[i, j, 0] + p * s[0], a[i, j, 1] + p * s[1]
                    t2, t3 = a[i, j, 2] + p * s[2], a[i, j, 3] + p * s[3]
                    for q in range(j):
                        t0 -= low[i, q, 0] * low[j, q, 0]
                        t1 -= low[i, q, 1] * low[j, q, 1]
                        t2 -= low[i, q, 2] * low[j, q, 2]
                        t3 -= low[i, q, 3] * low[j, q, 3]
                    if i == j:
                        low[j, j, 0], low[j, j, 1] = 1 / np.sqrt(t0), 1 / np.sqrt(t1)
                        low[j, j, 2], low[j, j, 3] = 1 / np.sqrt(t2), 1 / np.sqrt(t3)
                    else:
                        low[i, j, 0], low[i, j, 1] = t0 * low[j, j, 0], t1 * low[j, j, 1]
                        low[i, j, 2], low[i, j, 3] = t2 * low[j, j, 2], t3 * low[j, j, 3]
            for lane in range(min(4, n - begin)):
                total = 0.0
                for j in range(size):
                    total += 0.5 * low[most, j, lane] ** 2 + np.log(low[j, j, lane])  # the diagonal holds reciprocals
                out[begin + lane, k] = total
