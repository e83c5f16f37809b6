"""How the arbiter's weights are made: fitted on measured patterns the network was not adapted to, and on simulated ones.

The arbiter is small; its inputs are a network's logits and the evidence of the lattice search. For measured patterns the
logits come from networks adapted without their look-alikes (out of fold), so that it learns how far to trust them.
"""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ...physics.symmetry import SYSTEM_OF_GROUP
from ...storage.atomic import replacing
from ..indexing.evidence import ARRAYS, gather_evidence
from ..indexing.known_cells import foreign_share
from ..network import LatticeArbiter, level_log_probabilities, levels
from ..prepare import normalise
from .training import training_prior

STEPS, BATCH, BLIND_SHARE, MEMBERS = 600, 512, 0.3, 3


@dataclass
class SearchTable:
    """Evidence of many patterns and their true space groups (n,), 1…230.

    ``foreign`` (n,) as `foreign_share` gives it; ``state`` says of what code and patterns the table is.
    """

    scores: np.ndarray
    profile: np.ndarray
    facts: np.ndarray
    absences: np.ndarray
    group: np.ndarray
    foreign: np.ndarray | None = None
    logits: np.ndarray | None = None
    state: np.ndarray | None = None

    def save(self, path) -> None:
        known = {
            k: v for k, v in vars(self).items() if v is not None
        }  # logits may be missing: no object arrays in files
        with replacing(path) as beside, beside.open("wb") as stream:
            np.savez_compressed(stream, **known)

    @classmethod
    def load(cls, path) -> SearchTable:
        with np.load(Path(path), allow_pickle=False) as data:
            return cls(**{k: data[k] for k in data.files})

    def subset(self, index) -> SearchTable:
        known = {k: v[index] for k, v in vars(self).items() if v is not None and k != "state"}
        return SearchTable(**known)

    def tensors(self, logits: np.ndarray) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.as_tensor(np.asarray(a, dtype=np.float32)) for a in (logits, *(getattr(self, k) for k in ARRAYS))
        )


def search_table(y, mask, ratio, group) -> SearchTable:
    """Run the lattice search on patterns on the common axis."""
    evidence = gather_evidence(normalise(y, mask), mask, ratio)
    foreign = np.array([foreign_share(e) for e in evidence])
    return SearchTable(*(np.stack([getattr(e, k) for e in evidence]) for k in ARRAYS), np.asarray(group), foreign)


def kept_search_table(path, y, mask, ratio, group) -> SearchTable:
    """`search_table`, kept in a file and made anew where the search's code or the patterns have changed."""
    path = Path(path)
    state = _state_of(y, mask, ratio, group)
    if path.is_file():
        table = SearchTable.load(path)
        if table.state is not None and str(table.state) == state:
            return table
    table = search_table(y, mask, ratio, group)
    table.state = np.array(state)
    table.save(path)
    return table


def sources_of(module: str) -> list[Path]:
    """Files of this wing that a module of it (``"indexing/evidence"``) imports, directly or through others, and its own."""
    wing, found = Path(__file__).parents[1], set()
    todo = [wing / module]
    while todo:
        source = todo.pop().with_suffix(".py")
        if not source.is_file() or source in found:
            continue
        found.add(source)
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(source.relative_to(wing).parts):
                base = source.parents[node.level - 1]
                names = node.module.split(".") if node.module else []
                todo += [base.joinpath(*names)] if names else []
                todo += [base.joinpath(*names, name.name) for name in node.names]
    return sorted(found)


def _state_of(*arrays) -> str:
    """Digest of the sources that evidence comes from, and of arrays."""
    digest = hashlib.sha256()
    for source in sources_of("indexing/known_cells"):
        digest.update(source.read_bytes())
    for a in arrays:
        digest.update(np.ascontiguousarray(a).tobytes())
    return digest.hexdigest()


def blind_prior() -> torch.Tensor:
    """What stands in for the network where the search answers alone: the stream's shares, ln, (230,)."""
    return torch.as_tensor(np.log(training_prior()), dtype=torch.float32)


