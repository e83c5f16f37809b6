"""What ``crystaldl demo`` runs: the main jobs on the sample data, with a figure of each and a summary.

A job is a function ``(folder) -> Report`` in JOBS: it writes its figure into the folder and says what it found.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .storage.atomic import write_figure, write_text

if TYPE_CHECKING:
    from .powder.classify import Classification

__all__ = ["JOBS", "Report", "diffuse", "powder", "run", "stem"]

_INK, _GREY = "#1f4e79", "#5a5a5a"
_COLOURS = {"right": "#2e7d4f", "wrong": "#c0392b", "(mixture)": "#b26a00"}


@dataclass(frozen=True)
class Report:
    """What one job found: a title, a table, remarks and the files it wrote."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]
    files: tuple[str, ...]

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in range(len(self.header))]
        table = (self.header, tuple("-" * width for width in widths), *self.rows)
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([self.title, "", *lines, "", *self.remarks, ""])


def run(out: str | Path = "demo_output", as_json: bool = False) -> int:
    """Run all jobs on the sample data.

    Parameters
    ----------
    out : path-like
        Folder for the figures and ``summary.txt``; made where it does not exist.
    as_json : bool
        Print the reports as JSON at the end instead of as tables one by one.

    Returns
    -------
    int
        0. What goes wrong is raised.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    reports = []
    for job in JOBS:
        report = job(folder)
        if not as_json:
            sys.stdout.write(f"{report}\n")
        reports.append(report)
    write_text(folder / "summary.txt", "\n".join(map(str, reports)))
    files = ", ".join([*(file for report in reports for file in report.files), "summary.txt"])
    as_text = f"Written to {folder}: {files}\n"
    sys.stdout.write(json.dumps([asdict(r) for r in reports], indent=1, ensure_ascii=False) + "\n" if as_json else as_text)
    return 0


# ---------------------------------------------------------------------- powder


def powder(folder: Path) -> Report:
    """Classify the sample powder scans; draws ``powder.png``."""
    from .examples import example_facts, examples, load_example
    from .powder.classify import classify_patterns

    names = [name for name in examples() if name.startswith("powder/")]
    facts = [example_facts(name) for name in names]
    patterns = [load_example(name) for name in names]
    start = time.perf_counter()
    results = classify_patterns(patterns, progress=False)
    seconds = time.perf_counter() - start
    _powder_figure(results, facts, folder / "powder.png")
    rows = tuple(_powder_row(result, fact) for result, fact in zip(results, facts, strict=True))
    single = [i for i, fact in enumerate(facts) if len(fact["phases"]) == 1]
    systems = sum(_system_right(results[i], facts[i]) for i in single)
    groups = sum(_extinction_right(results[i], facts[i]) for i in single)
    remarks = (
        f"Crystal system right in {systems} of {len(single)} single-phase scans, extinction group in {groups}.",
        f"{len(results)} scans in {seconds:.2f} s, the loading of model {results[0].model} included.",
        "The scans are simulated: they show how the program is used, not how accurate it is.",
    )
    header = ("scan", "truth", "answer", "probability", "space group", "probability", "confident", "system is")
    return Report("Powder patterns: crystal system and space group", header, rows, remarks, ("powder.png",))


def _main_phase(fact: dict[str, Any]) -> dict[str, Any]:
    return fact["phases"][0]


def _system_right(result: Classification, fact: dict[str, Any]) -> bool:
    return result.crystal_system == _main_phase(fact)["crystal_system"]


def _extinction_right(result: Classification, fact: dict[str, Any]) -> bool:
    """Whether the truth is among the space groups that the answer's extinction group leaves possible."""
    return _main_phase(fact)["space_group"] in result.extinction_space_groups


def _judgement(result: Classification, fact: dict[str, Any]) -> str:
    if len(fact["phases"]) > 1:
        return "(mixture)"
    return "right" if _system_right(result, fact) else "wrong"


def _powder_row(result: Classification, fact: dict[str, Any]) -> tuple[str, ...]:
    truth = _main_phase(fact)
    return (
        fact["title"],
        f"{truth['crystal_system']}, {truth['symbol']}",
        result.crystal_system,
        f"{result.crystal_system_probabilities[result.crystal_system]:.2f}",
        result.space_group_symbol,
        f"{result.space_group_probabilities[result.space_group - 1]:.2f}",
        "yes" if result.confident else "no",
        _judgement(result, fact),
    )


def _typeset_title(title: str) -> str:
    """Subscripts in the formulas of a title: ``"Quartz SiO2"`` → ``"Quartz SiO$_2$"``."""
    return re.sub(r"(?<=[A-Za-z])(\d+)", r"$_{\1}$", title)


