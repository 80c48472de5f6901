"""What sample_ddp.py computes of a checkpoint, block by block: samples, the noise that images come
from, likelihoods."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains import Condition, Draws, NoHeldOut
from domains.domain import fingerprint_of
from domains.reading import tell
from runtime.config import NpzFlags
from runtime.distributed import Ranks
from runtime.entry import asked_of_user
from runtime.errors import InputError
from runtime.npz import Blocks
from runtime.random import LegacyStreams, SampleStreams, generator
from transport import Likelihood, Sampler

from .opened import Opened


class Samples:
    """N samples in blocks of consecutive indices.

    A block's size is fixed and the last one is padded, so that every sample is computed in the
    same company, and is the same to the bit, whatever the number of ranks.
    """

    def __init__(self, flags: NpzFlags, opened: Opened, ranks: Ranks) -> None:
        self.flags, self.opened, self.ranks = flags, opened, ranks
        self.count = flags.num_fid_samples
        if flags.pngs and len(opened.domain.raw_shape) != 3:
            raise InputError(f"--pngs: samples of {opened.domain.name} are no pictures")
        has_classes = opened.domain.num_classes and not opened.domain.multi_label
        if flags.labels == "balanced" and not has_classes:
            raise InputError(
                f"--labels balanced: a sample of {opened.domain.name} is of no single class here, "
                "leave it out"
            )
        self.arrays = ["arr_0", "arr_1"] if opened.domain.choices else ["arr_0"]
        self.check()

    def check(self) -> None:
        """Refuse flags that no solver takes, before anything is written."""
        self.opened.sampler(self.flags)

    def protocol(self) -> dict[str, Any]:
        """What else decides the arrays: of samples, the guidance and how floats became uint8."""
        guidance = self.opened.guidance(self.flags)
        return {
            "guidance": {
                "scale": guidance.scale, "channels": guidance.channels or "all",
                "interval_in_t": guidance.interval,
            },
            "seed_scheme": "(seed, sample index)",
            **({"labels": "balanced"} if self.flags.labels == "balanced" else {}),
            **self.opened.domain.rounding,
        }  # fmt: skip

    def blocks(self) -> list[tuple[int, int, range]]:
        """(first index, part, indices) of this rank's blocks."""
        size = self.flags.per_proc_batch_size
        firsts = range(0, self.count, size)
        return [(i, 0, range(i, i + size)) for i in firsts[self.ranks.rank :: self.ranks.size]]

    def streams(self, indices: range) -> SampleStreams:
        return SampleStreams(indices, self.flags.global_seed, self.ranks.device)

    def compute(self, indices: range) -> dict[str, np.ndarray]:
        """What the .npz holds of these samples, and what they cost."""
        network, size = self.opened.network, len(indices)
        network.calls = network.rows = 0
        arrays = self.result(indices, self.streams(indices))
        # Of every sample: the calls it took part in, and its rows in them (two under guidance).
        arrays["calls"] = np.full(size, network.calls)
        arrays["rows"] = np.full(size, network.rows / size)
        return arrays

    def result(self, indices: range, streams: SampleStreams) -> dict[str, np.ndarray]:
        domain, legacy = self.opened.domain, self.flags.legacy_seeds
        z, drawn = streams.start(domain.shape, domain.choices)
        if self.flags.labels == "balanced":
            drawn = balanced(indices, domain.num_classes, self.flags.global_seed).to(drawn.device)
        chosen = domain.chosen(indices, drawn)
        raw = self.opened.draw(
            self.flags, streams, z, domain.condition(chosen), per_sample_error=not legacy
        )
        return {"arr_0": domain.arrays(raw), "arr_1": domain.labels(chosen)}

    def summary(self, blocks: Blocks) -> dict[str, Any]:
        return {}


