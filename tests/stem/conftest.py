"""What the 4D-STEM tests share: drawn disks with exact centres, and a small bank of dynamical ones."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_disks import disk_image


@pytest.fixture(scope="session")
def draw():
    """A function → (patterns, pattern numbers, centres): disks on a lattice, Poisson counts."""

    def make(count=4, shape=(128, 128), radius=6.0, edge=0.6, counts=1000.0, uneven=0.0, background=0.02, seed=0):
        rng = np.random.default_rng(seed)
        patterns, pattern, centres = [], [], []
        area = np.pi * radius**2
        spacing = (3.1 * radius, 3.4 * radius)
        for b in range(count):
            image = np.full(shape, background * counts / area)
            beam = np.array(shape) / 2 + rng.uniform(-1, 1, 2)
            for i in range(-9, 10):
                for j in range(-9, 10):
                    c = beam + np.array([i * spacing[0], j * spacing[1]])
                    if (c < 1.6 * radius).any() or (c > np.array(shape) - 1 - 1.6 * radius).any():
                        continue
                    a = rng.normal(0, uneven, 5)

                    def filling(v, u, a=a):
                        p = 1 + a[0] * v + a[1] * u + 0.5 * (a[2] * v * v + a[3] * u * u + a[4] * u * v)
                        return np.clip(p, 0.02, None)

                    r = int(2 * radius)
                    y0, x0 = np.round(c).astype(int) - r
                    s = np.s_[max(y0, 0) : y0 + 2 * r + 1, max(x0, 0) : x0 + 2 * r + 1]
                    patch = disk_image(c - [max(y0, 0), max(x0, 0)], radius, edge, image[s].shape, filling)
                    image[s] += patch * counts / patch.sum()
                    pattern.append(b)
                    centres.append(c)
            patterns.append(rng.poisson(image))
        return np.array(patterns, dtype=np.float32), np.array(pattern), np.array(centres)

    return make


@pytest.fixture(scope="session")
def small_bank():
    """Dynamical disks of ten crystals of the training families."""
    from crystaldl.stem.simulate.bank import build_bank

    return build_bank(10, seed=2, beams=50, stored=48, thicknesses=4)
