"""NPCNN as published, and PowderNet's invariances."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crystaldl.physics.symmetry import SYSTEM_OF_GROUP
from crystaldl.powder.network import NPCNN, PowderNet, level_log_probabilities, levels


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class TestNPCNN:
    def test_layers_and_parameters_are_the_published_ones(self):
        with torch.device("meta"):
            network, small = NPCNN(), NPCNN(7)
        assert count(network) == 31_369_420 and count(small) == 31_112_747  # 31.4 M and 31.1 M
        assert count(network.features) == 488_240  # 0.49 M are convolutional
        kinds = [type(m).__name__ for m in [*network.features, *network.classifier]]
        assert kinds == ["Conv1d", "ReLU", "Dropout"] * 3 + ["Flatten"] + ["Linear", "ReLU", "Dropout"] * 2 + ["Linear"]
        convolutions = [m for m in network.features if isinstance(m, nn.Conv1d)]
        assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
            (1, 80, 100, 5), (80, 80, 50, 5), (80, 80, 25, 2)]  # fmt: skip
        assert not any(isinstance(m, (nn.MaxPool1d, nn.AvgPool1d)) for m in network.modules())
        assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3, 0.3, 0.5, 0.5]
        linear = [(m.in_features, m.out_features) for m in network.classifier if isinstance(m, nn.Linear)]
        assert linear == [(12160, 2300), (2300, 1150), (1150, 230)]

    def test_forward_and_compression(self):
        torch.manual_seed(0)
        network = NPCNN().eval()
        x = torch.rand(40, NPCNN.POINTS)
        with torch.inference_mode():
            full = network(x)
        assert full.shape == (40, 230)
        errors = []
        for rank in (2, 12, 39):
            compact = network.compress(rank, x)
            with torch.inference_mode():
                errors.append(float((compact(x) - full).norm() / (full - full.mean(0)).norm()))
            assert not compact.training
        # 40 patterns span 39 directions about their mean: nothing is lost on them
        assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3
        again = NPCNN(230, rank=12)
        assert count(again) < 1.2e6
        again.load_state_dict(network.compress(12, x).state_dict())


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = PowderNet(dim=32, layers=2, heads=4, channels=(8, 12, 16, 24)).eval()
    for p in net.parameters():  # zero-initialised parts must matter too
        if p.ndim > 1:
            p.data += 0.02 * torch.randn_like(p)
    return net


@pytest.fixture(scope="module")
def inputs():
    g = torch.Generator().manual_seed(1)
    peaks = torch.cat([-3 + 3 * torch.rand(6, 64, 1, generator=g), torch.randn(6, 64, 3, generator=g)], -1)
    mask = torch.arange(64)[None] < torch.tensor([64, 30, 12, 5, 1, 0])[:, None]
    limits = torch.tensor([[-2.9, -0.1]]).repeat(6, 1)
    return {"spectrum": torch.rand(6, 2, 2048, generator=g), "peaks": peaks * mask[..., None], "peak_mask": mask, "limits": limits}


def run(network, inputs):
    with torch.inference_mode():
        return network(**inputs)


def same(a, b, tolerance=1e-4):
    return all(torch.allclose(a[k], b[k], atol=tolerance) for k in ("logits", "ln_volume", "impurity"))


class TestPowderNet:
    def test_outputs(self, network, inputs):
        out = run(network, inputs)
        assert out["logits"].shape == (6, 230) and out["ln_volume"].shape == out["impurity"].shape == (6,)
        assert all(torch.isfinite(v).all() for v in out.values())  # a pattern without lines too
        assert out["logits"].std(0).min() > 0

    def test_the_default_size(self):
        with torch.device("meta"):
            assert 1e6 < count(PowderNet()) < 6e6  # fits 12 MB in fp16

    def test_a_pattern_does_not_see_its_batch(self, network, inputs):
        whole = run(network, inputs)
        for k in range(6):
            alone = run(network, {name: t[k:k + 1] for name, t in inputs.items()})
            assert same(alone, {name: v[k:k + 1] for name, v in whole.items()})

    def test_order_of_lines_does_not_matter(self, network, inputs):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
        shuffled = inputs | {"peaks": inputs["peaks"][:, order], "peak_mask": inputs["peak_mask"][:, order]}
        assert same(run(network, inputs), run(network, shuffled))

    def test_padding_does_not_matter(self, network, inputs):
        rubbish = torch.where(inputs["peak_mask"][..., None], inputs["peaks"], torch.full_like(inputs["peaks"], -1.7))
        assert same(run(network, inputs), run(network, inputs | {"peaks": rubbish}))

    def test_lines_and_spectrum_and_range_matter(self, network, inputs):
        out = run(network, inputs)
        moved = inputs["peaks"].clone()
        moved[0, 3, 0] += 0.02
        assert not same(out, run(network, inputs | {"peaks": moved}), 1e-6)
        assert not same(out, run(network, inputs | {"spectrum": inputs["spectrum"].roll(20, -1)}), 1e-6)
        assert not same(out, run(network, inputs | {"limits": inputs["limits"] - 0.5}), 1e-6)

    def test_levels_agree_by_construction(self, network, inputs):
        log_p = run(network, inputs)["logits"].log_softmax(1)
        level = levels()
        for name, size in (("system", 7), ("bravais", 14), ("extinction", 99)):
            index = getattr(level, name)
            assert index.shape == (230,) and sorted(set(index.tolist())) == list(range(size))
            p = level_log_probabilities(log_p, index, size).exp()
            assert p.sum(1) == pytest.approx(1.0, abs=1e-5)
            for k in range(size):
                assert p[:, k] == pytest.approx(log_p.exp()[:, index == k].sum(1), abs=1e-6)
        assert level.system.tolist() == SYSTEM_OF_GROUP.tolist()

    def test_dropout_only_in_training(self, network, inputs):
        assert same(run(network, inputs), run(network, inputs), 0.0)
        network.train()
        try:
            assert not same(run(network, inputs), run(network, inputs), 1e-6)
        finally:
            network.eval()
