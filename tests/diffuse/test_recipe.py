"""DSFU-Net's recipe, release and use: scales, losses, a smoke training whose resume is exact, planes of any size."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from crystaldl.diffuse import dsfunet
from crystaldl.diffuse.corruption import CLEAN, Corruption
from crystaldl.diffuse.geometry import plane_lattice
from crystaldl.diffuse.network import DSFUNet
from crystaldl.diffuse.recipe import release
from crystaldl.diffuse.recipe import training as recipe
from crystaldl.diffuse.recipe.stream import DiffuseStream, is_held_out
from crystaldl.diffuse.recipe.training import DiffuseTask, settings_for
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import DataError, ModelIntegrityError, UnknownModelError
from crystaldl.models.registry import write_model

CPU = torch.device("cpu")
SMOKE = settings_for(size="smoke")
CELL = (5.0, 5.0, 7.0, 90.0, 90.0, 90.0)


def stream(corruption, **more):
    return DiffuseStream(0, 64, corruption, **recipe.SMOKE_BANKS, **more)


class Oracle(nn.Module):
    """Knows the truth, on the networks' scale."""

    def __init__(self, factor, sro):
        super().__init__()
        self.answers = tuple(dsfunet.spread(x, x.amax((1, 2)))[:, None] for x in (factor, sro))

    def forward(self, plane):
        return self.answers


class Echo(nn.Module):
    """Takes all it is shown for form factor, and S for constant."""

    def forward(self, plane):
        return plane, torch.full_like(plane, 0.3)


# ---------------------------------------------------------------------- scales


def test_spread_and_back():
    x = torch.rand(3, 8, 8) * torch.tensor([1.0, 50.0, 1e-3])[:, None, None]
    top = x.amax((1, 2))
    y = dsfunet.spread(x, top)
    assert y.min() >= -1 and torch.allclose(y.amax((1, 2)), torch.ones(3))
    assert torch.allclose(dsfunet.unspread(y) * top[:, None, None], x, rtol=1e-5, atol=1e-7)
    assert torch.equal(dsfunet.spread(-x, top), -torch.ones_like(x))


def test_brightest_is_the_maximum_unless_a_few_spikes_exceed_all():
    x = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(x, dtype=torch.bool)
    assert float(dsfunet.brightest(x, mask)) == float(x.max())
    spiky = x.clone()
    spiky[0, 3, 5] = 1e3
    assert 3.5 < float(dsfunet.brightest(spiky, mask)) <= 4.0
    hidden = mask.clone()
    hidden[0, 3, 5] = False
    assert float(dsfunet.brightest(spiky, hidden)) == pytest.approx(float(x.max()), rel=0.02)
    sparse = torch.zeros_like(x)
    sparse[0, 0, 0] = 7.0
    assert float(dsfunet.brightest(sparse, mask)) == 7.0
    shown = dsfunet.network_input(spiky, hidden)
    assert shown.shape == (1, 1, 64, 64) and float(shown[0, 0, 3, 5]) == -1.0 and shown.max() == 1.0
    nan = torch.where(hidden, spiky, torch.nan)
    assert torch.equal(dsfunet.network_input(nan, hidden), shown)
    assert torch.equal(dsfunet.network_input(-x, mask), torch.full((1, 1, 64, 64), -1.0))


def test_zone_mean_minds_cut_zones():
    """S = 1 + 0.8 cos(2πh) + 0.5 cos(2πk) over 2.5 × 3.3 zones: the plane's mean is not 1, the zone's is."""
    h, k = torch.meshgrid(torch.linspace(0, 2.5, 201), torch.linspace(-1.1, 2.2, 263), indexing="ij")
    sro = (1 + 0.8 * torch.cos(2 * torch.pi * h) + 0.5 * torch.cos(2 * torch.pi * k) + 0.3 * torch.sin(2 * torch.pi * k))[None]
    zone = torch.stack([h, k], -1)[None]
    assert abs(float(dsfunet.zone_mean(sro, None)) - 1) > 0.03
    assert float(dsfunet.zone_mean(sro, zone)) == pytest.approx(1.0, abs=0.004)


