"""A checkpoint for other libraries: the Hugging Face Hub, diffusers' DiT, diffusers' pipelines.

python export.py --ckpt results/000-SiT-Ti-2-digits --out exported
python export.py --ckpt results/000-SiT-Ti-2-digits --to diffusers --out dit
"""

from pathlib import Path
from typing import Any

import tyro

import models
from runtime import checkpoint, distributed
from runtime.checkpoint import Checkpoint
from runtime.config import ExportConfig
from runtime.entry import asked_of_user, run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write, written_whole

INSTALL = "pip install '.[vae]'"
# Flags of the run that the model card states.
FACTS = {
    "data": "dataset_name", "VAE": "vae", "loss": "loss_type", "student": "encoder_depth",
    "teacher": "gt_encoder_depth", "weight": "reg_weight", "path": "path_type",
    "prediction": "prediction", "global batch": "global_batch_size", "learning rate": "lr",
    "EMA decay": "ema_decay", "seed": "global_seed",
}  # fmt: skip


def main() -> None:
    flags = tyro.cli(ExportConfig, console_outputs=speaks())
    distributed.start_alone("export.py", "cpu")
    if not flags.ckpt:
        raise InputError("--ckpt is missing: give it a checkpoint file or a run's folder")
    found = checkpoint.read(flags.ckpt)
    pretrained = (found.architecture or {}).get("pretrained")
    if pretrained and (flags.to == "hub" or flags.push):
        raise InputError(f"{found.path} is a network of diffusers: leave out --to hub and --push")
    write = write_pretrained if pretrained else WRITERS[flags.to or "hub"]
    with asked_of_user(about=str(found.path)):
        print(write(found, flags))


def write_hub(found: Checkpoint, flags: ExportConfig) -> str:
    """config.json, model.safetensors and a model card."""
    try:
        from models.hub import HubSiT
    except ImportError as error:
        raise InputError(f"--to hub needs huggingface_hub ({error}): {INSTALL}") from error
    model = HubSiT.of(weights_of(found, flags), found.architecture, found.args, found.reversed_time)
    config = {**model.config, "class_dropout_prob": 0.0, checkpoint.RUN: checkpoint.run_of(found)}
    card = {"title": found.args.get("model", "SiT"), "facts": facts_of(found, flags)}
    with written_whole(flags.out) as folder:
        model.save_pretrained(folder, config=config, model_card_kwargs=card)
    said = (
        f"{flags.out}: models.hub.HubSiT.from_pretrained({flags.out!r}), or --ckpt {flags.out} of "
        "every command here"
    )
    if not flags.push:
        return said
    try:
        url = model.push_to_hub(flags.push, config=config, model_card_kwargs=card)
    except (OSError, ValueError) as error:  # no network, no token, a name that is none
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"--push {flags.push}: the Hub refused it ({reason}); {flags.out} is written: `hf auth "
            f"login`, then again, or `hf upload {flags.push} {flags.out}`"
        ) from error
    return f"{said}\n{url}"


def write_dit(found: Checkpoint, flags: ExportConfig) -> str:
    """The folder of a DiTTransformer2DModel whose outputs are the SiT's."""
    if flags.push:
        raise InputError("--push is of --to hub: leave it out, or give --to hub")
    try:
        from diffusers import DiTTransformer2DModel
    except ImportError as error:
        raise InputError(f"--to diffusers needs diffusers ({error}): {INSTALL}") from error
    weights = weights_of(found, flags)
    model = models.load(
        weights, found.architecture, args=found.args, reversed_time=found.reversed_time
    )
    network = DiTTransformer2DModel(**models.dit_config(model.config))
    network.load_state_dict(models.dit_weights(model.state_dict(), model.config))
    with written_whole(flags.out) as folder:
        network.save_pretrained(folder)
    return (
        f"{flags.out}: diffusers.DiTTransformer2DModel.from_pretrained({flags.out!r}); timestep is "
        "t, from 0 (noise) to 1 (data), and the first channels of its output are the velocity"
    )


def write_pretrained(found: Checkpoint, flags: ExportConfig) -> str:
    """What Wan2.1 or CogVideoX were taught: LoRA's adapters, or the pipeline's transformer."""
    out, weights, architecture = Path(flags.out), weights_of(found, flags), found.architecture
    if not architecture["lora_rank"]:
        with written_whole(out) as folder:
            models.load(weights, architecture).network.save_pretrained(folder)
        return f"{out}: the pipeline's transformer, for its from_pretrained"
    from safetensors.torch import save

    tensors, about = models.adapter_of(weights, architecture)
    with atomic_write(out / models.ADAPTER) as file:
        file.write(save(tensors, about))
    return f"{out / models.ADAPTER}: pipeline.load_lora_weights({str(out)!r})"


WRITERS = {"hub": write_hub, "diffusers": write_dit}


def weights_of(found: Checkpoint, flags: ExportConfig) -> dict[str, Any]:
    """
    Raises:
        InputError: it has no such weights.
    """
    weights = found.ema if flags.weights == "ema" else found.model
    if not weights:
        raise InputError(f"{found.path} holds no raw weights: leave out --weights model")
    return weights


def facts_of(found: Checkpoint, flags: ExportConfig) -> dict[str, Any]:
    facts = {said: found.args.get(flag) for said, flag in FACTS.items()}
    facts |= {"steps": found.step, "weights": flags.weights}
    return {said: value for said, value in facts.items() if value is not None}


if __name__ == "__main__":
    run(main)
