"""The recipe: batches, targets, losses, a smoke training whose resume is exact; the benchmark and its judgement."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crystaldl.stem.disks import DiskOptions, Disks, find_disks
from crystaldl.stem.network import STRIDE
from crystaldl.stem.peaks.refine import DiskFitter
from crystaldl.stem.prepare import Preparer
from crystaldl.stem.recipe import evaluate
from crystaldl.stem.recipe import training as recipe
from crystaldl.stem.recipe.benchmark import (
    Known,
    benchmark,
    benchmark_crystals,
    carbon_rings,
    cell_factors,
    fit_lattice,
    fitting_semiangles,
    measured_strain,
    multislice_patterns,
    ours,
    py4dstem_correlation,
)
from crystaldl.stem.recipe.stream import StreamOptions, disk_targets, disknet_batch, draw_patterns, fcunet_batch
from crystaldl.stem.recipe.training import Settings, StemTask, disknet_loss, match

torch.set_num_threads(1)
CPU = torch.device("cpu")
TINY = Settings("disknet", {"widths": (8, 8, 16, 16)}, StreamOptions(96, 4, 0), evaluation_batches=1)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k].nan_to_num(), b[k].nan_to_num()) for k in a)


# ------------------------------------------------------------------------------------------ stream


@pytest.mark.parametrize("network", ["disknet", "fcunet"])
def test_batches_are_functions_of_seed_step_and_rank(small_bank, network):
    task = StemTask(Settings(network, stream=StreamOptions(96, 4, 0)), small_bank)
    batch = task.batch(3, 0, 2, CPU)
    torch.rand(3), np.random.rand(3)  # no global generator has a say
    assert same(batch, task.batch(3, 0, 2, CPU))
    other = StemTask(Settings(network, stream=StreamOptions(96, 4, 1)), small_bank)
    for different in (task.batch(4, 0, 2, CPU), task.batch(3, 1, 2, CPU), other.batch(3, 0, 2, CPU)):
        assert not same(batch, different)


def test_targets_say_where_the_disks_are(small_bank):
    for step in range(4):
        p = draw_patterns(small_bank, StreamOptions(120, 4, 3), step, 0, CPU)
        prepare = Preparer(p.probe, p.patterns.shape[1:])
        t = disk_targets(p, prepare)
        assert t["heat"].shape[1:] == tuple((n + 1) // 2 for n in prepare.size)
        positions = prepare.frame.to_pattern(STRIDE * t["index"][:, 1:] + t["offset"])
        true = p.centres[p.visible]
        distance = (positions[:, None] - true).norm(dim=2)
        assert distance.amin(1).max() < 1e-3, "cell and offset give a true centre"
        assert distance.amin(0).max() < 1e-3, "every visible disk is asked for"
        ones = t["heat"] == 1
        assert int(ones.sum()) <= len(true) and (t["weight"][ones] == 1).all()
        assert (t["weight"] == 0).any() == bool(p.ignore.any())
        assert torch.isnan(t["log_v"]).any() and (t["log_v"].nan_to_num(0.0) <= 1e-6).all()


def test_fcunet_target_is_an_image_of_v(small_bank):
    p = draw_patterns(small_bank, StreamOptions(128, 4, 4), 0, 0, CPU)
    batch = fcunet_batch(p, 128, CPU)
    assert batch["pattern"].shape == batch["probe"].shape == batch["image"].shape == (4, 128, 128)
    assert batch["probe"].amax((1, 2)) == pytest.approx(1, abs=0.2)
    at = np.unravel_index(int(batch["probe"][0].argmax()), (128, 128))
    assert np.hypot(at[0] - 64, at[1] - 64) < 9
    assert torch.isfinite(batch["pattern"]).all() and batch["image"].max() <= 1.3


# ------------------------------------------------------------------------------------------ losses


def test_loss_of_one_who_knows(small_bank):
    p = draw_patterns(small_bank, StreamOptions(120, 4, 5), 1, 0, CPU)
    batch = disknet_batch(p, CPU)
    torch.manual_seed(0)
    model = StemTask(TINY, small_bank).model()
    first, terms = disknet_loss(model(batch["inputs"]), batch)
    assert torch.isfinite(first) and set(terms) == {"heat", "offset", "miss", "v"}
    first.backward()
    assert all(q.grad is not None and torch.isfinite(q.grad).all() for q in model.parameters())
    shape = batch["heat"].shape
    at = tuple(batch["index"].T)
    out = {
        "heat": torch.where(batch["heat"] == 1, 12.0, -12.0),
        "offset": torch.zeros(shape[0], 2, *shape[1:]), "log_sigma": torch.full(shape, -5.0), "log_v": torch.zeros(shape),
    }  # fmt: skip
    for i in (0, 1):
        out["offset"][:, i][at] = batch["offset"][:, i]
    out["log_v"][at] = batch["log_v"].nan_to_num()
    best, terms = disknet_loss(out, batch)
    assert best < first - 1 and terms["heat"] < 1e-3 and terms["miss"] < 1e-6 and terms["v"] < 1e-6
    # a false alarm in an open place costs nothing, elsewhere it does
    for weight, grows in ((0.0, False), (1.0, True)):
        places = ((batch["weight"] == weight) & (batch["heat"] == 0)).nonzero()
        wrong = dict(out, heat=out["heat"].clone())
        wrong["heat"][tuple(places[0])] = 12.0
        assert (disknet_loss(wrong, batch)[1]["heat"] > 1e-3) == grows


# ------------------------------------------------------------------------------------------ training


@pytest.fixture
def train():
    pytest.importorskip("lightning")
    from crystaldl.training import loop

    def run(task, out, **options):
        base = {"device": "cpu", "threads": 1, "warmup_steps": 5, "progress": False, "evaluate_every_minutes": 1e3}
        return loop.train(task, loop.TrainOptions(out=out, clip_norm=5.0, **(base | options)))

    return run


def test_smoke_training_learns(train, tmp_path, small_bank):
    from crystaldl.training.loop import load_checkpoint_weights

    task = StemTask(TINY, small_bank, small_bank)
    probes = [task.batch(10_000 + k, 0, 1, CPU) for k in range(3)]

    def loss(model):
        with torch.no_grad():
            return np.mean([float(task.loss(model.eval(), b)[0]) for b in probes])

    torch.manual_seed(0)
    before = loss(task.model())
    result = train(task, tmp_path, max_steps=50, ema_decay=0.9)
    model = task.model()
    model.load_state_dict(load_checkpoint_weights(result.checkpoint))
    assert result.steps == 50 and loss(model) < 0.6 * before
    assert {"recall", "precision"} <= set(result.figures) and 0 <= result.figures["recall"] <= 1
    network = evaluate.load_network
    with pytest.raises(RuntimeError, match="size mismatch"):
        network(tmp_path)  # a run of another size than the full one does not load


@pytest.mark.parametrize("network", ["disknet", "fcunet"])
def test_resume_is_exact(train, tmp_path, small_bank, network):
    from crystaldl.training.checkpoint import read_checkpoint

    def task():
        return StemTask(Settings(network, recipe.SMOKE_ARGUMENTS[network], StreamOptions(96, 2, 0)), small_bank)

    whole = train(task(), tmp_path / "whole", max_steps=4)
    half = train(task(), tmp_path / "parts", max_steps=4, session_steps=2)
    rest = train(task(), tmp_path / "parts", max_steps=4, resume=half.checkpoint, prefetch=1)
    wanted, found = (read_checkpoint(r.checkpoint)[0] for r in (whole, rest))
    for name in ("model", "ema", "optimizer"):
        assert all(torch.equal(wanted[name][k], found[name][k]) for k in wanted[name]), name


def test_train_command(tmp_path):
    pytest.importorskip("lightning")
    args = SimpleNamespace(
        out=tmp_path, model=None, size="smoke", seed=0, resume=None, minutes=None, max_steps=3, session_minutes=None,
        device="cpu", threads=1,
    )  # fmt: skip
    assert recipe.train_command(args) == 0 and (tmp_path / "checkpoint" / "state.json").is_file()
    other = tmp_path / "runs" / "powdernet" / "checkpoint"
    other.mkdir(parents=True)
    (other / "state.json").write_text('{"task": "powder-powdernet"}')
    (tmp_path / "checkpoint").rename(tmp_path / "runs" / "checkpoint")
    (tmp_path / "runs" / "mine").mkdir()
    (tmp_path / "runs" / "checkpoint").rename(tmp_path / "runs" / "mine" / "checkpoint")
    assert [path.name for path in evaluate.training_runs(tmp_path / "runs")] == ["mine"], "runs of other wings lie beside"
    with pytest.raises(ValueError, match="model is 'yolo'"):
        recipe.task_for("yolo", "smoke", tmp_path)
    with pytest.raises(ValueError, match="size is 'huge'"):
        recipe.task_for("disknet", "huge", tmp_path)
    with pytest.raises(FileNotFoundError):
        recipe.train_command(SimpleNamespace(**(vars(args) | {"resume": tmp_path / "nowhere"})))


# ------------------------------------------------------------------------------------------ judging


def truth(n=12):
    rng = np.random.default_rng(0)
    centres = torch.tensor(np.stack(np.meshgrid(np.arange(20, 140, 30), np.arange(20, 110, 30)), -1).reshape(1, -1, 2)[:, :n])
    visible = torch.ones(1, n, dtype=torch.bool)
    visible[:, -2:] = False
    ignore = ~visible
    ignore[:, -1] = False
    v = torch.tensor(rng.random((1, n)))
    return SimpleNamespace(
        centres=centres.double(), visible=visible, ignore=ignore, v=v, probe=SimpleNamespace(radius=5.0),
        patterns=torch.zeros(1, 160, 160),
    )  # fmt: skip


def disks_at(positions, intensity=None):
    n = len(positions)
    intensity = np.ones(n) if intensity is None else intensity
    return Disks(np.zeros(n), positions, np.full((n, 2), 0.1), intensity, np.linspace(1, 0.5, n), 1)


def test_match():
    p = truth()
    true = p.centres[0].numpy()
    m = match(disks_at(true + 0.3, p.v[0].numpy()), p)
    # ten visible ones hit; the ignored one does not count; the last is false
    assert (m["hits"], m["truths"], m["found"]) == (10, 10, 11)
    assert m["error"] == pytest.approx([0.3 * 2**0.5] * 10) and m["rank"] == pytest.approx([1.0])
    m = match(disks_at(np.concatenate([true[:4], true[:1] + 1.0])), p)
    assert m["hits"] == 4, "two on one disk are one hit"
    assert match(disks_at(np.zeros((0, 2))), p)["hits"] == 0


def test_recall_at_equal_false_positives():
    p = truth()
    true = p.centres[0].numpy()
    false = np.array([[150.0, 150.0], [150.0, 10.0]])

    def method(order):
        return lambda patterns, probe: [(order, np.linspace(1, 0.1, len(order)), np.ones_like(order))]

    good = evaluate.recall_at([p], method(np.concatenate([true[:10], false])), (0, 1))
    assert good == {0: 1.0, 1: 1.0}
    # one false alarm before half of the true ones
    mixed = np.concatenate([true[:5], false[:1], true[5:8], false[1:], true[8:10]])
    assert evaluate.recall_at([p], method(mixed), (0, 1, 2)) == {0: 0.5, 1: 0.8, 2: 1.0}
    # the same disk twice, or an ignored one, is neither
    doubled = np.concatenate([true[:1], true[:1] + 0.5, true[10:11], true[1:10]])
    assert evaluate.recall_at([p], method(doubled), (0,)) == {0: 1.0}


def test_lattice_fit():
    rng = np.random.default_rng(0)
    g = rng.uniform(-1, 1, (40, 2))
    matrix = np.array([[50.0, 0.4], [-0.2, 49.0]])
    positions = g @ matrix.T + [120, 130] + rng.normal(0, 0.01, (40, 2))
    for robust in (False, True):
        assert fit_lattice(g, positions, np.ones(40), robust) == pytest.approx(matrix, abs=0.02)
    positions[np.argsort(-g[:, 0])[:4]] += 3
    assert fit_lattice(g, positions, np.ones(40), True) == pytest.approx(matrix, abs=0.05)
    assert np.abs(fit_lattice(g, positions, np.ones(40), False) - matrix).max() > 0.1


@pytest.fixture(scope="module")
def known() -> Known:
    """Thin and thick patterns of one held-out crystal."""
    crystal = benchmark_crystals(1)[0]
    return multislice_patterns(crystal, 2.5e-3, np.random.default_rng(0), draws=1, dose=1e6, tilt=2e-4)


def test_benchmark_truth_is_exact(known):
    """Measured from the true centres, thin crystals give positions within hundredths of a pixel, and the strain."""
    assert known.patterns.shape == (7, 256, 256) and np.abs(known.strain).max() > 0.003
    bright = known.intensity[0] * 1e6 > 3000
    start = torch.as_tensor(known.centres[0][bright]).float()
    fit = DiskFitter(known.probe).fit(torch.as_tensor(known.patterns[:1]), torch.zeros(len(start)), start)
    error = (fit.positions - start)[fit.ok].numpy()
    assert len(error) > 6 and np.median(np.abs(error)) < 0.06
    e = measured_strain(known, 0, (fit.positions.numpy(), np.ones(len(start)), fit.sigma.numpy()), "sigma")
    assert e[:2] == pytest.approx(known.strain[0], abs=6e-4) and abs(e[2]) < 6e-4


@pytest.mark.parametrize(("edge", "expected"), [(13.0, []), (8.0, [1.5]), (5.0, [1.5, 2.5])])
def test_disks_keep_apart_where_every_other_one_is_extinct(edge, expected):
    """With a glide line, (0, k) is extinct for odd k, but (1, k) is not: disks lie as close as the cell is long."""
    positions = np.array([[0.2, 0.1, 0.0], [-0.2, 0.6, 0.0]])
    assert fitting_semiangles(("glide", np.array([4.0, edge, 4.0]), np.array([42, 42]), positions, 0.5)) == expected


def test_strain_moves_disks_and_keeps_their_shape():
    """The aperture has one shape, whatever the lattice: disks stretched with it would seem shifted towards their bright side."""
    edges, numbers, positions = np.array([4.0, 4.0, 4.0]), np.array([13]), np.zeros((1, 3))
    crystal = ("cube", edges, numbers, positions, 0.5)
    conditions = {"draws": 1, "dose": 1e8, "tilt": 1e-9, "background": 0.0, "strain": (0.05, -0.05)}
    k = multislice_patterns(crystal, 2.0e-3, np.random.default_rng(0), **conditions)
    direct = k.centres[0][np.argmin(np.hypot(*k.g.T))]
    y, x = np.indices(k.patterns.shape[1:])
    near = np.hypot(y - direct[0], x - direct[1]) < 8.5
    high, wide = (np.sqrt((k.patterns[0] * near * (a - c) ** 2).sum()) for a, c in zip((y, x), direct, strict=True))
    assert high / wide == pytest.approx(1, abs=0.01)


def test_strain_from_varpro_beats_the_tutorial(known):
    pytest.importorskip("py4DSTEM")
    rows = [
        evaluate.Entry("py4DSTEM", py4dstem_correlation((1.0, 4.0)), "intensity"),
        evaluate.Entry("ours", ours("correlation", min_relative_intensity=0.001), "sigma", 0.5),
    ]
    theirs, mine = (evaluate.strain_scores([known], r) for r in rows)
    rms = [np.sqrt(np.mean(np.square(list(s.strain.values())))) for s in (theirs, mine)]
    assert rms[1] < 0.3 * rms[0] and mine.median < theirs.median
    assert mine.slope == pytest.approx(1, abs=0.25)
    text = evaluate.table({"a": theirs, "b": mine})
    assert len(text.splitlines()) == 3 and "50 nm" in text


def test_benchmark_crystals_are_kept_out():
    crystals = benchmark_crystals(6)
    assert len({c[0] for c in crystals}) == 6
    for _, edges, numbers, positions, b_iso in crystals:
        g, u = cell_factors(edges, numbers, positions, b_iso, 120.0, 1.0)
        assert u[np.hypot(*g.T).argmin()] == u.max() and positions.shape == (len(numbers), 3)


def test_figures_of_detection(small_bank):
    figures = recipe.detection_figures(
        StemTask(TINY, small_bank).model(), small_bank, StreamOptions(96, 4, 1), 1, CPU
    )
    assert 0 <= figures["recall"] <= 1 and 0 <= figures["precision"] <= 1


def test_bank_is_kept(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        recipe, "build_bank", lambda count, seed, evaluation=False: calls.append(1) or _tiny_bank(count, seed, evaluation)
    )
    a, b = (recipe.bank_in(tmp_path, 2, 0) for _ in range(2))
    assert len(calls) == 1 and torch.equal(a.values, b.values)


def _tiny_bank(count, seed, evaluation):
    from crystaldl.stem.simulate.bank import build_bank

    return build_bank(count, seed, evaluation=evaluation, beams=20, stored=20, thicknesses=1)


def test_options_reach_the_methods(small_bank):
    p = draw_patterns(small_bank, StreamOptions(120, 2, 6), 0, 0, CPU)
    disks = find_disks(p.patterns.numpy(), p.probe, method="correlation", device="cpu", options=DiskOptions(max_disks=2))
    rows = ours("correlation", max_disks=2)(p.patterns.numpy(), p.probe)
    assert [len(r[0]) for r in rows] == [len(disks.of(i)) for i in range(2)]


def test_rings_of_a_film_lie_where_carbon_has_them():
    pixel, beam = 0.012, (127.3, 129.8)
    rings = carbon_rings((256, 256), beam, pixel)
    y, x = np.indices(rings.shape)
    s = np.hypot(y - beam[0], x - beam[1]) * pixel
    profile = np.array([rings[np.abs(s - q) < pixel].mean() for q in (0.35, 1 / 2.06, 0.66, 1 / 1.20, 1.05)])
    assert rings.sum() == pytest.approx(1) and profile[1] > 1.5 * max(profile[0], profile[2]) and profile[3] > profile[2]


def test_default_measures_strain_under_a_film():
    """Half of the electrons in rings: py4DSTEM's correlation takes pieces of them for disks."""
    known = next(iter(benchmark(1, 5, background=(0.1, 0.5))))
    plain = next(iter(benchmark(1, 5)))
    assert known.intensity.sum() == pytest.approx(0.5 * plain.intensity.sum(), rel=0.2)
    rows = {name: evaluate.Entry(name, ours("fcunet", rings=on), "sigma", 0.5) for name, on in (("with", True), ("without", False))}
    found = {name: evaluate.strain_scores([known], row) for name, row in rows.items()}
    assert found["with"].found >= found["without"].found and found["with"].failed == 0
    assert np.mean(list(found["with"].strain.values())) < 0.4
