"""Group-wise cross-validation on measured patterns, and calibration.

The question is how a model does on measured patterns without look-alikes in its training. For every fold a network is
adapted on the other folds and predicts this one; calibration for a fold is fitted on the other folds' predictions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize

from ...physics.symmetry import SYSTEM_OF_GROUP
from ..frequencies import GROUP_FREQUENCY
from ..prepare import prepare
from .measured import MeasuredSet, group_folds
from .training import NETWORKS, PowderTask, Settings, adaptation_settings, predict_logits, training_prior

log = logging.getLogger(__name__)
FOLDS = 5


# --------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Figures:
    """Accuracy of probabilities against truth; all are fractions."""

    system: float  # crystal system, top-1
    group: float  # space group, top-1
    top5: float  # space group among the five most probable
    macro_f1: float  # of the crystal system, over the systems present
    ece_system: float  # expected calibration error, 10 bins of equal count
    ece_group: float
    system_at_half: float  # crystal-system accuracy over the most confident half
    group_at_half: float
    count: int


def _ece(confidence, correct, bins: int = 10) -> float:
    order = np.argsort(confidence)
    return float(
        sum(abs(confidence[b].mean() - correct[b].mean()) * len(b) for b in np.array_split(order, bins) if len(b))
        / len(order)
    )


def system_probabilities(p: np.ndarray) -> np.ndarray:
    """(n, 230) → (n, 7) sums over each crystal system."""
    out = np.zeros((len(p), 7))
    np.add.at(out.T, SYSTEM_OF_GROUP, p.T)
    return out


def figures(p: np.ndarray, group: np.ndarray) -> Figures:
    """Figures of probabilities ``p`` (n, 230) for true space groups ``group`` (n,), 1…230."""
    system, truth = system_probabilities(p), SYSTEM_OF_GROUP[group - 1]
    guess = system.argmax(1)
    order = np.argsort(-p, axis=1)[:, :5] + 1
    f1 = []
    for s in np.unique(truth):
        tp = np.sum((guess == s) & (truth == s))
        f1.append(2 * tp / max(np.sum(guess == s) + np.sum(truth == s), 1))
    half = len(p) // 2
    best_system, best_group = np.argsort(-system.max(1))[:half], np.argsort(-p.max(1))[:half]
    right_system, right_group = guess == truth, order[:, 0] == group
    return Figures(
        float(right_system.mean()),
        float(right_group.mean()),
        float((order == group[:, None]).any(1).mean()),
        float(np.mean(f1)),
        _ece(system.max(1), right_system),
        _ece(p.max(1), right_group),
        float(right_system[best_system].mean()),
        float(right_group[best_group].mean()),
        len(p),
    )


# --------------------------------------------------------------------------------------------- calibration


def natural_log_ratio() -> np.ndarray:
    """ln(natural / training) share of each space group: what the stream over-represents so that no group is unknown."""
    natural = np.full(230, 0.15)
    for number, weight in GROUP_FREQUENCY.items():
        natural[number - 1] = max(weight, 0.15)
    training = training_prior()
    # keep the training stream's balance of crystal systems: only the frequencies inside each system change
    totals = np.bincount(SYSTEM_OF_GROUP, weights=natural)
    share = np.bincount(SYSTEM_OF_GROUP, weights=training)
    natural = natural * (share / totals)[SYSTEM_OF_GROUP]
    return np.log(natural / training)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def fit_calibration(logits: np.ndarray, group: np.ndarray) -> dict:
    """Temperature and prior power that maximise the likelihood of held-out labels (space group and crystal system).

    Returns the entries of a card's operating point: ``temperature``, ``prior_power``, ``log_prior``.
    """
    ratio = natural_log_ratio()
    truth = SYSTEM_OF_GROUP[group - 1]

    def loss(x):
        p = softmax(logits / np.exp(x[0]) + x[1] * ratio)
        rows = np.arange(len(p))
        nll = (
            -np.log(p[rows, group - 1].clip(1e-9)).mean()
            - np.log(system_probabilities(p)[rows, truth].clip(1e-9)).mean()
        )
        return nll + 0.01 * x[0] ** 2 + 0.02 * x[1] ** 2

    best = minimize(loss, [0.2, 0.0], method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-5}).x
    power = float(np.clip(best[1], -0.2, 1.0))
    return {
        "temperature": float(np.exp(best[0])),
        "prior_power": power,
        "log_prior": [round(float(v), 4) for v in power * ratio],
    }


def apply_calibration(logits: np.ndarray, point: dict) -> np.ndarray:
    """Probabilities from logits and an operating point."""
    return softmax(logits / point["temperature"] + np.asarray(point["log_prior"]))


def calibrated_out_of_fold(logits: np.ndarray, group: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold logits to probabilities, each fold with a calibration fitted on the others."""
    p = np.empty_like(logits)
    for k in np.unique(fold):
        inside = fold == k
        p[inside] = apply_calibration(logits[inside], fit_calibration(logits[~inside], group[~inside]))
    return p


