"""Sound files in and out: mp3 and others through PyAV, wav, sheets of spectrograms."""

import math
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.errors import InputError
from runtime.files import atomic_write, open_patiently

from .decoding import Unreadable

CHANNELS = 2
LOWEST, HIGHEST, MOST_CHANNELS = 1000, 768_000, 64  # of a file; a low rate is resampled to much
LONGEST = 3 * 3600  # seconds of a track that is read whole: 2 GB
FORMATS = ("mp3", "flac", "wav", "ogg", "aac", "mov", "matroska", "webm", "avi")
WHITELIST = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
PICTURE = 64  # pixels along a side of a spectrogram


def pyav():
    """
    Raises:
        InputError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"sound and video files need PyAV ({error}): pip install '.[audio,video]'"
        ) from error
    return av


@contextmanager
def opened(path: Path) -> Iterator[tuple]:
    """PyAV's file and its first stream of sound; within, what is damaged has a name.

    Raises:
        Unreadable: it cannot be decoded, or holds no sound.
    """
    with container(path) as file:
        stream = next(iter(file.streams.audio), None)
        if stream is None:
            raise Unreadable(f"{path} holds no sound")
        if not LOWEST <= (stream.rate or 0) <= HIGHEST or not 1 <= stream.channels <= MOST_CHANNELS:
            raise Unreadable(f"{path} has {stream.channels} channels at {stream.rate} per second")
        yield file, stream


@contextmanager
def container(path: Path) -> Iterator:
    """PyAV's file of sound or pictures; within, what is damaged has a name. A playlist, whatever
    it is called, could have FFmpeg open other files and addresses: its kind is not tried.

    Raises:
        Unreadable: it cannot be decoded.
    """
    av = pyav()
    damaged = (
        av.error.FFmpegError, OSError, ValueError, ArithmeticError, LookupError, TypeError,
        AttributeError, RuntimeError, MemoryError,
    )  # fmt: skip  # what PyAV raises on damaged files
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        with (
            open_patiently(path) as raw,
            av.open(raw, options=WHITELIST, metadata_errors="replace") as file,
        ):
            yield file
    except damaged as error:
        raise Unreadable(f"{path} cannot be decoded ({error})") from error


def decoded(path: Path, samples: int, rate: int, *, place: float) -> np.ndarray:
    """int16 (2, samples) of a file, resampled to `rate`; mono is heard on both sides.

    Args:
        place: where the crop begins, from 0, the start, to 1, as late as it still fits.

    Raises:
        Unreadable: the file is damaged, holds no sound, or is shorter than the crop.
    """
    with opened(path) as (file, stream):
        length = duration(file, stream)
        begin = place * max(0.0, length - samples / rate)
        if begin > 1:  # to a key frame before it; decoders need a moment to settle
            file.seek(int((begin - 0.5) / stream.time_base), stream=stream)
        sound = crop(file, stream, begin, rate, samples)
    if sound.shape[1] < samples:
        found, needed = sound.shape[1] / rate, samples / rate
        raise Unreadable(
            f"{path} has {found:.1f} s from {begin:.1f} s on, and a crop is {needed:.1f} s"
        )
    return sound


def whole(path: Path, rate: int) -> np.ndarray:
    """int16 (2, samples) of a file from its start to its end, otherwise as `decoded`.

    Raises:
        Unreadable: the file is damaged, holds no sound, or ends a second or more too early.
    """
    with opened(path) as (file, stream):
        length = duration(file, stream)
        sound = crop(file, stream, 0.0, rate, LONGEST * rate)
    if sound.shape[1] == LONGEST * rate:
        raise Unreadable(f"{path} is longer than {LONGEST / 3600:.0f} hours")
    if sound.shape[1] / rate < length - 1:
        raise Unreadable(f"{path} ends after {sound.shape[1] / rate:.1f} s of {length:.1f} s")
    return sound


def duration(file, stream) -> float:
    """Seconds, as the container says."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (file.duration or 0) / 1_000_000


