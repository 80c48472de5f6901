"""What is logged of a pair of blocks. Tensors stay on the device until the loop reads them."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .precision import float32_product
from .similarity import cosine, mean_image, mean_over_tokens


def effective_rank(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """How many directions the features fill: (tr C)^2 / tr C^2 of the tokens' covariance C.

    The participation ratio, from 1, a line, to D, all alike; 0 where all tokens are equal. The
    entropy of the singular values says the same, but an SVD takes longer than the training step
    that it watches and waits for the device; this is one matrix product.

    Args:
        tokens: (M, D) in float32.
        mask: true for the M tokens that count, of any shape.
    """
    counts = tokens.new_ones(len(tokens), 1) if mask is None else mask.reshape(-1, 1).to(tokens)
    number = counts.sum().clamp(min=1)
    tokens = (tokens - (tokens * counts).sum(0) / number) * counts
    covariance = float32_product(tokens.mT[None], tokens[None])[0] / number
    trace = covariance.trace()
    return trace.square() / covariance.square().sum().clamp(min=torch.finfo(tokens.dtype).tiny)


IDENTITY = 10  # steps in which adaLN-zero blocks may still be the identity


@torch.no_grad()
def statistics(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """0-dim float32 tensors of features (B, N, D) and (B, N, D), of the tokens where mask (B, N).

    cosine: near 1 before any training, since adaLN-zero blocks start as the identity: no success.
    centred: the cosine without each position's mean over the batch, which all images share.
    student_norm, teacher_norm: mean length of a token.
    teacher_rank: `effective_rank` of all tokens; its fall is the teacher's collapse.
    """
    student, teacher = student.float(), teacher.float()
    centred = (tokens - mean_image(tokens, mask) for tokens in (student, teacher))
    return {
        "cosine": cosine(student, teacher, mask),
        "centred": cosine(*centred, mask),
        "student_norm": mean_over_tokens(student.norm(dim=-1), mask),
        "teacher_norm": mean_over_tokens(teacher.norm(dim=-1), mask),
        "teacher_rank": effective_rank(teacher.flatten(0, 1), mask),
    }


def gradient_ratio(term: Tensor, loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Norm of the gradient of `term` over that of `loss`, before either is backpropagated.

    For a loop of one's own, now and then: it costs two backward passes and changes nothing. Times
    `sync.weight(step)` it is what `train.py` logs as `grad_ratio`; under DDP, of this rank alone.

        ratio = sync.weight(step) * gradient_ratio(sync(blocks), loss, model.parameters())

    Returns:
        A 0-dim float32 tensor; 0 if nothing that is trained lies below the student.

    Raises:
        ValueError: parameters that FSDP2 has sharded again since: the graph is of their whole
            copies, and the gradients of most would seem to be nil.
    """
    trained = [p for p in parameters if p.requires_grad]
    if any(hasattr(p, "to_local") for p in trained):  # a DTensor, whose import takes a second
        raise ValueError(
            "gradient_ratio cannot see the gradients of sharded parameters (FSDP2): compare the "
            "norms that two backward passes leave instead"
        )

    def norm(scalar: Tensor) -> Tensor:
        if not scalar.requires_grad:
            return torch.zeros_like(scalar)
        found = torch.autograd.grad(scalar, trained, retain_graph=True, materialize_grads=True)
        return torch.stack([gradient.float().norm() for gradient in found]).norm()

    return norm(term) / norm(loss)


FALLEN = 0.1  # a share of the first value that is seen


def alarms(
    now: dict[str, float], first: dict[str, float], step: int, *, may_vanish: bool = False
) -> list[str]:
    """What to tell people of `Regulariser.telemetry` and of the ratio of both terms' gradients.

    A teacher has collapsed if its tokens' rank is below 2, or its rank or norm below a tenth of
    what was seen first. A cosine near 1 is no alarm: it is so from the start, and says neither
    success nor failure. Nor is a ratio of nil in the first steps, while all blocks are still the
    identity. The ratio is judged at weight 1, `unit_ratio`, where that is known: a fading weight
    is no alarm.

    Args:
        now, first: means over the ranks, of this sample and of the run's first.
        may_vanish: `Regulariser.may_vanish`; a ratio of nil is no alarm then.
    """
    found = []
    for name, value in now.items():
        before = first.get(name, value)
        if name.startswith("teacher_rank") and (value < 2 or value < FALLEN * before):
            found.append(f"{name} is {value:.2f}, {before:.2f} at first: the teacher collapses")
        if name.startswith("teacher_norm") and (value < 1e-3 or value < FALLEN * before):
            found.append(f"{name} is {value:.1e}, {before:.1e} at first: the teacher collapses")
    ratio = "unit_ratio" if "unit_ratio" in now else "grad_ratio"
    if not may_vanish and step > IDENTITY and now.get(ratio, 1.0) <= 1e-6:
        found.append(f"{ratio} is nil: the regulariser moves nothing")
    if odd := [name for name, value in now.items() if not math.isfinite(value)]:
        found.append(f"not finite: {', '.join(odd)}: features or gradients have overflowed")
    return found
