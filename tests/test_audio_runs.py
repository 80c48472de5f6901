"""Music through the same commands and flags as pictures: trained, resumed, drawn, scored."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("av")

from domains.sound import resampled
from evaluations.extractors import open_extractor
from evaluations.features import Study, StudyFlags
from evaluations.suggest_pairs import qualities
from models import SiT
from runtime.distributed import Ranks
from tests.commands import assert_same_state, checkpoint_of, launched, refused, succeed
from tests.domains.music import RATE, save_oobleck, write_bands, write_jamendo

TINY = (
    "--dataset_name mtg-jamendo --image-size 8192 --model SiT-Ti/1 --depth 4 --hidden-size 32 "
    "--num-heads 2 --no-learn-sigma --global-batch-size 2 --num-workers 0 --log-every 1 "
    "--no-tensorboard --device cpu --cfg-scale 1 --sample-every 0 --lr 1e-3"
).split()
FEW = ["--sampling-method", "heun2", "--num-sampling-steps", 3, "--device", "cpu"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    root = write_jamendo(folder / "jamendo", seconds=1.0)
    return [*TINY, "--data-path", root, "--vae", save_oobleck(folder / "vae")]


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    succeed("train", *flags, "--max-steps", 3, "--sample-every", 3, "--results-dir", results)
    (folder,) = results.iterdir()
    return folder


def test_it_trains_with_layer_sync_and_shows_what_it_draws(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(lines) >= 3 and all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert lines[0]["reg"] == pytest.approx(-1, abs=1e-4)  # adaLN-zero: all blocks are equal
    stored = checkpoint_of(run.parent, 3)
    assert stored["architecture"]["multi_label"] and stored["architecture"]["input_size"] == (128,)
    assert stored["model"]["y_embedder.embedding_table.weight"].shape == (5, 32)
    assert len(list((run / "samples").glob("0000003-*.wav"))) == 16
    assert (run / "samples" / "0000003.png").stat().st_size > 5000


def test_resume_is_exact_on_music(flags, tmp_path):
    succeed("train", *flags, "--max-steps", 4, "--results-dir", tmp_path / "whole")
    for stop in (2, 4):
        words = ["--max-steps", stop, "--resume", "auto", "--results-dir", tmp_path / "parts"]
        succeed("train", *flags, *words)
    assert_same_state(*(checkpoint_of(tmp_path / name, 4) for name in ("whole", "parts")))


def test_two_processes_train_on_music(flags, tmp_path):
    words = ["--max-steps", 2, "--results-dir", tmp_path]
    launched("train", *flags, *words, processes=2)
    assert checkpoint_of(tmp_path, 2)["train_steps"] == 2


def test_samples_are_sounds_with_the_labels_of_tracks(run, flags, tmp_path):
    path = path_of(flags)
    words = ["--ckpt", run, "--data-path", path, *FEW]
    succeed("sample", "ODE", *words, "--class-labels", 0, 1, "--out", tmp_path / "s.png")
    assert len(list(tmp_path.glob("s-*.wav"))) == 2
    for name, size in (("a", 4), ("b", 2)):
        succeed("sample_ddp", "ODE", *words, "--num-fid-samples", 4, "--per-proc-batch-size", size,
                "--sample-dir", tmp_path, "--name", name)  # fmt: skip
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert a["arr_0"].shape == (4, 8192, 2) and a["arr_0"].dtype == np.int16
        assert np.array_equal(a["arr_1"], b["arr_1"]) and set(a["arr_1"].flat) == {0.0, 1.0}
        assert np.abs(a["arr_0"].astype(int) - b["arr_0"]).max() <= 2
    protocol = json.loads((tmp_path / "a.json").read_text())
    assert protocol["int16"] and protocol["image_size"] == 8192
    without = [*words[:2], *words[4:], "--num-fid-samples", 4, "--per-proc-batch-size", 4]
    said = refused("sample_ddp", "ODE", *without, "--sample-dir", tmp_path, "--name", "a")
    assert "was drawn with another labels" in said, "of no tracks, but one each"
    said = refused("sample_ddp", "ODE", *words, "--pngs", "--sample-dir", tmp_path)
    assert "--pngs: samples of mtg-jamendo are no pictures" in said


def test_the_labels_belong_to_the_model(flags, tmp_path):
    """Row 3 of its table means "instrument---piano", and would mean another tag after it. Models
    from before this was kept go on."""
    root = shutil.copytree(path_of(flags), tmp_path / "jamendo")
    words = [root if word == path_of(flags) else word for word in flags]
    trained = ["train", *words, "--results-dir", tmp_path / "r"]
    succeed(*trained, "--max-steps", 1)
    (folder,) = (tmp_path / "r").iterdir()
    path = folder / "checkpoints/0000001.pt"
    names = checkpoint_of(tmp_path / "r", 1)["codec"]["labels"]
    assert names == ["genre---jazz", "genre---rock", "instrument---guitar", "instrument---piano"]
    tables = list(root.glob("data/splits/split-0/*.tsv"))
    for table in tables:
        table.write_text(table.read_text().replace("instrument---piano", "genre---folk"))
    again = [*trained, "--max-steps", 2, "--resume", "auto"]
    sentence = "it was trained with other labels than those of mtg-jamendo here: give --data-path"
    assert sentence in refused(*again)
    drawn = ["sample", "ODE", "--ckpt", path, *FEW, "--out", tmp_path / "s.png"]
    assert sentence in refused(*drawn, "--data-path", root)
    succeed(*drawn, "--class-labels", 3)
    said = refused(*drawn, "--class-labels", 4)
    assert "class id 4 is out of range: there are 4 labels, 0 to 3" in said
    stored = checkpoint_of(tmp_path / "r", 1)
    del stored["codec"]["labels"]
    torch.save(stored, path)
    succeed(*again)
    assert "genre---folk" in checkpoint_of(tmp_path / "r", 2)["codec"]["labels"]
    said = refused(*drawn, "--data-path", root, "--class-labels", 2)
    assert "there are 2 tracks whose labels a sample may have, 0 to 1" in said


def path_of(flags):
    return dict(zip(flags, flags[1:], strict=False))["--data-path"]


def test_the_held_out_loss_is_measured_on_music(run, flags):
    path = path_of(flags)
    words = [run, "--data-path", path, "--device", "cpu"]
    assert "2 held-out images of mtg-jamendo" in succeed("evaluations.heldout", *words).out


def test_blocks_are_looked_at_on_music_as_on_pictures(run, flags, bands, tmp_path):
    root = path_of(flags)
    words = [run, "--data-path", root, "--device", "cpu", "--out", tmp_path]
    succeed("evaluations.features.__main__", *words, "--pool", "none")
    labels, tokens = np.load(tmp_path / "labels.npy"), np.load(tmp_path / "block_04.npy")
    assert labels.tolist() == [[0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0]]  # sorted tags
    assert tokens.shape == (3, 128, 32) and np.isfinite(tokens).all()
    assert all((tokens[0] != other).any() for other in tokens[1:])
    succeed("evaluations.similarity", *words, "--data-path", bands)
    alike = json.loads((tmp_path / "similarity.json").read_text())
    assert alike["images"] == 12 and np.diag(alike["cka"]) == pytest.approx(1, abs=1e-5)
    for command, sentence in (
        ("maps", "is a model of mtg-jamendo: this command is for pictures"),
        ("report", "is a model of mtg-jamendo: this command is for pictures"),
        ("classification", "samples of mtg-jamendo have several labels"),
        ("suggest_pairs --data-path .", "expected data/splits/split-0"),
    ):
        assert sentence in refused(*f"evaluations.{command}".split(), *words[:1], *words[3:])


def test_an_encoder_of_pictures_hears_nothing(flags, tmp_path):
    timm = pytest.importorskip("timm")
    name = "vit_tiny_patch16_224"
    torch.save(timm.create_model(name, pretrained=False).state_dict(), tmp_path / "vit.pth")
    root = path_of(flags)
    said = refused("evaluations.similarity", f"timm:{name}", "--encoder-weights",
                   tmp_path / "vit.pth", "--data", "mtg-jamendo", "--data-path", root)  # fmt: skip
    assert f"{name} reads samples of three axes, and those of mtg-jamendo are" in said


def test_sounds_of_another_rate_are_refused(run, bands):
    words = [run, "--data", "instruments", "--data-path", bands, "--device", "cpu"]
    said = refused("evaluations.similarity", *words)
    assert "hears 44100 samples per second, and instruments has 16000" in said


def test_pairs_are_suggested_by_the_labels_of_music(run, bands, tmp_path, perturb):
    """A probe's first guess of a track's labels, from every block; chance is a third."""
    stored = checkpoint_of(run.parent, 3)
    model = SiT(**stored["architecture"])
    model.load_state_dict(stored["model"])
    path = tmp_path / "0000003.pt"
    torch.save(stored | {"model": perturb(model).state_dict()}, path)
    flags = StudyFlags(
        str(path), data_path=str(bands), device="cpu", weights="model", latent="mode",
        out=tmp_path / "out",
    )  # fmt: skip
    study = Study(flags, Ranks(0, 1, torch.device("cpu")))
    accuracy, tested = qualities(study, 1000)
    assert len(accuracy) == 4 and tested == 12 and np.mean(accuracy) > 0.45


def test_guidance_drops_all_labels(run):
    from runtime.config import SampleFlags
    from sampling import open_checkpoint

    opened = open_checkpoint(SampleFlags(ckpt=str(run), compile="off"), torch.device("cpu"))
    y = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    model = opened.network.model
    assert model.null({"y": y})["y"].sum() == 0
    table = model.y_embedder.embedding_table.weight
    embedded = model.y_embedder(y)
    torch.testing.assert_close(embedded[0], (table[0] + table[2]) / 2)
    torch.testing.assert_close(embedded[1], table[4])


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    return write_bands(tmp_path_factory.mktemp("bands"), seconds=0.4)


def score(*words):
    return succeed("evaluations.images.__main__", *words, "--device", "cpu", "--num-workers", 0)


def test_sounds_are_scored_by_a_classifier_of_their_instruments(bands, tmp_path):
    import domains
    from evaluations.extractors import classifier as classifiers

    where = ["--data-path", bands, "--image-size", 8192]
    file = tmp_path / "clf.pt"
    domain = domains.build("mtg-jamendo", data_path=str(bands), vae="none", image_size=8192)
    classifier = classifiers.train(domain, steps=40, batch=32)
    classifier.save(file)
    assert classifier.accuracy > 0.9
    batch = domain.held_out_set().__getitems__(domains.Draws.plain(range(12))).checked()
    good = domain.arrays(batch.raw)
    noise = np.random.RandomState(0).randint(-9000, 9000, good.shape).astype(np.int16)
    found = {}
    for name, sounds in (("good", good), ("noise", noise)):
        np.savez(tmp_path / f"{name}.npz", arr_0=sounds, arr_1=batch.y.numpy())
        samples = tmp_path / f"{name}.npz"
        score("mtg-jamendo", samples, "--extractor", f"classifier:{file}", *where)
        result = json.loads((tmp_path / f"{name}.score.json").read_text())
        found[name] = result["scores"]
        assert any("--held-out takes those" in one for one in result["warnings"])
        assert (tmp_path / f"{name}.score.png").stat().st_size > 5000
    assert found["good"]["fd_classifier"] < 0.2 * found["noise"]["fd_classifier"]
    assert found["good"]["accuracy"] > 0.9 > found["noise"]["accuracy"]
    # A reference holds what was heard in the sounds: neither mp3 files nor PyAV are needed with it.
    reference, extractor = tmp_path / "ref.npz", ["--extractor", f"classifier:{file}"]
    score("make-reference", "mtg-jamendo", "--out", reference, *extractor, *where)
    score(reference, tmp_path / "good.npz", *extractor)
    again = json.loads((tmp_path / "good.score.json").read_text())
    assert again["scores"] == pytest.approx(found["good"], rel=1e-5)
    assert again["floor"]["images"] == 12
    with np.load(reference) as content:
        assert len(content["arr_0"]) == len(content["held_out"]) == 8
        assert len(content["pool"]) == 36 and len(content["held_out_pool"]) == 12
    # And of the held-out part alone: the scores of --held-out, kept.
    score("mtg-jamendo", tmp_path / "good.npz", *extractor, *where, "--held-out")
    live = json.loads((tmp_path / "good.score.json").read_text())
    assert not any("--held-out" in one for one in live["warnings"])
    unseen = ["make-reference", "mtg-jamendo", "--held-out", 12, "--out", reference]
    score(*unseen, *extractor, *where)
    score(reference, tmp_path / "good.npz", *extractor)
    stored = json.loads((tmp_path / "good.score.json").read_text())
    assert stored["scores"] == pytest.approx(live["scores"], rel=1e-5)
    assert stored["floor"] is None and stored["reference"]["images"] == 12


@pytest.mark.parametrize(("name", "images"), [("mtg-jamendo", 12), ("mtg-jamendo-all", 48)])
def test_scores_of_training_are_beside_tracks_whose_labels_samples_have(bands, name, images):
    import domains
    from evaluations.images.in_training import reference_for

    domain = domains.build(name, data_path=str(bands), vae="none", image_size=8192)
    found = reference_for(domain, workers=0)
    assert len(found.images) == images
    assert found.held_out is None  # no floor is computed, and held-out data are not opened for one


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    return save_clap(tmp_path_factory.mktemp("clap"))


def save_clap(folder, **settings):
    """A real CLAP of random weights, as small as its 64 mel bands allow."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ClapAudioConfig(
        spec_size=256, num_mel_bins=64, window_size=8, patch_size=4, patch_stride=[4, 4],
        patch_embeds_hidden_size=16, depths=[1, 1], num_attention_heads=[2, 2], hidden_size=32,
        projection_dim=16, num_hidden_layers=2, **settings,
    )  # fmt: skip
    transformers.ClapAudioModelWithProjection(config).save_pretrained(folder)
    truncation = "fusion" if settings else "rand_trunc"
    transformers.ClapFeatureExtractor(truncation=truncation).save_pretrained(folder)
    return folder


