"""Fourier sums of a plane whose lattice rows run across the pixels: shear the pixels, and the sums factorise again.

With ``G[i, j]`` the cycles a step of pixel axis i per unit of the integer m_j, the phase of pixel (x, y) is::

    m·Gᵀ·(x, y) = m_0 (G_00 − G_10 s) x + (m_0 G_10 + m_1 G_11) t        t = y + s x,  s = G_01 / G_11

so that after every row x has been shifted by s x the sums run over one axis at a time, a phase factor between them. The
shift puts a row on a finer grid by a Kaiser-Bessel window (non-uniform FFT of one dimension; Fessler & Sutton, IEEE Trans.
Signal Process. 51, 560, 2003); everything else is exact. There is no look-up for each vector.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .windows import kaiser_bessel, kaiser_bessel_transform

WIDTH = 12                      # grid points that a pixel is spread over: 1e-11 at twofold oversampling
TURN = 2.0 * math.pi


@dataclass(frozen=True, eq=False)
class Shear:
    """One set of vectors ``low + gap · n``, ``0 ≤ n < count``, and the pixels of a plane.

    ``swap_pixels`` and ``swap_lattice`` say that both have been exchanged to keep the shear small.
    """

    swap_pixels: bool
    swap_lattice: bool
    fine: int                   # grid points a pixel
    points: int                 # grid points a row
    taps: Tensor                # (X, WIDTH) window of each row
    place: Tensor               # (fine, X, n) grid points of a spread row; every ``fine``-th of them together
    across: Tensor              # (2 M_0, X) cosines over sines of the first sum
    phase: Tensor               # (M_0, points) complex
    along: Tensor               # (points, M_1) complex
    correction: Tensor          # (M_0, M_1): the window's transform, inverse

    def analyse(self, weight: Tensor, by: Tensor | None = None, *, real: bool = False) -> Tensor:
        """``Σ w exp(2πi …)``, or the ``real`` part of it, of real weights (batch, rows, columns) times ``by`` (rows, columns).

        Returns (batch, count_0, count_1).
        """
        if self.swap_pixels:
            weight, by = weight.transpose(1, 2), None if by is None else by.T
        by = weight.new_ones(weight.shape[1:]) if by is None else by
        # one after the other: what a single weight needs stays in the cache
        if weight.device.type == "cpu":
            out = torch.stack(self._analysed(weight, by.contiguous().numpy(), real))
        else:
            out = torch.stack([self._summed(self.across @ self._sheared(own * by), real) for own in weight])
        return out.transpose(1, 2) if self.swap_lattice else out

    def _analysed(self, weight: Tensor, by: np.ndarray, real: bool) -> list[Tensor]:
        """The sums of each weight, over the rows and grid points that it has."""
        taps, start, out = self.taps.numpy(), self._start(), []
        table = np.zeros((len(taps), self.points))
        sheared = torch.from_numpy(table)
        for own in weight:
            top, end, first, last = _spread(own.contiguous().numpy(), by, taps, start, self.fine, table)
            out.append(self._summed(self.across[:, top:end] @ sheared[top:end, first:last], real, slice(first, last)))
        return out

    def _summed(self, first: Tensor, real: bool, points: slice = slice(None)) -> Tensor:
        """The second sum from the first on some grid points, cosines over sines."""
        half = len(self.phase)
        turned = torch.complex(first[:half], first[half:]).mul_(self.phase[:, points])
        if real:
            cosine, sine = self._along_parts
            return (turned.real @ cosine[points]).addmm_(turned.imag, sine[points], alpha=-1.0).mul_(self.correction)
        return (turned @ self.along[points]).mul_(self.correction)

    @cached_property
    def _along_parts(self) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of ``along``."""
        return self.along.real.contiguous(), self.along.imag.contiguous()

    def _start(self) -> np.ndarray:
        """The first grid point of each row, (X,)."""
        return self.place[0, :, 0].numpy()

    def _sheared(self, weight: Tensor) -> Tensor:
        """The rows of (X, Y) weights on the grid of t, (X, points)."""
        columns = weight.shape[1]
        spread = weight.new_zeros(*self.place.shape)
        for j in range(WIDTH):
            spread[j % self.fine, :, j // self.fine : j // self.fine + columns].addcmul_(weight, self.taps[:, j, None])
        out = weight.new_zeros(len(weight), self.points)
        for place, part in zip(self.place, spread, strict=True):
            out.scatter_(1, place, part)
        return out

    def synthesise(self, value: Tensor) -> Tensor:
        """Real part of ``Σ c exp(2πi …)`` on the pixels; value (batch, count_0, count_1) complex."""
        if self.swap_lattice:
            value = value.transpose(1, 2)
        grid = ((value * self.correction) @ self.along.T) * self.phase
        rows = self.across.T @ torch.cat([grid.real, -grid.imag], 1)
        columns = self.place.shape[2] + 1 - -(-WIDTH // self.fine)
        if rows.device.type == "cpu":
            taps, start = self.taps.numpy(), self._start()
            out = torch.from_numpy(np.stack([_gathered(own, taps, start, self.fine, columns) for own in rows.contiguous().numpy()]))
        else:
            out = self._read(rows, columns)
        return out.transpose(1, 2) if self.swap_pixels else out

    def _read(self, rows: Tensor, columns: int) -> Tensor:
        """The pixels (batch, X, Y) from rows on the grid of t, (batch, X, points)."""
        out = rows.new_zeros(*rows.shape[:2], columns)
        for q, place in enumerate(self.place):
            part = rows.gather(2, place.expand(len(rows), -1, -1))
            for k, j in enumerate(range(q, WIDTH, self.fine)):
                out = out + part[..., k : k + columns] * self.taps[:, j, None]
        return out


@njit(cache=True, nogil=True, fastmath={"contract"})
def _spread(weight, by, taps, start, fine, out):
    """:meth:`Shear._sheared` of ``weight · by`` in one go, into ``out``; only the rows that it returns the range of count, with the
    range of the grid points that do not vanish on them."""
    rows, columns = weight.shape
    width = taps.shape[1]
    own = np.zeros(columns)
    part = np.empty((fine, columns + width // fine + 1))
    top, end, first, last = rows, 0, out.shape[1], 0
    for x in range(rows):
        left, right = columns, 0
        for y in range(columns):
            if weight[x, y] != 0.0 and by[x, y] != 0.0:
                left = min(left, y)
                right = y + 1
        if right == 0:
            if end > 0:
                out[x] = 0.0
            continue
        for y in range(left, right):
            own[y] = weight[x, y] * by[x, y]
        length = right - left - 1 + -(-width // fine)
        part[:, :length] = 0.0
        for j in range(width):
            tap, q, k = taps[x, j], j % fine, j // fine
            for y in range(left, right):
                part[q, k + y - left] += tap * own[y]
        place = start[x] + left * fine
        out[x, :place] = 0.0
        out[x, place + length * fine :] = 0.0
        for q in range(fine):
            for n in range(length):
                out[x, place + n * fine + q] = part[q, n]
        top, end = min(top, x), x + 1
        first, last = min(first, place), max(last, place + length * fine)
    if end == 0:
        return 0, 0, 0, 0
    return top, end, first, last


@njit(cache=True, nogil=True, fastmath={"contract"})
def _gathered(rows, taps, start, fine, columns):
    """:meth:`Shear._read` of one set of rows."""
    out = np.zeros((len(rows), columns))
    last = columns - 1 + -(-taps.shape[1] // fine)
    part = np.zeros((fine, last))
    for x in range(len(rows)):
        for q in range(fine):
            for n in range(last):
                part[q, n] = rows[x, start[x] + n * fine + q]
        for j in range(taps.shape[1]):
            tap, q, k = taps[x, j], j % fine, j // fine
            for y in range(columns):
                out[x, y] += tap * part[q, k + y]
    return out


def make_shear(axes: tuple[Tensor, Tensor], to_lattice: Tensor, divisions: tuple[int, int], low: tuple[int, int],
               gap: tuple[int, int], count: tuple[int, int]) -> Shear:
    """Tables for the vectors ``(low + gap · n) / divisions`` of the lattice coordinates ``x @ to_lattice``."""
    device = to_lattice.device
    steps = torch.stack([axis[1] - axis[0] for axis in axes])
    cycles = (steps[:, None] * to_lattice / torch.tensor(divisions, dtype=torch.float64, device=device)).tolist()
    first = [float(axis[0] / (axis[1] - axis[0])) for axis in axes]         # pixels from the origin, where all phases are zero
    sizes = [len(axis) for axis in axes]
    swap_pixels, swap_lattice = _smallest(cycles)
    if swap_pixels:
        cycles, sizes, first = cycles[::-1], sizes[::-1], first[::-1]
    if swap_lattice:
        cycles = [row[::-1] for row in cycles]
        low, gap, count = low[::-1], gap[::-1], count[::-1]
    m = [a + g * torch.arange(n, dtype=torch.float64, device=device) for a, g, n in zip(low, gap, count, strict=True)]
    slant = cycles[0][1] / cycles[1][1]
    frequency = m[0][:, None] * cycles[1][0] + m[1] * cycles[1][1]
    fine = max(1, math.ceil(4.0 * float(frequency.abs().max()) - 1e-9))
    x = torch.arange(sizes[0], dtype=torch.float64, device=device) + first[0]
    offset = fine * slant * x
    base = torch.ceil(offset - WIDTH / 2)
    taps = kaiser_bessel((offset - base)[:, None] - torch.arange(WIDTH, dtype=torch.float64, device=device), WIDTH)
    start = float(base.min())
    length = sizes[1] - 1 + -(-WIDTH // fine)
    place = torch.arange(length, device=device) * fine + torch.arange(fine, device=device)[:, None, None]
    place = place + (base - start).long()[:, None]
    points = int(base.max() - start) + fine * length
    t = (torch.arange(points, dtype=torch.float64, device=device) + start) / fine + first[1]
    turn = TURN * m[0][:, None] * ((cycles[0][0] - cycles[1][0] * slant) * x)
    across = torch.cat([turn.cos(), turn.sin()])
    phase = _wave(m[0][:, None] * (cycles[1][0] * t))
    along = _wave(t[:, None] * (cycles[1][1] * m[1]))
    correction = 1.0 / kaiser_bessel_transform(frequency / fine, WIDTH)
    return Shear(swap_pixels, swap_lattice, fine, points, taps, place, across, phase, along, correction)


def _smallest(cycles: list[list[float]]) -> tuple[bool, bool]:
    """Which exchange of pixel axes and of lattice rows makes the shear smallest."""
    found = []
    for pixels in (False, True):
        for lattice in (False, True):
            up, down = (cycles[0], cycles[1])[:: -1 if pixels else 1]
            top, bottom = (up[0], down[0]) if lattice else (up[1], down[1])
            if bottom != 0.0:
                found.append((abs(top / bottom), pixels, lattice))
    return min(found)[1:]


def _wave(cycles: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(cycles), TURN * cycles)
