"""Fourier sums between the pixels of a regular grid and a fine lattice of direct-space vectors.

Everything that factorising needs is a sum over pixels of the form ``Σ_x w(x) exp(2πi r·x)``: products of two
cosines are cosines of the sum and the difference, so whole normal matrices are look-ups in one table of such sums
(a Toeplitz plus a Hankel matrix). Where the lattice rows run along the pixel axes the sums factorise into one small
matrix product an axis. In a plane whose lattice rows run across the pixels they do after a shear (`shear`), and few of
very many are read off an oversampled FFT (`spectrum`), as all are in such a volume (non-uniform FFT of type 2,
Kaiser-Bessel window; Fessler & Sutton, IEEE Trans. Signal Process. 51, 560, 2003).
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .shear import Shear, make_shear
from .spectrum import read_half_spectrum, read_spectrum
from .windows import OVERSAMPLING, kaiser_bessel, kaiser_bessel_transform

FEW = 16000                     # moments of a plane up to which all of them are dearer to read off than to sum
KERNEL_WIDTH = 8                # FFT points an axis that one frequency reads: 1e-8 at twofold oversampling


@dataclass(frozen=True, eq=False)
class FourierGrid:
    """Pixels ``x = (x_1[i], x_2[j], …)`` and the frequencies ``m / divisions`` of the lattice coordinates ``u = x @ to_lattice``.

    Attributes
    ----------
    axes : tuple of (n_i,) tensors, float64
        Uniform coordinates of the pixels.
    to_lattice : (ndim, ndim) tensor
        Takes coordinates to lattice coordinates, in which the ordered structure has period 1.
    divisions : tuple of int
        The lattice of direct-space vectors has steps of ``1 / divisions`` of a lattice vector.
    mirrored : bool
        The pixels are half of a plane and stand for their opposites, too (`folding`): sums over them are real.
    """

    axes: tuple[Tensor, ...]
    to_lattice: Tensor
    divisions: tuple[int, ...]
    mirrored: bool = False
    _tables: dict = field(default_factory=dict, repr=False)

    @property
    def ndim(self) -> int:
        return len(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    @property
    def aligned(self) -> bool:
        """Whether lattice rows run along the pixel axes, so that the sums factorise."""
        off = self.to_lattice - torch.diag(torch.diagonal(self.to_lattice))
        return bool(off.abs().max() <= 1e-12 * self.to_lattice.abs().max())

    def with_lattice(self, to_lattice: Tensor) -> FourierGrid:
        """The same pixels and divisions in another lattice."""
        return FourierGrid(self.axes, to_lattice, self.divisions)

    def of_half(self, axes: tuple[Tensor, ...]) -> FourierGrid:
        """The grid of one half of the pixels, which stand for their opposites, too."""
        if "half" not in self._tables:
            self._tables["half"] = FourierGrid(axes, self.to_lattice, self.divisions, True)
        return self._tables["half"]

    def coordinates(self) -> Tensor:
        """Lattice coordinates ``u`` of the pixels, (ndim, *shape)."""
        if "u" not in self._tables:
            x = torch.stack(torch.meshgrid(*self.axes, indexing="ij"))
            self._tables["u"] = torch.einsum("i...,ij->j...", x, self.to_lattice)
        return self._tables["u"]

    def frequencies(self, index: Tensor) -> Tensor:
        """Cycles a unit of the coordinates of the integer vectors ``index`` (n, ndim)."""
        divisions = torch.tensor(self.divisions, dtype=torch.float64, device=index.device)
        return (index.to(torch.float64) / divisions) @ self.to_lattice.T

    # ------------------------------------------------------------------ direct space to pixels

    def synthesize(self, cosine: Tensor, sine: Tensor | None, index: Tensor) -> Tensor:
        """``Σ_n cosine_n cos(2π r_n·u) + sine_n sin(2π r_n·u)`` on the pixels; coefficients (..., n), index (n, ndim)."""
        weight = cosine.to(torch.complex128)
        if sine is not None:
            weight = torch.complex(cosine.double(), -sine.double())
        if self.aligned or self.ndim == 2:
            return self._dense(weight, index)
        nu = self.frequencies(index)
        waves = [torch.exp(2j * math.pi * nu[:, i, None] * axis) for i, axis in enumerate(self.axes)]
        flat = (waves[1][:, :, None] * waves[2][:, None, :]).flatten(1)
        return ((weight[..., None, :] * waves[0].T) @ flat).real.unflatten(-1, self.shape[1:])

    def _dense(self, weight: Tensor, index: Tensor) -> Tensor:
        """Coefficients on the box of all frequencies, then one axis after the other."""
        low, high = index.amin(0).tolist(), index.amax(0).tolist()
        gaps = [math.gcd(*column) or 1 for column in (index - index.amin(0)).T.tolist()]
        sizes = [(h - lo) // g + 1 for lo, h, g in zip(low, high, gaps, strict=True)]
        place = torch.zeros(len(index), dtype=torch.long, device=index.device)
        for i, (lo, g, n) in enumerate(zip(low, gaps, sizes, strict=True)):
            place = place * n + (index[:, i] - lo) // g
        out = weight.new_zeros((*weight.shape[:-1], math.prod(sizes)))
        out.index_add_(-1, place, weight)
        out = out.unflatten(-1, sizes)
        if not self.aligned:
            lead = out.shape[:-2]
            return self._shear(tuple(low), tuple(gaps), tuple(sizes)).synthesise(out.flatten(0, -3) if lead else out[None]).reshape(
                *lead, *self.shape)
        for i in range(self.ndim - 1, 0, -1):
            out = torch.movedim(torch.movedim(out, i - self.ndim, -1) @ self._wave(i, low[i], gaps[i], sizes[i]), -1, i - self.ndim)
        wave = self._wave(0, low[0], gaps[0], sizes[0])
        real = torch.cat([wave.real, -wave.imag]).T @ torch.cat([out.real, out.imag], -self.ndim).flatten(1 - self.ndim)
        return real.unflatten(-1, self.shape[1:])

    def _wave(self, i: int, start: int, step: int, count: int) -> Tensor:
        """``exp(2πi m u_i / divisions_i)`` for ``m = start, start + step, …`` on the pixels of one axis, (count, n_i)."""
        key = (i, start, step, count)
        if key not in self._tables:
            m = start + step * torch.arange(count, device=self.axes[i].device, dtype=torch.float64)
            phase = m[:, None] * self.axes[i] * (2.0 * math.pi * self.to_lattice[i, i] / self.divisions[i])
            self._tables[key] = torch.polar(torch.ones_like(phase), phase)
        return self._tables[key]

    # ------------------------------------------------------------------ pixels to direct space

    def moments(self, weight: Tensor, reach: tuple[int, ...], stride: tuple[int, ...] | None = None,
                wanted: Tensor | None = None) -> Tensor:
        """``Σ_x w(x) exp(2πi r·u)`` for all ``r = stride · m / divisions`` with ``|m_i| ≤ reach_i``.

        Parameters
        ----------
        weight : (..., *shape) tensor
        reach : tuple of int
        stride : tuple of int, optional
            1 along each axis when left out.
        wanted : (2 reach_1 + 1, …) bool tensor, optional
            The entries that will be read, symmetric about the middle; others may come out as zero.

        Returns
        -------
        (..., 2 reach_1 + 1, …) complex tensor, real where pixels stand for two; the zero frequency in the middle
        """
        stride = stride or (1,) * self.ndim
        if not self.aligned and self.ndim == 3:
            ranges = [torch.arange(-n, n + 1, device=weight.device) * s for n, s in zip(reach, stride, strict=True)]
            index = torch.stack(torch.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, self.ndim)
            out = self._nonuniform(weight, self.frequencies(index))
            return out.reshape(*weight.shape[: weight.ndim - self.ndim], *(len(r) for r in ranges))
        lead = weight.shape[: weight.ndim - self.ndim]
        if not self.aligned and weight.ndim == 2 and weight.device.type == "cpu" and math.prod(2 * r + 1 for r in reach) > FEW:
            return self._read(weight, reach, stride, wanted)
        half = self._half(weight.reshape(-1, *self.shape), reach, stride, real=self.mirrored)
        # weights are real: the sum at −r is the conjugate of that at r
        other = half[:, 1:].flip(tuple(range(1, half.ndim))).conj()
        return torch.cat([other, half], 1).reshape(*lead, *(2 * r + 1 for r in reach))

    def _half(self, weight: Tensor, reach: tuple[int, ...], stride: tuple[int, ...], by: Tensor | None = None, *,
              real: bool = False) -> Tensor:
        """Moments of (n, *shape) weights for ``m_1 ≥ 0``; where rows run across the pixels, of weights times ``by``."""
        low = (0, *(-r * s for r, s in zip(reach[1:], stride[1:], strict=True)))
        count = (reach[0] + 1, *(2 * r + 1 for r in reach[1:]))
        if not self.aligned:
            return self._shear(low, stride, count).analyse(weight, by, real=real)
        wave = self._wave(0, 0, stride[0], count[0])
        first = torch.cat([wave.real, wave.imag]) @ weight.flatten(2)
        out = torch.complex(first[:, : count[0]], first[:, count[0] :]).unflatten(-1, self.shape[1:])
        for i in range(1, self.ndim):
            wave = self._wave(i, low[i], stride[i], count[i])
            out = torch.movedim(torch.movedim(out, i - self.ndim, -1) @ wave.T, -1, i - self.ndim)
        return out.real if real else out

    def project(self, weight: Tensor, functions: tuple[Tensor, Tensor], reach: tuple[int, ...],
                stride: tuple[int, ...] | None = None, by: Tensor | None = None) -> Tensor:
        """``Σ_x w f_a`` of cosines and sines, weights (..., *shape) times ``by`` (*shape), result (..., n).

        The vectors are in units of ``stride``.
        """
        if self.aligned or self.ndim == 3:
            return project(self.moments(weight if by is None else weight * by, reach, stride), reach, functions)
        lead = weight.shape[: weight.ndim - 2]
        index, is_sine = functions
        real = self.mirrored or not bool(is_sine.any())
        half = self._half(weight.reshape(-1, *self.shape), reach, stride or (1, 1), by, real=real)
        # of the sums at r and −r one is there, and the other its conjugate
        below = index[:, 0] < 0
        index = torch.where(below[:, None], -index, index)
        taken = half[:, index[:, 0], index[:, 1] + reach[1]]
        if real:
            return taken.reshape(*lead, len(index))
        return torch.where(is_sine, torch.where(below, -taken.imag, taken.imag), taken.real).reshape(*lead, len(index))

    def _pixel_cycles(self) -> tuple[Tensor, Tensor]:
        """Cycles that a step along each axis adds for a unit of the integers, (ndim, ndim), and at the middle pixel."""
        divisions = torch.tensor(self.divisions, dtype=torch.float64, device=self.to_lattice.device)
        steps, middle = (torch.stack(v) for v in ([a[1] - a[0] for a in self.axes], [a[len(a) // 2] for a in self.axes]))
        return steps[:, None] * self.to_lattice / divisions, middle @ self.to_lattice / divisions

    def _read(self, weight: Tensor, reach: tuple[int, ...], stride: tuple[int, ...], wanted: Tensor | None) -> Tensor:
        """Moments of one weight on the pixels of a plane, the wanted ones only."""
        shape = tuple(2 * r + 1 for r in reach)
        if wanted is None:
            half = np.arange(math.prod(shape) // 2, math.prod(shape))
        else:
            half = np.flatnonzero(wanted.numpy().ravel()[math.prod(shape) // 2 :]) + math.prod(shape) // 2
        index = (np.stack(np.unravel_index(half, shape), 1) - np.array(reach)) * np.array(stride)
        cycles, origin = (t.numpy() for t in self._pixel_cycles())
        if self.mirrored:
            first = [float(axis[0] / (axis[1] - axis[0])) for axis in self.axes]
            table = np.zeros(math.prod(shape))
            table[half] = table[len(table) - 1 - half] = read_half_spectrum(weight, index, cycles, first)
            return torch.from_numpy(table.reshape(shape))
        out = np.zeros(math.prod(shape), dtype=np.complex128)
        values = read_spectrum(weight, index, cycles, origin)
        out[half], out[len(out) - 1 - half] = values, values.conj()
        return torch.from_numpy(out.reshape(shape))

    def _shear(self, low: tuple[int, ...], gap: tuple[int, ...], count: tuple[int, ...]) -> Shear:
        key = ("shear", low, tuple(gap), count)
        if key not in self._tables:
            self._tables[key] = make_shear(self.axes, self.to_lattice, self.divisions, low, tuple(gap), count)
        return self._tables[key]

    def _nonuniform(self, weight: Tensor, nu: Tensor) -> Tensor:
        """``Σ_x w(x) exp(2πi ν·x)`` at frequencies ν (n, ndim) in cycles a unit of the coordinates."""
        sizes, out = [OVERSAMPLING * len(axis) for axis in self.axes], weight.to(torch.complex128)
        steps = [float(axis[1] - axis[0]) for axis in self.axes]
        middle = [len(axis) // 2 for axis in self.axes]
        for i, size in enumerate(sizes):
            n = torch.arange(len(self.axes[i]), device=weight.device, dtype=torch.float64) - middle[i]
            out = out / kaiser_bessel_transform(n / size, KERNEL_WIDTH).reshape(-1, *(1,) * (self.ndim - 1 - i))
        padded = torch.zeros(*out.shape[: out.ndim - self.ndim], *sizes, dtype=out.dtype, device=out.device)
        padded[(..., *(slice(0, n) for n in self.shape))] = out
        padded = torch.roll(padded, [-m for m in middle], dims=tuple(range(-self.ndim, 0)))
        # the positive exponent is the inverse transform without its 1/N
        spectrum = torch.fft.ifftn(padded, dim=tuple(range(-self.ndim, 0))) * math.prod(sizes)
        lookups, weights = [], []
        for i, size in enumerate(sizes):
            position = nu[:, i] * steps[i] * size
            first = torch.ceil(position - KERNEL_WIDTH / 2)
            points = first[:, None] + torch.arange(KERNEL_WIDTH, device=nu.device)
            lookups.append(points.long() % size)
            weights.append(kaiser_bessel(position[:, None] - points, KERNEL_WIDTH))
        values = self._gather(spectrum, lookups, weights)
        start = torch.stack([axis[m] for axis, m in zip(self.axes, middle, strict=True)])
        return values * torch.exp(2j * math.pi * (nu @ start))

    @staticmethod
    def _gather(spectrum: Tensor, lookups: list[Tensor], weights: list[Tensor]) -> Tensor:
        total = 0
        for a in range(KERNEL_WIDTH):
            taken = spectrum[..., lookups[0][:, a, None, None], lookups[1][:, :, None], lookups[2][:, None, :]]
            part = torch.einsum("...nab,na,nb->...n", taken, *(w.to(taken.dtype) for w in weights[1:]))
            total = total + part * weights[0][:, a]
        return total


def cell_place(u: Tensor, parts: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Number of the nearest point of a grid of ``shape`` over the box of ``parts`` units of the coordinates u (ndim, n)."""
    place = torch.zeros(u.shape[1], dtype=torch.long, device=u.device)
    for own, n, d in zip(u, shape, parts, strict=True):
        place = place * n + (torch.remainder(own / d, 1.0) * n + 0.5).floor().long() % n
    return place


