"""Multislice: a convergent probe or a plane wave through a crystal, every exit plane free.

The slices' potentials come from the same scattering factors as the Bloch waves; all Laue zones are in it. Convention of
the phase object: ``exp(i π λ ∫U dz)`` with ``U = 2 m e V / h²``; propagator ``exp(-i π λ k² dz)``. Frequencies beyond two
thirds of the grid's are cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .electrons import coupling, gaussians, wavelength


@dataclass(frozen=True)
class Slab:
    """A periodic, orthogonal cell cut into slices.

    Attributes
    ----------
    edges : (3,) Å; the beam runs along the third
    transmission : (S, Ny, Nx) complex64, of each slice in one repeat
    dz : float, slice thickness, Å
    voltage : float, kV
    """

    edges: np.ndarray
    transmission: Tensor
    dz: float
    voltage: float

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.transmission.shape[1:])


def make_slab(
    edges, numbers, positions, shape, *, voltage, b_iso=0.5, dz=2.0, absorption=0.0, repeat=(1, 1), device="cpu"
) -> Slab:
    """Transmission functions of a cell.

    Parameters
    ----------
    edges : (3,) Å
    numbers, positions : (n,), (n, 3) fractional
    shape : (Ny, Nx)
        Grid of the repeated cell; must be multiples of ``repeat``. Axis 0 runs along the first edge.
    b_iso : float
        Displacement parameter B, Å².
    dz : float
        Wanted slice thickness, Å; the repeat along the beam is cut into equal slices.
    repeat : (int, int)
        Repeats of the cell across the grid.
    """
    edges, positions = np.asarray(edges, dtype=float), np.asarray(positions, dtype=float) % 1.0
    ny, nx = shape[0] // repeat[0], shape[1] // repeat[1]
    if (ny * repeat[0], nx * repeat[1]) != tuple(shape):
        raise ValueError(f"shape is {tuple(shape)}; expected multiples of repeat, {tuple(repeat)}.")
    slices = max(1, int(round(edges[2] / dz)))
    ky = torch.fft.fftfreq(ny, edges[0] / ny, device=device, dtype=torch.float64)
    kx = torch.fft.fftfreq(nx, edges[1] / nx, device=device, dtype=torch.float64)
    q2 = ky[:, None] ** 2 + kx**2
    a, b = gaussians()
    which = np.floor(positions[:, 2] * slices + 1e-6).astype(int) % slices
    phase = torch.zeros(slices, ny, nx, dtype=torch.complex128, device=device)
    for z in np.unique(numbers):
        factor = sum(ai * torch.exp(-(bi + b_iso) * 0.25 * q2) for ai, bi in zip(a[z], b[z], strict=True))
        for atom in np.flatnonzero(numbers == z):
            y, x = positions[atom, :2] * edges[:2]
            wave = torch.exp(-2j * np.pi * ky * y)[:, None] * torch.exp(-2j * np.pi * kx * x)
            phase[which[atom]] += factor * wave
    scale = np.pi * wavelength(voltage) * coupling(voltage) / (edges[0] * edges[1])
    projected = torch.fft.ifft2(phase * band_limit(ky, kx)).real * (ny * nx * scale)
    transmission = torch.exp((1j - absorption) * projected).to(torch.complex64)
    return Slab(edges * [*repeat, 1], transmission.tile(1, *repeat), edges[2] / slices, voltage)


def band_limit(ky: Tensor, kx: Tensor) -> Tensor:
    """1 within two thirds of the smaller Nyquist frequency, else 0."""
    limit = 2 / 3 * min(float(ky.abs().max()), float(kx.abs().max()))
    return (ky[:, None] ** 2 + kx**2 <= limit**2).to(ky.dtype)


def propagate(slab: Slab, wave: Tensor, thicknesses, *, tilt: Tensor | None = None) -> Tensor:
    """Exit waves at the given thicknesses.

    Parameters
    ----------
    slab : Slab
    wave : (D, Ny, Nx) complex tensor
        Incident wave in real space.
    thicknesses : sequence of float, Å
        Rounded to whole slices.
    tilt : (D, 2) tensor, optional
        Transverse part of the incident wave vector, Å⁻¹; the waves are then relative to that plane wave.

    Returns
    -------
    (T, D, Ny, Nx) complex tensor
    """
    device = wave.device
    ky = torch.fft.fftfreq(slab.shape[0], slab.edges[0] / slab.shape[0], device=device)
    kx = torch.fft.fftfreq(slab.shape[1], slab.edges[1] / slab.shape[1], device=device)
    q2 = ky[:, None] ** 2 + kx**2
    if tilt is not None:
        q2 = q2 + 2 * (tilt[:, :1, None] * ky[:, None] + tilt[:, 1:, None] * kx)
    angle = -np.pi * wavelength(slab.voltage) * slab.dz * q2
    propagator = torch.polar(band_limit(ky, kx).expand_as(angle).contiguous(), angle)
    wanted = [int(round(t / slab.dz)) for t in thicknesses]
    out = {0: wave}
    slices = len(slab.transmission)
    for n in range(1, max(wanted) + 1):
        wave = torch.fft.ifft2(torch.fft.fft2(wave * slab.transmission[(n - 1) % slices]) * propagator)
        if n in wanted:
            out[n] = wave
    return torch.stack([out[n] for n in wanted])


def plane_wave_beams(slab: Slab, tilts: Tensor, thicknesses) -> Tensor:
    """Intensities (T, D, Ny, Nx) of the beams of a periodic cell for plane waves of transverse wave vector (D, 2), Å⁻¹.

    Beam (i, j) of the last two axes has ``g = fftfreq · (1/edge)``, in the order of `torch.fft.fft2`.
    """
    wave = torch.ones(len(tilts), *slab.shape, dtype=torch.complex64, device=tilts.device)
    exit_waves = propagate(slab, wave, thicknesses, tilt=tilts.float())
    return (torch.fft.fft2(exit_waves) / (slab.shape[0] * slab.shape[1])).abs() ** 2


def convergent_probe(slab: Slab, semiangle: float, *, edge: float = 0.05, tilt=(0.0, 0.0), position=(0.5, 0.5)) -> Tensor:
    """Incident wave (Ny, Nx) of a probe; unit total intensity in Fourier space.

    Parameters
    ----------
    semiangle : float, rad
    edge : float
        Standard deviation of the aperture's soft edge relative to its radius (of the intensity).
    tilt : (float, float)
        Centre of the aperture, Å⁻¹.
    position : (float, float)
        Of the probe in the cell, fractional.
    """
    radius = semiangle / wavelength(slab.voltage)
    ky = torch.fft.fftfreq(slab.shape[0], slab.edges[0] / slab.shape[0], dtype=torch.float64)
    kx = torch.fft.fftfreq(slab.shape[1], slab.edges[1] / slab.shape[1], dtype=torch.float64)
    r = torch.hypot(ky[:, None] - tilt[0], kx - tilt[1])
    amplitude = torch.special.ndtr((radius - r) / (edge * radius)).sqrt()
    shift = -2 * np.pi * (ky[:, None] * position[0] * slab.edges[0] + kx * position[1] * slab.edges[1])
    wave = torch.polar(amplitude, shift)
    wave = wave / (wave.abs() ** 2).sum().sqrt()
    return torch.fft.ifft2(wave).to(torch.complex64) * (slab.shape[0] * slab.shape[1])


def diffraction(waves: Tensor, slab: Slab, shape, pixel: float, *, scale=(1.0, 1.0), centre=None) -> Tensor:
    """Diffraction patterns of exit waves on any pixel grid: a known strain and shift, exactly.

    Parameters
    ----------
    waves : (..., Ny, Nx)
    shape : (H, W)
    pixel : float, Å⁻¹
    scale : (float, float)
        A reciprocal vector g (Å⁻¹) lies ``g · scale / pixel`` px from the centre.
    centre : (float, float), optional
        px; the middle of the pattern by default.

    Returns
    -------
    (..., H, W) float tensor; the counts of all pixels sum to about 1
    """
    ny, nx = slab.shape
    centre = (shape[0] // 2, shape[1] // 2) if centre is None else centre
    factors = []
    for n, size, edge, s, c in zip((ny, nx), shape, slab.edges[:2], scale, centre, strict=True):
        k = (torch.arange(size, dtype=torch.float64) - c) * pixel / s
        x = (torch.arange(n, dtype=torch.float64) / n - 0.5) * edge
        factors.append(torch.exp(-2j * np.pi * k[:, None] * x).to(torch.complex64) / n)
    pattern = (factors[0] @ waves @ factors[1].T).abs() ** 2
    cells = slab.edges[0] * slab.edges[1] * pixel**2 / (scale[0] * scale[1])
    return pattern * float(cells)
