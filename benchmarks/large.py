"""Large inputs: what an audit of a MobileNet-sized net on 224x224x3 takes, and what a kill costs it.

300 records, 200 of them attacked; the net has random weights after one pass of batch norm, and what it answers are the
labels, so that there is something to attack without a training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE, CLASSES = 224, 100
# expansion, channels, how often, stride: a MobileNetV2 (Sandler et al. 2018)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
LAST = 2560


def normalised(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, and batch norm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        widen = [*normalised(inputs, wide), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*normalised(wide, wide, 3, stride, groups=wide), nn.ReLU6()]
        self.body = nn.Sequential(*widen, *depthwise, *normalised(wide, outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.adds else y


def mobile_net() -> nn.Module:
    """Inverted residuals, about 3 million parameters."""
    layers: list[nn.Module] = [*normalised(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, outputs, repeats, stride in STAGES:
        for repeat in range(repeats):
            layers.append(InvertedResidual(channels, outputs, stride if repeat == 0 else 1, expansion))
            channels = outputs
    layers += [*normalised(channels, LAST), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.BatchNorm1d(LAST), nn.Linear(LAST, CLASSES))


def pictures(count: int, seed: int = 0) -> Tensor:
    """Smooth coloured patches with a little grain, float32 [count, 3, 224, 224] in [0, 1]."""
    stream = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        coarse = torch.rand(1, 3, int(torch.randint(2, 12, (1,), generator=stream)), 7, generator=stream)
        picture = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=False)
        found.append(picture + 0.05 * torch.randn(picture.shape, generator=stream))
    return (torch.cat(found).clamp(0, 1) * 255).round() / 255


def calibrated(net: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """Random weights, and the statistics of batch norm from one pass over `x`."""
    torch.manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None  # the mean over the passes
    with torch.no_grad():
        net.train()
        for batch in x.split(50):
            net(batch)
    return net.eval()
