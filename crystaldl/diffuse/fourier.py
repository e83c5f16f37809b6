"""Fourier sums between the pixels of a regular grid and a fine lattice of direct-space vectors.

Everything that factorising needs is a sum over pixels of the form ``Σ_x w(x) exp(2πi r·x)``: products of two
cosines are cosines of the sum and the difference, so whole normal matrices are look-ups in one table of such sums
(a Toeplitz plus a Hankel matrix). Where the lattice rows run along the pixel axes the sums factorise into one small
matrix product an axis; elsewhere they are read off an oversampled FFT (non-uniform FFT of type 2, Kaiser-Bessel
window; Fessler & Sutton, IEEE Trans. Signal Process. 51, 560, 2003).
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

KERNEL_WIDTH = 8                # FFT points an axis that one frequency reads: 1e-8 at twofold oversampling
OVERSAMPLING = 2


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
    """

    axes: tuple[Tensor, ...]
    to_lattice: Tensor
    divisions: tuple[int, ...]
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
        if self.aligned:
            return self._dense(weight, index)
        nu = self.frequencies(index)
        waves = [torch.exp(2j * math.pi * nu[:, i, None] * axis) for i, axis in enumerate(self.axes)]
        if self.ndim == 2:
            return ((weight[..., None, :] * waves[0].T) @ waves[1]).real
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
        for i in range(self.ndim):
            wave = self._wave(i, low[i], gaps[i], sizes[i])
            out = torch.movedim(torch.movedim(out, i - self.ndim, -1) @ wave, -1, i - self.ndim)
        return out.real

    def _wave(self, i: int, start: int, step: int, count: int) -> Tensor:
        """``exp(2πi m u_i / divisions_i)`` for ``m = start, start + step, …`` on the pixels of one axis, (count, n_i)."""
        key = (i, start, step, count)
        if key not in self._tables:
            m = start + step * torch.arange(count, device=self.axes[i].device, dtype=torch.float64)
            phase = m[:, None] * self.axes[i] * (2.0 * math.pi * self.to_lattice[i, i] / self.divisions[i])
            self._tables[key] = torch.polar(torch.ones_like(phase), phase)
        return self._tables[key]

    # ------------------------------------------------------------------ pixels to direct space

    def moments(self, weight: Tensor, reach: tuple[int, ...], stride: tuple[int, ...] | None = None) -> Tensor:
        """``Σ_x w(x) exp(2πi r·u)`` for all ``r = stride · m / divisions`` with ``|m_i| ≤ reach_i``.

        Parameters
        ----------
        weight : (..., *shape) tensor
        reach : tuple of int
        stride : tuple of int, optional
            1 along each axis when left out.

        Returns
        -------
        (..., 2 reach_1 + 1, …) complex tensor, the zero frequency in the middle
        """
        stride = stride or (1,) * self.ndim
        if self.aligned:
            out = weight.to(torch.complex128)
            for i in range(self.ndim):
                wave = self._wave(i, -reach[i] * stride[i], stride[i], 2 * reach[i] + 1)
                out = torch.movedim(torch.movedim(out, i - self.ndim, -1) @ wave.T, -1, i - self.ndim)
            return out
        ranges = [torch.arange(-n, n + 1, device=weight.device) * s for n, s in zip(reach, stride, strict=True)]
        index = torch.stack(torch.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, self.ndim)
        out = self._nonuniform(weight, self.frequencies(index))
        return out.reshape(*weight.shape[: weight.ndim - self.ndim], *(len(r) for r in ranges))

    def _nonuniform(self, weight: Tensor, nu: Tensor) -> Tensor:
        """``Σ_x w(x) exp(2πi ν·x)`` at frequencies ν (n, ndim) in cycles a unit of the coordinates."""
        sizes, out = [OVERSAMPLING * len(axis) for axis in self.axes], weight.to(torch.complex128)
        steps = [float(axis[1] - axis[0]) for axis in self.axes]
        middle = [len(axis) // 2 for axis in self.axes]
        for i, size in enumerate(sizes):
            n = torch.arange(len(self.axes[i]), device=weight.device, dtype=torch.float64) - middle[i]
            out = out / _kernel_transform(n / size).reshape(-1, *(1,) * (self.ndim - 1 - i))
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
            weights.append(_kernel(position[:, None] - points))
        values = self._gather(spectrum, lookups, weights)
        start = torch.stack([axis[m] for axis, m in zip(self.axes, middle, strict=True)])
        return values * torch.exp(2j * math.pi * (nu @ start))

    def _gather(self, spectrum: Tensor, lookups: list[Tensor], weights: list[Tensor]) -> Tensor:
        if self.ndim == 2:
            taken = spectrum[..., lookups[0][:, :, None], lookups[1][:, None, :]]
            return torch.einsum("...nab,na,nb->...n", taken, *(w.to(taken.dtype) for w in weights))
        total = 0
        for a in range(KERNEL_WIDTH):
            taken = spectrum[..., lookups[0][:, a, None, None], lookups[1][:, :, None], lookups[2][:, None, :]]
            part = torch.einsum("...nab,na,nb->...n", taken, *(w.to(taken.dtype) for w in weights[1:]))
            total = total + part * weights[0][:, a]
        return total


_BETA = math.pi * math.sqrt((KERNEL_WIDTH / OVERSAMPLING) ** 2 * (OVERSAMPLING - 0.5) ** 2 - 0.8)


def _kernel(x: Tensor) -> Tensor:
    """Kaiser-Bessel window of ``KERNEL_WIDTH`` points."""
    inside = (1.0 - (2.0 * x / KERNEL_WIDTH) ** 2).clamp(min=0.0)
    return torch.special.i0(_BETA * inside.sqrt()) / KERNEL_WIDTH * (inside > 0)


def _kernel_transform(nu: Tensor) -> Tensor:
    """Fourier transform of the window at ``nu`` cycles a point."""
    root = torch.sqrt(_BETA**2 - (math.pi * KERNEL_WIDTH * nu) ** 2)
    return torch.sinh(root) / root


def gram(table: Tensor, reach: tuple[int, ...], rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """``Σ_x w f_a f_b`` for cosines and sines from the table of moments of ``w``.

    Parameters
    ----------
    table : complex tensor of :meth:`FourierGrid.moments`
    reach : tuple of int
        That of the table.
    rows, columns : (index, is_sine)
        Integer vectors (n, ndim) and a bool (n,): the function is cos or sin of 2π r·u.

    Returns
    -------
    (n_rows, n_columns) tensor, float64
    """
    (a, a_sine), (b, b_sine) = rows, columns
    plus, minus = _look_up(table, reach, a[:, None] + b[None]), _look_up(table, reach, a[:, None] - b[None])
    if not (bool(a_sine.any()) or bool(b_sine.any())):
        return 0.5 * (plus.real + minus.real)
    a_sine, b_sine = a_sine[:, None], b_sine[None]
    cosine = torch.where(a_sine, 0.5 * (plus.imag + minus.imag), 0.5 * (plus.real + minus.real))
    sine = torch.where(a_sine, 0.5 * (minus.real - plus.real), 0.5 * (plus.imag - minus.imag))
    return torch.where(b_sine, sine, cosine)


def project(table: Tensor, reach: tuple[int, ...], functions: tuple[Tensor, Tensor]) -> Tensor:
    """``Σ_x w f_a`` of the cosines and sines; the table may have leading dimensions, (..., n)."""
    index, is_sine = functions
    taken = _look_up(table, reach, index)
    return torch.where(is_sine, taken.imag, taken.real)


def _look_up(table: Tensor, reach: tuple[int, ...], index: Tensor) -> Tensor:
    return table[(..., *(index[..., i] + reach[i] for i in range(index.shape[-1])))]