def balanced(indices: Sequence[int], classes: int, seed: int) -> Tensor:
    """Class ids (B,) of samples: every `classes` consecutive ones have each class once, in an order
    of (seed, which round of them it is). Files sorted by class have too low an Inception score."""
    orders = {
        number: torch.randperm(classes, generator=generator("cpu", seed, "balanced", number))
        for number in {index // classes for index in indices}
    }
    return torch.stack([orders[index // classes][index % classes] for index in indices])


class LegacySamples(Samples):
    """SiT's seeds: a stream per rank, samples dealt out to the ranks in turn."""

    def __init__(self, flags: NpzFlags, opened: Opened, ranks: Ranks) -> None:
        super().__init__(flags, opened, ranks)
        seed, guided = flags.global_seed * ranks.size + ranks.rank, flags.cfg_scale > 1
        self.stream = LegacyStreams(seed, flags.per_proc_batch_size, guided, ranks.device)

    def blocks(self) -> list[tuple[int, int, range]]:
        size, ranks = self.flags.per_proc_batch_size * self.ranks.size, self.ranks
        return [
            (total, ranks.rank, range(total + ranks.rank, total + size, ranks.size))
            for total in range(0, self.count, size)
        ]

    def streams(self, indices: range) -> LegacyStreams:
        return self.stream

    def protocol(self) -> dict[str, Any]:
        scheme = {"seed_scheme": "seed * world + rank", "world": self.ranks.size}
        return super().protocol() | scheme


class FromData(Samples):
    """What the flow says of real images: held-out ones, or all where the data have no such part."""

    arrays_of_task: list[str]

    def __init__(self, flags: NpzFlags, opened: Opened, ranks: Ranks) -> None:
        super().__init__(flags, opened, ranks)
        domain = opened.domain
        try:
            self.images, self.part = domain.held_out_set(), "held out"
        except NoHeldOut:
            self.images, self.part = domain.train_set(augment=False), "train"
        self.count = min(self.count, len(self.images))
        self.arrays = self.arrays_of_task
        if flags.pngs or flags.cfg_scale != 1 or flags.labels != "random":
            raise InputError(
                "--reverse and --likelihood go without --pngs, --cfg-scale and --labels balanced"
            )

    def protocol(self) -> dict[str, Any]:
        data = {"part": self.part, "sha256": fingerprint_of(self.images)}
        return {"seed_scheme": "(seed, image index)", "data": data}

    def data(self, indices: range, streams: SampleStreams) -> tuple[Tensor, Condition]:
        """Model input x and the conditions of the images; padding repeats the last image."""
        domain, device = self.opened.domain, self.ranks.device
        numbers = [min(index, self.count - 1) for index in indices]
        batch = self.images.__getitems__(Draws.plain(numbers)).checked()
        for problem in batch.problems:
            tell(problem)
        stored = domain.codec.encode(batch.raw.to(device))
        cond = {name: value.to(device) for name, value in batch.cond.items()}
        return domain.codec.to_input(stored, streams.noise(domain.shape)), cond


class Reverse(FromData):
    """--reverse: the noise that images come from, float32 (N, C, *axes) in arr_0."""

    arrays_of_task = ["arr_0"]

    def result(self, indices: range, streams: SampleStreams) -> dict[str, np.ndarray]:
        x, cond = self.data(indices, streams)
        encode = self.opened.sampler(self.flags, reverse=True)
        return {"arr_0": encode(x, self.opened.network, **cond)[-1].float().cpu().numpy()}


class LikelihoodOfData(FromData):
    """--likelihood: log-density in nats and bits per dimension of each image."""

    arrays_of_task = ["bits_per_dim", "log_density"]

    def check(self) -> None:
        self.evaluator(torch.randn_like)

    def evaluator(self, randn: Callable[[Tensor], Tensor]) -> Callable[..., Likelihood]:
        flags = self.flags
        with asked_of_user():
            return Sampler(self.opened.transport).sample_ode_likelihood(
                sampling_method=flags.sampling_method, num_steps=flags.num_sampling_steps,
                atol=flags.atol, rtol=flags.rtol, probe=lambda x: randn(x).sign(),
            )  # fmt: skip

    def result(self, indices: range, streams: SampleStreams) -> dict[str, np.ndarray]:
        x, cond = self.data(indices, streams)
        evaluate = self.evaluator(lambda x: streams.noise(tuple(x.shape[1:])))
        found = evaluate(x, self.opened.network, **cond)
        return {name: getattr(found, name).cpu().numpy() for name in self.arrays}

    def summary(self, blocks: Blocks) -> dict[str, Any]:
        bits = blocks.whole("bits_per_dim", self.count)
        error = bits.std(ddof=1) / len(bits) ** 0.5 if len(bits) > 1 else float("nan")
        return {"bits_per_dim": float(bits.mean()), "standard_error": float(error)}


def task_of(flags: NpzFlags) -> type[Samples]:
    chosen = {
        "legacy_seeds": LegacySamples, "reverse": Reverse, "likelihood": LikelihoodOfData,
    }  # fmt: skip
    asked = [name for name in chosen if getattr(flags, name, False)]
    if len(asked) > 1:
        raise InputError(f"--{asked[0]} and --{asked[1]} do not go together".replace("_", "-"))
    return chosen[asked[0]] if asked else Samples