def test_the_truth_gets_its_absolute_scale_back():
    planes = stream(CLEAN, evaluation=True).batch(0, 6)
    # the seen zones stand for all: no exact equality where a zone is cut at the edge
    factor, sro = dsfunet.separate_planes(
        Oracle(planes.form_factor, planes.sro), planes.intensity, planes.mask, recipe.zones(planes)
    )
    assert (recipe.relative_rms(factor * sro, planes.intensity, planes.mask) < 0.02).all()
    assert (recipe.relative_rms(sro, planes.sro, planes.mask) < 0.05).all()
    assert (recipe.relative_rms(factor, planes.form_factor, planes.mask) < 0.05).all()
    scaled = dsfunet.separate_planes(
        Oracle(planes.form_factor, planes.sro), 1e4 * planes.intensity, planes.mask, recipe.zones(planes)
    )
    assert torch.allclose(scaled[0], 1e4 * factor, rtol=1e-4) and torch.allclose(scaled[1], sro)


def test_figures_of_an_oracle_and_of_a_constant():
    batches = recipe.held_out_planes(stream(CLEAN, evaluation=True), 8, 4)
    assert [len(b) for b in batches] == [4, 4] and not torch.equal(batches[0].intensity, batches[1].intensity)
    best = recipe.accuracy(Oracle(batches[0].form_factor, batches[0].sro), batches[:1])
    assert best["sro_correlation_mean"] > 0.9999 and best["sro_relative_rms"] < 0.03 and best["form_factor_all"] < 0.03
    flat = recipe.accuracy(Echo(), batches)
    assert abs(flat["sro_correlation_mean"]) < 1e-3
    assert flat["form_factor_measured"] > 0.1 and flat["sro_relative_rms"] > 0.05


def test_held_out_families():
    task = DiffuseTask(SMOKE)
    assert all(is_held_out(s.family) for s in task.held_out.specs(0, 12))
    assert not any(is_held_out(s.family) for s in task.stream.specs(0, 12))


# ---------------------------------------------------------------------- the task


def test_batches_are_functions_of_seed_step_and_rank():
    task = DiffuseTask(SMOKE)
    batch = task.batch(3, 0, 2, CPU)
    torch.rand(5)
    again = DiffuseTask(SMOKE).batch(3, 0, 2, CPU)
    assert batch.keys() == again.keys() and all(torch.equal(batch[k], again[k]) for k in batch)
    other = DiffuseTask(replace(SMOKE, seed=1))
    for different in (task.batch(4, 0, 2, CPU), task.batch(3, 1, 2, CPU), other.batch(3, 0, 2, CPU)):
        assert not torch.equal(batch["plane"], different["plane"])
    for value in batch.values():
        assert value.shape == (SMOKE.batch_size, 1, 64, 64) and value.min() >= -1 and value.max() <= 1
    for name in ("form_factor", "sro", "scattering"):
        assert torch.allclose(batch[name].amax((1, 2, 3)), torch.ones(SMOKE.batch_size))


def test_a_refused_batch_is_replaced_for_good():
    class Moody:
        def batch(self, step, count, device):
            if step in refused:
                raise DataError("alpha makes S as low as -1")
            return step

    refused = {5, 5 + recipe.LATER}
    assert recipe.draw_planes(Moody(), 4, 2) == 4
    assert recipe.draw_planes(Moody(), 5, 2) == recipe.draw_planes(Moody(), 5, 2) == 5 + 2 * recipe.LATER
    refused |= {5 + k * recipe.LATER for k in range(8)}
    with pytest.raises(DataError, match="as low as -1"):
        recipe.draw_planes(Moody(), 5, 2)


