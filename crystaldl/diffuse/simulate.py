"""Batched, seeded simulator of planes of diffuse scattering: known disorder in, measured-looking intensity out.

    I(Q) = D(Q) S(Q),   D = m_A m_B |F_A - F_B|² exp(-2 B s²),   S = 1 + Σ_{R≠0} α_R cos(2π h·R)

Geometry, the same everywhere: pixel x = (row, column); ``Q = (x - centre) @ steps`` in the plane (Cartesian, Å⁻¹, 2π inside)
and a constant ``offset`` along its normal; row k of ``reciprocal`` is the in-plane reciprocal lattice vector a*_k, row k of
``period`` the same in pixels: ``period = reciprocal @ inv(steps)`` and ``(h, k) = (x - centre) @ inv(period)``.
``metric = steps @ steps.T`` gives ``|ΔQ|² = Δx · metric · Δx``. S is that of a disordered layer; for a plane cut through
three-dimensional disorder pass the coefficients of `disorder.project_to_plane`, whose mean in the plane is 1.
"""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..physics.device import resolve_device
from ..physics.scattering import MAX_Z, scattering_table
from .corruption import CLEAN, Corruption, Scene, corrupt, phases
from .geometry import half_space
from .molecules import signed_atoms

_CHUNK = {"cpu": 4_000_000, "cuda": 400_000_000}       # numbers held at once while form factors are summed


def _factors(table: Tensor, s2: Tensor) -> Tensor:
    """Σ a exp(-b s²) + c of rows (T, 11) at s2 (T, ...)."""
    shape = (-1,) + (1,) * (s2.ndim - 1)
    out = table[:, 10].reshape(shape).expand(s2.shape).clone()
    for k in range(5):
        if bool((table[:, k] != 0).any()):
            out.addcmul_(torch.exp(s2 * -table[:, 5 + k].reshape(shape)), table[:, k].reshape(shape))
    return out


def form_factor(z, xyz, b_iso, q_vectors: Tensor, radiation: str = "xray") -> Tensor:
    """Complex form factor ``F = Σ f_z(s) exp(-B s²) exp(i Q·r)`` of a group of atoms.

    Parameters
    ----------
    z : (n,) atomic numbers; 0 scatters nothing
    xyz : (n, 3) Å, from the centre of the site
    b_iso : float or (n,), Å²
    q_vectors : (..., 3) tensor, Å⁻¹ with 2π inside, Cartesian in the frame of ``xyz``
    radiation : {"xray", "electron", "neutron"}

    Returns
    -------
    (...) complex tensor in electrons, Å or fm
    """
    q = q_vectors if torch.is_tensor(q_vectors) else torch.as_tensor(np.asarray(q_vectors, dtype=float))
    z = np.asarray(z, dtype=int).reshape(-1)
    table = torch.as_tensor(scattering_table(radiation)[z].copy(), dtype=q.dtype, device=q.device)
    xyz = torch.as_tensor(np.asarray(xyz, dtype=float).reshape(-1, 3), dtype=q.dtype, device=q.device)
    b_iso = torch.as_tensor(np.broadcast_to(np.asarray(b_iso, dtype=float), z.shape).copy(), dtype=q.dtype, device=q.device)
    s2 = q.square().sum(-1) / (16 * np.pi**2)
    out = torch.zeros(s2.shape, dtype=torch.promote_types(q.dtype, torch.complex64), device=q.device)
    for row, position, b in zip(table, xyz, b_iso, strict=True):
        amplitude = _factors(row[None], s2[None])[0] * torch.exp(-b * s2)
        out = out + torch.polar(amplitude.abs(), q @ position) * amplitude.sign()
    return out


def difference_form_factor(pair, q_vectors: Tensor, b_iso: float = 0.0, radiation: str = "xray") -> Tensor:
    """``|F_A - F_B|²`` of a pair (z_a, xyz_a, z_b, xyz_b) at ``q_vectors`` (..., 3) in Å⁻¹ (2π inside)."""
    z_a, xyz_a, z_b, xyz_b = tuple(pair)[:4]
    difference = form_factor(z_a, xyz_a, b_iso, q_vectors, radiation) - form_factor(z_b, xyz_b, b_iso, q_vectors, radiation)
    return difference.real.square() + difference.imag.square()


