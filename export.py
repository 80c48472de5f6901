"""What a run of Wan2.1 or CogVideoX has trained, as diffusers' pipelines load it.

python export.py --ckpt results/000-Wan2.1-wan-ssv2 --out adapters
"""

from pathlib import Path

import tyro

import models
from runtime import checkpoint, distributed
from runtime.config import ExportConfig
from runtime.entry import asked_of_user, run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write


def main() -> None:
    flags = tyro.cli(ExportConfig, console_outputs=speaks())
    if distributed.start("cpu").size > 1:
        raise InputError("export.py runs as one process: start it without torchrun")
    if not flags.ckpt:
        raise InputError("--ckpt is missing: give it a checkpoint file or a run's folder")
    found = checkpoint.read(flags.ckpt)
    weights = found.ema if flags.weights == "ema" else found.model
    architecture = found.architecture or {}
    if not architecture.get("pretrained"):
        raise InputError(f"{found.path} is no fine-tuned network of diffusers: there is no need")
    out = Path(flags.out)
    with asked_of_user(about=str(found.path)):
        if architecture["lora_rank"]:
            write_adapters(out / models.ADAPTER, weights, architecture)
            print(f"{out / models.ADAPTER}: pipeline.load_lora_weights({str(out)!r})")
        else:
            models.load(weights, architecture).network.save_pretrained(out)
            print(f"{out}: the pipeline's transformer, for its from_pretrained")


def write_adapters(path: Path, weights, architecture) -> None:
    from safetensors.torch import save

    tensors, about = models.adapter_of(weights, architecture)
    with atomic_write(path) as file:
        file.write(save(tensors, about))


if __name__ == "__main__":
    run(main)
