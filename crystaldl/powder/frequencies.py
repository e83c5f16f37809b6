"""How common the space groups are among minerals and inorganic compounds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..physics.symmetry import extinction_of_group

# Approximate share (per mille) of the commoner space groups among minerals and inorganic compounds; the others share
# what the uniform part gives them. Order of magnitude only: the deployed prior is corrected separately.
GROUP_FREQUENCY = {
    1: 8, 2: 85, 3: 2, 4: 13, 5: 10, 6: 2, 7: 5, 8: 10, 9: 13, 10: 5, 11: 28, 12: 70, 13: 10, 14: 100, 15: 80, 18: 4,
    19: 13, 20: 4, 26: 4, 29: 5, 31: 8, 33: 13, 36: 10, 40: 3, 41: 3, 43: 6, 44: 4, 46: 3, 47: 3, 51: 3, 52: 3, 53: 3,
    55: 8, 56: 3, 57: 5, 58: 8, 59: 6, 60: 8, 61: 13, 62: 60, 63: 25, 64: 7, 65: 4, 67: 3, 69: 3, 70: 5, 71: 6, 72: 4,
    74: 5, 82: 5, 84: 3, 85: 3, 86: 3, 87: 7, 88: 8, 92: 4, 100: 2, 107: 2, 109: 2, 113: 4, 114: 2, 119: 2, 121: 4,
    122: 8, 123: 7, 125: 2, 126: 4, 127: 5, 128: 3, 129: 9, 130: 3, 131: 3, 135: 2, 136: 8, 137: 4, 138: 2, 139: 13,
    140: 7, 141: 13, 142: 4, 143: 4, 144: 2, 146: 6, 147: 6, 148: 22, 149: 2, 150: 5, 152: 5, 154: 5, 155: 6, 156: 4,
    157: 2, 159: 4, 160: 18, 161: 9, 162: 3, 163: 5, 164: 15, 165: 4, 166: 45, 167: 22, 173: 8, 174: 2, 176: 20,
    180: 2, 182: 3, 186: 9, 187: 4, 189: 5, 190: 3, 191: 5, 192: 3, 193: 6, 194: 25, 198: 6, 205: 6, 206: 4, 212: 2,
    214: 2, 215: 3, 216: 13, 217: 6, 218: 3, 220: 4, 221: 12, 223: 3, 224: 2, 225: 28, 227: 28, 229: 6, 230: 9,
}  # fmt: skip
UNIFORM_SHARE = 0.22  # mixed in, so that no group is unknown


def group_shares() -> np.ndarray:
    """Share of each space group, (230,), summing to 1."""
    weights = np.zeros(230)
    for number, weight in GROUP_FREQUENCY.items():
        weights[number - 1] = weight
    return (1 - UNIFORM_SHARE) * weights / weights.sum() + UNIFORM_SHARE / 230


@lru_cache(maxsize=1)
def extinction_shares() -> np.ndarray:
    """Share of each of the 99 extinction groups, (99,)."""
    return np.bincount(extinction_of_group(), weights=group_shares(), minlength=99)
