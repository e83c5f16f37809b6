"""Figures of short-range order and of structural models.  Matplotlib only."""
from __future__ import annotations

import numpy as np

from ..plot import bright_layer, plot_volume
from ..volume import DiffuseVolume

__all__ = ["plot_comparison", "plot_sro_fit"]

_BLUE, _RED, _GREY = "#1f4e79", "#c0392b", "#8a8a8a"


def plot_sro_fit(fit):
    """Measured, calculated and residual intensity, and α against distance with error bars: (figure, (4,) axes)."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(16.5, 4.2), layout="constrained", width_ratios=(1, 1, 1, 1.15))
    panels = [("measured", fit.data), ("calculated", fit.simulate()), ("residual", fit.residual())]
    at = bright_layer(fit.data, fit.data.mask)
    layers = [_layer(v, at) for _, v in panels]
    low, high = _limits(layers[0])
    spread = float(np.nanpercentile(np.abs(layers[2].data), 99)) or 1.0
    for ax, (title, _), layer in zip(axes, panels, layers, strict=False):
        limits = {"vmin": -spread, "vmax": spread, "cmap": "RdBu_r"} if title == "residual" else {"vmin": low, "vmax": high}
        plot_volume(layer, ax, colorbar=False, **limits)
        ax.figure.colorbar(ax.collections[0] if ax.collections else ax.images[0], ax=ax, shrink=0.7)
        ax.set_title(title, loc="left", fontsize="medium", pad=9)
    _draw_alpha(axes[3], fit)
    name = f"{fit.data.name}   " if fit.data.name else ""
    figure.suptitle(f"{name}R {fit.r_factor:.2%}, wR {fit.wr_factor:.2%}, χ² {fit.chi2:.3g}", fontsize="medium")
    return figure, axes


def _draw_alpha(ax, fit) -> None:
    ax.axhline(0, color=_GREY, lw=0.8, zorder=1)
    style = {"fmt": "o", "ms": 4, "color": _BLUE, "ecolor": _RED, "elinewidth": 1.2, "capsize": 2.5, "zorder": 3}
    ax.errorbar(fit.distance, fit.alpha, yerr=fit.sigma, **style)
    if len(fit.alpha) <= 12:
        for i, (d, a) in enumerate(zip(fit.distance, fit.alpha, strict=True)):
            text = " ".join(f"{v:.3g}" for v in fit.vectors[i])
            above = a >= 0
            ax.annotate(text, (d, a), xytext=(0, 7 if above else -7), textcoords="offset points", ha="center",
                        va="bottom" if above else "top", fontsize=7, color=_GREY)
        ax.margins(0.09, 0.14)
    ax.set_xlabel("projected |R| (Å)" if fit.projected else "|R| (Å)")
    ax.set_ylabel("Warren-Cowley α")
    ax.tick_params(direction="in", top=True, right=True)


def plot_comparison(comparison, most: int = 3):
    """The separated form factor, the best models' and the ΔBIC of all: (figure, axes)."""
    import matplotlib.pyplot as plt

    order = np.argsort(comparison.bic, kind="stable")
    shown = [comparison.names[i] for i in order[:most]]
    first = [] if comparison.observed is None else [("separated", comparison.observed)]
    panels = first + [(name, comparison.form_factor(name)) for name in shown]
    n = len(panels)
    figure, axes = plt.subplots(1, n + 1, figsize=(3.9 * n + 4.2, 4.0), layout="constrained", squeeze=False)
    axes = axes[0]
    at = bright_layer(panels[0][1], panels[0][1].mask)
    layers = [_layer(v, at) for _, v in panels]
    low, high = _limits(layers[0])
    for ax, (title, _), layer in zip(axes, panels, layers, strict=False):
        plot_volume(layer, ax, vmin=low, vmax=high, colorbar=False)
        if title != "separated":
            title = f"{title}   R {comparison.r_factor[comparison.names.index(title)]:.1%}"
        ax.set_title(title, loc="left", fontsize="medium", pad=9)
    ax = axes[-1]
    place = np.arange(len(order))[::-1]
    ax.barh(place, comparison.bic[order] - comparison.bic.min(), color=[_BLUE] + [_GREY] * (len(order) - 1), height=0.36)
    for y, i in zip(place, order, strict=True):
        text = f"  {comparison.names[i]}   p {comparison.probability[i]:.2g}"
        ax.annotate(text, (0, y + 0.18), xytext=(0, 3), textcoords="offset points", fontsize=8, va="bottom")
    ax.set_yticks([])
    ax.set_ylim(-0.5, len(order) - 0.25)
    ax.set_xlabel("ΔBIC")
    ax.tick_params(direction="in", top=True)
    return figure, axes


def _limits(plane: DiffuseVolume) -> tuple[float, float]:
    low, high = (float(v) for v in np.nanpercentile(plane.data, (1, 99)))
    return (low, high) if low < high else (low - 0.5 * abs(low) - 1e-6, high + 0.5 * abs(high) + 1e-6)


def _layer(volume: DiffuseVolume, at: int | None) -> DiffuseVolume:
    """A plane as it is; of a volume that layer along the last axis."""
    if at is None:
        return volume
    return DiffuseVolume.from_basis(
        volume.data[:, :, at], volume.axes[:2], volume.basis[:2], volume.origin + volume.axes[2][at] * volume.basis[2],
        volume.lattice, radiation=volume.radiation, name=volume.name,
    )  # fmt: skip