def test_losses():
    torch.manual_seed(0)
    task = DiffuseTask(SMOKE)
    model, batch = task.model(), task.batch(0, 0, 1, CPU)
    loss, terms = task.loss(model, batch)
    wanted = {f"{part}_{kind}" for part in ("form_factor", "sro") for kind in ("pixel", "adversarial", "critic")}
    assert set(terms) == wanted | {"product"}
    pixel = sum(float(v) for k, v in terms.items() if k.endswith("pixel"))
    rest = sum(float(v) for k, v in terms.items() if not k.endswith("pixel"))
    assert float(loss.detach()) == pytest.approx(100 * pixel + rest, rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    ones, zeros = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)

    def perfect(plane, scattering, truth):
        return {name: {"answer": x, "judged": ones, "real": ones, "fake": zeros} for name, x in truth.items()}

    assert float(task.loss(perfect, batch)[0]) == 0.0
    group = task.optimizer(model).param_groups[0]
    assert group["betas"] == (0.5, 0.999)
    assert recipe.MODELS["dsfunet"] == (64, 64, 2e-4)
    low = torch.tensor(-1.0)
    assert float(recipe.product(low, low)) == -1.0 and float(recipe.product(-low, -low)) == 7.0


@pytest.fixture
def train():
    pytest.importorskip("lightning")
    from crystaldl.training import loop

    def run(task, out, **options):
        base = {"device": "cpu", "threads": 1, "warmup_steps": 5, "progress": False, "evaluate_every_minutes": 1e3}
        return loop.train(task, loop.TrainOptions(out=out, **(base | options)))

    return run


def test_smoke_training_learns(train, tmp_path):
    from crystaldl.training.checkpoint import load_checkpoint_weights

    task = DiffuseTask(SMOKE)
    probe = [task.batch(10_000 + k, 0, 1, CPU) for k in range(3)]

    def loss(model):
        with torch.no_grad():
            return np.mean([float(task.loss(model.eval(), b)[0]) for b in probe])

    torch.manual_seed(0)
    before = loss(task.model())
    result = train(task, tmp_path, max_steps=40, ema_decay=0.9)
    model = task.model()
    model.load_state_dict(load_checkpoint_weights(result.checkpoint))
    assert result.steps == 40 and loss(model) < before - 8
    assert set(result.figures) == set(release.METRICS)


def test_resume_is_exact(train, tmp_path):
    from crystaldl.training.checkpoint import read_checkpoint

    def task():
        return DiffuseTask(replace(SMOKE, batch_size=2, evaluation_planes=2))

    whole = train(task(), tmp_path / "whole", max_steps=6)
    half = train(task(), tmp_path / "parts", max_steps=6, session_steps=3)
    assert (half.steps, half.finished) == (3, False)
    rest = train(task(), tmp_path / "parts", max_steps=6, resume=half.checkpoint, prefetch=2)
    assert rest.steps == 6 and rest.finished
    wanted, found = (read_checkpoint(r.checkpoint)[0] for r in (whole, rest))
    for name in ("model", "ema", "optimizer"):
        assert wanted[name].keys() == found[name].keys()
        assert all(torch.equal(wanted[name][k], found[name][k]) for k in wanted[name]), name


# ---------------------------------------------------------------------- command and release


def arguments(out, **changes):
    base = {
        "model": None, "size": "smoke", "seed": 0, "out": out, "minutes": None, "max_steps": 3, "session_minutes": None,
        "device": "cpu", "resume": None, "threads": 1,
    }  # fmt: skip
    return Namespace(**base | changes)


def test_command_release_and_use(tmp_path, monkeypatch):
    """From the command to a model that is loaded by its name: only the generators ship."""
    pytest.importorskip("lightning")
    monkeypatch.setitem(recipe.MODELS, "dsfunet-w16", (4, 4, 5e-4))       # as narrow as the smoke networks
    assert recipe.train_command(arguments(tmp_path)) == 0
    (tmp_path / "facts.json").write_text(json.dumps({"hardware": "a desk lamp"}))
    size = {"planes": 2, "side": 64, "banks": recipe.SMOKE_BANKS}
    entry = release.release(tmp_path, tmp_path / "models", **size)
    assert entry.name == "diffuse-dsfunet-w16-v1" and entry.task == "diffuse" and not entry.default
    assert entry.training["hardware"] == "a desk lamp" and entry.training["steps"] == 3
    assert [point["planes"] for point in entry.training["learning_curve"]] == [entry.training["planes"]]
    assert len(entry.figures) == len(release.CASES) * len(release.METRICS)
    assert all(entry.name in f["command"] for f in entry.figures)
    net, again = dsfunet.load_dsfunet(device="cpu", folder=tmp_path / "models")
    assert again == entry and not net.training and not any(p.requires_grad for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) == entry.parameters
    # what was measured is what ships
    figures = release.measure(net, **size)
    shown = {(f["data"].rpartition(": ")[2], f["metric"]): f["value"] for f in entry.figures}
    for case, values in figures.items():
        for key, text in release.METRICS.items():
            assert shown[case, text] == pytest.approx(values[key], abs=1e-4)