def test_fad_is_the_frechet_distance_of_unit_clap_embeddings(bands, clap, tmp_path):
    import domains
    from evaluations.metrics import Moments, frechet_distance

    domain = domains.build("mtg-jamendo", data_path=str(bands), vae="none", image_size=8192)
    batch = domain.held_out_set().__getitems__(domains.Draws.plain(range(12))).checked()
    extractor = open_extractor(f"clap:{clap}", torch.device("cpu"))
    features = extractor(batch.raw).pool
    torch.testing.assert_close(features.norm(dim=1), torch.ones(12))
    np.savez(tmp_path / "s.npz", arr_0=domain.arrays(batch.raw), arr_1=batch.y.numpy())
    where = ["--data-path", bands, "--image-size", 8192]
    score("mtg-jamendo", tmp_path / "s.npz", "--extractor", f"clap:{clap}", *where)
    found = json.loads((tmp_path / "s.score.json").read_text())
    real = domain.train_set()
    real = real.__getitems__(domains.Draws.plain(range(len(real)))).checked().raw
    expected = frechet_distance(Moments.of(features), Moments.of(extractor(real).pool))
    assert found["scores"]["fad"] == pytest.approx(expected, rel=1e-3)
    assert found["extractor"]["name"] == f"clap:{clap}" and "fad" in found["floor"]["scores"]