# --------------------------------------------------------------------------------------------- methods


def out_of_fold_logits(
    network: str,
    init: Path,
    measured: MeasuredSet,
    lines,
    out: Path,
    minutes: float,
    settings: Settings | None = None,
    threads: int | None = None,
    folds: int = FOLDS,
) -> np.ndarray:
    """Adapt ``network`` from the pretrained weights ``init`` on all folds but one, in turn; logits (n, 230).

    Each fold's logits are kept under ``out``, so that an interrupted run goes on where it stopped.
    """
    from ...training.loop import TrainOptions, load_checkpoint_weights, train

    settings = settings or adaptation_settings(network)
    fold = group_folds(measured.group, measured.space_group, folds)
    logits = np.zeros((len(measured), 230), np.float32)
    out.mkdir(parents=True, exist_ok=True)
    for k in range(folds):
        path = out / f"{network}-fold{k}.npy"
        inside = torch.as_tensor(fold == k)
        if not path.is_file():
            task = PowderTask(
                replace(settings, seed=settings.seed + 100 + k),
                lines,
                None,
                measured.subset(~inside),
                measured.subset(inside),
            )
            result = train(
                task,
                TrainOptions(
                    out=out / f"{network}-fold{k}",
                    minutes=minutes,
                    device="cpu",
                    init=init,
                    threads=threads,
                    warmup_steps=50,
                    ema_decay=0.995,
                    evaluate_every_minutes=2.0,
                    progress=False,
                    checkpoint_every_minutes=1e3,
                ),
            )
            model = NETWORKS[network](**settings.arguments)
            model.load_state_dict(load_checkpoint_weights(result.checkpoint))
            part = measured.subset(inside)
            np.save(path, predict_logits(model.eval(), network, part.y, part.mask, part.ratio))
            log.info("fold %d of %s: %s", k, network, result.figures)
        logits[inside.numpy()] = np.load(path)
    return logits


def nearest_neighbour(measured: MeasuredSet, fold: np.ndarray) -> np.ndarray:
    """1-nearest neighbour by correlation of the √intensity, ln(1/d) spectrum: one-hot probabilities (n, 230).

    Smoothed by 2 % in d (14 bins), the best of several widths tried: solid solutions shift the lines of look-alikes.
    """
    x = gaussian_filter1d(prepare(measured.y, measured.mask, measured.ratio).spectrum[:, 0].numpy(), 14.0, axis=1)
    x = x - x.mean(1, keepdims=True)
    x = x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-9)
    group = measured.space_group.numpy()
    p = np.zeros((len(x), 230))
    for k in np.unique(fold):
        inside = np.flatnonzero(fold == k)
        rest = np.flatnonzero(fold != k)
        similarity = x[inside] @ x[rest].T
        best = rest[similarity.argmax(1)]
        p[inside, group[best] - 1] = 1.0
    return p


def format_table(rows: dict[str, Figures]) -> str:
    """Figures side by side, in percent."""
    head = ("method", "system", "group", "top-5", "macro-F1", "ECE sys", "ECE grp", "sys@50%", "grp@50%", "n")
    lines = [" ".join([f"{head[0]:<34}", *(f"{h:>8}" for h in head[1:])])]
    for name, f in rows.items():
        values = (f.system, f.group, f.top5, f.macro_f1, f.ece_system, f.ece_group, f.system_at_half, f.group_at_half)
        lines.append(" ".join([f"{name:<34}", *(f"{100 * v:8.1f}" for v in values), f"{f.count:8d}"]))
    return "\n".join(lines)
