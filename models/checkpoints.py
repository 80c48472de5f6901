"""From tensors to a network: what a SiT, LayerSync or REPA file says of its own architecture."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sit import SIZES, Output, SiT

# Training-only parts of other methods' files: REPA's projectors, SRA's head.
FOREIGN = ("projectors.", "ap_head.")


class ReversedTime(nn.Module):
    """A REPA-style network as a SiT: its time is 1 - t and its velocity noise - data."""

    def __init__(self, model: SiT) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, **kwargs: Any) -> Output:
        pred, blocks = self.model(x, 1 - t, y, **kwargs)
        return Output(-pred, blocks)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def is_time_reversed(weights: dict[str, Tensor]) -> bool:
    """True for the files of REPA and its descendants, recognised by their training-only parts."""
    return any(name.startswith(FOREIGN) for name in weights)


def architecture_of(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of SiT read off a public 2-D state dict's tensors.

    Raises:
        ValueError: these are not the weights of a SiT.
    """
    try:
        patches = weights["x_embedder.proj.weight"]
        positions = weights["pos_embed"]
        rows = weights["final_layer.linear.bias"].shape[0]
    except KeyError as missing:
        raise ValueError(f"these are not the weights of a SiT: no tensor {missing}") from None
    width, channels, *patch = patches.shape
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    side = round(positions.shape[1] ** 0.5)
    if len(patch) != 2 or side**2 != positions.shape[1]:
        raise ValueError("only square 2-D models can be recognised from their tensors alone")
    table = weights.get("y_embedder.embedding_table.weight")
    heads = {(s["depth"], s["hidden_size"]): s["num_heads"] for s in SIZES.values()}
    return dict(
        input_size=(side * patch[0], side * patch[1]),
        patch_size=tuple(patch),
        in_channels=channels,
        hidden_size=width,
        depth=depth,
        num_heads=heads.get((depth, width), max(1, width // 64)),
        num_classes=0 if table is None else table.shape[0] - 1,
        learn_sigma=rows == 2 * channels * patch[0] * patch[1],
    )


def load(weights: dict[str, Tensor], config: dict[str, Any] | None = None) -> nn.Module:
    """The network of a checkpoint's weights, in eval mode on the CPU.

    Args:
        weights: a state dict; training-only parts of REPA and SRA files are left out, and their
            reversed time is turned into SiT's.
        config: the arguments of SiT, where the checkpoint stores them; else read off the tensors.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    own = {name: value for name, value in weights.items() if not name.startswith(FOREIGN)}
    with torch.device("meta"):
        model = SiT(**(config or architecture_of(own)), class_dropout_prob=0.0)
    check_state(model, own)
    model.load_state_dict(own, assign=True)  # no time spent on initial values
    model.t_embedder.reset_frequencies()
    model.eval()
    return ReversedTime(model) if is_time_reversed(weights) else model


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


def adapt(weights: dict[str, Tensor], model: SiT) -> dict[str, Tensor]:
    """Weights for fine-tuning `model`: other classes get `model`'s own fresh rows (the null row is
    kept), and positions of another grid are resampled.

    Raises:
        ValueError: a difference that fine-tuning cannot bridge, naming the tensor.
    """
    weights = {name: value for name, value in weights.items() if not name.startswith(FOREIGN)}
    fresh = model.state_dict()
    table, positions = "y_embedder.embedding_table.weight", "pos_embed"
    if table in fresh and table not in weights:
        weights[table] = fresh[table]
    elif table in weights and table not in fresh:
        del weights[table]
    elif table in fresh and weights[table].shape[0] != fresh[table].shape[0]:
        weights[table] = torch.cat([fresh[table][:-1], weights[table][-1:]])
    if positions in weights and weights[positions].shape[1] != fresh[positions].shape[1]:
        weights[positions] = resample_positions(weights[positions], model.grid)
    check_state(model, weights)
    return weights


def resample_positions(table: Tensor, grid: tuple[int, ...]) -> Tensor:
    """A position table (1, N, D) of a grid of the same proportions, interpolated to `grid`."""
    ratio = (table.shape[1] / torch.Size(grid).numel()) ** (1 / len(grid))
    old = [round(n * ratio) for n in grid]
    if torch.Size(old).numel() != table.shape[1]:
        raise ValueError(f"{table.shape[1]} positions cannot be resampled to a grid of {grid}")
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(grid)]
    image = table.transpose(1, 2).reshape(1, -1, *old)
    return F.interpolate(image, size=grid, mode=mode).flatten(2).transpose(1, 2)