def heard_by(clap, sounds, **options):
    """What transformers makes of float mono sounds at 48 kHz, by hand."""
    from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor

    prepare = ClapFeatureExtractor.from_pretrained(clap)
    inputs = prepare(sounds, sampling_rate=48_000, return_tensors="pt", **options)
    with torch.no_grad():
        embeds = ClapAudioModelWithProjection.from_pretrained(clap).eval()(**inputs).audio_embeds
    return embeds / embeds.norm(dim=1, keepdim=True)


def stereo(seconds):
    """int16 (2, 2, samples): chords, other ones left and right."""
    t = np.arange(int(seconds * RATE)) / RATE
    chords = [[(220, 3000), (700, 9000)], [(440, 5000), (90, 1500)]]
    sounds = [[sum(np.sin(2 * np.pi * f * t) for f in side) for side in one] for one in chords]
    return torch.from_numpy((9000 * np.array(sounds)).astype(np.int16))


def test_clap_hears_the_mean_of_both_sides_at_full_scale_repeated(clap):
    """As LAION does: 32768 is 1, and a sound shorter than 10 seconds is repeated while it fits."""
    sounds = stereo(4.3)
    mono = [resampled(one.mean(0) / 32768, RATE, 48_000) for one in sounds.double().numpy()]
    twice = [np.pad(np.tile(one, 2), (0, 480_000 - 2 * len(one))) for one in mono]
    extractor = open_extractor(f"clap:{clap}", torch.device("cpu"))
    found = extractor(sounds).pool
    torch.testing.assert_close(found, heard_by(clap, twice, truncation="rand_trunc"))
    longer = torch.cat([stereo(10.0), stereo(3.0)], dim=2)
    torch.testing.assert_close(extractor(longer).pool, extractor(stereo(10.0)).pool)


