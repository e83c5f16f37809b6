"""How the shipped powder models are made: data stream, losses, schedule, evaluation, calibration.

Two stages. *Pretraining* on simulated patterns only; *adaptation* with a share of measured patterns, strongly
augmented. PowderNet and NPCNN go through the same two stages on the same stream with the same budget.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...physics.symmetry import SYSTEM_OF_GROUP
from ..frequencies import group_shares
from ..network import NPCNN, PowderNet, level_log_probabilities, levels
from ..prepare import Prepared, npcnn_input, prepare
from ..simulate import DEFAULT_CONDITIONS, Conditions, LineLibrary, simulate
from .measured import MeasuredSet, augment

log = logging.getLogger(__name__)

# Share of the crystal systems in training: minerals are rich in low symmetry, compounds in high.
SYSTEM_SHARE = np.array([0.11, 0.29, 0.22, 0.12, 0.11, 0.07, 0.08])
NETWORKS = {"powdernet": PowderNet, "npcnn": NPCNN}


def training_prior() -> np.ndarray:
    """Share of each space group among training patterns, (230,)."""
    prior = group_shares()
    totals = np.bincount(SYSTEM_OF_GROUP, weights=prior, minlength=7)
    prior = prior * (SYSTEM_SHARE / totals)[SYSTEM_OF_GROUP]
    return prior / prior.sum()


@dataclass
class Settings:
    """Size of a training run of one powder network."""

    network: str = "powdernet"
    arguments: dict = field(default_factory=dict)
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    measured_share: float = 0.0  # of each batch, in the adaptation stage
    augment_strength: float = 1.0
    seed: int = 0
    evaluation_patterns: int = 500


def inputs_for(network: str, y: Tensor, mask: Tensor, ratio: Tensor) -> dict[str, Tensor]:
    """What the named network reads, from patterns on the common axis."""
    if network == "npcnn":
        return {"pattern": npcnn_input(y, mask)}
    p: Prepared = prepare(y, mask, ratio)
    return {"spectrum": p.spectrum, "peaks": p.peaks, "peak_mask": p.peak_mask, "limits": p.limits}


def space_group_logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Logits (B, 230) of either network."""
    out = model(**inputs)
    return out["logits"] if isinstance(out, dict) else out


