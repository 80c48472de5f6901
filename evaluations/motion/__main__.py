"""Score generated human motion as the papers of HumanML3D do.

python -m evaluations.motion SAMPLES.npz --data HumanML3D --evaluator FOLDER
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

import layersync
from domains.humanml3d import BATCH, Clips, read_clips
from evaluations.images.report import beside, read_protocol
from runtime import distributed
from runtime.config import checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import sha256_of, write_json
from runtime.hardware import versions

from . import report
from .batches import Samples, name_of, real_batches
from .evaluator import Evaluator, open_evaluator
from .protocol import embed, mean_of, scores

SPLIT = "test"


@dataclass(frozen=True)
class Flags:
    """R-precision, FID, matching score and diversity of samples by T2M's protocol, with 95 %
    intervals over replications; real motions are scored first.

    $ python -m evaluations.motion samples/NAME.npz --data HumanML3D --evaluator FOLDER
    """

    # what sample_ddp.py wrote
    samples: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SAMPLES")] = tyro.MISSING
    data: str = tyro.MISSING  # HumanML3D's folder, which the captions are of
    evaluator: Path = tyro.MISSING  # MDM's or text-to-motion's folder with T2M's files
    per_replication: int = 1024  # consecutive samples, a multiple of 32
    seed: int = 0  # of the real motions' order, captions and crops, and of the pairs
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    ranks = distributed.start_alone("evaluations.motion", flags.device)
    clips = read_clips(flags.data, SPLIT)
    if len(clips) < BATCH:
        raise InputError(
            f"{flags.data} has {len(clips)} clips in {SPLIT}.txt: R-precision is among {BATCH}"
        )
    samples = Samples(flags.samples, clips.captions)
    replications = replications_of(len(samples), flags)
    protocol = read_protocol(str(flags.samples))
    check_captions(flags, clips, protocol or {})
    evaluator = open_evaluator(flags.evaluator, flags.data, ranks.device)
    values, motions = scored(evaluator, clips, samples, replications, flags)
    means = {
        who: {name: mean_of(found).mean for name, found in of.items()} for who, of in values.items()
    }
    result = {
        "samples": str(flags.samples),
        "replications": replications,
        "per_replication": flags.per_replication,
        "frames": samples.canvas,
        "left_out": len(samples) - replications * flags.per_replication,
        "evaluator": evaluator.facts(),
        "reference": {
            "name": name_of(flags.data), "motions": motions,
            "captions_sha256": clips.fingerprint(),
        },
        "scores": means["samples"],
        "floor": {"scores": means["real"]},
        "measured": {
            who: {name: mean_of(found)._asdict() | {"values": found} for name, found in of.items()}
            for who, of in values.items()
        },
        "seed": flags.seed,
    }  # fmt: skip
    result["warnings"] = report.warnings_of(result)
    written(result | {"protocol": protocol, "samples_sha256": sha256_of(flags.samples)})


def check_captions(flags: Flags, clips: Clips, protocol: dict[str, Any]) -> None:
    """
    Raises:
        InputError: the samples were drawn with other captions.
    """
    if protocol.get("captions", clips.fingerprint()) != clips.fingerprint():
        raise InputError(
            f"{flags.samples} was drawn with other captions than those of {flags.data}: its "
            f"{SPLIT}.txt or its texts have changed"
        )


def replications_of(count: int, flags: Flags) -> int:
    """How many the samples are enough for.

    Raises:
        InputError: none, or no whole batches.
    """
    each = flags.per_replication
    if each < BATCH or each % BATCH:
        raise InputError(
            f"--per-replication {each}: give a multiple of {BATCH}, the batch of R-precision"
        )
    if count < each:
        most = count // BATCH * BATCH
        mend = f"give --per-replication {most}" if most else f"draw at least {BATCH}"
        raise InputError(
            f"{flags.samples} has {count} motions, fewer than a replication of {each}: {mend}"
        )
    return count // each


def scored(
    evaluator: Evaluator, clips: Clips, samples: Samples, replications: int, flags: Flags
) -> tuple[dict[str, dict[str, list[float]]], int]:
    """The scores of every replication, of real motions and of samples, and the number of real
    motions that they are measured by."""
    statistics, kept = evaluator.statistics, len(clips) // BATCH * BATCH
    used = replications * flags.per_replication
    with tqdm(total=(replications + 1) * kept + used, desc="motions", unit="motion") as bar:
        # Samples first: the real ones take longer, and a damaged file should be said before.
        seen = embed(evaluator, samples.batches(statistics, used), bar)
        # Real motions are measured by another pass over them: its captions and crops are others.
        real = partial(real_batches, clips, statistics, flags.seed, "pass", canvas=samples.canvas)
        passes = [embed(evaluator, real(i), bar) for i in range(replications + 1)]
    parts = {"real": passes[:-1], "samples": seen.replications(flags.per_replication)}
    found: dict[str, dict[str, list[float]]] = {}
    for who, of in parts.items():
        each = [
            scores(part, passes[i + 1].motions, evaluator.distance, flags.seed, "pairs", i)
            for i, part in enumerate(of)
        ]
        found[who] = {name: [one[name] for one in each] for name in each[0]}
    return found, kept


def written(result: dict[str, Any]) -> None:
    """Printed, and beside the samples as JSON and as a picture."""
    picture, path = (beside(result["samples"], f".score.{end}") for end in ("png", "json"))
    report.save_picture(picture, result)
    result |= {
        "picture": str(picture),
        "versions": versions() | {"layersync": layersync.__version__},
    }
    write_json(path, result)
    print(f"{report.table(result)}\n{picture}\n{path}")


if __name__ == "__main__":
    run(main)
