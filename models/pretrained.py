"""Video networks of diffusers, Wan2.1 and CogVideoX, to fine-tune whole or by LoRA.

They are taken as they are: their blocks are looked at through hooks, no line of theirs is changed.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersync import record_blocks

from .denoiser import Denoiser, Output, Task

WAN_TOKENS = 512  # of a text in Wan's pipeline, padded by zeros; CogVideoX's config has its own
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ADAPTER = "pytorch_lora_weights.safetensors"  # the name by which diffusers looks for it


def wan(network: nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """Wan predicts noise - data, and its clock is 1000 at the noise."""
    return -network(x, 1000 * (1 - t), text, return_dict=False)[0]


def cogvideox(network: nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """CogVideoX has its frames before its channels, and whole ticks from 0 at the data to 999."""
    tick = (1000 * (1 - t)).floor().clamp(0, 999).long()
    return network(x.transpose(1, 2), text, tick, return_dict=False)[0].transpose(1, 2)


class Kind(NamedTuple):
    """What sets a network of diffusers apart from the others."""

    network: str  # its class
    hub_id: str
    depth: int  # of the published network
    blocks: str  # its list of blocks
    feed_forward: tuple[str, ...]  # what of a block LoRA adapts besides attention
    objective: tuple[str, str]  # the path that it was trained on, and what it predicts
    predict: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (network, x, t, text)
    tokens: Callable[[Any], Tensor] | None = None  # of what a block returns; None: all of it


KINDS = {
    "Wan2.1": Kind(
        "WanTransformer3DModel", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 30, "blocks",
        ("ffn.net.0.proj", "ffn.net.2"), ("Linear", "velocity"), wan,
    ),
    "CogVideoX": Kind(
        "CogVideoXTransformer3DModel", "zai-org/CogVideoX-2b", 30, "transformer_blocks",
        ("ff.net.0.proj", "ff.net.2"), ("CogVideoX", "v_prediction"), cogvideox,
        itemgetter(0),  # beside the text's
    ),
}  # fmt: skip


class Pretrained(Denoiser):
    """A network of diffusers, conditioned on a text's tokens.

    With LoRA the network is frozen and its adapters are trained: they alone are its state dict.
    Else all of it is trained, in float32. A checkpoint needs the pretrained files beside it, for
    all that is not in its state dict.

    Args:
        kind: a key of KINDS.
        pretrained: a hub id, or a folder of a pipeline or of its transformer.
        network: arguments of the network's class.
        input_size: frames, height and width of the latents.
        lora_rank, lora_alpha: of the adapters; rank 0: none. Alpha None: as the rank.
        bf16: the frozen network is in bfloat16 and computes in it, as in diffusers' pipelines.
            Parts that diffusers keeps in float32 stay so, and so do adapters.

    Raises:
        ValueError: diffusers or peft is absent, or a patch that does not divide the latents.
    """

    def __init__(
        self,
        kind: str,
        pretrained: str,
        network: dict[str, Any],
        input_size: tuple[int, ...],
        lora_rank: int = 32,
        lora_alpha: float | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.pretrained = KINDS[kind], pretrained
        self.rank, self.alpha = lora_rank, lora_alpha or lora_rank
        self.config: dict[str, Any] = dict(
            kind=kind, pretrained=pretrained, network=dict(network), input_size=tuple(input_size),
            lora_rank=lora_rank, lora_alpha=lora_alpha, bf16=bf16,
        )  # fmt: skip
        self.in_channels = network["in_channels"]
        self.text_width = network.get("text_dim") or network["text_embed_dim"]
        self.patch = patch_of(network)
        if any(n % p for n, p in zip(input_size, self.patch, strict=True)):
            raise ValueError(
                f"latents of {tuple(input_size)} frames, rows and columns cannot be cut into "
                f"{kind}'s patches of {self.patch}: give another --image-size"
            )
        self.grid = tuple(n // p for n, p in zip(input_size, self.patch, strict=True))
        self.text_tokens = network.get("max_text_seq_length", WAN_TOKENS)
        self.connect(class_of(kind)(**network))
        self.register_state_dict_post_hook(leave_out_frozen)
        self.register_load_state_dict_post_hook(excuse_frozen)

    def connect(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        """Adapt a network that computes in `dtype`, and take it as one's own."""
        network.requires_grad_(not self.rank)
        if self.rank:
            network.add_adapter(self.adapter_config())
            for parameter in trained(network).values():
                parameter.data = parameter.data.float()
        network.enable_gradient_checkpointing()  # chooses how; `forward` says whether
        self.network, self.dtype = network, dtype
        self.own_precision = dtype != torch.float32
        self.trained = frozenset(f"network.{name}" for name in trained(network))

    def adapter_config(self):
        try:
            from peft import LoraConfig
        except ImportError as error:
            from runtime import hub

            raise ValueError(
                f"--lora-rank {self.rank} needs peft ({error}): {hub.FINETUNE}, or give 0 to "
                "train the whole network"
            ) from error
        targets = [*ATTENTION, *self.kind.feed_forward]
        return LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets)

    @classmethod
    def made_for(
        cls, task: Task, kind: str, pretrained: str, lora_rank: int, lora_alpha: float | None
    ) -> "Pretrained":
        network = read_config(kind, pretrained)
        check_task(task, kind, pretrained, network)
        with torch.device("meta"):
            model = cls(kind, pretrained, network, task.shape[1:], lora_rank, lora_alpha, task.bf16)
        model.restore_rest()
        return model

    def restore_rest(self) -> None:
        kind, config = self.config["kind"], self.config["network"]
        found = read_config(kind, self.pretrained)
        if other := [name for name, value in config.items() if found.get(name) != value]:
            raise ValueError(
                f"--pretrained {self.pretrained} has {other[0]} {found.get(other[0])}, and what "
                f"was fine-tuned had {config[other[0]]}"
            )
        at_hand = {name: value for name, value in self.state_dict().items() if not value.is_meta}
        dtype = torch.bfloat16 if self.config["bf16"] and self.rank else torch.float32
        self.connect(read_network(kind, self.pretrained, dtype), dtype)
        self.load_state_dict(at_hand, strict=False)

    def like(self, **changes: Any) -> "Pretrained":
        network = dict(self.config["network"])
        if "depth" in changes:
            network["num_layers"] = changes.pop("depth")
        return Pretrained(**self.config | {"network": network} | changes)

    @property
    def blocks(self) -> nn.ModuleList:
        return getattr(self.network, self.kind.blocks)

    @property
    def attention_shape(self) -> tuple[int, int, int]:
        network = self.config["network"]
        heads, width = network["num_attention_heads"], network["attention_head_dim"]
        return torch.Size(self.grid).numel(), heads, width

    @property
    def is_conditional(self) -> bool:
        return True

    @property
    def compiled_parts(self) -> list[nn.Module]:
        return list(self.blocks)

    def skip_blocks(self, numbers) -> None:
        if numbers:
            raise ValueError("blocks of a network of diffusers cannot be left out")

    def example_condition(self) -> dict[str, Tensor]:
        text = torch.zeros(1, self.text_tokens, self.text_width)
        return {"y": text, "null": text}

    def null(self, cond: dict[str, Any]) -> dict[str, Any]:
        return cond | {"y": cond["null"]}

    def drop(self, cond: dict[str, Any], where: Tensor) -> dict[str, Any]:
        return cond | {"y": torch.where(where[:, None, None], cond["null"], cond["y"])}

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, null: Tensor | None = None, *,
        return_blocks: tuple[int, ...] = (), only_blocks: bool = False,
    ) -> Output:  # fmt: skip
        """x (B, C, frames, h, w), t (B,) with t = 1 at the data, y (B, L, W) the tokens of a text;
        `null`, those of no text, is for `drop` and `null`.

        Blocks are the video's tokens, frame by frame.

        Raises:
            ValueError: a block that the model does not have.
        """
        text = F.pad(y, (0, 0, 0, self.text_tokens - y.shape[1]))
        self.network.gradient_checkpointing = self.activation_checkpointing
        tapped = record_blocks(self.blocks, return_blocks, tokens=self.kind.tokens)
        with tapped as blocks, self.arithmetic(x.device):
            pred = self.kind.predict(self.network, x.to(self.dtype), t, text.to(self.dtype))
        return Output(None if only_blocks else pred.to(x.dtype), blocks)

    def arithmetic(self, device: torch.device) -> AbstractContextManager:
        """Autocast would round what the network keeps in float32."""
        return torch.autocast(device.type, enabled=False) if self.own_precision else nullcontext()


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def leave_out_frozen(model: Pretrained, state: dict[str, Tensor], prefix: str, _) -> None:
    """What is not trained is in the pretrained files, and no part of a state dict."""
    for name in list(state):
        if name.startswith(prefix) and name.removeprefix(prefix) not in model.trained:
            del state[name]


