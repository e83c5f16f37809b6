"""Template matching: kernel, maxima, sub-pixel positions, gaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from crystaldl.stem.correlate import Correlator, box_mean, fill_unmeasured, local_maxima, probe_kernel, thin
from crystaldl.stem.options import DiskOptions
from crystaldl.stem.probe import Probe

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def probe():
    return Probe.synthetic(6.0, (128, 128), edge=0.6)


def test_kernel_is_blind_to_the_smooth(probe):
    kernel = probe_kernel(probe, (128, 128))
    assert kernel.sum() == pytest.approx(0, abs=1e-12)
    y, x = (np.fft.fftfreq(n, 1 / n) for n in kernel.shape)
    r = np.hypot(y[:, None], x)
    assert (kernel[r < 3] > 0).all() and (kernel[(r > 8) & (r < 11)] < 0).all() and np.abs(kernel[r > 13]).max() < 1e-12
    assert [(kernel * a).sum() for a in (y[:, None], x[None])] == pytest.approx([0, 0], abs=1e-3)


def test_kernel_against_py4dstem(probe):
    py4dstem = pytest.importorskip("py4DSTEM")
    theirs = py4dstem.Probe(np.array(probe.image)).get_probe_kernel_edge_sigmoid(
        np.array(probe.image), radii=(0.0, 2 * probe.radius), origin=probe.centre
    )
    ours = probe_kernel(probe, probe.shape)
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(("subpixel", "limit"), [("none", 0.45), ("quadratic", 0.12), ("upsampled", 0.1)])
@pytest.mark.parametrize("shape", [(128, 128), (117, 146)])
def test_positions(draw, subpixel, limit, shape):
    probe = Probe.synthetic(6.0, shape, edge=0.6)
    patterns, pattern, centres = draw(2, shape, counts=1e5, seed=1)
    found = Correlator(probe, shape, DiskOptions(subpixel=subpixel))(torch.as_tensor(patterns))
    for b in range(2):
        mine, true = found.positions[found.pattern == b].numpy(), centres[pattern == b]
        distance, _ = cKDTree(mine).query(true)
        assert np.sqrt((distance**2).mean()) < limit * 2**0.5


def test_upsampled_is_the_fourier_interpolation(probe, draw):
    patterns, _, _ = draw(1, counts=3e3, seed=2)
    correlator = Correlator(probe, (128, 128), DiskOptions(subpixel="upsampled", upsample=8))
    spectrum = correlator.spectrum(torch.as_tensor(patterns))
    found = correlator(torch.as_tensor(patterns))
    full = np.fft.fft2(np.fft.irfft2(spectrum[0].numpy(), s=(128, 128)))
    f = np.fft.fftfreq(128)
    for (y, x), strength in zip(found.positions[:5].numpy(), found.strength[:5].tolist(), strict=True):
        wave = np.exp(2j * np.pi * (f[:, None] * y + f * x))
        assert (full * wave).sum().real / 128**2 == pytest.approx(strength, rel=1e-3)


def test_hybrid_power(probe, draw):
    patterns = torch.as_tensor(draw(1, counts=3e3, seed=3)[0])
    one, none = (Correlator(probe, (128, 128), DiskOptions(correlation_power=p)).spectrum(patterns) for p in (1.0, 0.0))
    big = one.abs() > 1e-3 * one.abs().max()
    assert torch.allclose(none.abs()[big], torch.ones(int(big.sum())), atol=1e-4)
    assert torch.allclose(none[big] * one.abs()[big], one[big], rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def test_spacing_number_boundary_and_threshold():
    image = torch.zeros(1, 40, 40)
    peaks = {(5, 5): 1.0, (5, 9): 0.9, (20, 20): 0.8, (1, 30): 2.0, (30, 30): 0.003}
    for (y, x), v in peaks.items():
        image[0, y, x] = v
    found = local_maxima(image, 5.0, 10, 3.0, 0.005)
    assert [tuple(p) for p in found.positions.long().tolist()] == [(5, 5), (20, 20)]
    assert len(local_maxima(image, 3.0, 10, 3.0, 0.005).pattern) == 3
    assert len(local_maxima(image, 3.0, 2, 0.0, 0.0).pattern) == 2
    assert len(local_maxima(torch.zeros(3, 9, 9), 1.0, 5, 0.0, 0.0).pattern) == 0


def test_thin_is_greedy():
    # the middle one goes because the first stays; the last stays because the middle one went
    place = torch.tensor([[[0.0, 0], [0, 3], [0, 6], [50, 50]]])
    keep = thin(place, torch.tensor([[True, True, True, False]]), 4.0)
    assert keep.tolist() == [[True, False, True, False]]


def test_box_mean_against_scipy():
    image = torch.randn(2, 37, 52, generator=torch.Generator().manual_seed(0))
    ours = box_mean(image, 4).numpy()
    ones = ndimage.uniform_filter(np.ones((37, 52)), 9, mode="constant")
    for b in range(2):
        theirs = ndimage.uniform_filter(image[b].numpy().astype(float), 9, mode="constant") / ones
        assert ours[b] == pytest.approx(theirs, abs=1e-5)


def test_gaps_are_filled_from_around():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    whole = (50 + y + 2 * x).expand(2, 64, 64).clone()
    holed = whole.clone()
    holed[0, 20:24] = torch.nan
    holed[0, :, 40] = torch.nan
    filled = fill_unmeasured(holed)
    assert torch.isfinite(filled).all() and torch.equal(filled[1], whole[1])
    assert (filled[0, 4:60, 4:60] - whole[0, 4:60, 4:60]).abs().max() < 3
    known = torch.isfinite(holed)
    assert torch.equal(filled[known], holed[known])
    assert not fill_unmeasured(torch.full((1, 16, 16), torch.nan)).any()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"min_spacing": -1}, "min_spacing"),
        ({"max_disks": 0}, "max_disks"),
        ({"min_relative_intensity": 2}, "min_relative_intensity"),
        ({"correlation_power": 1.5}, "correlation_power"),
        ({"subpixel": "poly"}, "subpixel"),
        ({"degree": 3}, "degree"),
        ({"trench": (2, 1)}, "trench"),
        ({"min_confidence": -0.1}, "min_confidence"),
        ({"edge_boundary": float("inf")}, "edge_boundary"),
    ],
)
def test_bad_options(bad, message):
    with pytest.raises(ValueError, match=f"{message}.*expected"):
        DiskOptions(**bad)


@pytest.mark.parametrize("name", ["refine", "fringes"])
def test_switches_are_true_or_false(name):
    with pytest.raises(TypeError, match=f"{name}.*expected True or False"):
        DiskOptions(**{name: 1})
