"""The commands of the lab, each on a checkpoint and real files: what they write and say."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import domains
from domains import Batch
from domains.reading import chosen
from evaluations.features.study import home
from runtime.config import SampleFlags
from sampling import open_checkpoint
from tests.commands import call, refused, succeed
from tests.evaluations.lab import DIGITS, digits_run, picture_folder, save_checkpoint

ENCODER = "vit_tiny_patch16_224"
CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, perturb):
    """Two models of the digits and, as a file, an encoder."""
    folder = tmp_path_factory.mktemp("runs")
    return [digits_run(folder, perturb, f"00{seed}-SiT-small", seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "vit.pth"
    torch.save(timm.create_model(ENCODER, pretrained=False).state_dict(), path)
    return path


def read(path):
    return json.loads(path.read_text())


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_probes_of_every_block_are_written_beside_the_run(runs):
    said = succeed("evaluations.classification", runs[0], "--epochs", 20, *CPU).out
    found = read(runs[0].parent.parent / "representation" / "0000010" / "classification.json")
    assert found["blocks"] == [1, 2, 3, 4] and found["test_images"] == 500
    assert len(found["accuracy"]) == len(found["knn"]) == 4
    assert np.all(np.array(found["best_epoch"]) >= found["accuracy"])
    assert 0.3 < max(found["accuracy"]) < 1 and 0.3 < max(found["knn"]) <= 1
    assert f"{np.mean(found['accuracy']):.2%}" in said and "the best block is" in said
    check_blocks(found, said, "accuracy", "best_epoch", "ridge", "knn")


def check_blocks(found, said, *names):
    """Means and best blocks, and the same values as a CSV and as a picture, which are named."""
    table, drawn, whole = map(Path, said.splitlines()[-3:])
    assert read(whole) == found and picture(drawn).std() > 5
    head, *rows = (line.split(",") for line in table.read_text().splitlines())
    assert head == ["block", *names]
    assert [int(row[0]) for row in rows] == found["blocks"]
    for column, name in enumerate(names, start=1):
        values = [float(row[column]) for row in rows]
        assert values == found[name]
        assert found["mean"][name] == pytest.approx(np.mean(values))
        assert values[found["blocks"].index(found["best_block"][name])] == max(values)


def test_a_checkpoint_named_from_among_its_own_is_of_its_run(tmp_path, monkeypatch):
    folder = tmp_path / "000-SiT-small" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert home(Path("0000010.pt")) == folder.parent / "representation" / "0000010"


def test_blocks_that_are_left_out_tell_what_is_before_them(runs, tmp_path):
    words = ["--epochs", 1, "--images", 100, *CPU, "--out", tmp_path]
    succeed("evaluations.classification", runs[0], *words, "--skip-blocks", 2, 3)
    found = read(tmp_path / "classification.json")
    accuracy = found["accuracy"]
    assert accuracy[0] == accuracy[1] == accuracy[2] != accuracy[3]
    succeed("evaluations.classification", runs[0], *words, "--skip-blocks", "2,3")
    assert read(tmp_path / "classification.json") == found


def test_an_encoders_features_are_probed_in_the_same_way(encoder, tmp_path):
    words = ["--data", "digits", "--encoder-weights", encoder, "--images", 64, "--epochs", 2]
    words += ["--blocks", 1, 12, *CPU, "--out", tmp_path]
    # 564 images of 224 pixels: a second on a GPU, half a minute here, so the blocks are few.
    monkey = pytest.MonkeyPatch()
    monkey.setattr("evaluations.features.study.GRID", 2)
    succeed("evaluations.classification", f"timm:{ENCODER}", *words)
    monkey.undo()
    found = read(tmp_path / "classification.json")
    assert found["blocks"] == [1, 12] and found["network"] == ENCODER


@pytest.fixture
def tiny_imagenet(tmp_path):
    """Two classes, in the layout of the real thing: one bright, one dark."""
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("n01443537\nn01629819\n")
    (root / "words.txt").write_text("n01443537\tgoldfish\nn01629819\tsalamander\n")
    random, lines = np.random.RandomState(0), []
    for label, wnid in enumerate(("n01443537", "n01629819")):
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for number in range(24):
            pixels = (120 * label + random.randint(0, 100, (64, 64, 3))).astype(np.uint8)
            held_out = number >= 16
            name = f"val_{len(lines)}.JPEG" if held_out else f"{wnid}_{number}.JPEG"
            Image.fromarray(pixels).save((root / "val" / "images" if held_out else folder) / name)
            if held_out:
                lines.append(f"{name}\t{wnid}\t0\t0\t62\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def latent_run(tmp_path, perturb, tiny_vae):
    """A model in the latents of a real AutoencoderKL, at 32 pixels."""
    args = dict(dataset_name="folder", image_size=32, num_classes=10, vae=tiny_vae)
    path = tmp_path / "runs" / "000-SiT-latent" / "checkpoints" / "0000010.pt"
    return save_checkpoint(path, perturb, args, in_channels=4, input_size=16, patch_size=4, depth=2)


def test_tiny_imagenet_is_probed_at_the_checkpoints_size_through_its_vae(
    latent_run, tiny_imagenet, tmp_path
):
    words = ["--data", "tiny-imagenet", "--data-path", tiny_imagenet, "--num-workers", 0]
    words += ["--epochs", 20, "--out", tmp_path / "out", "--latent", "mode", *CPU]
    succeed("evaluations.classification", latent_run, *words)
    found = read(tmp_path / "out" / "classification.json")
    assert (found["train_images"], found["test_images"]) == (32, 16)
    assert max(found["knn"]) > 0.9  # bright and dark
    assert len(list((tmp_path / "out" / "features").glob("*.labels.npy"))) == 3  # a mirrored view


@pytest.fixture
def voc(tmp_path):
    """Left halves of one class, right halves background, a border that does not count."""
    root = tmp_path / "DATA" / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    random = np.random.RandomState(0)
    names = [f"2007_{number:06d}" for number in range(24)]
    for name in names:
        pixels = random.randint(0, 60, (48, 64, 3)).astype(np.uint8)
        pixels[:, :32] += 150
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros((48, 64), np.uint8)
        mask[:, :30], mask[:, 30:34] = 8, 255
        image = Image.fromarray(mask, mode="P")
        image.putpalette(list(range(256)) * 3)
        image.save(root / "SegmentationClass" / f"{name}.png")
    for part, some in (("train", names[:16]), ("val", names[16:])):
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(some) + "\n")
    return tmp_path / "DATA"


def test_segmentation_of_voc_through_a_vae(latent_run, voc, tmp_path):
    words = ["--masks", "voc", "--masks-path", voc, "--segmentation-epochs", 60]
    words += ["--segmentation-batch", 8, "--latent", "mode", *CPU, "--out", tmp_path / "out"]
    said = succeed("evaluations.segmentation.__main__", latent_run, *words).out
    found = read(tmp_path / "out" / "segmentation.json")
    assert (found["train_images"], found["test_images"], found["pixels"]) == (16, 8, 32)
    assert len(found["miou"]) == 2 and max(found["miou"]) > 0.6
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"segmentation.{end}" for end in ("csv", "json", "png")]
    check_blocks(found, said, "miou", "best_epoch")


def test_segmentation_heads_are_linear_heads_trained_apart(runs):
    """The public recipe, written out for one block."""
    from evaluations.features import Denoiser
    from evaluations.segmentation.data import open_masks
    from evaluations.segmentation.heads import Fit, logits, make_heads, train
    from evaluations.segmentation.prepared import Prepared

    cpu = torch.device("cpu")
    opened = open_checkpoint(SampleFlags(ckpt=str(runs[0]), compile="off"), cpu)
    masks = open_masks("digits", None, 8, held_out=True)
    fit = Fit(epochs=2, batch=100)
    folder = runs[0].parent
    both, one = (
        train(subject, *[Prepared(subject, masks, folder, 100)] * 2, fit).values
        for subject in (Denoiser(opened, (2, 4)), Denoiser(opened, (4,)))
    )
    assert one[:, 0].tolist() == both[:, 1].tolist()

    subject = Denoiser(opened, (4,))
    head = make_heads((4,), 32, 11, fit.seed)["4"]
    opt = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-4)
    random, prepared = np.random.default_rng(0), Prepared(subject, masks, folder, 100)
    for epoch in range(2):
        for batch, target in prepared.batches(random.permutation(500), 100):
            opt.zero_grad()
            found = logits(head, subject.tokens(batch, draw=epoch)[4], (4, 4), 8)
            torch.nn.functional.cross_entropy(found, target, ignore_index=255).backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            opt.step()
    from evaluations.segmentation.heads import tested

    modules = torch.nn.ModuleDict({"4": head})
    assert tested(modules, subject, prepared, 100) == pytest.approx(one[-1].tolist())


def test_blocks_are_compared_with_an_encoder_and_with_another_model(runs, encoder, tmp_path):
    words = ["--pictures", 24, *CPU, "--out", tmp_path]
    monkey = pytest.MonkeyPatch()
    monkey.setattr("evaluations.features.study.GRID", 2)
    succeed("evaluations.similarity", runs[0], "--against", f"timm:{ENCODER}",
            "--against-weights", encoder, *words)  # fmt: skip
    monkey.undo()
    found = read(tmp_path / "similarity.json")
    assert found["against_blocks"] == [12] and np.array(found["cka"]).shape == (4, 1)
    assert picture(tmp_path / "similarity.png").std() > 5
    said = succeed("evaluations.similarity", runs[0], "--against", runs[1], *words).out
    found = read(tmp_path / "similarity.json")
    assert np.array(found["debiased_cka"]).shape == (4, 4) and "most alike" in said
    succeed("evaluations.similarity", runs[0], *words)
    found = read(tmp_path / "similarity.json")
    for name in ("cka", "debiased_cka", "cknna"):
        assert np.diag(found[name]) == pytest.approx(np.ones(4))


def test_cka_is_of_mean_tokens_brought_to_length_1(runs, tmp_path):
    """Written out, by the kernels of both sides."""
    from evaluations.features import Denoiser, View

    words = ["--against", runs[1], "--pictures", 24, "--blocks", 1, 3, "--against-blocks", 2]
    succeed("evaluations.similarity", runs[0], *words, *CPU, "--out", tmp_path)
    cpu, images = torch.device("cpu"), domains.build("digits").held_out_set()
    batch = images.__getitems__(domains.Draws.plain(chosen(500, 24, 0, "study")))

    def kernel(run, block):
        opened = open_checkpoint(SampleFlags(ckpt=str(run), compile="off"), cpu)
        tokens = Denoiser(opened, (block,), View(noise=0.1))(batch)[block]
        x = torch.nn.functional.normalize(tokens.mean(1).double(), dim=1)
        kernel = x @ x.T
        return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()

    def alike(one, other):
        return ((one * other).sum() / (one.norm() * other.norm())).item()

    other = kernel(runs[1], 2)
    expected = [[alike(kernel(runs[0], block), other)] for block in (1, 3)]
    # Features are kept in float16.
    assert np.allclose(read(tmp_path / "similarity.json")["cka"], expected, atol=1e-3)


def test_an_encoder_is_compared_at_the_published_noise_or_in_the_public_scripts_view(
    runs, encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr("evaluations.features.study.GRID", 2)
    words = [runs[0], "--pictures", 24, "--label", "null", *CPU, "--out", tmp_path]
    against = ["--against", f"timm:{ENCODER}", "--against-weights", encoder]
    succeed("evaluations.similarity", *words, *against)
    plain = read(tmp_path / "similarity.json")
    assert plain["view"]["noise"] == 0.1 and plain["view"]["label"] == "null"
    succeed("evaluations.similarity", *words, *against, "--official-quirks")
    quirks = read(tmp_path / "similarity.json")
    assert (quirks["view"]["noise"], quirks["view"]["label"]) == (0.9, "true")
    assert quirks["view"]["first_token"] is False and "first_token" not in plain["view"]
    assert quirks["cka"] != plain["cka"]
    for flag in (["--noise", 0.3], ["--label", "true"]):
        said = refused("evaluations.similarity", *words, "--official-quirks", *flag)
        assert "leave --noise and --label out" in said


def test_a_report_compares_with_the_encoder_at_a_noise_of_its_own(
    runs, encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr("evaluations.features.study.GRID", 2)
    words = [runs[0], "--encoder", f"timm:{ENCODER}", "--encoder-weights", encoder]
    words += ["--similarity-images", 24, "--images", 24, "--epochs", 1, "--noise", 0.3]
    words += ["--noises", 0.5, *CPU, "--out", tmp_path]
    succeed("evaluations.report", *words)
    (found,) = read(tmp_path / "report.json")["networks"]
    assert (found["view"]["noise"], found["encoder_view"]["noise"]) == (0.3, 0.1)
    assert (
        "30% noise, null label; 10% noise beside the encoder"
        in (tmp_path / "index.html").read_text()
    )
    succeed("evaluations.similarity", runs[0], "--against", f"timm:{ENCODER}", "--pictures", 24,
            "--against-weights", encoder, *CPU, "--out", tmp_path)  # fmt: skip
    alone = read(tmp_path / "similarity.json")["cka"]
    assert found["scores"]["cka"] == [row[0] for row in alone]
    succeed("evaluations.report", *words, "--encoder-noise", 0.9)
    (other,) = read(tmp_path / "report.json")["networks"]
    assert other["scores"]["cka"] != found["scores"]["cka"]
    assert other["scores"]["accuracy"] == found["scores"]["accuracy"]


def test_maps_show_two_models_the_same_noise(runs, tmp_path):
    words = ["--noises", 0.2, 0.8, "--pictures", 5, 6, *CPU, "--out", tmp_path]
    said = succeed("evaluations.maps", runs[0], "--compare", runs[1], *words).out
    paths = sorted(path.name for path in tmp_path.glob("*.png"))
    assert paths == [f"maps-image{i}-noise{n}.png" for i in (5, 6) for n in (0.2, 0.8)]
    assert all(name in said for name in paths)
    with np.load(tmp_path / "maps.npz") as maps:
        assert len(maps.files) == 2 * 2 * 2 * 4
        assert maps["0/image5-noise0.2/block03"].shape == (16, 3)
        assert not np.allclose(maps["0/image5-noise0.2/block03"], maps["1/image5-noise0.2/block03"])
    succeed("evaluations.maps", runs[0], "--compare", runs[0], *words)
    with np.load(tmp_path / "maps.npz") as maps:
        for name in maps.files:
            assert np.array_equal(maps[name], maps["1" + name[1:]])


def test_components_are_those_of_the_covariance_with_a_fixed_sign():
    from evaluations.maps import components

    tokens = torch.randn(40, 8, dtype=torch.float64) @ torch.diag(torch.arange(8.0, 0, -1).double())
    found = components(tokens)
    centred = tokens - tokens.mean(0)
    values = torch.linalg.eigvalsh(centred.T @ centred).flip(0)[:3]
    torch.testing.assert_close(found.square().sum(0), values)
    # The loadings of -x are those of x, so its components are the negative ones.
    torch.testing.assert_close(components(-tokens), -found)
    loadings = centred.T @ found / values.sqrt()
    largest = loadings.gather(0, loadings.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_colors_reach_from_the_1st_to_the_99th_percentile_of_each_component():
    from evaluations.maps import colors

    values = torch.arange(3 * 101, dtype=torch.float64).view(3, 101).T.reshape(1, 101, 3)
    expected = ((torch.arange(101.0).double() - 1) / 98).clamp(0, 1)
    torch.testing.assert_close(colors(values), expected[None, :, None].expand(1, 101, 3))


def test_the_28_blocks_of_xl_are_four_rows_of_seven_beside_the_image(tmp_path, monkeypatch):
    """As on the paper's pages, for every network; what is left of the grid is blank."""
    from evaluations import maps, pages

    def kept(figure, path):
        drawn.extend(figure.axes)

    drawn = []
    monkeypatch.setattr(pages, "save", kept)
    found = {block: torch.rand(4, 4, 3) for block in range(1, 29)}
    batch = Batch(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), None, torch.zeros(1), [])
    maps.picture(batch, [(SimpleNamespace(name="XL"), found)] * 2, 0.5, tmp_path / "x.png")
    rows = np.array([axis.get_title() for axis in drawn]).reshape(8, 8)
    assert rows[:, 0].tolist() == ["image", "", "", ""] * 2
    blocks = [f"block {block}" for block in range(1, 29)]
    assert rows[:4, 1:].flatten().tolist() == rows[4:, 1:].flatten().tolist() == blocks


