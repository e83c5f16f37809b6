"""Figures of 4D-STEM results.  Matplotlib only: functions take a result and an ``ax``.

Images are drawn with axis 0 (x) downwards and axis 1 (y) to the right, as py4DSTEM draws them.
"""

from __future__ import annotations

import numpy as np

from ..errors import DataError

_CIRCLE, _ARROW, _INK = "#e4572e", "#00b7c7", "#3a3a3a"
_MASKED = "#9a9a9a"
_TITLES = (r"$\varepsilon_{xx}$", r"$\varepsilon_{yy}$", r"$\varepsilon_{xy}$")


def show_strain(strain, *, vrange=None, theta_range=None):
    """Draw a strain map: strain in per cent, rotation in degrees, their uncertainty, and the basis on the Bragg vectors.

    Scan axes are in nm (or what the calibration says) where the scan is calibrated. Masked positions are grey.

    Parameters
    ----------
    strain : py4DSTEM StrainMap from `fit_strain`
    vrange : float or (low, high), optional
        Range of the strain, per cent; by default symmetric, from the 98th percentile.
    theta_range : float or (low, high), optional
        Range of the rotation, degrees.

    Returns
    -------
    (Figure, (2, 3) array of Axes)
    """
    import matplotlib.pyplot as plt

    details = _details(strain)
    values = [np.where(strain.data[4] > 0, strain.data[i], np.nan) for i in range(4)]
    percent, degrees = [100 * v for v in values[:3]], np.degrees(values[3])
    limits = _limits(vrange, np.concatenate([v.ravel() for v in percent]), "vrange")
    turn = _limits(theta_range, degrees.ravel(), "theta_range")
    extent, labels = _scan_axes(strain)
    aspect = (extent[2] - extent[3]) / (extent[1] - extent[0])
    height = float(np.clip(2.45 * aspect, 1.2, 4.5))  # of maps 2.45 inches wide
    figure, axes = plt.subplots(2, 3, figsize=(11.5, 2 * height + 1.9), layout="constrained")
    for ax, value, title in zip(axes[0], percent, _TITLES, strict=True):
        image = _map(ax, value, extent, labels, title, cmap="RdBu_r", limits=limits)
    figure.colorbar(image, ax=axes[0], label="Strain (%)", shrink=0.9, pad=0.015)
    image = _map(axes[1, 0], degrees, extent, labels, r"$\theta$", cmap="PRGn", limits=turn)
    figure.colorbar(image, ax=axes[1, 0], label="Rotation (°)", shrink=0.9)
    sigma = 100 * np.sqrt((details.sigma[:3] ** 2).mean(0))
    top = float(np.nanpercentile(sigma, 98)) if np.isfinite(sigma).any() else 1.0
    image = _map(axes[1, 1], sigma, extent, labels, "Standard uncertainty", cmap="cividis", limits=(0, top or 1.0))
    figure.colorbar(image, ax=axes[1, 1], label="σ of strain (%)", shrink=0.9)
    plot_basis(strain, axes[1, 2])
    figure.supxlabel(_small_print(strain, details), x=0.01, ha="left", fontsize="x-small", color=_INK)
    return figure, axes


def plot_basis(strain, ax=None):
    """Draw the Bragg vector map of the scan, square-root scaled, with the fitted lattice and its basis.

    Returns
    -------
    (Figure, Axes)
    """
    details = _details(strain)
    ax = _axes(ax, (4.2, 4.2))
    image = np.asarray(strain.bvm.data)
    ax.imshow(np.sqrt(np.clip(image, 0, None)), cmap="gray_r", vmax=_bright(np.sqrt(np.clip(image, 0, None))))
    x0, y0 = strain.origin
    nodes = details.hk @ details.reference
    ax.scatter(nodes[:, 1] + y0, nodes[:, 0] + x0, s=34, facecolors="none", edgecolors=_CIRCLE, lw=0.6, zorder=3)
    for number, vector in enumerate(details.reference, start=1):
        ax.annotate(
            "", (y0 + vector[1], x0 + vector[0]), (y0, x0), arrowprops={"arrowstyle": "-|>", "color": _ARROW, "lw": 1.8}
        )
        ax.text(y0 + 1.25 * vector[1], x0 + 1.25 * vector[0], f"$g_{number}$", color=_ARROW, ha="center", va="center")
    reach = 1.15 * np.abs(nodes).max() + 4 if len(nodes) else 40.0
    ax.set_xlim(max(y0 - reach, -0.5), min(y0 + reach, image.shape[1] - 0.5))
    ax.set_ylim(min(x0 + reach, image.shape[0] - 0.5), max(x0 - reach, -0.5))
    ax.set_title("Bragg vectors and basis", loc="left", fontsize="medium")
    ax.set_xlabel("$q_y$ (px)")
    ax.set_ylabel("$q_x$ (px)")
    return ax.figure, ax


