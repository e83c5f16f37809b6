"""Bloch waves: intensities of Bragg beams for many directions and every thickness, and the two-beam limit.

The eigenvalue problem of fast electrons without back-scattering (e.g. De Graef, Introduction to Conventional TEM,
2003, chapter 5): ``A_gg = 2 K s_g``, ``A_gh = U_{g-h}``, ``A C = 2 K γ C`` and ``ψ(t) = C exp(2πi γ t) C⁻¹ ψ(0)``, with
``2 K s_g = -(2 k·g + g²)`` for an incident wave of transverse part k. Beams of the zero-order Laue zone. Absorption is
a fixed share of the potential, in first order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...physics.crystals import Crystal
from ...physics.lattice import cell_matrix
from .electrons import coupling, form_factor, wavelength


@dataclass(frozen=True)
class Zone:
    """Reflections of a zone and their structure factors.

    Attributes
    ----------
    hkl : (M, 3) int, the first is 0 0 0
    g : (M, 2) float
        Transverse vectors, Å⁻¹, in a frame whose third axis is the beam.
    u : (M, M) complex128
        ``U_{g-h}`` in Å⁻², zero on the diagonal.
    u0 : float
        Mean potential ``U_0`` in Å⁻².
    voltage : float, kV
    """

    hkl: np.ndarray
    g: np.ndarray
    u: np.ndarray
    u0: float
    voltage: float

    @property
    def structure_factor(self) -> np.ndarray:
        """``|U_g|`` of each beam (M,), Å⁻²; that of 000 is U_0."""
        size = np.abs(self.u[:, 0])
        size[0] = self.u0
        return size


def zone_frame(crystal: Crystal, zone) -> np.ndarray:
    """Rotation (3, 3) whose rows are x, y and the beam direction along [uvw]; x lies in the zone's shortest row."""
    z = np.asarray(zone) @ cell_matrix(crystal.cell)
    z = z / np.linalg.norm(z)
    x = np.eye(3)[np.argmin(np.abs(z))]
    x = x - z * (x @ z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def zone_reflections(crystal: Crystal, zone, g_max: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M, 3) with ``h u + k v + l w = 0`` and ``|g| < g_max`` (Å⁻¹), sorted by length, and g in the zone's frame."""
    matrix = cell_matrix(crystal.cell)
    reciprocal = np.linalg.inv(matrix).T
    limit = np.floor(np.linalg.norm(matrix, axis=1) * g_max).astype(int)
    h, k, l = (np.arange(-n, n + 1) for n in limit)
    u, v, w = (int(i) for i in zone)
    grid = np.stack(np.meshgrid(h, k, l, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[grid @ np.array([u, v, w]) == 0]
    g = grid @ reciprocal @ zone_frame(crystal, zone).T
    length = np.linalg.norm(g, axis=1)
    order = np.lexsort((grid[:, 2], grid[:, 1], grid[:, 0], length.round(9)))
    order = order[length[order] < g_max]
    return grid[order], g[order, :2]


def structure_factors(crystal: Crystal, hkl: np.ndarray, b_iso: float, voltage: float) -> np.ndarray:
    """``U_hkl`` in Å⁻² (complex) of reflections (…, 3), with the Debye-Waller factor ``exp(-B q² / 4)``."""
    matrix = cell_matrix(crystal.cell)
    q = np.linalg.norm(hkl @ np.linalg.inv(matrix).T, axis=-1)
    total = np.zeros(q.shape, dtype=complex)
    occupancy = np.ones(len(crystal.numbers)) if crystal.occupancy is None else crystal.occupancy
    for z in np.unique(crystal.numbers):
        atoms = crystal.numbers == z
        phase = np.exp(-2j * np.pi * (hkl @ crystal.positions[atoms].T)) @ occupancy[atoms]
        total += form_factor(int(z), q) * phase
    return coupling(voltage) / crystal.volume * np.exp(-0.25 * b_iso * q**2) * total


def prepare_zone(
    crystal: Crystal, zone, *, voltage: float, b_iso: float = 0.5, g_max: float = 1.6, beams: int = 80, tilt=(0.0, 0.0)
) -> Zone:
    """Choose the beams that matter (strong and near the Ewald sphere) and compute their structure matrix.

    ``g_max`` in Å⁻¹; ``b_iso`` in Å²; ``tilt``: middle of the incident transverse wave vectors, Å⁻¹.
    """
    hkl, g = zone_reflections(crystal, zone, g_max)
    if len(hkl) > beams:
        deviation = 0.5 * wavelength(voltage) * np.abs((g**2).sum(1) + 2 * g @ np.asarray(tilt))
        strength = np.abs(structure_factors(crystal, hkl, b_iso, voltage))
        # importance: two-beam amplitude at the zone axis, extinct beams kept alive by their neighbours
        score = (strength + 0.02 * strength[0]) / (deviation + 0.5 * wavelength(voltage) * strength[0])
        score[0] = np.inf
        keep = np.sort(np.argsort(-score, kind="stable")[:beams])
        hkl, g = hkl[keep], g[keep]
    delta = hkl[:, None] - hkl[None]
    unique, inverse = np.unique(delta.reshape(-1, 3), axis=0, return_inverse=True)
    u = structure_factors(crystal, unique, b_iso, voltage)[inverse.reshape(-1)].reshape(len(hkl), len(hkl))
    u0 = float(u[0, 0].real)
    u[np.diag_indices(len(hkl))] = 0
    return Zone(hkl, g, 0.5 * (u + u.conj().T), u0, voltage)


def beam_intensities(
    zone: Zone, tilts: Tensor, thicknesses: Tensor, *, absorption: float = 0.0, dtype=torch.complex64
) -> Tensor:
    """Intensities of all beams.

    Parameters
    ----------
    zone : Zone
    tilts : (D, 2) tensor
        Transverse part of the incident wave vector, Å⁻¹.
    thicknesses : (T,) tensor, Å
    absorption : float
        Imaginary over real part of the potential, 0 to about 0.1.

    Returns
    -------
    (D, T, M) tensor; sums over M to 1 without absorption
    """
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    device = tilts.device
    k = 1 / wavelength(zone.voltage)
    g = torch.as_tensor(zone.g, device=device, dtype=torch.float64)
    tilts = tilts.to(torch.float64)
    diagonal = -(2 * tilts @ g.T + (g**2).sum(1))
    u = torch.as_tensor(zone.u, device=device)
    matrix = torch.diag_embed(diagonal.to(torch.complex128)) + u
    kz = (k**2 + zone.u0 - (tilts**2).sum(1)).sqrt()
    symmetric = bool(torch.abs(u.imag).max() < 1e-7 * torch.abs(u.real).max())
    matrix = matrix.real.to(real) if symmetric else matrix.to(dtype)
    value, vector = torch.linalg.eigh(matrix)
    gamma = (value.to(torch.float64) / (2 * kz[:, None]))[:, None] * thicknesses.to(torch.float64)[:, None]
    phase = torch.polar(torch.ones_like(gamma), 2 * np.pi * (gamma - gamma.round())).to(dtype)
    if absorption:
        potential = u.real.to(real) if symmetric else u.to(dtype)
        damping = (vector.conj() * (potential @ vector)).sum(1).real + zone.u0
        rate = np.pi * absorption * damping / kz[:, None].to(real)
        phase = phase * torch.exp(-rate[:, None] * thicknesses.to(real)[:, None])
    start = vector[:, 0].conj()
    waves = (phase * start[:, None].to(dtype)) @ vector.transpose(1, 2).to(dtype)
    return waves.abs() ** 2


def two_beam_intensity(u_g: float, s, thickness, voltage: float):
    """Diffracted intensity of two beams, ``sin²(π t s') / (ξ s')²`` with ``s' = sqrt(s² + 1/ξ²)`` and ``ξ = K / |U_g|``.

    ``s`` (excitation error, Å⁻¹) and ``thickness`` (Å) broadcast against one another.
    """
    rate = np.abs(u_g) * wavelength(voltage)  # 1 / ξ
    effective = np.sqrt(np.asarray(s, dtype=float) ** 2 + rate**2)
    return (rate * np.sin(np.pi * np.asarray(thickness) * effective) / effective) ** 2
