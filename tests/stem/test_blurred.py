"""Disks that were blurred after scattering: what the probe tells of the blur, and positions of unevenly filled disks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_disks import disk_image
from scipy import ndimage

from crystaldl.stem.peaks.blurred import Blurred, fitted_blur
from crystaldl.stem.peaks.filling import Filling
from crystaldl.stem.peaks.refine import DiskFitter, FitSettings
from crystaldl.stem.probe import Probe

RADIUS, SHAPE, FINE = 6.0, (48, 48), 4


def blurred_disk(centre, blur, filling=None):
    """A sharp disk on finer pixels, blurred by ``blur`` px and summed to pixels."""
    inner = (np.asarray(centre) + 0.5) * FINE - 0.5
    image = disk_image(inner, FINE * RADIUS, 0.4, tuple(FINE * n for n in SHAPE), filling)
    image = ndimage.gaussian_filter(image, FINE * blur)
    return image.reshape(SHAPE[0], FINE, SHAPE[1], FINE).mean((1, 3))


def probe_of(blur):
    rng = np.random.default_rng(4)
    image = blurred_disk((24.2, 23.7), blur)
    return Probe.from_array(rng.poisson(3e6 * image / image.sum()))


@pytest.mark.parametrize("blur", [1.0, 2.0])
def test_the_probe_tells_its_blur(blur):
    radius, found = fitted_blur(probe_of(blur))
    assert radius == pytest.approx(RADIUS, abs=0.12)
    assert found == pytest.approx(blur, abs=0.25)


def test_sharp_and_strange_probes_have_none():
    def kind(probe):
        fitter = DiskFitter(probe, FitSettings(), "cpu")
        return type(fitter._filling)

    assert kind(probe_of(0.0)) is Filling and kind(probe_of(1.5)) is Blurred
    y, x = np.indices(SHAPE)
    ring = np.exp(-0.5 * ((np.hypot(y - 24, x - 24) - 5) / 1.5) ** 2) + 0.3 * (np.hypot(y - 24, x - 24) < 5)
    assert kind(Probe.from_array(ndimage.gaussian_filter(ring, 1.0))) is Filling


def fitted(blur, fringes, slope=0.8, count=40):
    """Errors (count, 2), px, of disks that are brighter towards higher x, and their sigma."""
    rng = np.random.default_rng(7)
    centres = 24 + rng.uniform(-1, 1, (count, 2))
    clean = [blurred_disk(c, blur, lambda v, u: 1 + slope * u) for c in centres]
    patterns = torch.as_tensor(rng.poisson(400 * np.array(clean) + 2), dtype=torch.float32)
    fit = DiskFitter(probe_of(blur), FitSettings(fringes=fringes), "cpu").fit(
        patterns, torch.arange(count), torch.as_tensor(np.round(centres), dtype=torch.float32)
    )
    assert fit.ok.all()
    return fit.positions.numpy() - centres, fit.sigma.numpy()


@pytest.mark.parametrize("blur", [1.0, 2.0])
def test_uneven_disks_stay_where_they_are(blur):
    """A probe that multiplies the filling is pulled to the dark side."""
    multiplied, _ = fitted(blur, False)
    error, sigma = fitted(blur, True)
    assert multiplied[:, 1].mean() < -0.05 * blur**2
    assert abs(error[:, 1].mean()) < 0.3 * abs(multiplied[:, 1].mean())
    assert np.abs(error / sigma).mean() < 1.5


def test_functions_are_those_of_the_fit_without_blur():
    """Even disks: blurred functions times their coefficients draw the probe itself."""
    probe = probe_of(1.5)
    fitter = DiskFitter(probe, FitSettings(), "cpu")
    f = fitter._filling
    c = torch.zeros(1, 6)
    c[0, 0] = 1.0
    s = torch.tensor([[0.3, -0.6]])
    drawn, dy, dx = f.filled(f.shifted(s, 6), c)
    expected, ey, ex = (a * f.terms[0, 0] for a in fitter._shape.shifted(s))
    assert drawn[0].numpy() == pytest.approx(expected[0].numpy(), abs=0.01)
    assert dy[0].numpy() == pytest.approx(ey[0].numpy(), abs=0.02) and dx[0].numpy() == pytest.approx(ex[0].numpy(), abs=0.02)
