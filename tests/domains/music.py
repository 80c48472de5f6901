"""A few tracks in MTG-Jamendo's layout, real mp3 files, and a small Oobleck VAE on disk."""

import av
import numpy as np
import torch

RATE = 44_100
TAGS = {
    "train": [("00/1000.mp3", ["genre---rock", "instrument---piano"], 220.0),
              ("01/1001.mp3", ["instrument---guitar", "mood/theme---calm"], 330.0),
              ("02/1002.mp3", ["mood/theme---sad"], 440.0)],
    "validation": [("03/1003.mp3", ["genre---jazz"], 550.0)],
    "test": [("04/1004.mp3", ["genre---rock"], 660.0), ("05/1005.mp3", ["genre---jazz"], 880.0)],
}  # fmt: skip


def write_mp3(path, sound, rate=RATE):
    """float (channels, samples) as an mp3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = {1: "mono", 2: "stereo"}[len(sound)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libmp3lame", rate=rate, layout=layout)
        stream.bit_rate = 128_000
        data = (32767 * np.clip(sound, -1, 1)).astype(np.int16)
        for first in range(0, data.shape[1], 1152):
            part = np.ascontiguousarray(data[:, first : first + 1152])
            frame = av.AudioFrame.from_ndarray(part, format="s16p", layout=layout)
            frame.sample_rate = rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def tone(frequency, seconds, rate=RATE, channels=2):
    t = np.arange(int(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * frequency * t)] * channels)


def write_tsv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"]
    for number, (name, tags, *_) in enumerate(rows):
        head = [f"track_{number:07d}", "artist_000001", "album_000001", name, "2.0"]
        lines.append("\t".join(head + list(tags)))
    path.write_text("\n".join(lines) + "\n")


def write_jamendo(root, seconds=2.0):
    for part, rows in TAGS.items():
        write_tsv(root / "data" / "splits" / "split-0" / f"autotagging-{part}.tsv", rows)
        for name, _, frequency in rows:
            write_mp3(root / "audio" / name, tone(frequency, seconds))
    return root


def write_bands(root, seconds):
    """Low, middle and high tones, an instrument each, of many pitches."""
    random = np.random.RandomState(0)
    for part, count in (("train", 10), ("validation", 2), ("test", 4)):
        rows = []
        for band, low in enumerate((150, 700, 3000)):
            for number in range(count):
                name = f"{band:02d}/{part}{number}.mp3"
                rows.append((name, [f"instrument---{'abc'[band]}"]))
                write_mp3(root / "audio" / name, tone(low * random.uniform(1, 1.6), seconds))
        write_tsv(root / "data/splits/split-0" / f"autotagging-{part}.tsv", rows)
    return root


def save_oobleck(folder, seed=0, rate=RATE):
    """A real AutoencoderOobleck: 4 channels of latents, a hop of 64 samples."""
    from diffusers import AutoencoderOobleck

    torch.manual_seed(seed)
    vae = AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 4, 8], channel_multiples=[1, 1, 1],
        decoder_channels=4, decoder_input_channels=4, audio_channels=2, sampling_rate=rate,
    )  # fmt: skip
    vae.save_pretrained(folder)
    return str(folder)
