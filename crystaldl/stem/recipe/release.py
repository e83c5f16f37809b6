"""From a training run to a shipped network: weights and card.

``python -m crystaldl.stem.recipe.release --run DIR`` takes the averaged weights of ``crystaldl train stem --out DIR``, measures
them on patterns that neither training nor tuning has seen, and writes both into the package. ``--measure NAME`` measures a
model that is there already and writes one line a figure: the command in the card.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...errors import ModelIntegrityError
from ...models.registry import PACKAGE_FOLDER, ModelCard, write_model
from ...storage.atomic import write_text
from ...training.records import noted
from ..detect import FACTORS, FCUNET_THRESHOLD, THRESHOLD
from ..network import DiskNet, FactorNet, FCUNet
from ..simulate.bank import build_bank
from .benchmark import benchmark
from .evaluate import Scores, corrupted_patterns, entries, load_network, recall_at, strain_scores
from .factors import THICKNESSES, bloch_ranks, factor_ranks
from .stream import StreamOptions, draw_fcunet_scene, draw_scene
from .training import FULL_ARGUMENTS, detection_figures

SEED = 7                # of the figures; comparisons during development used others
CRYSTALS, PATTERNS, BANK = 6, 64, 40
SIZE = {"crystals": CRYSTALS, "patterns": PATTERNS, "bank": BANK}
THICK, THIN = (20.0, 60.0), (0.0, 10.0)     # nm
RANK = "rank correlation with |V_g| within a pattern, mean"
METHODS = ("py4DSTEM correlation, tuned kernel", "correlation + VarPro")  # beside the network
DETECTION = {
    "recall": "share of the visible disks found, at the operating point",
    "precision": "share of the found disks that are real, at the operating point",
    "refined_median": "distance from the truth, median, px",
    "rank_v": "rank correlation of intensity and |V_g| within a pattern, mean",
}
_INPUT = "patterns of at least 16 × 16 px in electrons or counts, NaN where not measured, and the probe over vacuum; " \
         "scaled to disks of about 5 px radius (crystaldl.stem.prepare)"
_NOTES = (
    "Proposes disks; their positions and uncertainties are those of the variable projection that follows, so strain is hardly "
    "better than from correlation with the same projection: the gain is in finding disks among false ones. Confidence ranks "
    "disks but is no calibrated probability. Strain still depends on thickness where multiple scattering is strong: up to "
    "0.43 % along an unstrained wedge of rutile (seen in development). |V_g| is known by rank only: no better than the fitted "
    "intensities of thin crystals tell it. Trained briefly and on "
    "simulated patterns only; no figure here is of a measured scan. Figures are of held-out crystals, by the command given. "
    "stem-disknet-v1 misses most disks of 5.6 to 5.8 px radius: batches of a single scene had hidden the radius from its "
    "batch normalisation. From v2 on, batches mix scenes."
)
_FCUNET_NOTES = (
    "The published architecture (Munshi et al., 2022) in a compact width: 4 filters at the first level and 64 at most, patterns "
    "of 128 px, no dropout. Trained on the stream of DiskNet's simulator for a small part of the published effort, so that its "
    "figures are those of this training and do not stand for the published weights. It ships as a baseline to compare with; the "
    "default model finds more disks. Positions and uncertainties are those of the variable projection that follows. Trained on "
    "simulated patterns only; no figure here is of a measured scan."
)
_FCUNET_INPUT = (
    "patterns and the probe over vacuum, NaN where not measured, scaled down where needed so that the pattern fits 128 px and its "
    "disks have a radius of at most 6.5 px; units do not matter"
)
_FACTORS_INPUT = (
    "disks of a pattern as they were fitted: positions from the direct beam in disk radii, intensities, significance, Zernike "
    "moments of their fillings (crystaldl.stem.reflections); nothing calibrated"
)
_FACTORS_NOTES = (
    "Tells |V_g| of the disks that a DiskNet proposed and the fit measured, from all disks of the pattern together. Known by rank; "
    "values are those of its training's crystals where a pattern does not tell. Trained on Bloch waves of simulated crystals only, "
    "at 60 to 300 kV and up to 45 nm; no figure here is of a measured scan. Figures are of crystals and a voltage kept "
    "out of training."
)
TILTS = (1e-3, 3e-3, 5e-3)  # Rayleigh parameters of the crystals on which |V_g| is ranked
KINDS = {
    "stem-disknet": {
        "title": "DiskNet: centres of Bragg disks under multiple scattering", "architecture": "DiskNet", "input": _INPUT,
        "operating_point": {"threshold": THRESHOLD, "passes": 1}, "notes": _NOTES,
    },
    "stem-fcunet": {
        "title": "FCU-Net, compact: images of |V_g| by a complex U-Net in Fourier space", "architecture": "FCUNet",
        "input": _FCUNET_INPUT, "operating_point": {"threshold": FCUNET_THRESHOLD, "passes": 1}, "notes": _FCUNET_NOTES,
        "reference": "Munshi et al., npj Comput. Mater. 8:254 (2022)",
    },
    "stem-factornet": {
        "title": "FactorNet: |V_g| of a pattern's disks from all of them together", "architecture": "FactorNet",
        "input": _FACTORS_INPUT, "operating_point": {}, "notes": _FACTORS_NOTES,
    },
}  # fmt: skip


def band(scores: Scores, limits: tuple[float, float]) -> float:
    """RMS strain error in percent over the thicknesses within the limits, nm; every thickness counts the same."""
    values = [v for t, v in scores.strain.items() if limits[0] <= t <= limits[1]]
    return float(np.sqrt(np.mean(np.square(values)))) if values else float("nan")


def measure(network: nn.Module, crystals: int = CRYSTALS, patterns: int = PATTERNS, bank: int = BANK) -> list[dict]:
    """Figures of the card for a network and, on the same patterns, of the classical methods.

    Parameters
    ----------
    network : DiskNet, FCUNet or FactorNet
        Of a FactorNet, how well it ranks |V_g| (`measure_factors`).
    crystals : int
        Of the multislice patterns, on which strain is measured: at seven thicknesses, two patterns of each.
    patterns, bank : int
        Number of corrupted patterns on which recall is measured, and of the crystal orientations they are made of.

    Returns
    -------
    list of dict
        ``data``, ``metric`` and ``value``.
    """
    held_out = build_bank(bank, SEED, evaluation=True)
    if isinstance(network, FactorNet):
        return measure_factors(network, crystals, corrupted_patterns(held_out, patterns, SEED))
    known = list(benchmark(crystals, SEED))
    corrupted = corrupted_patterns(held_out, patterns, SEED)
    multislice = f"multislice, {crystals} crystals, 120 kV, 10⁵ electrons"
    simulated = f"Bloch waves, {patterns} patterns with all corruptions"
    rows, fcunet = [], isinstance(network, FCUNet)
    label = "FCU-Net" if fcunet else "DiskNet"
    for entry in entries({label: network}):
        if entry.name not in (*METHODS, f"{label} + VarPro"):
            continue
        scores = strain_scores(known, entry)
        values = {
            "strain RMS, 20 to 60 nm, %": band(scores, THICK),
            "strain RMS, up to 10 nm, %": band(scores, THIN),
            "distance from the truth of bright disks, median, px": scores.median,
            "share of the bright disks found": scores.found,
            "patterns without a lattice": scores.failed,
        }
        rows += [{"data": f"{entry.name}: {multislice}", "metric": k, "value": v} for k, v in values.items()]
        recall = recall_at(corrupted, entry.method, (1,))[1]
        metric = "recall, at most one false disk a pattern (best threshold of each)"
        rows.append({"data": f"{entry.name}: {simulated}", "metric": metric, "value": recall})
    side, scene_of = (network.size, draw_fcunet_scene) if fcunet else (160, draw_scene)
    found = detection_figures(network, held_out, StreamOptions(side, 16, seed=SEED), 2, "cpu", scene_of)
    data = f"{label} + VarPro: Bloch waves, 32 patterns of {side} × {side} px with all corruptions"
    return rows + [{"data": data, "metric": text, "value": found[key]} for key, text in DETECTION.items() if key in found]


def measure_factors(network: FactorNet, crystals: int, corrupted: list) -> list[dict]:
    """Rank correlations with |V_g|, beside those of the fitted intensities and of the default network that proposes disks."""
    rows = []
    multislice = f"multislice, {crystals} crystals, 120 kV, 10⁵ electrons, 5 to 30 nm"
    for tilt in TILTS:
        ranks = factor_ranks(benchmark(crystals, SEED, draws=1, tilt=tilt), factors=network)
        data = f"{multislice}, tilts of {1e3 * tilt:g} mrad (Rayleigh parameter)"
        rows += [{"data": data, "metric": f"{RANK}: {name}", "value": value[0]} for name, value in ranks.items()]
    data = f"Bloch waves, {sum(len(p.patterns) for p in corrupted)} patterns with all corruptions"
    for name, values in bloch_ranks(corrupted, factors=network).items():
        for (low, high), value in zip(THICKNESSES, values, strict=True):
            rows.append({"data": f"{data}, {low:g} to {high:g} nm", "metric": f"{RANK}: {name}", "value": value})
    return rows


def card_figures(network: nn.Module, name: str, **size) -> list[dict]:
    """What `measure` finds, rounded, with the command that finds it again."""
    command = f"python -m crystaldl.stem.recipe.release --measure {name}"
    command += "".join(f" --{key} {value}" for key, value in size.items() if value != SIZE.get(key))
    return [row | {"value": round(row["value"], 4), "command": command} for row in measure(network, **size)]


def card_table(name: str, folder: Path = PACKAGE_FOLDER, **size) -> str:
    """The figures of a card, measured again and as it states them, where it does so for data of that size."""
    from ...models.registry import card

    stated = {(f["data"], f["metric"]): f["value"] for f in card(name, folder).figures}
    lines = [f"{'now':>8}  {'card':>8}"]
    for f in card_figures(shipped_network(name, folder), name, **size):
        there = stated.get((f["data"], f["metric"]))
        lines.append(f"{f['value']:8.4f}  {'-' if there is None else format(there, '.4f'):>8}  {f['metric']} ({f['data']})")
    return "\n".join(lines)


def training_facts(run: Path, state: Mapping) -> dict:
    """Counts and times of the run, and what the caller noted there (hardware, commit)."""
    return noted(run) | {
        "steps": state["step"], "patterns": state["samples"], "seconds": round(state["elapsed"]), "seed": state["seed"],
        "recipe": f"crystaldl train stem --model {state['task'].removeprefix('stem-')}", "versions": state["versions"],
    }  # fmt: skip


def release(run: Path, folder: Path = PACKAGE_FOLDER, version: int = 1, overwrite: bool = False, **size) -> ModelCard:
    """Write the model of a run.

    Parameters
    ----------
    run : Path
        Output directory of ``crystaldl train stem --model disknet``, ``fcunet`` or ``factornet``.
    folder : Path
        Where ``cards/`` and ``weights/`` are; the package's own by default.
    version : int
        Of the name ``stem-disknet-v<version>`` and so on. A DiskNet or FactorNet becomes the default for its task.
    overwrite : bool
        Allow other weights under a name that ships already.
    **size
        Of the measurement, as in `measure`.

    Raises
    ------
    ModelIntegrityError
        The run is of another task.
    """
    from ...training.checkpoint import read_state

    run = Path(run)
    state = read_state(run)
    if state["task"] not in KINDS:
        raise ModelIntegrityError(
            f"the checkpoint in {run} is of the task {state['task']!r}, expected {' or '.join(map(repr, KINDS))}."
        )
    network, name = load_network(run).requires_grad_(False), f"{state['task']}-v{version}"
    for value in network.state_dict().values():  # what ships is what is measured
        if value.is_floating_point() and value.ndim > 1:
            value.copy_(value.half().float())
    kind, default = state["task"].removeprefix("stem-"), state["task"] != "stem-fcunet"
    task = FACTORS if kind == "factornet" else "stem"
    written = write_model(network.state_dict(), KINDS[state["task"]] | {
        "name": name, "task": task, "arguments": FULL_ARGUMENTS.get(kind, {}), "default": default,
        "parameters": sum(p.numel() for p in network.parameters()), "training": training_facts(run, state),
        "figures": card_figures(network, name, **size),
    }, folder, overwrite=overwrite)  # fmt: skip
    if default:
        only_default(name, Path(folder), task)
    return written


def only_default(name: str, folder: Path, task: str = "stem") -> None:
    """Make a model the default of its task: the others' cards say so no longer, and nothing else of them changes."""
    for path in sorted((folder / "cards").glob("*.json")):
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["task"] == task and fields["default"] != (fields["name"] == name):
            text = json.dumps(fields | {"default": fields["name"] == name}, indent=2, ensure_ascii=False)
            write_text(path, text + "\n")


