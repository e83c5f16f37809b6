"""From training runs to shipped models: weights, operating points and cards.

``python -m crystaldl.powder.recipe.release --shared DIR --runs DIR`` expects under ``runs``: ``powdernet-final`` and
``npcnn-final`` (adapted to all measured patterns; what is not there is not released) and ``cv`` (out-of-fold logits of
both, see `crossval`). Calibration and arbiter are fitted on out-of-fold logits, so that nothing is calibrated on
patterns the weights have seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...models.registry import PACKAGE_FOLDER, write_model
from ...physics.symmetry import SYSTEM_OF_GROUP
from ...training.records import learning_curve, logged, noted
from ..families import cross_validated_mix, fit_trust
from ..network import NPCNN, PowderNet
from ..prepare import npcnn_input
from .arbiter import combine, cross_validated_logits, fit_arbiter, look_alike_weight
from .crossval import FOLDS, calibrated_out_of_fold, fit_calibration, system_probabilities
from .measured import MeasuredSet, group_folds

NPCNN_RANK = 96
NAMES = {"powdernet": "powder-powdernet-v4", "npcnn": "powder-npcnn-v2", "arbiter": "powder-arbiter-v9",
         "families": "powder-families-v4"}
COMMAND = "crystaldl evaluate powder --shared DIR --runs DIR"
_INPUT = "intensity on the common axis (2θ for Cu Kα1, 4–100°, step 0.02°), background removed"


def confidence_threshold(p: np.ndarray, group: np.ndarray, wanted: float = 0.95) -> float:
    """Smallest crystal-system probability above which at least ``wanted`` of the held-out answers are right."""
    system, truth = system_probabilities(p), SYSTEM_OF_GROUP[group - 1]
    order = np.argsort(-system.max(1))
    right = np.cumsum((system.argmax(1) == truth)[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero((right >= wanted) & (np.arange(len(order)) >= 20))
    return float(np.clip(system.max(1)[order][good[-1]] if len(good) else 0.95, 0.5, 0.98))


def operating_point(logits: np.ndarray, group: np.ndarray, fold: np.ndarray) -> dict:
    """Calibration from out-of-fold logits, and the threshold of ``confident`` from their cross-calibrated probabilities."""
    threshold = confidence_threshold(calibrated_out_of_fold(logits, group, fold), group)
    return fit_calibration(logits, group) | {"confident_system_probability": threshold}


def count(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters())


#: of a learning curve: shares that are right, of unseen simulated and of measured patterns
_CURVE = ("simulated_system", "simulated_group", "measured_system", "measured_group")
_METRICS = {"system": "crystal system", "group": "space group", "top5": "space group, top 5",
            "ece_system": "calibration error, system"}


def _figures(rows: dict, data: str) -> list[dict]:
    return [{"data": data, "metric": text, "value": round(rows[key], 4), "command": COMMAND} for key, text in _METRICS.items()]


def _out_of_fold(runs: Path, name: str, fold: np.ndarray) -> np.ndarray:
    logits = np.zeros((len(fold), 230), np.float32)
    for k in range(FOLDS):
        logits[fold == k] = np.load(runs / "cv" / f"{name}-fold{k}.npy")
    return logits


def _training_facts(runs: Path, name: str) -> dict:
    """Counts and times of both stages from their logs, and what the caller noted in ``runs``."""
    facts = noted(runs)
    for stage in ("pre", "final"):
        rows = logged(runs / f"{name}-{stage}")
        if rows:
            last = rows[-1]
            facts[stage] = {"steps": last["step"], "patterns": last["samples"], "seconds": round(last["elapsed"])}
            if stage == "pre":
                facts["learning_curve"] = learning_curve(rows, "patterns", _CURVE)
    return facts


def release(shared: Path, runs: Path, figures: dict, folder: Path = PACKAGE_FOLDER) -> None:
    """Write the three powder models; ``figures`` maps the names of `NAMES` to their cross-validated figures."""
    from ...training.checkpoint import load_checkpoint_weights
    from .evaluate import measured_search, simulated_table

    measured = MeasuredSet.rruff(shared)
    group, look_alike = measured.space_group.numpy(), measured.group.numpy()
    fold = group_folds(measured.group, measured.space_group, FOLDS)
    simulated = simulated_table(shared, runs)
    options = {"folder": folder, "overwrite": True}

    logits = _out_of_fold(runs, "powdernet", fold)
    table = measured_search(measured, runs)
    facts = _training_facts(runs, "powdernet")
    arbiter = fit_arbiter(*combine(table.tensors(logits), group, look_alike_weight(look_alike), simulated), seed=0)
    raw = cross_validated_logits(table, logits, look_alike, fold, simulated)
    points = {key: operating_point(z, group, fold) for key, z in zip(("full", "blind"), raw, strict=True)}
    write_model(arbiter.state_dict(), {
        "name": NAMES["arbiter"], "task": "powder", "title": "Arbiter between PowderNet and the lattice search",
        "architecture": "LatticeArbiter", "arguments": {}, "parameters": count(arbiter),
        "input": f"logits of {NAMES['powdernet']}, evidence of the lattice search and the profile fit",
        "operating_point": points["full"] | {"blind": points["blind"]},
        "training": {k: v for k, v in facts.items() if k != "learning_curve"} | {"simulated_patterns": len(simulated.group)},
        "figures": _figures(figures["arbiter"], "RRUFF 542, group-wise 5-fold, auto without known crystals")
        + _figures(figures["indexing"], "RRUFF 542, group-wise 5-fold, method indexing"),
        "notes": "Fitted on out-of-fold logits of measured patterns and on simulated patterns of unseen structure types.",
    }, half=False, **options)  # fmt: skip

    model = PowderNet()
    model.load_state_dict(load_checkpoint_weights(runs / "powdernet-final" / "checkpoint"))
    write_model(model.state_dict(), {
        "name": NAMES["powdernet"], "task": "powder", "title": "PowderNet: attention over lines, with the profile",
        "architecture": "PowderNet", "arguments": {}, "parameters": count(model), "default": True, "input": _INPUT,
        "operating_point": operating_point(logits, group, fold) | {"arbiter": NAMES["arbiter"], "families": NAMES["families"]},
        "training": facts,
        "figures": _figures(figures["powdernet"], "RRUFF 542, group-wise 5-fold, network without known crystals"),
        "notes": "Adapted to all 542 measured patterns; the figures are those of adaptations without look-alikes.",
    }, **options)  # fmt: skip

    release_families(shared, runs, fold, {"network": logits, "auto": raw[0]}, figures, options)
    if (runs / "npcnn-final" / "checkpoint").exists():
        _release_npcnn(runs, measured, fold, group, figures["npcnn"], options)


def release_families(shared, runs, fold, logits: dict, figures: dict, options) -> None:
    """Write FamilyNet; ``logits`` of methods are out of fold (n, 230), ``figures`` of each for (new crystals, known ones)."""
    from .evaluate import known_crystals, trust_tables
    from .families import FIRST, SECOND, family_probabilities, family_task, first_stage, two_stages
    from .family_names import shipped_facts

    task = family_task(shared, runs)
    model = two_stages(task, runs, runs / "families-final")
    seen = family_probabilities(first_stage(task, runs)[0], task.pools[0].spectrum[: len(task.measured)])
    facts, doubts = shipped_facts(task, seen)
    tables = trust_tables(shared, runs, known_crystals(shared, runs, task.measured), logits, fold)
    point = {name: fit_trust(*table[:3]) for name, table in tables.items()}
    point["confident"] = {name: _threshold(table, len(fold)) for name, table in tables.items()}
    rows = []
    for method in logits:
        new, again = figures[method]
        rows += _figures(new, f"RRUFF 542, group-wise 5-fold, method {method}")
        rows += _figures(again, f"RRUFF 542, random 5-fold (most look-alikes known), method {method}")
    count_of = {"measured": int(task.family.max()) + 1, "labels_doubted": doubts}
    count_of["library"] = len(task.names) - count_of["measured"]
    write_model(model.state_dict() | facts, {
        "name": NAMES["families"], "task": "powder", "title": "FamilyNet: recognises crystals known from training",
        "architecture": "FamilyNet", "arguments": {"families": len(task.names), "name_bytes": len(facts["text"])},
        "parameters": count(model),
        "input": "√intensity and measured range on a ln(1/d) axis", "operating_point": point,
        "training": {"families": count_of, "minutes": [FIRST, SECOND]} | _training_facts(runs, "families"), "figures": rows,
        "notes": "Group-wise figures: no measured pattern of a look-alike was known, though structures of the libraries were; "
                 "random ones: most look-alikes were. How far a recognition is believed is fitted on both, and on simulated "
                 "patterns of structure types that it did not know.",
    }, **options)  # fmt: skip


def _threshold(table: tuple, count: int) -> float:
    """Threshold of ``confident`` where known crystals are recognised: measured patterns without their look-alikes and
    simulated ones of unknown types count, not the ``count`` measured ones whose look-alikes were known."""
    rows = np.r_[:count, 2 * count : len(table[2])]
    return confidence_threshold(cross_validated_mix(*table)[rows], table[2][rows])


def _release_npcnn(runs, measured, fold, group, rows, options) -> None:
    from ...training.checkpoint import load_checkpoint_weights

    model = NPCNN()
    model.load_state_dict(load_checkpoint_weights(runs / "npcnn-final" / "checkpoint"))
    x = npcnn_input(measured.y, measured.mask)
    compact = model.compress(NPCNN_RANK, x)
    with torch.no_grad():
        same = float((model(x).argmax(1) == compact(x).argmax(1)).float().mean())
    logits = _out_of_fold(runs, "npcnn", fold)
    write_model(compact.state_dict(), {
        "name": NAMES["npcnn"], "task": "powder", "title": f"NPCNN as published, re-trained; wide layers of rank {NPCNN_RANK}",
        "architecture": "NPCNN", "arguments": {"rank": NPCNN_RANK}, "parameters": count(compact),
        "input": "8,500 points, 2θ = 5.00–89.99° for Cu, 0–1",
        "operating_point": operating_point(logits, group, fold),
        "training": _training_facts(runs, "npcnn"), "figures": _figures(rows, "RRUFF 542, group-wise 5-fold, full rank"),
        "reference": "Salgado et al., npj Comput. Mater. 9, 214 (2023)",
        "notes": f"Full network 31.4 M parameters; the compact form gives the same first answer for {100 * same:.1f} % of the "
                 "measured patterns. Trained on the same stream with the same budget as PowderNet.",
    }, **options)  # fmt: skip


def main() -> None:
    """Command line."""
    from dataclasses import asdict

    from .evaluate import measured_table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.5)
    args = parser.parse_args()
    rows = {k: asdict(v) for k, v in measured_table(args.shared, args.runs, args.minutes).items()}
    release(args.shared, args.runs, {"arbiter": rows["both"], "indexing": rows["lattice search alone (indexing)"],
                                     **{k: (rows[f"{k}: with known crystals"], rows[f"{k}, look-alikes known"])
                                        for k in ("auto", "network")},
                                     "powdernet": rows["PowderNet, + measured"], "npcnn": rows.get("NPCNN re-trained, + measured")})


if __name__ == "__main__":
    main()
