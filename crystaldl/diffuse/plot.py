"""Figures of diffuse scattering and of its Fourier transform.  Matplotlib only: functions take data and an ``ax``."""

from __future__ import annotations

import numpy as np

from ..errors import DataError
from .checks import check_number
from .naming import axis_names, name_of_plane, plane_name

__all__ = ["bright_layer", "plot_delta_pdf", "plot_volume"]

_GREY = "#b4b4b4"
_NICE = (1, 2, 5)
_EMPTY = 0.3    # of the volume's brightness: a layer below says little


# -- volumes -------------------------------------------------------------------------------------------------------


def plot_volume(
    volume, ax=None, *, vmin=None, vmax=None, percentile=(1.0, 99.0), cmap="viridis", log=False, colorbar=True
):
    """Draw a plane, or the three planes through the middle of a volume, in Cartesian aspect.

    Angles and lengths are those of reciprocal space: oblique axes are drawn oblique.  The first axis runs to the
    right.  Pixels that were not measured are grey.

    Parameters
    ----------
    volume : DiffuseVolume
    ax : matplotlib Axes, or for a volume three of them, optional
        A new figure by default.
    vmin, vmax : float, optional
        Ends of the colour scale; they win over ``percentile``.
    percentile : (2,) sequence
        Ends of the colour scale as percentiles of the measured pixels.
    cmap : str or Colormap
    log : bool
        Logarithmic colours; values at or below zero take the lowest colour.
    colorbar : bool

    Returns
    -------
    (Figure, Axes), or (Figure, (3,) array of Axes) for a volume
        A volume is cut where h, k and l (its axes) are nearest to 0, or in the middle where 0 is outside.
    """
    norm = _norm(volume.data[volume.mask], vmin, vmax, percentile, log)
    flat = volume.ndim == 2
    names, units = axis_names(volume), "pixels" if volume.lattice is None else "r.l.u."
    metric = np.eye(2) if volume.lattice is None else volume.q_metric()
    ax = _new_axes(ax, volume.axes, metric)
    for place, across in zip(ax, [None] if flat else [2, 1, 0], strict=True):
        kept = [i for i in range(volume.ndim) if i != across]
        data, title = volume.data, f"{volume.name}  {plane_name(volume)}".strip()
        if across is not None:
            data, title = _middle(volume, across, kept, names)
        axes = [volume.axes[i] for i in kept]
        labels = [f"{names[i]} ({units})" for i in kept]
        image = _draw(place, data, axes, metric[np.ix_(kept, kept)], norm, cmap, labels)
        place.set_title(title, loc="left", fontsize="medium", pad=9)
    if volume.name and not flat:
        ax[0].figure.suptitle(volume.name)
    if colorbar:
        label = "Intensity (arb. units)"
        ax[0].figure.colorbar(image, ax=list(ax), label=label, extend=_extend(volume.data, norm), shrink=0.85)
    return ax[0].figure, ax[0] if flat else ax


def bright_layer(volume, usable) -> int | None:
    """The layer along the last axis that stands for a volume: nearest to 0 among those that are not nearly empty.

    ``usable`` is a bool array like the data. None for a plane.
    """
    if volume.ndim == 2:
        return None
    axis, values = volume.axes[2], np.where(usable, volume.data, np.nan)
    filled = np.isfinite(values).any(axis=(0, 1))
    level = np.full(axis.size, -np.inf)
    level[filled] = np.nanpercentile(values[:, :, filled], 99, axis=(0, 1))
    start = 0.0 if axis[0] <= 0 <= axis[-1] else axis[axis.size // 2]
    near = np.lexsort((-axis, np.abs(axis - start).round(9)))
    bright = near[level[near] >= _EMPTY * level.max()]
    return int((bright if bright.size else near)[0])


def _middle(volume, across: int, kept: list[int], names):
    """The layer nearest to 0 along one axis (the middle one where 0 is outside) and its name."""
    axis = volume.axes[across]
    at = int(np.argmin(np.abs(axis))) if axis[0] <= 0 <= axis[-1] else axis.size // 2
    value = 0.0 if abs(axis[at]) < 1e-3 * (axis[1] - axis[0]) else axis[at]
    title = name_of_plane(volume.basis[kept], volume.origin + value * volume.basis[across])
    return np.take(volume.data, at, axis=across), title or f"{names[across]} = {value:.4g}"


def _new_axes(ax, axes, metric):
    """An array of one or three matplotlib Axes: those given, or of a new figure in the shape of the plane."""
    n = 1 if len(axes) == 2 else 3
    if ax is not None:
        try:
            given = np.atleast_1d(np.asarray(ax, dtype=object))
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"ax is a {type(ax).__name__}; expected matplotlib Axes.") from None
        if given.shape != (n,):
            raise DataError(f"ax has {given.size} axes; expected {n}.")
        if not all(hasattr(one, "get_xlim") for one in given):
            raise TypeError(f"ax is a {type(ax).__name__}; expected matplotlib Axes.")
        return given
    import matplotlib.pyplot as plt

    size = (12.6, 4.2)
    if n == 1:
        frame = _frame(metric)
        width, height = np.abs(frame * [[np.ptp(axes[0])], [np.ptp(axes[1])]]).sum(axis=0)
        size = (float(np.clip(3.6 * width / height, 2.2, 7.0)) + 1.8, 4.4)
    return plt.subplots(1, n, figsize=size, layout="constrained", squeeze=False)[1][0]


