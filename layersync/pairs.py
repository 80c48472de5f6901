"""Which blocks: the paper's pairs and the layer rule of its section 3.4."""

import warnings
from collections.abc import Sequence

# depth: ((student, teacher), weight), from Tables 10 and 11 and section 4; S shares B's depth
# and so its row.
PUBLISHED = {
    8: ((3, 6), 0.2),  # MDM; the paper does not state its weight
    12: ((4, 7), 0.3),  # SiT-B
    24: ((8, 18), 0.2),  # SiT-L
    28: ((8, 16), 0.2),  # SiT-XL
    30: ((4, 24), 0.2),  # CogVideoX-2B and Wan2.1-1.3B; the paper does not state their weight
}


def default_pair(depth: int) -> tuple[int, int]:
    """The published pair for this depth, else student at 30 % and teacher at 60 % of the depth.

    Raises:
        ValueError: fewer than two blocks.
    """
    if depth < 2:
        raise ValueError(f"LayerSync needs a model of at least 2 blocks, this one has {depth}")
    if depth in PUBLISHED:
        return PUBLISHED[depth][0]
    student = max(1, round(0.3 * depth))
    return student, max(student + 1, round(0.6 * depth))


def default_weight(depth: int) -> float:
    """The published weight for this depth, else 0.2."""
    return PUBLISHED[depth][1] if depth in PUBLISHED else 0.2


def admissible_pairs(depth: int) -> list[tuple[int, int]]:
    """All pairs that obey section 3.4: the teacher is not in the last 20 % of the blocks, and it is
    at least floor(2 depth / 7) blocks deeper than the student (8 of 28, 3 of 12)."""
    distance = max(1, 2 * depth // 7)
    return [
        (student, teacher)
        for teacher in range(1, depth + 1)
        for student in range(1, teacher)
        if 5 * teacher <= 4 * depth and teacher - student >= distance
    ]


def check_pairs(pairs: Sequence[tuple[int, int]], depth: int) -> None:
    """Refuse pairs that a model of `depth` blocks cannot have; warn of those outside section 3.4.

    Raises:
        ValueError: a pair with 1 <= student < teacher <= depth violated.
    """
    admissible = admissible_pairs(depth)
    for student, teacher in pairs:
        if not 1 <= student < teacher <= depth:
            raise ValueError(
                f"pair {student}:{teacher} does not fit this model of {depth} blocks: choose "
                f"1 <= student < teacher <= {depth}, e.g. {default_pair(depth)[0]}:"
                f"{default_pair(depth)[1]}"
            )
        if admissible and (student, teacher) not in admissible:
            warnings.warn(
                f"pair {student}:{teacher} is outside the rule of the paper's section 3.4 for "
                f"{depth} blocks: teacher at most {4 * depth // 5}, at least "
                f"{max(1, 2 * depth // 7)} blocks apart",
                stacklevel=2,
            )
