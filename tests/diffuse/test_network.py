"""DSFU-Net: exactly the published architecture, any plane size, and players that do not disturb each other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crystaldl.diffuse.network import COMPACT_WIDTH, DARK, DSFUGenerator, DSFUNet, PatchDiscriminator, Pix2Pix

ENCODER = [(64, 1), (128, 64), (256, 128), (512, 256), (512, 512), (512, 512)]
DECODER = [(512, 512), (1024, 512), (1024, 256), (512, 128), (256, 64)]         # transposed: (in, out)
CRITIC = [(64, 2), (128, 64), (256, 128), (512, 256), (1, 512)]


def count(module):
    return sum(p.numel() for p in module.parameters())


def planes(*shape, seed=0):
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def test_published_generator():
    with torch.device("meta"):
        net = DSFUGenerator()
    assert count(net) == 29_232_129
    down = [m for m in net.down.modules() if isinstance(m, nn.Conv2d)]
    up = [m for m in net.up.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [tuple(m.weight.shape[:2]) for m in down] == ENCODER and [tuple(m.weight.shape[:2]) for m in up] == DECODER
    assert all(m.kernel_size == (4, 4) and m.stride == (2, 2) and m.padding == (1, 1) and m.bias is None for m in down + up)
    kinds = [[type(m).__name__ for m in layer] for layer in net.down]
    assert ["InstanceNorm2d" in k for k in kinds] == [False, True, True, True, True, False]
    assert ["Dropout" in k for k in kinds] == [False, False, False, True, True, True]
    assert ["Dropout" in [type(m).__name__ for m in layer] for layer in net.up] == [True, True, False, False, False]
    assert {m.p for m in net.modules() if isinstance(m, nn.Dropout)} == {0.5}
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
    last = [m for m in net.last if isinstance(m, nn.Conv2d)]
    assert tuple(last[0].weight.shape) == (1, 128, 4, 4) and isinstance(net.last[-1], nn.Tanh)
    assert net(torch.empty(1, 1, 256, 256, device="meta")).shape == (1, 1, 256, 256)


def test_published_discriminator():
    with torch.device("meta"):
        net = PatchDiscriminator()
    assert count(net) == 2_763_712
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [tuple(m.weight.shape[:2]) for m in layers] == CRITIC
    assert [m.bias is not None for m in layers] == [True, True, True, True, False]
    x = torch.empty(2, 1, 256, 256, device="meta")
    assert net(x, x).shape == (2, 1, 16, 16)


def test_latent_of_the_publication():
    net = DSFUGenerator(4).eval()
    seen = []
    net.down[-1].register_forward_hook(lambda *args: seen.append(tuple(args[-1].shape)))
    net(planes(1, 1, 256, 256))
    assert seen == [(1, 32, 4, 4)]


def test_compact_width():
    pair = DSFUNet(COMPACT_WIDTH)
    assert count(pair.form_factor) == count(pair.sro) == 1_827_585
    assert count(pair) * 2 < 8e6        # bytes in half precision


@pytest.mark.parametrize("size", [(64, 64), (101, 77), (200, 320), (3, 5)])
def test_any_size_is_padded_as_unmeasured(size):
    net = DSFUGenerator(2).eval()
    x = planes(2, 1, *size)
    rows, columns = (-(-n // 64) * 64 for n in size)
    whole = torch.full((2, 1, rows, columns), DARK)
    whole[..., : size[0], : size[1]] = x
    answer = net(x)
    assert answer.shape == x.shape and answer.abs().max() <= 1
    assert torch.equal(answer, net(whole)[..., : size[0], : size[1]])


def test_evaluation_is_deterministic_and_training_is_not():
    torch.manual_seed(0)
    net, x = DSFUGenerator(4), planes(1, 1, 64, 64)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_planes_of_a_batch_do_not_mix():
    net, x = DSFUNet(2).eval(), planes(3, 1, 64, 64)
    for together, alone in zip(net(x), net(x[1:2]), strict=True):
        assert torch.allclose(together[1:2], alone, atol=1e-6)
    first, second = net(x)
    assert not torch.equal(first, second)


def test_every_skip_reaches_the_answer():
    """Silencing a level of the encoder towards the decoder changes the answer: no skip is lost or crossed."""
    net, x = DSFUGenerator(2).eval(), planes(1, 1, 128, 128)
    plain = net(x)
    for level in range(6):
        hook = net.down[level].register_forward_hook(lambda module, inputs, output: output * 0)
        assert not torch.allclose(net(x), plain)
        hook.remove()
    assert torch.equal(net(x), plain)


def test_players_do_not_disturb_each_other():
    """The gradient of the summed losses is, for each player, that of its own loss computed apart."""
    torch.manual_seed(1)
    game, x, clean = Pix2Pix(2), planes(2, 1, 64, 64), planes(2, 1, 64, 64, seed=1)
    truth = {"form_factor": planes(2, 1, 64, 64, seed=2), "sro": planes(2, 1, 64, 64, seed=3)}
    torch.manual_seed(5)
    parts = game(x, clean, truth)
    wanted = {"judged": 1, "real": 1, "fake": 0}
    sum(((part[name] - value) ** 2).mean() for part in parts.values() for name, value in wanted.items()).backward()
    together = {name: p.grad.clone() for name, p in game.named_parameters()}
    assert all(torch.isfinite(g).all() for g in together.values())

    torch.manual_seed(5)
    answers = dict(zip(truth, game.pair(x), strict=True))
    game.zero_grad()
    sum(((game.critics[name](answer, clean) - 1) ** 2).mean() for name, answer in answers.items()).backward()
    generators = {name: p.grad.clone() for name, p in game.named_parameters() if name.startswith("pair.")}
    game.zero_grad()
    for name, critic in game.critics.items():
        loss = ((critic(truth[name], clean) - 1) ** 2).mean() + (critic(answers[name].detach(), clean) ** 2).mean()
        loss.backward()
    critics = {name: p.grad.clone() for name, p in game.named_parameters() if name.startswith("critics.")}
    apart = generators | critics
    assert apart.keys() == together.keys()
    for name in apart:
        assert torch.allclose(together[name], apart[name], rtol=1e-4, atol=1e-7), name
    assert max(float(g.abs().max()) for g in generators.values()) > 0


@pytest.mark.parametrize("width", [0, -1, 2.0, True, "64"])
@pytest.mark.parametrize("network", [DSFUGenerator, PatchDiscriminator, DSFUNet])
def test_bad_width(network, width):
    with pytest.raises(ValueError, match="width is .*, expected a whole number"):
        network(width)


@pytest.mark.parametrize("shape", [(64, 64), (1, 64, 64), (1, 2, 64, 64)])
def test_bad_plane(shape):
    with pytest.raises(ValueError, match="plane has shape .*, expected"):
        DSFUGenerator(1)(torch.zeros(shape))