def test_release_refuses_what_it_does_not_know(tmp_path):
    pytest.importorskip("lightning")
    recipe.train_command(arguments(tmp_path, max_steps=1))
    with pytest.raises(ModelIntegrityError, match="do not fit DSFUNet.width=16"):
        release.release(tmp_path, tmp_path / "models")
    state = tmp_path / "checkpoint" / "state.json"
    state.write_text(state.read_text().replace("diffuse-dsfunet-w16", "powder-npcnn"))
    with pytest.raises(ModelIntegrityError, match="task 'powder-npcnn', expected one of 'diffuse-dsfunet'"):
        release.release(tmp_path, tmp_path / "models")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "unet"}, ValueError, "model is 'unet'; expected one of dsfunet, dsfunet-w16, unrolled"),
        ({"size": "huge"}, ValueError, "size is 'huge'; expected 'smoke' or 'full'"),
        ({"resume": "nowhere"}, FileNotFoundError, "nowhere holds no checkpoint"),
    ],
)
def test_bad_commands(tmp_path, changes, error, message):
    pytest.importorskip("lightning")
    with pytest.raises(error, match=message):
        recipe.train_command(arguments(tmp_path, **changes))


# ---------------------------------------------------------------------- the user's side


def volume(shape=(120, 90), mask=None, scale=1.0):
    h, k = np.linspace(-3, 3, shape[0]), np.linspace(-2, 2, shape[1])
    data = scale * (1.2 + np.cos(0.7 * h)[:, None] * np.cos(0.9 * k + 0.3))
    return DiffuseVolume(data, h, k, 0.0, CELL, mask=mask)


@pytest.fixture
def echo(monkeypatch):
    monkeypatch.setattr(dsfunet, "load_dsfunet", lambda model, device: (Parametrised(), "card"))


class Parametrised(Echo):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("shape", [(256, 256), (120, 90), (31, 300), (400, 380)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e9])
def test_run_on_any_size_and_unit(echo, shape, scale):
    """A network that takes all for form factor gives the measured plane back: pixels, orientation and unit are kept."""
    v = volume(shape, scale=scale)
    factor, sro, card = dsfunet.run_dsfunet(v, plane_lattice(v), device="cpu")
    assert factor.shape == sro.shape == shape and card == "card"
    assert np.allclose(sro, 1.0, atol=1e-6)
    assert np.abs(factor - v.data).max() < 0.03 * v.data.max()
    again = dsfunet.run_dsfunet(v, None, device="cpu")
    assert np.allclose(again[0], factor, rtol=1e-6) and np.allclose(again[1], 1.0, atol=1e-6)


def test_run_with_gaps_and_spikes(echo):
    mask = np.ones((120, 90), dtype=bool)
    mask[40:60, 30:50] = False
    v = volume(mask=mask)
    factor, sro, _ = dsfunet.run_dsfunet(v, plane_lattice(v), device="cpu")
    assert np.isfinite(factor).all() and np.isfinite(sro).all()
    inner = mask & (np.roll(mask, 3, 0) & np.roll(mask, -3, 0) & np.roll(mask, 3, 1) & np.roll(mask, -3, 1))
    assert np.abs(factor - v.data)[inner].max() < 0.05 * np.nanmax(v.data)
    assert factor[48:52, 38:42].max() < 1e-3        # unmeasured is dark to the network
    data = np.array(volume().data)
    data[10, 10] = 1e4
    spiky = DiffuseVolume(data, np.linspace(-3, 3, 120), np.linspace(-2, 2, 90), 0.0, CELL)
    factor, _, _ = dsfunet.run_dsfunet(spiky, None, device="cpu")
    assert np.median(np.abs(factor - volume().data)) < 0.05


