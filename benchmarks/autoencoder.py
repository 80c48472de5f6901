"""The Stable Diffusion VAE: a saved one, or its architecture with random weights, equally fast."""

import torch
from torch import Tensor

from domains.codecs import VAECodec, autoencoder_class

STABLE_DIFFUSION = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
    sample_size=256,
    scaling_factor=0.18215,
)


def autoencoder(folder: str | None, device: torch.device) -> VAECodec:
    """The VAE of `--vae folder`; without it, random weights in the shape of sd-vae-ft-ema.

    Raises:
        InputError: diffusers is missing, or the folder holds no AutoencoderKL.
    """
    if folder is not None:
        return VAECodec.load(folder).to(device)
    vae = autoencoder_class("ema")(**STABLE_DIFFUSION)
    return VAECodec(vae, "random weights in the shape of sd-vae-ft-ema").to(device)


def pixels(codec: VAECodec, shape: tuple[int, ...], batch: int, device: torch.device) -> Tensor:
    """A batch of random images (B, 3, H, W) in [-1, 1] whose latents have `shape` (C, h, w)."""
    down = 2 ** (len(codec.vae.config.block_out_channels) - 1)
    height, width = (down * length for length in shape[1:])
    return torch.rand(batch, 3, height, width, device=device) * 2 - 1
