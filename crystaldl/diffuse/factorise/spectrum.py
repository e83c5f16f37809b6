"""Fourier sums of a plane at any frequencies, read off one twofold oversampled FFT (non-uniform FFT of type 2).

Where lattice rows run across the pixels, the table behind the cross terms of a normal matrix has more entries than the
plane has pixels, most of which nobody looks up. Here each entry that is wanted costs ``WIDTH²`` products, whatever the others
are (Kaiser-Bessel window; Fessler & Sutton, IEEE Trans. Signal Process. 51, 560, 2003). The window is a polynomial for each
of the points it covers.
"""
from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .windows import OVERSAMPLING, kaiser_bessel, kaiser_bessel_transform

WIDTH = 12                      # FFT points an axis that one frequency reads: 1e-11 at twofold oversampling
SHARE = 4000                    # frequencies that are worth a thread
DEGREE = 15                     # of the window between two points


@lru_cache(maxsize=1)
def _window() -> np.ndarray:
    """Coefficients (DEGREE + 1, WIDTH), highest power first, of the window at ``WIDTH / 2 − z − a`` in powers of ``2 z − 1``."""
    nodes = np.cos(np.pi * (np.arange(4 * DEGREE) + 0.5) / (4 * DEGREE))
    distance = WIDTH / 2 - 0.5 * (nodes[:, None] + 1.0) - np.arange(WIDTH)
    values = kaiser_bessel(torch.as_tensor(distance), WIDTH).numpy()
    series = np.polynomial.chebyshev.chebfit(nodes, values, DEGREE)
    return np.stack([np.polynomial.chebyshev.cheb2poly(own)[::-1] for own in series.T], 1)


