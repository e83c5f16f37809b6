"""The recipe: batches, losses, a smoke training whose resume is exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crystaldl.physics.symmetry import SYSTEM_OF_GROUP
from crystaldl.powder.network import PowderNet
from crystaldl.powder.recipe.measured import MeasuredSet
from crystaldl.powder.recipe.training import (
    SYSTEM_SHARE,
    PowderTask,
    Settings,
    held_out_patterns,
    inputs_for,
    predict_logits,
    space_group_logits,
    training_prior,
)
from crystaldl.powder.simulate import simulate

TINY = {"dim": 32, "layers": 1, "heads": 2, "channels": (8, 8, 16, 32)}
SETTINGS = Settings(arguments=TINY, batch_size=24, learning_rate=3e-3, evaluation_patterns=48)
CPU = torch.device("cpu")


def flat(batch):
    return {**{k: v for k, v in batch.items() if k != "inputs"}, **batch["inputs"]}


def same(a, b):
    a, b = flat(a), flat(b)
    return a.keys() == b.keys() and all(torch.equal(torch.nan_to_num(a[k]), torch.nan_to_num(b[k])) for k in a)


@pytest.fixture(scope="module")
def measured(random_lines):
    """Twenty simulated patterns in the place of measured ones, labelled 1…230, in ten groups."""
    pick = slice(0, 20)
    q, intensity = torch.as_tensor(random_lines.q[pick]), torch.as_tensor(random_lines.intensity[pick])
    p = simulate(q, intensity, torch.Generator().manual_seed(3))
    groups = torch.tensor(random_lines.space_group[pick].astype(np.int64))
    return MeasuredSet(p.y.clamp_min(0), p.mask, torch.full((20,), 0.5), groups, torch.arange(20) // 2)


def test_prior_of_the_systems():
    prior = training_prior()
    assert prior.sum() == pytest.approx(1) and prior.min() > 0
    assert np.bincount(SYSTEM_OF_GROUP, weights=prior) == pytest.approx(SYSTEM_SHARE / SYSTEM_SHARE.sum())


def test_batches_are_functions_of_seed_step_and_rank(random_lines, measured):
    mixed = PowderTask(replace(SETTINGS, measured_share=0.4), random_lines, measured=measured)
    for task in (PowderTask(SETTINGS, random_lines), mixed):
        batch = task.batch(3, 0, 2, CPU)
        torch.rand(5)  # no global generator has a say
        np.random.rand(5)
        assert same(batch, task.batch(3, 0, 2, CPU))
        again = PowderTask(task.settings, random_lines, measured=task.measured)
        assert same(batch, again.batch(3, 0, 2, CPU))
        other = PowderTask(replace(task.settings, seed=1), random_lines, measured=task.measured)
        for different in (task.batch(4, 0, 2, CPU), task.batch(3, 1, 2, CPU), other.batch(3, 0, 2, CPU)):
            assert not same(batch, different)


def test_batch_contents(random_lines, measured):
    batch = PowderTask(SETTINGS, random_lines).batch(0, 0, 1, CPU)
    assert batch["labels"].shape == (24,) and batch["labels"].min() >= 0 and batch["labels"].max() < 230
    assert set((batch["labels"] + 1).tolist()) <= set(random_lines.space_group.tolist())
    assert torch.isfinite(batch["ln_volume"]).all() and set(batch["impurity"].tolist()) <= {0.0, 1.0}
    assert batch["inputs"]["spectrum"].shape == (24, 2, 2048)
    mixed = PowderTask(replace(SETTINGS, measured_share=0.25), random_lines, measured=measured).batch(0, 0, 1, CPU)
    assert len(mixed["labels"]) == 24 and int(torch.isnan(mixed["ln_volume"]).sum()) == 6
    assert set((mixed["labels"][-6:] + 1).tolist()) <= set(measured.space_group.tolist())
    npcnn = PowderTask(replace(SETTINGS, network="npcnn", arguments={}), random_lines).batch(0, 0, 1, CPU)
    assert npcnn["inputs"]["pattern"].shape == (24, 8500) and torch.equal(npcnn["labels"], batch["labels"])


def test_labels_follow_the_prior(random_lines):
    task = PowderTask(replace(SETTINGS, batch_size=1), random_lines)
    share = np.diff(np.concatenate([[0.0], task._weight]))
    group = random_lines.space_group.astype(int)
    drawn = np.bincount(group, weights=share, minlength=231)[1:]
    present = np.unique(group) - 1
    expected = training_prior()[present] / training_prior()[present].sum()
    assert drawn[present] == pytest.approx(expected) and task._weight[-1] == pytest.approx(1)


def test_losses(random_lines, measured):
    torch.manual_seed(0)
    task = PowderTask(replace(SETTINGS, measured_share=0.25), random_lines, measured=measured)
    model, batch = task.model(), task.batch(0, 0, 1, CPU)
    loss, terms = task.loss(model, batch)
    assert torch.isfinite(loss) and set(terms) == {"space_group", "system", "bravais", "extinction", "volume", "impurity"}
    assert all(torch.isfinite(v) for v in terms.values())
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in grads.values())
    # a model that knows the answer
    perfect = torch.full((24, 230), -20.0)
    perfect[torch.arange(24), batch["labels"]] = 20.0
    _, terms = task.loss(lambda **_: perfect, batch)
    assert set(terms) == {"space_group", "system", "bravais", "extinction"} and max(float(v) for v in terms.values()) < 1e-5
    groups = task.optimizer(model).param_groups
    assert groups[0]["weight_decay"] > 0 == groups[1]["weight_decay"]
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())


def test_prediction_and_evaluation(random_lines, measured):
    torch.manual_seed(0)
    model = PowderNet(**TINY).eval()
    task = PowderTask(SETTINGS, random_lines, held_out=random_lines, validation=measured)
    with torch.no_grad():
        figures = task.evaluate(model, CPU)
    assert set(figures) == {f"{kind}_{what}" for kind in ("simulated", "measured") for what in ("system", "group", "top5")}
    assert all(0 <= v <= 1 for v in figures.values()) and figures["measured_group"] <= figures["measured_top5"]
    patterns, group = held_out_patterns(random_lines, 30)
    logits = predict_logits(model, "powdernet", patterns.y, patterns.mask, patterns.doublet_ratio, batch=7)
    assert logits.shape == (30, 230) and group.shape == (30,)
    with torch.no_grad():
        direct = space_group_logits(model, inputs_for("powdernet", patterns.y, patterns.mask, patterns.doublet_ratio))
    assert logits == pytest.approx(direct.numpy(), abs=1e-4)
    again, same_group = held_out_patterns(random_lines, 30)
    assert torch.equal(again.y, patterns.y) and np.array_equal(group, same_group)


@pytest.fixture
def train():
    pytest.importorskip("lightning")
    from crystaldl.training import loop

    def run(task, out, **options):
        base = {"device": "cpu", "threads": 1, "warmup_steps": 5, "progress": False, "evaluate_every_minutes": 1e3}
        return loop.train(task, loop.TrainOptions(out=out, **(base | options)))

    return run


def test_smoke_training_learns(train, tmp_path, random_lines):
    task = PowderTask(SETTINGS, random_lines)
    probe = [task.batch(10_000 + k, 0, 1, CPU) for k in range(3)]

    def loss(model):
        with torch.no_grad():
            return np.mean([float(task.loss(model.eval(), b)[1]["space_group"]) for b in probe])

    from crystaldl.training.loop import load_checkpoint_weights

    torch.manual_seed(0)
    before = loss(task.model())
    result = train(task, tmp_path, max_steps=60, ema_decay=0.9)
    model = task.model()
    model.load_state_dict(load_checkpoint_weights(result.checkpoint))
    assert result.steps == 60 and loss(model) < before - 0.4


def test_resume_is_exact(train, tmp_path, random_lines, measured):
    from crystaldl.training.checkpoint import read_checkpoint

    def task():
        return PowderTask(replace(SETTINGS, batch_size=8, measured_share=0.25), random_lines, measured=measured)

    whole = train(task(), tmp_path / "whole", max_steps=8)
    half = train(task(), tmp_path / "parts", max_steps=8, session_steps=4)
    assert (half.steps, half.finished) == (4, False)
    rest = train(task(), tmp_path / "parts", max_steps=8, resume=half.checkpoint, prefetch=2)
    assert rest.steps == 8 and rest.finished
    wanted, found = (read_checkpoint(r.checkpoint)[0] for r in (whole, rest))
    for name in ("model", "ema", "optimizer"):
        assert wanted[name].keys() == found[name].keys()
        assert all(torch.equal(wanted[name][k], found[name][k]) for k in wanted[name]), name
