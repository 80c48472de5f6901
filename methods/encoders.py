"""Targets from a frozen image encoder, computed in the loop: REPA's DINOv2 through timm."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains import Batch, Domain
from domains.codecs import fingerprint
from domains.latents import LatentDomain
from runtime.errors import InputError


class EncoderTargets:
    """Patch tokens after the encoder's final norm, one per token of the model.

    As REPA prepares them: the image of this step, with the latent's crop and flip, is normalized by
    the encoder's mean and deviation and then resized (bicubic, not antialiased) so that the
    encoder's patches are as many as the model's: 224 pixels for patches of 14 on a grid of 16x16.

    Args:
        name: of a timm vision transformer.
        weights: a local file; None: timm's, from the hub's cache or the hub.

    Raises:
        InputError: no timm, no such encoder, no weights, or a domain without images.
    """

    def __init__(
        self, name: str, weights: str | None, grid: tuple[int, ...], domain: Domain
    ) -> None:
        if isinstance(domain, LatentDomain):
            raise InputError(
                f"--loss-type repa sees images, but {domain.source.called} holds latents: train on "
                "images, or store the encoder's tokens with methods.features --encoder and use "
                "--loss-type external"
            )
        self.network = opened(name, weights, grid)
        patch = self.network.patch_embed.patch_size
        self.size = tuple(n * p for n, p in zip(grid, patch, strict=True))
        self.grid, self.width = grid, self.network.num_features
        self.identity = [f"{name} {fingerprint(self.network.state_dict())}"]
        data = data_config(self.network)
        self.mean, self.std = (torch.tensor(data[key]).view(-1, 1, 1) for key in ("mean", "std"))

    def attach(self, batch: Batch) -> Batch:
        return batch

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        x = batch.raw.expand(-1, 3, -1, -1).float() / 255
        x = F.interpolate((x - self.mean) / self.std, self.size, mode="bicubic")
        tokens = self.network.forward_features(x)[:, self.network.num_prefix_tokens :]
        return (tokens.float(),)

    def example(self, size: int, device: torch.device) -> tuple[Tensor, ...]:
        return (torch.zeros(size, torch.Size(self.grid).numel(), self.width, device=device),)

    def to(self, device: torch.device) -> "EncoderTargets":
        self.network.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self


def opened(name: str, weights: str | None, grid: tuple[int, ...]) -> Any:
    """The encoder in eval mode, its positions resampled to the grid."""
    try:
        import timm
        from safetensors import SafetensorError
    except ImportError as error:
        raise InputError(
            f"--loss-type repa needs timm ({error}): pip install '.[metrics]'"
        ) from error
    if not timm.is_model(name):
        raise InputError(f"--repa-encoder {name}: timm {timm.__version__} has no such network")
    if weights and not Path(weights).is_file():
        raise InputError(f"--repa-weights {weights}: there is no such file")
    overlay = {"pretrained_cfg_overlay": {"file": weights}} if weights else {}
    try:
        plain = timm.create_model(name, pretrained=False, num_classes=0)
        if not isinstance(plain, timm.models.VisionTransformer):
            raise InputError(f"--repa-encoder {name}: it is no vision transformer of timm")
        patch = plain.patch_embed.patch_size
        size = tuple(n * p for n, p in zip(grid, patch, strict=True))
        network = timm.create_model(name, pretrained=True, num_classes=0, img_size=size, **overlay)
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError,
            SafetensorError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"--repa-encoder {name}: its weights cannot be had ({reason}); give --repa-weights "
            "FILE, or name another encoder"
        ) from error
    if isinstance(network.norm, nn.Identity):
        raise InputError(f"--repa-encoder {name}: it has no norm over its patch tokens")
    return network.eval().requires_grad_(False)


def data_config(network: Any) -> dict[str, Any]:
    import timm

    return timm.data.resolve_model_data_config(network)
