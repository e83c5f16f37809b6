"""Least squares of a unit cell on measured lines, figures of merit, and the cell as CIF."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import DataError
from ..physics.lattice import cell_volume, metric_tensor
from ..physics.wavelengths import Radiation
from .axes import inverse_d_to_two_theta
from .indexing import autoindex_kernels as kernels
from .indexing.bravais import BRAVAIS, HIGHEST_GROUP, cell_of, metric_of, niggli_cell
from .peaks import PeakList

SHIFTS = ("zero", "displacement", "none")
#: a line belongs to a cell when it is nearer than this many standard deviations (of at least FLOOR degrees)
NEAR, FLOOR = 3.5, 0.010


def peaks_from(data, radiation: Radiation) -> PeakList:
    """A `PeakList` of a pattern, of itself, or of bare positions (degrees), which count as sure and good to 0.005°."""
    if isinstance(data, PeakList):
        return data
    if callable(getattr(data, "peaks", None)):
        return data.peaks()
    try:
        x = np.sort(np.asarray(data, dtype=float))
    except (TypeError, ValueError):
        raise DataError(
            f"peaks is of type {type(data).__name__}; expected a PeakList or an array of 2θ in degrees."
        ) from None
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all() or x.min() <= 0 or x.max() >= 180:
        raise DataError("peaks must be a one-dimensional array of 2θ in degrees between 0 and 180.")
    one = np.ones_like(x)
    d = radiation.wavelength / (2 * np.sin(np.radians(x / 2)))
    return PeakList(x, 0.003 * one, d, one, 0.01 * one, one, 0.02 * one, 100.0 * one, radiation)


def shifted(two_theta, amount: float, shift: str) -> np.ndarray:
    """Where a line is observed (degrees) whose true place is ``two_theta``."""
    if shift == "none":
        return np.asarray(two_theta, float)
    return two_theta + amount * (np.cos(np.radians(two_theta / 2)) if shift == "displacement" else 1.0)


@lru_cache(maxsize=64)
def _grid(h: int, k: int, l: int, centring: int, symmetric: bool) -> np.ndarray:
    low = 0 if symmetric else -k
    hkl = np.stack(np.meshgrid(np.arange(h + 1), np.arange(low, k + 1), np.arange(-l, l + 1), indexing="ij"), -1)
    hkl = hkl.reshape(-1, 3)
    first = hkl[:, 0] * 1_000_000 + hkl[:, 1] * 1_000 + hkl[:, 2] > 0
    a, b, c = hkl.T
    rule = {
        0: np.ones(len(hkl), bool), 1: (a + b + c) % 2 == 0, 2: ((a + b) % 2 == 0) & ((b + c) % 2 == 0),
        3: (a + b) % 2 == 0, 4: (-a + b + c) % 3 == 0,
    }[centring]  # fmt: skip
    return hkl[first & rule]


def predicted_lines(bravais: str, cell, q_max: float) -> tuple[np.ndarray, np.ndarray]:
    """Lines of a lattice with 1/d ≤ ``q_max`` (Å⁻¹): one of the reflections of each (n, 3), and 1/d (n,), rising."""
    system, centring, _ = BRAVAIS[bravais]
    limits = np.floor(np.sqrt(np.diag(metric_tensor(cell))) * q_max + 1e-9).astype(int).tolist()
    hkl = _grid(*limits, centring, 3 <= system <= 4 or system < 2)
    a, b, c, d, e, f = metric_of(cell)
    h, k, l = hkl.T
    q2 = h * h * a + k * k * b + l * l * c + k * l * d + h * l * e + h * k * f
    keep = q2 <= q_max**2
    hkl, q2 = hkl[keep], q2[keep]
    order = np.lexsort((-hkl[:, 2], -hkl[:, 1], -hkl[:, 0], np.round(q2, 8)))
    hkl, q2 = hkl[order], q2[order]
    new = np.concatenate([[True], np.diff(q2) > 1e-7]) if len(q2) else np.zeros(0, bool)
    return hkl[new], np.sqrt(q2[new])


def assign(bravais: str, cell, q2) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n, 3) of the line of the lattice nearest to each Q = 1/d², and its Q (n,)."""
    _, centring, _ = BRAVAIS[bravais]
    g = metric_of(cell)
    hkl = np.array([kernels.nearest(q, g, centring, 0.05 * q + 0.01)[1:] for q in q2], int).reshape(-1, 3)
    h, k, l = hkl.T
    return hkl, h * h * g[0] + k * k * g[1] + l * l * g[2] + k * l * g[3] + h * l * g[4] + h * k * g[5]


