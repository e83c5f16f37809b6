"""How the 4D-STEM networks are made: stream, losses, schedule, evaluation."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..disks import find_disks
from ..network import DiskNet, FCUNet
from ..options import DiskOptions
from ..simulate.bank import DiskBank, build_bank
from .factor_training import FactorTask, factor_task
from .stream import (
    StreamOptions,
    disknet_batch,
    draw_fcunet_scene,
    draw_patterns,
    draw_scene,
    fcunet_batch,
    mixed,
)  # fmt: skip

log = logging.getLogger(__name__)

NETWORKS = {"disknet": DiskNet, "fcunet": FCUNet}
FULL_BANK, SMOKE_BANK = 2000, 12
EVALUATION_BANK, EVALUATION_BATCHES = 120, 6
SMOKE_ARGUMENTS = {
    "disknet": {"widths": (8, 8, 16, 16)},
    "fcunet": {"filters": 2, "depth": 1, "levels": 4, "widest": 16, "size": 96},
}
# FCU-Net in a compact width: 1.4 M parameters; the published one has at least seven times as many
FULL_ARGUMENTS = {"disknet": {}, "fcunet": {"filters": 4, "dropout": 0.0, "widest": 64, "size": 128}}
BATCH = {"disknet": 16, "fcunet": 4}
RATES = {"disknet": 2e-3, "fcunet": 5e-3}
SCENES = 4  # of a batch


@dataclass
class Settings:
    """Size of a training run."""

    network: str = "disknet"
    arguments: dict = field(default_factory=dict)
    stream: StreamOptions = field(default_factory=StreamOptions)
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    evaluation_batches: int = EVALUATION_BATCHES


class StemTask:
    """The training loop's view of the recipe (see `crystaldl.training.options.Task`)."""

    def __init__(self, settings: Settings, bank: DiskBank, held_out: DiskBank | None = None):
        self.settings, self.bank, self.held_out = settings, bank, held_out
        self.name = f"stem-{settings.network}"
        self._on: dict[str, DiskBank] = {}

    def _bank(self, device) -> DiskBank:
        key = str(device)
        if key not in self._on:
            self._on[key] = self.bank.to(device)
        return self._on[key]

    def _scene_of(self):
        return draw_fcunet_scene if self.settings.network == "fcunet" else draw_scene

    # ------------------------------------------------------------------ what the loop calls

    def model(self) -> nn.Module:
        module = NETWORKS[self.settings.network](**self.settings.arguments)
        return module.to(memory_format=torch.channels_last) if self.settings.network == "disknet" else module

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        decay = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": self.settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.settings.learning_rate, betas=(0.9, 0.99))

    def batch(self, step: int, rank: int, world: int, device) -> dict:
        parts, fcunet = [], self.settings.network == "fcunet"
        for number in range(self.settings.stream.scenes):
            options, at = self.settings.stream.of_scene(step, number)
            patterns = draw_patterns(self._bank(device), options, at, rank, device, scene_of=self._scene_of())
            parts.append(fcunet_batch(patterns, options.size, device) if fcunet else disknet_batch(patterns, device))
        if fcunet:
            return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        return mixed(parts)

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        if self.settings.network == "fcunet":
            return fcunet_loss(model(batch["pattern"], batch["probe"]), batch["image"])
        return disknet_loss(model(batch["inputs"]), batch)

    def evaluate(self, model: nn.Module, device) -> dict[str, float]:
        if self.held_out is None:
            return {}
        options = StreamOptions(self.settings.stream.size, 16, seed=91)
        batches = self.settings.evaluation_batches
        return detection_figures(model, self.held_out.to(device), options, batches, device, self._scene_of())