def _norm(values, vmin, vmax, percentile, log: bool):
    from matplotlib.colors import LogNorm, Normalize

    try:
        ends = [float(p) for p in percentile]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        ends = []
    if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 100:
        raise DataError(f"percentile is {percentile!r}; expected two numbers between 0 and 100, the lower first.")
    if log:
        values = values[values > 0]
        if not values.size:
            raise DataError("log is True but no measured intensity is above zero.")
    low, high = np.percentile(values, ends)
    low = low if vmin is None else check_number(vmin, "vmin")
    high = high if vmax is None else check_number(vmax, "vmax")
    if log and low <= 0:
        raise DataError(f"vmin is {low:g}; a logarithmic scale expects a number above 0.")
    if not low < high:
        if vmin is not None and vmax is not None:
            raise DataError(f"vmin is {low:g} and vmax is {high:g}; vmin must be the smaller one.")
        high = low + max(abs(low), 1.0) * 1e-3  # constant data
    return LogNorm(low, high, clip=False) if log else Normalize(low, high)


def _extend(data, norm) -> str:
    below, above = np.nanmin(data) < norm.vmin, np.nanmax(data) > norm.vmax
    return "both" if below and above else "min" if below else "max" if above else "neither"


# -- oblique images ------------------------------------------------------------------------------------------------


def _frame(metric) -> np.ndarray:
    """(2, 2) rows: Cartesian vectors of the two axes, the first to the right, the second upwards."""
    a, b = np.sqrt(np.diag(metric))
    cosine = metric[0, 1] / (a * b)
    # exactly upright where it is meant to be
    cosine = 0.0 if abs(cosine) < 1e-9 else cosine
    return np.array([[a, 0.0], [b * cosine, b * np.sqrt(1 - cosine**2)]])


def _edges(axis) -> np.ndarray:
    step = (axis[-1] - axis[0]) / (axis.size - 1)
    return np.append(axis - 0.5 * step, axis[-1] + 0.5 * step)


def _draw(ax, data, axes, metric, norm, cmap, labels):
    """The image in Cartesian coordinates with ticks in those of its axes; returns the mappable."""
    import matplotlib as mpl

    colours = _colours(cmap).with_extremes(bad=_GREY)
    if isinstance(norm, mpl.colors.LogNorm):
        data = np.where(data <= 0, norm.vmin, data)
    frame = _frame(metric)
    edges = [_edges(axis) for axis in axes]
    shown = np.ma.masked_invalid(data)
    if frame[1, 0] == 0.0:
        extent = (*edges[0][[0, -1]] * frame[0, 0], *edges[1][[0, -1]] * frame[1, 1])
        image = ax.imshow(
            shown.T, origin="lower", extent=extent, norm=norm, cmap=colours, aspect="equal", interpolation="nearest"
        )
    else:
        u, v = np.meshgrid(*edges, indexing="ij")
        x, y = u * frame[0, 0] + v * frame[1, 0], v * frame[1, 1]
        image = ax.pcolormesh(x, y, shown, norm=norm, cmap=colours, rasterized=True, shading="flat")
        ax.set_aspect("equal")
    _ticks(ax, edges, frame, labels)
    return image


def _colours(cmap):
    import matplotlib as mpl

    if isinstance(cmap, str) and cmap not in mpl.colormaps:
        raise DataError(f"cmap is {cmap!r}; expected the name of a matplotlib colour map.")
    return mpl.colormaps[cmap] if isinstance(cmap, str) else cmap


