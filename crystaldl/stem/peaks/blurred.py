"""Disks that were blurred after scattering: soft edges of detectors and of patterns out of focus.

The aperture is a hole in a piece of metal. Where disks have edges of several pixels, it is the pattern that was blurred, by the
detector's point spread, the projector's focus or the spread of energies, and with it the filling of the disks:

    I = G ⊗ (A · P)   rather than   (G ⊗ A) · P

with a sharp aperture A, a Gaussian G and the filling P of `filling`. The two differ at the edge, where light comes
from one side only, by σ² ∇P · ∇(G ⊗ A) to first order: where P rises from one side of a disk to the other by its mean, a blur of
σ = 2 px moves a disk of 6 px by half a pixel. The image of the probe tells A and G; what it has beside them multiplies P.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage, optimize
from scipy.special import ndtr
from torch import Tensor

from ..probe import Probe
from .filling import Filling, Shifted, monomials
from .varpro import REACH, Shape, spline_weights

SOFT = 0.75  # px: a wider edge is no longer that of the aperture on the pixels,
OWN = 0.5  # px, which is that wide
STEPS = 4  # points a pixel on which disks are drawn
MISFIT = 0.04  # of the plateau, root mean square: a probe that is described worse is no blurred round aperture
DEGREE = 6  # of the basis: finer functions do not outlast the blur


def filling_of(probe: Probe, shape: Shape, pixels: np.ndarray, device) -> Filling:
    """The filling of disks of a probe: blurred where its edge is wider than that of a sharp aperture on the pixels."""
    if probe.edge > SOFT:
        found = fitted_blur(probe)
        if found is not None:
            return Blurred(probe, shape, pixels, found, device)
    return Filling(shape, pixels, probe.radius, probe.edge, device)


def fitted_blur(probe: Probe) -> tuple[float, float] | None:
    """Radius of the aperture and standard deviation of the blur, px; None where the probe is something else."""
    half = int(np.ceil(probe.radius + 3 * probe.edge + 1))
    image = probe.patch(half)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    inside = np.hypot(y, x) <= half

    def model(p):
        along = np.arange(0, half + 2, 1 / STEPS)
        profile = _drawn(p[0], np.exp(p[1]), half + 2)[STEPS * (half + 2), STEPS * (half + 2) :][: len(along)]
        return p[2] * np.interp(np.hypot(y - p[3], x - p[4])[inside], along, profile)

    start = np.array([probe.radius, 0.5 * np.log(probe.edge**2 - OWN**2), 1.0, 0.0, 0.0])
    reach = np.array([0.3 * probe.radius, 0.7, 0.5, 1.0, 1.0])
    found = optimize.least_squares(lambda p: model(p) - image[inside], start, bounds=(start - reach, start + reach), diff_step=1e-3)
    if np.sqrt(np.mean(found.fun**2)) > MISFIT:
        return None
    return float(found.x[0]), float(np.exp(found.x[1]))


def _drawn(radius: float, blur: float, half: int, functions=None) -> np.ndarray:
    """A blurred disk at steps of 1/`STEPS` px, or one for each of the functions (…, F) it is filled with."""
    offset = np.arange(-STEPS * half, STEPS * half + 1) / STEPS
    image = ndtr((radius - np.hypot(offset[:, None], offset)) / OWN)
    if functions is None:
        return ndimage.gaussian_filter(image, STEPS * blur, truncate=5)
    image = image[..., None] * functions
    return ndimage.gaussian_filter(image, (STEPS * blur, STEPS * blur, 0), truncate=5)


class Blurred(Filling):
    """A filling that was blurred together with its aperture.

    Parameters
    ----------
    probe : Probe
    shape : Shape
        Of the probe, on the same pixels.
    pixels : (P, 2) int ndarray
    blur : (float, float)
        Radius of the aperture and standard deviation of the blur, px.
    """

    def __init__(self, probe: Probe, shape: Shape, pixels: np.ndarray, blur: tuple[float, float], device):
        super().__init__(shape, pixels, probe.radius, probe.edge, device, DEGREE)
        self.again = True  # the polynomial before it knew nothing of the blur
        half = int(np.abs(pixels).max()) + 8
        offset = np.arange(-STEPS * half, STEPS * half + 1) / STEPS
        change, outer = self.functions
        points = np.stack(np.meshgrid(offset, offset, indexing="ij"), -1).reshape(-1, 2) / outer
        points = points / np.maximum(np.hypot(*points.T), 1.0)[:, None]
        functions = (monomials(points, DEGREE) @ change).reshape(len(offset), len(offset), -1)
        drawn = _drawn(*blur, half, functions)[::STEPS, ::STEPS]
        rest = probe.patch(half) - _drawn(*blur, half)[::STEPS, ::STEPS]
        images = drawn + rest[..., None] * functions[::STEPS, ::STEPS]
        reach = int(np.ceil(REACH)) + 1
        taps = np.arange(-reach, reach + 1)
        rows, columns = (pixels[:, k] - taps[:, None] + half for k in (0, 1))
        table = []
        for image in images.transpose(2, 0, 1):
            coefficients = ndimage.spline_filter(image, order=3, mode="mirror")
            table.append(coefficients[rows[:, None], columns[None]].reshape(taps.size**2, -1))
        self.taps = torch.as_tensor(taps, dtype=torch.float32, device=device)
        self.table = torch.as_tensor(np.stack(table, 2), dtype=torch.float32, device=device)

    def shifted(self, s: Tensor, size: int) -> Shifted:
        """Blurred functions (n, P, F) moved by s (n, 2), and their derivatives."""
        weights = spline_weights(self.taps, s, 1)
        table = self.table[:, :, :size]
        out = (weights.reshape(3 * len(s), -1) @ table.reshape(len(table), -1)).reshape(3, len(s), -1, size)
        return out[0], out[1], out[2]

    def squares(self, weight: Tensor, at: Tensor, size: int) -> tuple[Tensor, Tensor]:
        at = at[:, :, :size]
        weighted = (weight[:, :, None] * at).transpose(1, 2)
        return weighted @ at, weighted @ self.three

    def products(self, values: Tensor, at: Tensor, size: int) -> Tensor:
        return (values[:, None] @ at[:, :, :size])[:, 0]

    def filled(self, shifted: Shifted, c: Tensor) -> Shifted:
        a, b, d = ((f[:, :, : c.shape[1]] @ c[:, :, None])[:, :, 0] for f in shifted)
        return a, b, d
