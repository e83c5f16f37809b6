"""The unrolled network: its fold is exact, planes of any size, and what the shipped weights can do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crystaldl.diffuse import unrolled
from crystaldl.diffuse.corruption import CLEAN
from crystaldl.diffuse.dsfunet import load_dsfunet
from crystaldl.diffuse.geometry import plane_lattice
from crystaldl.diffuse.network import Fold, UnrolledNet
from crystaldl.diffuse.recipe import training as recipe
from crystaldl.diffuse.recipe.stream import DiffuseStream
from crystaldl.diffuse.recipe.training_unrolled import UnrolledTask, geometry, separate_unrolled
from crystaldl.diffuse.separate import separate
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import DataError, UnknownModelError
from crystaldl.models.registry import available

CPU = torch.device("cpu")
CELL = (5.0, 5.0, 7.0, 90.0, 90.0, 90.0)
MODEL = "diffuse-unrolled-v2"
shipped = pytest.mark.skipif(MODEL not in available("diffuse"), reason="no weights")


def zones(h, k):
    return torch.stack(torch.meshgrid(h, k, indexing="ij"), -1)[None].double()


def plane(shape=(120, 90), scale=1.0, mask=None):
    h, k = np.linspace(-3, 3, shape[0]), np.linspace(-2, 2, shape[1])
    order = 1 + 0.5 * np.cos(2 * np.pi * h)[:, None] * np.cos(2 * np.pi * k)
    factor = np.exp(-0.1 * (h[:, None] ** 2 + k**2))
    return DiffuseVolume(scale * factor * order, h, k, 0.0, CELL, mask=mask), order


def test_fold_is_the_adjoint_of_its_plane():
    zone = zones(torch.linspace(-2.3, 1.9, 37), torch.linspace(-1.2, 3.1, 41))
    fold = Fold(zone, torch.tensor([False]), 16)
    generator = torch.Generator().manual_seed(0)
    image, cell = (torch.rand(1, *s, generator=generator) for s in ((37, 41), (16, 16)))
    assert float((fold.sums(image) * cell).sum()) == pytest.approx(float((image * fold.plane(cell)).sum()), rel=1e-5)
    assert float(fold.sums(torch.ones_like(image)).sum()) == pytest.approx(37 * 41, rel=1e-5)


def test_fold_is_periodic_and_even():
    h = torch.linspace(-1.1, 1.4, 33)
    cell = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(1))
    near, far = (Fold(zones(h + n, h), torch.tensor([True]), 16) for n in (0, 3))
    assert torch.allclose(near.plane(cell), far.plane(cell), atol=1e-4)
    mirrored = Fold(zones(-h, -h), torch.tensor([True]), 16)
    image = torch.rand(1, 33, 33, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(near.sums(image), mirrored.sums(image), atol=1e-3)


def test_untrained_rounds_find_the_order_of_a_constant_form_factor():
    """With its denoisers silent, the network is a least-squares fold: exact where D is constant."""
    h = torch.linspace(-3, 3, 97)[:96]
    zone = zones(h, h)
    order = 1 + 0.3 * torch.cos(2 * torch.pi * zone[..., 0]) + 0.2 * torch.cos(2 * torch.pi * zone[..., 1])
    order = order.float()
    place = unrolled.Geometry(zone, 16.0 * torch.eye(2)[None].double(), zone.norm(dim=-1), torch.tensor([True]))
    torch.manual_seed(0)
    answer = unrolled.unrolled_planes(UnrolledNet(4, 1), 7.0 * order, torch.ones_like(order, dtype=torch.bool), place)
    assert float(torch.corrcoef(torch.stack([answer["sro"].flatten(), order.flatten()]))[0, 1]) > 0.99
    assert float(answer["cell"].mean()) == pytest.approx(1.0, abs=1e-5)


def test_hidden_pixels_do_not_matter_and_planes_do_not_mix():
    torch.manual_seed(0)
    net = UnrolledNet(4, 2)
    for p in net.parameters():
        torch.nn.init.normal_(p, 0.0, 0.05)
    planes = DiffuseStream(0, 64, CLEAN, **recipe.SMOKE_BANKS).batch(0, 3)
    mask = torch.ones_like(planes.mask)
    mask[:, 10:20, 30:40] = False
    with torch.no_grad():
        first = unrolled.unrolled_planes(net, planes.intensity, mask, geometry(planes))
        spoilt = planes.intensity.masked_fill(~mask, torch.nan)
        second = unrolled.unrolled_planes(net, spoilt, mask, geometry(planes))
        assert all(torch.equal(first[k], second[k]) for k in first)
        scaled = unrolled.unrolled_planes(net, 1e5 * planes.intensity, mask, geometry(planes))
    assert torch.allclose(scaled["sro"], first["sro"], atol=1e-4)
    assert torch.allclose(scaled["form_factor"], 1e5 * first["form_factor"], rtol=1e-2)


@pytest.mark.parametrize("arguments", [{"width": 0}, {"stages": 0}, {"stages": 2.0}, {"stages": True}])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match="expected a whole number"):
        UnrolledNet(**arguments)


def test_bad_plane():
    fold = Fold(torch.zeros(1, 30, 32, 2), torch.tensor([True]))
    image = torch.zeros(1, 30, 32)
    with pytest.raises(ValueError, match=r"intensity has shape \(1, 30, 32\), expected \(batch, rows, columns\), multiples of 16"):
        UnrolledNet(4, 1)(image, image > 0, torch.zeros(1, 2, 30, 32), fold)


def test_training_step():
    task = recipe.task_for(replace(recipe.settings_for("unrolled", "smoke"), batch_size=2))
    assert isinstance(task, UnrolledTask) and task.name == "diffuse-unrolled"
    batch, again = task.batch(3, 0, 1, CPU), task.batch(3, 0, 1, CPU)
    assert torch.equal(batch["plane"], again["plane"])
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model)
    losses = []
    for _ in range(12):
        loss, _ = task.loss(model, batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses[-1] < losses[0]


@shipped
@pytest.mark.parametrize("shape", [(256, 256), (120, 90), (61, 200), (400, 380)])
def test_any_size_unit_and_gaps(shape):
    mask = np.ones(shape, dtype=bool)
    mask[shape[0] // 3: shape[0] // 2, : shape[1] // 4] = False
    volume, order = plane(shape, 1e9, mask)
    parts = separate(volume, method="unrolled", device="cpu", progress=False)
    again = separate(volume, method="unrolled", device="cpu", progress=False)
    assert parts.method == "unrolled" and parts.model == MODEL and len(parts.model_sha256) == 64
    assert parts.sro.shape == parts.form_factor.shape == parts.background.shape == shape
    assert np.array_equal(parts.sro.data, again.sro.data) and np.isfinite(parts.form_factor.data).all()
    assert parts.sro.sigma is None and parts.form_factor.sigma is None and parts.alpha is None
    assert np.corrcoef(parts.sro.data.ravel(), order.ravel())[0, 1] > 0.95


@shipped
def test_refusals():
    cube = DiffuseVolume(np.ones((8, 8, 8)), *[np.linspace(-2, 2, 8)] * 3, CELL)
    with pytest.raises(DataError, match="method 'unrolled' works on planes, but the volume has three dimensions"):
        separate(cube, method="unrolled", progress=False)
    volume, _ = plane()
    with pytest.raises(DataError, match="largest intensity of the plane is .*, expected some above 0"):
        unrolled.run_unrolled(volume.replace(data=-np.array(volume.data)), plane_lattice(volume))
    with pytest.raises(UnknownModelError, match="is a DSFUNet for the task 'diffuse', expected a UnrolledNet"):
        separate(volume, method="unrolled", model="diffuse-dsfunet-w16-v1", progress=False)


@shipped
def test_the_shipped_model_beats_dsfunet_on_unseen_molecules():
    net, entry = unrolled.load_unrolled(MODEL, "cpu")
    assert entry.bytes < 3e6 and not entry.default
    pair, _ = load_dsfunet("diffuse-dsfunet-w16-v1", "cpu")
    batches = recipe.held_out_planes(DiffuseStream(101, 256, evaluation=True, **recipe.SMOKE_BANKS), 6, 3)
    own, other = recipe.accuracy(net, batches, "cpu", separate_unrolled), recipe.accuracy(pair, batches)
    assert own["sro_correlation_mean"] > other["sro_correlation_mean"]
