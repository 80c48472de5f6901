"""LayerSync in torch's own nn.TransformerEncoder, time axis first: digits, row by row, from noise.

python examples/transformer_encoder.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from layersync import LayerSync, record_blocks, statistics  # LayerSync 1


def digits() -> TensorDataset:
    """1797 sequences of 8 rows (8, 8) in [-1, 1] and their classes."""
    data = load_digits()
    rows = torch.tensor(data.images, dtype=torch.float32) / 8 - 1
    return TensorDataset(rows, torch.tensor(data.target))


class Denoiser(nn.Module):
    """As MDM has it: the condition is token 0, then come the rows; predicts the velocity."""

    def __init__(self, width: int = 64, depth: int = 8) -> None:
        super().__init__()
        self.rows, self.label = nn.Linear(8, width), nn.Embedding(10, width)
        self.time, self.place = nn.Linear(1, width), nn.Parameter(torch.randn(9, 1, width) / 8)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.out = nn.Linear(width, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        condition = self.time(t[:, None]) + self.label(label)  # (B, D)
        tokens = torch.cat([condition[None], self.rows(x.transpose(0, 1))])  # (1 + 8, B, D)
        return self.out(self.encoder(tokens + self.place)[1:]).transpose(0, 1)


def build() -> Denoiser:
    return Denoiser()


def main(steps: int = 100, weight: float = 0.2) -> None:
    torch.manual_seed(0)
    data, model = digits(), build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = RandomSampler(data, replacement=True, num_samples=32 * steps)

    def rows(output: torch.Tensor) -> torch.Tensor:
        return output[1:].transpose(0, 1)  # (1 + 8, B, D) -> (B, 8, D), without the condition

    sync = LayerSync(pairs=[(2, 5)], weight=weight)  # LayerSync 2
    for step, (x, label) in enumerate(DataLoader(data, 32, sampler=draw)):
        noise, t = torch.randn_like(x), torch.rand(len(x))
        x_t = torch.lerp(noise, x, t[:, None, None])
        with record_blocks(model.encoder.layers, sync.blocks, tokens=rows) as blocks:  # LayerSync 3
            predicted = model(x_t, t, label)
        loss = F.mse_loss(predicted, x - noise)

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
