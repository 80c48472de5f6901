"""What enters a SiT besides tokens: time, condition, positions. Each condition owns its null."""

import math

import torch
from torch import Tensor, nn


class TimestepEmbedder(nn.Module):
    """t (B,) -> (B, D): sinusoids of t, then a two-layer MLP (DiT)."""

    def __init__(self, width: int, frequencies: int = 256, max_period: float = 10_000.0) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.max_period = max_period
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.reset_frequencies()

    def reset_frequencies(self) -> None:
        # A buffer moves with the model: no tensor is made on the CPU during a forward. It is not
        # part of the state dict, which stays the public one.
        half = self.frequencies // 2
        steps = torch.arange(half, dtype=torch.float32) / half
        freqs = torch.exp(-math.log(self.max_period) * steps)
        self.register_buffer("freqs", freqs, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.freqs
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class ClassEmbedder(nn.Module):
    """Class ids y (B,) -> (B, D); id `num_classes` is the null condition.

    In train mode a share `dropout` of the labels is dropped, as SiT does; a training loop that
    drops them itself (ours, so that the drop is a function of seed and step) passes 0.
    """

    def __init__(self, num_classes: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)
        self.num_classes = num_classes
        self.dropout = dropout

    def null(self, y: Tensor) -> Tensor:
        """The null condition for each row of y."""
        return torch.full_like(y, self.num_classes)

    def drop(self, y: Tensor, where: Tensor) -> Tensor:
        """y with its rows at `where` (B,) bool replaced by the null condition."""
        return torch.where(where.view(-1, *[1] * (y.ndim - 1)), self.null(y), y)

    def embed(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)

    def forward(self, y: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            y = self.drop(y, torch.rand(y.shape[0], device=y.device) < self.dropout)
        return self.embed(y)


class MultiLabelEmbedder(ClassEmbedder):
    """Multi-hot labels y (B, K) -> (B, D): the mean of the set labels' rows; all zeros is null."""

    def null(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def embed(self, y: Tensor) -> Tensor:
        table = self.embedding_table.weight
        y = y.to(table.dtype)
        count = y.sum(1, keepdim=True)
        mean = (y @ table[:-1]) / count.clamp(min=1)
        return torch.where(count > 0, mean, table[-1])


class NoCondition(nn.Module):
    """Unconditional models: whatever y is, it adds nothing."""

    def null(self, y: Tensor | None) -> Tensor | None:
        return y

    def drop(self, y: Tensor | None, where: Tensor) -> Tensor | None:
        return y

    def forward(self, y: Tensor | None = None) -> float:
        return 0.0


def sincos_positions(width: int, grid: tuple[int, ...]) -> Tensor:
    """Fixed sin-cos table (1, prod(grid), width), tokens in row-major order.

    The width is shared evenly among the axes, the last axis first, as in MAE and the public SiT;
    what does not divide evenly goes to the first axis, which is the time of videos.
    """
    if width % 2 or width < 2 * len(grid):
        raise ValueError(f"width {width} is too small or odd for positions on {len(grid)} axes")
    share = width // len(grid) // 2 * 2
    widths = [share] * (len(grid) - 1) + [width - share * (len(grid) - 1)]
    coordinates = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij"
    )
    parts = []
    for axis_width, position in zip(widths, reversed(coordinates), strict=True):
        half = axis_width // 2
        omega = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = position.reshape(-1, 1) * omega
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).float().unsqueeze(0)
