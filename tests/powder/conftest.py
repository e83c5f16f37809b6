"""What the powder tests share: lines of random crystals, and conditions under which everything is known."""

from __future__ import annotations

import pytest
import torch

from crystaldl.powder.frequencies import UNIFORM_SHARE, group_shares
from crystaldl.powder.recipe.stream import CrystalSource, build_lines
from crystaldl.powder.simulate import Conditions, LineLibrary


@pytest.fixture(scope="session")
def random_lines() -> LineLibrary:
    """Powder lines of 300 random crystals: common groups, and 30 % of them spread over all 230."""
    common = group_shares() - UNIFORM_SHARE / 230
    return build_lines(CrystalSource([], 0.7 * common / common.sum() + 0.3 / 230), 300, seed=5)


@pytest.fixture(scope="session")
def quiet() -> Conditions:
    """Narrow lines of Cu Kα1 alone on their ideal places, no noise, no background, the whole range."""
    return Conditions(
        cu_share=1.0, single_share=1.0, unstripped_share=0.0, zero=0.0, displacement=0.0, instrument_fwhm=(0.06, 0.06),
        size=(4000.0, 4000.0), strain=(1e-5, 1e-5), asymmetry=0.0, b_iso=(0.0, 0.0), grain_sigma=0.0,
        second_phase_share=0.0, peak_to_noise=(1e6, 1e6), offset_share=0.0, cut_share=0.0,
    )  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def seeded():
    """A function seed → torch.Generator."""
    return generator


@pytest.fixture(scope="session")
def tensors():
    """A function LineLibrary → (q, intensity) tensors."""
    return lambda lines, count=None: (torch.as_tensor(lines.q[:count]), torch.as_tensor(lines.intensity[:count]))
