"""MTG-Jamendo's files as they are, crops of real mp3 files, and a real Oobleck VAE, tiny."""

import wave

import numpy as np
import pytest
import torch

pytest.importorskip("av")

import domains
from domains import Draws
from domains.decoding import Unreadable
from domains.jamendo import Jamendo, read_tags
from domains.oobleck import STABLE_AUDIO, OobleckCodec, config_of
from domains.sound import decoded, loudness, pictures, resampled
from runtime.errors import InputError
from tests.domains.music import (
    RATE,
    TAGS,
    save_oobleck,
    tone,
    write_jamendo,
    write_mp3,
    write_tsv,
)  # fmt: skip

SAMPLES = 16_384


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_jamendo(tmp_path_factory.mktemp("jamendo"))


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return save_oobleck(tmp_path_factory.mktemp("oobleck"))


@pytest.fixture(scope="module")
def domain(root, vae):
    return domains.build("mtg-jamendo", data_path=str(root), vae=vae, image_size=SAMPLES)


def pitch(sound, rate=RATE):
    """The loudest frequency of (channels, samples)."""
    spectrum = np.abs(np.fft.rfft(sound[0] * np.hanning(sound.shape[1])))
    return np.argmax(spectrum) * rate / sound.shape[1]


def tracks(root, *, held_out):
    form = config_of("none", None)._replace(rate=RATE)
    return Jamendo(root, "none", form, None).tracks(held_out=held_out)


# Tags


def test_genres_and_instruments_are_the_labels_and_moods_are_not(domain):
    found = domain.train_tracks
    assert found.vocabulary == (
        "genre---jazz", "genre---rock", "instrument---guitar", "instrument---piano",
    )  # fmt: skip
    assert [path.decode() for path in found.paths] == ["00/1000.mp3", "01/1001.mp3", "03/1003.mp3"]
    assert found.labels.tolist() == [
        [False, True, False, True], [False, False, True, False], [True, False, False, False],
    ]  # fmt: skip
    assert domain.num_classes == 4 and domain.multi_label


def test_training_takes_train_and_validation_and_the_test_part_is_held_out(root):
    train, test = (tracks(str(root), held_out=held_out) for held_out in (False, True))
    assert not set(train.paths.tolist()) & set(test.paths.tolist())
    assert len(test) == 2 and test.vocabulary == train.vocabulary


def test_the_real_tables_have_87_genres_and_then_40_instruments(tmp_path):
    """As many tags as a track has are columns of their own; a csv reader of fixed width loses
    them."""
    genres = [f"genre---g{number:03d}" for number in range(87)]
    instruments = [f"instrument---i{number:03d}" for number in range(40)]
    rows = [("00/1.mp3", genres + ["mood/theme---dark"]), ("00/2.mp3", instruments)]
    for part in ("train", "validation", "test"):
        write_tsv(tmp_path / "data/splits/split-0" / f"autotagging-{part}.tsv", rows)
    for name, _ in rows:
        write_mp3(tmp_path / "audio" / name, tone(440, 0.2))
    found = tracks(str(tmp_path), held_out=True)
    assert found.vocabulary == (*genres, *instruments) and found.labels.sum() == 127


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("TRACK_ID\tPATH\n", "is no TSV of MTG-Jamendo"),
        (None, "there is no such file; expected data/splits/split-0"),
        ("{head}\ntrack_1\tartist\talbum\t00/1.mp3\n", "line 2: 4 columns"),
        ("{head}\nt\ta\tb\t../../etc/x.mp3\t1.0\tgenre---x\n", "leads out of its folder"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, content, sentence):
    path = tmp_path / "tags.tsv"
    if content is not None:
        head = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"
        path.write_text(content.format(head=head))
    with pytest.raises(InputError, match=sentence):
        read_tags(path)


def test_files_that_are_not_there_are_counted(tmp_path):
    for part, rows in TAGS.items():
        write_tsv(tmp_path / "data/splits/split-0" / f"autotagging-{part}.tsv", rows)
    with pytest.raises(InputError, match="3 of 3 tracks are not there, .*00/1000.mp3 the first"):
        tracks(str(tmp_path), held_out=False).check(SAMPLES)
    with pytest.raises(InputError, match="needs --data-path ROOT"):
        tracks(None, held_out=False)


