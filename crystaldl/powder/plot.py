"""Figures of powder patterns.  Matplotlib only: functions take data and an ``ax``."""

from __future__ import annotations

import numpy as np

from crystaldl.errors import DataError

__all__ = ["plot_pattern"]

_AXES = ("two_theta", "q", "d")
_SCALES = ("sqrt", "linear", "log")
_BLUE, _RED, _GREY = "#1f4e79", "#c0392b", "#8a8a8a"


def plot_pattern(pattern, ax=None, *, axis: str = "two_theta", scale: str = "sqrt", peaks=None, label=None):
    """Draw one pattern.

    Parameters
    ----------
    pattern : PowderPattern
    ax : matplotlib Axes, optional
        A new figure of 7.2 × 3.2 inches by default.
    axis : {"two_theta", "q", "d"}
        d falls from left to right, so that the lines keep their order.
    scale : {"sqrt", "linear", "log"}
        A square-root axis gives counting noise the same size everywhere and lets weak lines be seen.
    peaks : PeakList, optional
        Drawn as ticks below the pattern.
    label : str, optional
        For a legend.

    Returns
    -------
    (Figure, Axes)
    """
    if axis not in _AXES:
        raise DataError(f"axis is {axis!r}; expected one of {', '.join(_AXES)}.")
    if scale not in _SCALES:
        raise DataError(f"scale is {scale!r}; expected one of {', '.join(_SCALES)}.")
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    x = getattr(pattern, axis)
    ax.plot(x, pattern.intensity, color=_BLUE, lw=0.8, label=label or None, zorder=3)
    if pattern.background is not None and not pattern.background_subtracted:
        ax.plot(x, pattern.background, color=_GREY, lw=0.8, ls="--", zorder=2)
    _scale_intensity(ax, pattern, scale, room=peaks is not None and len(peaks) > 0)
    if peaks is not None and len(peaks):
        _draw_ticks(ax, _positions(pattern, peaks, axis))
    ax.set_xlim((x[0], x[-1]) if axis != "d" else _d_limits(pattern))
    if axis == "d":
        ax.set_xscale("log")  # 1/d in disguise: even spacing for lines that a linear d axis would crowd
        _plain_log_ticks(ax)
    ax.set_xlabel(_axis_label(pattern, axis))
    ax.set_ylabel(f"Intensity ({'counts' if _is_counts(pattern) else 'arb. units'})")
    ax.tick_params(direction="in", which="both", top=True, right=True)
    if axis != "d":
        ax.minorticks_on()
    if pattern.name:
        ax.set_title(pattern.name, loc="left", fontsize="medium")
    return ax.figure, ax


def _positions(pattern, peaks, axis: str) -> np.ndarray:
    """Line positions on the axis drawn, by the axis' own wavelength, so that ticks sit on the drawn lines."""
    if axis == "two_theta":
        return peaks.position
    from crystaldl.powder.axes import two_theta_to_inverse_d

    inverse_d = two_theta_to_inverse_d(peaks.position, pattern.wavelength)
    return 2 * np.pi * inverse_d if axis == "q" else 1 / inverse_d


def _draw_ticks(ax, positions) -> None:
    transform = ax.get_xaxis_transform()
    ax.vlines(positions, 0.015, 0.055, transform=transform, color=_RED, lw=0.9, zorder=4)


def _scale_intensity(ax, pattern, scale: str, room: bool) -> None:
    y = pattern.intensity[~pattern.mask]
    low, high = min(float(y.min()), 0.0), float(y.max())
    if scale == "log":
        positive = y[y > 0]
        ax.set_yscale("log")
        ax.set_ylim(max(float(np.percentile(positive, 1)), 1e-4 * high) * (0.4 if room else 0.8), 1.5 * high)
        return
    if scale == "sqrt":
        ax.set_yscale("function", functions=(_signed_sqrt, _signed_square))
        ax.set_yticks(_sqrt_ticks(high))
    below = 0.08 if room else 0.03
    if scale == "sqrt":
        bottom, top = _signed_sqrt(low), _signed_sqrt(high)
        ax.set_ylim(_signed_square(bottom - below * (top - bottom)), _signed_square(top + 0.04 * (top - bottom)))
    else:
        ax.set_ylim(low - below * (high - low), high + 0.05 * (high - low))


def _signed_sqrt(values):
    return np.sign(values) * np.sqrt(np.abs(values))


def _signed_square(values):
    return np.sign(values) * np.square(values)


def _sqrt_ticks(high: float) -> list[float]:
    """Round values whose square roots are about evenly spaced."""
    decade = 10.0 ** np.floor(np.log10(high))
    lead = high / decade
    steps = {1: (0, 0.05, 0.2, 0.5, 1.0), 2: (0, 0.1, 0.5, 1, 2), 5: (0, 0.2, 1, 2, 4), 10: (0, 0.5, 2, 5, 9)}
    choice = next(v for k, v in steps.items() if lead <= k * 1.999 or k == 10)
    return [v * decade for v in choice if v * decade <= high * 1.02]


def _d_limits(pattern) -> tuple[float, float]:
    return float(pattern.d[0]), float(pattern.d[-1])


def _plain_log_ticks(ax) -> None:
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter, NullLocator

    high, low = ax.get_xlim()
    low, high = min(low, high), max(low, high)
    values = [0.4, 0.5, 0.6, 0.7, 0.8, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100]
    ax.xaxis.set_major_locator(FixedLocator([v for v in values if low <= v <= high]))
    ax.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def _axis_label(pattern, axis: str) -> str:
    if axis == "q":
        return "$q = 2\\pi/d$ (Å$^{-1}$)"
    if axis == "d":
        return "$d$ (Å)"
    radiation = pattern.radiation
    lamp = f"{pattern.wavelength:.5g} Å"
    if radiation.anode and radiation.doublet is not None:
        lamp = f"{radiation.name}"
    return f"2θ (°), {lamp}"


def _is_counts(pattern) -> bool:
    y = pattern.intensity[~pattern.mask]
    return not pattern.background_subtracted and bool(np.all(y == np.round(y)))
