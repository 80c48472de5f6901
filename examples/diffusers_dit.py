"""LayerSync in diffusers' DiT: the usual DDPM training, on handwritten digits.

python examples/diffusers_dit.py
"""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiTTransformer2DModel
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from layersync import LayerSync, record_blocks, statistics  # LayerSync 1


def digits() -> TensorDataset:
    """1797 images (1, 8, 8) in [-1, 1] and their classes."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return TensorDataset(images, torch.tensor(data.target))


def build() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_layers=8, num_attention_heads=4, attention_head_dim=16, sample_size=8, patch_size=2,
        in_channels=1, num_embeds_ada_norm=10,
    )  # fmt: skip


def main(steps: int = 100, weight: float = 0.2) -> None:
    torch.manual_seed(0)
    data, model, scheduler = digits(), build(), DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = RandomSampler(data, replacement=True, num_samples=32 * steps)

    sync = LayerSync(pairs=[(2, 5)], weight=weight)  # LayerSync 2
    for step, (x, label) in enumerate(DataLoader(data, 32, sampler=draw)):
        noise, t = torch.randn_like(x), torch.randint(1000, (len(x),))
        with record_blocks(model.transformer_blocks, sync.blocks) as blocks:  # LayerSync 3
            predicted = model(scheduler.add_noise(x, noise, t), t, label).sample
        loss = F.mse_loss(predicted, noise)

        optimizer.zero_grad()
        (loss + sync.weight(step) * sync(blocks)).backward()  # LayerSync 4
        optimizer.step()

        if step % 10 == 0 or step == steps - 1:
            seen = statistics(blocks[2], blocks[5])  # LayerSync 5
            print(
                f"step {step:3d}  loss {loss:.4f}  "
                f"cosine {seen['cosine']:+.3f}  centred cosine {seen['centred']:+.3f}"
            )


if __name__ == "__main__":
    main()
