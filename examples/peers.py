"""Networks and blocks of other papers, reimplemented from the papers for comparison only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CCA(nn.Module):
    """Contrast-aware channel attention, section 3.3 of IMDN (Hui et al., 2019)."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        variance = (x - mean).square().mean(dim=(2, 3), keepdim=True)
        contrast = (variance + 1e-6).sqrt()  # sqrt has no finite gradient at 0, where a map is constant
        return x * self.gate(contrast + mean)


class IMDB(nn.Module):
    """Information multi-distillation block, section 3.2 of IMDN: a quarter of the channels is kept at each step."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kept = channels // 4
        rest = channels - self.kept
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(rest, channels, 3, padding=1)
        self.third = nn.Conv2d(rest, channels, 3, padding=1)
        self.last = nn.Conv2d(rest, self.kept, 3, padding=1)
        self.attention = CCA(4 * self.kept)
        self.fuse = nn.Conv2d(4 * self.kept, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for conv in (self.first, self.second, self.third):
            features = F.leaky_relu(conv(rest), 0.05, inplace=True)
            distilled, rest = features.split([self.kept, features.shape[1] - self.kept], dim=1)
            kept.append(distilled)
        kept.append(self.last(rest))
        return self.fuse(self.attention(torch.cat(kept, dim=1))) + x


class IMDN(nn.Module):
    """Information multi-distillation network (Hui et al., 2019): 64 channels, six blocks, 715,176 parameters at ×4."""

    def __init__(self, scale: int = 4, *, channels: int = 64) -> None:
        super().__init__()
        num_blocks = 6
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(IMDB(channels) for _ in range(num_blocks))
        self.fuse = nn.Sequential(nn.Conv2d(num_blocks * channels, channels, 1), nn.LeakyReLU(0.05, inplace=True))
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        self.enlarge = nn.Sequential(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        shallow = features = self.head(x)
        outputs = []
        for block in self.blocks:
            features = block(features)
            outputs.append(features)
        return self.enlarge(self.smooth(self.fuse(torch.cat(outputs, dim=1))) + shallow)


class ESA(nn.Module):
    """Enhanced spatial attention of RFANet (Liu et al., 2020), with the width used in RFDN."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 4
        self.squeeze = nn.Conv2d(channels, width, 1)
        self.shrink = nn.Sequential(nn.Conv2d(width, width, 3, stride=2), nn.MaxPool2d(7, stride=3))
        self.convs = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.bypass = nn.Conv2d(width, width, 1)
        self.expand = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeeze(x)
        small = self.convs(self.shrink(squeezed))
        large = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.expand(large + self.bypass(squeezed)))


class RFDB(nn.Module):
    """Residual feature distillation block of RFDN (Liu et al., 2020), section 3.2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kept = channels // 2
        self.distil = nn.ModuleList(nn.Conv2d(channels, kept, 1) for _ in range(3))
        self.refine = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(channels, kept, 3, padding=1)
        self.fuse = nn.Conv2d(4 * kept, channels, 1)
        self.attention = ESA(channels)

    def forward(self, x: Tensor) -> Tensor:
        kept, features = [], x
        for distil, refine in zip(self.distil, self.refine, strict=True):
            kept.append(F.leaky_relu(distil(features), 0.05))
            features = F.leaky_relu(refine(features) + features, 0.05)
        kept.append(F.leaky_relu(self.last(features), 0.05))
        return self.attention(self.fuse(torch.cat(kept, dim=1)))


class PreUpsampling(nn.Module):
    """A network from before pixel shuffle: bicubic enlargement, then convolutions on the luma at full size."""

    def __init__(self, scale: int, convs: nn.Sequential, *, residual: bool) -> None:
        super().__init__()
        self.scale = scale
        self.convs = convs
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        enlarged = F.interpolate(x[:, :1], scale_factor=self.scale, mode="bicubic", align_corners=False)
        out = self.convs(enlarged)
        return out + enlarged if self.residual else out


def srcnn() -> PreUpsampling:
    """SRCNN ×4 (Dong et al., 2016) in its 9-5-5 form with 57K parameters."""
    convs = [nn.Conv2d(1, 64, 9, padding=4), nn.Conv2d(64, 32, 5, padding=2), nn.Conv2d(32, 1, 5, padding=2)]
    relu = nn.ReLU(inplace=True)
    return PreUpsampling(4, nn.Sequential(convs[0], relu, convs[1], relu, convs[2]), residual=False)


def vdsr() -> PreUpsampling:
    """VDSR ×4 (Kim et al., 2016): twenty 3×3 convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, padding=1)]
    for _ in range(18):
        layers += [nn.ReLU(inplace=True), nn.Conv2d(64, 64, 3, padding=1)]
    layers += [nn.ReLU(inplace=True), nn.Conv2d(64, 1, 3, padding=1)]
    return PreUpsampling(4, nn.Sequential(*layers), residual=True)
