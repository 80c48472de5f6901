"""A SiT as diffusers' DiTTransformer2DModel and back: two names for one network, outputs equal.

What differs is the time embedding: diffusers' frequencies end at the shortest one, 10000^(-i/127),
SiT's a step before, 10000^(-i/128). On SiT's times, 0 to 1, waves of either kind are sums of those
of the other up to rounding, and the first layer of the embedding takes up the map between them.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .embedders import TimestepEmbedder
from .sit import SiT

# Without the number of the block, which both begin with.
BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
PARTS = ("weight", "bias")
EMBEDDING = "norm1.emb"  # every block of diffusers has its own copy of time and class
LABELS = "y_embedder.embedding_table.weight"
FREQUENCIES = 256


def dit_config(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of diffusers' class for a SiT's architecture.

    Raises:
        ValueError: it has no such network.
    """
    axes, patch = tuple(config["input_size"]), tuple(config["patch_size"])
    if len(set(axes)) != 1 or len(axes) != 2 or len(set(patch)) != 1:
        raise ValueError(f"diffusers' DiT has squares alone, not {axes} in patches of {patch}")
    if config.get("multi_label"):
        raise ValueError("diffusers' DiT has one class per image, not several labels")
    if config.get("mlp_ratio", 4.0) != 4.0:
        raise ValueError(f"diffusers' DiT has an MLP ratio of 4, not {config['mlp_ratio']}")
    channels, heads = config["in_channels"], config["num_heads"]
    return dict(
        num_attention_heads=heads, attention_head_dim=config["hidden_size"] // heads,
        in_channels=channels, out_channels=channels * (2 if config["learn_sigma"] else 1),
        num_layers=config["depth"], sample_size=axes[0], patch_size=patch[0],
        num_embeds_ada_norm=max(config["num_classes"], 1), norm_eps=1e-6,
    )  # fmt: skip


def sit_config(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of SiT for diffusers' `config`."""
    heads, channels = config["num_attention_heads"], config["in_channels"]
    side, patch = config["sample_size"], config["patch_size"]
    return dict(
        input_size=(side, side), patch_size=(patch, patch), in_channels=channels,
        hidden_size=heads * config["attention_head_dim"], depth=config["num_layers"],
        num_heads=heads, num_classes=config["num_embeds_ada_norm"],
        learn_sigma=config["out_channels"] == 2 * channels,
    )  # fmt: skip


def dit_weights(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """A SiT's state dict under diffusers' names; `timestep` is then SiT's t, 1 at the data.

    Without classes there is one, which adds nothing.
    """
    found = {theirs: weights[ours] for ours, theirs in renamed(ENDS, "", "")}
    width = config["hidden_size"]
    embedding = {
        "timestep_embedder.linear_1.weight":
        changed(weights["t_embedder.mlp.0.weight"], sit_frequencies(), dit_frequencies()),
        "timestep_embedder.linear_1.bias": weights["t_embedder.mlp.0.bias"],
        "timestep_embedder.linear_2.weight": weights["t_embedder.mlp.2.weight"],
        "timestep_embedder.linear_2.bias": weights["t_embedder.mlp.2.bias"],
        "class_embedder.embedding_table.weight": weights.get(LABELS, torch.zeros(2, width)),
    }  # fmt: skip
    for block in range(config["depth"]):
        ours, theirs = f"blocks.{block}.", f"transformer_blocks.{block}."
        found |= {b: weights[a] for a, b in renamed(BLOCK, ours, theirs)}
        for part in PARTS:
            pieces = weights[f"{ours}attn.qkv.{part}"].chunk(3)
            for letter, piece in zip("qkv", pieces, strict=True):
                found[f"{theirs}attn1.to_{letter}.{part}"] = piece
        found |= {f"{theirs}{EMBEDDING}.{name}": value for name, value in embedding.items()}
    return {name: value.clone() for name, value in found.items()}


def from_dit(network: nn.Module) -> SiT:
    """The SiT that diffusers' DiT is at times from 0 to 1.

    One that was trained in diffusers has times from 0 to 999, which SiT's embedding cannot tell
    apart: its other tensors fit, and it has to learn the time anew.
    """
    model = SiT(**sit_config(network.config), class_dropout_prob=0.0)
    weights = sit_weights(network.state_dict(), model.config)
    model.load_state_dict(weights | {"pos_embed": model.pos_embed})
    return model.eval()


def sit_weights(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict of diffusers under SiT's names, without the positions."""
    found = {ours: weights[theirs] for ours, theirs in renamed(ENDS, "", "")}
    first = f"transformer_blocks.0.{EMBEDDING}."
    time = f"{first}timestep_embedder.linear_"
    found |= {
        "t_embedder.mlp.0.weight":
        changed(weights[f"{time}1.weight"], dit_frequencies(), sit_frequencies()),
        "t_embedder.mlp.0.bias": weights[f"{time}1.bias"],
        "t_embedder.mlp.2.weight": weights[f"{time}2.weight"],
        "t_embedder.mlp.2.bias": weights[f"{time}2.bias"],
        LABELS: weights[f"{first}class_embedder.embedding_table.weight"],
    }  # fmt: skip
    for block in range(config["depth"]):
        ours, theirs = f"blocks.{block}.", f"transformer_blocks.{block}."
        found |= {a: weights[b] for a, b in renamed(BLOCK, ours, theirs)}
        for part in PARTS:
            pieces = [weights[f"{theirs}attn1.to_{letter}.{part}"] for letter in "qkv"]
            found[f"{ours}attn.qkv.{part}"] = torch.cat(pieces)
    return found


def renamed(names: dict[str, str], ours: str, theirs: str) -> list[tuple[str, str]]:
    return [
        (f"{ours}{a}.{part}", f"{theirs}{b}.{part}") for a, b in names.items() for part in PARTS
    ]


def sit_frequencies() -> Tensor:
    return TimestepEmbedder(2, FREQUENCIES).freqs.double()


def dit_frequencies() -> Tensor:
    half = FREQUENCIES // 2
    return torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / (half - 1))


def changed(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The first layer of a time embedding for waves of other frequencies, the same for t in [0, 1].

    Least squares on Chebyshev's points: the waves are smooth, so that what is equal there is equal
    between.
    """
    points = torch.linspace(0, math.pi, 1024, dtype=torch.float64).cos() / 2 + 0.5
    wanted = waves(points, before) @ weight.double().T
    # Directions that rounding cannot tell from nothing are left out.
    found = torch.linalg.lstsq(waves(points, after), wanted, rcond=1e-10, driver="gelsd").solution
    return found.T.to(weight.dtype).contiguous()


def waves(t: Tensor, frequencies: Tensor) -> Tensor:
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
