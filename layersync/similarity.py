"""How alike two blocks' tokens are: (B, N, D), (B, N, D), mask -> scalar, in float32.

The larger the more alike: the distances among them are negative. `mask` is (B, N), true where a
token counts; None counts all. Pass one as `LayerSync(pairs, similarity=SIMILARITIES["spatial"])`,
its options through `functools.partial`; `trd` does not go without: `partial(trd, frames=9)`.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .ranks import sum_over_ranks
from .relations import relation, trd

Similarity = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def mean_over_tokens(per_token: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N) -> scalar: mean over each image's tokens, then over the batch.

    An image without tokens counts as 0.

    Raises:
        ValueError: a mask that is not (B, N).
    """
    if mask is None:
        return per_token.mean()
    if mask.shape != per_token.shape:
        raise ValueError(f"the mask is {tuple(mask.shape)}, the tokens {tuple(per_token.shape)}")
    mask = mask.to(per_token.dtype)
    # Mean per image first: then ranks and micro-batches average to the value of the joint batch.
    return ((per_token * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def mean_token(features: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N, D) -> (B, 1, D): the mean of each image's tokens."""
    if mask is None:
        return features.mean(1, keepdim=True)
    counts = mask.to(features.dtype).unsqueeze(-1)
    return (features * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp(min=1)


def mean_image(features: Tensor, mask: Tensor | None, all_ranks: bool = False) -> Tensor:
    """(B, N, D) -> (N, D): the mean over the batch at each token's position; no gradient."""
    features = features.detach()
    counts = torch.ones_like(features[..., :1]) if mask is None else mask.to(features)[..., None]
    total, count = (features * counts).sum(0), counts.sum(0)
    if all_ranks:
        total, count = sum_over_ranks(total), sum_over_ranks(count)
    return total / count.clamp(min=1)


def cosine(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cosine along the channels, mean over each image's tokens, mean over the batch (Eq. 2).

    Args:
        student, teacher: (B, N, D) in any dtype; computed in float32 whatever the autocast.
        mask: (B, N), true where a token counts. An image without tokens counts as 0.
    """
    per_token = F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return mean_over_tokens(per_token, mask)


def centred(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, all_ranks: bool = False
) -> Tensor:
    """Cosine of what remains after each block's mean over the batch, per position, is taken away.

    The raw cosine is dominated by what all images share: it starts at 1 and stays high untrained.

    Args:
        all_ranks: the mean of the batch of all ranks, not of this rank's own.

    Raises:
        ValueError: one image alone, which is its own mean.
    """
    if len(student) < 2 and not all_ranks:
        raise ValueError("the centred cosine needs at least 2 images: one is its own mean")
    student, teacher = student.float(), teacher.float()
    return cosine(
        student - mean_image(student, mask, all_ranks),
        teacher - mean_image(teacher, mask, all_ranks),
        mask,
    )


def spatial(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cosine of what remains after each image's mean token is taken away (iREPA, 2512.10794)."""
    student, teacher = student.float(), teacher.float()
    return cosine(student - mean_token(student, mask), teacher - mean_token(teacher, mask), mask)


def smooth_l1(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, beta: float = 0.05
) -> Tensor:
    """Minus SRA's distance (arXiv 2505.02831): x^2 / (2 beta) below beta, |x| - beta / 2 above.

    Raw features: it depends on their scale, and needs a weight of its own.
    """
    distance = F.smooth_l1_loss(student.float(), teacher.float(), beta=beta, reduction="none")
    return mean_over_tokens(-distance.mean(-1), mask)


SIMILARITIES: dict[str, Callable[..., Tensor]] = {
    "cosine": cosine,
    "centred": centred,
    "centred_all": partial(centred, all_ranks=True),
    "spatial": spatial,
    "smooth_l1": smooth_l1,
    "relation": relation,
    "trd": trd,
}
