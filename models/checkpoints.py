"""From tensors to a network: what a file of SiT, LayerSync, REPA or MDM says of what it holds."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import mdm, pretrained
from .denoiser import Denoiser
from .embedders import TimestepEmbedder
from .sit import SIZES, SiT

# (depth, width) -> heads, which no tensor tells.
HEADS = {(size["depth"], size["hidden_size"]): size["num_heads"] for size in SIZES.values()}
DEPTHS = ("depth", "num_layers")  # each block has a tensor
LARGEST = 2**26  # of a network's sizes
# Training-only parts of other methods' files: REPA's projectors, SRA's head.
FOREIGN = ("projectors.", "ap_head.")


def own_weights(weights: dict[str, Tensor], reversed_time: bool = False) -> dict[str, Tensor]:
    """A state dict as a SiT's: float32, without other methods' training-only parts, in SiT's time.

    REPA and its descendants count time from the data (s = 1 - t) and predict noise - data; they are
    recognized by their training-only parts, or the caller knows (`reversed_time`).
    """
    own = {name: value.float() for name, value in weights.items() if not name.startswith(FOREIGN)}
    return forward_time(own) if reversed_time or len(own) < len(weights) else own


def forward_time(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network f'(x, t) = -f(x, 1 - t), exactly, as weights of the same architecture.

    cos((1 - t) w) = cos w cos tw + sin w sin tw and sin((1 - t) w) = sin w cos tw - cos w sin tw:
    the first layer of the time embedding takes up the rotation, the last layer the sign.
    """
    weights = dict(weights)
    first = weights["t_embedder.mlp.0.weight"]
    w = TimestepEmbedder(2, first.shape[1]).freqs.double()
    cos, sin = first.double().chunk(2, dim=1)
    rotated = torch.cat([cos * w.cos() + sin * w.sin(), cos * w.sin() - sin * w.cos()], dim=1)
    weights["t_embedder.mlp.0.weight"] = rotated.to(first.dtype)
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        weights[name] = -weights[name]
    return weights


