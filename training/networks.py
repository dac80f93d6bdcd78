"""The networks of the built-in audit, its examples and its benchmarks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class ResidualCnn(nn.Module):
    """A small residual network for 8x8 to 32x32 images: stem, two residual blocks, average pooling, linear head."""

    def __init__(self, classes: int = 10, channels: int = 16, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.block1 = ResidualBlock(channels)
        self.pool = nn.MaxPool2d(2)
        self.block2 = ResidualBlock(channels)
        self.head = nn.Linear(4 * channels, classes)
        self.spread = nn.AdaptiveAvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.block2(self.pool(self.block1(x)))
        logits: Tensor = self.head(self.spread(x).flatten(1))
        return logits


class Mlp(nn.Module):
    """A multi-layer perceptron on flattened records, ReLU between layers."""

    def __init__(self, features: int, classes: int, hidden: tuple[int, ...] = (64, 128)) -> None:
        super().__init__()
        sizes = (features, *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class TokenGru(nn.Module):
    """A GRU over the embeddings of ids [n, length], 0 to words - 1 (an id beyond them counts as the last); a linear
    head on the mean of its outputs.
    """

    def __init__(self, words: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.words = words
        self.embedding = nn.Embedding(words, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.gru(self.embedding(x.flatten(1).long().clamp(0, self.words - 1)))
        logits: Tensor = self.head(outputs.mean(1))
        return logits


class SequenceLstm(nn.Module):
    """An LSTM that reads an image [n, 1, rows, columns] row by row; a linear head on its last output."""

    def __init__(self, features: int = 8, classes: int = 10, hidden: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.lstm(x.squeeze(1))
        logits: Tensor = self.head(outputs[:, -1])
        return logits


class SequenceTransformer(nn.Module):
    """A Transformer encoder over the rows of an image [n, 1, rows, columns]; a linear head on the mean of its outputs.

    Where a row stands is told by learned positions (`nn.Embedding`), added to the embedded rows.
    """

    def __init__(
        self, steps: int = 8, features: int = 8, classes: int = 10, width: int = 32, heads: int = 4, layers: int = 2
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.positions = nn.Embedding(steps, width)
        block = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x.squeeze(1)) + self.positions(torch.arange(x.shape[2], device=x.device))
        logits: Tensor = self.head(self.encoder(rows).mean(1))
        return logits


def digits_cnn() -> nn.Module:
    """The dense model of the built-in audit: about 10,000 parameters."""
    return ResidualCnn(classes=10, channels=16)


def digits_mlp() -> nn.Module:
    """The usual network of membership-inference papers, on digits: 64-64-128-10."""
    return Mlp(64, 10)


def digits_lstm() -> nn.Module:
    """Digits as sequences of 8 rows: about 5,700 parameters."""
    return SequenceLstm()


def digits_transformer() -> nn.Module:
    """Digits as sequences of 8 rows: two encoder layers of width 32 with 4 heads, about 18,000 parameters."""
    return SequenceTransformer()
