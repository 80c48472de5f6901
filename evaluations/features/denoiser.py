"""Blocks of a diffusion or flow transformer that sees an image at a stated share of noise."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from domains import Batch, Condition
from domains.codecs import fingerprint
from runtime.errors import InputError
from runtime.random import SampleStreams, seed_of
from sampling import Opened

from .subject import Subject, chosen_blocks

CLEAN = 0.999  # the time that an image without noise is shown at, as in the public probes


@dataclass(frozen=True)
class View:
    """How the network is shown an image."""

    noise: float = 0.0  # share of noise in the input: 0 the clean image, 1 nothing of it
    label: Literal["null", "true"] = "null"  # the condition; the true class would tell the answer
    latent: Literal["sample", "mode"] = "sample"  # of the VAE's posterior
    seed: int = 0  # of noise and posterior: functions of (seed, image)
    first_token: bool = True  # False leaves it out, as the public script does


class Denoiser(Subject):
    """A checkpoint as a subject; the pass ends at the deepest block looked at.

    The input is x_t of the checkpoint's own path at t = 1 - noise, t = 1 being the data. An image
    without noise is shown at t = 0.999. Noise and posterior are drawn on the CPU by the image's
    number, so that two models of one input shape see the same on every device.

    Raises:
        InputError: a share of noise outside [0, 1], a block that does not exist, or true labels
            for a model without classes.
    """

    def __init__(self, opened: Opened, asked: tuple[int, ...] = (), view: View = View()) -> None:
        if not 0 <= view.noise <= 1:
            raise InputError(f"--noise {view.noise} is the share of noise: give 0 to 1")
        model = opened.network.model
        if view.label == "true" and not model.is_conditional:
            raise InputError("--label true: the model was trained without classes")
        self.opened, self.view, self.model = opened, view, model
        self.blocks = chosen_blocks(asked, model.depth)
        self.grid = model.grid if view.first_token else None
        domain = opened.domain
        self.reads, self.rate = domain.raw_shape, domain.rate
        if domain.num_frames:
            self.clips = {
                "num_frames": domain.num_frames, "frame_stride": domain.frame_stride,
                "num_classes": model.num_classes or None,
            }  # fmt: skip
        self.classes = domain.name, model.num_classes
        file = opened.checkpoint
        self.name = f"{file.path.parent.parent.name}, step {file.step}".removeprefix(", ")
        self.device = next(model.parameters()).device

    @cached_property
    def identity(self) -> dict[str, Any]:
        opened, model = self.opened, self.model
        view = asdict(self.view)
        if self.view.first_token:  # features from before there was a choice are found again
            del view["first_token"]
        return {
            "network": fingerprint(model.state_dict()), "skipped": sorted(model.skipped_blocks),
            "codec": opened.domain.codec.identity, "path": opened.transport.path.name,
            "bf16": opened.network.arithmetic.bf16, **view,
        }  # fmt: skip

    def at(self, noise: float) -> "Denoiser":
        return Denoiser(self.opened, self.blocks, replace(self.view, noise=noise))

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        return batch._replace(raw=self.opened.domain.codec.encode(batch.raw))

    @torch.no_grad()
    def tokens(self, batch: Batch, draw: int = 0) -> dict[int, Tensor]:
        x, noise = self.inputs(batch, draw)
        t = torch.full((len(x),), 1.0 - self.view.noise, device=x.device)
        x_t, _ = self.opened.transport.path.sample(x, noise, t)
        cond = batch.cond if self.view.label == "true" else self.null(len(x))
        with self.opened.network.arithmetic():
            output = self.model(
                x_t, t.clamp(max=CLEAN), **cond, return_blocks=self.blocks, only_blocks=True
            )
        first = 0 if self.view.first_token else 1
        return {number: tokens[:, first:].float() for number, tokens in output.blocks.items()}

    def null(self, count: int) -> Condition:
        """No condition of `count` samples; they may be of data with other labels than its own."""
        example = self.model.example_condition()
        return self.model.null({
            name: one.to(self.device).expand(count, *one.shape[1:]) for name, one in example.items()
        })  # fmt: skip

    def inputs(self, batch: Batch, draw: int) -> tuple[Tensor, Tensor]:
        """The model's clean input and the noise of each image, (B, *shape) both."""
        domain, device = self.opened.domain, batch.raw.device
        seed = seed_of(self.view.seed, "features", draw)
        streams = SampleStreams(batch.index.tolist(), seed, "cpu")
        posterior, noise = (streams.normal(domain.shape).to(device) for _ in range(2))
        if self.view.latent == "mode":
            posterior = torch.zeros_like(posterior)
        return domain.codec.to_input(batch.raw, posterior), noise