def test_the_loss_without_each_block_is_paired_with_the_whole_models(runs, tmp_path):
    words = ["--images", 40, "--samples", 3, "--steps", 3, *CPU, "--out", tmp_path]
    said = succeed("evaluations.drop_blocks", runs[0], *words).out
    found = read(tmp_path / "drop_blocks.json")
    assert [row["skipped"] for row in found["rows"]] == [[], [1], [2], [3], [4]]
    assert found["rows"][0]["more"]["mean"] == 0 and "without 4" in said
    for row in found["rows"][1:]:
        more = row["mean"] - found["rows"][0]["mean"]
        assert row["more"]["mean"] == pytest.approx(more) and more != 0
    assert picture(tmp_path / "drop_blocks.png").std() > 5
    succeed("evaluations.drop_blocks", runs[0], *words, "--sets", "2,3", "--samples", 0)
    both = read(tmp_path / "drop_blocks.json")["rows"]
    assert [row["skipped"] for row in both] == [[], [2, 3]]


def test_pairs_are_ranked_by_what_the_teacher_tells_more_than_the_student():
    from evaluations.suggest_pairs import measured, ranked, suggestion

    accuracy = [0.5, 0.5, 0.6, 0.8, 0.7, 0.9]  # 6 blocks: teachers up to 4
    pairs = ranked(accuracy, tested=100_000)
    assert {pair[:2] for pair in pairs[:2]} == {(1, 4), (2, 4)}
    assert pairs[0].gap == pytest.approx(0.3) and all(pair.teacher <= 4 for pair in pairs)
    error = 2 * ((0.5 * 0.5 + 0.8 * 0.2) / 100_000) ** 0.5
    assert measured(1, 4, accuracy, 100_000).error == pytest.approx(error)
    assert suggestion(pairs, (2, 4))[:2] == (2, 4)


