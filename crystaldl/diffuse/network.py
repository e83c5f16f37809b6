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