def merit(
    bravais: str, cell, observed_q2, calculated_q2, wavelength: float, count: int = 20
) -> tuple[float, float, int]:
    """M and F of the first ``count`` indexed lines (or as many as there are), and their number.

    ``M = Q_n / (2 ⟨|ΔQ|⟩ N)`` (de Wolff 1968) and ``F = n / (⟨|Δ2θ|⟩ N)`` (Smith & Snyder 1979) with N the number of
    different lines that the lattice allows up to the last of them; mean errors below 10⁻⁵° count as 10⁻⁵°.
    """
    n = min(count, len(observed_q2))
    if n == 0:
        return 0.0, 0.0, 0
    observed, calculated = np.asarray(observed_q2)[:n], np.asarray(calculated_q2)[:n]
    top = max(observed[-1], calculated[-1])
    possible = max(len(predicted_lines(bravais, cell, np.sqrt(top) * (1 + 1e-6))[1]), 1)
    angles = [inverse_d_to_two_theta(np.sqrt(v), wavelength) for v in (observed, calculated)]
    off = max(float(np.mean(np.abs(angles[0] - angles[1]))), 1e-5)
    slope = np.radians(1.0) * 2 * np.sin(np.radians(angles[0].mean())) / wavelength**2
    off_q = max(float(np.mean(np.abs(observed - calculated))), 1e-5 * slope)
    return float(observed[-1] / (2 * off_q * possible)), n / (off * possible), n


# ---------------------------------------------------------------------------------------------- least squares


@dataclass(frozen=True)
class CellFit:
    """A cell refined on lines: values, standard uncertainties, and for each line (n,) whether it belongs to the cell."""

    cell: np.ndarray
    sigma: np.ndarray
    volume_sigma: float
    zero: float
    zero_sigma: float
    inside: np.ndarray
    hkl: np.ndarray
    calculated: np.ndarray


def fit_cell(bravais: str, cell, zero: float, peaks: PeakList, shift: str = "zero", rounds: int = 12) -> CellFit:
    """Least squares of the free coefficients of 1/d² and of the shift, in Gauss-Newton steps.

    Each round the lines are indexed anew, those farther off than NEAR standard deviations are left out, and the scatter
    beyond the uncertainties of the positions is estimated so that χ² is what it should be.
    """
    system = BRAVAIS[bravais][0]
    free = int(kernels.FREE[system])
    size = free + (shift != "none")
    wavelength, x = peaks.radiation.wavelength, peaks.position
    cell, extra = np.array(cell, float), FLOOR
    zero = 0.0 if shift == "none" else zero
    for turn in range(rounds):
        true = _true_position(x, zero, shift)
        hkl, q2 = assign(bravais, cell, (2 * np.sin(np.radians(true / 2)) / wavelength) ** 2)
        calculated = inverse_d_to_two_theta(np.sqrt(q2), wavelength)
        residual = x - shifted(calculated, zero, shift)
        limit = NEAR * np.hypot(1.5 * peaks.position_sigma, max(extra, FLOOR)) * (1.5 if turn == 0 else 1.0)
        inside = np.abs(residual) < limit
        if inside.sum() <= size:
            raise DataError(
                f"{int(inside.sum())} lines fit the {bravais} cell; with its shift it has {size} parameters and needs more lines."
            )
        rows = _design_rows(hkl[inside], calculated[inside], system, size, wavelength, shift)
        sigma = np.hypot(peaks.position_sigma[inside], extra)
        step, covariance = _solve(rows / sigma[:, None], residual[inside] / sigma)
        g = np.zeros(6)
        kernels.expand(_coefficients(cell, system) + step[:free], system, g)
        cell, zero = cell_of(g), float(zero + (step[free] if size > free else 0.0))
        extra = _extra_scatter(residual[inside] - rows @ step, peaks.position_sigma[inside], size)
    jacobian = _parameter_jacobian(_coefficients(cell, system), system)
    spread = np.sqrt(np.maximum(np.diag(jacobian @ covariance[:free, :free] @ jacobian.T), 0.0))
    zero_sigma = float(np.sqrt(covariance[free, free])) if size > free else 0.0
    return CellFit(cell, _clean(spread[:6], cell), float(spread[6]), zero, zero_sigma, inside, hkl,
                   shifted(calculated, zero, shift))  # fmt: skip


def _design_rows(hkl, calculated, system: int, size: int, wavelength: float, shift: str) -> np.ndarray:
    """Derivatives (n, size) of observed 2θ (degrees) with respect to the coefficients of 1/d² and the shift."""
    rows = np.zeros((len(hkl), size))
    for row, (h, k, l) in zip(rows, hkl, strict=True):
        kernels.design(h, k, l, system, row)
    free = int(kernels.FREE[system])
    rows[:, :free] /= (np.radians(1.0) * 2 * np.sin(np.radians(calculated)) / wavelength**2)[:, None]
    if size > free:
        rows[:, free] = np.cos(np.radians(calculated / 2)) if shift == "displacement" else 1.0
    return rows


def _true_position(x, amount: float, shift: str) -> np.ndarray:
    """2θ without the shift."""
    return x - amount * (np.cos(np.radians(x / 2)) if shift == "displacement" else float(shift == "zero"))


def _solve(weighted, right):
    scale = np.sqrt((weighted**2).sum(0))
    scale = np.where(scale > 0, scale, 1.0)
    normal = (weighted / scale).T @ (weighted / scale)
    inverse = np.linalg.pinv(normal, rcond=1e-12, hermitian=True)
    covariance = inverse / np.outer(scale, scale)
    return covariance @ (weighted.T @ right), covariance