def architecture_of(
    weights: dict[str, Tensor], args: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Arguments of SiT read off a public 2-D state dict's tensors.

    Raises:
        ValueError: these are not the weights of a SiT.
    """
    try:
        width, channels, *patch = weights["x_embedder.proj.weight"].shape
        _, tokens, _ = weights["pos_embed"].shape
        rows = weights["final_layer.linear.bias"].shape[0]
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        heads = HEADS[depth, width]
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"these are not the weights of a SiT of a known size ({error}), "
            "and no architecture is stored with them"
        ) from None
    side = round(tokens**0.5)
    if len(patch) != 2 or side**2 != tokens:
        raise ValueError("only square 2-D models can be recognized from their tensors alone")
    table = weights.get("y_embedder.embedding_table.weight")
    return dict(
        input_size=(side * patch[0], side * patch[1]),
        patch_size=tuple(patch),
        in_channels=channels,
        hidden_size=width,
        depth=depth,
        num_heads=heads,
        num_classes=0 if table is None else table.shape[0] - 1,
        learn_sigma=rows == 2 * channels * patch[0] * patch[1],
    )


class Family(NamedTuple):
    """Networks of one kind, recognized by how the name of a tensor begins."""

    tensor: str
    blocks: str  # how the names of its blocks' tensors begin
    network: Callable[..., Denoiser]
    architecture_of: Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Any]]
    own_weights: Callable[..., dict[str, Tensor]]


def bare_sit(**config: Any) -> SiT:
    return SiT(**config, class_dropout_prob=0.0)


FAMILIES = (
    Family(
        "input_process.poseEmbedding.weight", "seqTransEncoder.layers.",
        mdm.MDM, mdm.architecture_of, mdm.own_weights,
    ),
    Family(
        "network.", "network.",
        pretrained.Pretrained, pretrained.architecture_of, pretrained.own_weights,
    ),
    Family("", "blocks.", bare_sit, architecture_of, own_weights),  # the others
)  # fmt: skip


def family_of(weights: dict[str, Tensor]) -> Family:
    *others, sit = FAMILIES
    own = (family for family in others if any(name.startswith(family.tensor) for name in weights))
    return next(own, sit)


@contextmanager
def told_apart() -> Iterator[None]:
    """Around what takes weights and an architecture at their word.

    Raises:
        ValueError: they are no model's, or not of one model.
    """
    try:
        yield
    except (
        TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"its stored architecture is not that of its tensors ({reason})"
        ) from error


def check_sizes(config: Any, tensors: int, name: str = "") -> None:
    """
    Raises:
        ValueError: more blocks than tensors, or a size that no network has.
    """
    if isinstance(config, dict):
        for key, value in config.items():
            check_sizes(value, tensors, str(key))
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_sizes(value, tensors)
    elif isinstance(config, (int, float)) and name != "lora_alpha":
        most = tensors if name in DEPTHS else LARGEST
        if not abs(config) <= most:
            raise ValueError(f"its stored architecture has {name or 'a size'} {config:g}")


def load(
    weights: dict[str, Tensor],
    config: dict[str, Any] | None = None,
    *,
    args: dict[str, Any] | None = None,
    reversed_time: bool = False,
) -> Denoiser:
    """The network of a checkpoint's weights, in eval mode on the CPU.

    Args:
        weights: a state dict; see `own_weights`.
        config: the network's arguments, where the checkpoint stores them; else they are read off
            the tensors, and off the flags `args` of its run.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    family = family_of(weights)
    with told_apart():
        config = config or family.architecture_of(weights, args or {})
        check_sizes(config, len(weights))
        own = family.own_weights(weights, reversed_time)
        with torch.device("meta"):
            model = family.network(**config)
    check_state(model, own)
    model.load_state_dict(own, assign=True)  # no time spent on initial values
    model.restore_rest()
    return model.eval()


def check_state(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Refuse weights that do not fit the model.

    Raises:
        ValueError: naming the first tensor that is missing, superfluous or of another shape.
    """
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise ValueError(f"the checkpoint has no tensor {name} {tuple(tensor.shape)}")
        if weights[name].shape != tensor.shape:
            raise ValueError(
                f"tensor {name} is {tuple(weights[name].shape)} in the checkpoint and "
                f"{tuple(tensor.shape)} in this model"
            )
    for name in weights:
        if name not in expected:
            raise ValueError(f"the checkpoint's tensor {name} does not exist in this model")


def adapt(
    weights: dict[str, Tensor], model: Denoiser, config: dict[str, Any] | None = None, *,
    reversed_time: bool = False, pruned: Collection[int] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """Weights for fine-tuning `model`: other classes get `model`'s own fresh rows (the null row is
    kept), positions of another grid are resampled, and `pruned` blocks are left out.

    Args:
        config: the arguments of the network that the weights are of, where the checkpoint stores
            them; else the proportions of its grid are taken to be `model`'s.

    Raises:
        ValueError: a difference that fine-tuning cannot bridge, naming the tensor.
    """
    family = family_of(weights)
    with told_apart():
        weights = family.own_weights(weights, reversed_time)
    left = depth_of(weights, family.blocks) - len(set(pruned))
    weights = without_blocks(weights, pruned, family.blocks)
    if pruned and left != model.depth:
        raise ValueError(
            f"{left} blocks are left, and the model has {model.depth}: give --depth {left}"
        )
    fresh = model.state_dict()
    table, positions = "y_embedder.embedding_table.weight", "pos_embed"
    with told_apart():
        if table in fresh and table not in weights:
            weights[table] = fresh[table]
        elif table in weights and table not in fresh:
            del weights[table]
        elif table in fresh and weights[table].shape[1:] == fresh[table].shape[1:]:
            if len(weights[table]) != len(fresh[table]):
                weights[table] = torch.cat([fresh[table][:-1], weights[table][-1:]])
        if positions in weights:
            old = grid_of(family, config, len(weights)) or proportional(
                weights[positions].shape[1], model.grid
            )
            if old != model.grid and len(old) == len(model.grid):
                weights[positions] = resample_positions(weights[positions], old, model.grid)
    check_state(model, weights)
    return weights


def depth_of(weights: dict[str, Tensor], blocks: str) -> int:
    """How many blocks a state dict has whose tensors' names begin by `blocks`."""
    return len({n.removeprefix(blocks).split(".")[0] for n in weights if n.startswith(blocks)})


def without_blocks(
    weights: dict[str, Tensor], numbers: Collection[int], blocks: str = "blocks."
) -> dict[str, Tensor]:
    """Weights of a shallower model: blocks, counted from 1, are taken out and the rest renumbered.

    Raises:
        ValueError: a block that the weights do not have, or all of them.
    """
    if not numbers:
        return weights
    depth = depth_of(weights, blocks)
    kept = [number for number in range(1, depth + 1) if number not in numbers]
    if len(kept) != depth - len(set(numbers)) or not kept:
        raise ValueError(f"blocks {sorted(numbers)} cannot be taken out of {depth}")
    place = {number - 1: index for index, number in enumerate(kept)}
    found = {}
    for name, value in weights.items():
        if name.startswith(blocks):
            index, rest = name.removeprefix(blocks).split(".", 1)
            if int(index) not in place:
                continue
            name = f"{blocks}{place[int(index)]}.{rest}"
        found[name] = value
    return found


def grid_of(family: Family, config: dict[str, Any] | None, tensors: int) -> tuple[int, ...] | None:
    """Tokens along each axis of a stored network; None: it is not stored.

    Grids of (2, 4, 4) and (8, 2, 2) have as many tokens, at other positions.
    """
    if not config:
        return None
    check_sizes(config, tensors)
    with torch.device("meta"):
        return family.network(**config).grid


def proportional(tokens: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    """The grid of so many tokens that has the proportions of another one.

    Raises:
        ValueError: there is none.
    """
    ratio = (tokens / torch.Size(grid).numel()) ** (1 / len(grid))
    found = tuple(round(n * ratio) for n in grid)
    if torch.Size(found).numel() != tokens:
        raise ValueError(f"{tokens} positions cannot be resampled to a grid of {grid}")
    return found


def resample_positions(table: Tensor, old: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """A position table (1, N, D) of the grid `old`, interpolated to `grid`."""
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(grid)]
    image = table.transpose(1, 2).reshape(1, table.shape[2], *old)
    return F.interpolate(image, size=grid, mode=mode).flatten(2).transpose(1, 2)
