"""One disk with a soft edge at an exact centre."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr


def disk_image(centre, radius, edge, shape, filling=None):
    """One disk of unit height: an error-function edge, multiplied by ``filling(v, u)`` (offsets in radii)."""
    y, x = np.indices(shape)
    v, u = (y - centre[0]) / radius, (x - centre[1]) / radius
    out = ndtr((1 - np.hypot(v, u)) * radius / edge)
    return out if filling is None else out * filling(v, u)