def crop(file, stream, begin: float, rate: int, samples: int) -> np.ndarray:
    """int16 (2, up to `samples`) from second `begin` on."""
    # swresample would make mono 3 dB quieter on both sides.
    layout = "mono" if stream.channels == 1 else "stereo"
    resampler = pyav().AudioResampler(format="s16p", layout=layout, rate=rate)
    parts: list[np.ndarray] = []
    have, skip = 0, None
    for frame in file.decode(stream):
        if skip is None:
            skip = max(0, round((begin - float(frame.time or 0.0)) * rate))
        for resampled in resampler.resample(frame):
            part = resampled.to_ndarray()
            dropped = min(skip, part.shape[1])
            skip -= dropped
            parts.append(part[:, dropped:])
            have += parts[-1].shape[1]
        if have >= samples:
            break
    else:
        parts += [part.to_ndarray() for part in resampler.resample(None)]
    if not parts:
        return np.zeros((CHANNELS, 0), np.int16)
    sound = np.concatenate(parts, axis=1)[:, :samples]
    return np.broadcast_to(sound, (CHANNELS, sound.shape[1])).copy()


def save_mp3(sound: np.ndarray, path: Path, rate: int) -> None:
    """float (1 or 2 channels, samples), full scale is -1..1, at 128 kbit/s."""
    av = pyav()
    layout = ("mono", "stereo")[len(sound) - 1]
    data = (32767 * sound.clip(-1, 1)).round().astype(np.int16)
    with atomic_write(path) as out, av.open(out, "w", format="mp3") as file:
        stream = file.add_stream("libmp3lame", rate=rate, layout=layout)
        stream.bit_rate = 128_000
        frame = av.AudioFrame.from_ndarray(data, format="s16p", layout=layout)
        frame.sample_rate = rate
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def save_wav(sound: np.ndarray, path: Path, rate: int) -> None:
    """int16 (channels, samples)."""
    with atomic_write(path) as file, wave.open(file, "wb") as out:
        out.setnchannels(len(sound))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.ascontiguousarray(sound.T).astype("<i2").tobytes())


def save_sounds(raw: Tensor, path: Path, rate: int, columns: int | None = None) -> None:
    """int16 (B, channels, samples): a wav each, and their spectrograms on one sheet."""
    from matplotlib.figure import Figure

    sounds = raw.cpu()
    for number, sound in enumerate(sounds):
        save_wav(sound.numpy(), path.with_name(f"{path.stem}-{number:02d}.wav"), rate)
    columns = columns or math.ceil(math.sqrt(len(sounds)))
    rows = math.ceil(len(sounds) / columns)
    figure = Figure(figsize=(3 * columns, 2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for number, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if number < len(sounds):
            loud = loudness(sounds[number], 96).numpy()
            axis.imshow(loud, vmin=-80, vmax=0, origin="lower", aspect="auto", cmap="magma")
            axis.set_title(f"{number:02d}", fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=80, metadata={"Software": None})


def resampled(mono: np.ndarray, rate: int, asked: int) -> np.ndarray:
    """float (samples,) at another rate."""
    if rate == asked:
        return mono
    av = pyav()
    frame = av.AudioFrame.from_ndarray(mono.astype(np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=asked)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray() for part in parts], axis=1)[0]


def pictures(sounds: Tensor, size: int = PICTURE) -> Tensor:
    """int16 (B, channels, samples) -> spectrograms as grey pictures, uint8 (B, 1, size, size), 80
    decibels from black to white, relative to full scale."""
    found = [loudness(sound, size) for sound in sounds.cpu()]
    scaled = torch.stack(found).clamp(min=-80).add(80) * (255 / 80)
    return F.interpolate(scaled[:, None], (size, size), mode="area").clamp(0, 255).to(torch.uint8)


def loudness(sound: Tensor, rows: int, size: int = 1024) -> Tensor:
    """Decibels (rows, times) of int16 (channels, samples) against a sine at full scale; low
    frequencies have most of the rows, as in hearing."""
    mono = sound.float().mean(0) / 32768
    size = min(size, len(mono))
    window = torch.hann_window(size)
    spectrum = torch.stft(mono, size, size // 4, window=window, return_complex=True).abs()
    spectrum = spectrum * 2 / window.sum()
    chosen = torch.logspace(0, math.log10(len(spectrum) - 1), rows).long()
    return 20 * spectrum[chosen].clamp(min=1e-6).log10()
