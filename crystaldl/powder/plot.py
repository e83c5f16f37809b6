"""Figures of powder patterns.  Matplotlib only: functions take data and an ``ax``."""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from ..errors import DataError

__all__ = ["plot_classification", "plot_pattern", "typeset_symbol"]

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
    elif not hasattr(ax, "get_xlim"):
        raise TypeError(f"ax is a {type(ax).__name__}; expected matplotlib Axes.")
    if peaks is not None and not (hasattr(peaks, "position") and hasattr(peaks, "__len__")):
        raise TypeError(f"peaks is a {type(peaks).__name__}; expected a PeakList, as PowderPattern.peaks gives.")
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
        from matplotlib.ticker import AutoMinorLocator

        ax.xaxis.set_minor_locator(AutoMinorLocator())
    if pattern.name:
        ax.set_title(pattern.name, loc="left", fontsize="medium")
    return ax.figure, ax


def _positions(pattern, peaks, axis: str) -> np.ndarray:
    """Line positions on the axis drawn, by the axis' own wavelength, so that ticks sit on the drawn lines."""
    if axis == "two_theta":
        return peaks.position
    from .axes import two_theta_to_inverse_d

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


# -- classification ------------------------------------------------------------------------------------------------


_PALE, _INK, _GREEN, _AMBER = "#b9c7d6", "#3a3a3a", "#2e7d4f", "#b26a00"


