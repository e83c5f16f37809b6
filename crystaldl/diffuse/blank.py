"""Areas of one value that no diffuse scattering has: beam stops, gaps and corners that were stored as zeros."""
from __future__ import annotations

import numpy as np
from scipy import ndimage

FEWEST = 25                     # pixels of an area
RIM = 2                         # pixels around it that are looked at
BRIGHT = 0.1                    # of the mean intensity: what the rim must lie above the area
STEPS = 5.0                     # times the smallest step of the data (one count) that the rim must lie above the area


def blank_pixels(volume) -> np.ndarray:
    """Measured pixels in connected areas of exactly 0, or of exactly the smallest value, with a bright rim, bool.

    Where intensity fades, or is a few counts, zeros have dark neighbours; an area with a bright rim was never measured.
    """
    data, mask = np.where(volume.mask, volume.data, 0.0), np.array(volume.mask)
    out = np.zeros_like(mask)
    for value in {0.0, float(data[mask].min())}:
        same = mask & (data == value)
        if same.sum() < FEWEST:
            continue
        label, count = ndimage.label(same)
        large = np.flatnonzero(np.bincount(label.ravel(), minlength=count + 1)[1:] >= FEWEST) + 1
        others = np.abs(data[mask & ~same] - value)
        if not len(large) or not len(others):
            continue
        least = max(BRIGHT * float(others.mean()), STEPS * float(others.min()))
        places = ndimage.find_objects(label)
        for k in large:
            # the area with room for its rim
            window = tuple(slice(max(s.start - RIM, 0), s.stop + RIM) for s in places[k - 1])
            area = label[window] == k
            rim = ndimage.binary_dilation(area, iterations=RIM) & mask[window] & ~same[window]
            if rim.any() and float(np.median(data[window][rim] - value)) > least:
                out[window] |= area
    return out
