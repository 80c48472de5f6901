"""MDM (arXiv 2209.14916): a transformer encoder over frames of motion, with MDM's tensor names."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .denoiser import Denoiser, Output, Task

POSITIONS = 5000  # rows of MDM's table, for frames and for ticks of the clock


class PositionalEncoding(nn.Module):
    """A table of sines and cosines in turn, (5000, 1, D), added to a sequence (B, N, D)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        angles = torch.arange(POSITIONS)[:, None] * torch.exp(
            torch.arange(0, width, 2) * (-math.log(10_000.0) / width)
        )
        table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
        self.register_buffer("pe", table[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x + self.pe[: x.shape[1], 0])


class TickEmbedder(nn.Module):
    """Rows of the table (B, D) -> (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, rows: Tensor) -> Tensor:
        return self.time_embed(rows)


class PoseEmbedding(nn.Module):
    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.poseEmbedding = nn.Linear(features, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.poseEmbedding(x)


class PoseFinal(nn.Module):
    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.poseFinal = nn.Linear(width, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.poseFinal(x)


class MDM(Denoiser):
    """MDM's `trans_enc`: time and text are one token before the frames.

    Time runs as everywhere here, t = 1 at the data; the network sees the tick of a clock of `steps`
    ticks, 0 at the data, that t lies in.

    Args:
        input_size: (frames,); shorter and longer sequences are fine too.
        in_channels: features of a frame, 263 in HumanML3D.
        text_width: of the embedded text; 0 is an unconditional model.
        steps: ticks of the clock.
        mask_frames: leave padding out of attention; needs the condition's `mask`.
    """

    def __init__(
        self,
        input_size: tuple[int, ...] = (196,),
        in_channels: int = 263,
        hidden_size: int = 512,
        depth: int = 8,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        text_width: int = 512,
        steps: int = 1000,
        mask_frames: bool = False,
    ) -> None:
        super().__init__()
        if len(input_size) != 1:
            raise ValueError(f"MDM is a model of sequences, and the input is {tuple(input_size)}")
        if hidden_size % num_heads or hidden_size % 2:
            raise ValueError(f"{num_heads} heads and 2 do not divide the width {hidden_size}")
        if steps > POSITIONS:
            raise ValueError(f"{steps} ticks, but MDM's table has {POSITIONS} rows")
        self.config: dict[str, Any] = dict(
            input_size=tuple(input_size), in_channels=in_channels, hidden_size=hidden_size,
            depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, dropout=dropout,
            text_width=text_width, steps=steps, mask_frames=mask_frames,
        )  # fmt: skip
        self.in_channels, self.text_width, self.steps = in_channels, text_width, steps
        self.mask_frames = mask_frames
        self.grid, self.patch = tuple(input_size), (1,)
        self.has_dropout = dropout > 0

        self.input_process = PoseEmbedding(in_channels, hidden_size)
        self.sequence_pos_encoder = PositionalEncoding(hidden_size, dropout)
        layer = nn.TransformerEncoderLayer(
            hidden_size, num_heads, int(hidden_size * mlp_ratio), dropout, "gelu", batch_first=True
        )
        self.seqTransEncoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.embed_timestep = TickEmbedder(hidden_size)
        self.embed_text = nn.Linear(text_width, hidden_size) if text_width else None
        self.output_process = PoseFinal(hidden_size, in_channels)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.seqTransEncoder.layers

    @property
    def attention_shape(self) -> tuple[int, int, int]:
        width, heads = self.config["hidden_size"], self.config["num_heads"]
        return self.grid[0] + 1, heads, width // heads

    @property
    def is_conditional(self) -> bool:
        return self.text_width > 0

    @property
    def compiled_parts(self) -> list[nn.Module]:
        return list(self.blocks)

    @classmethod
    def made_for(cls, task: Task, **size: Any) -> "MDM":
        if task.num_classes:
            raise ValueError(
                f"MDM is conditioned on texts, and the data have {task.num_classes} classes: give "
                "--model SiT-..., or --num-classes 0"
            )
        clock = {} if task.steps is None else {"steps": task.steps}
        return cls(
            input_size=task.shape[1:], in_channels=task.shape[0], text_width=task.text_width,
            mask_frames=task.mask_frames, **clock, **size,
        )  # fmt: skip

    def like(self, **changes: Any) -> "MDM":
        other = MDM(**self.config | changes)
        other.keeps_condition_token = self.keeps_condition_token
        return other

    def example_condition(self) -> dict[str, Tensor]:
        mask = torch.ones(1, 1, *self.grid, dtype=torch.bool)
        return {"y": torch.zeros(1, self.text_width), "mask": mask}

    def null(self, cond: dict[str, Any]) -> dict[str, Any]:
        return cond | {"y": torch.zeros_like(cond["y"])}

    def drop(self, cond: dict[str, Any], where: Tensor) -> dict[str, Any]:
        return cond | {"y": cond["y"] * ~where[:, None]}

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, mask: Tensor | None = None, *,
        return_blocks: tuple[int, ...] = (), only_blocks: bool = False,
    ) -> Output:  # fmt: skip
        """x (B, C, frames), t (B,), y (B, W) with zeros for no text, mask (B, 1, frames).

        Blocks are the frames' tokens alone, unless `keeps_condition_token`.
        """
        rows = self.sequence_pos_encoder.pe[self.tick(t), 0]
        token = self.embed_timestep(rows)
        if self.embed_text is not None:
            token = token + self.embed_text(y)
        frames = self.input_process(x.transpose(1, 2))
        tokens = self.sequence_pos_encoder(torch.cat([token[:, None], frames], dim=1))
        padding = self.padding(mask) if self.mask_frames else None
        tokens, blocks = self.through_blocks(
            tokens, None, padding, return_blocks=return_blocks, only_blocks=only_blocks
        )
        if not self.keeps_condition_token:
            blocks = {number: block[:, 1:] for number, block in blocks.items()}
        if tokens is None:
            return Output(None, blocks)
        return Output(self.output_process(tokens[:, 1:]).transpose(1, 2), blocks)

    def tick(self, t: Tensor) -> Tensor:
        """`transport.path.tick_of`, which this room does not import."""
        return (self.steps * (1 - t)).floor().clamp(0, self.steps - 1).long()

    def padding(self, mask: Tensor) -> Tensor:
        """(B, 1 + frames), minus infinity where attention must not look."""
        seen = F.pad(mask[:, 0], (1, 0), value=True)
        return torch.zeros_like(seen, dtype=torch.float32).masked_fill(~seen, -math.inf)


def architecture_of(weights: dict[str, Tensor], args: dict[str, Any]) -> dict[str, Any]:
    """Arguments of MDM read off a released state dict, and off the flags of its run.

    Raises:
        ValueError: these are not the weights of an MDM's encoder.
    """
    try:
        width, features = weights["input_process.poseEmbedding.weight"].shape
        hidden = weights["seqTransEncoder.layers.0.linear1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ValueError(f"these are not the weights of MDM's trans_enc ({error})") from None
    layers = {name.split(".")[2] for name in weights if name.startswith("seqTransEncoder.layers.")}
    text = weights.get("embed_text.weight")
    return dict(
        in_channels=features, hidden_size=width, depth=len(layers), mlp_ratio=hidden / width,
        text_width=0 if text is None else text.shape[1],
        steps=int(args.get("diffusion_steps", 1000)), mask_frames=bool(args.get("mask_frames")),
    )  # fmt: skip


def own_weights(weights: dict[str, Tensor], reversed_time: bool = False) -> dict[str, Tensor]:
    """A state dict without what MDM's files repeat, or hold of CLIP."""
    own = {
        name: value.float()
        for name, value in weights.items()
        if not name.startswith(("clip_model.", "embed_timestep.sequence_pos_encoder."))
    }
    width = own["input_process.poseEmbedding.weight"].shape[0]
    own.setdefault("sequence_pos_encoder.pe", PositionalEncoding(width, 0.0).pe)
    return own
