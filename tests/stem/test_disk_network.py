"""Networks and what they read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from crystaldl.errors import DataError
from crystaldl.stem.correlate import Candidates
from crystaldl.stem.detect import DiskNetDetector, FCUNetDetector, select
from crystaldl.stem.network import ComplexBatchNorm2d, ComplexConv2d, DiskNet, FCUNet, fused
from crystaldl.stem.options import DiskOptions
from crystaldl.stem.prepare import CHANNELS, RADIUS, RADIUS_RANGE, Frame, Preparer, resampling
from crystaldl.stem.probe import Probe

torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------ DiskNet


def test_size_of_disknet():
    network = DiskNet().eval()
    assert sum(p.numel() for p in network.parameters()) < 1_000_000
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        network(torch.zeros(1, CHANNELS, 256, 256))
    assert flops.get_total_flops() < 0.7e9


@pytest.mark.parametrize("shape", [(64, 64), (97, 130), (16, 33)])
def test_disknet_maps(shape):
    out = DiskNet().eval()(torch.randn(2, CHANNELS, *shape))
    cells = tuple((n + 1) // 2 for n in shape)
    assert out["heat"].shape == out["log_sigma"].shape == out["log_v"].shape == (2, *cells)
    assert out["offset"].shape == (2, 2, *cells)
    assert torch.sigmoid(out["heat"]).mean() < 0.1  # starts from: disks are rare


def test_folded_batch_norms_change_nothing():
    torch.manual_seed(0)
    network = DiskNet()
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(4, CHANNELS, 64, 64))
    x = torch.randn(2, CHANNELS, 64, 64)
    with torch.no_grad():
        a, b = network.eval()(x), fused(network)(x)
    assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused(network).modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())


def test_disknet_is_translation_equivariant():
    torch.manual_seed(0)
    network = DiskNet().eval()
    x = torch.randn(1, CHANNELS, 256, 256, generator=torch.Generator().manual_seed(1))
    a, b = (network(t)["heat"] for t in (x, torch.roll(x, (16, 32), (2, 3))))
    assert torch.allclose(a[:, 50:70, 50:70], b[:, 58:78, 66:86], atol=1e-3)


# ------------------------------------------------------------------------------------------ FCU-Net


def test_complex_convolution_is_complex():
    torch.manual_seed(0)
    layer = ComplexConv2d(3, 4)
    x = torch.randn(2, 3, 9, 9, dtype=torch.complex64)
    out = layer(torch.cat([x.real, x.imag], 1))
    weight = torch.complex(layer.real, layer.imaginary)
    expected = torch.nn.functional.conv2d(x, weight, padding=1)
    assert torch.allclose(torch.complex(*out.chunk(2, 1)), expected, atol=1e-5)


def test_initial_weights_follow_trabelsi():
    torch.manual_seed(0)
    layer = ComplexConv2d(64, 64)
    modulus = torch.hypot(layer.real, layer.imaginary).detach()
    s = 1 / np.sqrt(64 * 9)  # Rayleigh parameter by He
    assert modulus.mean() == pytest.approx(s * np.sqrt(np.pi / 2), rel=0.01)
    assert (modulus**2).mean() == pytest.approx(2 * s * s, rel=0.02)
    assert torch.atan2(layer.imaginary, layer.real).detach().std() == pytest.approx(np.pi / np.sqrt(3), rel=0.02)


def test_complex_batch_norm_whitens():
    torch.manual_seed(0)
    norm = ComplexBatchNorm2d(2)
    z = torch.randn(16, 2, 20, 20)
    x = torch.cat([2 * z + 3, 0.7 * z + 0.5 * torch.randn_like(z) - 1], 1)  # parts that correlate
    out = norm(x).reshape(16, 2, 2, -1).permute(1, 2, 0, 3).reshape(2, 2, -1)
    for c in range(2):
        covariance = torch.cov(out[:, c])
        assert torch.allclose(covariance, 0.5 * torch.eye(2), atol=0.01) and out[:, c].mean(1).abs().max() < 1e-4
    for _ in range(60):
        norm(x)
    assert torch.allclose(norm.eval()(x), norm.train()(x), atol=0.05)


def test_the_first_layer_is_the_cross_spectrum():
    g = torch.Generator().manual_seed(0)
    pattern, probe = torch.rand(2, 32, 32, generator=g), torch.rand(2, 32, 32, generator=g)
    x = FCUNet.cross_spectrum(pattern, probe)
    a, b = (np.fft.fft2(np.fft.ifftshift(t[1].numpy())) for t in (pattern, probe))
    expected = a * b.conj() / np.linalg.norm(a * b.conj())
    assert x.shape == (2, 2, 32, 32) and (x[1, 0] + 1j * x[1, 1]).numpy() == pytest.approx(expected, abs=1e-5)
    assert x.square().sum((1, 2, 3)) == pytest.approx(1, rel=1e-4)
    assert torch.allclose(FCUNet.cross_spectrum(7 * pattern, 3 * probe), x, atol=1e-6)  # exposure does not matter


def test_published_size_of_fcunet():
    """9.9 to 27.6 million parameters for F from 4 to 32, seven levels."""
    assert sum(p.numel() for p in FCUNet(4).parameters()) == pytest.approx(9.9e6, rel=0.02)
    network = FCUNet(32)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(27.6e6, rel=0.03)
    assert network.levels == 7 and [b.convolutions[0].real.shape[0] for b in network.encoder] == [64, 128, 256, 256, 256, 256, 256]


def test_monte_carlo_dropout():
    torch.manual_seed(0)
    network = FCUNet(2, 1, 3).eval()
    pattern, probe = torch.rand(2, 32, 32), torch.rand(2, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(pattern, probe), network(pattern, probe))
        a, b = (network(pattern, probe, sample=True) for _ in range(2))
    assert a.shape == (2, 32, 32) and not torch.equal(a, b)


def test_fcunet_refuses_other_sizes():
    with pytest.raises(ValueError, match="multiples of 8"):
        FCUNet(2, 1, 3)(torch.zeros(1, 20, 32), torch.zeros(1, 20, 32))


# ------------------------------------------------------------------------------------------ inputs


@pytest.mark.parametrize(("old", "new"), [(100, 63), (64, 107), (50, 50)])
def test_resampling(old, new):
    m = resampling(old, new)
    assert m.shape == (new, old) and m.sum(1) == pytest.approx(1)
    x = np.arange(old) + 0.5
    inner = slice(2, -2)
    assert (m @ x)[inner] == pytest.approx(((np.arange(new) + 0.5) * old / new)[inner], abs=0.1)


@pytest.mark.parametrize("radius", [3.0, 5.0, 8.3, 13.0])
def test_disks_come_to_one_radius(draw, radius):
    shape = (256, 220)
    probe = Probe.synthetic(radius, shape, edge=0.5)
    prepare = Preparer(probe, shape)
    low, high = RADIUS_RANGE
    assert low <= prepare.frame.radius <= high
    patterns, pattern, centres = draw(1, shape, radius=radius, counts=1e4, seed=1)
    x = prepare(torch.as_tensor(patterns))
    assert x.shape == (1, CHANNELS, *prepare.size) and torch.isfinite(x).all() and x.abs().max() < 10
    assert float(x[0, 4].mean()) == pytest.approx(2 * (prepare.frame.radius / RADIUS - 1), abs=1e-5)
    # the disks' correlation peaks where the frame says
    at = prepare.frame.from_pattern(torch.as_tensor(centres)).round().long()
    assert x[0, 2][at[:, 0], at[:, 1]].mean() > 3 * x[0, 2].abs().mean()


def test_frame_is_its_own_inverse():
    frame = Frame((0.7, 1.3), 5.0)
    p = torch.tensor([[3.2, 100.1], [0.0, 7.5]])
    assert torch.allclose(frame.to_pattern(frame.from_pattern(p)), p, atol=1e-4)


def test_input_does_not_depend_on_exposure(draw):
    probe = Probe.synthetic(5.0, (128, 128), edge=0.5)
    patterns = torch.as_tensor(draw(1, radius=5.0, seed=2)[0])
    prepare = Preparer(probe, (128, 128))
    assert torch.allclose(prepare(patterns), prepare(1e-4 * patterns), atol=1e-3)
    assert torch.isfinite(prepare(torch.zeros(1, 128, 128))).all()
    assert torch.isfinite(prepare(torch.full((1, 128, 128), torch.nan))).all()


# ------------------------------------------------------------------------------------------ proposals


class Perfect(DiskNet):
    """Says what it is told."""

    def __init__(self, cells, offset):
        super().__init__()
        self.cells, self.offset_ = cells, offset

    def forward(self, x):
        h, w = ((n + 1) // 2 for n in x.shape[2:])
        heat, offset = torch.full((1, h, w), -9.0), torch.zeros(1, 2, h, w)
        for i, j in self.cells:
            heat[0, i, j] = 2.0 + 0.01 * i
            offset[0, :, i, j] = torch.tensor(self.offset_)
        return {"heat": heat, "offset": offset, "log_sigma": torch.zeros(1, h, w), "log_v": torch.zeros(1, h, w)}


@pytest.mark.parametrize("radius", [5.0, 10.0])
def test_cells_become_positions(radius):
    probe = Probe.synthetic(radius, (200, 200), edge=0.5)
    network = Perfect([(20, 30), (20, 31), (40, 10)], [0.6, -0.8])
    detector = DiskNetDetector(network, probe, (200, 200), DiskOptions(edge_boundary=0), "cpu")
    found = detector(torch.ones(1, 200, 200))
    factor = detector.prepare.frame.factor[0]
    expected = [[(2 * i + 0.6 + 0.5) / factor - 0.5, (2 * j - 0.8 + 0.5) / factor - 0.5] for i, j in ((40, 10), (20, 30))]
    # the doubled one is named once
    got = sorted(found.positions.tolist(), reverse=True)
    assert len(got) == 2 and got[0] == pytest.approx(expected[0], abs=1e-3)
    assert got[1][0] == pytest.approx(expected[1][0], abs=1e-3)


def test_select_keeps_the_more_confident():
    c = Candidates(
        torch.tensor([0, 0, 1, 0]), torch.tensor([[20.0, 20], [22, 20], [22, 20], [1, 1]]), torch.ones(4),
        torch.tensor([0.5, 0.9, 0.6, 0.99]), torch.ones(4, 2),
    )  # fmt: skip
    kept = select(c, 2, 6.0, DiskOptions(), 4.0, (64, 64))
    assert kept.pattern.tolist() == [0, 1] and kept.confidence.tolist() == pytest.approx([0.9, 0.6])


@pytest.mark.parametrize("shape", [(128, 128), (100, 140), (300, 280)])
def test_fcunet_positions_through_scaling(shape):
    probe = Probe.synthetic(6.0, shape, edge=0.5)

    class Echo(FCUNet):
        def forward(self, pattern, probe, sample=None):
            return pattern

    detector = FCUNetDetector(Echo(2, 1, 3), probe, shape, DiskOptions(), "cpu")
    pattern = torch.zeros(1, *shape)
    pattern[0, 58:62, 70:74] = 1.0
    found = detector(pattern)
    assert found.positions[0].tolist() == pytest.approx([59.5, 71.5], abs=1.2)


def test_fcunet_refuses_huge_patterns():
    with pytest.raises(DataError, match="at most 1024"):
        FCUNetDetector(FCUNet(2, 1, 3), Probe.synthetic(6.0, (1100, 64)), (1100, 64), DiskOptions(), "cpu")