def test_among_pairs_that_the_error_does_not_tell_apart_the_papers_is_suggested():
    from evaluations.suggest_pairs import ranked, suggestion

    accuracy = [0.50, 0.51, 0.6, 0.8, 0.7, 0.9]
    few, many = (ranked(accuracy, tested) for tested in (100, 1_000_000))
    assert few[0][:2] == (1, 4)  # by one point of a hundred images
    assert suggestion(few, (2, 4))[:2] == (2, 4)
    assert suggestion(few, (1, 2))[:2] == (3, 4)  # the paper's is worse: the deepest student
    assert suggestion(many, (2, 4))[:2] == (1, 4)


def test_a_gap_that_few_images_do_not_tell_from_none_is_neither_advice_nor_its_absence():
    from evaluations.suggest_pairs import Pair, advice

    papers = Pair(3, 6, gap=0.0, error=0.044)
    said = advice(papers, Pair(1, 5, gap=0.054, error=0.041))
    assert "pair 1:5 has a gap" in said and "3:6: give more --images" in said
    assert "little to hand on" in advice(papers, Pair(1, 5, gap=0.04, error=0.041))
    assert "try --encoder-depth 1 --gt-encoder-depth 5" in advice(*[Pair(1, 5, 0.06, 0.01)] * 2)