def test_resampling_keeps_a_plane_that_fits():
    x, mask = torch.rand(1, 256, 200), torch.rand(1, 256, 200) > 0.3
    data, seen = dsfunet.to_network_size(x, mask)
    assert data.shape == (1, 256, 256) and torch.equal(data[..., :200], x) and torch.equal(seen[..., :200], mask)
    assert not seen[..., 200:].any()
    answer = torch.rand(1, 1, 256, 256)
    assert torch.equal(dsfunet.from_network_size(answer, 256, 200), answer[..., :200])


def test_run_refuses(echo):
    cube = DiffuseVolume(np.ones((8, 8, 8)), *[np.linspace(-2, 2, 8)] * 3, CELL)
    with pytest.raises(DataError, match="volume has 3 dimensions, expected a plane"):
        dsfunet.run_dsfunet(cube)
    v = volume()
    with pytest.raises(DataError, match="largest intensity of the plane is .*, expected some above 0"):
        dsfunet.run_dsfunet(v.replace(data=-np.array(v.data)))


def test_loading_by_exact_name(tmp_path):
    torch.manual_seed(0)
    net = DSFUNet(1)
    fields = {"task": "diffuse", "title": "t", "architecture": "DSFUNet", "arguments": {"width": 1}, "parameters": 0}
    for name in ("diffuse-dsfunet-w1-v2", "diffuse-dsfunet-w1-v10"):
        write_model(net.state_dict(), {"name": name, **fields}, tmp_path)
    write_model({}, {"name": "powder-x-v1", **fields, "task": "powder"}, tmp_path)
    assert dsfunet.load_dsfunet(None, "cpu", tmp_path)[1].name == "diffuse-dsfunet-w1-v10"
    assert dsfunet.load_dsfunet("diffuse-dsfunet-w1-v2", "cpu", tmp_path)[1].name == "diffuse-dsfunet-w1-v2"
    with pytest.raises(UnknownModelError, match="known models are: diffuse-dsfunet-w1-v10"):
        dsfunet.load_dsfunet("diffuse-dsfunet", "cpu", tmp_path)
    with pytest.raises(UnknownModelError, match="is a DSFUNet for the task 'powder', expected a DSFUNet for 'diffuse'"):
        dsfunet.load_dsfunet("powder-x-v1", "cpu", tmp_path)
    with pytest.raises(UnknownModelError, match="no trained DSFU-Net is installed"):
        dsfunet.load_dsfunet(None, "cpu", tmp_path / "empty")


def test_masks_and_noise_are_seen_as_measured():
    """The network sees corrupted planes and is asked for exact ones."""
    planes = stream(Corruption(counts=50.0, masks="procedural", missing=0.4)).batch(0, 3)
    shown = dsfunet.network_input(planes.intensity, planes.mask)[:, 0]
    assert (shown[~planes.mask] == -1).all() and (~planes.mask).any()
    wanted = recipe.targets(planes)
    assert torch.allclose(
        dsfunet.unspread(wanted["scattering"][:, 0]), (planes.form_factor * planes.sro) / planes.peak[:, None, None], atol=1e-5
    )


def test_the_shipped_model():
    """Golden floor of the pair that ships, on planes of molecules it has not seen."""
    net, entry = dsfunet.load_dsfunet("diffuse-dsfunet-w16-v1", "cpu")
    assert entry.bytes < 8e6 and entry.arguments == {"width": 16} and not entry.default
    batches = recipe.held_out_planes(DiffuseStream(101, 256, CLEAN, evaluation=True, **recipe.SMOKE_BANKS), 6, 3)
    figures = recipe.accuracy(net, batches)
    assert figures["sro_correlation_median"] > 0.8 and figures["form_factor_measured"] < 0.5
