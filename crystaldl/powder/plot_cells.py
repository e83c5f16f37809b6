"""Figures of indexed patterns.  Matplotlib only: functions take a cell and an ``ax``."""

from __future__ import annotations

import numpy as np

from .plot import plot_pattern

__all__ = ["plot_cell"]

_BLUE, _RED, _AMBER = "#1f4e79", "#c0392b", "#b26a00"


def plot_cell(cell, pattern=None, ax=None):
    """Draw the pattern with ticks where the cell has lines, and marks on the lines that it does not explain.

    Parameters
    ----------
    cell : Cell
    pattern : PowderPattern, optional
        Without it the measured lines are drawn as sticks.
    ax : matplotlib Axes, optional

    Returns
    -------
    (Figure, Axes)
    """
    if pattern is not None:
        figure, ax = plot_pattern(pattern, ax)
        end = float(pattern.two_theta[-1])
    else:
        figure, ax = _sticks(cell, ax)
        end = float(cell.peaks.position[-1]) + 1.0
    transform = ax.get_xaxis_transform()
    _, ticks = cell.reflections(end)
    ax.vlines(ticks[ticks > ax.get_xlim()[0]], 0.0, 0.035, transform=transform, color=_RED, lw=0.7, zorder=4)
    if len(cell.unindexed):
        ax.plot(cell.unindexed, np.full(len(cell.unindexed), 0.97), "v", transform=transform, color=_AMBER, ms=4,
                label="not indexed", zorder=5)  # fmt: skip
        ax.legend(loc="upper right", fontsize="small", frameon=False)
    title = f"{cell.bravais}, V = {cell.volume:.1f} Å³, M{cell.merit_lines} = {cell.m20:.0f}, F{cell.merit_lines} = {cell.fn:.0f}"
    ax.set_title(title, loc="right", fontsize="medium")
    return figure, ax


def _sticks(cell, ax):
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    peaks = cell.peaks
    ax.vlines(peaks.position, 0.0, peaks.intensity, color=_BLUE, lw=1.0, zorder=3)
    ax.set_ylim(-0.06 * peaks.intensity.max(), 1.08 * peaks.intensity.max())
    ax.set_xlim(peaks.position[0] - 1.0, peaks.position[-1] + 1.0)
    ax.set_xlabel(f"2θ (°), {peaks.radiation}")
    ax.set_ylabel("Intensity")
    return ax.figure, ax
