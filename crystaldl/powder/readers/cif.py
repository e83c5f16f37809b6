"""Powder data in CIF: pdCIF as journals and databases keep it, and the ``.rtv.combined.cif`` files of the IUCr."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from ...physics.wavelengths import Radiation, resolve_radiation
from ..axes import inverse_d_to_two_theta
from .scan import Scan, lab_radiation, uniform_axis, unusable

__all__ = ["looks_like_cif", "read_cif"]

# In order of preference; raw counts keep their statistics.
_INTENSITY = (
    "_pd_meas_counts_total",
    "_pd_meas_intensity_total",
    "_pd_proc_intensity_total",
    "_pd_meas_counts_net",
    "_pd_meas_intensity_net",
    "_pd_proc_intensity_net",
)
_AXIS = ("_pd_meas_2theta_corrected", "_pd_proc_2theta_corrected", "_pd_meas_2theta_scan", "_pd_meas_angle_2theta")
_RANGE = ("_pd_meas_2theta_range_", "_pd_proc_2theta_range_")


def looks_like_cif(text: str) -> bool:
    return bool(re.search(r"^data_\S", text, re.MULTILINE)) and bool(re.search(r"^\s*_\w+", text, re.MULTILINE))


def read_cif(content: bytes, name: str) -> Scan:
    """The first data block with a measured profile; its wavelength, or that of another block of the file."""
    from gemmi import cif

    from .text import decode

    try:
        document = cif.read_string(decode(content, name, "a CIF"))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "syntax error"
        raise unusable(name, f"a CIF that cannot be parsed ({reason})", "a correct CIF") from None
    for block in document:
        scan = _read_block(block, name)
        if scan is not None:
            break
    else:
        raise unusable(name, "a CIF without a measured powder profile", f"a loop with {', '.join(_INTENSITY[:2])}, …")
    if scan.radiation is None:
        known = (r for b in document if (r := _radiation(b)) is not None)
        scan.radiation = next(known, None)
    return scan


def _column(block, tag: str) -> list[str]:
    return list(block.find_loop(tag))


def _numbers(column: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (NaN for ``?`` and ``.``) and standard uncertainties, where they are written as 123(4)."""
    from gemmi import cif

    values = np.array([cif.as_number(v) for v in column])
    if not any("(" in v for v in column[:20]):
        return values, None
    return values, np.array([_uncertainty(v) for v in column])


def _uncertainty(text: str) -> float:
    match = re.fullmatch(r"[+-]?\d*\.?(\d*)(?:[eE]([+-]?\d+))?\((\d+)\)", text)
    if match is None:
        return float("nan")
    try:
        return int(match.group(3)) * 10.0 ** (int(match.group(2) or 0) - len(match.group(1)))
    except (OverflowError, ValueError):  # thousands of digits
        return float("nan")


def _read_block(block, name: str) -> Scan | None:
    for tag in _INTENSITY:
        column = _column(block, tag)
        if len(column) > 1:
            break
    else:
        return None
    y, sigma = _numbers(column)
    radiation = _radiation(block)
    x = _axis(block, y.size, radiation, name)
    if x is None:
        return None
    meta = {"format": "pdCIF", "block": block.name, "intensity": tag}
    background, _ = _numbers(_column(block, "_pd_proc_intensity_bkg_calc"))
    if background.size == y.size:
        meta["background"] = background
    if sigma is not None:
        sigma[sigma == 0] = np.nan
    return Scan(x, y, sigma, radiation, block.name, meta, "_net" in tag)


def _axis(block, n: int, radiation, name: str) -> np.ndarray | None:
    for tag in _AXIS:
        x, _ = _numbers(_column(block, tag))
        if x.size == n:
            return x
    d, _ = _numbers(_column(block, "_pd_proc_d_spacing"))
    ends = None
    for prefix in _RANGE:
        ends = [_single(block, prefix + part) for part in ("min", "max", "inc")]
        if None not in ends[:2]:
            break
    low, high, step = ends
    if low is not None and high is not None:
        if step and abs(low + step * (n - 1) - high) > 1.5 * abs(step):
            raise unusable(
                name, f"{n} intensities but a range {low:g} to {high:g}° in steps of {step:g}°", "these to agree"
            )
        return uniform_axis(low, (high - low) / (n - 1), n, name)
    if low is not None and step:
        return uniform_axis(low, step, n, name)
    if d.size == n and radiation is not None:
        return inverse_d_to_two_theta(1 / d, radiation.wavelength)
    return None


def _single(block, tag: str) -> float | None:
    from gemmi import cif

    text = block.find_value(tag)
    value = cif.as_number(text) if text else float("nan")
    return None if np.isnan(value) else value


def _radiation(block) -> Radiation | None:
    """From ``_diffrn_radiation_wavelength``, one value or a loop (two lines within 1 % are a doublet)."""
    from gemmi import cif

    tag = "_diffrn_radiation_wavelength"
    column = _column(block, tag)
    values = _numbers(column)[0] if column else np.array([_single(block, tag) or np.nan])
    values = values[np.isfinite(values) & (values > 0.01) & (values < 20)]
    kind = cif.as_string(block.find_value("_diffrn_radiation_type") or "")
    if values.size >= 2:
        first, second = np.sort(values)[:2]
        if 1 < second / first < 1.01:
            weights = _numbers(_column(block, tag + "_wt"))[0]
            ratio = float(weights[1] / weights[0]) if weights.size > 1 and weights[0] > 0 else 0.5
            doublet = resolve_radiation((float(first), float(second)))
            return replace(doublet, alpha2_ratio=ratio) if 0 < ratio <= 1 else doublet
    if values.size:
        return resolve_radiation(float(values[0]))
    match = re.match(r"([A-Z][a-z])\s*K", kind)
    return lab_radiation(anode=match.group(1)) if match else None
