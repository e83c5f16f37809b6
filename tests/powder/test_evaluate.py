"""The figures of the powder models on tiny inputs, and the command that prints them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from crystaldl import cli
from crystaldl.powder.prepare import AXIS_POINTS
from crystaldl.powder.recipe import evaluate
from crystaldl.powder.recipe.crossval import figures
from crystaldl.powder.recipe.measured import MeasuredSet
from crystaldl.powder.simulate import LineLibrary, Patterns

NOWHERE = Path(".")  # a directory: nothing in it is read


def library(groups) -> LineLibrary:
    """Six lines of each of as many cubic-looking crystals."""
    n = len(groups)
    q = np.tile(np.sqrt([3, 4, 8, 11, 12, 16]) / 5.64, (n, 1)).astype(np.float32)
    q = np.hstack([q, np.ones((n, 2), np.float32)])
    intensity = np.tile(np.array([0.8, 1, 0.6, 0.3, 0.2, 0.1, 0, 0], np.float32), (n, 1))
    return LineLibrary(q, intensity, np.array(groups, np.int16), np.arange(n, dtype=np.int32), np.full(n, 45.0, np.float32))


def random_patterns(count: int, seed: int, lines: int = 12) -> torch.Tensor:
    """Gaussian lines at random places and of random heights on the common axis."""
    g = torch.Generator().manual_seed(seed)
    axis = torch.arange(AXIS_POINTS, dtype=torch.float32)
    centre = torch.rand(count, lines, 1, generator=g) * AXIS_POINTS
    height = torch.rand(count, lines, 1, generator=g)
    return (height * torch.exp(-0.5 * ((axis - centre) / 5) ** 2)).sum(1)


# ------------------------------------------------------------------------------------------ realism


@pytest.fixture
def realism_of(monkeypatch):
    """A function (measured patterns, simulated patterns) → Realism."""

    def run(measured, simulated, epochs):
        ones = torch.ones_like(measured)
        group = torch.full((len(measured),), 225)
        folder = MeasuredSet(measured, ones, torch.zeros(len(measured)), group, torch.arange(len(measured)))
        monkeypatch.setattr(MeasuredSet, "rruff", classmethod(lambda cls, shared: folder))
        monkeypatch.setattr(evaluate, "training_lines", lambda *a, **k: library([225] * len(simulated)))
        made = Patterns(simulated, torch.ones_like(simulated), torch.zeros(len(simulated)), torch.zeros(len(simulated)))
        monkeypatch.setattr(evaluate, "_patterns_for", lambda *a, **k: made)
        return evaluate.realism(NOWHERE, NOWHERE, epochs=epochs)

    return run


def test_patterns_of_one_kind_cannot_be_told_apart(realism_of):
    result = realism_of(random_patterns(120, 0), random_patterns(120, 1), 1)
    assert result.auc == pytest.approx(0.5, abs=0.13)
    assert result.accuracy == pytest.approx(0.5, abs=0.13)


def test_patterns_of_two_kinds_can(realism_of):
    result = realism_of(random_patterns(60, 0, lines=3), random_patterns(60, 1, lines=150), 8)
    assert result.auc > 0.9


# ------------------------------------------------------------------------------------------ simulated


def oracle(group, right: float, seed: int = 0):
    """A stand-in for the shipped model that knows the first ``right`` share of the answers."""

    def probabilities(patterns, method="auto"):
        count = len(patterns.y)
        p = np.full((count, 230), 1e-4)
        known = int(right * count)
        p[np.arange(known), group[:known] - 1] = 1
        p[np.arange(known, count), 0] = 1
        return p / p.sum(1, keepdims=True)

    return probabilities


@pytest.fixture
def blank(monkeypatch):
    """Patterns without a simulation."""
    monkeypatch.setattr(
        evaluate,
        "_patterns_for",
        lambda lines, *a, **k: Patterns(*(torch.zeros(len(lines), 4) for _ in range(2)), torch.zeros(len(lines)), None),
    )


def test_held_out_table(monkeypatch, blank):
    groups = [225] * 8 + [14] * 7 + [62] * 3
    seen = {}

    def known(patterns, method="auto"):
        return oracle(seen["group"], 1.0)(patterns)

    def watched(p, group):
        seen.setdefault("rows", []).append(len(group))
        return figures(p, group)

    def held_out(shared, runs):
        lines = library(groups)
        # the table draws at random: what it drew is what it asks about
        draw = np.random.default_rng(5).choice(len(groups), len(groups), replace=False)
        seen["group"] = np.array(groups)[draw]
        return lines

    monkeypatch.setattr(evaluate, "_held_out", held_out)
    monkeypatch.setattr(evaluate, "shipped_probabilities", known)
    monkeypatch.setattr(evaluate, "figures", watched)
    rows = evaluate.held_out_table(NOWHERE, NOWHERE, method="network")
    # systems with five or fewer patterns have no row of their own
    assert list(rows) == ["network, held-out types", "  monoclinic", "  cubic"]
    assert seen["rows"] == [18, 7, 8]
    assert all(r.system == r.group == r.top5 == 1 for r in rows.values())


def test_cubic_scaling(monkeypatch, blank):
    groups = [225] * 20 + [62] * 5
    monkeypatch.setattr(evaluate, "_held_out", lambda *a: library(groups))
    monkeypatch.setattr(evaluate, "shipped_probabilities", oracle(np.full(20, 225), 0.75))
    rows = evaluate.cubic_scaling(NOWHERE, NOWHERE)
    # below three quarters of the edge fewer than four lines lie under 90°: those scales have no row
    assert [scale for scale, _, _ in rows] == pytest.approx(np.linspace(0.75, 1.5, 4))
    assert all(share == 0.75 and count == 20 for _, share, count in rows)


# ------------------------------------------------------------------------------------------ the command


def arguments(*only) -> Namespace:
    return Namespace(shared=NOWHERE, runs=NOWHERE, only=list(only) or None, minutes=1.0, threads=None)


def test_the_command_prints_every_figure(monkeypatch):
    p = np.eye(230)[[224, 13, 61, 61]]
    row = figures(p, np.array([225, 14, 62, 61]))
    monkeypatch.setattr(evaluate, "measured_table", lambda *a: {"PowderNet": row})
    monkeypatch.setattr(evaluate, "held_out_table", lambda *a: {"auto, held-out types": row})
    monkeypatch.setattr(evaluate, "cubic_scaling", lambda *a: [(0.5, 0.9, 50), (1.0, 0.95, 60)])
    mixed = evaluate.MixtureRow(0.95, 0.9, 0.2, 0.85, 40)
    monkeypatch.setattr(evaluate, "mixtures", lambda *a: {"single phase": mixed})
    monkeypatch.setattr(evaluate, "realism", lambda *a: evaluate.Realism(0.61, 0.58))
    text = evaluate.evaluate_command(arguments("measured", "held-out", "cubic", "mixtures", "realism"))
    assert "PowderNet" in text and "75.0" in text and "auto, held-out types" in text
    assert "edges × 0.500:  90.0 % of 50" in text and "AUC 0.610, accuracy 58.0 %" in text
    assert "single phase: crystal system 95.0, lattice first 90.0, warned 20.0" in text and text.endswith("\n")
    some = evaluate.evaluate_command(arguments("cubic"))
    assert "edges × 1.000" in some and "AUC" not in some and "PowderNet" not in some
    cards = evaluate.evaluate_command(arguments())
    assert "PowderNet" in cards and "edges" not in cards and "AUC" not in cards, "the rest takes longer: when asked for"


def run(capsys, *given) -> tuple[int, str, str]:
    try:
        code = cli.main(["evaluate", "powder", *map(str, given)])
    except SystemExit as leave:
        code = leave.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("only", [[], ["--only", "measured"], ["--only", "realism"]])
def test_a_missing_shared_folder_is_one_sentence(capsys, tmp_path, only):
    code, out, err = run(capsys, "--shared", tmp_path / "none", "--runs", tmp_path / "runs", *only)
    assert code == 2 and not out
    assert err.startswith("crystaldl: error: shared is ") and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "runs").exists(), "nothing is written before the input is known to be good"


@pytest.mark.parametrize("given", [[], ["--shared", "x"], ["--shared", "x", "--runs", "y", "--only", "speed"]])
def test_usage(capsys, given):
    code, out, err = run(capsys, *given)
    assert code == 2 and not out and "usage: crystaldl evaluate powder" in err


def test_the_benchmark_of_index_prints_its_table():
    """One random triclinic crystal of the kind that is found."""
    from crystaldl.powder.recipe import benchmark

    rows = benchmark.main(["--count", "1", "--seeds", "0", "--systems", "triclinic", "--sample", "fine"]).splitlines()
    assert len(rows) == 2 and rows[1].split()[:2] == ["triclinic", "1"]
    assert float(rows[1].split()[3].rstrip("%")) == 100.0, "among the first three"
