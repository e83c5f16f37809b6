"""The figure of a `Separation`.  Matplotlib only."""
from __future__ import annotations

import math

import numpy as np

from ..errors import DataError
from .naming import name_of_plane
from .plot import bright_layer, plot_volume
from .volume import DiffuseVolume

__all__ = ["plot_separation"]

_BLUE, _GREY = "#1f4e79", "#8a8a8a"
_ROBUST = (0.5, 99.5)           # percentiles that end the colour scales
_PANEL = 2.9                    # height of an image, inches
_VISIBLE = 0.005                # of the largest α: what the last panel reaches out to
_NAMED = 6                      # order parameters that are labelled


def plot_separation(parts, *, figsize=None):
    """Measured, calculated and residual intensity; form factor, short-range order, and α against distance.

    Images are drawn in the Cartesian aspect of reciprocal space; of a volume the layer nearest to 0 along its last axis that
    is not (nearly) empty.
    Measured and calculated share their colours. Pixels that did not take part are grey in the residual. Where there are
    no order parameters the last panel is the standard uncertainty of the form factor, or the background if that is not
    known either.

    Parameters
    ----------
    parts : Separation
    figsize : (width, height), optional
        Inches; by default from the shape of the plane.

    Returns
    -------
    (Figure, (2, 3) array of Axes)
    """
    import matplotlib.pyplot as plt

    at = bright_layer(parts.measured, np.asarray(parts.used))
    measured, factor, order = (_layer(v, at) for v in (parts.measured, parts.form_factor, parts.sro))
    calculated, residual = _layer(parts.product(), at), _layer(parts.residual(), at, parts.used)
    figure, axes = plt.subplots(2, 3, figsize=_size(measured, figsize), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    low, high = _range(measured)
    spread = max(abs(v) for v in _range(residual))
    lowest = min(0.0, _range(factor)[0])
    _image(axes[0, 0], measured, f"measured{_where(parts, at)}", "Intensity", vmin=low, vmax=high)
    _image(axes[0, 1], calculated, "calculated", "Intensity", vmin=low, vmax=high)
    _image(axes[0, 2], residual, "residual", "Measured − calculated", vmin=-spread, vmax=spread, cmap="RdBu_r")
    _image(axes[1, 0], factor, "form factor", "D", vmin=lowest, vmax=_range(factor)[1], cmap="magma")
    _image(axes[1, 1], order, "short-range order", "S", vmin=_range(order)[0], vmax=_range(order)[1], cmap="cividis")
    _last(axes[1, 2], parts, at)
    for ax, letter in zip(axes.flat, "abcdef", strict=True):
        ax.set_title(letter, loc="right", fontsize="medium", fontweight="bold", pad=6)
    for ax in axes[0]:
        ax.set_xlabel("")
    for ax in (axes[0, 1], axes[0, 2], axes[1, 1]):
        _without_second_label(ax)
    figure.suptitle(_title(parts), fontsize="medium")
    return figure, axes


def _layer(volume: DiffuseVolume, at: int | None, used=None) -> DiffuseVolume:
    """A plane, or that layer of a volume; sigma stays."""
    if used is not None and np.any(volume.mask & used):
        volume = volume.replace(mask=volume.mask & np.asarray(used), history="not used")
    if at is None:
        return volume
    return DiffuseVolume.from_basis(
        volume.data[:, :, at], volume.axes[:2], volume.basis[:2], volume.origin + volume.axes[2][at] * volume.basis[2],
        volume.lattice, sigma=None if volume.sigma is None else volume.sigma[:, :, at], radiation=volume.radiation,
        name=volume.name,
    )  # fmt: skip


def _size(plane: DiffuseVolume, figsize) -> tuple[float, float]:
    if figsize is not None:
        try:
            given = np.asarray(figsize, dtype=float)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            given = np.zeros(0)
        if given.shape != (2,) or not np.all(given > 0):
            raise DataError(f"figsize is {figsize!r}; expected a width and a height in inches.")
        return tuple(given)
    metric = np.eye(2) if plane.lattice is None else plane.q_metric()
    a, b = np.sqrt(np.diag(metric)) * [np.ptp(axis) for axis in plane.axes]
    cosine = metric[0, 1] / math.sqrt(metric[0, 0] * metric[1, 1])
    ratio = np.clip((a + b * abs(cosine)) / (b * math.sqrt(1.0 - cosine**2)), 0.6, 2.0)
    return 3.0 * (_PANEL * ratio + 1.35), 2.0 * (_PANEL + 0.65) + 0.4


def _range(plane: DiffuseVolume) -> tuple[float, float]:
    low, high = (float(v) for v in np.percentile(plane.data[plane.mask], _ROBUST))
    return (low, high) if high > low else (low - 0.5 * abs(low) - 1e-6, high + 0.5 * abs(high) + 1e-6)


def _image(ax, plane: DiffuseVolume, title: str, label: str, **colours) -> None:
    plot_volume(plane, ax, colorbar=False, **colours)
    mappable = ax.images[0] if ax.images else ax.collections[0]
    values = plane.data[plane.mask]
    below, above = bool(values.min() < colours["vmin"]), bool(values.max() > colours["vmax"])
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    bar = ax.figure.colorbar(mappable, ax=ax, label=label, extend=extend, fraction=0.046, pad=0.025)
    bar.ax.tick_params(labelsize="small", direction="in")
    bar.formatter.set_powerlimits((-3, 4))
    ax.tick_params(labelsize="small", direction="out")
    ax.set_title(title, loc="left", fontsize="medium", pad=6)


def _where(parts, at: int | None) -> str:
    volume = parts.measured
    if at is None or volume.lattice is None:
        return ""
    origin = np.round(volume.origin + volume.axes[2][at] * volume.basis[2], 6) + 0.0    # 0, not 3e-15
    name = name_of_plane(volume.basis[:2], origin)
    return f", {name}" if name else ""


def _without_second_label(ax) -> None:
    ax.set_ylabel("")
    for text in list(ax.texts):
        if text.get_gid() == "second axis":
            text.remove()


def _title(parts) -> str:
    method = parts.method if not parts.model else f"{parts.method}, {parts.model}"
    facts = [parts.measured.name, f"method {method}", f"R {parts.r_factor:.2%}"]
    if np.isfinite(parts.r_free):
        facts.append(f"R free {parts.r_free:.2%}")
    if not parts.applies:
        facts.append("the product does not describe these data")
    return "    ".join(fact for fact in facts if fact)


# -- order parameters ----------------------------------------------------------------------------------------------


def _last(ax, parts, at: int | None) -> None:
    """α against distance; else the uncertainty of D; else the background."""
    if parts.alpha is not None and len(parts.alpha):
        _draw_alpha(ax, parts)
    elif parts.form_factor.sigma is not None:
        factor = parts.form_factor
        sigma = _layer(factor.replace(data=factor.sigma, sigma=None, history="sigma"), at)
        _image(ax, sigma, "standard uncertainty of D", "σ(D)", vmin=0.0, vmax=_range(sigma)[1], cmap="magma")
    else:
        background = _layer(parts.background, at)
        low, high = _range(background)
        _image(ax, background, "background", "Intensity", vmin=low, vmax=high)


def order_distances(parts) -> np.ndarray:
    """Lengths (n,) of the order vectors in Å: in a plane, of their projections on it."""
    volume = parts.measured
    frequency = np.asarray(parts.alpha_vectors, dtype=float) @ np.asarray(volume.basis).T
    metric = 4.0 * math.pi**2 * np.linalg.inv(volume.q_metric())
    return np.sqrt(np.einsum("ni,ij,nj->n", frequency, metric, frequency))


def _draw_alpha(ax, parts) -> None:
    distance, alpha = order_distances(parts), np.asarray(parts.alpha)
    sigma = np.sqrt(np.diag(parts.alpha_covariance))
    ax.axhline(0.0, color=_GREY, lw=0.8, zorder=1)
    style = {"fmt": "o", "ms": 4.0, "color": _BLUE, "ecolor": _BLUE, "elinewidth": 0.9, "capsize": 1.8, "zorder": 3}
    ax.errorbar(distance, alpha, yerr=sigma, **style)
    # the long tail of zeros would squeeze what there is to see
    width = min(1.25 * float(distance[np.abs(alpha) >= _VISIBLE * np.abs(alpha).max()].max()), float(distance.max()))
    height = float(np.ptp(alpha)) or 1.0
    taken: list[tuple[float, float]] = []
    for i in np.argsort(-np.abs(alpha))[:_NAMED]:
        here = (distance[i] / width, alpha[i] / height)
        if any(abs(here[0] - x) < 0.16 and abs(here[1] - y) < 0.07 for x, y in taken):
            continue
        taken.append(here)
        ax.annotate(_vector(parts.alpha_vectors[i]), (distance[i], alpha[i]), xytext=(5, 0), textcoords="offset points",
                    ha="left", va="center", fontsize=7, color="#333333")
    ax.margins(y=0.09)
    ax.set_xlim(0.0, 1.05 * width)
    ax.set_xlabel("projected |R| (Å)" if parts.measured.ndim == 2 else "|R| (Å)")
    ax.set_ylabel("Warren-Cowley α")
    ax.set_title("order parameters", loc="left", fontsize="medium", pad=6)
    ax.tick_params(labelsize="small", direction="in", top=True, right=True)


def _vector(vector) -> str:
    return "[" + " ".join(f"{v + 0.0:.3g}".replace("-", "−") for v in vector) + "]"
