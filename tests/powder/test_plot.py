"""Figures: symbols as mathtext, and what a classification's figure shows."""

from __future__ import annotations

import warnings

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.mathtext import MathTextParser

from crystaldl import PowderPattern
from crystaldl.errors import DataError
from crystaldl.physics.symmetry import SYSTEM_OF_GROUP, extinction_symbols, symbols
from crystaldl.powder.plot import plot_classification, plot_pattern, typeset_symbol
from crystaldl.powder.result import Classification

parse = MathTextParser("path").parse


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def scan():
    two_theta = np.arange(5, 90, 0.02)
    rng = np.random.default_rng(0)
    lines = sum(4000 * np.exp(-0.5 * ((two_theta - x) / 0.05) ** 2) for x in (21.0, 26.6, 36.5, 50.1, 59.9))
    return PowderPattern(two_theta, rng.poisson(lines + 60 + 400 / two_theta), "CuKa", name="SiO2")


def classification(pattern, confident=True, **extra):
    p = np.full(230, 1e-4)
    p[[153, 151, 193, 61]] = 0.45, 0.3, 0.15, 0.05
    return Classification(pattern, p / p.sum(), "auto", "powder-some-v1", "0" * 64, confident, **extra)


# ---------------------------------------------------------------------- symbols

TYPESET = {
    "P1": "$P1$", "P-1": r"$P\overline{1}$", "P21/c": "$P2_1/c$", "C2/c": "$C2/c$", "P212121": "$P2_12_12_1$",
    "P41212": "$P4_12_12$", "P4212": "$P42_12$", "P42/mnm": "$P4_2/mnm$", "P-421m": r"$P\overline{4}2_1m$",
    "P42": "$P4_2$", "P422": "$P422$", "P4222": "$P4_222$", "I41/amd": "$I4_1/amd$", "P31": "$P3_1$", "P312": "$P312$",
    "P321": "$P321$", "P32": "$P3_2$", "P3112": "$P3_112$", "P3221": "$P3_221$", "P31m": "$P31m$", "R32": "$R32$",
    "R-3m": r"$R\overline{3}m$", "H-3c": r"$R\overline{3}c$", "P63/mmc": "$P6_3/mmc$", "P622": "$P622$", "P62": "$P6_2$",
    "P6322": "$P6_322$", "P23": "$P23$", "P213": "$P2_13$", "P432": "$P432$", "P4232": "$P4_232$", "P4132": "$P4_132$",
    "Pa-3": r"$Pa\overline{3}$", "Fm-3m": r"$Fm\overline{3}m$", "Ia-3d": r"$Ia\overline{3}d$",
}  # fmt: skip


@pytest.mark.parametrize(("symbol", "expected"), TYPESET.items(), ids=TYPESET)
def test_typeset_symbol(symbol, expected):
    assert typeset_symbol(symbol) == expected


def test_all_230_symbols():
    texts = [typeset_symbol(symbol) for symbol in symbols()]
    assert len(set(texts)) == 230
    for symbol, text in zip(symbols(), texts, strict=True):
        parse(text)  # matplotlib can draw it
        # nothing is lost: the letters and digits are those of the symbol
        plain = text.strip("$").replace(r"\overline{", "-").replace("}", "").replace("_", "")
        assert plain == symbol.replace("H", "R")
        # a screw axis n_m turns by 360°/n and climbs by m/n: m < n
        assert all(text[i - 1] > text[i + 1] for i, letter in enumerate(text) if letter == "_")


def test_every_extinction_symbol():
    for symbol in extinction_symbols():
        parse(typeset_symbol(symbol))
    assert typeset_symbol("P - 21 c").count("2_1") == 1
    assert typeset_symbol("P 1 21/c 1").replace(r"\;", "") == "$P12_1/c1$"


@pytest.mark.parametrize("symbol", ["", "nonsense", "P99", "-"])
def test_unknown_symbols(symbol):
    with pytest.raises(DataError, match="expected a short symbol of a space group"):
        typeset_symbol(symbol)


# ---------------------------------------------------------------------- figures


def test_classification_figure(scan, tmp_path):
    result = classification(scan, second_phase_probability=0.07, lines=23)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no glyph missing, no layout collapsed
        figure, axes = plot_classification(result, n=4)
        figure.savefig(tmp_path / "figure.png", dpi=60)
    pattern, systems, groups = axes
    assert [t.get_text() for t in groups.get_yticklabels()] == [
        "$P3_221$ (154)", "$P3_121$ (152)", "$P6_3/mmc$ (194)", "$Pnma$ (62)"
    ]  # fmt: skip
    assert [t.get_text() for t in systems.get_yticklabels()][4] == "trigonal"
    assert np.allclose([bar.get_width() for bar in systems.patches], list(result.crystal_system_probabilities.values()))
    assert np.allclose([bar.get_width() for bar in groups.patches], [p for *_, p in result.top(4)])
    assert "trigonal, $P3_221$ – confident" in pattern.get_title(loc="right")
    small = figure.get_supxlabel()
    for part in ("Extinction group", "23 lines found", "second phase 7%", "model powder-some-v1"):
        assert part in small


def test_bars_of_the_answer_are_dark(scan):
    result = classification(scan)
    _, (_, systems, groups) = plot_classification(result, n=4)
    dark = [bar.get_facecolor() for bar in groups.patches]
    inside = [SYSTEM_OF_GROUP[number - 1] == 4 for number, *_ in result.top(4)]
    assert inside == [True, True, False, False]
    assert dark[0] == dark[1] != dark[2] == dark[3] and systems.patches[4].get_facecolor() == dark[0]


def test_doubt_is_said(scan):
    sure, unsure = (plot_classification(classification(scan, confident))[1][0] for confident in (True, False))
    assert unsure.get_title(loc="right").endswith("not confident")
    assert sure._right_title.get_color() != unsure._right_title.get_color()


def test_background_is_shown_for_raw_scans_only(scan):
    raw = plot_classification(classification(scan))[1][0]
    assert [line.get_linestyle() for line in raw.lines] == ["-", "--"]
    clean = plot_classification(classification(scan.subtract_background()))[1][0]
    assert len(clean.lines) == 1


def test_gaps_and_missing_figures_of_the_model(scan):
    y = scan.intensity.copy()
    y[500:600] = np.nan
    figure, _ = plot_classification(classification(PowderPattern(scan.two_theta, y, 0.7), confident=False))
    assert "lines found" not in figure.get_supxlabel() and "second phase" not in figure.get_supxlabel()


@pytest.mark.parametrize("n", [1, 12])
def test_number_of_groups(scan, n):
    figure, axes = plot_classification(classification(scan), n=n)
    figure.canvas.draw()
    assert len(axes[2].patches) == n


@pytest.mark.parametrize("n", [0, 231, 2.5])
def test_bad_number_of_groups(scan, n):
    with pytest.raises(ValueError, match="n is"):
        plot_classification(classification(scan), n=n)


def test_bad_scale(scan):
    with pytest.raises(DataError, match="scale is 'cubic'"):
        plot_pattern(scan, scale="cubic")
