"""Named modules of any torch model: diffusers, timm, your own."""

import difflib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from domains import Batch
from domains.codecs import fingerprint
from runtime.errors import InputError

from .subject import Subject


class Done(Exception):
    """The last module asked for has run; the rest of the pass is not needed."""


class Modules(Subject):
    """Outputs of a model's modules as blocks 1, 2, ..., in the order of their names.

        subject = Modules(vit, ["blocks.3", "blocks.7"], lambda batch: batch.raw / 255, "vit")

    A module that returns (B, C, H, W) has H * W tokens; one that returns a tuple is represented by
    its first element. The pass ends when all have run.

    Args:
        names: as in `model.named_modules()`.
        inputs: what the model is called with, of a batch on the model's device.
        name: what tells it and its inputs from others, also to the features that are kept on disk.

    Raises:
        InputError: a name that the model does not have, with the nearest ones.
        ValueError: when called, a module that returns no tokens, or does not run.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], inputs: Callable[[Batch], Any],
        name: str,
    ) -> None:  # fmt: skip
        known = dict(model.named_modules())
        for one in names:
            if one not in known:
                near = difflib.get_close_matches(one, known, n=3, cutoff=0) or list(known)[1:4]
                raise InputError(f"no module {one!r} in {name}: near are {', '.join(near)}")
        self.model, self.names, self.inputs, self.name = model, list(names), inputs, name
        self.modules = [known[one] for one in names]
        self.blocks = tuple(range(1, len(names) + 1))
        self.device = next(model.parameters(), torch.zeros(())).device

    @cached_property
    def identity(self) -> dict[str, Any]:
        weights = fingerprint(self.model.state_dict())
        return {"name": self.name, "network": weights, "modules": self.names}

    @torch.no_grad()
    def tokens(self, batch: Batch, draw: int = 0) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}

        def hook_of(number: int):
            def hook(_module, _inputs, output) -> None:
                found[number] = self.as_tokens(number, output)
                if len(found) == len(self.blocks):
                    raise Done

            return hook

        with ExitStack() as stack:
            stack.callback(self.model.train, self.model.training)
            self.model.eval()
            for number, module in zip(self.blocks, self.modules, strict=True):
                stack.callback(module.register_forward_hook(hook_of(number)).remove)
            try:
                self.model(self.inputs(batch))
            except Done:
                return {number: found[number] for number in self.blocks}
        missing = ", ".join(self.names[n - 1] for n in self.blocks if n not in found)
        raise ValueError(f"{self.name}: {missing} did not run")

    def as_tokens(self, number: int, output: Any) -> Tensor:
        features = output[0] if isinstance(output, tuple) else output
        if isinstance(features, Tensor) and features.ndim == 4:
            features = features.flatten(2).mT
        if not isinstance(features, Tensor) or features.ndim != 3:
            raise ValueError(f"{self.names[number - 1]} returns no (batch, tokens, width) tensor")
        return features.float()
