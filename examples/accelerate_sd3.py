"""LayerSync in an accelerate loop: diffusers' SD3 transformer, whose blocks return text and image.

accelerate launch examples/accelerate_sd3.py        (or plain python: one process)
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import SD3Transformer2DModel
from diffusers.training_utils import compute_density_for_timestep_sampling
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from layersync import LayerSync, record_blocks, statistics  # LayerSync 1

WORDS, TEXT_WIDTH, POOLED_WIDTH = 5, 24, 16


def digits() -> TensorDataset:
    """1797 images (1, 8, 8) in [-1, 1] and their classes."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return TensorDataset(images, torch.tensor(data.target))


def captions() -> tuple[torch.Tensor, torch.Tensor]:
    """What frozen text encoders would say of the classes: tokens (10, WORDS, TEXT_WIDTH) and one
    pooled vector each (10, POOLED_WIDTH)."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(10, WORDS, TEXT_WIDTH, generator=draw)
    return tokens, torch.randn(10, POOLED_WIDTH, generator=draw)


def build() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        num_layers=8, num_attention_heads=4, attention_head_dim=16, sample_size=8, patch_size=2,
        in_channels=1, out_channels=1, joint_attention_dim=TEXT_WIDTH, caption_projection_dim=64,
        pooled_projection_dim=POOLED_WIDTH, pos_embed_max_size=4,
    )  # fmt: skip


def image_tokens(output: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """What a block returns is (text, image)."""
    return output[1]


def flow_matching_loss(
    model: nn.Module, x: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor
) -> torch.Tensor:
    """Stable Diffusion 3's: x_t = (1 - sigma) x + sigma noise, sigma logit-normal."""
    sigma = compute_density_for_timestep_sampling("logit_normal", len(x), 0.0, 1.0).to(x)
    noise, s = torch.randn_like(x), sigma.view(-1, 1, 1, 1)
    predicted = model((1 - s) * x + s * noise, text, pooled, 1000 * sigma).sample
    return F.mse_loss(predicted, noise - x)


def main(steps: int = 100, weight: float = 0.2) -> None:
    accelerator = Accelerator(gradient_accumulation_steps=2)
    set_seed(0)
    data, model = digits(), build()
    model.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = RandomSampler(data, replacement=True, num_samples=32 * steps)
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(data, 32, sampler=draw)
    )
    text, pooled = (part.to(accelerator.device) for part in captions())

    layers = accelerator.unwrap_model(model).transformer_blocks  # without DDP around them
    sync = LayerSync(pairs=[(2, 5)], weight=weight)  # LayerSync 2
    for step, (x, label) in enumerate(loader):
        update = step // accelerator.gradient_accumulation_steps  # steps of the optimizer
        with accelerator.accumulate(model):
            with record_blocks(layers, sync.blocks, tokens=image_tokens) as blocks:  # LayerSync 3
                loss = flow_matching_loss(model, x, text[label], pooled[label])
            accelerator.backward(loss + sync.weight(update) * sync(blocks))  # LayerSync 4
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        if step % 10 == 0 or step == len(loader) - 1:
            seen = statistics(blocks[2], blocks[5])  # LayerSync 5
            accelerator.print(
                f"step {step:3d}  loss {loss:.4f}  "
                f"cosine {seen['cosine']:+.3f}  centred cosine {seen['centred']:+.3f}"
            )
    accelerator.end_training()


if __name__ == "__main__":
    main()