def test_pairs_are_suggested_with_their_reason(runs, tmp_path):
    said = succeed("evaluations.suggest_pairs", runs[0], *CPU, "--out", tmp_path).out
    found = read(tmp_path / "pairs.json")
    best = found["suggested"]
    assert best["gap"] == pytest.approx(
        found["accuracy"][best["teacher"] - 1] - found["accuracy"][best["student"] - 1]
    )
    assert found["tested_images"] == 1297 - 2 * 1297 // 3  # what is held out stays unseen
    expected = "try --encoder-depth" if best["gap"] >= 0.05 else "little to hand on"
    assert "the paper's" in said and expected in said


def test_a_probe_of_few_images_that_lie_sorted_by_class_has_seen_all_classes(tmp_path, perturb):
    """Three classes of 70 images, each of a brightness: the last third is one of them."""
    for label, brightness in zip("abc", (20, 120, 220), strict=True):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(70):
            pixels = np.full((8, 8, 3), brightness + number % 10, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number:02d}.png")
    args = DIGITS | dict(dataset_name="folder", num_classes=3, data_path=str(tmp_path / "images"))
    path = digits_run(tmp_path / "runs", perturb, args=args, in_channels=3, num_classes=3)
    words = ["--noise", 0, "--num-workers", 0, *CPU, "--out", tmp_path]
    succeed("evaluations.suggest_pairs", path, *words)
    assert min(read(tmp_path / "pairs.json")["accuracy"]) > 0.9


