"""Token relation distillation (TRD): not the tokens are compared, but their cosines to each other.

The paper's Eqs. 4 to 6, after VideoREPA (arXiv 2505.23656). A rotation of either block's channels
does not matter.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .precision import float32_product


def relation(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """`trd` of one frame: minus the distance of each image's token-by-token cosine matrices.

    Of a video, it is one mean over all pairs of tokens, in a frame or not, as in VideoREPA's code.
    """
    return trd(student, teacher, mask, frames=1)


def trd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    frames: int,
    margin: float = 0.0,
    grid: Sequence[int] = (),
    pool: Sequence[int] = (),
) -> Tensor:
    """Minus TRD (Eq. 6): |cos of student tokens - cos of teacher tokens|, mean over the pairs of
    tokens of a frame (spatial), plus the mean over the pairs of different frames (temporal).

        LayerSync([(4, 24)], weight=0.5, similarity=partial(trd, frames=9))

    The paper states no weight; 0.5 is VideoREPA's. One frame has no temporal term: it is 0.

    Memory is that of one frame's pairs, (N / frames) x N: the products are made frame by frame,
    and once more in the backward pass.

    Args:
        student, teacher: (B, N, D), tokens in order of frame, row, column; float32 from here on.
        mask: (B, N), true where a token counts. Both means are over pairs that count, of a video,
            then over the batch; without such a pair a mean is 0.
        frames: f of N = f * h * w.
        margin: differences up to this count as 0; VideoREPA's code has 0.1, the paper none.
        grid: (h, w), which `pool` needs to know.
        pool: (rows, columns) of tokens of a frame that are averaged to one before; none if empty.

    Raises:
        ValueError: tokens that are no `frames` frames of `grid`; a pool that does not divide it, or
            with a mask; a negative margin; a mask that is not (B, N).
    """
    if mask is not None and mask.shape != student.shape[:2]:
        raise ValueError(f"the mask is {tuple(mask.shape)}, the tokens {tuple(student.shape[:2])}")
    if mask is not None and pool:
        raise ValueError("TRD cannot pool tokens of which a mask leaves some out")
    if frames < 1 or student.shape[1] % frames:
        raise ValueError(f"{student.shape[1]} tokens are not those of {frames} equal frames")
    if not margin >= 0:
        raise ValueError(f"TRD's margin is 0 or more, not {margin}")
    student, teacher = student.float(), teacher.float()
    if pool:
        check_pool(pool, grid)
        student, teacher = (pooled(x, frames, grid, pool) for x in (student, teacher))
    student, teacher = (F.normalize(x, dim=-1) for x in (student, teacher))
    counts = student.new_ones(student.shape[:2]) if mask is None else mask.to(student.dtype)
    if mask is not None:
        # A token that does not count is 0 in both blocks: its products do not differ.
        student, teacher = (x * counts.unsqueeze(-1) for x in (student, teacher))
    spatial, temporal = sums_over_pairs(student, teacher, frames, margin)
    tokens = counts.unflatten(1, (frames, -1)).sum(2)
    within = tokens.square().sum(1)
    across = (tokens.sum(1).square() - within) / 2
    return -(spatial / within.clamp(min=1) + temporal / across.clamp(min=1)).mean()


def sums_over_pairs(
    student: Tensor, teacher: Tensor, frames: int, margin: float
) -> tuple[Tensor, Tensor]:
    """Distances (B,) of the relations of unit tokens (B, N, D), summed over the pairs of tokens of
    a frame, and over those of two frames, each two frames once: the relation is symmetric."""
    size = student.shape[1] // frames
    own, others = [], []
    for start in range(0, frames * size, size):
        later = slice(start, None)  # this frame and those after it
        distances = checkpoint(
            frame_distances, student[:, later], teacher[:, later], size, margin,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
        own.append(distances[:, 0])
        others.append(distances[:, 1:].sum(1))
    return torch.stack(own).sum(0), torch.stack(others).sum(0)


def frame_distances(student: Tensor, teacher: Tensor, size: int, margin: float) -> Tensor:
    """(B, k * size, D), unit tokens of k frames -> (B, k): distances of the relations of the first
    frame's tokens to those of each frame, summed over the size * size pairs."""
    gram = float32_product(student[:, :size], student.mT)
    distance = (gram - float32_product(teacher[:, :size], teacher.mT)).abs()
    if margin:
        distance = (distance - margin).relu()
    return distance.unflatten(2, (-1, size)).sum((1, 3))


def check_pool(pool: Sequence[int], grid: Sequence[int]) -> None:
    """
    Raises:
        ValueError: a pool that does not divide the grid of a frame.
    """
    if len(pool) != len(grid) or any(p < 1 or n % p for n, p in zip(grid, pool, strict=True)):
        cell, tokens = (" x ".join(map(str, axes)) or "unknown" for axes in (pool, grid))
        raise ValueError(f"a pool of {cell} does not divide a frame's {tokens} tokens")


def pooled(x: Tensor, frames: int, grid: Sequence[int], pool: Sequence[int]) -> Tensor:
    """(B, frames * tokens, D) -> (B, frames * cells, D): the mean of the tokens of each cell."""
    if frames * math.prod(grid) != x.shape[1]:
        raise ValueError(f"{x.shape[1]} tokens are not those of {frames} frames of {tuple(grid)}")
    cells = [part for n, p in zip(grid, pool, strict=True) for part in (n // p, p)]
    return x.unflatten(1, (frames, *cells)).mean(tuple(range(3, 2 + len(cells), 2))).flatten(1, -2)
