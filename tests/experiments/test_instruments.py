"""Rendered instruments: MIDI files, MTG-Jamendo's layout, the small VAE, Table 3 on them."""

import json
import random
import shutil
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import domains
from domains.oobleck import OobleckCodec
from evaluations.extractors import classifier
from experiments.instruments import vae
from experiments.instruments.__main__ import Render
from experiments.instruments.midi import INSTRUMENTS, Note, midi_file, phrase, variable_length
from experiments.instruments.rendering import tracks
from tests.commands import refused, score_rows, succeed
from tests.domains.music import save_oobleck, tone, write_bands

pytest.importorskip("av")
COMMAND = "experiments.instruments.__main__"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "00"), (0x7F, "7f"), (0x80, "8100"), (0x3FFF, "ff7f"), (0x200000, "81808000")],
)
def test_variable_lengths_are_those_of_the_standard(value, expected):
    assert variable_length(value).hex() == expected


def events_of(content):
    """(ticks, message) of a file of format 0 without running status."""
    head, track = content[:14], content[22:]
    assert struct.unpack(">4sIHHH", head) == (b"MThd", 6, 0, 1, 480)
    assert struct.unpack(">4sI", content[14:22]) == (b"MTrk", len(track))
    now, place, found = 0, 0, []
    while place < len(track):
        delta = 0
        while True:
            delta = delta << 7 | track[place] & 0x7F
            place += 1
            if track[place - 1] < 0x80:
                break
        now += delta
        length = {0xC0: 2, 0xFF: 3 + track[place + 2]}.get(track[place], 3)
        found.append((now, track[place : place + length]))
        place += length
    return found


def test_a_midi_file_reads_back():
    notes = [Note(0, 240, 60), Note(240, 240, 60)]
    assert events_of(midi_file(notes, program=73, seconds=1.024)) == [
        (0, b"\xff\x51\x03" + (512_000).to_bytes(3, "big")),  # microseconds per quarter note
        (0, bytes([0xC0, 73])),
        (0, bytes([0x90, 60, 100])),
        (240, bytes([0x80, 60, 0])),  # ends before it begins again
        (240, bytes([0x90, 60, 100])),
        (480, bytes([0x80, 60, 0])),
        (960, b"\xff\x2f\x00"),
    ]


@pytest.mark.parametrize("instrument", INSTRUMENTS, ids=lambda one: one.name)
def test_phrases_stay_within_the_instrument_and_fill_their_time(instrument):
    kinds = set()
    for seed in range(40):
        made = phrase(instrument, 2.048, random.Random(seed))
        assert made == phrase(instrument, 2.048, random.Random(seed))
        kinds.add(made.kind)
        assert all(0 <= note.key - instrument.lowest <= 16 for note in made.notes)
        at_once = Counter(note.start for note in made.notes)
        assert set(at_once.values()) == {3 if made.kind == "chords" else 1}
        ends = {note.start + note.length for note in made.notes}
        assert ends == {*at_once, 1920} - {0}  # each lasts until the next one
    assert kinds == {"scale", "arpeggio", "melody"} | ({"chords"} if instrument.chords else set())


def test_more_tracks_leave_the_others_as_they_are():
    few, many = (
        {(t.part, t.instrument.name, t.phrase) for t in tracks({"train": n, "test": 1}, 2.0, 0)}
        for n in (1, 3)
    )
    assert few < many and len(many) == 4 * len(INSTRUMENTS)
    assert not few & {
        (t.part, t.instrument.name, t.phrase) for t in tracks({"train": 1, "test": 1}, 2.0, 1)
    }