def test_fadtks_clap_hears_ten_seconds_from_every_second_on(clap, tmp_path):
    sounds = stereo(2.4)
    extractor = open_extractor(f"clap-fadtk:{clap}", torch.device("cpu"))
    pool, _, found = extractor(sounds)
    assert found.shape == (2 * 3, 16) and extractor.name == f"clap-fadtk:{clap}"
    parts = []
    for one in sounds.double().numpy():
        mono = resampled(one.mean(0) / 32768, RATE, 48_000)
        coarse = np.trunc(32767 * mono) / 32767
        for first in (0, 48_000, 96_000):
            part = coarse[first:]
            parts.append(np.concatenate([part, np.zeros(480_000 - len(part))]))
    torch.testing.assert_close(found, heard_by(clap, parts, truncation="rand_trunc"))
    assert torch.equal(pool, found[::3])
    assert len(extractor(stereo(440_320 / RATE)).windows) == 2 * 10, "215 latents of Stable Audio"


def test_fad_is_of_all_windows_and_the_neighbours_are_of_the_first(clap, tmp_path):
    """Windows of one sound overlap by nine tenths, and would be each other's neighbours."""
    import domains
    from evaluations.metrics import Moments, frechet_distance, precision_recall

    bands = write_bands(tmp_path, seconds=1.3)
    domain = domains.build("mtg-jamendo", data_path=str(bands), vae="none", image_size=52_920)
    real = [
        part.__getitems__(domains.Draws.plain(range(len(part)))).checked().raw
        for part in (domain.train_set(), domain.held_out_set())
    ]
    np.savez(tmp_path / "s.npz", arr_0=domain.arrays(real[1]))
    where = ["--data-path", bands, "--image-size", 52_920]
    words = ["--extractor", f"clap-fadtk:{clap}"]
    score("mtg-jamendo", tmp_path / "s.npz", *words, *where)
    result = json.loads((tmp_path / "s.score.json").read_text())
    assert result["extractor"]["name"] == f"clap-fadtk:{clap}" and result["images"] == 12
    assert (result["reference"]["images"], result["reference"]["kept"]) == (36, 36)
    extractor = open_extractor(f"clap-fadtk:{clap}", torch.device("cpu"))
    expected = frechet_distance(*(Moments.of(extractor(one).windows) for one in real))
    assert result["scores"]["fad"] == pytest.approx(expected, rel=1e-3)
    manifold = precision_recall(*(extractor(one).pool for one in real), k=3)
    assert result["scores"]["recall"] == pytest.approx(manifold.recall)
    # A reference has no room for the windows of what is held out, and sets no floor then.
    made = score("make-reference", "mtg-jamendo", "--out", tmp_path / "ref.npz", *words, *where)
    assert "note: mtg-jamendo is its training part" in made.out
    score(tmp_path / "ref.npz", tmp_path / "s.npz", *words)
    stored = json.loads((tmp_path / "s.score.json").read_text())
    assert stored["scores"] == pytest.approx(result["scores"], rel=1e-5)
    assert result["floor"]["images"] == 12 and stored["floor"] is None
    words = [tmp_path / "s.npz", tmp_path / "ref.npz", *words, "--device", "cpu"]
    said = refused("evaluations.images.__main__", *words)
    assert "ref.npz keeps one window of every sound" in said