def test_the_files_of_low_quality_will_do(tmp_path):
    write_jamendo(tmp_path)
    path = tmp_path / "audio/00/1000.mp3"
    path.rename(path.with_suffix(".low.mp3"))
    assert tracks(str(tmp_path), held_out=False).path(0).name == "1000.low.mp3"


# Crops


def test_a_crop_is_that_part_of_the_file(tmp_path):
    """A tone that climbs tells where a crop lies."""
    t = np.arange(3 * RATE) / RATE
    climbing = 0.5 * np.sin(2 * np.pi * (200 * t + 500 * t**2))  # 200 Hz + 1000 Hz per second
    write_mp3(tmp_path / "a.mp3", np.stack([climbing] * 2))
    for place in (0.0, 0.3, 0.8, 1.0):
        sound = decoded(tmp_path / "a.mp3", RATE // 4, RATE, place=place)
        assert sound.shape == (2, RATE // 4) and sound.dtype == np.int16
        middle = place * 2.75 + 0.125
        assert pitch(sound) == pytest.approx(200 + 1000 * middle, abs=80)


def test_draws_decide_the_crop_and_plain_ones_are_fixed(domain):
    images = domain.train_set()
    same, other = (Draws(np.array([0, 1]), np.array(seeds)) for seeds in ((5, 6), (7, 6)))
    one, again, third = (images.__getitems__(draws).checked() for draws in (same, same, other))
    assert torch.equal(one.raw, again.raw) and not torch.equal(one.raw[0], third.raw[0])
    assert torch.equal(one.raw[1], third.raw[1])
    assert one.y.tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]] and one.raw.shape == (2, 2, SAMPLES)


def test_mono_is_heard_on_both_sides_and_other_rates_are_resampled(tmp_path):
    write_mp3(tmp_path / "mono.mp3", tone(600, 1.0, channels=1))
    write_mp3(tmp_path / "slow.mp3", tone(600, 1.0, rate=22_050), rate=22_050)
    for name in ("mono.mp3", "slow.mp3"):
        sound = decoded(tmp_path / name, RATE // 2, RATE, place=0.5)
        assert pitch(sound) == pytest.approx(600, abs=5)
        assert np.abs(sound[0].astype(int) - sound[1]).max() <= 200


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: write_mp3(path, tone(440, 0.1)), "has 0.1 s from 0.0 s on, and a crop is"),
        (lambda path: path.write_bytes(b"no sound at all" * 50), "cannot be decoded"),
        (lambda path: path.write_bytes(b""), "cannot be decoded"),
        (lambda path: None, "cannot be decoded"),
    ],
)  # fmt: skip
def test_what_holds_no_crop_is_named(tmp_path, make, sentence):
    path = tmp_path / "x.mp3"
    make(path)
    with pytest.raises(Unreadable, match=sentence):
        decoded(path, SAMPLES, RATE, place=0.5)


def test_silence_is_sound(tmp_path):
    write_mp3(tmp_path / "silent.mp3", np.zeros((2, RATE)))
    assert np.abs(decoded(tmp_path / "silent.mp3", SAMPLES, RATE, place=0.2)).max() < 10


# Latents


