"""How the samples of a data set are drawn and scored in sweeps: the commands of both."""

from dataclasses import dataclass, replace
from pathlib import Path

import domains
from domains.humanml3d import BATCH, REPLICATION
from runtime.config import TrainConfig
from runtime.errors import InputError

from .runs import Step


@dataclass(frozen=True)
class Scoring:
    """Pictures and sounds, by `evaluations.images`."""

    samples: int
    batch: int
    time_points: int | None  # of the sampler; None: the protocol's
    reference: str  # real ones: an .npz, or a --dataset_name
    extractor: str
    held_out: bool = False  # the reference is that part of its data set
    real: str | None = None  # folder of real samples; None: runs are trained on it

    def against(self, reference: str) -> "Scoring":
        """By other real samples: a file, or the data set's folder where runs train on latents."""
        if Path(reference).is_dir() and not self.reference.endswith(".npz"):
            return replace(self, real=reference)
        return replace(self, reference=reference, held_out=False)

    def samples_folder(self, config: TrainConfig) -> str | None:
        """Of real samples, where --reference names it; else --data-path, which may hold latents."""
        return self.real or config.data_path

    def sample_words(self) -> list[str]:
        words = ["--num-fid-samples", str(self.samples), "--per-proc-batch-size", str(self.batch)]
        if self.time_points is None:
            return words
        return [*words, "--num-sampling-steps", str(self.time_points)]

    def score_words(self, samples: Path, config: TrainConfig) -> list[str]:
        words = ["-m", "evaluations.images", self.reference, str(samples)]
        words += ["--extractor", self.extractor, *(["--held-out"] if self.held_out else [])]
        return [*words, *data_words(self.samples_folder(config))]

    def check(self, config: TrainConfig) -> None:
        """
        Raises:
            InputError: the reference, or the extractor's file, is not there.
        """
        kind, _, weights = self.extractor.partition(":")
        if kind == "i3d" and not Path(weights).is_file():
            raise InputError(f"{weights}, which FVD needs, is not in the current folder")
        if self.reference.endswith(".npz") and not Path(self.reference).is_file():
            raise InputError(f"--reference {self.reference}: there is no such file")
        real = self.samples_folder(config)
        if not self.reference.endswith(".npz") and domains.stored_latents(real):
            raise InputError(
                f"--data-path {real} holds latents, and samples are scored beside real ones: give "
                f"--reference, the folder of {self.reference} that they were made of"
            )

    def prepared(self, config: TrainConfig, results: Path) -> tuple["Scoring", list[Step]]:
        """With what has to be made once before: a classifier that all sweeps of a results folder
        share, because scores are comparable only under one."""
        if self.extractor != "classifier":
            return self, []
        file = results / f"classifier-{config.dataset_name}.pt"
        words = ["-m", "evaluations.images", "train-classifier"]
        words += ["--dataset_name", config.dataset_name, "--out", str(file)]
        words += data_words(self.samples_folder(config))
        step = Step(f"classifier-{config.dataset_name}", words, file)
        return replace(self, extractor=f"classifier:{file}"), [step]


@dataclass(frozen=True)
class MotionScoring(Scoring):
    """Motions, by `evaluations.motion`; the reference is the folder of the evaluator."""

    extractor: str = "T2M"

    def against(self, reference: str) -> "Scoring":
        return replace(self, reference=reference)

    def score_words(self, samples: Path, config: TrainConfig) -> list[str]:
        words = ["-m", "evaluations.motion", str(samples), "--data", str(config.data_path)]
        each = min(self.samples, REPLICATION) // BATCH * BATCH
        return [*words, "--evaluator", self.reference, "--per-replication", str(each)]

    def check(self, config: TrainConfig) -> None:
        if not Path(self.reference).is_dir():
            raise InputError(
                f"--reference {self.reference}: there is no such folder; give that of the evaluator"
            )
        if self.samples < BATCH:
            raise InputError(f"--samples {self.samples}: motions are scored by {BATCH}, or more")


PAPER = Scoring(50_000, 50, None, "VIRTUAL_imagenet256_labeled.npz", "inception")
SCORINGS: dict[str, Scoring] = {  # --dataset_name -> its own; all others as the paper's images
    "digits": Scoring(500, 100, 25, "digits", "classifier"),
    "fashion-mnist": Scoring(10_000, 250, 25, "fashion-mnist", "classifier"),
    "glyphs": Scoring(5000, 250, 25, "glyphs", "classifier"),
    "openclipart": Scoring(5000, 250, 25, "openclipart", "classifier"),
    "instruments": Scoring(256, 64, 25, "instruments", "classifier"),
    "mtg-jamendo": Scoring(
        10_000, 50, None, "mtg-jamendo", "clap:laion/larger_clap_music", held_out=True
    ),
    "mtg-jamendo-all": Scoring(10_000, 50, None, "mtg-jamendo-all", "clap:laion/larger_clap_music"),
    "moving": Scoring(500, 50, 25, "moving", "classifier"),
    # FVD of as many clips as CLEVRER's validation part has videos; of SSv2's it is the first ones.
    "clevrer": Scoring(5000, 8, None, "clevrer", "i3d:i3d_torchscript.pt", held_out=True),
    "ssv2": Scoring(5000, 2, None, "ssv2", "i3d:i3d_torchscript.pt", held_out=True),
    "humanml3d": MotionScoring(20 * REPLICATION, 64, None, "motion-diffusion-model"),
}

# Networks that others trained are sampled as they say: --model -> --protocol.
PROTOCOL_OF = {"Wan2.1": "wan", "CogVideoX": "cogvideox"}


def data_words(folder: str | None) -> list[str]:
    return [] if folder is None else ["--data-path", folder]