def test_one_page_holds_all_and_the_ratios_are_of_the_means(runs, tmp_path):
    words = ["--against", runs[1], "--masks", "digits", "--segmentation-epochs", 1, "--epochs", 2]
    words += ["--noises", 0.5, *CPU, "--out", tmp_path]
    said = succeed("evaluations.report", runs[0], *words).out
    content = read(tmp_path / "report.json")
    first, second = (one["scores"] for one in content["networks"])
    assert set(first) == {"accuracy", "ridge", "knn", "miou"}
    for name, ratio in content["ratios"].items():
        assert ratio == pytest.approx(np.mean(first[name]) / np.mean(second[name]))
    assert f"{content['ratios']['knn'] - 1:+.1%}" in said
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and 'src="http' not in page
    assert picture(tmp_path / "curves.png").std() > 5


def test_a_report_of_another_step_is_measured_anew(perturb, tmp_path):
    """The newest checkpoint of a run is another network a day later."""
    words = ["--epochs", 1, "--noises", 0.5, *CPU, "--out", tmp_path / "out"]
    digits_run(tmp_path, perturb)
    folder = tmp_path / "000-SiT-small"
    scores = []
    for step in ("0000010", "0000020"):
        save_checkpoint(folder / "checkpoints" / f"{step}.pt", perturb, seed=int(step))
        succeed("evaluations.report", folder, *words)
        (network,) = read(tmp_path / "out" / "report.json")["networks"]
        assert network["network"].endswith(f"step {int(step)}")
        scores.append(network["scores"])
    assert scores[0] != scores[1]


