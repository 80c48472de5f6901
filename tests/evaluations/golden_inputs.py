"""Inception weights and images from a seed: what the numbers in golden/ were computed from.

numpy promises that RandomState's streams never change, so only results need storing."""

import numpy as np


def weights(shapes, seed=7):
    """{name: shape} -> {name: float32 array}, activations of a size that real weights give."""
    rng = np.random.RandomState(seed)
    # Ending -> value; the first that fits. A large bias of the last layer, which no score may see.
    draws = {
        "conv.weight": lambda s: rng.standard_normal(s) * np.sqrt(1.85 / int(np.prod(s[1:]))),
        "running_var": lambda s: rng.uniform(0.8, 1.2, s),
        "running_mean": lambda s: 0.1 * rng.standard_normal(s),
        "bn.bias": lambda s: 0.1 * rng.standard_normal(s),
        "bn.weight": np.ones,
        "fc.weight": lambda s: 0.1 * rng.standard_normal(s),
        "fc.bias": lambda s: 5.0 * rng.standard_normal(s),
    }

    def draw(name):
        return next(value for ending, value in draws.items() if name.endswith(ending))(shapes[name])

    return {name: draw(name).astype(np.float32) for name in sorted(shapes)}


def images(count, seed, size, contrast):
    """Gratings in three colors, uint8 (N, H, W, C)."""
    rng = np.random.RandomState(seed)
    grid = np.arange(size) / size
    y, x = np.meshgrid(grid, grid, indexing="ij")
    out = np.empty((count, size, size, 3), np.uint8)
    for image in out:
        base = rng.uniform(0, 255, 3)
        frequency, phase = rng.uniform(-12, 12, (3, 2)), rng.uniform(0, 2 * np.pi, 3)
        amplitude = contrast * rng.uniform(0, 127, 3)
        for c in range(3):
            angle = 2 * np.pi * (frequency[c, 0] * y + frequency[c, 1] * x) + phase[c]
            wave = base[c] + amplitude[c] * np.sin(angle)
            image[:, :, c] = np.clip(wave, 0, 255).astype(np.uint8)
    return out