def fit_arbiter(inputs, group, weight, seed: int = 0, steps: int = STEPS, members: int = MEMBERS) -> LatticeArbiter:
    """Fit an arbiter: likelihood of space group, Bravais lattice and crystal system, sampled with ``weight`` (n,)."""
    torch.manual_seed(seed)
    arbiter = LatticeArbiter(members)
    for number, member in enumerate(arbiter.members):
        _fit_member(member, inputs, group, weight, seed + 100 * number, steps)
    return arbiter.eval()


def _fit_member(member, inputs, group, weight, seed: int, steps: int) -> None:
    torch.manual_seed(seed)
    level = levels()
    member.log_prior.copy_(blind_prior())
    optimizer = torch.optim.AdamW(member.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    label, weight = torch.as_tensor(group - 1).long(), torch.as_tensor(weight, dtype=torch.float64)
    for _ in range(steps):
        pick = torch.multinomial(weight, min(BATCH, len(label)), replacement=True)
        blind = torch.rand(len(pick)) < BLIND_SHARE
        log_p = member(*(t[pick] for t in inputs), blind).log_softmax(1)
        truth = label[pick]
        loss = F.nll_loss(log_p, truth)
        for table, count in ((level.system, 7), (level.bravais, 14)):
            loss = loss + F.nll_loss(level_log_probabilities(log_p, table, count), table[truth])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def arbiter_logits(arbiter: LatticeArbiter, inputs, blind: bool = False) -> np.ndarray:
    """Logits (n, 230)."""
    return arbiter(*inputs, torch.full((len(inputs[0]),), blind)).numpy()


def combine(measured, group, weight, simulated: SearchTable | None, share: float = 0.5):
    """Training rows: measured patterns and, weighing ``share`` of them all, simulated ones."""
    if simulated is None:
        return measured, group, weight
    extra = simulated.tensors(simulated.logits)
    inputs = tuple(torch.cat([a, b]) for a, b in zip(measured, extra, strict=True))
    # measured sets lack whole systems (no trigonal here): simulated patterns make up what is missing of the natural shares
    wanted = np.bincount(SYSTEM_OF_GROUP, weights=training_prior(), minlength=7)
    have = np.bincount(SYSTEM_OF_GROUP[group - 1], weights=weight, minlength=7) / weight.sum()
    missing = np.maximum(wanted - (1 - share) * have, 0.2 * wanted)
    system = SYSTEM_OF_GROUP[simulated.group - 1]
    w = training_prior()[simulated.group - 1] / np.bincount(simulated.group, minlength=231)[simulated.group]
    w = w / np.bincount(system, weights=w, minlength=7)[system] * missing[system]
    w = w / w.sum() * weight.sum() * share / (1 - share)
    return inputs, np.concatenate([group, simulated.group]), np.concatenate([weight, w])


def cross_validated_logits(table: SearchTable, logits, look_alike, fold, simulated: SearchTable | None = None):
    """Out-of-fold arbiter logits (n, 230): with the network's opinion, and without (the search alone)."""
    inputs = table.tensors(logits)
    weight = look_alike_weight(look_alike)
    full, blind = np.zeros((len(fold), 230)), np.zeros((len(fold), 230))
    for k in np.unique(fold):
        train, test = fold != k, fold == k
        rows = combine(tuple(t[train] for t in inputs), table.group[train], weight[train], simulated)
        arbiter = fit_arbiter(*rows, seed=int(k))
        unseen = tuple(t[test] for t in inputs)
        full[test], blind[test] = arbiter_logits(arbiter, unseen), arbiter_logits(arbiter, unseen, blind=True)
    return full, blind


def simulated_logits(table: SearchTable, logits, look_alike, simulated: SearchTable, folds: int = 5) -> np.ndarray:
    """Arbiter logits (n, 230) of the simulated patterns, each fifth by an arbiter fitted without it."""
    weight, inputs = look_alike_weight(look_alike), table.tensors(logits)
    fold = np.arange(len(simulated.group)) % folds
    out = np.zeros((len(fold), 230))
    for k in range(folds):
        rows = combine(inputs, table.group, weight, simulated.subset(fold != k))
        unseen = simulated.subset(fold == k)
        out[fold == k] = arbiter_logits(fit_arbiter(*rows, seed=k), unseen.tensors(unseen.logits))
    return out


def look_alike_weight(look_alike) -> np.ndarray:
    """A group of n look-alikes counts as √n."""
    return 1 / np.sqrt(np.bincount(look_alike)[look_alike])
