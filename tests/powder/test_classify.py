"""Classification with the models that ship: the contract of the result, and that the answers hold up."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import numpy as np
import pytest

import crystaldl as cdl
from crystaldl.errors import DataError, DeviceError, ModelIntegrityError, UnknownModelError
from crystaldl.examples import example_facts, examples, load_example
from crystaldl.models import registry
from crystaldl.physics.symmetry import CRYSTAL_SYSTEMS, SYSTEM_OF_GROUP, extinction_members, symbols
from crystaldl.powder import classify as task

MODELS = registry.available("powder")
NPCNN = sorted(name for name in MODELS if "npcnn" in name)
needs_model = pytest.mark.skipif(not MODELS, reason="the shipped models are not part of this installation")
needs_npcnn = pytest.mark.skipif(not NPCNN, reason="the shipped NPCNN is not part of this installation")

SINGLE = [name for name in examples("powder") if len(example_facts(name)["phases"]) == 1]
# textbook patterns whose crystal system nobody should miss
EASY = ("powder/halite", "powder/silicon", "powder/rutile", "powder/corundum")


def classify(patterns, **options):
    return cdl.classify_patterns(patterns, progress=False, device="cpu", **options)


def system_of(name: str) -> str:
    return example_facts(name)["phases"][0]["crystal_system"]


def distance(a, b) -> float:
    """Largest difference of the probabilities of two results."""
    return float(np.abs(a.space_group_probabilities - b.space_group_probabilities).max())


@pytest.fixture(scope="module")
def patterns():
    return [load_example(name) for name in examples("powder")]


@pytest.fixture(scope="module")
def results(patterns):
    return classify(patterns)


@pytest.fixture(scope="module")
def quartz():
    return load_example("powder/quartz")


# ---------------------------------------------------------------------- the result


@needs_model
def test_probabilities_agree_at_every_level(results):
    for result in results:
        p = result.space_group_probabilities
        assert p.shape == (230,) and np.all(p >= 0) and np.isclose(p.sum(), 1.0, atol=1e-6)
        systems = result.crystal_system_probabilities
        assert tuple(systems) == CRYSTAL_SYSTEMS and np.isclose(sum(systems.values()), 1.0, atol=1e-6)
        for i, name in enumerate(CRYSTAL_SYSTEMS):
            assert np.isclose(systems[name], p[i == SYSTEM_OF_GROUP].sum(), atol=1e-9)
        assert np.isclose(result.extinction_group_probabilities.sum(), 1.0, atol=1e-6)


@needs_model
def test_answers_agree_with_probabilities(results):
    for result in results:
        assert result.crystal_system == max(CRYSTAL_SYSTEMS, key=result.crystal_system_probabilities.get)
        assert result.space_group == result.top(1)[0][0]
        assert result.space_group_symbol == symbols()[result.space_group - 1]
        assert result.extinction_space_groups in extinction_members()
        assert isinstance(result.confident, bool) and isinstance(result.space_group, int)
        assert result.model in MODELS and result.model_sha256 == registry.card(result.model).sha256


@needs_model
def test_top(results):
    result = results[0]
    best = result.top(5)
    assert len(best) == 5 and [p for *_, p in best] == sorted((p for *_, p in best), reverse=True)
    for number, symbol, p in best:
        assert symbol == symbols()[number - 1] and p == result.space_group_probabilities[number - 1]
    assert best == result.top() and len(result.top(230)) == 230 and len({n for n, *_ in result.top(230)}) == 230


@needs_model
@pytest.mark.parametrize("n", [0, -1, 231, 2.5, "3", True, None])
def test_top_refuses(results, n):
    with pytest.raises(ValueError, match="n is .*expected a whole number from 1 to 230"):
        results[0].top(n)


@needs_model
def test_prints_and_draws(results):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for result in results:
        text, html = repr(result), result._repr_html_()
        for part in (result.pattern.name, result.crystal_system, result.space_group_symbol, result.model):
            assert part in text and part in html
        assert ("not confident" in text) == (not result.confident)
    figure, axes = results[0].show()
    assert len(axes) == 4 and axes[0].figure is figure
    assert len(results[0].show()[1][3].lines) >= 1, "the difference curve"
    plt.close(figure)


@needs_model
def test_html_is_escaped(quartz):
    named = cdl.PowderPattern(quartz.two_theta, quartz.intensity, "CuKa", name="<b>a & b</b>")
    assert "<b>a & b</b>" not in named.classify()._repr_html_()


@needs_model
def test_to_dict_is_strict_json(results):
    for result in results:
        content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert content["space_group"] == result.space_group and content["confident"] is result.confident
        assert content["model"] == result.model and content["model_sha256"] == result.model_sha256
        assert content["crystaldl"] == cdl.__version__ and content["wavelength"] == result.pattern.wavelength
        assert np.allclose(content["space_group_probabilities"], result.space_group_probabilities, atol=0)


@needs_model
def test_save_keeps_everything(tmp_path, quartz):
    y = quartz.intensity.copy()
    y[1000:1010] = np.nan
    result = cdl.PowderPattern(quartz.two_theta, y, quartz.radiation, name="quartz").classify(device="cpu")
    path = result.save(tmp_path / "quartz.json")
    assert [file.name for file in tmp_path.iterdir()] == ["quartz.json"]  # nothing is left beside it
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {key: content[key] for key in result.to_dict()} == result.to_dict()
    restored = np.array([np.nan if v is None else v for v in content["intensity"]])
    assert np.array_equal(restored, y, equal_nan=True) and np.array_equal(content["two_theta"], quartz.two_theta)


@needs_model
def test_is_frozen(results):
    result = results[0]
    with pytest.raises(FrozenInstanceError):
        result.confident = True
    with pytest.raises(ValueError, match="read-only"):
        result.space_group_probabilities[0] = 1.0


# ---------------------------------------------------------------------- methods and models


@needs_model
def test_methods(quartz):
    default = registry.default("powder")
    for method in ("auto", "network"):
        result = quartz.classify(method=method)
        assert result.model == default and result.method == method
    assert distance(quartz.classify(), quartz.classify(model=default)) == 0


@needs_model
@needs_npcnn
def test_npcnn(quartz):
    result = quartz.classify(method="npcnn")
    assert result.model == NPCNN[-1] and np.isclose(result.space_group_probabilities.sum(), 1.0, atol=1e-6)


@needs_model
def test_unknown_names(quartz):
    with pytest.raises(ValueError, match="method is 'magic'; expected one of auto, network, npcnn"):
        quartz.classify(method="magic")
    with pytest.raises(UnknownModelError, match=MODELS[0]):
        quartz.classify(model="powder-powdernet")  # names are exact: no version, no model
    with pytest.raises(DeviceError):
        quartz.classify(device="abacus")


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "many"])
@needs_model
def test_batch_size_refused(quartz, size):
    with pytest.raises(ValueError, match="batch_size"):
        classify([quartz], batch_size=size)


@needs_model
def test_one_pattern_is_no_list(quartz):
    with pytest.raises(TypeError, match="sequence"):
        cdl.classify_patterns(quartz)
    with pytest.raises(TypeError, match=r"patterns\[1\] is a int"):
        cdl.classify_patterns([quartz, 3])


@needs_model
def test_empty_list():
    assert classify([]) == []


@needs_model
def test_too_short(quartz):
    with pytest.raises(DataError, match="expected at least 10°"):
        quartz.crop(20, 27).classify()


@pytest.fixture
def own_models(tmp_path, monkeypatch):
    """A copy of the shipped models that a test may damage."""
    for folder in ("cards", "weights"):
        shutil.copytree(registry.PACKAGE_FOLDER / folder, tmp_path / folder)
    monkeypatch.setattr(registry, "PACKAGE_FOLDER", tmp_path)
    task._network.cache_clear()
    yield tmp_path / "weights" / registry.card(registry.default("powder")).file
    task._network.cache_clear()


@needs_model
def test_damaged_weights(own_models, quartz):
    content = bytearray(own_models.read_bytes())
    content[len(content) // 2] ^= 1
    own_models.write_bytes(content)
    with pytest.raises(ModelIntegrityError, match="SHA-256"):
        quartz.classify()
    own_models.write_bytes(content[:1000])
    with pytest.raises(ModelIntegrityError, match="SHA-256"):
        quartz.classify()
    own_models.unlink()
    with pytest.raises(UnknownModelError, match="missing"):
        quartz.classify()


def test_without_any_model(tmp_path, monkeypatch, quartz):
    monkeypatch.setattr(registry, "PACKAGE_FOLDER", tmp_path)
    with pytest.raises(UnknownModelError):
        quartz.classify()


# ---------------------------------------------------------------------- the same answer, however it is asked


@needs_model
def test_batches_equal_single_patterns(patterns, results):
    # different ranges, steps, wavelengths and treatments in one batch
    mixed = [*patterns, patterns[4].crop(10, 60), patterns[1].rebin(0.05), patterns[2].subtract_background()]
    together = classify(mixed)
    assert max(distance(a, b) for a, b in zip(together, results, strict=False)) < 1e-4
    assert max(distance(a, p.classify(device="cpu")) for a, p in zip(together, mixed, strict=True)) < 1e-4
    assert max(distance(a, b) for a, b in zip(together, classify(mixed, batch_size=3), strict=True)) < 1e-4
    assert [r.pattern for r in together] == mixed


@needs_model
def test_threads_do_not_matter(patterns):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = classify(patterns)
        torch.set_num_threads(2)
        two = classify(patterns)
    finally:
        torch.set_num_threads(before)
    assert max(map(distance, one, two)) < 1e-5


@needs_model
def test_input_is_not_written_to(quartz):
    x, y = quartz.two_theta.copy(), quartz.intensity.copy()
    pattern = cdl.PowderPattern(x, y, "CuKa")
    inside = pattern.intensity.copy()
    pattern.classify()
    assert np.array_equal(x, quartz.two_theta) and np.array_equal(y, quartz.intensity)
    assert np.array_equal(pattern.intensity, inside) and not pattern.background_subtracted


@needs_model
def test_scale_does_not_matter(quartz):
    scaled = cdl.PowderPattern(quartz.two_theta, 0.01 * quartz.intensity, quartz.radiation)
    assert distance(quartz.classify(), scaled.classify()) < 0.05


# ---------------------------------------------------------------------- the answers


@needs_model
@pytest.mark.parametrize("name", EASY)
def test_easy_samples(name):
    result = load_example(name).classify()
    assert result.crystal_system == system_of(name)


@needs_model
def test_most_samples(results):
    answers = dict(zip(examples("powder"), results, strict=True))
    right = sum(answers[name].crystal_system == system_of(name) for name in SINGLE)
    assert right >= 0.7 * len(SINGLE)


@needs_model
@pytest.mark.parametrize("name", EASY)
def test_short_range(name):
    result = load_example(name).crop(10, 60).classify()
    assert result.crystal_system_probabilities[system_of(name)] > 0.2  # less is known, but the truth stays in sight
    assert np.isclose(result.space_group_probabilities.sum(), 1.0, atol=1e-6)


@needs_model
def test_wavelength_only_moves_the_axis(quartz):
    """Data without Kα2 carry no trace of the wavelength: on another axis the answer is the same."""
    single = quartz.strip_kalpha2()
    moved = single.to_wavelength("MoKa1")
    assert moved.wavelength < 0.72 and moved.two_theta[-1] < 45
    assert distance(single.classify(), moved.classify()) < 0.02


@needs_model
def test_molybdenum_tells_the_same(quartz):
    """The same crystal in two scans: copper, and molybdenum with its wider doublet and own noise."""
    systems = [p.classify().crystal_system_probabilities for p in (quartz, load_example("powder/quartz_mo"))]
    # trigonal and hexagonal crystals share the lattice: their lines lie alike, and only the family is easy
    family = [p["trigonal"] + p["hexagonal"] for p in systems]
    assert min(family) > 0.5 and abs(family[0] - family[1]) < 0.3


@needs_model
@pytest.mark.parametrize("name", EASY)
def test_gaps_are_accepted(name):
    whole = load_example(name)
    y = whole.intensity.copy()
    y[(whole.two_theta > 31.0) & (whole.two_theta < 31.4)] = np.nan  # no strong line of these samples lies there
    gappy = cdl.PowderPattern(whole.two_theta, y, whole.radiation).classify()
    systems, before = gappy.crystal_system_probabilities, whole.classify().crystal_system_probabilities
    assert np.all(np.isfinite(gappy.space_group_probabilities))
    assert max(abs(systems[key] - before[key]) for key in systems) < 0.3


def test_one_wavelength_is_not_stripped_of_a_second():
    """Broad lines of one wavelength, given as a number near copper's: taking Kα2 off would leave ghosts of them."""
    x = np.arange(5.0, 90.0, 0.01)
    rng = np.random.default_rng(4)
    edge, squares = 4.21, np.array([3, 4, 8, 11, 12, 16, 19, 20])
    centre = 2 * np.degrees(np.arcsin(np.sqrt(squares) / edge * 1.5418 / 2))
    height = rng.uniform(0.2, 1.0, len(squares))
    y = (height * np.exp(-0.5 * ((x[:, None] - centre) / 0.11) ** 2)).sum(1)
    y = 1000 * y / y.max() + rng.uniform(0, 10, x.size)
    *_, ratio, _ = task.on_common_axis([cdl.PowderPattern(x, y, 1.5418)], "cpu")
    assert float(ratio[0]) == 0.0