def gram(table: Tensor, reach: tuple[int, ...], rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """:class:`Gram` of one table."""
    return Gram(reach, rows, columns)(table)


class Gram:
    """``Σ_x w f_a f_b`` for cosines and sines from tables of moments of any w.

    Parameters
    ----------
    reach : tuple of int
        That of the tables.
    rows, columns : (index, is_sine)
        Integer vectors (n, ndim) and a bool (n,): the function is cos or sin of 2π r·u.
    """

    def __init__(self, reach: tuple[int, ...], rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> None:
        (a, a_sine), (b, b_sine) = rows, columns
        span = torch.tensor([math.prod(2 * r + 1 for r in reach[i + 1 :]) for i in range(len(reach))], device=a.device)
        middle = int((span * torch.tensor(reach, device=a.device)).sum())
        a, b = (a * span).sum(1)[:, None], (b * span).sum(1)[None]
        self.plus, self.minus = middle + a + b, middle + a - b
        self.wanted = torch.zeros(math.prod(2 * r + 1 for r in reach), dtype=torch.bool, device=a.device)
        for places in (self.plus, self.minus):
            self.wanted[places.flatten()] = True
        self.wanted |= self.wanted.flip(0)          # the sum at −r comes with that at r
        self.even = not (bool(a_sine.any()) or bool(b_sine.any()))
        self.sines = a_sine[:, None], b_sine[None]

    def __call__(self, table: Tensor) -> Tensor:
        """The (n_rows, n_columns) float64 matrix from the complex table of :meth:`FourierGrid.moments`."""
        real = table.real.contiguous()
        plus, minus = real.take(self.plus), real.take(self.minus)
        if self.even:
            return plus.add_(minus).mul_(0.5)
        imaginary = table.imag.contiguous()
        plus_i, minus_i = imaginary.take(self.plus), imaginary.take(self.minus)
        a_sine, b_sine = self.sines
        cosine = torch.where(a_sine, plus_i + minus_i, plus + minus)
        sine = torch.where(a_sine, minus - plus, plus_i - minus_i)
        return torch.where(b_sine, sine, cosine).mul_(0.5)


def project(table: Tensor, reach: tuple[int, ...], functions: tuple[Tensor, Tensor]) -> Tensor:
    """``Σ_x w f_a`` of the cosines and sines; the table may have leading dimensions, (..., n)."""
    index, is_sine = functions
    taken = table[(..., *(index[..., i] + reach[i] for i in range(index.shape[-1])))]
    return torch.where(is_sine, taken.imag, taken.real) if taken.is_complex() else taken
