"""Networks of the diffuse wing: DSFU-Net as published, at any width.

Two image-to-image generators read the same plane of diffuse scattering; one answers with the molecular form factor, the other
with the short-range order. Everything is a plane with one channel on a scale of -1 (nothing) to 1 (brightest pixel).
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

PUBLISHED_WIDTH = 64
COMPACT_WIDTH = 16
SIDE = 256              # pixels an edge of the planes of the publication
MULTIPLE = 64           # six halvings
DARK = -1.0             # "not measured" and "no intensity" alike, as published


def _check_width(width: int) -> int:
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ValueError(f"width is {width!r}, expected a whole number of channels, such as {PUBLISHED_WIDTH} or {COMPACT_WIDTH}.")
    return width


class _Down(nn.Sequential):
    """Halve the plane: convolution, instance norm, leaky ReLU, dropout."""

    def __init__(self, inner: int, outer: int, norm: bool = True, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = [nn.Conv2d(inner, outer, 4, 2, 1, bias=False)]
        if norm:
            layers.append(nn.InstanceNorm2d(outer))
        layers.append(nn.LeakyReLU(0.2))
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers)


class _Up(nn.Sequential):
    """Double the plane: transposed convolution, instance norm, ReLU, dropout."""

    def __init__(self, inner: int, outer: int, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = [nn.ConvTranspose2d(inner, outer, 4, 2, 1, bias=False), nn.InstanceNorm2d(outer), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers)


class DSFUGenerator(nn.Module):
    """The U-Net of DSFU-Net (Fuller & Rudden, IUCrJ 11, 2024, 34): 29,232,129 parameters at the published width.

    Parameters
    ----------
    width : int
        Channels after the first convolution; 64 as published, `COMPACT_WIDTH` for the form that ships.

    Notes
    -----
    Input and output (B, 1, H, W). The publication knows 256 × 256 only; other sizes are padded on the right and below with
    `DARK` to a multiple of 64 and cropped again. Dropout is a part of training only: an evaluated network is deterministic.
    """

    def __init__(self, width: int = PUBLISHED_WIDTH) -> None:
        super().__init__()
        w = self.width = _check_width(width)
        self.down = nn.ModuleList([
            _Down(1, w, norm=False), _Down(w, 2 * w), _Down(2 * w, 4 * w), _Down(4 * w, 8 * w, dropout=0.5),
            _Down(8 * w, 8 * w, dropout=0.5), _Down(8 * w, 8 * w, norm=False, dropout=0.5),
        ])  # fmt: skip
        self.up = nn.ModuleList([
            _Up(8 * w, 8 * w, 0.5), _Up(16 * w, 8 * w, 0.5), _Up(16 * w, 4 * w), _Up(8 * w, 2 * w), _Up(4 * w, w),
        ])  # fmt: skip
        self.last = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(2 * w, 1, 4, padding=1), nn.Tanh()
        )
        _initialise(self)

    def forward(self, plane: Tensor) -> Tensor:
        if plane.ndim != 4 or plane.shape[1] != 1:
            raise ValueError(f"plane has shape {tuple(plane.shape)}, expected (batch, 1, rows, columns).")
        height, columns = plane.shape[2:]
        x = F.pad(plane, (0, -columns % MULTIPLE, 0, -height % MULTIPLE), value=DARK)
        skips = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        skips.pop()
        for layer in self.up:
            x = torch.cat([layer(x), skips.pop()], 1)
        return self.last(x)[..., :height, :columns]


class PatchDiscriminator(nn.Module):
    """Judges patches: does this answer belong to that scattering? 2,763,712 parameters at the published width.

    ``forward(answer, scattering)``, both (B, 1, H, W), gives one number per patch of 16 × 16 pixels (about 1 where it
    takes the answer for the truth). H and W are multiples of 16.
    """

    def __init__(self, width: int = PUBLISHED_WIDTH) -> None:
        super().__init__()
        w = self.width = _check_width(width)
        layers: list[nn.Module] = [nn.Conv2d(2, w, 4, 2, 1), nn.LeakyReLU(0.2)]
        for inner, outer in ((w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w)):
            layers += [nn.Conv2d(inner, outer, 4, 2, 1), nn.InstanceNorm2d(outer), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(8 * w, 1, 4, padding=1, bias=False))
        _initialise(self)

    def forward(self, answer: Tensor, scattering: Tensor) -> Tensor:
        return self.layers(torch.cat([answer, scattering], 1))


class DSFUNet(nn.Module):
    """The pair of generators: ``(form factor, short-range order)`` from a plane (B, 1, H, W), each on the scale -1 to 1."""

    def __init__(self, width: int = PUBLISHED_WIDTH) -> None:
        super().__init__()
        self.form_factor = DSFUGenerator(width)
        self.sro = DSFUGenerator(width)

    def forward(self, plane: Tensor) -> tuple[Tensor, Tensor]:
        return self.form_factor(plane), self.sro(plane)


class Pix2Pix(nn.Module):
    """Both players of the adversarial game: the pair of generators and a discriminator for each.

    One forward pass gives every score that the losses of both players need, so that one optimiser step trains both: the
    generators are judged by discriminators whose weights are held constant, the discriminators see answers cut off from
    the generators. Each player's gradient is that of its own loss alone.
    """

    def __init__(self, width: int = PUBLISHED_WIDTH) -> None:
        super().__init__()
        self.pair = DSFUNet(width)
        self.critics = nn.ModuleDict({name: PatchDiscriminator(width) for name in ("form_factor", "sro")})

    def forward(self, plane: Tensor, scattering: Tensor, truth: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Answers and scores for each of ``form_factor`` and ``sro``.

        Parameters
        ----------
        plane : (B, 1, H, W), as measured
        scattering : (B, 1, H, W), without artefacts: what the discriminators compare with
        truth : mapping of (B, 1, H, W)

        Returns
        -------
        dict
            For each part ``answer`` (B, 1, H, W) and the patch scores ``judged`` (for the generator), ``real`` and ``fake``
            (for the discriminator).
        """
        out = {}
        for name, answer in zip(("form_factor", "sro"), self.pair(plane), strict=True):
            critic = self.critics[name]
            constant = {key: value.detach() for key, value in critic.named_parameters()}
            out[name] = {
                "answer": answer,
                "judged": functional_call(critic, constant, (answer, scattering)),
                "real": critic(truth[name], scattering),
                "fake": critic(answer.detach(), scattering),
            }
        return out