@needs_model
def test_mixtures_lower_the_confidence(results):
    """A fifth of the strongest line from another phase: what is less certain must be called less certain.

    Each sample with three others, a third of all pairs.
    """
    answers = dict(zip(examples("powder"), results, strict=True))
    pure = [answers[name] for name in SINGLE if example_facts(name)["radiation"] == "CuKa"]
    copper = [result.pattern for result in pure]
    shapes = [(p.intensity - p.intensity.min()) / np.ptp(p.intensity) for p in copper]
    mixtures = [
        cdl.PowderPattern(p.two_theta, np.round(1e4 * (a + 0.2 * b)) + 100, p.radiation)
        for i, (p, a) in enumerate(zip(copper, shapes, strict=True))
        for b in (shapes[(i + step) % len(shapes)] for step in (1, 4, 7))
    ]
    mixed = classify(mixtures)
    certainty = [np.mean([max(r.crystal_system_probabilities.values()) for r in part]) for part in (pure, mixed)]
    assert certainty[1] < certainty[0]
    assert np.mean([r.confident for r in mixed]) <= np.mean([r.confident for r in pure])


@needs_model
def test_speed_of_one_pattern(quartz):
    quartz.classify()
    seconds = []
    for _ in range(25):  # the best of them: a busy machine is not our subject
        start = time.perf_counter()
        quartz.classify()
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < 0.3:
            break
    assert min(seconds) < 0.3