def plot_disks(pattern, positions, radius, ax=None, *, sigma=None, confidence=None, title=""):
    """Draw a diffraction pattern with a circle of the probe's radius around each disk.

    Parameters
    ----------
    pattern : (Qx, Qy)
        Drawn with a square-root scale.
    positions : (n, 2), (qx, qy), px
    radius : float, px
    sigma : (n, 2), optional
        Drawn as crosses, ten times enlarged where that can be seen.
    confidence : (n,), optional
        Doubtful disks are paler.

    Returns
    -------
    (Figure, Axes)
    """
    from matplotlib.collections import EllipseCollection

    ax = _axes(ax, (5.2, 5.2))
    pattern = np.asarray(pattern, dtype=float)
    shown = np.sqrt(np.clip(pattern - np.nanpercentile(pattern, 1), 0, None))
    positions = np.asarray(positions, dtype=float).reshape(-1, 2)
    ax.imshow(shown, cmap="gray", vmax=_bright_beside(shown, positions, radius))
    alpha = np.ones(len(positions)) if confidence is None else np.nan_to_num(confidence, nan=1.0)
    from matplotlib.colors import to_rgb

    colours = np.column_stack([np.tile(to_rgb(_CIRCLE), (len(positions), 1)), 0.25 + 0.75 * np.clip(alpha, 0, 1)])
    size = np.full(len(positions), 2 * radius)
    circles = EllipseCollection(
        size, size, np.zeros(len(positions)), units="xy", offsets=positions[:, ::-1], transOffset=ax.transData,
        facecolors="none", edgecolors=colours, linewidths=1.1,
    )  # fmt: skip
    ax.add_collection(circles)
    if sigma is not None and len(positions):
        wide = 10 * np.nan_to_num(np.asarray(sigma, dtype=float))
        style = {"fmt": "none", "ecolor": _ARROW, "elinewidth": 0.9}
        ax.errorbar(positions[:, 1], positions[:, 0], xerr=wide[:, 1], yerr=wide[:, 0], **style)
    ax.set_xlim(-0.5, pattern.shape[1] - 0.5)
    ax.set_ylim(pattern.shape[0] - 0.5, -0.5)
    ax.set_xlabel("$q_y$ (px)")
    ax.set_ylabel("$q_x$ (px)")
    ax.set_title(title or f"{len(positions)} disks", loc="left", fontsize="medium")
    return ax.figure, ax


def plot_intensity(strain, h: int, k: int, ax=None):
    """Draw the intensity of one reflection along the scan.

    Returns
    -------
    (Figure, Axes)
    """
    details = _details(strain)
    ax = _axes(ax, (4.6, 3.8))
    extent, labels = _scan_axes(strain)
    value = details.intensity_of(h, k)
    top = float(np.nanpercentile(value, 99.5)) if np.isfinite(value).any() else 1.0
    image = _map(ax, value, extent, labels, f"Reflection ({h}, {k})", cmap="magma", limits=(0, top or 1.0))
    ax.figure.colorbar(image, ax=ax, label="Intensity (arb. units)")
    return ax.figure, ax


# -- what they share -----------------------------------------------------------------------------------------------


def _details(strain):
    details = getattr(strain, "details", None)
    if details is None:
        raise DataError(f"strain is a {type(strain).__name__} without details; expected the result of fit_strain.")
    return details


def _axes(ax, size):
    if ax is not None:
        if not hasattr(ax, "get_xlim"):
            raise TypeError(f"ax is a {type(ax).__name__}; expected matplotlib Axes.")
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def _limits(given, values, name: str) -> tuple[float, float]:
    if given is None:
        values = np.abs(values[np.isfinite(values)])
        top = float(np.percentile(values, 98)) if values.size else 1.0
        return -(top or 1.0), top or 1.0
    if np.isscalar(given):
        given = (-given, given)
    low, high = (float(v) for v in given)
    if not low < high:
        raise DataError(f"{name} is ({low:g}, {high:g}); expected a lower and a higher number.")
    return low, high


def _bright(image) -> float:
    """The brightest level that is still told apart: a few hot pixels must not darken the rest."""
    return float(np.nanpercentile(image, 99.8)) or float(np.nanmax(image)) or 1.0


def _bright_beside(image, positions, radius) -> float:
    """The brightest level beside the brightest disk: the direct beam must not darken the others."""
    rows, columns = np.indices(image.shape)
    far = [np.hypot(rows - x, columns - y) > 1.3 * radius for x, y in positions]
    if len(far) < 2:
        return _bright(image)
    brightest = int(np.argmax([np.nanmean(np.where(other, np.nan, image)) for other in far]))
    return _bright(image[far[brightest]])


def _scan_axes(strain) -> tuple[tuple[float, float, float, float], tuple[str, str]]:
    """The extent for imshow (left, right, bottom, top) and the labels of both axes."""
    rows, columns = strain.data.shape[-2:]
    size, unit = strain.calibration.get_R_pixel_size(), strain.calibration.get_R_pixel_units()
    unit = "position" if unit in (None, "pixels") else "nm" if unit == "nm" else str(unit)
    if unit == "position":
        size = 1.0
    elif unit in ("A", "Å", "angstrom"):
        size, unit = 0.1 * size, "nm"
    extent = (-0.5 * size, (columns - 0.5) * size, (rows - 0.5) * size, -0.5 * size)
    return extent, (f"y ({unit})", f"x ({unit})")


def _map(ax, value, extent, labels, title, *, cmap, limits):
    import matplotlib as mpl

    shades = mpl.colormaps[cmap].with_extremes(bad=_MASKED)
    image = ax.imshow(value, cmap=shades, vmin=limits[0], vmax=limits[1], extent=extent, interpolation="nearest")
    ax.set_title(title, loc="left", fontsize="medium")
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    if labels[0].endswith("(position)"):
        ax.locator_params(integer=True)
    return image


def _small_print(strain, details) -> str:
    fitted = int((strain.data[4] > 0).sum())
    disks = np.median(details.n_disks[strain.data[4] > 0]) if fitted else 0
    residual = np.nanmedian(details.residual) if fitted else np.nan
    turn = details.options.coordinate_rotation
    parts = [
        f"{fitted} of {strain.data[4].size} positions",
        f"{disks:.0f} disks each (median)",
        f"residual {residual:.3g} px",
        "x along $q_x$" if turn == 0 else f"x {turn:g}° from $q_x$ towards $q_y$",
    ]
    return "   ·   ".join(parts)
