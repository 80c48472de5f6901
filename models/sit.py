"""SiT (arXiv 2401.08740) over 1-, 2- or 3-D grids; the 2-D case is the public network."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .denoiser import Denoiser, Output, Task
from .embedders import (
    ClassEmbedder,
    MultiLabelEmbedder,
    NoCondition,
    TimestepEmbedder,
    sincos_positions,
)

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class PatchEmbed(nn.Module):
    """(B, C, *axes) -> (B, N, D): one convolution, tokens in row-major order."""

    def __init__(self, patch: tuple[int, ...], in_channels: int, width: int) -> None:
        super().__init__()
        self.proj = CONVOLUTIONS[len(patch)](in_channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        # Contiguous, or every block would work on strided tokens: 6 % of a step on a CPU.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class Attention(nn.Module):
    """Multi-head self-attention over (B, N, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class SiTBlock(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the condition (adaLN-zero)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(
            c
        ).chunk(6, dim=1)
        x = x + gate_attn.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_attn, scale_attn))
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out_features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class SiT(Denoiser):
    """Scalable interpolant transformer.

    Args:
        input_size: the axes' lengths; a number means a square of it.
        patch_size: the patch along each axis; a number means the same along all.
        in_channels: C of the input.
        class_dropout_prob: share of labels dropped in train mode; 0 where the loop drops them.
        num_classes: K; 0 is an unconditional model.
        multi_label: the condition is multi-hot (B, K) instead of ids (B,).
        learn_sigma: the last layer has 2C outputs, of which the second half is unused (the public
            SiT files are so).

    Raises:
        ValueError: a patch that does not divide the input, heads that do not divide the width.
    """

    def __init__(
        self,
        input_size: int | tuple[int, ...] = 32,
        patch_size: int | tuple[int, ...] = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        multi_label: bool = False,
        learn_sigma: bool = True,
    ) -> None:
        super().__init__()
        axes = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        patch = (patch_size,) * len(axes) if isinstance(patch_size, int) else tuple(patch_size)
        if len(axes) not in CONVOLUTIONS or len(patch) != len(axes):
            raise ValueError(f"input {axes} with patch {patch}: give both 1, 2 or 3 axes alike")
        if any(n % p for n, p in zip(axes, patch, strict=True)):
            raise ValueError(f"patch {patch} does not divide the input {axes}")
        if hidden_size % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the width {hidden_size}")
        self.config: dict[str, Any] = dict(
            input_size=axes,
            patch_size=patch,
            in_channels=in_channels,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=num_classes,
            multi_label=multi_label,
            learn_sigma=learn_sigma,
        )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.learn_sigma = learn_sigma
        self.patch = patch
        self.grid = tuple(n // p for n, p in zip(axes, patch, strict=True))

        out_channels = in_channels * 2 if learn_sigma else in_channels
        condition = MultiLabelEmbedder if multi_label else ClassEmbedder
        positions = sincos_positions(hidden_size, self.grid)
        self.x_embedder = PatchEmbed(patch, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = (
            condition(num_classes, hidden_size, class_dropout_prob)
            if num_classes
            else NoCondition()
        )
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(
            SiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, out_channels * self.patch_volume)
        self.initialize_weights()

    @property
    def attention_shape(self) -> tuple[int, int, int]:
        """Tokens, heads, and the width of a head."""
        width, heads = self.config["hidden_size"], self.config["num_heads"]
        return torch.Size(self.grid).numel(), heads, width // heads

    @property
    def patch_volume(self) -> int:
        return torch.Size(self.patch).numel()

    def initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        if self.num_classes:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        # adaLN-zero: every block starts as the identity and the prediction as 0.
        for block in self.blocks:
            nn.init.zeros_(block.adaLN_modulation[-1].weight)
            nn.init.zeros_(block.adaLN_modulation[-1].bias)
        for linear in (self.final_layer.adaLN_modulation[-1], self.final_layer.linear):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    @property
    def is_conditional(self) -> bool:
        return self.num_classes > 0

    @property
    def compiled_parts(self) -> list[nn.Module]:
        return [*self.blocks, self.final_layer]

    @classmethod
    def made_for(cls, task: Task, **size: Any) -> "SiT":
        if task.text_width:
            raise ValueError(
                "SiT is conditioned on classes, and the data have texts: give --model MDM for "
                "motion, Wan2.1 or CogVideoX for video"
            )
        if task.pads:
            raise ValueError(
                "SiT takes samples of one length, and the data are padded: give --model MDM"
            )
        if task.mask_frames:
            raise ValueError("--mask-frames: SiT has none, leave it out")
        return cls(
            input_size=task.shape[1:], in_channels=task.shape[0], num_classes=task.num_classes,
            multi_label=task.multi_label, learn_sigma=task.learn_sigma,
            class_dropout_prob=0.0,  # the loop drops labels itself, a function of (seed, step)
            **size,
        )  # fmt: skip

    def like(self, **changes: Any) -> "SiT":
        return SiT(**self.config | changes, class_dropout_prob=0.0)

    def example_condition(self) -> dict[str, Tensor]:
        multi = self.config["multi_label"]
        return {"y": torch.zeros(1, self.num_classes) if multi else torch.zeros(1).long()}

    def restore_rest(self) -> None:
        self.t_embedder.reset_frequencies()

    def randomize_gates(self) -> None:
        for block in self.blocks:
            nn.init.normal_(block.adaLN_modulation[-1].weight, std=0.02)
            nn.init.normal_(block.adaLN_modulation[-1].bias, std=0.2)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """(B, N, prod(patch) * C) -> (B, C, *axes)."""
        n = len(self.grid)
        x = tokens.view(tokens.shape[0], *self.grid, *self.patch, -1)
        interleaved = [axis for i in range(n) for axis in (1 + i, 1 + n + i)]
        x = x.permute(0, 2 * n + 1, *interleaved)
        return x.reshape(*x.shape[:2], *(g * p for g, p in zip(self.grid, self.patch, strict=True)))

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, *,
        return_blocks: tuple[int, ...] = (), only_blocks: bool = False,
    ) -> Output:  # fmt: skip
        """x (B, C, *axes), t (B,) with t = 1 at the data, y as the condition has it.

        Asking for blocks does not change `pred`; blocks not asked for are not kept. With
        `only_blocks` the pass ends at the deepest block asked for, and `pred` is None.

        Raises:
            ValueError: a block that the model does not have.
        """
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        x, blocks = self.through_blocks(x, c, return_blocks=return_blocks, only_blocks=only_blocks)
        if x is None:
            return Output(None, blocks)
        x = self.unpatchify(self.final_layer(x, c))
        return Output(x.chunk(2, dim=1)[0] if self.learn_sigma else x, blocks)

    def null(self, cond: dict[str, Any]) -> dict[str, Any]:
        return cond | {"y": self.y_embedder.null(cond.get("y"))}

    def drop(self, cond: dict[str, Any], where: Tensor) -> dict[str, Any]:
        return cond | {"y": self.y_embedder.drop(cond.get("y"), where)}

    def forward_with_cfg(
        self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float, cfg_channels: int | None = 3
    ) -> Tensor:
        """SiT's guided forward for samplers that integrate both halves: x, t, y are 2B long, the
        second half of y null. Only `cfg_channels` channels are guided (None: all)."""
        half = x[: len(x) // 2]
        pred = self(torch.cat([half, half]), t, y).pred
        channels = pred.shape[1] if cfg_channels is None else cfg_channels
        guided, rest = pred[:, :channels], pred[:, channels:]
        cond, uncond = guided.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), rest], dim=1)


SIZES = {
    "XL": dict(depth=28, hidden_size=1152, num_heads=16),
    "L": dict(depth=24, hidden_size=1024, num_heads=16),
    "B": dict(depth=12, hidden_size=768, num_heads=12),
    "S": dict(depth=12, hidden_size=384, num_heads=6),
    "Ti": dict(depth=6, hidden_size=96, num_heads=4),  # for digits on a laptop; not in the paper
}

# By the name's last part. A number is for all axes: 1 is a token per latent, for sound; of videos
# the first axis is time.
PATCHES = {"2": 2, "4": 4, "8": 8, "1": 1, "1x2x2": (1, 2, 2), "2x4x4": (2, 4, 4)}

SiT_models = {
    f"SiT-{size}/{name}": partial(SiT, patch_size=patch, **shape)
    for size, shape in SIZES.items()
    for name, patch in PATCHES.items()
}