def test_calibrate():
    """Without weights: the operating point's temperature and prior act as documented."""
    z = np.array([[2.0, 0.0, 0.0]])
    flat = task.calibrate(z, {"temperature": 1e9})
    assert np.allclose(flat, 1 / 3)
    prior = task.calibrate(np.zeros((1, 3)), {"log_prior": np.log([0.5, 0.3, 0.2]).tolist()})
    assert np.allclose(prior, [[0.5, 0.3, 0.2]])
    assert np.allclose(task.calibrate(z, {}), np.exp(z) / np.exp(z).sum())


def test_networks_read_what_is_prepared(quartz):
    torch = pytest.importorskip("torch")
    y, mask, ratio, delta = task.on_common_axis([quartz, quartz.crop(10, 60), load_example("powder/quartz_mo")])
    assert y.shape == mask.shape == (3, 4800) and torch.isfinite(y).all()
    assert np.allclose(ratio.tolist(), 0.5) and delta[0] == delta[1] != delta[2]
    inputs = SimpleNamespace(**task.prepared_inputs("PowderNet", y, mask, ratio, delta))
    assert inputs.spectrum.shape[:2] == (3, 2) and inputs.peak_mask.sum(1).min() > 4
    # the strongest line of quartz, 10-11 at d = 3.343 Å, whatever the wavelength
    strongest = torch.exp(-inputs.peaks[:, 0, 0])
    assert torch.allclose(strongest, torch.full((3,), 3.343), atol=0.01)
    assert task.prepared_inputs("NPCNN", y, mask, ratio, delta)["pattern"].shape == (3, 8500)