def disknet_loss(out: dict[str, Tensor], batch: dict) -> tuple[Tensor, dict]:
    """Penalty-reduced focal loss of the map (Law & Deng, ECCV 2018), Laplace likelihood of offsets, L1 of ln |V_g|."""
    target, logit = batch["heat"], out["heat"]
    p = torch.sigmoid(logit)
    at_centre = target == 1
    positive = -((1 - p) ** 2) * F.logsigmoid(logit)
    negative = -((1 - target) ** 4) * p**2 * F.logsigmoid(-logit)
    count = at_centre.sum().clamp_min(1)
    heat = (batch["weight"] * torch.where(at_centre, positive, negative)).sum() / count
    at = tuple(batch["index"].T)
    log_sigma = out["log_sigma"][at]
    miss = (torch.stack([out["offset"][:, i][at] for i in (0, 1)], 1) - batch["offset"]).abs().sum(1)
    k = max(1, len(miss))
    # of a Laplace distribution in each coordinate, sigma² = 2 b²
    offset = (miss * torch.exp(-log_sigma) * 2**0.5 + 2 * log_sigma).sum() / k + miss.sum() / k
    known = torch.isfinite(batch["log_v"])
    v_error = (out["log_v"][at][known] - batch["log_v"][known]).abs().sum() / known.sum().clamp_min(1)
    total = heat + 0.2 * offset + 0.4 * v_error
    terms = {"heat": heat, "offset": offset, "miss": miss.sum() / (2 * k), "v": v_error}
    return total, {name: value.detach() for name, value in terms.items()}


def fcunet_loss(image: Tensor, target: Tensor) -> tuple[Tensor, dict]:
    """Mean squared error of the image (as published), in units of its own mean square."""
    error = F.mse_loss(image, target)
    return error / target.square().mean().clamp_min(1e-12), {"mse": error.detach()}


def detection_figures(
    model, bank: DiskBank, options: StreamOptions, batches: int, device, scene_of=draw_scene
) -> dict[str, float]:
    """Recall, precision, position errors (px) and correlation with ln |V_g| on simulated patterns kept out of training."""
    found = hits = truths = 0
    errors, proposed, ranks = [], [], []
    for step in range(batches):
        p = draw_patterns(bank, options, step, 0, device, held_out=True, scene_of=scene_of)
        for refine, errors_to in ((False, proposed), (True, errors)):
            disks = find_disks(
                p.patterns.cpu().numpy(), p.probe, network=model, device=str(device), options=DiskOptions(refine=refine)
            )
            m = match(disks, p)
            errors_to += m["error"]
            if not refine:
                found, hits, truths = found + m["found"], hits + m["hits"], truths + m["truths"]
                ranks += m["rank"]
    figures = {"recall": hits / max(1, truths), "precision": hits / max(1, found)}
    for name, values in (("proposed", proposed), ("refined", errors)):
        if values:
            e = torch.tensor(values)
            figures |= {f"{name}_median": float(e.median()), f"{name}_p95": float(e.quantile(0.95))}
    if ranks:
        figures["rank_v"] = float(torch.tensor(ranks).mean())
    return figures


def match(disks, patterns, tolerance: float = 0.5) -> dict:
    """Compare disks with the truth.

    A found disk is a hit within ``tolerance`` radii of a visible centre; near an ignored one it does not count.

    Returns
    -------
    dict
        ``found``, ``hits``, ``truths`` (numbers), ``error`` (px, of each hit), ``rank`` (Spearman's correlation of
        intensity and |V_g| of each pattern with at least 5 hits).
    """
    from scipy.spatial import cKDTree
    from scipy.stats import spearmanr

    reach = tolerance * patterns.probe.radius
    out = {"found": 0, "hits": 0, "truths": 0, "error": [], "rank": []}
    for i in range(disks.n_patterns):
        mine = disks.of(i)
        visible = patterns.visible[i].cpu().numpy()
        centres = patterns.centres[i].cpu().numpy()
        v = patterns.v[i].cpu().numpy()
        out["truths"] += int(visible.sum())
        if len(mine) == 0:
            continue
        real = patterns.visible[i] | patterns.ignore[i]
        tree_of = {}
        for name, mask in (("visible", visible), ("real", real.cpu().numpy())):
            points = centres[mask] if mask.any() else [[1e9, 1e9]]
            tree_of[name] = cKDTree(points)
        distance, which = tree_of["visible"].query(mine.positions)
        anywhere, _ = tree_of["real"].query(mine.positions)
        hit = distance <= reach
        out["hits"] += int(len(set(which[hit])))
        out["found"] += int((hit | (anywhere > 2 * reach)).sum())
        out["error"] += distance[hit].tolist()
        truth = v[visible][which[hit]]
        beam = (which[hit] == 0) & visible[0]  # 000 is first, and not a reflection
        if (~beam).sum() >= 5:
            rank = spearmanr(mine.intensity[hit][~beam], truth[~beam]).statistic
            out["rank"] += [float(rank)] if rank == rank else []
    return out


