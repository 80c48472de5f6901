"""How alike two blocks' tokens are: (B, N, D), (B, N, D), mask -> scalar, in float32."""

import torch.nn.functional as F
from torch import Tensor


def cosine(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cosine along the channels, mean over each image's tokens, mean over the batch (Eq. 2).

    Args:
        student, teacher: (B, N, D) in any dtype; computed in float32 whatever the autocast.
        mask: (B, N), true where a token counts. An image without tokens counts as 0.
    """
    per_token = F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    if mask is None:
        return per_token.mean()
    if mask.shape != per_token.shape:
        raise ValueError(f"the mask is {tuple(mask.shape)}, the tokens {tuple(per_token.shape)}")
    mask = mask.to(per_token.dtype)
    # Mean per image first: then ranks and micro-batches average to the value of the joint batch.
    return ((per_token * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
