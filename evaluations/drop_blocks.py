"""What a model loses without each of its blocks: held-out loss, and samples from equal noise.

python -m evaluations.drop_blocks results/000-SiT-Ti-2-digits
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from domains import DataSet, evenly_spaced
from evaluations import pages
from evaluations.features.study import home
from evaluations.heldout import Flags as LossFlags
from evaluations.heldout import images_of, losses_of, summary
from runtime import distributed
from runtime.config import GridODE, at_least
from runtime.entry import asked_of_user, run, speaks
from runtime.errors import InputError
from runtime.files import write_json
from runtime.random import SampleStreams
from runtime.text import columns
from sampling import Opened, open_checkpoint


@dataclass(frozen=True)
class Flags:
    """Leave out every block in turn, or the blocks of --sets together (Table 8, Figures 4 and 5).

    The loss is that of evaluations.heldout, paired with the whole model's. Samples start from the
    same noise. Blocks that cost nothing may be pruned: train.py --fine-tune --prune-blocks.

    $ python -m evaluations.drop_blocks results/000-SiT-Ti-2-digits
    $ python -m evaluations.drop_blocks RUN --sets 9,11,13,15 1,9,11,13,15
    """

    # a checkpoint file, or a run (its newest)
    ckpt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CKPT")]
    sets: tuple[str, ...] = ()  # blocks left out together, with commas; none: each in turn
    data: str | None = None  # --dataset_name of the images; None: the checkpoint's
    data_path: str | None = None  # folder of the data; None: without --data, the checkpoint's
    skip_corrupt: bool = False  # replace unreadable images by the next one, as train.py does
    weights: Literal["ema", "model"] = "ema"  # which weights of the checkpoint
    vae: str | None = None  # ema, mse, a hub id or a folder; None: the checkpoint's
    cache_dir: str = "./cache/"  # downloads of data sets and VAEs
    images: int = 500  # of the loss, at most
    samples: int = 8  # per row of the picture; 0: none, nor of sound, motion, discrete diffusion
    steps: int = 25  # time points of its sampler, heun2
    cfg_scale: float = 1.0  # its guidance; 1: none
    seed: int = 0  # of the noises and times, and of the samples
    batch_size: int = 64  # images per batch
    out: Path | None = None  # a folder; None: representation/STEP in the run
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one


def main() -> None:
    flags = tyro.cli(Flags, console_outputs=speaks())
    at_least(flags, images=1, samples=0, steps=2, batch_size=1)
    ranks = distributed.start_alone("evaluations.drop_blocks", flags.device)
    sampling = GridODE(
        ckpt=flags.ckpt, weights=flags.weights, vae=flags.vae, dataset_name=flags.data,
        data_path=flags.data_path, skip_corrupt=flags.skip_corrupt, seed=flags.seed,
        cache_dir=flags.cache_dir, sampling_method="heun2", num_sampling_steps=flags.steps,
        cfg_scale=flags.cfg_scale, compile="off",
    )  # fmt: skip
    opened = open_checkpoint(sampling, ranks.device, reads_data=True)
    seen = images_of(opened.domain)
    found, strips = measured(opened, seen, flags, sampling, ranks.device)
    folder = flags.out or home(opened.checkpoint.path)
    write_json(folder / "drop_blocks.json", found)
    print(as_text(found))
    if strips:
        draw(found, strips, folder / "drop_blocks.png")
        print(folder / "drop_blocks.png")
    print(folder / "drop_blocks.json")


def measured(
    opened: Opened, seen: tuple[DataSet, bool], flags: Flags, sampling: GridODE,
    device: torch.device,
) -> tuple[dict[str, Any], list[Tensor]]:  # fmt: skip
    """What the JSON holds, and a strip of samples (C, H, samples * W) per row of it.

    Args:
        seen: the images that the network is shown, and whether training never saw them.
    """
    model = opened.network.model
    wanted = [(), *sets_of(flags.sets, model.depth)]
    images, held_out = seen
    chosen = LossFlags(images=flags.images, seed=flags.seed, batch_size=flags.batch_size)
    drawable = opened.domain.has_pictures and not opened.transport.path.steps
    rows, strips, whole = [], [], None
    with asked_of_user(about="--sets" if flags.sets else ""):
        for skipped in wanted:  # refused before any loss is looked at
            model.skip_blocks(skipped)
    for skipped in wanted:
        model.skip_blocks(skipped)
        losses = torch.cat(list(losses_of(opened, images, chosen, device)))
        whole = losses if whole is None else whole
        rows.append({"skipped": list(skipped), **summary(losses), "more": summary(losses - whole)})
        if flags.samples and drawable:
            strips.append(strip(opened, sampling, flags.samples, device))
    model.skip_blocks(())
    found = {
        "file": str(opened.checkpoint.path), "data": opened.domain.name, "held_out": held_out,
        "images": len(whole), "seed": flags.seed, "rows": rows,
    }  # fmt: skip
    return found, strips


def sets_of(asked: tuple[str, ...], depth: int) -> list[tuple[int, ...]]:
    if not asked:
        return [(block,) for block in range(1, depth + 1)]
    try:
        return [tuple(int(number) for number in one.split(",")) for one in asked]
    except ValueError:
        raise InputError(
            f"--sets {' '.join(asked)}: write numbers with commas, 9,11,13,15"
        ) from None


def strip(opened: Opened, sampling: GridODE, count: int, device: torch.device) -> Tensor:
    """Samples of fixed seeds and classes side by side."""
    streams = SampleStreams(range(count), sampling.seed, device)
    z, _ = streams.start(opened.domain.shape, opened.domain.num_classes)
    classes = torch.tensor(evenly_spaced(count, opened.domain.num_classes), device=device)
    cond = opened.domain.condition(classes)
    raw = F.pad(opened.draw(sampling, streams, z, cond).cpu(), (1, 1, 1, 1), value=255)
    return torch.cat(list(raw), -1)


def draw(found: dict[str, Any], strips: list[Tensor], path: Path) -> None:
    figure, axes = pages.figure_of(len(strips), 1, size=(7, 0.9))
    for row, one, axis in zip(found["rows"], strips, axes.flat, strict=True):
        axis.imshow(one.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        label = f"without {named(row['skipped'])}" if row["skipped"] else "whole"
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
    pages.save(figure, path)


def named(blocks: list[int]) -> str:
    return ", ".join(map(str, blocks))


def as_text(found: dict[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        more, low, high = (row["more"][name] for name in ("mean", "low", "high"))
        interval = "-" if low is None or not row["skipped"] else f"{low:+.5f} to {high:+.5f}"
        label = f"without {named(row['skipped'])}" if row["skipped"] else "whole"
        rows.append([label, f"{row['mean']:.5f}", f"{more:+.5f}", interval])
    kind = "held-out" if found["held_out"] else "training (none are held out)"
    return "\n".join(
        [
            f"velocity loss of {found['images']} {kind} images of {found['data']}",
            columns(["", "loss", "more than whole", "95 % interval"], rows),
        ]
    )


if __name__ == "__main__":
    run(main)
