"""Networks of the powder wing: the published NPCNN and PowderNet.

Both return the logits of the 230 space groups. PowderNet's are sums of scores for system, Bravais lattice, extinction
group and space group, so that one softmax gives every level and the levels agree by construction.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NPCNN(nn.Module):
    """The "no-pool CNN" of Salgado et al., npj Comput. Mater. 9:214 (2023), exactly as published.

    Three unpooled convolutions (80 filters; kernels 100, 50, 25; strides 5, 5, 2), then 12,160 → 2,300 → 1,150 →
    ``classes``. Input (B, 8500): 2θ = 5.00…89.99° of Cu radiation, intensity 0…1. With ``rank`` the two wide linear
    layers are products of two thin ones: the compact form that ships (see `compress`).
    """

    POINTS = 8500

    def __init__(self, classes: int = 230, rank: int | None = None):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(1, 80, 100, stride=5), nn.ReLU(), nn.Dropout(0.3),
            nn.Conv1d(80, 80, 50, stride=5), nn.ReLU(), nn.Dropout(0.3),
            nn.Conv1d(80, 80, 25, stride=2), nn.ReLU(), nn.Dropout(0.3), nn.Flatten())

        def linear(n_in, n_out):
            if rank is None:
                return nn.Linear(n_in, n_out)
            return nn.Sequential(nn.Linear(n_in, rank, bias=False), nn.Linear(rank, n_out))

        self.classifier = nn.Sequential(linear(12160, 2300), nn.ReLU(), nn.Dropout(0.5), linear(2300, 1150), nn.ReLU(),
                                        nn.Dropout(0.5), nn.Linear(1150, classes))

    def forward(self, pattern: Tensor) -> Tensor:
        return self.classifier(self.features(pattern[:, None]))

    @torch.no_grad()
    def compress(self, rank: int, inputs: Tensor) -> NPCNN:
        """The same network with its wide layers replaced by rank-``rank`` products, best for the given patterns.

        Each weight W is replaced by ``U Uᵀ W`` with U the leading principal directions of the layer's outputs
        ``W x + b`` over ``inputs`` (B, 8500): the projection that loses least of what the layer says.
        """
        small = NPCNN(self.classifier[-1].out_features, rank).to(inputs.device)
        small.features.load_state_dict(self.features.state_dict())
        small.classifier[-1].load_state_dict(self.classifier[-1].state_dict())
        x = self.eval().features(inputs[:, None])
        for index in (0, 3):
            layer = self.classifier[index]
            out = layer(x)
            mean = out.mean(0)
            basis = torch.linalg.svd((out - mean).double(), full_matrices=False)[2][:rank].T.float()      # (out, rank)
            small.classifier[index][0].weight.copy_(basis.T @ layer.weight)
            small.classifier[index][1].weight.copy_(basis)
            small.classifier[index][1].bias.copy_(basis @ (basis.T @ (layer.bias - mean)) + mean)
            x = F.relu(out)
        return small.eval()


@dataclass(frozen=True)
class Levels:
    """For each of the 230 groups its crystal system, Bravais lattice and extinction group; long tensors (230,)."""

    system: Tensor
    bravais: Tensor
    extinction: Tensor


def levels() -> Levels:
    """The levels of International Tables as torch tensors."""
    from ..physics.symmetry import SYSTEM_OF_GROUP, bravais_of_group, extinction_of_group

    return Levels(*(torch.as_tensor(a, dtype=torch.long) for a in (SYSTEM_OF_GROUP, bravais_of_group(), extinction_of_group())))


def point_groups() -> tuple[list[int], list[bool]]:
    """Order of the point group of each space group, and whether it holds the inversion: 230 each."""
    from ..physics.symmetry import space_group

    groups = [space_group(n).operations() for n in range(1, 231)]
    return [len(g.sym_ops) for g in groups], [g.is_centrosymmetric() for g in groups]


def _fourier(x: Tensor, frequencies: Tensor) -> Tensor:
    phase = x[..., None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], -1)


class PeakAttention(nn.Module):
    """Attention among lines in which queries, keys and values turn with the lines' positions.

    Half of the heads rotate with ln q, so that what passes between two lines depends on the *ratio* of their d-spacings
    (the cell's size drops out); the other half with Q = q², in which Bragg's law is linear and the lines of one zone are
    equally spaced. Values are rotated by the sender and turned back by the receiver.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        half = self.head_dim // 2
        ratio = torch.exp(torch.linspace(math.log(0.7), math.log(700.0), (heads // 2) * half))
        additive = torch.exp(torch.linspace(math.log(4.0), math.log(2500.0), (heads - heads // 2) * half))
        # interleave so that every head spans coarse to fine
        self.register_buffer("ratio", ratio.view(half, heads // 2).T.contiguous(), persistent=False)
        self.register_buffer("additive", additive.view(half, heads - heads // 2).T.contiguous(), persistent=False)

    def angles(self, ln_q: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotation of every line in every head: (B, heads, N, head_dim / 2) each."""
        a = ln_q[:, None, :, None] * self.ratio[None, :, None]
        b = torch.exp(2 * ln_q)[:, None, :, None] * self.additive[None, :, None]
        phase = torch.cat([a, b], 1)
        return phase.cos(), phase.sin()

    @staticmethod
    def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], keep: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        cos, sin = turn
        q, k, v = (self._turn(t, cos, sin) for t in (q, k, v))
        scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2) + keep[:, None, None, :]
        y = self._turn(scores.softmax(-1) @ v, cos, -sin)
        return self.out(y.transpose(1, 2).reshape(b, n, d))


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = PeakAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(), nn.Linear(3 * dim, dim))

    def forward(self, x, turn, keep):
        x = x + self.attention(self.norm1(x), turn, keep)
        return x + self.mlp(self.norm2(x))


class _Residual(nn.Module):
    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv1d(n_in, n_out, kernel, stride, kernel // 2, bias=False)
        self.conv2 = nn.Conv1d(n_out, n_out, kernel, 1, kernel // 2, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm1d(n_out), nn.BatchNorm1d(n_out)
        self.skip = nn.Conv1d(n_in, n_out, 1, stride) if stride > 1 or n_in != n_out else nn.Identity()

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.skip(x))


class PowderNet(nn.Module):
    """Lines and profile together: attention over the peak list, with the spectrum as further tokens.

    Parameters
    ----------
    dim, layers, heads : size of the attention part
    channels : widths of the four stages that read the spectrum
    dropout : float, before the heads

    Inputs (see `crystaldl.powder.prepare.Prepared`): spectrum (B, 2, 2048) on a ln(1/d) axis, peaks (B, 64, 4) with
    ln(1/d), ln height, ln significance, ln width; peak_mask (B, 64); limits (B, 2), the measured range as ln(1/d).

    Returns a dict: ``logits`` (B, 230), ``ln_volume`` (B,) of the primitive cell in Å³, ``impurity`` (B,) logit that
    a second phase is present.
    """

    def __init__(self, dim: int = 128, layers: int = 5, heads: int = 4, channels: tuple = (24, 48, 96, 128), dropout: float = 0.1):
        super().__init__()
        c0, c1, c2, c3 = channels
        self.spectrum = nn.Sequential(nn.Conv1d(2, c0, 15, 4, 7, bias=False), nn.BatchNorm1d(c0), nn.ReLU(),
                                      _Residual(c0, c1, 7, 2), _Residual(c1, c2, 5, 2), _Residual(c2, c3, 5, 2))
        self.to_tokens = nn.Conv1d(c3, dim, 4, 4)
        self.register_buffer("ratio", torch.exp(torch.linspace(math.log(0.7), math.log(1500.0), 24)), persistent=False)
        self.register_buffer("additive", torch.exp(torch.linspace(math.log(4.0), math.log(4000.0), 24)), persistent=False)
        self.embed = nn.Sequential(nn.Linear(4 + 96, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.summary = nn.Parameter(torch.zeros(1, 1, dim))
        self.range = nn.Linear(4, dim)
        self.kind = nn.Parameter(0.02 * torch.randn(2, 1, dim))
        self.layers = nn.ModuleList([_Layer(dim, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(nn.Linear(2 * dim + c3, 2 * dim), nn.GELU(), nn.Dropout(dropout))
        level = levels()
        for name in ("system", "bravais", "extinction"):
            self.register_buffer(f"level_{name}", getattr(level, name), persistent=False)
        self.scores = nn.ModuleDict({"group": nn.Linear(2 * dim, 230), "system": nn.Linear(2 * dim, 7),
                                     "bravais": nn.Linear(2 * dim, 14), "extinction": nn.Linear(2 * dim, 99)})
        self.extra = nn.Linear(2 * dim, 2)

    def tokens(self, spectrum, peaks, peak_mask, limits):
        """Embedded lines (B, N, dim), the summary and spectrum tokens (B, 1 + patches, dim), the profile (B, c3, ·)."""
        ln_q = peaks[..., 0]
        features = torch.cat([ln_q[..., None], peaks[..., 1:] * torch.tensor([0.5, 0.4, 1.0], device=peaks.device),
                              _fourier(ln_q, self.ratio), _fourier(torch.exp(2 * ln_q), self.additive)], -1)
        lines = self.embed(features) + self.kind[0]
        profile = self.spectrum(spectrum)
        patches = self.to_tokens(profile).transpose(1, 2) + self.kind[1]
        # how many lines were found, over what range
        count = peak_mask.float().mean(1, keepdim=True)
        width = (peaks[..., 3] * peak_mask).sum(1, keepdim=True) / peak_mask.sum(1, keepdim=True).clamp_min(1)
        summary = self.summary + self.range(torch.cat([limits, count, width], 1))[:, None]
        return lines, torch.cat([summary, patches], 1), profile

    def _attend(self, lines: Tensor, rest: Tensor, ln_q: Tensor, mask: Tensor) -> Tensor:
        """Summary token and mean line (B, 2 dim) after the attention layers."""
        b, n = ln_q.shape
        centre = torch.linspace(math.log(0.050), math.log(0.995), 2 * rest.shape[1] - 1, device=ln_q.device)[1::2]
        position = torch.cat([ln_q, ln_q.new_zeros(b, 1), centre.expand(b, -1)], 1)
        keep = torch.zeros_like(position)
        keep[:, :n].masked_fill_(~mask, -1e4)
        x = torch.cat([lines, rest], 1)
        turn = self.layers[0].attention.angles(position)
        for layer in self.layers:
            x = layer(x, turn, keep)
        x = self.norm(x)
        weight = mask[..., None].float()
        return torch.cat([x[:, n], (x[:, :n] * weight).sum(1) / weight.sum(1).clamp_min(1)], 1)

    def features(self, spectrum, peaks, peak_mask, limits) -> Tensor:
        """The pattern's summary vector before the heads, (B, 2 dim)."""
        lines, rest, profile = self.tokens(spectrum, peaks, peak_mask, limits)
        # patterns of like length together: attention never looks at padding
        count = peak_mask.sum(1)
        order = torch.argsort(count)
        parts = []
        for rows in order.split(16):
            n = max(int(count[rows].max()), 1)
            parts.append(self._attend(lines[rows, :n], rest[rows], peaks[rows, :n, 0], peak_mask[rows, :n]))
        attended = torch.cat(parts)[torch.argsort(order)]
        return self.head(torch.cat([attended, profile.mean(-1)], 1))

    def forward(self, spectrum: Tensor, peaks: Tensor, peak_mask: Tensor, limits: Tensor) -> dict[str, Tensor]:
        h = self.features(spectrum, peaks, peak_mask, limits)
        logits = self.scores["group"](h)
        for name in ("system", "bravais", "extinction"):
            logits = logits + self.scores[name](h)[:, getattr(self, f"level_{name}")]
        extra = self.extra(h)
        return {"logits": logits, "ln_volume": extra[:, 0] + 5.3, "impurity": extra[:, 1]}


class FamilyNet(nn.Module):
    """Recognises crystals it was shown: the family a pattern belongs to, or none.

    A pattern becomes a direction (two linear layers, for positions are absolute here); families are directions too. One
    more logit, the same for every pattern, stands for all that is in no family, so that a pattern is of none where no
    family is near. Input as PowderNet's spectrum (B, 2, 2048); output (B, families + 1), their probabilities, the last that of
    no family.

    Parameters
    ----------
    families : int
    groups : (families,) ints, space-group number minus 1 of each; given with the weights
    name_bytes : int, length of the families' names, which come with the weights as do their cells; 0 in training
    """

    BLUR, HALF_WIDTH = 3.0, 12      # points of the ln(1/d) axis

    def __init__(self, families: int, groups=None, hidden: int = 768, dim: int = 128, dropout: float = 0.1,
                 name_bytes: int = 0):
        super().__init__()
        given = name_bytes > 0
        self.register_buffer("text", torch.zeros(name_bytes, dtype=torch.uint8), persistent=given)
        # conventional cells, six numbers each; NaN: not known
        self.register_buffer("cells", torch.full((6 * families,), float("nan")), persistent=given)
        kernel = torch.exp(-0.5 * (torch.arange(-self.HALF_WIDTH, self.HALF_WIDTH + 1) / self.BLUR) ** 2)
        self.register_buffer("kernel", (kernel / kernel.sum())[None, None], persistent=False)
        self.register_buffer("groups", torch.zeros(families) if groups is None else torch.as_tensor(groups).float())
        self.read = nn.Sequential(nn.Linear(1024 + 128, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout),
                                  nn.Linear(hidden, dim))
        self.families = nn.Parameter(0.1 * torch.randn(families, dim))
        self.sharpness, self.unknown = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(3.0))

    def look(self, spectrum: Tensor) -> Tensor:
        """What is read of patterns, (B, 1024 + 128): the blurred pattern on every second point, and the measured range."""
        y = F.avg_pool1d(F.conv1d(spectrum[:, :1], self.kernel, padding=self.HALF_WIDTH), 2)[:, 0]
        measured = F.avg_pool1d(spectrum[:, 1:], 16)[:, 0]
        return torch.cat([32.0 * F.normalize(y, dim=1, eps=1e-6), measured - 0.7], 1)

    def logits_of_look(self, look: Tensor) -> Tensor:
        """Logits (B, families + 1) from what `look` gives; the last is that of no family."""
        direction = F.normalize(self.read(look), dim=1)
        z = direction @ F.normalize(self.families, dim=1).T * self.sharpness.exp()
        return torch.cat([z, self.unknown.expand(len(z), 1)], 1)

    @property
    def names(self) -> list[str]:
        """Names of the families, empty where none is known."""
        return bytes(self.text.tolist()).decode().split("\n") if len(self.text) else [""] * len(self.families)

    def forward(self, spectrum: Tensor) -> Tensor:
        return self.logits_of_look(self.look(spectrum)).softmax(1)


class ArbiterMember(nn.Module):
    """One arbiter of the ensemble; see `LatticeArbiter`.

    Every lattice is judged by the same few numbers, so that few measured patterns can fit them: what the network thinks of
    it, how it explains positions and intensities of the lines and the profile, how many lines it spends on that, how large
    its cell is. Inside a lattice, groups of lower symmetry than the lattice's own and those without inversion become more or
    less likely as the cell grows.
    """

    FACTS = (20.0, 10.0, 24.0, 2.0, 1.0, 0.5, 40.0, 10.0)
    FEATURES = 15
    USUAL = 5.5  # ln of a usual volume of a primitive cell, Å³

    def __init__(self, hidden: int = 24, dropout: float = 0.3):
        super().__init__()
        level = levels()
        self.register_buffer("bravais", level.bravais, persistent=False)
        self.register_buffer("extinction", level.extinction, persistent=False)
        self.register_buffer("log_prior", torch.full((230,), -math.log(230.0)))      # what stands in for a blind network
        self.register_buffer("scale", torch.tensor(self.FACTS), persistent=False)
        # trust in the network's lattices, in its choice inside one, and in the prior's there
        self.trust, self.inside, self.prior = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        # quick and close search, the latter with absent lines, gain of the profile, its intensities, what absences add to them,
        # and the sieve
        self.search = nn.Parameter(torch.tensor([0.3, 0.1, 0.4, 0.03, 0.0, 0.0, 0.03]))
        # the three kinds of evidence for extinction groups, and how the pattern's quality changes their weights
        self.absences = nn.Parameter(torch.tensor([0.5, 0.3, 0.3]))
        self.quality = nn.Linear(len(self.FACTS) + 1, 3)
        # groups of a lattice: ln index of the point group in that of the lattice, and whether an inversion is missing;
        # what they weigh, and what a unit of the cell's ln volume adds
        order, inversion = (torch.as_tensor(a, dtype=torch.float32) for a in point_groups())
        largest = torch.zeros(14).scatter_reduce(0, self.bravais, order, "amax")
        self.register_buffer("lower", torch.stack([(largest[self.bravais] / order).log(), 1 - inversion]), persistent=False)
        self.commonness = nn.Parameter(torch.zeros(2, 2))
        nn.init.zeros_(self.quality.weight)
        nn.init.zeros_(self.quality.bias)
        self.each = nn.Sequential(nn.Linear(self.FEATURES + len(self.FACTS) + 1 + 14, hidden), nn.GELU(), nn.Dropout(dropout),
                                  nn.Linear(hidden, 1))

    def _lattice_logits(self, lattice: Tensor, scores: Tensor, profile: Tensor, context: Tensor) -> Tensor:
        """(B, 14) from the network's log-probabilities of lattices (B, 14) and the search."""
        quick, (close, exact) = scores[..., 0].clamp(-10, 0), scores[..., 1:].clamp(-30, 0).unbind(2)
        gain, allowed, absent = profile[..., 0].clamp(-60, 0), profile[..., 1].clamp(-60, 0), profile[..., 2].clamp(-10, 10)
        fitted, explained, misfit, lines, volume, shortest, sieve = profile[..., 3:].unbind(2)
        sieve = sieve.clamp(-60, 0)
        both = 0.5 * quick + exact + 0.15 * (gain + sieve)
        both = (both - both.amax(1, keepdim=True)).clamp_min(-15.0)
        features = [quick / 5, close / 10, exact / 10, gain / 20, allowed / 20, absent / 5, fitted,
                    explained.clamp(-0.5, 0) * 5, misfit.clamp(-0.5, 0) * 5, lines / 5, volume / 6, shortest,
                    lattice.clamp_min(-8.0) / 4, both / 5, sieve / 20]
        which = torch.eye(14, device=lattice.device).expand(len(lattice), -1, -1)
        rows = torch.cat([torch.stack(features, 2), context[:, None].expand(-1, 14, -1), which], 2)
        found = (self.search * torch.stack([quick, close, exact, gain, allowed, absent, sieve], 2)).sum(2)
        return self.trust * lattice + found - found.amax(1, keepdim=True) + self.each(rows)[..., 0]

    def forward(self, logits: Tensor, scores: Tensor, profile: Tensor, facts: Tensor, absences: Tensor, blind: Tensor) -> Tensor:
        log_p = torch.where(blind[:, None], self.log_prior[None], F.log_softmax(logits, 1))
        lattice = level_log_probabilities(log_p, self.bravais, 14)
        context = torch.cat([facts / self.scale, blind[:, None].to(facts)], 1)
        lattice_logits = self._lattice_logits(lattice, scores, profile, context)
        usual = level_log_probabilities(self.log_prior[None], self.bravais, 14)
        within = self.inside * (log_p - lattice[:, self.bravais])
        within = within + self.prior * ~blind[:, None] * (self.log_prior[None] - usual[:, self.bravais])
        weight = self.absences * self.quality(context).exp()
        within = within + (weight[:, :, None] * absences).sum(1)[:, self.extinction]
        size = (profile[..., 7] - self.USUAL) * profile[..., 3]
        within = within + self.commonness[0] @ self.lower + size[:, self.bravais] * (self.commonness[1] @ self.lower)
        norm = torch.zeros_like(lattice).index_add(1, self.bravais, within.clamp(-60, 60).exp()).clamp_min(1e-30).log()
        return (lattice_logits.log_softmax(1) - norm)[:, self.bravais] + within


class LatticeArbiter(nn.Module):
    """Weighs the network against the lattice search: corrected space-group logits.

    The Bravais lattice is decided from the network's probabilities and the search's log-likelihood ratios together; the
    extinction group inside it from the network and the evidence of absent lines; the space group inside that from the
    network alone. Small, so that it can be fitted on few measured patterns; an average over a few fits, each asked with the
    network's opinion and without.

    Inputs: ``logits`` (B, 230) of the network; ``scores`` (B, 14, 3), ``profile`` (B, 14, 10), ``facts`` (B, 8) and
    ``absences`` (B, 3, 99) of the search (see `crystaldl.powder.indexing.evidence.Evidence`); ``blind`` (B,) bool, answer without
    the network, from its prior and the search alone (drawn at random in training, so that the search can stand alone).
    """

    def __init__(self, members: int = 3, hidden: int = 24, dropout: float = 0.3):
        super().__init__()
        self.members = nn.ModuleList([ArbiterMember(hidden, dropout) for _ in range(members)])

    def forward(self, logits: Tensor, scores: Tensor, profile: Tensor, facts: Tensor, absences: Tensor, blind: Tensor) -> Tensor:
        search = scores, profile, facts, absences
        alone = torch.ones_like(blind)
        answers = [member(logits, *search, b).log_softmax(1) for member in self.members for b in (blind, alone)]
        return torch.logsumexp(torch.stack(answers), 0) - math.log(len(answers))


def level_log_probabilities(log_probability: Tensor, level: Tensor, count: int) -> Tensor:
    """Sum space-group probabilities into the classes of a level: (B, 230) log → (B, count) log."""
    p = log_probability.exp()
    out = torch.zeros(p.shape[0], count, dtype=p.dtype, device=p.device).index_add_(1, level, p)
    return out.clamp_min(1e-9).log()
