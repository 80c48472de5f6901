"""Small sets in HumanML3D's layout, and a tiny CLIP, as the tests of motion need them."""

import json
from pathlib import Path

import numpy as np
import torch

WORDS = ("a", "person", "walks", "runs", "jumps", "waves", "slowly", "fast", "and")


def motion(frames: int, pace: float, seed: int = 0) -> np.ndarray:
    """float32 (frames, 263): a figure of still joints that goes straight ahead."""
    random = np.random.RandomState(seed)
    features = 0.01 * random.randn(frames, 263)
    features[:, 2] += pace / 20  # metres per frame
    features[:, 3] += 0.9  # the height of the hip
    features[:, 4:67] += np.tile(np.linspace(0.1, 1.5, 21)[:, None] * [0.1, 1, 0], 1).ravel()
    return features.astype(np.float32)


def captions(*lines: tuple[str, float, float]) -> str:
    tagged = [
        f"{text}#{' '.join(f'{word}/NOUN' for word in text.split())}#{start}#{end}\n"
        for text, start, end in lines
    ]
    return "".join(tagged)


def write_humanml3d(root: Path, *, train: int = 6, test: int = 4) -> Path:
    """Clips of 41 to 80 frames; the first has a second caption of its frames 0 to 40 alone."""
    for folder in ("new_joint_vecs", "texts"):
        (root / folder).mkdir(parents=True)
    names = [f"{number:06d}" for number in range(train + test)]
    for number, name in enumerate(names):
        frames, verb = 41 + 13 * number % 40, WORDS[2 + number % 4]
        np.save(root / "new_joint_vecs" / f"{name}.npy", motion(frames, 0.3 * (number % 4), number))
        lines = [(f"a person {verb}", 0.0, 0.0), (f"a person {verb} slowly", 0.0, 0.0)]
        extra = [("a person waves", 0.0, 2.0)] if number == 0 else []
        (root / "texts" / f"{name}.txt").write_text(captions(*lines, *extra))
    (root / "train.txt").write_text("\n".join(names[:train]) + "\n")
    (root / "test.txt").write_text("\n".join(names[train:]) + "\n")
    everything = np.concatenate([np.load(p) for p in (root / "new_joint_vecs").iterdir()])
    np.save(root / "Mean.npy", everything.mean(0))
    np.save(root / "Std.npy", everything.std(0))
    return root


def save_clip(folder: Path, *, seed: int = 0, width: int = 12) -> Path:
    """transformers' CLIP of text, with random weights and a tokenizer of a few words."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    folder.mkdir(parents=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=32, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77,
        bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1,
    )  # fmt: skip
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder
