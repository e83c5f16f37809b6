"""The profile fit of the best lattice under a classified pattern: ticks and difference curve."""

from __future__ import annotations

import numpy as np

from .axes import inverse_d_to_two_theta
from .remainder import fitted_curve

_RED, _GREY, _AMBER = "#c0392b", "#8a8a8a", "#b26a00"


def draw_fit(ax, result) -> None:
    """Ticks of the best lattice, the difference between pattern and fit, and marks on foreign lines, on an axes below."""
    lattice, wavelength = result.lattices[0], result.pattern.radiation.wavelength
    x, measured, curve = fitted_curve(result)
    top = max(float(measured.max(initial=0.0)), 1e-12)
    ax.plot(x, 100 * (measured - curve) / top, color=_GREY, lw=0.6)
    ticks = inverse_d_to_two_theta(np.sqrt(lattice.fit.q2), wavelength) + lattice.zero
    ax.vlines(ticks[np.isfinite(ticks)], 0.86, 1.0, transform=ax.get_xaxis_transform(), color=_RED, lw=0.7)
    if len(result.unexplained):
        odd = inverse_d_to_two_theta(result.unexplained[:, 0], wavelength)
        ax.plot(odd, np.full(len(odd), 0.74), "v", transform=ax.get_xaxis_transform(), color=_AMBER, ms=3.5)
    high = max(8.0, 1.2 * float(np.percentile(np.abs(100 * (measured - curve) / top), 99.8))) if len(x) else 8.0
    ax.set_ylim(-high, 1.7 * high)
    ax.set_ylabel("Diff. (%)")
    ax.set_title(f"{lattice.bravais}: ticks; measured less fit", loc="left", fontsize="x-small", color=_GREY, pad=2)
    ax.tick_params(direction="in")