def _powder_figure(results: Sequence[Classification], facts: Sequence[dict[str, Any]], path: Path) -> None:
    """Small multiples: each scan with its answer, and the truth where the answer differs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3
    rows = -(-len(results) // columns)
    # no pyplot: the demo must not open windows, nor change the backend of whoever calls it
    figure = Figure(figsize=(10.5, 1.65 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, result, fact in zip(axes, results, facts, strict=False):
        _powder_panel(ax, result, fact)
    spare = axes[len(results) :]
    for ax in spare:
        ax.axis("off")
    for ax in spare[:1]:
        key = [(f"answer: crystal system {word}", colour) for word, colour in _COLOURS.items()]
        for i, (text, colour) in enumerate([*key, ("truth", _GREY), (f"model {results[0].model}", "black")]):
            ax.text(0.05, 0.8 - 0.17 * i, text, transform=ax.transAxes, fontsize="small", color=colour)
    figure.supxlabel("2θ (°)", fontsize="medium")
    figure.supylabel("√ intensity (√ counts)", fontsize="medium")
    write_figure(path, figure, dpi=110)


def _powder_panel(ax: Any, result: Classification, fact: dict[str, Any]) -> None:
    import numpy as np

    from .powder.plot import typeset_symbol

    pattern, truth = result.pattern, _main_phase(fact)
    y = np.sqrt(pattern.intensity)
    ax.plot(pattern.two_theta, y, color=_INK, lw=0.6)
    ax.set_xlim(pattern.two_theta[0], pattern.two_theta[-1])
    ax.set_ylim(0, 1.62 * np.nanmax(y))
    ax.set_yticks([])
    ax.tick_params(direction="in", labelsize="x-small")
    ax.set_title(_typeset_title(fact["title"]), loc="left", fontsize="small", pad=3)
    probability = result.crystal_system_probabilities[result.crystal_system]
    doubt = "" if result.confident else ", not confident"
    answer = f"{result.crystal_system} {probability:.0%}, {typeset_symbol(result.space_group_symbol)}{doubt}"
    place = {"transform": ax.transAxes, "ha": "right", "va": "baseline"}
    ax.text(0.985, 0.86, answer, fontsize="small", color=_COLOURS[_judgement(result, fact)], **place)
    note = f"truth: {truth['crystal_system']}, {typeset_symbol(truth['symbol'])}"
    if len(fact["phases"]) > 1:
        note = "truth: " + " + ".join(typeset_symbol(phase["symbol"]) for phase in fact["phases"]) + " mixture"
    ax.text(0.985, 0.72, note, fontsize="x-small", color=_GREY, **place)


# ---------------------------------------------------------------------- diffuse scattering


def diffuse(folder: Path) -> Report:
    """Separate the sample plane and refine its order parameters; draws ``diffuse.png``."""
    from .examples import example_facts, load_example

    name = "diffuse/hk0_poisson"
    facts, plane = example_facts(name), load_example(name)
    start = time.perf_counter()
    parts = plane.separate(progress=False)
    fit = parts.refine_sro(shells=6, laue=facts["laue"])
    seconds = time.perf_counter() - start
    figure, _ = parts.show()
    write_figure(folder / "diffuse.png", figure, dpi=110)
    truth = {tuple(row[:3]): row[3] for row in facts["truth"]["alpha"]}
    rows, inside = [], 0
    for vector, alpha, sigma in zip(fit.vectors, fit.alpha, fit.sigma, strict=True):
        key = tuple(int(round(v)) for v in vector)
        true = truth.get(key, truth.get(tuple(-v for v in key), float("nan")))
        inside += abs(alpha - true) < 2.0 * sigma
        rows.append((" ".join(map(str, key)), f"{alpha:+.4f}", f"{sigma:.4f}", f"{true:+.4f}"))
    remarks = (
        f"{inside} of {len(rows)} order parameters within two standard uncertainties of the truth.",
        f"R {100 * parts.r_factor:.1f} %, R free {100 * parts.r_free:.1f} % (counting noise); {seconds:.1f} s.",
        f"The plane is simulated: {facts['title']}.",
    )
    header = ("vector", "alpha", "uncertainty", "truth")
    return Report("Diffuse scattering: short-range order", header, tuple(rows), remarks, ("diffuse.png",))


# ---------------------------------------------------------------------- 4D-STEM


def stem(folder: Path) -> Report:
    """Find the Bragg disks of the sample scan and map its strain; draws ``strain.png``."""
    import numpy as np

    from .examples import example_facts, load_example
    from .stem.bragg import table_of
    from .stem.strain.fit import fit_strain

    name = "stem/strained_scan"
    facts, cube = example_facts(name), load_example(name)
    rows, strain = [], None
    true = np.array(facts["truth"]["rows"]["e_xx"], dtype=float)[:, None]      # NaN where there is no crystal
    for method in ("correlation", "fcunet"):
        start = time.perf_counter()
        bragg = cube.find_bragg_disks(method, progress=False)
        strain = fit_strain(bragg)
        seconds = time.perf_counter() - start
        found = np.where(strain.get_slice("mask").data > 0, strain.get_slice("e_xx").data, np.nan)
        error = found - true - np.nanmedian(found - true)
        count = len(table_of(bragg).intensity) / (cube.shape[0] * cube.shape[1])
        rows.append((method, f"{count:.1f}", f"{100 * np.sqrt(np.nanmean(error**2)):.3f} %", f"{seconds:.1f} s"))
    figure, _ = strain.show()
    write_figure(folder / "strain.png", figure, dpi=110)
    remarks = (
        "The time of the first holds what is done once: loading, and after an installation compiling.",
        f"The scan is simulated: {facts['title']}.",
    )
    header = ("method", "disks a pattern", "error of e_xx, rms", "time")
    return Report("4D-STEM: Bragg disks and strain", header, tuple(rows), remarks, ("strain.png",))


#: in the order they run
JOBS: tuple[Callable[[Path], Report], ...] = (powder, diffuse, stem)
