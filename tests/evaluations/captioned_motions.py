"""A small folder in HumanML3D's layout, whose captions say what its motions do."""

from itertools import product

import numpy as np

WIDTH = 263
VERBS = ("walk", "run", "jump", "kick", "dance", "sit", "turn", "bend")
PLACES = ("forward", "backward", "left", "right")
MANNERS = ("slowly", "quickly", "happily")
SAID = list(product(VERBS, PLACES, MANNERS))  # 96 captions


def moved(verb, place, manner, frames, random):
    """float32 (frames, 263): the verb chooses the features that swing, the place an offset, the
    manner the speed."""
    motion = 0.3 * random.standard_normal((frames, WIDTH))
    time = np.arange(frames)[:, None] / 20
    first = 8 + 12 * VERBS.index(verb)
    speed = 0.5 * 2 ** MANNERS.index(manner)
    phase = random.uniform(0, 2 * np.pi)
    motion[:, first : first + 12] += 3 * np.sin(2 * np.pi * speed * time + phase)
    first = 120 + 12 * PLACES.index(place)
    motion[:, first : first + 12] += 2
    return motion.astype(np.float32)


def line_of(verb, place, manner):
    caption = f"a person does {verb} {place} {manner}"
    return f"{caption}#a/DET person/NOUN {verb}/VERB {place}/ADV {manner}/ADV#0.0#0.0"


def write_humanml3d(root, seed=0, **counts):
    """Splits of so many clips each: train=192, val=32, test=64."""
    random = np.random.default_rng(seed)
    seen = []
    for folder in ("new_joint_vecs", "texts"):
        (root / folder).mkdir(parents=True)
    for split, count in counts.items():
        names = [f"{split}{number:04d}" for number in range(count)]
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")
        order = [SAID[i % len(SAID)] for i in random.permutation(max(count, len(SAID)))[:count]]
        for name, said in zip(names, order, strict=True):
            motion = moved(*said, int(random.integers(40, 80)), random)
            seen.append(motion)
            np.save(root / "new_joint_vecs" / f"{name}.npy", motion)
            (root / "texts" / f"{name}.txt").write_text(line_of(*said) + "\n")
    frames = np.concatenate(seen)
    np.save(root / "Mean.npy", frames.mean(0))
    np.save(root / "Std.npy", frames.std(0))
    return root
