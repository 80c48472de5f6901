"""What is logged of a pair of blocks. Tensors stay on the device until the loop reads them."""

import torch
from torch import Tensor

from .precision import float32_product
from .similarity import cosine, mean_image


def effective_rank(tokens: Tensor) -> Tensor:
    """How many directions the features fill: (tr C)^2 / tr C^2 of the tokens' covariance C.

    The participation ratio, from 1, a line, to D, all alike; 0 where all tokens are equal. The
    entropy of the singular values says the same, but an SVD takes longer than the training step
    that it watches and waits for the device; this is one matrix product.

    Args:
        tokens: (M, D) in float32.
    """
    tokens = tokens - tokens.mean(0)
    covariance = float32_product(tokens.mT[None], tokens[None])[0] / len(tokens)
    trace = covariance.trace()
    return trace.square() / covariance.square().sum().clamp(min=torch.finfo(tokens.dtype).tiny)


IDENTITY = 10  # steps in which adaLN-zero blocks may still be the identity


@torch.no_grad()
def statistics(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """0-dim float32 tensors of features (B, N, D) and (B, N, D).

    cosine: near 1 before any training, since adaLN-zero blocks start as the identity: no success.
    centred: the cosine without each position's mean over the batch, which all images share.
    student_norm, teacher_norm: mean length of a token.
    teacher_rank: `effective_rank` of all tokens; its fall is the teacher's collapse.
    """
    student, teacher = student.float(), teacher.float()
    return {
        "cosine": cosine(student, teacher),
        "centred": cosine(student - mean_image(student, None), teacher - mean_image(teacher, None)),
        "student_norm": student.norm(dim=-1).mean(),
        "teacher_norm": teacher.norm(dim=-1).mean(),
        "teacher_rank": effective_rank(teacher.flatten(0, 1)),
    }


FALLEN = 0.1  # a share of the first value that is seen


def alarms(now: dict[str, float], first: dict[str, float], step: int) -> list[str]:
    """What to tell people of `Regulariser.telemetry` and of the ratio of both terms' gradients.

    A teacher has collapsed if its tokens' rank is below 2, or its rank or norm below a tenth of
    what was seen first. A cosine near 1 is no alarm: it is so from the start, and says neither
    success nor failure. Nor is a ratio of nil in the first steps, while all blocks are still the
    identity.

    Args:
        now, first: means over the ranks, of this sample and of the run's first.
    """
    found = []
    for name, value in now.items():
        before = first.get(name, value)
        if name.startswith("teacher_rank") and (value < 2 or value < FALLEN * before):
            found.append(f"{name} is {value:.2f}, {before:.2f} at first: the teacher collapses")
        if name.startswith("teacher_norm") and (value < 1e-3 or value < FALLEN * before):
            found.append(f"{name} is {value:.1e}, {before:.1e} at first: the teacher collapses")
    if step > IDENTITY and not now.get("grad_ratio", 1.0) > 1e-6:
        found.append("grad_ratio is nil: the regulariser moves nothing")
    return found