def _initialise(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02, no bias: what image-to-image networks start from."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, 0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


# ---------------------------------------------------------------------- the unrolled network

CELL = 48               # points an edge of the cell in which the order is held
STAGES = 3
CHANNELS = 24           # of the U-Net, at half the resolution of the plane
COARSEST = 16           # pixels of the plane an edge of the coarsest level


class Fold(nn.Module):
    """From pixels to a cell of ``size`` × ``size`` points and back, by bilinear weights with periodic edges.

    Parameters
    ----------
    zone : (B, H, W, 2)
        Coordinates of the pixels in units of the reciprocal lattice vectors in the plane; only their fractions matter.
    even : (B,) bool
        Whether S(h) = S(-h), so that both halves of the cell are summed.
    size : int
    """

    def __init__(self, zone: Tensor, even: Tensor, size: int = CELL) -> None:
        super().__init__()
        self.size, self.shape, self.even = size, zone.shape[1:3], even[:, None, None]
        place = ((zone - zone.floor()) * size).flatten(1, 2)
        base = place.floor()
        part = (place - base).float()
        base, self.weight, self.index = base.long() % size, [], []
        batch = size * size * torch.arange(len(zone), device=zone.device)[:, None]
        for i in (0, 1):
            for j in (0, 1):
                row, column = (base[..., 0] + i) % size, (base[..., 1] + j) % size
                self.index.append((batch + row * size + column).flatten())
                self.weight.append((part[..., 0] if i else 1 - part[..., 0]) * (part[..., 1] if j else 1 - part[..., 1]))

    def sums(self, value: Tensor) -> Tensor:
        """(B, size, size) weighted sums of planes (B, H, W)."""
        flat = value.flatten(1)
        out = value.new_zeros(len(value) * self.size**2)
        for index, weight in zip(self.index, self.weight, strict=True):
            out = out.index_add(0, index, (flat * weight).flatten())
        out = out.reshape(len(value), self.size, self.size)
        return torch.where(self.even, out + out.flip(1, 2).roll((1, 1), (1, 2)), out)

    def plane(self, cell: Tensor) -> Tensor:
        """(B, H, W) the cell (B, size, size) at every pixel."""
        flat = cell.flatten()
        total = sum(flat[index].reshape(len(cell), -1) * weight for index, weight in zip(self.index, self.weight, strict=True))
        return total.reshape(len(cell), *self.shape)


class _Residual(nn.Module):
    """x + two convolutions of it, the second of which starts small; ``periodic`` where the edges meet."""

    def __init__(self, width: int, dilation: int = 1, periodic: bool = False) -> None:
        super().__init__()
        mode = "circular" if periodic else "zeros"
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, padding_mode=mode)
        self.second = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, padding_mode=mode)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class PlaneUNet(nn.Module):
    """Light U-Net on a plane: maps (B, inner, H, W) in, (B, outer, H, W) out, H and W multiples of `COARSEST`.

    It works at half the resolution (2 × 2 pixels become channels), with additive skips and no normalisation, so that it
    keeps the scale and takes planes of any size. The answer starts at 0.
    """

    def __init__(self, inner: int, outer: int, width: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 3 * width, 4 * width)
        self.enter = nn.Conv2d(4 * inner, width, 3, padding=1)
        self.left = nn.ModuleList([_Residual(w) for w in widths])
        self.down = nn.ModuleList([nn.Conv2d(a, b, 2, 2) for a, b in zip(widths, widths[1:], strict=False)])
        self.up = nn.ModuleList([nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False)])
        self.right = nn.ModuleList([_Residual(w) for w in widths[:-1]])
        self.leave = nn.Conv2d(width, 4 * outer, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, maps: Tensor) -> Tensor:
        x = self.enter(F.pixel_unshuffle(maps, 2))
        skips = []
        for block, down in zip(self.left, self.down, strict=False):
            x = block(x)
            skips.append(x)
            x = down(x)
        x = self.left[-1](x)
        for up, block in zip(reversed(self.up), reversed(self.right), strict=True):
            x = block(F.interpolate(up(x), scale_factor=2, mode="nearest") + skips.pop())
        return F.pixel_shuffle(self.leave(F.silu(x)), 2)


