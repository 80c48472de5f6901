"""A few videos in Something-Something V2's layout: VP9, 12 frames a second, with captions."""

import json
from pathlib import Path

import numpy as np

CAPTIONS = {
    "train": [
        "pushing a cup left", "pushing a cup right", "putting a box on the table",
        "holding a box next to a cup", "pushing a box up", "pushing a cup left",
    ],
    "validation": ["holding a cup", "putting a cup next to a box on the table"],
}  # fmt: skip
LISTS = "something-something-v2-{}.json"


def write_ssv2(root: Path, frames: int = 8, captions=CAPTIONS) -> Path:
    """Patterns that move to the right, numbered from 1."""
    random = np.random.default_rng(0)
    number, parts = 0, {}
    for part, texts in captions.items():
        parts[part] = []
        for text in texts:
            number += 1
            base = random.integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
            pictures = [np.roll(base, 4 * frame, axis=1) for frame in range(frames)]
            parts[part].append((number, text, pictures))
    return write_parts(root, parts)


def write_parts(root: Path, parts, lists: str = LISTS) -> Path:
    """Videos and lists of parts, (number, caption, frames of uint8 (H, W, 3)) of every video."""
    from tests.domains.videos import write_video

    for part, videos in parts.items():
        entries = []
        for number, caption, frames in videos:
            write_video(root / "20bn-something-something-v2" / f"{number}.webm", frames)
            entries.append(
                {"id": str(number), "label": caption, "template": "", "placeholders": []}
            )
        path = root / lists.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries))
    return root
