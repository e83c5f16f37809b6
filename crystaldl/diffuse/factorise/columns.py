"""Background functions of a plane as a sparse table: a pixel has a few of them that do not vanish."""
from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor


class SparseColumns:
    """Functions (k, *shape) and what a fit needs of them."""

    def __init__(self, functions: Tensor) -> None:
        self.functions = functions
        self.sparse = functions.device.type == "cpu"
        if not self.sparse:
            return
        table = functions.flatten(1).contiguous().numpy()
        number = np.count_nonzero(table, axis=0) if len(table) else np.zeros(table.shape[1], dtype=int)
        self.place, self.value = _gathered(table, int(number.max(initial=0)))

    def __len__(self) -> int:
        return len(self.functions)

    def sum(self, heights: Tensor) -> Tensor:
        """``Σ_k b_k φ_k``."""
        if not self.sparse:
            return torch.einsum("k,k...->...", heights, self.functions)
        return torch.from_numpy(_sum(self.place, self.value, heights.numpy())).reshape(self.functions.shape[1:])

    def project(self, values: Tensor) -> Tensor:
        """``Σ_x v φ_k`` of values (..., *shape), (..., k)."""
        flat = values.flatten(values.ndim - self.functions.ndim + 1)
        if not self.sparse:
            return flat @ self.functions.flatten(1).T
        rows = np.ascontiguousarray(flat.reshape(-1, flat.shape[-1]).numpy())
        return torch.from_numpy(_project(self.place, self.value, rows, len(self))).reshape(*flat.shape[:-1], len(self))

    def products(self, weight: Tensor) -> Tensor:
        """``Σ_x w φ_k φ_l``, (k, k)."""
        if not self.sparse:
            flat = self.functions.flatten(1)
            return (flat * weight.flatten()) @ flat.T
        return torch.from_numpy(_products(self.place, self.value, weight.contiguous().numpy().ravel(), len(self)))


@njit(cache=True, nogil=True)
def _gathered(table, most):
    place, value = np.full((table.shape[1], most), -1, dtype=np.int32), np.zeros((table.shape[1], most))
    filled = np.zeros(table.shape[1], dtype=np.int32)
    for k in range(len(table)):
        for x in range(table.shape[1]):
            if table[k, x] != 0.0:
                place[x, filled[x]], value[x, filled[x]] = k, table[k, x]
                filled[x] += 1
    return place, value


@njit(cache=True, nogil=True)
def _sum(place, value, heights):
    out = np.zeros(len(place))
    for x in range(len(place)):
        for a in range(place.shape[1]):
            k = place[x, a]
            if k < 0:
                break
            out[x] += heights[k] * value[x, a]
    return out


@njit(cache=True, nogil=True)
def _project(place, value, rows, count):
    out = np.zeros((len(rows), count))
    for r in range(len(rows)):
        for x in range(len(place)):
            for a in range(place.shape[1]):
                k = place[x, a]
                if k < 0:
                    break
                out[r, k] += rows[r, x] * value[x, a]
    return out


@njit(cache=True, nogil=True)
def _products(place, value, weight, count):
    out = np.zeros((count, count))
    for x in range(len(place)):
        for a in range(place.shape[1]):
            k = place[x, a]
            if k < 0:
                break
            own = weight[x] * value[x, a]
            for b in range(a + 1):          # functions ascend
                out[k, place[x, b]] += own * value[x, b]
    for k in range(count):
        for j in range(k):
            out[j, k] = out[k, j]
    return out
