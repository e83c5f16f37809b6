"""The disks of a pattern as `crystaldl.stem.network.FactorNet` reads them, to tell |V_g| of each from all of them together.

Fast electrons in a crystal obey ``A_gh = U_{g-h}`` beside the excitation errors on the diagonal (De Graef, Introduction to
Conventional TEM, 2003, chapter 5): what reaches disk g comes from every disk h through the reflection g - h. Thickness, tilt
and excitation errors are not known, but all disks of a pattern have them in common, and show them: the filling of a disk is the
rocking curve of its reflection, I(s) with s = s_0 + g·α across the disk, and a tilt takes one of a Friedel pair nearer to the
Ewald sphere and the other away from it. So the network sees for every disk its intensity, that of its partner and the moments
of its filling along g, and for every pair of disks g, h the intensity of g - h.

Nothing is calibrated: lengths are in disk radii, intensities in shares of all disks of the pattern.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .probe import Probe

ORDERS = ((1, 1), (2, 0), (2, 2), (3, 1), (3, 3), (4, 0), (4, 2), (4, 4))  # (n, m) of the Zernike polynomials
TURNED = [i for i, (_, m) in enumerate(ORDERS) if m]  # those that tell along g from across it
CELL, TOLERANCE = 0.4, 0.4  # radii: of the grid that disks are looked up in, and how far from its node a disk may lie
TOKENS, PAIRS = 16 + len(ORDERS) + len(TURNED), 6
BRIGHTEST = 8  # candidates for the direct beam
# The direct beam: weights of brightness, symmetry of the disks about it, distance from their centre of mass (1 / radius), nearness
# to where the probe was in vacuum, fitted (multinomial logistic regression) to patterns of crystals that no figure is of.
BRIGHT, SYMMETRIC, MASS, VACUUM = 0.8, 0.85, 0.19, 1.4
AS_PROBE, ELSEWHERE = 2.0, 0.1  # radii: how near; how likely it is anywhere else, relative to there
CANDIDATES, UNLIKELY = 3, 0.05  # for the direct beam that are tried, but for those of lower probability
FEWEST = 6  # disks of a pattern that tells anything
DIRECT_BEAM = 2.7  # V_0 over the largest |V_g|: the median of the crystals of the training stream
PROPOSED = 0.2  # share of the logarithm that is the estimate of the network that proposed the disk
PAIRS_AT_ONCE, LIKE = 400_000, 0.7  # and the share of the most disks that patterns at once have at least


@dataclass
class Reflections:
    """Disks of patterns, the direct beam first.

    Attributes
    ----------
    g : (B, N, 2), from the direct beam, disk radii
    intensity : (B, N), any unit
    significance : (B, N), intensity over its standard uncertainty
    moments : (B, N, 8) complex, of the filling over its mean (`rocking_moments`)
    valid : (B, N) bool, where there is a disk
    """

    g: Tensor
    intensity: Tensor
    significance: Tensor
    moments: Tensor
    valid: Tensor


def zernike(y: Tensor, x: Tensor) -> Tensor:
    """(…, 8) ``R_n^m(r) exp(-i m φ)`` of `ORDERS`, of mean square 1 over the unit disk; φ from axis 0 (y) towards axis 1."""
    r, angle = torch.hypot(y, x), torch.atan2(x, y)
    out = []
    for n, m in ORDERS:
        radial = torch.zeros_like(r)
        for k in range((n - m) // 2 + 1):
            below = math.factorial(k) * math.factorial((n + m) // 2 - k) * math.factorial((n - m) // 2 - k)
            radial = radial + (-1) ** k * math.factorial(n - k) / below * r ** (n - 2 * k)
        out.append(math.sqrt(n + 1) * torch.polar(radial, -m * angle))
    return torch.stack(out, -1)


def rocking_moments(
    patterns: Tensor, pattern: Tensor, positions: Tensor, outline: tuple[float, float], total: Tensor
) -> Tensor:
    """Zernike moments (N, 8) of the filling of disks over its mean, in the frame of the detector.

    An evenly filled disk with that edge has none, nor has a background that is constant.

    Parameters
    ----------
    patterns : (B, H, W), NaN where not measured
    pattern : (N,) int, of each disk
    positions : (N, 2), px
    outline : (float, float)
        Radius and standard deviation of the edge, px.
    total : (N,)
        Intensity above the background.
    """
    (height, width), (radius, edge) = patterns.shape[1:], outline
    n = math.ceil(radius + 1)
    axis = torch.arange(-n, n + 1, device=patterns.device)
    window = torch.cartesian_prod(axis, axis)
    window = window[window.float().norm(dim=1) <= n]
    at = positions.round().long()[:, None] + window
    y, x = ((at - positions[:, None]) / radius).unbind(2)
    r = torch.hypot(y, x)
    inside = (at >= 0).all(2) & (at[..., 0] < height) & (at[..., 1] < width)
    values = patterns[pattern[:, None], at[..., 0].clamp(0, height - 1), at[..., 1].clamp(0, width - 1)]
    weight = (radius * (1 - r) + 0.5).clamp(0, 1) * inside * torch.isfinite(values)
    even = torch.special.ndtr((1 - r) * radius / max(edge, 1e-2))
    filling = (total / (math.pi * radius**2)).clamp_min(1e-20)[:, None]
    uneven = torch.nan_to_num(values) / filling - even
    uneven = uneven - (weight * uneven).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)
    beyond = r.clamp_min(1)
    functions = zernike(y / beyond, x / beyond)
    moments = ((weight * uneven).to(functions.dtype)[:, None] @ functions)[:, 0]
    return moments / ((weight * even)[..., None] * functions.abs() ** 2).sum(1).clamp_min(1)


def differences(g: Tensor, valid: Tensor) -> Tensor:
    """(B, N, N) number of the disk at ``g_i - g_j`` of the same pattern, -1 where there is none.

    Disks are looked up in a grid of cells, which takes N² steps for a pattern rather than N³.
    """
    b, n = valid.shape
    half = int((g.abs() * valid[..., None]).amax() / CELL) + 3
    side = 2 * half + 1
    table = torch.full((b, side * side), -1, dtype=torch.long, device=g.device)
    cell = torch.where(valid[..., None], (g / CELL).round(), 0.0).long() + half
    number = torch.arange(n, device=g.device).expand(b, n)
    rows = torch.arange(b, device=g.device)[:, None].expand(b, n)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            index = (cell[..., 0] + dy) * side + cell[..., 1] + dx
            table[rows[valid], index[valid]] = number[valid]
    wanted = g[:, :, None] - g[:, None]
    at = (wanted / CELL).round().long() + half
    there = ((at >= 0) & (at < side)).all(3) & valid[:, :, None] & valid[:, None]
    index = torch.where(there, at[..., 0] * side + at[..., 1], 0)
    found = torch.where(there, table.gather(1, index.reshape(b, -1)).reshape(b, n, n), -1)
    place = torch.gather(g, 1, found.clamp_min(0).reshape(b, -1, 1).expand(-1, -1, 2)).reshape(b, n, n, 2)
    return torch.where((place - wanted).norm(dim=3) < TOLERANCE, found, -1)


def features(r: Reflections) -> tuple[Tensor, Tensor]:
    """What the network reads: of disks (B, N, `TOKENS`), and of pairs of them (B, N, N, `PAIRS`)."""
    b, n = r.valid.shape
    share = torch.where(r.valid, r.intensity.clamp_min(0), 0.0)
    share = share / share.sum(1, keepdim=True).clamp_min(1e-30)
    beside = differences(r.g, r.valid)
    between = torch.where(beside >= 0, 1.0, 0.0)
    opposite = beside[:, 0]
    paired, opposite = opposite >= 0, opposite.clamp_min(0)
    other = torch.where(paired, share.gather(1, opposite), share)
    mean_of_pair = 0.5 * (share + other)
    coupling = between * mean_of_pair.gather(1, beside.clamp_min(0).reshape(b, -1)).reshape(b, n, n)
    return _of_disks(r, share, other, paired, coupling), _of_pairs(r, coupling, between)


def _of_disks(r: Reflections, share: Tensor, other: Tensor, paired: Tensor, coupling: Tensor) -> Tensor:
    """Shares (B, N) of the disks and of their Friedel partners, where ``paired``; coupling (B, N, N)."""
    strength, partner, both = ((a + 1e-7).log() for a in (share, other, 0.5 * (share + other)))
    length, lengths, shortest = _lengths(r)
    reflection = r.valid.clone()
    reflection[:, 0] = False
    count = reflection.sum(1, keepdim=True).clamp_min(1).float()
    typical = (strength * reflection).sum(1, keepdim=True) / count
    # what reaches a disk by way of others: sums over h of I_h I_{g-h}, the direct beam and the disk itself left out
    by_way = coupling * share[:, None]
    by_way = by_way * (1 - torch.eye(by_way.shape[1], device=share.device))
    by_way[:, :, 0] = 0
    twice, amplitude = (by_way.sum(2) + 1e-9).log(), (by_way.sqrt().sum(2) + 1e-5).log()
    middle = (share[..., None] * torch.where(r.valid[..., None], r.g, 0.0)).sum(1, keepdim=True) / lengths[..., None]
    tilted = (middle * r.g).sum(2) / lengths
    columns = (
        strength / 3, (strength - typical) / 2, partner / 3, (strength - partner).clamp(-4, 4), paired.float(),
        (both - typical) / 2, length / 15, (length / shortest).clamp(0, 20) / 8, length / lengths - 1,
        r.significance.clamp_min(0.1).log() / 3, (twice - strength) / 4, amplitude / 3, tilted, middle.norm(dim=2).expand_as(share),
        strength[:, :1].expand_as(share) / 2, count.log().expand_as(share) - 4,
    )  # fmt: skip
    angle = torch.atan2(r.g[..., 1], r.g[..., 0])[..., None] * torch.tensor([m for _, m in ORDERS], device=share.device)
    along = r.moments * torch.polar(torch.ones_like(angle), angle)
    out = torch.cat([torch.stack(columns, 2), torch.asinh(2 * along.real), torch.asinh(2 * along.imag[..., TURNED])], 2)
    return torch.where(r.valid[..., None], out, 0.0)


def _of_pairs(r: Reflections, coupling: Tensor, between: Tensor) -> Tensor:
    length, _, shortest = _lengths(r)
    both = r.valid[:, :, None] & r.valid[:, None]
    apart = (r.g[:, :, None] - r.g[:, None]).norm(dim=3)
    opposed = (r.g[:, :, None] + r.g[:, None]).norm(dim=3)
    unit = r.g / length.clamp_min(1e-6)[..., None]
    columns = (
        torch.where(between > 0, (coupling + 1e-7).log() / 3 + 2, -3.0), between, torch.exp(-(opposed**2)),
        unit @ unit.transpose(1, 2), torch.exp(-apart / shortest[:, :, None]),
        ((length[:, :, None] + 0.5) / (length[:, None] + 0.5)).log(),
    )  # fmt: skip
    return torch.where(both[..., None], torch.stack(columns, 3), 0.0)


def _lengths(r: Reflections) -> tuple[Tensor, Tensor, Tensor]:
    """|g| (B, N), 0 without a disk, its mean and its least value (B, 1) over the reflections."""
    length = torch.where(r.valid, r.g.norm(dim=2), 0.0)
    reflection = r.valid.clone()
    reflection[:, 0] = False
    mean = (length * reflection).sum(1, keepdim=True) / reflection.sum(1, keepdim=True).clamp_min(1)
    shortest = torch.where(reflection, length, 100.0).amin(1, keepdim=True)
    return length, mean.clamp_min(1e-3), shortest.clamp_min(1e-3)


def direct_beam(positions: Tensor, intensity: Tensor, valid: Tensor, probe: Probe) -> tuple[Tensor, Tensor]:
    """Which disks of each pattern may be the direct beam, the most probable first, and their probabilities, (B, K) each.

    It is bright, near the disks' centre of mass, often where the probe was in vacuum, and disks lie symmetrically about it.

    Parameters
    ----------
    positions, intensity, valid : (B, N, 2) px, (B, N), (B, N)
    probe : Probe
    """
    strength = torch.where(valid, intensity.clamp_min(0), 0.0)
    top, which = strength.topk(min(BRIGHTEST, strength.shape[1]), dim=1)
    centre = positions.gather(1, which[..., None].expand(-1, -1, 2))
    far = torch.where(valid[..., None], positions, 1e6)
    mirrored = 2 * centre[:, :, None] - far[:, None]
    distance, nearest = torch.cdist(mirrored.reshape(len(far), -1, 2), far).min(2)
    partner = strength.gather(1, nearest).reshape(mirrored.shape[:3])
    hit = distance.reshape(partner.shape) < 0.4 * probe.radius
    others = torch.arange(strength.shape[1], device=strength.device) != which[..., None]
    root = (strength[:, None] * others).sqrt()
    symmetry = (torch.minimum(root, partner.sqrt()) * hit * others).sum(2) / root.sum(2).clamp_min(1e-20)
    total = strength.sum(1, keepdim=True).clamp_min(1e-30)
    middle = (strength[..., None] * torch.where(valid[..., None], positions, 0.0)).sum(1, keepdim=True) / total[..., None]
    vacuum = torch.tensor(probe.centre, device=centre.device, dtype=centre.dtype)
    away, moved = ((centre - place).norm(dim=2) / probe.radius for place in (middle, vacuum))
    score = BRIGHT * (top / total).clamp_min(1e-9).log() + SYMMETRIC * (symmetry + 0.02).log() - MASS * away
    score = score + VACUUM * (ELSEWHERE + torch.exp(-0.5 * (moved / AS_PROBE) ** 2)).log()
    probability, order = torch.softmax(torch.where(top > 0, score, -torch.inf), 1).sort(1, descending=True)
    return which.gather(1, order), probability


@torch.inference_mode()
def estimated_factors(
    network, patterns: Tensor, pattern: Tensor, positions: Tensor, intensity: Tensor, significance: Tensor, proposed: Tensor,
    probe: Probe,
) -> Tensor:
    """|V_g| (N,) of disks relative to the strongest reflection of their pattern; NaN in patterns of too few disks.

    A weighted geometric mean of the network's estimate and the proposing network's, which looks at one disk and its surroundings
    and errs in other ways (`PROPOSED` was chosen on crystals that no figure is of). Where several disks may be the direct beam,
    the network's is the mean over them by their probability. The direct beam's own is `DIRECT_BEAM`: V_0 is larger than all |V_g|,
    but a pattern does not tell by how much.

    Parameters
    ----------
    network : FactorNet
    patterns : (B, H, W), NaN where not measured
    pattern, positions, intensity, significance : (N,), (N, 2) px, (N,), (N,)
        Of fitted disks (`crystaldl.stem.peaks.refine.DiskFits`).
    proposed : (N,)
        |V_g| as the network that proposed the disks estimates it.
    probe : Probe
    """  # fmt: skip
    out = torch.full((len(pattern),), float("nan"), device=patterns.device)
    count = torch.bincount(pattern, minlength=len(patterns))
    rows = torch.argsort(pattern, stable=True)
    first = count.cumsum(0) - count
    moments = rocking_moments(patterns, pattern, positions, (probe.radius, probe.edge), intensity)
    order = torch.argsort(count, descending=True)
    order, at = order[count[order] >= FEWEST], 0
    while at < len(order):
        size = int(count[order[at]])
        chosen = order[at : at + max(1, PAIRS_AT_ONCE // size**2)]
        chosen = chosen[count[chosen] >= LIKE * size]  # the others would be filled up with nothing
        number = torch.arange(size, device=rows.device)
        valid = number < count[chosen, None]
        disk = rows[(first[chosen, None] + number).clamp_max(len(rows) - 1)]
        disks = Reflections(positions[disk].float() / probe.radius, *(a[disk] for a in (intensity, significance, moments)), valid)
        beams, probability = direct_beam(positions[disk], intensity[disk], valid, probe)
        value = _over_beams(network, disks, beams[:, :CANDIDATES], probability[:, :CANDIDATES])
        value = (1 - PROPOSED) * value + PROPOSED * proposed[disk].clamp_min(1e-4).log()
        direct = number == beams[:, :1]
        value = value - torch.where(valid & ~direct, value, -torch.inf).amax(1, keepdim=True)
        out[disk[valid]] = torch.where(direct, DIRECT_BEAM, value.exp())[valid]
        at += len(chosen)
    return out


def _over_beams(network, disks: Reflections, beams: Tensor, probability: Tensor) -> Tensor:
    """(B, N) mean of the network's ln |V_g| over what may be the direct beam; ``disks.g`` from any origin."""
    total, weights = torch.zeros_like(disks.intensity), torch.zeros_like(disks.intensity)
    columns = torch.arange(disks.valid.shape[1], device=beams.device)
    for k in range(beams.shape[1]):
        rows = (probability[:, k] > UNLIKELY).nonzero()[:, 0] if k else torch.arange(len(beams), device=beams.device)
        if len(rows) == 0:
            break
        beam = beams[rows, k, None]
        swapped = columns.repeat(len(rows), 1)  # the direct beam and the first disk change places
        swapped[:, 0] = beam[:, 0]
        swapped = swapped.scatter(1, beam, 0)
        g, intensity, significance, moments, valid = (
            getattr(disks, name)[rows[:, None], swapped] for name in ("g", "intensity", "significance", "moments", "valid")
        )
        value = network(*features(Reflections(g - g[:, :1], intensity, significance, moments, valid)), valid)
        value = value.gather(1, swapped)  # changing places twice
        weight = probability[rows, k, None] * (columns != beam)
        total[rows] += weight * value
        weights[rows] += weight
    return total / weights.clamp_min(1e-9)