def excuse_frozen(model: Pretrained, incompatible) -> None:
    missing = incompatible.missing_keys
    missing[:] = [name for name in missing if name in model.trained]


def patch_of(network: dict[str, Any]) -> tuple[int, ...]:
    patch = network["patch_size"]
    return (1, patch, patch) if isinstance(patch, int) else tuple(patch)


def check_task(task: Task, kind: str, pretrained: str, network: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: another objective, other data, or another model than this network is for.
    """
    path, prediction = KINDS[kind].objective
    if task.objective != (path, prediction):
        raise ValueError(
            f"{kind} was trained on another objective: give --path-type {path} --prediction "
            f"{prediction}"
        )
    if not task.text_width or len(task.shape) != 4:
        raise ValueError(f"{kind} is for videos with captions: give --dataset_name ssv2")
    special = ("use_rotary_positional_embeddings", "patch_size_t", "ofs_embed_dim", "image_dim")
    if found := [name for name in special if network.get(name)]:
        raise ValueError(
            f"--pretrained {pretrained} is a larger or an image-to-video {kind} ({found[0]}), "
            f"which is not supported: give one like {KINDS[kind].hub_id}"
        )
    for what, given, wanted in (
        ("channels", task.shape[0], network["in_channels"]),
        ("numbers per token of a text", task.text_width,
         network.get("text_dim") or network.get("text_embed_dim")),
    ):  # fmt: skip
        if given != wanted:
            raise ValueError(
                f"--pretrained {pretrained} takes {wanted} {what}, and the data have {given}: give "
                "the --vae and the --text-encoder of the same pipeline"
            )


def class_of(kind: str) -> type[nn.Module]:
    """
    Raises:
        ValueError: no diffusers, or one that is too old.
    """
    try:
        import diffusers

        return getattr(diffusers, KINDS[kind].network)
    except (ImportError, AttributeError) as error:
        from runtime import hub

        raise ValueError(f"--model {kind} needs diffusers ({error}): {hub.FINETUNE}") from error


def read_config(kind: str, pretrained: str) -> dict[str, Any]:
    """Arguments of the network's class.

    Raises:
        ValueError: nothing there, or another network.
    """
    config = opened(class_of(kind).load_config, kind, pretrained)
    found = config.get("_class_name")
    if found != KINDS[kind].network:
        raise ValueError(
            f"--pretrained {pretrained} holds a {found}, and --model {kind} is a "
            f"{KINDS[kind].network}"
        )
    complete = class_of(kind).from_config  # with defaults for what the file leaves out
    with torch.device("meta"):
        config = complete(config).config
    return {name: value for name, value in config.items() if not name.startswith("_")}


def read_network(kind: str, pretrained: str, dtype: torch.dtype) -> nn.Module:
    """The network in train mode, where `read_config` finds its class.

    Raises:
        ValueError: not to be had here, or incomplete.
    """
    network, report = opened(
        class_of(kind).from_pretrained, kind, pretrained, torch_dtype=dtype,
        use_safetensors=True, output_loading_info=True,
    )  # fmt: skip
    if report["missing_keys"]:
        raise ValueError(
            f"--pretrained {pretrained} is incomplete: it has no tensor "
            f"{sorted(report['missing_keys'])[0]}"
        )
    return network.train()


def opened(load: Callable[..., Any], kind: str, pretrained: str, **options: Any) -> Any:
    """What `load` makes of a transformer's folder, or of the one in a pipeline, here or on the hub.

    Raises:
        ValueError: it is nowhere, or cannot be read.
    """
    from safetensors import SafetensorError

    from runtime import hub

    alone = (Path(pretrained) / "config.json").is_file()  # a transformer, no pipeline around it
    options |= {} if alone else {"subfolder": "transformer"}
    try:
        return hub.looked_up(load, pretrained, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"--pretrained {pretrained}: no {kind} (its transformer's config.json and "
            "safetensors, as diffusers saves them) can be read here or be had from the hub "
            f"({reason}): give the folder of a pipeline, or set HF_HOME to the cache that has it"
        ) from error


def own_weights(weights: dict[str, Tensor], reversed_time: bool = False) -> dict[str, Tensor]:
    return {name: value.float() for name, value in weights.items()}


def architecture_of(weights: dict[str, Tensor], args: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("these are weights of a pretrained network, and it does not say of which")


def adapter_of(
    weights: dict[str, Tensor], config: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict's adapters as `load_lora_weights` of diffusers' pipelines reads them: tensors
    and metadata of ADAPTER.

    Raises:
        ValueError: these are no adapters.
    """
    if not (config or {}).get("lora_rank"):
        raise ValueError("it holds no adapters: it was not trained by LoRA")
    named = {
        name.replace("network.", "transformer.", 1).replace(".default.", "."): value.contiguous()
        for name, value in weights.items()
    }
    about = {
        "transformer.r": config["lora_rank"],
        "transformer.lora_alpha": config["lora_alpha"] or config["lora_rank"],
        "transformer.target_modules": [*ATTENTION, *KINDS[config["kind"]].feed_forward],
    }
    return named, {"format": "pt", "lora_adapter_metadata": json.dumps(about)}
