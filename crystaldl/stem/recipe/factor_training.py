"""How `FactorNet` is made: batches of patterns of like numbers of disks, losses, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..network import FactorNet
from ..reflections import features
from ..simulate.bank import DiskBank, build_bank
from .factor_stream import CleanDisks, Seen, clean_disks, generator, parts_of_like_size, seen

SHARDS, SHARD, FIRST_SHARD = 32, 250, 3000  # banks of so many crystal orientations, and the seed of the first
PATTERNS, PARTS, TIMES = 1536, 16, 2  # patterns at once, batches they are shared out to, times they are used, noise drawn anew
RATE = 1.5e-3
LEAST_V = 0.02  # |V_g| below are not told apart
EXTINCT_WEIGHT = 0.3
SMOKE_ARGUMENTS = {"width": 16, "layers": 1, "heads": 2, "pair_width": 4}


@dataclass
class FactorTask:
    """The training loop's view of the recipe (see `crystaldl.training.options.Task`).

    Attributes
    ----------
    banks : list of DiskBank
        Patterns come from one of them at a time.
    held_out : DiskBank, optional
        Of crystals kept out of training.
    """

    banks: list[DiskBank]
    held_out: DiskBank | None = None
    seed: int = 0
    patterns: int = PATTERNS
    arguments: dict = field(default_factory=dict)
    name: str = "stem-factornet"
    _clean: tuple[tuple, CleanDisks] | None = None
    _seen: tuple[tuple, tuple[Seen, list[Tensor]]] | None = None

    def model(self) -> nn.Module:
        return FactorNet(**self.arguments)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)

    def batch(self, step: int, rank: int, world: int, device) -> dict:
        number, part = divmod(step, PARTS)
        if self._seen is None or self._seen[0] != (number, rank):
            g = generator(self.seed, number, rank, 1)
            drawn = seen(self._disks(number // TIMES, rank), g)
            self._seen = (number, rank), (drawn, parts_of_like_size(drawn.reflections.valid.sum(1), PARTS, g))
        drawn, parts = self._seen[1]
        mine = drawn.part(parts[part])
        tokens, pairs = features(mine.reflections)
        out = {"tokens": tokens, "pairs": pairs, "valid": mine.reflections.valid, "v": mine.v}
        return {key: value.to(device) for key, value in out.items()}

    def _disks(self, number: int, rank: int) -> CleanDisks:
        if self._clean is None or self._clean[0] != (number, rank):
            g = generator(self.seed, number, rank, 0)
            bank = self.banks[int(torch.randint(len(self.banks), (1,), generator=g))]
            self._clean = (number, rank), clean_disks(bank, self.patterns, g)
        return self._clean[1]

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        return factor_loss(model(batch["tokens"], batch["pairs"], batch["valid"]), batch["v"], batch["valid"])

    def evaluate(self, model: nn.Module, device) -> dict[str, float]:
        """Rank correlation with |V_g| in patterns of the held-out bank, by thickness."""
        if self.held_out is None:
            return {}
        drawn = seen(clean_disks(self.held_out, 512, generator(91), held_out=True), generator(92))
        ranks = []
        with torch.no_grad():
            for rows in torch.argsort(drawn.reflections.valid.sum(1)).split(32):
                mine = drawn.part(rows)
                r = mine.reflections
                value = model(*(a.to(device) for a in (*features(r), r.valid))).cpu()
                ranks.append(torch.stack([rank_correlation(value, mine.v, asked(mine.v, r.valid)), mine.thickness]))
        rank, thickness = torch.cat(ranks, 1)
        limits = {"rank_7": (0, 7), "rank_15": (7, 15), "rank_30": (15, 30), "rank": (0, 30)}
        figures = {key: rank[(thickness > low) & (thickness <= high)] for key, (low, high) in limits.items()}
        return {key: float(value.nanmean()) for key, value in figures.items()}


def asked(v: Tensor, valid: Tensor) -> Tensor:
    """Disks (B, N) that have a rank: reflections that are not extinct."""
    out = valid & (v > 0)
    out[:, 0] = False
    return out


def rank_correlation(value: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """(B,) correlation of values with the ranks of |V_g| over some disks (B, N): what Spearman's follows."""
    ranks = torch.where(rows, v, torch.inf).argsort(1).argsort(1).float()
    count = rows.sum(1, keepdim=True).clamp_min(1)
    a, b = (torch.where(rows, t, 0.0) for t in (value, ranks))
    a, b = (torch.where(rows, t - t.sum(1, keepdim=True) / count, 0.0) for t in (a, b))
    return (a * b).sum(1) / torch.sqrt((a**2).sum(1) * (b**2).sum(1) + 1e-6)


def factor_loss(value: Tensor, v: Tensor, valid: Tensor) -> tuple[Tensor, dict]:
    """Want of correlation with the ranks of |V_g|, and Huber's loss of its logarithm, in which extinct ones count a little."""
    rows = asked(v, valid)
    rank = rank_correlation(value, v, rows)[rows.sum(1) > 2].mean()
    weight = torch.where(v > 0, 1.0, EXTINCT_WEIGHT) * valid
    weight = torch.cat([torch.zeros_like(weight[:, :1]), weight[:, 1:]], 1)
    error = F.huber_loss(value, v.clamp_min(LEAST_V).log(), reduction="none", delta=0.5)
    error = (weight * error).sum() / weight.sum().clamp_min(1)
    return 1 - rank + 0.5 * error, {"rank": rank.detach(), "log_v": error.detach()}


def factor_task(size: str, folder: Path, seed: int, bank_in) -> FactorTask:
    """The task at size ``"smoke"`` or ``"full"``; ``bank_in(folder, count, seed, evaluation)`` keeps banks in a folder."""
    if size == "smoke":
        banks = [build_bank(12, seed, beams=40)], build_bank(4, seed, evaluation=True, beams=40)
        return FactorTask(*banks, seed, 96, SMOKE_ARGUMENTS)
    banks = [bank_in(folder, SHARD, FIRST_SHARD + SHARDS * seed + i) for i in range(SHARDS)]
    return FactorTask(banks, bank_in(folder, SHARD, 1, evaluation=True), seed)
