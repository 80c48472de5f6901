"""LayerSync in a timm ViT that classifies handwritten digits: nothing in it needs diffusion.

python examples/timm_vit.py
"""

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from layersync import LayerSync, record_blocks, statistics  # LayerSync 1


def digits() -> TensorDataset:
    """1797 images (1, 8, 8) in [-1, 1] and their classes."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return TensorDataset(images, torch.tensor(data.target))


def build() -> timm.models.VisionTransformer:
    return timm.create_model(
        "vit_tiny_patch16_224", depth=8, embed_dim=64, num_heads=4, img_size=8, patch_size=2,
        in_chans=1, num_classes=10,
    )  # fmt: skip


def main(steps: int = 200, weight: float = 0.02) -> None:
    torch.manual_seed(0)
    data, model = digits(), build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = RandomSampler(data, replacement=True, num_samples=32 * steps)

    def patches(output: torch.Tensor) -> torch.Tensor:
        return output[:, model.num_prefix_tokens :]  # without the class token

    sync = LayerSync(pairs=[(2, 5)], weight=weight)  # LayerSync 2
    for step, (x, label) in enumerate(DataLoader(data, 32, sampler=draw)):
        with record_blocks(model.blocks, sync.blocks, tokens=patches) as blocks:  # LayerSync 3
            logits = model(x)
        loss = F.cross_entropy(logits, label)

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
