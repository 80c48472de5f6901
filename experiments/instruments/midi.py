"""Phrases of single instruments as Standard MIDI files."""

import itertools
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

TICKS = 480  # per quarter note
QUARTER = 0.512  # seconds; at 16 kHz 128 latents of the VAE beside this
MAJOR = (0, 2, 4, 5, 7, 9, 11)  # semitones above C
DEGREES = 10  # of the scale: each instrument plays an octave and a third
VELOCITY = 100  # of 127


class Instrument(NamedTuple):
    name: str  # its tag in MTG-Jamendo
    program: int  # of General MIDI, from 0
    lowest: int  # its lowest note, a C; 60 is middle C
    chords: bool  # can it play several notes at once?


INSTRUMENTS = (
    Instrument("bell", 14, 72, False),
    Instrument("classicalguitar", 24, 48, True),
    Instrument("doublebass", 32, 36, False),
    Instrument("flute", 73, 72, False),
    Instrument("organ", 19, 48, True),
    Instrument("piano", 0, 60, True),
    Instrument("trumpet", 56, 60, False),
    Instrument("violin", 40, 60, False),
)


class Note(NamedTuple):
    start: int  # ticks
    length: int
    key: int  # 60 is middle C


class Phrase(NamedTuple):
    kind: str
    notes: tuple[Note, ...]


Degrees = tuple[int, ...]  # what sounds at once, in steps of the scale


def to_and_fro(degrees: Sequence[int], draw: random.Random) -> Iterator[Degrees]:
    """Up and down from anywhere, for ever."""
    there_and_back = [(one,) for one in (*degrees, *degrees[-2:0:-1])]
    begin = draw.randrange(len(there_and_back))
    return itertools.islice(itertools.cycle(there_and_back), begin, None)


def scale(draw: random.Random) -> Iterator[Degrees]:
    return to_and_fro(range(DEGREES), draw)


def arpeggio(draw: random.Random) -> Iterator[Degrees]:
    """The major triad, note by note."""
    return to_and_fro((0, 2, 4, 7, 9), draw)


def melody(draw: random.Random) -> Iterator[Degrees]:
    """A walk by seconds and thirds."""
    place = draw.randrange(DEGREES)
    while True:
        yield (place,)
        place = min(max(place + draw.choice((-2, -1, 1, 2)), 0), DEGREES - 1)


def chords(draw: random.Random) -> Iterator[Degrees]:
    """Triads on any degree."""
    while True:
        root = draw.randrange(DEGREES - 4)
        yield root, root + 2, root + 4


KINDS = {"scale": scale, "arpeggio": arpeggio, "melody": melody, "chords": chords}


def phrase(instrument: Instrument, seconds: float, draw: random.Random) -> Phrase:
    """A phrase in C that fills `seconds` with quarter notes."""
    kind = draw.choice([kind for kind in KINDS if kind != "chords" or instrument.chords])
    starts = range(0, ticks(seconds), TICKS)
    notes = [
        Note(start, min(TICKS, starts.stop - start), instrument.lowest + semitones(degree))
        for start, sounding in zip(starts, KINDS[kind](draw), strict=False)
        for degree in sounding
    ]
    return Phrase(kind, tuple(notes))


def semitones(degree: int) -> int:
    octave, place = divmod(degree, len(MAJOR))
    return 12 * octave + MAJOR[place]


def ticks(seconds: float) -> int:
    return round(seconds / QUARTER * TICKS)


def midi_file(notes: Iterable[Note], program: int, seconds: float) -> bytes:
    """A Standard MIDI file of format 0: one track on channel 1, which ends after `seconds`."""
    events = [(0, b"\xff\x51\x03" + struct.pack(">I", round(1e6 * QUARTER))[1:])]
    events.append((0, bytes([0xC0, program])))
    for note in notes:
        events.append((note.start, bytes([0x90, note.key, VELOCITY])))
        events.append((note.start + note.length, bytes([0x80, note.key, 0])))
    # Where a note ends as another begins, the end comes first: they may be of one key.
    events.sort(key=lambda event: (event[0], event[1][0] == 0x90))
    events.append((max(ticks(seconds), events[-1][0]), b"\xff\x2f\x00"))
    track, now = b"", 0
    for time, message in events:
        track += variable_length(time - now) + message
        now = time
    head = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, TICKS)
    return head + struct.pack(">4sI", b"MTrk", len(track)) + track


def variable_length(value: int) -> bytes:
    """Seven bits per byte, the highest first; all bytes but the last have their top bit set."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(0x80 | value & 0x7F)
    return bytes(reversed(digits))