def needs_fluidsynth():
    if shutil.which("fluidsynth") is None or not Render.sound_font.is_file():
        pytest.skip("needs the Debian packages fluidsynth and fluid-soundfont-gm")


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_rendering_makes_a_folder_of_mtg_jamendo_and_always_the_same(tmp_path):
    needs_fluidsynth()
    words = ["--train", 1, "--validation", 1, "--test", 1]
    for name in "ab":
        succeed(COMMAND, "render", "--out", tmp_path / name, *words)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert len(list(tmp_path.glob("a/midi/*/*.mid"))) == 3 * len(INSTRUMENTS)
    domain = domains.build("instruments", data_path=str(tmp_path / "a"), vae="none")
    names = [f"instrument---{one.name}" for one in INSTRUMENTS]
    assert list(domain.train_tracks.vocabulary) == names and domain.rate == 16_000
    for found, count in ((domain.train_set(), 16), (domain.held_out_set(), 8)):
        batch = found.__getitems__(domains.Draws.plain(range(len(found)))).checked()
        assert batch.raw.shape == (count, 2, 32_768) and torch.equal(*batch.raw.unbind(1))
        assert batch.y.sum(1).eq(1).all() and batch.y.sum(0).eq(count // 8).all()
        peaks = batch.raw.float().abs().amax((1, 2)) / 32768
        assert peaks.max() < 0.85 and peaks.min() > 0.1


def test_what_rendering_lacks_is_one_sentence_that_names_the_packages(tmp_path, monkeypatch):
    asked = [COMMAND, "render", "--out", tmp_path / "out"]
    assert "--seconds 0.0: give more than 0" in refused(*asked, "--seconds", 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refused(*asked)
    assert "fluidsynth is not there: apt-get install fluidsynth fluid-soundfont-gm" in said
    assert not (tmp_path / "out").exists()


def test_an_absent_sound_font_is_one_sentence(tmp_path):
    needs_fluidsynth()
    said = refused(COMMAND, "render", "--out", tmp_path, "--sound-font", tmp_path / "none.sf2")
    assert "none.sf2: there is no such file: apt-get install" in said


@pytest.fixture(scope="module")
def tones():
    """int16 (6, 2, 4096), a tone each."""
    sounds = [tone(110 * 1.5**number, 4096 / 16_000, rate=16_000) for number in range(6)]
    return torch.from_numpy(np.stack(sounds) * 32767).to(torch.int16)


def test_the_vae_learns_and_its_latents_get_unit_variance(tones, tmp_path):
    network = vae.build(16_000, seed=0)
    steps = list(vae.train(network, tones, steps=60, batch=4, length=2048, lr=4e-3, seed=0))
    first, last = (np.mean([step.samples for step in part]) for part in (steps[:5], steps[-5:]))
    assert last < 0.9 * first
    codec = OobleckCodec(network, "trained")
    mean = codec.encode(tones).chunk(2, dim=1)[0]
    heard = codec.decode(mean)
    vae.to_unit_variance(network, tones)
    network.save_pretrained(tmp_path)
    saved = OobleckCodec.load(str(tmp_path))
    moments = saved.encode(tones)
    latents = saved.to_input(moments, torch.randn(moments.chunk(2, dim=1)[0].shape))
    torch.testing.assert_close(latents.std((0, 2)), torch.ones(8), atol=0.03, rtol=0)
    # What the decoder makes of them is what it made before.
    after = saved.decode(moments.chunk(2, dim=1)[0])
    assert (after.int() - heard.int()).abs().max() <= 2


def test_errors_of_reconstructions_are_in_decibels(tones):
    quieter = (tones.float() * 0.9).round().to(torch.int16)
    found = vae.errors(tones, quieter)
    torch.testing.assert_close(found.snr, torch.full((6,), 20.0), atol=0.1, rtol=0)
    assert found.spectral.gt(0).all() and found.spectral.max() < 20 * np.log10(1 / 0.9)
    assert vae.errors(tones, tones).spectral.eq(0).all()


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    return write_bands(tmp_path_factory.mktemp("bands"), seconds=2.2)


def test_the_vae_command_writes_a_folder_that_train_opens(bands, tmp_path):
    words = ["--steps", 2, "--batch", 1, "--length", 2048, "--log-every", 1]
    said = succeed(COMMAND, "vae", "--data", bands, "--out", tmp_path, *words).out
    assert "step 2: samples" in said and "snr db" in said
    found = json.loads((tmp_path / "reconstruction.json").read_text())
    assert found["held_out_sounds"] == 12 and found["samples_per_second"] == 16_000
    assert len(list(tmp_path.glob("reconstruction-*.wav"))) == 16
    assert (tmp_path / "reconstruction.png").stat().st_size > 5000
    domain = domains.build("instruments", data_path=str(bands), vae=str(tmp_path))
    assert domain.shape == (8, 512)
    assert "--length 64: give 2048 to 32768" in refused(
        COMMAND, "vae", "--data", bands, "--out", tmp_path, "--length", 64
    )


def test_a_vae_of_another_rate_is_refused(bands, tmp_path):
    words = ["--dataset_name", "instruments", "--data-path", bands, "--model", "SiT-Ti/8"]
    said = refused("train", *words, "--vae", save_oobleck(tmp_path / "vae"))
    assert "hears 44100 samples per second, and instruments has 16000" in said


def test_table_3_runs_small(bands, here, tmp_path):
    results = tmp_path / "results"
    domain = domains.build("instruments", data_path=str(bands), vae="none")
    file = (results.mkdir() or results) / "classifier-instruments.pt"
    classifier.train(domain, steps=20, batch=32).save(file)
    small = ["--preset", "instruments", "--max-steps", 2, "--samples", 8, "--device", "cpu"]
    words = ["--data-path", bands, "--vae", save_oobleck(tmp_path / "vae", rate=16_000)]
    words += ["--depth", 4, "--hidden-size", 16, "--num-heads", 2, "--global-batch-size", 2]
    words += ["--no-tensorboard", "--sample-every", 0, "--score-every", 2, "--score-samples", 40]
    words += ["--score-extractor", f"classifier:{file}"]
    said = succeed("experiments.table3", *small, "--results", results, "--", *words)
    assert "2 of 2 runs are finished" in said.out
    table = (results / "table3/table.md").read_text()
    assert "| instruments-vanilla | 2 | 0 |" in table and "fd_classifier" in table
    score = Path(results / "table3/instruments-layer_sync-seed0/samples.score.json")
    assert json.loads(score.read_text())["reference"]["name"] == "instruments"
    (row,) = score_rows(score.parent)  # every sample has the labels of a track, not its number
    assert row["images"] == 40 and 0 <= row["scores"]["accuracy"] <= 1


def test_runs_on_latents_are_scored_beside_the_sounds_they_were_made_of(bands, tmp_path):
    vae = save_oobleck(tmp_path / "vae", rate=16_000)
    data = ["--dataset_name", "instruments", "--data-path", bands, "--vae", vae, "--device", "cpu"]
    succeed("encode", *data, "--out", tmp_path / "latents")
    words = ["--preset", "instruments", "--results", tmp_path / "results"]
    flags = ["--", "--data-path", tmp_path / "latents"]
    said = refused("experiments.table3", *words, *flags)
    assert "holds latents" in said and "give --reference" in said
    said = succeed("experiments.table3", *words, "--dry-run", "--reference", bands, *flags).out
    of_sounds = [line for line in said.splitlines() if f"--data-path {bands}" in line]
    assert {line.split()[2] for line in of_sounds} == {"evaluations.images"}
    assert len(of_sounds) == 3, "the classifier, and the scores of two runs"
    said = succeed("experiments.evidence", *words, "--dry-run", "--reference", bands, *flags).out
    said_of_gate = refused("experiments.gate", *words, "--reference", bands, *flags)
    assert "holds latents, and the gate looks at samples" in said_of_gate
    looks = [line for line in said.splitlines() if "evaluations.progress" in line]
    assert len(looks) > 1 and all(f"--data-path {bands}" in line for line in looks)


def test_table_3_at_full_size_is_scored_by_clap():
    said = succeed("experiments.table3", "--dry-run", "--", "--data-path", "JAMENDO").out
    assert "--preset t3-650" in said and "0027300.pt" in said
    assert "--num-fid-samples 10000" in said and "clap:laion/larger_clap_music" in said
