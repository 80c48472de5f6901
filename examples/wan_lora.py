"""LayerSync while a LoRA of Wan is trained: diffusers, PEFT, gradient checkpointing.

python examples/wan_lora.py                      (needs peft; the adapter is in results/wan-lora)
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import WanPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from layersync import LayerSync, record_blocks, statistics  # LayerSync 1

SHIFT = 3.0  # of the noise levels, Wan 2.1's at 480p
LORA = LoraConfig(
    r=8, lora_alpha=8,
    target_modules=["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"],
)  # fmt: skip


def clips(frames: int = 5, size: int = 16) -> TensorDataset:
    """1797 digits that cross a dark field, (1, frames, size, size) in [-1, 1], and their classes.

    They stand in for the latents of Wan's VAE, which has 16 channels.
    """
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32) / 8 - 1
    video = torch.full((len(images), 1, frames, size, size), -1.0)
    for frame in range(frames):
        at = frame * (size - 8) // (frames - 1)
        video[:, 0, frame, 4:12, at : at + 8] = images
    return TensorDataset(video, torch.tensor(data.target))


def captions() -> torch.Tensor:
    """(10, words, text_dim): what the frozen text encoder would say of the classes."""
    return torch.randn(10, 6, 24, generator=torch.Generator().manual_seed(0))


def build() -> WanTransformer3DModel:
    """Tiny and random; yours is `WanTransformer3DModel.from_pretrained(
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", subfolder="transformer", torch_dtype=torch.bfloat16)`."""
    return WanTransformer3DModel(
        num_layers=8, num_attention_heads=2, attention_head_dim=24, ffn_dim=96, in_channels=1,
        out_channels=1, text_dim=24, freq_dim=32, patch_size=(1, 2, 2), rope_max_seq_len=32,
    )  # fmt: skip


def main(
    steps: int = 60, weight: float = 0.2, folder: str | Path = "results/wan-lora"
) -> WanTransformer3DModel:
    torch.manual_seed(0)
    data, text, transformer = clips(), captions(), build()
    transformer.requires_grad_(False)
    transformer.add_adapter(LORA)
    transformer.enable_gradient_checkpointing()
    transformer.train()
    adapter = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(adapter, lr=1e-3)
    draw = RandomSampler(data, replacement=True, num_samples=4 * steps)

    sync = LayerSync(pairs=[(2, 5)], weight=weight)  # LayerSync 2
    for step, (x, label) in enumerate(DataLoader(data, 4, sampler=draw)):
        u, noise = torch.rand(len(x)), torch.randn_like(x)
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        x_t = torch.lerp(x, noise, sigma.view(-1, 1, 1, 1, 1))
        with record_blocks(transformer.blocks, sync.blocks) as blocks:  # LayerSync 3
            predicted = transformer(x_t, 1000 * sigma, text[label]).sample
        loss = F.mse_loss(predicted, noise - x)

        optimizer.zero_grad()
        (loss + sync.weight(step) * sync(blocks)).backward()  # LayerSync 4
        torch.nn.utils.clip_grad_norm_(adapter, 1.0)
        optimizer.step()

        if step % 10 == 0 or step == steps - 1:
            seen = statistics(blocks[2], blocks[5])  # LayerSync 5
            print(
                f"step {step:3d}  loss {loss:.4f}  "
                f"cosine {seen['cosine']:+.3f}  centred cosine {seen['centred']:+.3f}"
            )

    WanPipeline.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(transformer)
    )
    return transformer


if __name__ == "__main__":
    main()