class CellNet(nn.Module):
    """Periodic convolutions on the order in its cell, (B, 4, n, n) in, (B, 1, n, n) out; the answer starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(4, width, 3, padding=1, padding_mode="circular")
        self.blocks = nn.ModuleList([_Residual(width, d, periodic=True) for d in (1, 2, 4)])
        self.leave = nn.Conv2d(width, 1, 3, padding=1, padding_mode="circular")
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, maps: Tensor) -> Tensor:
        x = self.enter(maps)
        for block in self.blocks:
            x = block(x)
        return self.leave(F.silu(x))


def _root(x: Tensor) -> Tensor:
    return (x.clamp_min(0.0) + 1e-6).sqrt()


def local_mean(data: Tensor, seen: Tensor, window: int = 17) -> Tensor:
    """Mean of what is measured in a square of ``window`` pixels about each pixel, drawn a little to that of the plane."""
    usual = data.sum((1, 2), keepdim=True) / seen.sum((1, 2), keepdim=True).clamp_min(1.0)
    near, count = (F.avg_pool2d(x[:, None], window, 1, window // 2)[:, 0] for x in (data, seen))
    return (near + 0.02 * usual) / (count + 0.02)


class UnrolledNet(nn.Module):
    """Alternating least squares for D·S + B, unrolled, with learned denoisers in between (algorithm unrolling).

    In each of ``stages`` rounds with the same weights, a U-Net reads the plane, what is measured of it, the order S in
    place, the present form factor D and background B, the ratio I/S and the residual, and answers with D and B everywhere
    and with how far each pixel is to be trusted; then the order in one cell is the weighted least-squares answer
    ``S = Σ w D (I - B) / Σ w D²`` over all pixels that fold onto a point, corrected by periodic convolutions and scaled to
    the mean 1, which fixes the scale that D·S leaves open.

    Parameters
    ----------
    width : int
        Channels of the U-Net at its finest level, and of the convolutions in the cell.
    stages : int
        Rounds.
    """

    MAPS = 10

    def __init__(self, width: int = CHANNELS, stages: int = STAGES) -> None:
        super().__init__()
        self.width = _check_width(width)
        if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
            raise ValueError(f"stages is {stages!r}, expected a whole number of rounds, such as {STAGES}.")
        self.stages = stages
        self.plane_net = PlaneUNet(self.MAPS, 3, width)
        self.cell_net = CellNet(width)

    def forward(self, intensity: Tensor, mask: Tensor, guide: Tensor, fold: Fold) -> list[dict[str, Tensor]]:
        """The answers of every round, the last of which is the best.

        Parameters
        ----------
        intensity : (B, H, W)
            In units of what counts as brightest; H and W multiples of `COARSEST`.
        mask : (B, H, W) bool, True = measured
        guide : (B, 2, H, W)
            Nearness to a node of the lattice (1 there) and |Q| over its largest value.
        fold : Fold

        Returns
        -------
        list of dict
            ``form_factor``, ``sro``, ``background`` (B, H, W), ``cell`` (B, n, n); D and B in units of the intensity.
        """
        if intensity.ndim != 3 or any(n % COARSEST for n in intensity.shape[1:]):
            found = tuple(intensity.shape)
            raise ValueError(f"intensity has shape {found}, expected (batch, rows, columns), multiples of {COARSEST}.")
        seen = mask.to(intensity.dtype)
        data = intensity.masked_fill(~mask, 0.0)
        root = _root(data) * seen
        cell = data.new_ones(len(data), fold.size, fold.size)
        order = torch.ones_like(data)
        factor, background = local_mean(data, seen), torch.zeros_like(data)
        out = []
        for _ in range(self.stages):
            ratio = _root((data - background) * order / (order.square() + 0.05)) * seen
            left = (root - _root(factor * order + background)) * seen
            maps = torch.stack([root, seen, order.clamp_max(16.0).sqrt() - 1, _root(factor), _root(background),
                                ratio.clamp_max(3.0), left, ratio - _root(factor) * seen, guide[:, 0], guide[:, 1]], 1)
            answer = self.plane_net(maps).float()
            factor = F.softplus(_root(factor) + answer[:, 0], beta=8.0).square()
            background = F.softplus(answer[:, 1] - 0.5, beta=8.0).square()
            trust = torch.sigmoid(answer[:, 2] + 2.0) * seen / (factor + 0.03)
            upper = fold.sums(trust * factor * (data - background))
            lower = fold.sums(trust * factor.square())
            usual = lower.mean((1, 2), keepdim=True) + 1e-12
            raw = ((upper + 0.02 * usual) / (lower + 0.02 * usual)).clamp(0.0, 50.0)
            known = (lower / usual + 1e-3).log()
            spread = torch.stack([_root(raw) - 1, known, _root(cell) - 1, _root(raw) - _root(cell)], 1)
            cell = F.softplus(_root(raw) + self.cell_net(spread).float()[:, 0], beta=16.0).square()
            cell = torch.where(fold.even, 0.5 * (cell + cell.flip(1, 2).roll((1, 1), (1, 2))), cell)
            cell = cell / cell.mean((1, 2), keepdim=True)
            order = fold.plane(cell)
            out.append({"form_factor": factor, "sro": order, "background": background, "cell": cell})
        return out
