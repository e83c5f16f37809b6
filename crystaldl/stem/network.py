"""Networks that find Bragg disks.

`DiskNet`, the default, works in diffraction space at half the resolution of its input and says for every cell whether a
disk is centred there, where exactly, how sure it is of that, and how large |V_g| is. `FCUNet` is the published complex
U-Net in Fourier space (Munshi et al., npj Comput. Mater. 8:254, 2022) that turns a pattern into an image of |V_g|.
`FactorNet` reads the disks that were found and tells |V_g| of each from all of them together.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 2  # input pixels a cell of DiskNet's output


# ------------------------------------------------------------------------------------------------ DiskNet


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (size // 2)
    layer = nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int = 1):
        super().__init__()
        self.first = _conv(width, width, dilation=dilation)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class DiskNet(nn.Module):
    """A small U-Net for centres of disks of about five pixels radius.

    Parameters
    ----------
    channels : int
        Of the input (`crystaldl.stem.prepare`).
    widths : sequence of int
        Channels at 1/2, 1/4, 1/8 and 1/16 of the input's resolution.

    With the default widths: 0.28 M parameters, 0.70 GFLOP for 256 × 256 px.
    """

    def __init__(self, channels: int = 5, widths=(16, 24, 48, 64)):
        super().__init__()
        a, b, c, d = widths
        self.stem = _conv(channels, a, 5, STRIDE)
        self.level0 = _conv(a, a)
        self.down1, self.level1 = _conv(a, b, stride=2), _Residual(b)
        self.down2, self.level2 = _conv(b, c, stride=2), _Residual(c)
        self.down3, self.level3 = _conv(c, d, stride=2), nn.Sequential(_Residual(d), _Residual(d, 2))
        self.up3, self.merge2 = nn.Conv2d(d, c, 1), _conv(c, c)
        self.up2, self.merge1 = nn.Conv2d(c, b, 1), _conv(b, b)
        self.up1, self.merge0 = nn.Conv2d(b, a, 1), _conv(a, a)
        self.last = _conv(a, a)
        self.head = nn.Conv2d(a, 5, 1)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.bias[0] = -4.0  # disks are rare
            self.head.weight.mul_(0.3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Input (B, C, H, W) to maps of cells (B, …, ⌈H/2⌉, ⌈W/2⌉).

        Returns
        -------
        dict
            ``heat`` (B, h, w): logit that a disk is centred in the cell; cell (i, j) is centred on input pixel
            (2 i, 2 j). ``offset`` (B, 2, h, w): from there to the disk's centre, input px. ``log_sigma`` (B, h, w):
            of its error, input px. ``log_v`` (B, h, w): ln |V_g| relative to the strongest reflection.
        """
        height, width = x.shape[2:]
        pad = (0, -width % 16, 0, -height % 16)
        if any(pad):
            x = F.pad(x, pad, mode="replicate")
        x0 = self.level0(self.stem(x))
        x1 = self.level1(self.down1(x0))
        x2 = self.level2(self.down2(x1))
        x3 = self.level3(self.down3(x2))
        y = self.merge2(x2 + F.interpolate(self.up3(x3), scale_factor=2))
        y = self.merge1(x1 + F.interpolate(self.up2(y), scale_factor=2))
        y = self.merge0(x0 + F.interpolate(self.up1(y), scale_factor=2))
        out = self.head(self.last(y))[:, :, : (height + 1) // 2, : (width + 1) // 2].float()
        return {
            "heat": out[:, 0],
            "offset": STRIDE * out[:, 1:3],
            "log_sigma": out[:, 3].clamp(-5, 3),
            "log_v": out[:, 4],
        }


def fused(network: DiskNet) -> DiskNet:
    """A copy for inference whose batch norms are folded into the convolutions before them."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
            module[0] = nn.utils.fusion.fuse_conv_bn_eval(module[0], module[1])
            module[1] = nn.Identity()
    return network


# ------------------------------------------------------------------------------------------------ FCU-Net


class ComplexConv2d(nn.Module):
    """Complex convolution of (B, 2 C, H, W), real parts first (Trabelsi et al., ICLR 2018).

    ``(A + iB) * (x + iy) = A*x - B*y + i (B*x + A*y)``; initial weights have Rayleigh moduli with He's variance and
    uniform phases.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3):
        super().__init__()
        modulus = torch.distributions.Weibull(math.sqrt(2.0) / math.sqrt(inputs * size * size), 2.0)
        # a Rayleigh distribution of parameter s is a Weibull one of scale s √2 and shape 2; s² = 1 / fan_in (He)
        modulus = modulus.sample((outputs, inputs, size, size))
        phase = 2 * math.pi * torch.rand(outputs, inputs, size, size)
        self.real = nn.Parameter(modulus * torch.cos(phase))
        self.imaginary = nn.Parameter(modulus * torch.sin(phase))
        self.bias = nn.Parameter(torch.zeros(2 * outputs))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.real, self.imaginary
        weight = torch.cat([torch.cat([a, -b], 1), torch.cat([b, a], 1)], 0)
        return F.conv2d(x, weight, self.bias, padding=a.shape[-1] // 2)


class ComplexBatchNorm2d(nn.Module):
    """Whitening of real and imaginary parts by the inverse root of their 2 × 2 covariance (Trabelsi et al., 2018)."""

    def __init__(self, channels: int, momentum: float = 0.1, epsilon: float = 1e-4):
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.gamma = nn.Parameter(torch.tensor([1 / math.sqrt(2), 0.0, 1 / math.sqrt(2)])[:, None].repeat(1, channels))
        self.beta = nn.Parameter(torch.zeros(2, channels))
        self.register_buffer("mean", torch.zeros(2, channels))
        self.register_buffer("covariance", torch.tensor([0.5, 0.0, 0.5])[:, None].repeat(1, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c2, h, w = x.shape
        parts = x.reshape(b, 2, c2 // 2, h, w)
        if self.training:
            mean = parts.mean((0, 3, 4))
            real, imaginary = (parts - mean[None, :, :, None, None]).unbind(1)
            moments = [(p * q).mean((0, 2, 3)) for p, q in ((real, real), (real, imaginary), (imaginary, imaginary))]
            covariance = torch.stack(moments)
            with torch.no_grad():
                self.mean.lerp_(mean, self.momentum)
                self.covariance.lerp_(covariance, self.momentum)
        else:
            mean, covariance = self.mean, self.covariance
            real, imaginary = (parts - mean[None, :, :, None, None]).unbind(1)
        rr, ri, ii = covariance[0] + self.epsilon, covariance[1], covariance[2] + self.epsilon
        # inverse square root of a 2 × 2 matrix by its trace and determinant
        root = (rr * ii - ri**2).clamp_min(1e-12).sqrt()
        scale = 1 / (root * (rr + ii + 2 * root).sqrt())
        wrr, wri, wii = (ii + root) * scale, -ri * scale, (rr + root) * scale
        grr, gri, gii = self.gamma
        matrix = torch.stack([grr * wrr + gri * wri, grr * wri + gri * wii, gri * wrr + gii * wri, gri * wri + gii * wii])
        m = matrix[:, None, :, None, None]
        out_real = m[0] * real + m[1] * imaginary + self.beta[0, :, None, None]
        out_imaginary = m[2] * real + m[3] * imaginary + self.beta[1, :, None, None]
        return torch.cat([out_real, out_imaginary], 1)


class _ComplexBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, depth: int, dropout: float):
        super().__init__()
        sizes = [inputs] + [outputs] * depth
        self.convolutions = nn.ModuleList(ComplexConv2d(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.norms = nn.ModuleList(ComplexBatchNorm2d(outputs) for _ in range(depth))
        self.dropout = dropout

    def forward(self, x: Tensor, sample: bool) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.dropout(F.relu(norm(convolution(x))), self.dropout, training=sample)
        return x


class FCUNet(nn.Module):
    """The Fourier-space complex U-Net of Munshi et al. (2022).

    The cross-spectrum of pattern and probe, a complex U-Net of seven levels on it, the inverse transform, and a real
    convolution block that ends in one linear channel: the image of |V_g|.

    Parameters
    ----------
    filters : int
        Complex filters F of the first level; level l has ``min(F 2^l, widest)``. The published weights' F is not known.
    depth : int
        Convolutions a block.
    levels : int
        Times the size is halved; the pattern's sides must be multiples of ``2^levels``.
    dropout : float
        Monte-Carlo dropout: always on in the published network. Here on while training, and on request.
    widest : int
        Most filters of a level: 256 as published, less in a compact network.
    size : int
        Side of the patterns it is trained for, px: in Fourier space the size is the sampling, to which the weights belong.
    """

    def __init__(
        self, filters: int = 16, depth: int = 2, levels: int = 7, dropout: float = 0.1, widest: int = 256, size: int = 256
    ):
        super().__init__()
        widths = [min(filters * 2**i, widest) for i in range(levels + 1)]
        self.levels, self.size = levels, size
        self.first = _ComplexBlock(1, widths[0], depth, dropout)
        self.encoder = nn.ModuleList(
            _ComplexBlock(a, b, depth, dropout) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.decoder = nn.ModuleList(
            _ComplexBlock(widths[i + 1] + widths[i], widths[i], depth, dropout) for i in reversed(range(levels))
        )
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Conv2d(filters, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU()]
            if i < depth - 1:
                layers.append(nn.Dropout(dropout))
        self.real_block = nn.Sequential(*layers)
        self.output = nn.Conv2d(filters, 1, 3, padding=1)
        with torch.no_grad():
            self.output.weight.mul_(0.1)  # images of |V_g| are nearly empty

    @staticmethod
    def cross_spectrum(pattern: Tensor, probe: Tensor) -> Tensor:
        """``FFT(pattern) · conj FFT(probe)`` of unit Frobenius norm, (B, 2, H, W): real and imaginary part.

        Both (B, H, W), centred, divided by the probe's maximum.
        """
        top = probe.amax((1, 2), keepdim=True).clamp_min(1e-20)
        a, b = (torch.fft.fft2(torch.fft.ifftshift(t / top, dim=(1, 2))) for t in (pattern, probe))
        product = a * b.conj()
        product = product / torch.linalg.vector_norm(product, dim=(1, 2), keepdim=True).clamp_min(1e-20)
        return torch.view_as_real(product).permute(0, 3, 1, 2).contiguous()

    def forward(self, pattern: Tensor, probe: Tensor, sample: bool | None = None) -> Tensor:
        """Image of |V_g| (B, H, W) of patterns and probes (B, H, W).

        ``sample``: draw dropout masks (Monte-Carlo dropout); by default only while training.
        """
        h, w = pattern.shape[1:]
        if h % 2**self.levels or w % 2**self.levels:
            raise ValueError(f"pattern has {h} × {w} px; expected multiples of {2**self.levels}.")
        sample = self.training if sample is None else sample
        # unit norm over H·W pixels would leave numbers of 1e-3: the first batch norm sees a scale of one
        x = self.first(self.cross_spectrum(pattern, probe) * math.sqrt(h * w), sample)
        skips = []
        for block in self.encoder:
            skips.append(x)
            x = block(F.max_pool2d(x, 2), sample)
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            x = _complex_cat(F.interpolate(x, scale_factor=2), skip)
            x = block(x, sample)
        real, imaginary = x.chunk(2, 1)
        image = torch.fft.ifft2(torch.complex(real, imaginary), norm="ortho").real
        image = torch.fft.fftshift(image, dim=(2, 3))
        return self.output(self.real_block(image))[:, 0]


def _complex_cat(a: Tensor, b: Tensor) -> Tensor:
    (ar, ai), (br, bi) = a.chunk(2, 1), b.chunk(2, 1)
    return torch.cat([ar, br, ai, bi], 1)


# ------------------------------------------------------------------------------------------------ FactorNet


class _Exchange(nn.Module):
    """Every disk looks at all others, the more at those its pair features point to; then at itself."""

    def __init__(self, width: int, heads: int, pairs: int):
        super().__init__()
        self.heads = heads
        self.before, self.asked = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.bias, self.heard = nn.Linear(pairs, heads), nn.Linear(width, width)
        self.after = nn.LayerNorm(width)
        self.own = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, pairs: Tensor, mask: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.asked(self.before(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.bias(pairs).permute(0, 3, 1, 2) + mask
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.heard(heard.transpose(1, 2).reshape(b, n, width))
        return x + self.own(self.after(x))


class FactorNet(nn.Module):
    """|V_g| of the disks of a pattern: a transformer whose tokens are disks, its attention led by what couples them.

    Parameters
    ----------
    tokens, pairs : int
        Features of a disk and of a pair of disks (`crystaldl.stem.reflections`).
    width, heads, layers, pair_width : int

    With the defaults: 0.15 M parameters; the order of the disks does not matter, nor how many there are.
    """

    def __init__(self, tokens: int = 30, pairs: int = 6, width: int = 64, heads: int = 4, layers: int = 4, pair_width: int = 12):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(tokens, width), nn.GELU(), nn.Linear(width, width))
        self.couple = nn.Sequential(nn.Linear(pairs, pair_width), nn.GELU(), nn.Linear(pair_width, pair_width), nn.GELU())
        self.layers = nn.ModuleList(_Exchange(width, heads, pair_width) for _ in range(layers))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, tokens: Tensor, pairs: Tensor, valid: Tensor) -> Tensor:
        """(B, N) ln |V_g| relative to the strongest reflection, of disks (B, N, …), pairs (B, N, N, …) and valid (B, N)."""
        mask = torch.where(valid, 0.0, -1e4)[:, None, None]
        x, pairs = self.embed(tokens), self.couple(pairs)
        for layer in self.layers:
            x = layer(x, pairs, mask)
        return self.out(x)[..., 0]