def _extra_scatter(residual, sigma, parameters: int) -> float:
    """Standard deviation (degrees) to be added in squares so that the residuals are as large as expected."""
    freedom = len(residual) - parameters
    low, high = 0.0, 1.0
    if (residual**2 / np.maximum(sigma, 1e-9) ** 2).sum() <= freedom:
        return 0.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        if (residual**2 / (sigma**2 + middle**2)).sum() > freedom:
            low = middle
        else:
            high = middle
    return high


def _coefficients(cell, system: int) -> np.ndarray:
    g = metric_of(cell)
    order = {0: (0,), 1: (0, 2), 2: (0, 2), 3: (0, 1, 2), 4: (0, 1, 2, 4), 5: (0, 1, 2, 3, 4, 5)}[system]
    return g[list(order)]


def _parameter_jacobian(coefficients, system: int) -> np.ndarray:
    """Derivatives (7, free) of a, b, c, α, β, γ and the volume with respect to the coefficients of 1/d²."""
    columns = []
    for i, value in enumerate(coefficients):
        step = 1e-6 * max(abs(value), 0.01 * abs(coefficients[0]))
        ends = []
        for sign in (1, -1):
            p, g = np.array(coefficients, float), np.zeros(6)
            p[i] += sign * step
            kernels.expand(p, system, g)
            ends.append(np.append(cell_of(g), cell_volume(cell_of(g))))
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, 1)


def _clean(sigma, cell) -> np.ndarray:
    """Exact zeros for what symmetry fixes."""
    return np.where(sigma < 1e-7 * cell, 0.0, sigma)


def refine_cell(cell, data, shift: str):
    """`Cell.refine`: a new `Cell` on the lines of ``data``."""
    if shift not in SHIFTS:
        raise DataError(f"shift is {shift!r}; expected one of {', '.join(SHIFTS)}.")
    peaks = cell.peaks if data is None else peaks_from(data, cell.peaks.radiation)
    return build_cell(cell.bravais, cell.lengths_angles, cell.zero, cell.score, peaks, shift)


def build_cell(bravais: str, conventional, zero: float, score: float, peaks: PeakList, shift: str = "zero"):
    """A `Cell` refined on its lines, with the table of lines and the figures of merit."""
    from .cells import Cell, IndexedLines

    fit = fit_cell(bravais, conventional, zero, peaks, shift)
    wavelength, inside = peaks.radiation.wavelength, fit.inside
    observed, calculated = peaks.position[inside], fit.calculated[inside]
    values = [
        (2 * np.sin(np.radians(_true_position(v, fit.zero, shift) / 2)) / wavelength) ** 2
        for v in (observed, calculated)
    ]
    m20, fn, count = merit(bravais, fit.cell, *values, wavelength)
    return Cell(
        bravais=bravais, lengths_angles=fit.cell, sigma=fit.sigma, volume_sigma=fit.volume_sigma, zero=fit.zero,
        zero_sigma=fit.zero_sigma, niggli=niggli_cell(fit.cell, "PIFCR"[BRAVAIS[bravais][1]]), score=score, m20=m20, fn=fn,
        merit_lines=count, lines=IndexedLines(fit.hkl[inside], observed, calculated), unindexed=peaks.position[~inside],
        peaks=peaks, shift=shift,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- text


def with_uncertainty(value: float, sigma: float) -> str:
    """``7.1234(5)``: the standard uncertainty in units of the last digit, two digits when it starts with 1."""
    if not sigma > 0:
        return f"{value:.4f}".rstrip("0").rstrip(".")
    digits = max(int(-np.floor(np.log10(sigma))), 0)
    digits += sigma * 10**digits < 1.95
    digits = min(digits, 6)
    return f"{value:.{digits}f}({max(round(sigma * 10**digits), 1)})"


def cell_cif(cell) -> str:
    """The text of `Cell.to_cif`."""
    from .. import __version__
    from ..physics.symmetry import space_group

    number = HIGHEST_GROUP[cell.bravais]
    group = space_group(number)
    texts = [with_uncertainty(v, s) for v, s in zip(cell.lengths_angles, cell.sigma, strict=True)]
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    rows = [
        "data_cell", f"_audit_creation_method 'crystaldl {__version__}, indexing of a powder pattern'",
        *(f"_cell_{n} {t}" for n, t in zip(names, texts, strict=True)),
        f"_cell_volume {with_uncertainty(cell.volume, cell.volume_sigma)}",
        f"_cell_measurement_reflns_used {len(cell.lines)}", f"_cell_measurement_wavelength {cell.wavelength:.6g}",
        f"_space_group_crystal_system {cell.system}", f"_space_group_name_H-M_alt '{group.xhm()}'",
        f"_space_group_IT_number {number}", "loop_", "_space_group_symop_operation_xyz",
        *(f"'{op.triplet()}'" for op in group.operations()),
    ]  # fmt: skip
    return "\n".join(rows) + "\n"


__all__ = ["SHIFTS", "assign", "build_cell", "cell_cif", "fit_cell", "merit", "peaks_from", "predicted_lines", "refine_cell",
           "shifted", "with_uncertainty"]  # fmt: skip