# --------------------------------------------------------------------------------------------- command line


@torch.no_grad()
def without_radius(network: DiskNet, task: StemTask, batches: int = 12) -> DiskNet:
    """A start for training on mixed scenes from a DiskNet trained on batches of one scene each.

    Within such batches the radius channel is constant, so that batch normalisation cancels it: its weights mean nothing. They
    are set to 0, and the batch statistics are taken anew from mixed batches.
    """
    network.stem[0].weight[:, -1] = 0
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momentum = [m.momentum for m in norms]
    for m in norms:
        m.momentum = None  # cumulative mean
        m.reset_running_stats()
    network.train()
    for step in range(batches):
        network(task.batch(step, 0, 1, torch.device("cpu"))["inputs"])
    for m, value in zip(norms, momentum, strict=True):
        m.momentum = value
    return network.eval()


def bank_in(folder: Path, count: int, seed: int, evaluation: bool = False) -> DiskBank:
    """The bank of that size and seed, computed once and kept in ``folder``."""
    path = Path(folder) / f"disks-{'held-out' if evaluation else 'train'}-{count}-{seed}.safetensors"
    if path.is_file():
        return DiskBank.load(path)
    log.info("computing dynamical disks of %d crystal orientations", count)
    bank = build_bank(count, seed, evaluation=evaluation)
    bank.save(path)
    return bank


def task_for(network: str, size: str, out: Path, seed: int = 0, bank: int | None = None) -> StemTask | FactorTask:
    """The training task of a network at size ``"smoke"`` or ``"full"``; banks are kept under ``out``."""
    if network not in (*NETWORKS, "factornet"):
        raise ValueError(f"model is {network!r}; expected one of {', '.join(NETWORKS)}, factornet.")
    if size not in ("smoke", "full"):
        raise ValueError(f"size is {size!r}; expected 'smoke' or 'full'.")
    if network == "factornet":
        return factor_task(size, out / "banks", seed, bank_in)
    choice: dict[str, dict] = SMOKE_ARGUMENTS if size == "smoke" else FULL_ARGUMENTS
    rate, arguments = RATES[network], choice[network]
    pixels = arguments.get("size", 96 if size == "smoke" else 160)
    if size == "smoke":
        stream = StreamOptions(pixels, 4, seed, scenes=2)
        settings = Settings(network, arguments, stream, rate, evaluation_batches=1)
        return StemTask(settings, build_bank(SMOKE_BANK, seed, beams=40), build_bank(4, seed, evaluation=True, beams=40))
    settings = Settings(network, arguments, StreamOptions(pixels, BATCH[network], seed, SCENES), rate)
    train = bank_in(out / "banks", bank or FULL_BANK, seed)
    return StemTask(settings, train, bank_in(out / "banks", EVALUATION_BANK, 1, evaluation=True))


def train_command(args) -> int:
    """``crystaldl train stem``: train one of the networks on simulated patterns."""
    from ...training.checkpoint import read_state
    from ...training.loop import TrainOptions, train

    if args.resume is not None:
        read_state(args.resume)  # says what is wrong before minutes of preparation
    out = Path(args.out)
    task = task_for(args.model or "disknet", args.size, out, args.seed)
    steps = args.max_steps
    if steps is None and args.minutes is None:
        steps = 60 if args.size == "smoke" else None
    options = TrainOptions(
        out=out,
        minutes=args.minutes if args.minutes or steps else 9.0,
        max_steps=steps,
        session_minutes=args.session_minutes,
        device=args.device,
        resume=args.resume,
        seed=args.seed,
        threads=args.threads,
        warmup_steps=20 if args.size == "smoke" else 200,
        ema_decay=0.998,
        clip_norm=5.0,
    )
    result = train(task, options)
    log.info(
        "%s: %d steps, checkpoint in %s", "finished" if result.finished else "stopped", result.steps, result.checkpoint
    )
    return 0