def read_spectrum(weight: Tensor, index: np.ndarray, cycles: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """``Σ_x w(x) exp(2πi r·u(x))`` of integer vectors r.

    Parameters
    ----------
    weight : (X, Y) real float64 tensor on the CPU
    index : (n, 2) integer ndarray, r
    cycles : (2, 2) ndarray
        Cycles that one pixel along axis i adds for a unit of r_j.
    origin : (2,) ndarray
        Cycles at the pixel ``(X // 2, Y // 2)`` for a unit of r_j.

    Returns
    -------
    (n,) complex128 ndarray
    """
    sizes = [OVERSAMPLING * (n + n % 2) for n in weight.shape]
    half = [n // 2 for n in weight.shape]
    for i, (n, size) in enumerate(zip(weight.shape, sizes, strict=True)):
        place = torch.arange(n, dtype=torch.float64) - half[i]
        weight = weight / kaiser_bessel_transform(place / size, WIDTH).reshape(-1, *(1,) * (1 - i))
    (a, b), padded = half, weight.new_zeros(sizes)
    x, y = weight.shape[0] - a, weight.shape[1] - b
    padded[:x, :y], padded[-a:, :y] = weight[a:, b:], weight[:a, b:]
    padded[:x, -b:], padded[-a:, -b:] = weight[a:, :b], weight[:a, :b]
    spectrum = torch.fft.rfft2(padded).numpy()
    wrapped = _wrapped(spectrum, sizes[1])
    constants = np.asarray(cycles, float), np.asarray(origin, float), np.array(sizes), _window()
    parts = np.array_split(np.ascontiguousarray(index), min(torch.get_num_threads(), 1 + len(index) // SHARE))
    if len(parts) == 1:
        return _read(*wrapped, parts[0], *constants)
    with ThreadPoolExecutor(len(parts)) as pool:        # the loop holds no lock
        return np.concatenate([*pool.map(lambda own: _read(*wrapped, own, *constants), parts)])


def _wrapped(spectrum: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Real and imaginary parts with as many points more on all sides as the window reaches."""
    edge = WIDTH // 2
    mirror = np.roll(spectrum[::-1], 1, 0)              # the transform of real numbers at −k is the conjugate of that at k
    last = columns // 2
    left, right = mirror[:, edge:0:-1], mirror[:, last - 1 : last - 1 - edge : -1]
    out = []
    for part, sign in (("real", 1.0), ("imag", -1.0)):
        whole = np.concatenate([sign * getattr(left, part), getattr(spectrum, part), sign * getattr(right, part)], 1)
        out.append(np.ascontiguousarray(np.concatenate([whole[-edge:], whole, whole[:edge]])))
    return out[0], out[1]


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _read(real, imaginary, index, cycles, origin, sizes, window):
    width, half = WIDTH, WIDTH // 2         # a constant: the loops are unrolled
    out = np.empty(len(index), dtype=np.complex128)
    w0, w1, own, other = np.empty(width), np.empty(width), np.empty(width), np.empty(width)
    for k in range(len(index)):
        i, j = index[k, 0], index[k, 1]
        p0, p1 = i * cycles[0, 0] + j * cycles[0, 1], i * cycles[1, 0] + j * cycles[1, 1]
        p1 = (p1 - math.floor(p1)) * sizes[1]
        flip = p1 > sizes[1] // 2
        if flip:
            p1, p0 = sizes[1] - p1, -p0
        p0 = (p0 - math.floor(p0)) * sizes[0]
        first0, first1 = math.ceil(p0 - half), math.ceil(p1 - half)
        z0, z1 = 2.0 * (first0 - p0 + half) - 1.0, 2.0 * (first1 - p1 + half) - 1.0
        for a in range(width):
            w0[a], w1[a] = window[0, a], window[0, a]
        for d in range(1, DEGREE + 1):
            for a in range(width):
                w0[a] = w0[a] * z0 + window[d, a]
                w1[a] = w1[a] * z1 + window[d, a]
        row, column = int(first0) + half, int(first1) + half
        for b in range(width):
            own[b], other[b] = 0.0, 0.0
        for a in range(width):
            for b in range(width):
                own[b] += w0[a] * real[row + a, column + b]
                other[b] += w0[a] * imaginary[row + a, column + b]
        re, im = 0.0, 0.0
        for b in range(width):
            re += w1[b] * own[b]
            im += w1[b] * other[b]
        if not flip:                    # the FFT has the negative exponent
            im = -im
        turn = 2.0 * math.pi * (i * origin[0] + j * origin[1])
        c, s = math.cos(turn), math.sin(turn)
        out[k] = complex(re * c - im * s, re * s + im * c)
    return out


def read_half_spectrum(weight: Tensor, index: np.ndarray, cycles: np.ndarray, first: list[float]) -> np.ndarray:
    """:func:`read_spectrum` of even weights, of which one half is given with the sums of opposite pixels: half as dear.

    Parameters
    ----------
    weight : (X, Y) real float64 tensor on the CPU
    index, cycles : see :func:`read_spectrum`
    first : two floats, pixels from the origin of the first row and column; whole numbers or halves, the first 0 or 1/2

    Returns
    -------
    (n,) float64 ndarray
    """
    rows, columns = weight.shape
    sizes = [2 * OVERSAMPLING * rows, OVERSAMPLING * (columns + columns % 2)]
    for i, (n, size) in enumerate(zip(weight.shape, sizes, strict=True)):
        place = torch.arange(n, dtype=torch.float64) + first[i]
        weight = weight / kaiser_bessel_transform(place / size, WIDTH).reshape(-1, *(1,) * (1 - i))
    padded, below = weight.new_zeros(sizes), -math.floor(first[1])
    padded[:rows, : columns - below], padded[:rows, sizes[1] - below :] = weight[:, below:], weight[:, :below]
    spectrum = torch.fft.rfft2(padded).numpy()
    halves = np.array([first[0] - math.floor(first[0]), first[1] - math.floor(first[1])])
    table = _real_and_wrapped(spectrum, halves, sizes[1])
    constants = np.asarray(cycles, float), halves, np.array(sizes), _window()
    parts = np.array_split(np.ascontiguousarray(index), min(torch.get_num_threads(), 1 + len(index) // SHARE))
    if len(parts) == 1:
        return _read_real(table, parts[0], *constants)
    with ThreadPoolExecutor(len(parts)) as pool:
        return np.concatenate([*pool.map(lambda own: _read_real(table, own, *constants), parts)])


@njit(cache=True, nogil=True)
def _real_and_wrapped(spectrum, halves, columns):
    """The transform about the origin, which is real, with as many points more on all sides as the window reaches.

    Half a pixel from the origin the transform changes its sign from one period to the next.
    """
    edge, rows, last = WIDTH // 2, len(spectrum), columns // 2
    sign0, sign1 = 1.0 - 4.0 * halves[0], 1.0 - 4.0 * halves[1]
    out = np.empty((rows + 2 * edge, last + 1 + 2 * edge))
    c1, s1 = np.empty(last + 1), np.empty(last + 1)
    for j in range(last + 1):
        turn = 2.0 * math.pi * halves[1] * j / columns
        c1[j], s1[j] = math.cos(turn), math.sin(turn)
    for i in range(rows):
        turn = 2.0 * math.pi * halves[0] * i / rows
        c0, s0 = math.cos(turn), math.sin(turn)
        for j in range(last + 1):
            value = spectrum[i, j]
            out[i + edge, j + edge] = value.real * (c0 * c1[j] - s0 * s1[j]) + value.imag * (s0 * c1[j] + c0 * s1[j])
    for i in range(rows):                   # the transform is even
        other = rows - i if i > 0 else 0
        sign = sign0 if i > 0 else 1.0
        for j in range(1, edge + 1):
            out[i + edge, edge - j] = sign * out[other + edge, edge + j]
            out[i + edge, edge + last + j] = sign * sign1 * out[other + edge, edge + last - j]
    for i in range(edge):
        out[i] = sign0 * out[rows + i]
        out[rows + edge + i] = sign0 * out[edge + i]
    return out


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _read_real(table, index, cycles, halves, sizes, window):
    width, half = WIDTH, WIDTH // 2         # a constant: the loops are unrolled
    out = np.empty(len(index))
    turns0, turns1 = halves[0] > 0, halves[1] > 0
    w0, w1, own = np.empty(width), np.empty(width), np.empty(width)
    for k in range(len(index)):
        i, j = index[k, 0], index[k, 1]
        p0, p1 = i * cycles[0, 0] + j * cycles[0, 1], i * cycles[1, 0] + j * cycles[1, 1]
        whole = math.floor(p1)
        odd = turns1 and int(whole) % 2 != 0
        p1 = (p1 - whole) * sizes[1]
        if p1 > sizes[1] // 2:
            p1, p0 = sizes[1] - p1, -p0
            odd ^= turns1
        whole = math.floor(p0)
        odd ^= turns0 and int(whole) % 2 != 0
        p0 = (p0 - whole) * sizes[0]
        first0, first1 = math.ceil(p0 - half), math.ceil(p1 - half)
        z0, z1 = 2.0 * (first0 - p0 + half) - 1.0, 2.0 * (first1 - p1 + half) - 1.0
        for a in range(width):
            w0[a], w1[a] = window[0, a], window[0, a]
        for d in range(1, DEGREE + 1):
            for a in range(width):
                w0[a] = w0[a] * z0 + window[d, a]
                w1[a] = w1[a] * z1 + window[d, a]
        row, column = int(first0) + half, int(first1) + half
        for b in range(width):
            own[b] = 0.0
        for a in range(width):
            for b in range(width):
                own[b] += w0[a] * table[row + a, column + b]
        total = 0.0
        for b in range(width):
            total += w1[b] * own[b]
        out[k] = -total if odd else total
    return out