@dataclass(frozen=True, eq=False)
class PlaneSpec:
    """Everything that is exactly true of one plane.

    Attributes
    ----------
    pair : (z_a, xyz_a, z_b, xyz_b), the two variants of the site, Å; x and y span the plane, z is its normal
    reciprocal : (2, 2), rows a*_1 and a*_2 in Å⁻¹ with 2π inside, Cartesian in the plane
    steps : (2, 2), Q per row of pixels and per column of pixels, Å⁻¹
    vectors : (n, 2) integers, in-plane lattice vectors, one of each ±R
    alpha : (n,) their Warren-Cowley parameters
    offset : float, Q of the plane along its normal, Å⁻¹
    b_iso : float, Å², common to all atoms
    concentration : float, share of A; D is proportional to m_A m_B = c (1 - c)
    centre : (2,) or None, pixel coordinates of Q_in-plane = 0; None is ((rows - 1)/2, (columns - 1)/2)
    radiation : {"xray", "electron", "neutron"}
    family : str, which molecules it came from: split by it
    """

    pair: Any  # a molecules.Pair, or four arrays
    reciprocal: np.ndarray
    steps: np.ndarray
    vectors: np.ndarray
    alpha: np.ndarray
    offset: float = 0.0
    b_iso: float = 0.0
    concentration: float = 0.5
    centre: tuple | None = None
    radiation: str = "xray"
    family: str = ""

    def __post_init__(self) -> None:
        for name in ("reciprocal", "steps"):
            value = np.array(getattr(self, name), dtype=float)
            if value.shape != (2, 2) or not np.isfinite(value).all() or abs(np.linalg.det(value)) < 1e-9:
                raise DataError(f"{name} is {value.tolist()}, expected two independent rows of two numbers in Å⁻¹.")
            object.__setattr__(self, name, value)
        vectors, alpha = np.array(self.vectors).reshape(-1, 2), np.array(self.alpha, dtype=float).reshape(-1)
        if len(vectors) != len(alpha) or (len(vectors) and not half_space(vectors, zero=False).all()):
            raise DataError(f"vectors hold {len(vectors)} rows for {len(alpha)} alpha, expected as many, one of every ±R, no 0.")
        object.__setattr__(self, "vectors", vectors.astype(np.int64))
        object.__setattr__(self, "alpha", alpha)
        z_a, _, z_b, _ = tuple(self.pair)[:4]
        z = np.concatenate([np.asarray(z_a).reshape(-1), np.asarray(z_b).reshape(-1)])
        if len(z) == 0 or z.min() < 0 or z.max() > MAX_Z:
            raise DataError(f"pair has atomic numbers {z.tolist()}, expected 0 (nothing) to {MAX_Z}.")
        if not 0 < self.concentration < 1:
            raise DataError(f"concentration is {self.concentration}, expected between 0 and 1.")

    @property
    def period(self) -> np.ndarray:
        """(2, 2) pixels, rows a*_1 and a*_2."""
        return self.reciprocal @ np.linalg.inv(self.steps)

    @property
    def atoms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Atoms of Δρ: atomic numbers (n,), positions (n, 3) and signs (n,)."""
        return signed_atoms(*tuple(self.pair)[:4])

    @property
    def support(self) -> float:
        """Longest in-plane interatomic vector of Δρ, Å: where the Patterson function of D ends (but for the atoms' width)."""
        xy = self.atoms[1][:, :2]
        return float(np.linalg.norm(xy[:, None] - xy[None], axis=-1).max(initial=0.0))


@dataclass(frozen=True, eq=False)
class SimulatedPlanes:
    """A batch of simulated planes; B planes of H × W pixels. Intensities, D and background share one unit.

    Attributes
    ----------
    intensity : (B, H, W) as measured (counts if counting noise was asked for); 0 where not measured
    mask : (B, H, W) bool, True = measured
    sigma : (B, H, W) standard uncertainty an experimenter would state
    form_factor : (B, H, W) the exact D, Debye-Waller factor inside
    sro : (B, H, W) the exact S
    background, bragg : (B, H, W) the exact additions to D·S
    period : (B, 2, 2) true, rows a*_1, a*_2 in pixels (row, column); ``given_period`` what the analyst is told
    centre : (B, 2) pixel coordinates of h = k = 0
    metric : (B, 2, 2) ``|ΔQ|² = Δx · metric · Δx``, Å⁻²
    support : (B,) Å, see `PlaneSpec.support`
    vectors, alpha : (B, K, 2) and (B, K), one of each ±R, padded with zeros
    count : (B,) how many of them are real
    peak : (B,) largest value of D·S
    """

    intensity: Tensor
    mask: Tensor
    sigma: Tensor
    form_factor: Tensor
    sro: Tensor
    background: Tensor
    bragg: Tensor
    period: Tensor
    given_period: Tensor
    centre: Tensor
    metric: Tensor
    support: Tensor
    vectors: Tensor
    alpha: Tensor
    count: Tensor
    peak: Tensor

    def __len__(self) -> int:
        return len(self.intensity)

    def as_dict(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self, device) -> SimulatedPlanes:
        return SimulatedPlanes(**{k: v.to(device) for k, v in self.as_dict().items()})


def _geometry(specs, size, device, dtype):
    """Centre, steps, period of the batch, and pixel coordinates from the centre along each axis, float64 where there is one."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    default = ((size[0] - 1) / 2, (size[1] - 1) / 2)
    centre = np.array([default if s.centre is None else s.centre for s in specs], dtype=float)
    to = lambda a: torch.as_tensor(np.asarray(a), dtype=wide, device=device)  # noqa: E731
    centre, steps = to(centre), to(np.array([s.steps for s in specs]))
    period = to(np.array([s.period for s in specs]))
    axes = [torch.arange(n, device=device, dtype=wide)[None] - centre[:, k, None] for k, n in enumerate(size)]
    return centre, steps, period, axes


def plane_sro(specs, size, device="cpu", dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Exact S of each plane, (B, H, W), and the padded vectors (B, K, 2), alpha (B, K) and count (B,)."""
    device = resolve_device(device)
    _, _, period, (rows, columns) = _geometry(specs, size, device, dtype)
    longest = max(1, *(len(s.alpha) for s in specs))
    vectors = np.zeros((len(specs), longest, 2), np.int64)
    alpha = np.zeros((len(specs), longest))
    for i, s in enumerate(specs):
        vectors[i, : len(s.alpha)], alpha[i, : len(s.alpha)] = s.vectors, s.alpha
    vectors = torch.as_tensor(vectors, device=device)
    alpha = torch.as_tensor(alpha, device=device, dtype=dtype)
    inverse = torch.linalg.inv(period)
    sro = torch.empty((len(specs), *size), device=device, dtype=dtype)
    number = np.array([len(s.alpha) for s in specs])
    for which in _groups(number):
        longest, which = max(1, number[which].max()), torch.as_tensor(which, device=device)
        rate = torch.einsum("bxy,bky->bkx", inverse[which], vectors[which, :longest].to(period.dtype))    # h·R = x · inv(P) R
        cr, sr = phases(rows[which], rate[..., 0], dtype)
        cc, sc = phases(columns[which], rate[..., 1], dtype)
        left = torch.cat([cr, -sr], 1) * alpha[which, :longest].repeat(1, 2)[..., None]
        sro[which] = torch.bmm(left.transpose(1, 2), torch.cat([cc, sc], 1)).mul_(2.0).add_(1.0)
    return sro, vectors, alpha, torch.as_tensor(number, device=device)


def _groups(number: np.ndarray) -> list[np.ndarray]:
    """Indices of planes whose numbers of terms differ by less than a factor of 3: padding then costs little."""
    level = np.ceil(np.log(np.maximum(number, 16)) / np.log(3.0)).astype(int)
    return [np.flatnonzero(level == k) for k in np.unique(level)]


def plane_form_factor(specs, size, radiation: str | None = None, device="cpu", dtype=torch.float32) -> Tensor:
    """Exact ``D = m_A m_B |F_A - F_B|²`` of each plane, (B, H, W): phases factorise along rows and columns."""
    device = resolve_device(device)
    _, steps, _, (rows, columns) = _geometry(specs, size, device, dtype)
    offset = torch.tensor([s.offset for s in specs], device=device, dtype=steps.dtype)
    metric = steps @ steps.transpose(1, 2)
    s2 = rows.square()[:, :, None] * metric[:, 0, 0, None, None] + columns.square()[:, None] * metric[:, 1, 1, None, None]
    s2 = s2 + 2 * metric[:, 0, 1, None, None] * rows[:, :, None] * columns[:, None] + offset.square()[:, None, None]
    s2 = (s2 / (16 * np.pi**2)).to(dtype)
    plane, table, xyz, sign = _terms(specs, radiation)
    real, imaginary = torch.zeros((2, len(specs), *size), device=device, dtype=dtype)
    chunk = max(1, _CHUNK.get(device.type, 24_000_000) // (4 * size[0] * size[1]))
    for start in range(0, len(plane), chunk):
        part = slice(start, start + chunk)
        which = torch.as_tensor(plane[part], device=device)
        position = torch.as_tensor(xyz[part], device=device, dtype=steps.dtype)
        weight = torch.as_tensor(sign[part], device=device, dtype=dtype)
        rate = torch.einsum("txy,tmy->tmx", steps[which], position[..., :2]) / (2 * np.pi)
        cr, sr = phases(rows[which], rate[..., 0], dtype)
        cc, sc = phases(columns[which], rate[..., 1], dtype)
        turns = offset[which, None] * position[..., 2] / (2 * np.pi)
        angle = (2 * np.pi * (turns - turns.round())).to(dtype)[..., None]
        cz, sz = torch.cos(angle), torch.sin(angle)
        cr, sr = (cr * cz - sr * sz) * weight[..., None], (sr * cz + cr * sz) * weight[..., None]
        left = torch.cat([torch.cat([cr, -sr], 1), torch.cat([sr, cr], 1)], 2)          # (T, 2M, 2H): real rows, imaginary rows
        both = torch.bmm(left.transpose(1, 2), torch.cat([cc, sc], 1))
        factor = _factors(torch.as_tensor(table[part], device=device, dtype=dtype), s2[which])
        real.index_add_(0, which, both[:, : size[0]] * factor)
        imaginary.index_add_(0, which, both[:, size[0]:] * factor)
    share = torch.tensor([[s.concentration * (1 - s.concentration), s.b_iso] for s in specs], device=device, dtype=dtype)
    square = real.square_().add_(imaginary.square_())
    return square.mul_(torch.exp(s2.mul_(-2 * share[:, 1, None, None]))).mul_(share[:, 0, None, None])


def _terms(specs, radiation):
    """A term for each element of each plane: plane (T,), coefficients (T, 11), xyz (T, M, 3), signs (T, M) padded with 0."""
    plane, coefficients, atoms = [], [], []
    for i, spec in enumerate(specs):
        z, xyz, sign = spec.atoms
        table = scattering_table(radiation or spec.radiation)
        for e in np.unique(z):
            plane.append(i), coefficients.append(table[e]), atoms.append((xyz[z == e], sign[z == e]))
    most = max((len(a[1]) for a in atoms), default=1)
    xyz, sign = np.zeros((len(atoms), most, 3)), np.zeros((len(atoms), most))
    for t, (position, s) in enumerate(atoms):
        xyz[t, : len(s)], sign[t, : len(s)] = position, s
    return np.array(plane, np.int64), np.array(coefficients).reshape(-1, 11), xyz, sign


def simulate_planes(specs, corruption: Corruption = CLEAN, *, size=(256, 256), radiation: str | None = None, seed: int = 0,
                    device="cpu", dtype=torch.float32) -> SimulatedPlanes:
    """Render a batch of planes and spoil them as measurements are.

    Parameters
    ----------
    specs : sequence of PlaneSpec
    corruption : Corruption, what is done to the ideal D·S; nothing by default
    size : (H, W) or int
    radiation : {"xray", "electron", "neutron"}, optional
        Instead of what each PlaneSpec says.
    seed : int
        The same seed gives the same batch on the same kind of device.
    device : str or torch.device
    dtype : torch.float32 or torch.float64

    Returns
    -------
    SimulatedPlanes
    """
    specs = list(specs)
    size = (int(size), int(size)) if np.ndim(size) == 0 else (int(size[0]), int(size[1]))
    if not specs or not all(isinstance(s, PlaneSpec) for s in specs):
        raise DataError(f"specs is {type(specs).__name__} of {len(specs)}, expected at least one PlaneSpec.")
    if min(size) < 8:
        raise DataError(f"size is {size}, expected at least 8 × 8 pixels.")
    device = resolve_device(device)
    centre, steps, period, _ = _geometry(specs, size, device, dtype)
    sro, vectors, alpha, count = plane_sro(specs, size, device, dtype)
    factor = plane_form_factor(specs, size, radiation, device, dtype)
    if float(sro.min()) < -1e-3:
        raise DataError(f"alpha makes S as low as {float(sro.min()):.3g} in the plane, expected parameters that leave S ≥ 0.")
    scene = Scene(factor, sro, centre.to(dtype), period.to(dtype), steps.to(dtype), vectors, alpha)
    measured = corrupt(scene, corruption, seed)
    support = torch.tensor([s.support for s in specs], device=device, dtype=dtype)
    return SimulatedPlanes(
        intensity=measured.intensity, mask=measured.mask, sigma=measured.sigma, form_factor=measured.form_factor, sro=sro,
        background=measured.background, bragg=measured.bragg, period=scene.period, given_period=measured.given_period,
        centre=scene.centre, metric=scene.steps @ scene.steps.transpose(1, 2), support=support, vectors=vectors, alpha=alpha,
        count=count, peak=measured.peak,
    )  # fmt: skip