class PowderTask:
    """The training loop's view of the powder recipe (see `crystaldl.training.loop.Task`)."""

    def __init__(
        self,
        settings: Settings,
        lines: LineLibrary,
        held_out: LineLibrary | None = None,
        measured: MeasuredSet | None = None,
        validation: MeasuredSet | None = None,
        conditions: Conditions = DEFAULT_CONDITIONS,
    ):
        self.settings, self.conditions = settings, conditions
        self.name = f"powder-{settings.network}"
        self.lines, self.held_out, self.measured, self.validation = lines, held_out, measured, validation
        self._q, self._intensity = torch.as_tensor(lines.q), torch.as_tensor(lines.intensity)
        group = lines.space_group.astype(int)
        present = np.bincount(group, minlength=231)[1:]
        weight = np.divide(training_prior(), present, out=np.zeros(230), where=present > 0)[group - 1]
        self._weight = np.cumsum(weight / weight.sum())
        self._levels = levels()
        if measured is not None:
            # a group of n look-alikes counts as sqrt(n): neither one vote each nor one vote together
            counts = torch.bincount(measured.group, minlength=int(measured.group.max()) + 1)
            w = counts[measured.group].double() ** -0.5
            self._measured_weight = (w / w.sum()).numpy()

    # ------------------------------------------------------------------ what the loop calls

    def model(self) -> nn.Module:
        return NETWORKS[self.settings.network](**self.settings.arguments)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        decay = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        return torch.optim.AdamW(
            [{"params": decay, "weight_decay": self.settings.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=self.settings.learning_rate,
            betas=(0.9, 0.98),
        )

    def batch(self, step: int, rank: int, world: int, device) -> dict:
        s = self.settings
        rng = np.random.default_rng((s.seed, step, rank))
        g = torch.Generator(device=device).manual_seed(int(rng.integers(2**62)))
        real = int(round(s.batch_size * s.measured_share)) if self.measured is not None else 0
        y, mask, ratio, labels, volume, impurity = self._simulated(s.batch_size - real, rng, g, device)
        if real:
            pick = torch.as_tensor(rng.choice(len(self.measured), real, p=self._measured_weight))
            part = self.measured.subset(pick)
            ym, mm = augment(part.y.to(device), part.mask.to(device), g, s.augment_strength)
            y, mask = torch.cat([y, ym]), torch.cat([mask, mm])
            ratio = torch.cat([ratio, part.ratio.to(device)])
            labels = torch.cat([labels, part.space_group.to(device) - 1])
            missing = torch.full((real,), torch.nan, device=device)
            volume, impurity = torch.cat([volume, missing]), torch.cat([impurity, missing])
        return {
            "labels": labels,
            "ln_volume": volume,
            "impurity": impurity,
            "inputs": inputs_for(s.network, y, mask, ratio),
        }

    def _simulated(self, count, rng, g, device):
        pick = np.searchsorted(self._weight, rng.random(count)).clip(0, len(self.lines) - 1)
        other = rng.integers(0, len(self.lines), count)
        second = (self._q[other, :96].to(device), self._intensity[other, :96].to(device))
        p = simulate(self._q[pick].to(device), self._intensity[pick].to(device), g, self.conditions, second)
        labels = torch.as_tensor(self.lines.space_group[pick].astype(np.int64) - 1).to(device)
        volume = torch.log(torch.as_tensor(self.lines.volume[pick])).to(device)
        return p.y, p.mask, p.doublet_ratio, labels, volume, (p.second_share > 0.03).float()

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        out = model(**batch["inputs"])
        logits = out["logits"] if isinstance(out, dict) else out
        labels = batch["labels"]
        log_p = F.log_softmax(logits, 1)
        terms = {"space_group": F.nll_loss(log_p, labels)}
        for name, count in (("system", 7), ("bravais", 14), ("extinction", 99)):
            level = getattr(self._levels, name).to(labels.device)
            terms[name] = F.nll_loss(level_log_probabilities(log_p, level, count), level[labels])
        total = terms["space_group"] + 0.4 * terms["system"] + 0.3 * terms["bravais"] + 0.3 * terms["extinction"]
        if isinstance(out, dict):
            known = torch.isfinite(batch["ln_volume"])
            terms["volume"] = F.smooth_l1_loss(out["ln_volume"][known], batch["ln_volume"][known])
            terms["impurity"] = F.binary_cross_entropy_with_logits(out["impurity"][known], batch["impurity"][known])
            total = total + 0.3 * terms["volume"] + 0.1 * terms["impurity"]
        return total, {k: v.detach() for k, v in terms.items()}

    def evaluate(self, model: nn.Module, device) -> dict[str, float]:
        figures = {}
        if self.held_out is not None:
            patterns, group = held_out_patterns(self.held_out, self.settings.evaluation_patterns, self.conditions)
            figures |= _accuracy(
                "simulated", self._predict(model, device, patterns.y, patterns.mask, patterns.doublet_ratio), group
            )
        if self.validation is not None:
            v = self.validation
            figures |= _accuracy("measured", self._predict(model, device, v.y, v.mask, v.ratio), v.space_group.numpy())
        return figures

    def _predict(self, model, device, y, mask, ratio) -> np.ndarray:
        return predict_logits(model, self.settings.network, y, mask, ratio, device)


@torch.no_grad()
def predict_logits(model, network: str, y, mask, ratio, device="cpu", batch: int = 128) -> np.ndarray:
    """Logits (n, 230) for patterns on the common axis."""
    out = []
    for i in range(0, len(y), batch):
        s = slice(i, i + batch)
        inputs = inputs_for(network, y[s].to(device), mask[s].to(device), ratio[s].to(device))
        out.append(space_group_logits(model, inputs).float().cpu())
    return torch.cat(out).numpy()


def held_out_patterns(lines: LineLibrary, count: int, conditions: Conditions = DEFAULT_CONDITIONS, seed: int = 77):
    """A fixed set of simulated patterns of structure types kept out of training, and their space groups."""
    rng = np.random.default_rng(seed)
    pick = rng.choice(len(lines), min(count, len(lines)), replace=False)
    g = torch.Generator().manual_seed(seed)
    patterns = simulate(torch.as_tensor(lines.q[pick]), torch.as_tensor(lines.intensity[pick]), g, conditions)
    return patterns, lines.space_group[pick].astype(int)


def _accuracy(prefix: str, logits: np.ndarray, group: np.ndarray) -> dict[str, float]:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    system = np.zeros((len(p), 7))
    np.add.at(system.T, SYSTEM_OF_GROUP, p.T)
    truth = SYSTEM_OF_GROUP[group - 1]
    top5 = np.argsort(-p, axis=1)[:, :5] + 1
    return {
        f"{prefix}_system": float((system.argmax(1) == truth).mean()),
        f"{prefix}_group": float((top5[:, 0] == group).mean()),
        f"{prefix}_top5": float((top5 == group[:, None]).any(1).mean()),
    }


# --------------------------------------------------------------------------------------------- command line

#: sizes of `crystaldl train powder`: number of chunks of 5,000 crystals, network arguments, batch
FULL_CHUNKS = 16
SMOKE_ARGUMENTS = {"dim": 32, "layers": 1, "heads": 2, "channels": (8, 8, 16, 32)}


def smoke_lines(count: int = 200, seed: int = 0) -> LineLibrary:
    """Lines of a few random crystals of common groups, made in seconds: for smoke runs and tests."""
    from .stream import CrystalSource, build_lines

    return build_lines(CrystalSource([], group_shares()), count, seed, random_only=True)


def task_for(network: str, size: str, out: Path, shared: Path | None, seed: int = 0, adapt: bool = False) -> PowderTask:
    """The training task of one network: crystals (cached under ``out``), measured patterns where ``adapt`` asks for them."""
    import os

    from .stream import training_lines

    if network not in NETWORKS:
        raise ValueError(f"model is {network!r}; expected one of {', '.join(NETWORKS)}.")
    rate = {"powdernet": 1.5e-3, "npcnn": 3e-4}[network]
    if size == "smoke":
        arguments = SMOKE_ARGUMENTS if network == "powdernet" else {}
        lines = smoke_lines(seed=seed)
        return PowderTask(Settings(network, arguments, 16, rate, seed=seed, evaluation_patterns=64), lines, lines)
    workers = os.cpu_count() or 1
    lines = training_lines(out / "lines", shared, FULL_CHUNKS, seed=seed, workers=workers)
    held = training_lines(out / "lines", shared, 1, 2500, seed=seed, held_out=True, library_only=True)
    measured = MeasuredSet.rruff(shared) if adapt or (shared and has_measured(shared)) else None
    settings = adaptation_settings(network, seed) if adapt else Settings(network, learning_rate=rate, seed=seed)
    return PowderTask(settings, lines, held, measured if adapt else None, None if adapt else measured)


def has_measured(shared) -> bool:
    """Whether a shared folder holds the measured development set."""
    from .measured import RRUFF_FILE

    return Path(shared).joinpath(*RRUFF_FILE).is_file()


def adaptation_settings(network: str, seed: int = 0) -> Settings:
    """The second stage: two fifths of each batch measured, lower learning rate."""
    rate = {"powdernet": 6e-4, "npcnn": 1.5e-4}[network]
    return Settings(network, learning_rate=rate, measured_share=0.4, seed=seed)


def train_command(args) -> int:
    """``crystaldl train powder``: pretraining on simulated patterns, or adaptation to measured ones (``--adapt CKPT``)."""
    from ...training.checkpoint import read_state
    from ...training.loop import TrainOptions, train

    if args.resume is not None:
        read_state(args.resume)  # says what is wrong before minutes of preparation
    out, shared = Path(args.out), args.shared
    if shared is not None and not Path(shared).is_dir():
        raise FileNotFoundError(f"shared is {str(shared)!r}, which is not a directory.")
    adapt = getattr(args, "adapt", None)
    if adapt is not None and (shared is None or not has_measured(shared)):
        raise ValueError("adapt needs measured patterns: give --shared a directory with powder/rruff_measured.npz.")
    task = task_for(args.model or "powdernet", args.size, out, shared, args.seed, adapt is not None)
    steps = args.max_steps
    if steps is None and args.minutes is None:
        steps = 60 if args.size == "smoke" else None
    minutes = args.minutes if args.minutes or steps else 9.0
    options = TrainOptions(
        out=out,
        minutes=minutes,
        max_steps=steps,
        session_minutes=args.session_minutes,
        device=args.device,
        resume=args.resume,
        init=adapt,
        seed=args.seed,
        threads=args.threads,
        warmup_steps=20 if args.size == "smoke" else 300,
        ema_decay=0.998,
    )
    result = train(task, options)
    log.info(
        "%s: %d steps, checkpoint in %s", "finished" if result.finished else "stopped", result.steps, result.checkpoint
    )
    return 0