def shipped_network(name: str, folder: Path = PACKAGE_FOLDER) -> DiskNet | FCUNet | FactorNet:
    """A network of the registry, in evaluation mode."""
    from ...models.registry import card, load_weights

    entry, known = card(name, folder), {"DiskNet": DiskNet, "FCUNet": FCUNet, "FactorNet": FactorNet}
    if entry.architecture not in known:
        raise ModelIntegrityError(f"model {name!r} is a {entry.architecture}, expected a {' or '.join(known)}.")
    network = known[entry.architecture](**entry.arguments)
    network.load_state_dict(load_weights(name, folder))
    return network.eval()


def main(arguments=None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="output directory of crystaldl train stem")
    what.add_argument("--measure", metavar="NAME", help="measure a model of the package again")
    parser.add_argument("--folder", type=Path, default=PACKAGE_FOLDER, help="where cards/ and weights/ are")
    parser.add_argument("--version", type=int, default=1)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--crystals", type=int, default=CRYSTALS)
    parser.add_argument("--patterns", type=int, default=PATTERNS)
    parser.add_argument("--bank", type=int, default=BANK)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    size = {"crystals": args.crystals, "patterns": args.patterns, "bank": args.bank}
    if args.run is not None:
        figures = release(args.run, args.folder, args.version, args.overwrite, **size).figures
    else:
        figures = card_figures(shipped_network(args.measure, args.folder), args.measure, **size)
    sys.stdout.write("".join(f"{f['value']:8.4f}  {f['metric']} ({f['data']})\n" for f in figures))


if __name__ == "__main__":
    main()