def plot_classification(result, n: int = 5, scale: str = "sqrt"):
    """Draw a classification: the pattern, and below it the probable crystal systems and space groups.

    Between them, where the method searched for lattices: ticks of the best one's lines, the difference between pattern
    and fitted profile, and triangles at lines foreign to it. A pattern that still has its background is drawn with the
    background that `subtract_background` finds, dashed.
    Space groups of the most probable crystal system are dark.

    Parameters
    ----------
    result : Classification
    n : int
        How many space groups.
    scale : {"sqrt", "linear", "log"}
        Of the intensity.

    Returns
    -------
    (Figure, (3,) or (4,) array of Axes)
        Axes of the pattern, of the crystal systems and of the space groups, and of the fit where there is one.
    """
    import matplotlib.pyplot as plt

    top = result.top(n)
    low, fitted = max(1.9, 0.7 + 0.2 * n), bool(result.lattices) and result.lattices[0].fit is not None
    heights = (2.6, 0.8, low) if fitted else (2.6, low)
    figure = plt.figure(figsize=(7.2, 0.6 + sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights, width_ratios=(1, 1))
    axes = np.array([figure.add_subplot(grid[0, :]), figure.add_subplot(grid[-1, 0]), figure.add_subplot(grid[-1, 1])])
    plot_pattern(result.pattern, axes[0], scale=scale)
    if fitted:
        from .plot_fit import draw_fit

        axes = np.append(axes, figure.add_subplot(grid[1, :], sharex=axes[0]))
        draw_fit(axes[3], result)
        axes[3].set_xlabel(axes[0].get_xlabel())
        axes[0].set_xlabel("")
        axes[0].tick_params(labelbottom=False)
    _draw_background(axes[0], result.pattern)
    axes[0].set_title(_verdict(result), loc="right", fontsize="medium", color=_GREEN if result.confident else _AMBER)
    systems = result.crystal_system_probabilities
    best = [name == result.crystal_system for name in systems]
    _draw_bars(axes[1], list(systems), list(systems.values()), best)
    axes[1].set_title("Crystal system", loc="left", fontsize="medium")
    inside = [_system_of(number) == result.crystal_system for number, _, _ in top]
    labels = [f"{typeset_symbol(symbol)} ({number})" for number, symbol, _ in top]
    _draw_bars(axes[2], labels, [probability for *_, probability in top], inside)
    axes[2].set_title("Space group (number)", loc="left", fontsize="medium")
    figure.supxlabel(_small_print(result), x=0.01, ha="left", fontsize="x-small", color=_INK)
    return figure, axes


def _draw_background(ax, pattern) -> None:
    if pattern.background_subtracted or pattern.background is not None:
        return
    from .background import estimate_background

    background = estimate_background(pattern.two_theta, pattern.intensity)
    ax.plot(pattern.two_theta, background, color=_RED, lw=0.9, ls="--", zorder=4)


def _verdict(result) -> str:
    name = f"{result.crystal_system}, {typeset_symbol(result.space_group_symbol)}"
    return name + (" – confident" if result.confident else " – not confident")


def _system_of(number: int) -> str:
    from ..physics.symmetry import CRYSTAL_SYSTEMS, SYSTEM_OF_GROUP

    return CRYSTAL_SYSTEMS[SYSTEM_OF_GROUP[number - 1]]


def _draw_bars(ax, labels, values, dark) -> None:
    """Horizontal bars from top to bottom with their values in per cent; a bar is dark where ``dark`` says so."""
    place = np.arange(len(labels))
    colours = [_BLUE if strong else _PALE for strong in dark]
    ax.barh(place, values, height=0.72, color=colours)
    for y, value in zip(place, values, strict=True):
        text = f"{value:.0%}" if value >= 0.005 else "<1%" if value > 0 else "0%"
        ax.text(value + 0.015, y, text, va="center", fontsize="small", color=_INK)
    ax.set_yticks(place, labels)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    ax.set_xlabel("Probability")
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", direction="in")
    ax.spines[["top", "right"]].set_visible(False)


def _small_print(result) -> str:
    members = len(result.extinction_space_groups)
    groups = "1 space group" if members == 1 else f"{members} space groups"
    parts = [f"Extinction group {typeset_symbol(result.extinction_group)} ({groups})"]
    if result.lines >= 0:
        parts.append("1 line found" if result.lines == 1 else f"{result.lines} lines found")
    if result.looks_like:
        parts.append(f"looks like {result.looks_like}")
    if np.isfinite(result.second_phase_probability):
        parts.append(f"second phase {result.second_phase_probability:.0%}")
    return "   ·   ".join([*parts, f"model {result.model}"])


@cache
def _spaced_symbols() -> dict[str, tuple[str, ...]]:
    """Short symbol -> its parts.  Only the spaced form tells P 3 2 1 (150) from P 32 (145) followed by 1."""
    from ..physics.symmetry import space_group, symbols

    out = {}
    for number, short in enumerate(symbols(), start=1):
        parts = space_group(number).hm.split()
        if 3 <= number <= 15:
            parts = [part for part in parts if part != "1"]
        out[short] = out["".join(parts)] = tuple(parts)
        # rhombohedral groups on hexagonal axes: some write H for their R
        out["".join(["H", *parts[1:]]) if parts[0] == "R" else short] = tuple(parts)
    return out


def typeset_symbol(symbol: str) -> str:
    """A Hermann-Mauguin symbol as mathtext: screw axes with subscripts, inversion axes with overbars.

    Parameters
    ----------
    symbol : str
        Short symbol of a space group (``"P21/c"``, ``"R-3m"``), or any symbol with its parts set apart
        (``"P 1 21/c 1"``, the extinction symbol ``"P - 21 c"``).

    Returns
    -------
    str
        Such as ``"$P2_1/c$"``.

    Raises
    ------
    DataError
        A symbol without spaces that none of the 230 space groups has.
    """
    if symbol.startswith("as "):  # an extinction group without a symbol of its own
        return "as " + typeset_symbol(symbol[3:])
    known = _spaced_symbols().get(symbol)
    if known is not None:
        return f"${''.join(map(_typeset_part, known))}$"
    if " " not in symbol.strip():
        raise DataError(f"symbol is {symbol!r}; expected a short symbol of a space group, such as 'P21/c' or 'R-3m'.")
    return "$" + r"\;".join(map(_typeset_part, symbol.split())) + "$"


def _typeset_part(part: str) -> str:
    if part == "-":
        return "{–}"
    part = re.sub(r"-(\d)", r"\\overline{\1}", part)
    return re.sub(r"(?<![{\d])(\d)(\d)", r"\1_\2", part)