def test_ten_seconds_are_215_latents_of_stable_audio():
    config = config_of(STABLE_AUDIO, None)
    assert (config.channels, config.hop, 441_000 // config.hop) == (64, 2048, 215)
    assert domains.build("mtg-jamendo", num_classes=127).shape == (64, 215)


def test_stored_moments_and_a_draw_are_the_vaes_own(domain):
    from diffusers.models.autoencoders.autoencoder_oobleck import (
        OobleckDiagonalGaussianDistribution,
    )

    raw = domain.train_set().__getitems__(Draws.plain([0, 2])).checked().raw
    stored = domain.codec.encode(raw)
    assert stored.shape == (2, 8, SAMPLES // 64)
    noise = torch.randn(2, 4, SAMPLES // 64)
    posterior = domain.codec.vae.encode(raw.float() / 32768).latent_dist
    assert isinstance(posterior, OobleckDiagonalGaussianDistribution)
    expected = posterior.mean + posterior.std * noise
    torch.testing.assert_close(domain.codec.to_input(stored, noise), expected)
    sound = domain.codec.decode(expected)
    assert sound.dtype == torch.int16 and sound.shape == (2, 2, SAMPLES)
    waves = domain.codec.vae.decode(expected).sample
    assert (sound - (32768 * waves).clamp(-32768, 32767)).abs().max() <= 0.51


def test_a_vae_that_is_no_oobleck_is_refused(tiny_vae, tmp_path):
    with pytest.raises(InputError, match="AutoencoderOobleck .it is an AutoencoderKL"):
        config_of(tiny_vae, None)
    with pytest.raises(InputError, match="is no folder of diffusers' AutoencoderOobleck"):
        config_of(str(tmp_path), None)
    with pytest.raises(InputError, match="stable-audio-open-1.0 is not in"):
        OobleckCodec.load(STABLE_AUDIO, str(tmp_path))


def test_the_waveform_itself_can_be_learned(root):
    domain = domains.build("mtg-jamendo", data_path=str(root), vae="none", image_size=256)
    raw = domain.train_set().__getitems__(Draws.plain([0])).checked().raw
    assert domain.shape == (2, 256)
    assert torch.equal(domain.codec.decode(domain.codec.to_input(raw, None)), raw)


# What people hear and see


def test_sounds_are_written_as_wav_with_a_sheet_of_spectrograms(domain, tmp_path):
    raw = domain.train_set().__getitems__(Draws.plain([0, 1, 2])).checked().raw
    domain.save_grid(raw, tmp_path / "sheet.png")
    for number in range(3):
        with wave.open(str(tmp_path / f"sheet-{number:02d}.wav")) as file:
            assert (file.getnchannels(), file.getframerate()) == (2, RATE)
            content = np.frombuffer(file.readframes(SAMPLES), "<i2").reshape(-1, 2).T
        assert np.array_equal(content, raw[number].numpy())
    assert (tmp_path / "sheet.png").stat().st_size > 5000


def test_a_spectrogram_is_bright_where_the_tone_is():
    low, high = (torch.from_numpy((32767 * tone(f, 0.5)).astype(np.int16)) for f in (200, 5000))
    rows = [int(loudness(sound, 64).mean(1).argmax()) for sound in (low, high)]
    assert rows[0] < rows[1] and loudness(high, 64).max() == pytest.approx(-6, abs=3)
    seen = pictures(torch.stack([low, high, torch.zeros_like(low)]))
    assert seen.shape == (3, 1, 64, 64) and seen.dtype == torch.uint8
    assert seen[2].max() == 0 and seen[0].max() > 200


def test_resampling_keeps_the_pitch():
    mono = tone(1000, 0.5)[0]
    found = resampled(mono, RATE, 48_000)
    assert len(found) == pytest.approx(24_000, abs=64)
    assert pitch(found[None], 48_000) == pytest.approx(1000, abs=5)
    assert resampled(mono, RATE, RATE) is mono


def test_a_sample_has_the_labels_of_a_held_out_track_or_one_label(domain, root, vae):
    """Of the part that FAD's reference is of; instruments are scored beside training tracks."""
    rows = domain.condition(torch.arange(domain.choices))["y"]
    assert rows.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert rows.tolist() == tracks(str(root), held_out=True).labels.astype(float).tolist()
    rendered = domains.build("instruments", data_path=str(root), vae="none", image_size=SAMPLES)
    rows = rendered.condition(torch.arange(rendered.choices))["y"]
    assert rows.tolist() == rendered.train_tracks.labels.astype(float).tolist()
    assert rendered.conditions["labels"] != domain.conditions["labels"]
    bare = domains.build("mtg-jamendo", num_classes=4, vae=vae, image_size=SAMPLES)
    assert bare.choices == 4 and torch.equal(bare.condition(torch.arange(4))["y"], torch.eye(4))
    other = domains.build("mtg-jamendo", data_path=str(root), num_classes=3, vae=vae)
    with pytest.raises(InputError, match="has 4 labels, not --num-classes 3"):
        other.condition(torch.arange(1))


def test_mono_is_as_loud_as_stereo(tmp_path):
    sound = tone(440, 1.0)
    write_mp3(tmp_path / "stereo.mp3", sound)
    write_mp3(tmp_path / "mono.mp3", sound[:1])
    stereo, mono = (
        np.abs(decoded(tmp_path / f"{name}.mp3", RATE // 2, RATE, place=0.5)).max(1)
        for name in ("stereo", "mono")
    )
    np.testing.assert_allclose(mono, stereo, rtol=0.03)
