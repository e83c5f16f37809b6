"""What the networks read: patterns brought to one disk radius, stabilised, beside their correlation with the probe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from .correlate import box_mean, fill_unmeasured, probe_kernel
from .probe import Probe

RADIUS = 5.0  # px, of the disks as the network sees them
RADIUS_RANGE = (4.4, 5.8)  # patterns whose disks are within are left as they are
CHANNELS = 5
WINDOW = 21  # px, for local mean and contrast: four radii


@dataclass(frozen=True)
class Frame:
    """How positions in the network's pixels and in the pattern's correspond: ``p = (q + 0.5) / factor - 0.5``."""

    factor: tuple[float, float]
    radius: float

    def to_pattern(self, positions: Tensor) -> Tensor:
        """From the network's px to the pattern's, (N, 2)."""
        factor = torch.tensor(self.factor, device=positions.device, dtype=positions.dtype)
        return (positions + 0.5) / factor - 0.5

    def from_pattern(self, positions: Tensor) -> Tensor:
        """From the pattern's px to the network's, (…, 2)."""
        factor = torch.tensor(self.factor, device=positions.device, dtype=positions.dtype)
        return (positions + 0.5) * factor - 0.5


def resampling(old: int, new: int) -> np.ndarray:
    """Matrix (new, old) with rows that sum to 1: mean over the area of each new pixel, or linear interpolation."""
    factor = new / old
    if factor >= 1:
        at = np.clip((np.arange(new) + 0.5) / factor - 0.5, 0, old - 1)
        return np.clip(1 - np.abs(at[:, None] - np.arange(old)), 0, 1)
    left = np.arange(new)[:, None] / factor
    overlap = np.minimum(left + 1 / factor, np.arange(1, old + 1)) - np.maximum(left, np.arange(old))
    overlap = np.clip(overlap, 0, None)
    return overlap / overlap.sum(1, keepdims=True)


class Preparer:
    """Turns patterns of one shape and probe into the network's input.

    Parameters
    ----------
    probe : Probe
    shape : (H, W)
    device : str or torch device
    """

    def __init__(self, probe: Probe, shape: tuple[int, int], device="cpu"):
        low, high = RADIUS_RANGE
        factor = 1.0 if low <= probe.radius <= high else RADIUS / probe.radius
        size = tuple(max(16, int(round(n * factor))) for n in shape)
        self.frame = Frame((size[0] / shape[0], size[1] / shape[1]), probe.radius * factor)
        self._matrices = None
        if factor != 1.0:
            self._matrices = [
                torch.as_tensor(resampling(a, b), dtype=torch.float32, device=device)
                for a, b in zip(shape, size, strict=True)
            ]
        self.size = size
        scaled = self._scaled_probe(probe)
        # zeros behind the pattern keep the correlation from reaching around it
        self._padded = tuple(next_fast_len(n + int(np.ceil(2.5 * self.frame.radius)), real=True) for n in size)
        kernels = np.stack([_unit(k) for k in (probe_kernel(scaled, self._padded), outline_kernel(scaled, self._padded))])
        self._kernels = torch.fft.rfft2(torch.as_tensor(kernels, dtype=torch.float32, device=device)).conj()

    def _scaled_probe(self, probe: Probe) -> Probe:
        if self._matrices is None:
            return probe
        rows, columns = (m.cpu().numpy() for m in self._matrices)
        image = rows @ probe.image @ columns.T
        return Probe.from_array(image, probe.source)

    def resample(self, patterns: Tensor) -> Tensor:
        """Patterns (B, H, W) to the network's pixels; mean intensity stays."""
        if self._matrices is None:
            return patterns
        return self._matrices[0] @ patterns @ self._matrices[1].T

    def __call__(self, patterns: Tensor) -> Tensor:
        """Input (B, CHANNELS, h, w) of patterns (B, H, W), NaN where not measured."""
        p = self.resample(fill_unmeasured(patterns)).clamp_min(0)
        p = p / p.mean((1, 2), keepdim=True).clamp_min(1e-20)
        root = torch.sqrt(p + 0.01)
        half = WINDOW // 2
        mean = box_mean(root, half)
        variance = box_mean(box_mean((root - mean) ** 2, half), half // 2)
        deviation = torch.sqrt(variance + 1e-3 * variance.mean((1, 2), keepdim=True) + 1e-6)
        spectrum = torch.fft.rfft2(root - mean, s=self._padded)[:, None] * self._kernels
        match = torch.fft.irfft2(spectrum, s=self._padded)[:, :, : self.size[0], : self.size[1]]
        match = (match / (deviation * WINDOW)[:, None]).clamp(-1, 1)
        radius = torch.full_like(p, 2 * (self.frame.radius / RADIUS - 1))
        local = ((root - mean) / deviation).clamp(-4, 6) / 2
        return torch.stack([torch.log(p + 0.02) / 3, local, 3 * match[:, 0], 3 * match[:, 1], radius], 1)


def outline_kernel(probe: Probe, shape: tuple[int, int]) -> np.ndarray:
    """Zero-mean kernel (H, W) of the disk's outline, its centre at the array origin: finds unevenly filled disks."""
    half = min(int(np.ceil(2 * probe.radius)), (min(shape) - 1) // 2)
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    r = np.hypot(y, x)
    width = max(probe.edge, 0.8)
    inside = np.exp(-0.5 * ((r - probe.radius + 1.2 * width) / width) ** 2)
    outside = np.exp(-0.5 * ((r - probe.radius - 1.2 * width) / width) ** 2)
    kernel = np.zeros(shape)
    kernel[: 2 * half + 1, : 2 * half + 1] = inside / inside.sum() - outside / outside.sum()
    return np.roll(kernel, (-half, -half), (0, 1))


def _unit(kernel: np.ndarray) -> np.ndarray:
    return kernel / np.sqrt((kernel**2).sum())