def test_a_clap_that_fuses_hears_the_same_twice(tmp_path):
    """transformers takes one sound of a batch, drawn at random, for a long one."""
    folder = save_clap(tmp_path, enable_fusion=True)
    extractor = open_extractor(f"clap:{folder}", torch.device("cpu"))
    sounds = stereo(2.4).repeat(4, 1, 1)
    once = extractor(sounds).pool
    for _ in range(4):
        assert torch.equal(extractor(sounds).pool, once)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--dataset_name mtg-jamendo --vae none", "music needs --data-path ROOT"),
        ("--dataset_name mtg-jamendo --data-path . --vae none", "expected data/splits/split-0"),
        ("--dataset_name mtg-jamendo --data-path . --vae .", "is no folder of diffusers'"),
    ],
)
def test_what_music_lacks_is_one_sentence(tmp_path, words, sentence):
    said = refused("train", *words.split(), "--model", "SiT-Ti/1", "--device", "cpu",
                   "--image-size", 256, "--results-dir", tmp_path / "r")  # fmt: skip
    assert sentence in said and not (tmp_path / "r").exists()


def test_an_absent_clap_is_named(tmp_path):
    np.savez(tmp_path / "s.npz", arr_0=np.zeros((4, 300, 2), np.int16))
    words = [tmp_path / "s.npz", tmp_path / "s.npz", "--extractor", "clap:nobody/nothing"]
    said = refused("evaluations.images.__main__", *words, "--device", "cpu")
    assert "clap:nobody/nothing: it is neither in the cache" in said


def test_a_crop_may_be_longer_than_a_picture_is_wide():
    words = ["--preset", "t3-650", "--image-size", 441_000, "--num-classes", 127, "--dry-run"]
    assert "image_size               441000" in succeed("train", *words).out