def _ticks(ax, edges, frame, labels) -> None:
    """Ticks along the lower and the left edge of the parallelogram."""
    (u0, u1), (v0, v1) = edges[0][[0, -1]], edges[1][[0, -1]]
    bottom, top = v0 * frame[1, 1], v1 * frame[1, 1]
    ticks = [_tick_values(*edge[[0, -1]]) for edge in edges]
    ax.set_xticks(ticks[0] * frame[0, 0] + v0 * frame[1, 0], [_number(t) for t in ticks[0]])
    ax.set_xlabel(labels[0])
    ax.set_ylim(bottom, top)
    if frame[1, 0] == 0.0:
        ax.set_xlim(u0 * frame[0, 0], u1 * frame[0, 0])
        ax.set_yticks(ticks[1] * frame[1, 1], [_number(t) for t in ticks[1]])
        ax.set_ylabel(labels[1])
        return
    corners = np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1], [u0, v0]]) @ frame
    ax.set_xlim(corners[:, 0].min(), corners[:, 0].max())
    ax.plot(*corners.T, color="black", lw=0.8, clip_on=False, zorder=3)
    ax.spines[:].set_visible(False)
    # the second axis leaves the frame's left side: its ticks go along the slanted edge
    ax.set_yticks([])
    span = np.ptp(corners[:, 0])
    left = np.array([u0, 0.0]) @ frame
    for value in ticks[1]:
        x, y = left + value * frame[1]
        ax.plot([x, x - 0.012 * span], [y, y], color="black", lw=0.8, clip_on=False)
        ax.text(x - 0.02 * span, y, _number(value), ha="right", va="center", fontsize=_tick_size())
    middle = left + 0.5 * (v0 + v1) * frame[1]
    angle = np.degrees(np.arctan2(frame[1, 1], frame[1, 0]))
    across = np.array([-frame[1, 1], frame[1, 0]]) / np.linalg.norm(frame[1])
    text = ax.text(
        *(middle + 0.09 * span * across), labels[1], rotation=angle if angle <= 90 else angle - 180, ha="center", va="center",
        rotation_mode="anchor",
    )  # fmt: skip
    text.set_gid("second axis")


def _tick_size() -> str | float:
    import matplotlib as mpl

    return mpl.rcParams["ytick.labelsize"]


def _tick_values(low: float, high: float, most: int = 8) -> np.ndarray:
    """Round values, at most ``most``, whole numbers where they fit."""
    raw = (high - low) / most
    decade = 10.0 ** np.floor(np.log10(raw))
    step = next(n * decade for n in (*_NICE, 10) if n * decade >= raw * (1 - 1e-9))
    return np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step


def _number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−") if abs(value) > 1e-12 else "0"


# -- 3D-ΔPDF -------------------------------------------------------------------------------------------------------


def plot_delta_pdf(pdf, ax=None, *, vmax=None, percentile: float = 99.5, maximum=None, cmap="RdBu_r", colorbar=True):
    """Draw a 3D-ΔPDF in Cartesian aspect: red positive, blue negative, white zero.

    Parameters
    ----------
    pdf : DeltaPDF
        A three-dimensional one is cut through its origin, at w = 0, v = 0 and u = 0.
    ax : matplotlib Axes, or three of them, optional
    vmax : float, optional
        Colours span -vmax to vmax; by default ``percentile`` of |P| away from the origin.
    percentile : float
    maximum : float, optional
        Draw only |u|, |v|, |w| up to this.
    cmap : str or Colormap
    colorbar : bool

    Returns
    -------
    (Figure, Axes), or (Figure, (3,) array of Axes)
    """
    from matplotlib.colors import Normalize

    letters = "uvw"
    if maximum is not None:
        limit = check_number(maximum, "maximum", above=0.0)
        cuts = [np.flatnonzero(np.abs(axis) <= limit + 1e-9) for axis in pdf.axes]
    else:
        cuts = [np.arange(axis.size) for axis in pdf.axes]
    if min(cut.size for cut in cuts) < 2:
        raise DataError(f"maximum is {maximum!r}; it leaves no grid of this ΔPDF.")
    data, axes = pdf.data[np.ix_(*cuts)], [axis[cut] for axis, cut in zip(pdf.axes, cuts, strict=True)]
    if vmax is None:
        vmax = np.percentile(np.abs(data), check_number(percentile, "percentile")) or 1.0
    norm = Normalize(-check_number(vmax, "vmax", above=0.0), vmax)
    metric = pdf.metric()
    ax = _new_axes(ax, axes, metric)
    sections = [None] if pdf.ndim == 2 else [2, 1, 0]
    for place, across in zip(ax, sections, strict=True):
        kept = [i for i in range(pdf.ndim) if i != across]
        values = data if across is None else np.take(data, axes[across].size // 2, axis=across)
        labels = [f"{letters[i]} (lattice units)" for i in kept]
        image = _draw(place, values, [axes[i] for i in kept], metric[np.ix_(kept, kept)], norm, cmap, labels)
        title = pdf.name if across is None else f"{letters[across]} = 0"
        place.set_title(title, loc="left", fontsize="medium", pad=9)
    if colorbar:
        ax[0].figure.colorbar(image, ax=list(ax), label="ΔPDF (arb. units)", extend="both", shrink=0.85)
    return ax[0].figure, ax[0] if pdf.ndim == 2 else ax
