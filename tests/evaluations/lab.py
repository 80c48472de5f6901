"""Checkpoints whose blocks all do something, and images of any kind, for the tests of the lab."""

import numpy as np
import torch
from PIL import Image

from domains import Batch
from models import SiT

DIGITS = dict(dataset_name="digits", image_size=8, num_classes=10, vae="none")


def save_checkpoint(path, perturb, args=DIGITS, **shape):
    """A SiT with perturbed weights, saved as train.py saves it."""
    torch.manual_seed(shape.pop("seed", 0))
    model = perturb(SiT(**dict(in_channels=1, input_size=8, patch_size=2, num_classes=10,
                               hidden_size=32, depth=4, num_heads=2) | shape))  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"model": model.state_dict(), "ema": model.state_dict(), "args": args}
    torch.save(content | {"architecture": model.config, "train_steps": int(path.stem)}, path)
    return path


def digits_run(folder, perturb, name="000-SiT-small", **shape):
    return save_checkpoint(folder / name / "checkpoints" / "0000010.pt", perturb, **shape)


def picture_folder(root, classes, *, broken=None):
    """Images of 8x8 in a subfolder per (class, count), none like another.

    Args:
        broken: the one of them that ends after 30 bytes.
    """
    random = np.random.default_rng(0)
    for name, count in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    if broken:
        (root / broken).write_bytes((root / broken).read_bytes()[:30])
    return root


class Noise:
    """A data set of random images, as many as asked for, made when they are read."""

    decodes = False

    def __init__(self, count, shape):
        self.count, self.shape = count, shape

    def __len__(self):
        return self.count

    def __getitems__(self, draws):
        images = [
            np.random.default_rng(int(number)).integers(0, 256, self.shape, dtype=np.uint8)
            for number in draws.index
        ]
        index = torch.from_numpy(draws.index)
        return Batch(torch.from_numpy(np.stack(images)), index % 10, index, problems=[])
