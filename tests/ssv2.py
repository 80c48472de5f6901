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


def write_ssv2(root: Path, frames: int = 8) -> Path:
    import av

    videos = root / "20bn-something-something-v2"
    videos.mkdir(parents=True)
    random = np.random.default_rng(0)
    number = 0
    for part, captions in CAPTIONS.items():
        entries = []
        for caption in captions:
            number += 1
            entries.append(
                {"id": str(number), "label": caption, "template": "", "placeholders": []}
            )
            base = random.integers(0, 256, (4, 6, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
            with av.open(str(videos / f"{number}.webm"), "w") as file:
                stream = file.add_stream(
                    "libvpx-vp9", rate=12, options={"deadline": "realtime", "cpu-used": "8"}
                )
                stream.height, stream.width, stream.pix_fmt = *base.shape[:2], "yuv420p"
                for frame in range(frames):
                    picture = np.roll(base, 4 * frame, axis=1)
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                file.mux(stream.encode(None))
        (root / f"something-something-v2-{part}.json").write_text(json.dumps(entries))
    return root
