"""The probe between its pixels: sharp edges that splines through the pixels do not follow.

An aperture whose edge is as sharp as the pixels is sampled too coarsely for interpolation: shifted by half a pixel, a spline
through its samples over- and undershoots by several per cent of the plateau, and a fit of positions then depends on where
the disk lies within its pixel. But the outline of an aperture is a smooth curve that crosses the pixels everywhere, and tells
together with all of them how the edge runs. Its radius may depend on the azimuth (ellipticity, threefold astigmatism):

    m(r, θ) = h · Φ((R(θ) - r) / e),   R(θ) = R₀ + Σ aₙ cos nθ + bₙ sin nθ,  n = 2, 3

and what the image has beside it, be it a bullseye or noise, is interpolated as it is.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage, optimize
from scipy.special import ndtr

SHARP = 0.6  # px: splines follow wider edges to a fraction of a per cent
NARROWEST = 0.15  # px
MISFIT = 0.1  # of the plateau, root mean square: no outline is taken from an image that it describes worse


def fine_patch(image: np.ndarray, centre, radius: float, edge: float, half: int, fine: int) -> np.ndarray:
    """The image around ``centre`` at steps of 1/``fine`` px, (2 · fine · half + 1)², the centre in the middle; 0 outside.

    Parameters
    ----------
    image : (H, W)
        A disk with its plateau near 1.
    centre : (float, float), px
    radius, edge : float, px
        Roughly the disk's.
    """
    offset = np.arange(-fine * half, fine * half + 1) / fine
    at = np.meshgrid(centre[0] + offset, centre[1] + offset, indexing="ij")
    outline = fitted_outline(image, centre, radius, edge) if edge < SHARP else None
    if outline is None:
        return ndimage.map_coordinates(image, at, order=3, mode="constant", cval=0.0)
    rest = image - outline(*np.indices(image.shape))
    return ndimage.map_coordinates(rest, at, order=3, mode="constant", cval=0.0) + outline(*at)


def fitted_outline(image: np.ndarray, centre, radius: float, edge: float):
    """The outline of a disk as a function of the pixel coordinates (y, x), or None where the image is none."""
    y, x = np.indices(image.shape)
    band = np.abs(np.hypot(y - centre[0], x - centre[1]) - radius) < max(2.5, 0.4 * radius)
    y, x, height = y[band], x[band], image[band]

    def model(p, y, x):
        dy, dx = y - p[0], x - p[1]
        angle = np.arctan2(dy, dx)
        wave = p[5] * np.cos(2 * angle) + p[6] * np.sin(2 * angle) + p[7] * np.cos(3 * angle) + p[8] * np.sin(3 * angle)
        return p[4] * ndtr((p[2] + wave - np.hypot(dy, dx)) / np.exp(p[3]))

    start = np.array([centre[0], centre[1], radius, np.log(max(edge, 1.1 * NARROWEST)), 1.0, 0, 0, 0, 0])
    reach = np.array([1.0, 1.0, 0.2 * radius, 0, 0, *[0.1 * radius] * 4])
    low, high = start - reach, start + reach
    low[3:5], high[3:5] = (np.log(NARROWEST), 0.7), (np.log(max(2 * edge, 1.0)), 1.3)
    found = optimize.least_squares(
        lambda p: model(p, y, x) - height, start, bounds=(low, high), loss="soft_l1", f_scale=0.1
    )
    if np.sqrt(np.mean((model(found.x, y, x) - height) ** 2)) > MISFIT:
        return None
    return lambda y, x: model(found.x, y, x)
