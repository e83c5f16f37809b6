"""Background as a function of |Q|: splines where there are powder rings, and what they leave in D and its uncertainty."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from crystaldl.diffuse.factorise.rings import Radial, even_knots, ring_functions, ring_share, rough_zones, splines
from crystaldl.diffuse.separate import separate

from .test_peaks import arrays, plane


def ring(volume, place, width):
    """A Gaussian of height 1, place and width in pixels of |Q|."""
    pixels = 0.5 * np.hypot(*volume.shape) * volume.q() / volume.q().max()
    return np.exp(-0.5 * ((pixels - place) / width) ** 2)


def test_splines_vanish_at_both_ends_and_follow_a_cubic_between():
    knots = np.array([0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8])
    place = np.linspace(0.0, 1.0, 2001)
    found = splines(place, knots)
    assert found.shape == (4, 2001) and (found >= 0).all()
    assert found[:, (place <= 0.1) | (place >= 0.8)].max() == pytest.approx(0.0, abs=1e-6)
    assert found[:, np.abs(place - 0.3) < 1e-9].sum() > 0.9
    radial = Radial(even_knots(3), (knots,))
    values = radial.functions(torch.as_tensor(place))
    assert len(radial) == len(values) == 7 and radial.kind("cpu").tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert values[:3].sum(0).numpy() == pytest.approx(1.0)
    assert radial.key != Radial(even_knots(3)).key


def test_rings_are_most_of_a_residual_or_hardly_any_of_it():
    volume, d, _ = plane()
    own = arrays(volume)
    noise = torch.as_tensor(np.random.default_rng(3).normal(size=d.shape))
    one = torch.ones_like(noise)
    assert ring_share(own, noise, one, own.valid) < 0.05
    assert ring_share(own, noise + 4.0 * torch.as_tensor(ring(volume, 33.3, 4.0)), one, own.valid) > 0.3
    assert ring_share(own, noise + 4.0 * torch.as_tensor(np.sign(d - np.median(d))) * noise.sign(), one, own.valid) < 0.05


@pytest.mark.parametrize(("width", "height"), [(0.7, 1.0), (0.7, 0.02), (4.0, 1.0)])
def test_knots_lie_as_close_as_a_ring_asks_for(width, height):
    volume, _, _ = plane()
    own, data = arrays(volume), height * ring(volume, 33.3, width)
    noise = 1e-3 * np.random.default_rng(2).normal(size=data.shape)
    residual, smooth = torch.as_tensor(data + noise), Radial(even_knots(8))
    zones = rough_zones(own, residual, torch.full_like(residual, 1e6), 1.0, smooth)
    assert len(zones) == 1 and zones[0][0] < 33.3 - 3 * width < 33.3 + 3 * width < zones[0][1]
    radial, heights = ring_functions(own, residual, own.valid, zones, 1.0, smooth)
    found = np.einsum("k,k...->...", heights, radial.functions(own.radius)[8:].numpy())
    assert np.abs(found - data).max() < 0.02 * height + 2e-3
    assert len(heights) < 40


def test_a_few_bright_pixels_are_no_ring():
    volume, _, _ = plane()
    own, residual = arrays(volume), torch.zeros(97, 97, dtype=torch.float64)
    residual[10:88:6, 10:88:6] = 50.0
    assert rough_zones(own, residual, torch.full_like(residual, 1e6), 1.0, Radial(even_knots(8))) == []


def test_nothing_of_a_sharp_ring_is_left_in_the_form_factor():
    """Without noise the uncertainty is what the model may be wrong by: a ring as narrow as a pixel must not exceed it."""
    volume, d, s = plane()
    rings = ring(volume, 33.3, 0.8) + 0.6 * ring(volume, 50.0, 2.0)
    parts = separate(volume.replace(data=d * s + 0.1 * (d * s).max() * rings), progress=False)
    off = np.abs(parts.form_factor.data - d)
    assert np.linalg.norm(off) < 1e-3 * np.linalg.norm(d)
    assert (off < 1.96 * parts.form_factor.sigma).mean() > 0.85
    assert (np.abs(parts.sro.data - s) < 1.96 * parts.sro.sigma).mean() > 0.9


def test_uneven_functions():
    radius = torch.tensor([[0.0, 0.5], [0.7, 1.0]]).double()
    at = torch.tensor([[[0.0, 0.5], [-0.7, 0.6]], [[0.0, 0.0], [0.0, 0.8]]]).double()
    radial = Radial(even_knots(3), uneven=2)
    values = radial.functions(radius, at)
    assert len(radial) == len(values) == radial.plain == 11 and radial.kind("cpu").tolist() == [0] * 3 + [2] * 8
    assert torch.allclose(values[3::2] + values[4::2], torch.stack([*at, at[0] ** 2 - at[1] ** 2, 2 * at[0] * at[1]]))
    assert radial.key != Radial(even_knots(3)).key


def test_background_that_is_not_the_same_all_round():
    """Air scatter about another point than the beam, and a slope: D may not take its even part, nor S what is left."""
    volume, d, s = plane()
    h, k = volume.hkl()[..., 0], volume.hkl()[..., 1]
    level = (d * s).mean()
    ground = level * (0.2 * (1 + 0.12 * h - 0.1 * k) + 0.4 * np.exp(-((h - 0.5) ** 2 / 8 + (k + 0.8) ** 2 / 3)))
    scale = 1000.0 / (d * s).max()
    counts = np.random.default_rng(4).poisson((d * s + ground) * scale) / scale
    parts = separate(volume.replace(data=counts), centring="P", progress=False)
    assert np.linalg.norm(parts.form_factor.data - d) < 0.03 * np.linalg.norm(d)
    assert np.corrcoef(parts.sro.data.ravel(), s.ravel())[0, 1] > 0.9995
    assert np.linalg.norm(parts.background.data - ground) < 0.15 * np.linalg.norm(ground)
