"""Phrases as mp3 files in MTG-Jamendo's layout: FluidSynth and a General MIDI sound font."""

import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from domains.jamendo import HEAD, SPLIT
from domains.sound import decoded, pyav, save_mp3
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.random import seed_of

from .midi import INSTRUMENTS, Instrument, Phrase, midi_file, phrase

RATE = 44_100
PEAK = 0.7  # of every track; full scale is 1
FLUIDSYNTH = [
    "fluidsynth", "--no-shell", "--no-midi-in", "--quiet", "--gain", "1.5", "--sample-rate",
    str(RATE), "--reverb", "0", "--chorus", "0", "-o", "synth.dynamic-sample-loading=1",
]  # fmt: skip
PACKAGES = "apt-get install fluidsynth fluid-soundfont-gm"


class Track(NamedTuple):
    number: int
    part: str  # train, validation or test
    instrument: Instrument
    phrase: Phrase

    @property
    def path(self) -> Path:
        """Below the audio folder; MTG-Jamendo's folders are the last two digits."""
        return Path(f"{self.number % 100:02d}", f"{self.number}.mp3")


def tracks(counts: dict[str, int], seconds: float, seed: int) -> Iterator[Track]:
    """So many phrases of every instrument for each part; each is a function of (seed, part,
    instrument, place), so that more of them leave the others as they are."""
    number = 0
    for part, count in counts.items():
        for place in range(count):
            for instrument in INSTRUMENTS:
                draw = random.Random(seed_of(seed, part, instrument.name, place))
                yield Track(number, part, instrument, phrase(instrument, seconds, draw))
                number += 1


def render(
    out: Path, sound_font: Path, counts: dict[str, int], seconds: float, seed: int, jobs: int
) -> int:
    """Write the folder; returns how many tracks there are.

    Raises:
        InputError: FluidSynth or the sound font is not there, or fails.
    """
    if shutil.which("fluidsynth") is None:
        raise InputError(f"the program fluidsynth is not there: {PACKAGES}")
    if not sound_font.is_file():
        raise InputError(f"--sound-font {sound_font}: there is no such file: {PACKAGES}")
    pyav()  # said before the work, where it is missing
    found = list(tracks(counts, seconds, seed))

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(lambda track: write_track(track, out, sound_font, seconds), found):
            pass
    for part in counts:
        write_tags(out, part, [track for track in found if track.part == part], seconds)
    return len(found)


def write_track(track: Track, out: Path, sound_font: Path, seconds: float) -> None:
    """Its MIDI file in OUT/midi, its sound in OUT/audio."""
    midi = out / "midi" / track.path.with_suffix(".mid")
    content = midi_file(track.phrase.notes, track.instrument.program, seconds)
    with atomic_write(midi) as file:
        file.write(content)
    samples = round(seconds * RATE)
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder, "sound.wav")
        words = [*FLUIDSYNTH, "--fast-render", str(wav), str(sound_font), str(midi)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode or not wav.exists():
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise InputError(f"fluidsynth failed on {midi} with {sound_font}: {reason}")
        stereo = decoded(wav, samples, RATE, place=0)
    mono = stereo.mean(0, keepdims=True) / 32768
    save_mp3(mono * (PEAK / max(np.abs(mono).max(), 1e-4)), out / "audio" / track.path, RATE)


def write_tags(out: Path, part: str, found: list[Track], seconds: float) -> None:
    """The TSV of a part."""
    rows = [
        [
            f"track_{track.number:07d}", f"artist_{track.instrument.program:06d}",
            f"album_{track.phrase.kind}", str(track.path), f"{seconds:.1f}",
            f"instrument---{track.instrument.name}",
        ]
        for track in found
    ]  # fmt: skip
    with atomic_write(out / SPLIT / f"autotagging-{part}.tsv") as file:
        file.write("".join("\t".join(row) + "\n" for row in [HEAD, *rows]).encode())