def test_a_report_goes_on_with_what_is_measured_already(runs, tmp_path, monkeypatch):
    words = ["--epochs", 1, "--noises", 0.5, *CPU, "--out", tmp_path]
    succeed("evaluations.report", runs[0], *words)
    monkeypatch.setattr("evaluations.report.probed", lambda *_: pytest.fail("measured again"))
    before = (tmp_path / "index.html").read_bytes()
    succeed("evaluations.report", runs[0], *words)
    assert (tmp_path / "index.html").read_bytes() == before


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        ("classification", "gone.pt", "gone.pt does not exist"),
        ("classification", "{run} --blocks 9", "--blocks 9 does not exist: choose 1 to 4"),
        ("classification", "{run} --noise 2", "--noise 2"),
        ("classification", "{run} --epochs 0", "--epochs 0"),
        ("classification", "{run} --probe-batch 1", "--probe-batch 1: give 2 or more"),
        ("classification", "{run} --images 1", "1 images tell nothing: give 2 or more"),
        ("classification", "{run} --probe-lr nan", "--probe-lr nan"),
        ("classification", "{run} --label true --data folder --data-path . --val-path .",
         "reads samples of|no class|--image-size"),
        ("segmentation.__main__", "{run} --masks digits --label true", "the label is the null"),
        ("similarity", "{run} --against-blocks 3", "are those of --against"),
        ("report", "{run} --encoder gone.pt", "name one of timm"),
        ("maps", "{run} --noises 0.5 1.5", "--noise 1.5"),
        ("suggest_pairs", "{run} --images 20", "--images 20: give 200 or more"),
        ("classification", "{run} --data fashion-mnist", "reads samples of|--image-size 8"),
        ("classification", "{run} --label true --data digits --skip-blocks 9", "block 9 does not"),
        ("classification", "timm:nothing --data digits", "timm .* has no such network"),
        ("classification", "timm:vit_tiny_patch16_224", "--data is missing"),
        ("classification", "timm:vit_tiny_patch16_224 --data digits --encoder-weights no.pth",
         "--encoder-weights no.pth: there is no such file"),
        ("segmentation.__main__", "{run} --masks voc", "needs --masks-path FOLDER.*VOCdevkit"),
        ("segmentation.__main__", "{run} --masks voc --masks-path .", "does not hold VOCdevkit"),
        ("segmentation.__main__", "{run} --masks nothing", "choose from voc"),
        ("similarity", "{run} --pictures 3", "--pictures 3: give 4 or more"),
        ("similarity", "{run} --against gone.pt", "gone.pt does not exist"),
        ("maps", "{run} --pictures 500", "--pictures 500: choose 0 to 499"),
        ("drop_blocks", "{run} --sets 2,x", "write numbers with commas"),
        ("drop_blocks", "{run} --sets 7", "--sets: block 7 does not exist"),
        ("suggest_pairs", "{run} --blocks 2", "leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(runs, tmp_path, command, words, sentence):
    words = words.format(run=runs[0]).split()
    said = refused(f"evaluations.{command}", *words, *CPU)
    assert re.search(sentence, said), said


def test_a_network_that_has_diverged_is_named(perturb, tmp_path):
    path = digits_run(tmp_path, perturb)
    content = torch.load(path, weights_only=True)
    for value in content["ema"].values():
        value.fill_(float("nan"))
    torch.save(content, path)
    for command in ("maps", "classification", "features.__main__"):
        done = call(f"evaluations.{command}", path, *CPU, "--out", tmp_path / "out")
        said = done.err.splitlines()[-1]  # after a progress bar
        assert (
            done.code == 2
            and "Traceback" not in done.err
            and "diverged" in said
            and "000-SiT-small" in said
        )
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_every_command_looks_at_the_folder_that_the_run_was_trained_on(tmp_path, perturb):
    folder = tmp_path / "pictures"
    picture_folder(folder / "train", [("a", 100), ("b", 100)], broken="a/3.png")
    picture_folder(folder / "val", [("a", 6), ("b", 6)])
    args = DIGITS | dict(dataset_name="folder", num_classes=2, data_path=str(folder))
    args |= dict(skip_corrupt=True)
    path = digits_run(tmp_path / "runs", perturb, args=args, in_channels=3, num_classes=2)
    few = [*CPU, "--out", tmp_path / "out"]
    words = ["--epochs", 1, "--noises", 0.5, "--num-workers", 0, *few]
    said = succeed("evaluations.report", path, *words)
    assert f"skipped: {folder}/train/a/3.png" in said.err
    succeed("evaluations.drop_blocks", path, "--samples", 0, *few)
    assert read(tmp_path / "out" / "drop_blocks.json")["images"] == 12
    words = ["--probed", 200, "--dropped", 2, *CPU, "--out", tmp_path / "progress.json"]
    succeed("evaluations.progress", path.parent.parent, *words)
    (found,) = read(tmp_path / "progress.json")["checkpoints"]
    assert found["held_out"] and len(found["losses"]) == 12
    folder.rename(tmp_path / "moved")
    said = refused("evaluations.maps", path, *few)
    assert f"in {folder}, which is not here: name their folder with --data-path" in said


def test_held_out_classes_that_training_does_not_have_are_refused(runs, tmp_path, perturb):
    """The probe's folders of training and test images disagree."""
    for part, classes in (("train", "ab"), ("val", "abc")):
        picture_folder(tmp_path / part, [(name, 3) for name in classes])
    args = DIGITS | dict(dataset_name="folder")
    run = digits_run(tmp_path / "runs", perturb, args=args, in_channels=3)
    words = ["--data-path", tmp_path / "train", "--num-workers", 0, *CPU]
    said = refused("evaluations.classification", run, *words)
    assert "held" in said and "--val-path" in said
    said = refused("evaluations.classification", run, *words, "--val-path", tmp_path / "val")
    assert re.search(r"has other classes \(3\) than .* \(2\)", said)
