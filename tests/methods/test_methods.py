"""Every --loss-type in the same loop: it learns, resumes, shards and compiles."""

import json
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import domains
import training
from evaluations.extractors import classifier as classifiers
from examples import terrain
from layersync import relation, trd
from methods import METHODS, check_flags
from methods.store import FeatureStore
from models import SiT
from runtime.config import TrainConfig, parse
from runtime.errors import InputError
from runtime.presets import PRESETS
from tests.commands import assert_same_state, call, checkpoint_of, flat, launched, refused, succeed

TINY = (
    "--dataset_name digits --model SiT-Ti/4 --depth 4 --hidden-size 32 --num-heads 2 --lr 1e-3 "
    "--ema-decay 0.9 --num-workers 0 --log-every 1 --sample-every 0 --no-tensorboard --device cpu "
    "--global-batch-size 12"
).split()
ENCODER = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """What a classifier of the digits sees in them, stored."""
    folder = tmp_path_factory.mktemp("features")
    classifiers.train(domains.build("digits"), steps=5).save(folder / "clf.pt")
    store = folder / "digits"
    extractor = f"classifier:{folder / 'clf.pt'}"
    succeed("methods.features", "digits", "--extractor", extractor, "--out", store)
    return store


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny vision transformer of timm with random weights, in a file."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "vit.pth"
    torch.save(timm.create_model(ENCODER, pretrained=False).state_dict(), path)
    return path


@pytest.fixture
def flags_of(features, encoder):
    own = {
        "multiple_sync": ["--multi-blocks-match", "[(1,2),(1,3)]"],
        "repa": ["--repa-encoder", ENCODER, "--repa-weights", encoder],
        "external": ["--targets", f"[(2, {str(features)!r}, 1.0)]", "--velocity-warmup", 5],
    }
    return lambda name: [*TINY, "--loss-type", name, *own.get(name, [])]


def rows(results):
    (log,) = results.glob("*/log.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resumes_exactly_and_keeps_its_projectors_apart(tmp_path, flags_of, name):
    flags = flags_of(name)
    succeed("train", *flags, "--max-steps", 6, "--results-dir", tmp_path / "whole")
    for stop in (3, 6):
        words = ["--max-steps", stop, "--resume", "auto", "--results-dir", tmp_path / "parts"]
        watch = [] if name == "vanilla" else ["--telemetry-every", 2]
        succeed("train", *flags, *words, *watch)
    whole, parts = (checkpoint_of(tmp_path / folder, 6) for folder in ("whole", "parts"))
    assert_same_state(whole, parts)
    if name != "vanilla":
        ratios = [row["telemetry"]["grad_ratio"] for row in rows(tmp_path / "parts")
                  if "telemetry" in row]  # fmt: skip
        assert len(ratios) == 3 and all(ratio > 0 for ratio in ratios)
    (run,) = (tmp_path / "whole").iterdir()
    few = ["--num-sampling-steps", 2, "--sampling-method", "euler", "--device", "cpu"]
    succeed("sample", "--ckpt", run, *few, "--out", tmp_path / "grid.png")


@pytest.mark.parametrize("name", ["external", "sra"])
def test_two_processes_average_the_projectors_gradients(tmp_path, flags_of, name):
    """Else the ranks' projectors would drift apart, and rank 0's not be that of one process."""
    for folder, processes in (("one", 1), ("two", 2)):
        words = [*flags_of(name), "--max-steps", 4, "--results-dir", tmp_path / folder]
        launched("train", *words, processes=processes)
    one, two = (flat(checkpoint_of(tmp_path / folder, 4)) for folder in ("one", "two"))
    for key, value in one.items():
        if key.startswith(("/model/", "/regulariser/")):
            torch.testing.assert_close(value, two[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_sharded_method_equals_a_replicated_one(tmp_path, flags_of):
    name = "sra"  # the EMA model's blocks are gathered, too
    for folder, words in (("plain", []), ("shard", ["--shard"])):
        flags = [*flags_of(name), "--max-steps", 4, "--results-dir", tmp_path / folder, *words]
        launched("train", *flags, processes=2)
    plain, shard = (flat(checkpoint_of(tmp_path / folder, 4)) for folder in ("plain", "shard"))
    for key, value in plain.items():
        if key.startswith(("/model/", "/regulariser/")):
            torch.testing.assert_close(value, shard[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["dispersive", "repa", "external", "sra", "sra2"])
def test_compiled_methods_are_plain_ones(tmp_path, flags_of, name, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    for compiled in ("on", "off"):
        words = ["--max-steps", 3, "--compile", compiled, "--results-dir", tmp_path / compiled]
        succeed("train", *flags_of(name), *words)
    for one, other in zip(rows(tmp_path / "on"), rows(tmp_path / "off"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_in_bf16(tmp_path, flags_of, name):
    words = ["--max-steps", 30, "--precision", "bf16", "--log-every", 10]
    succeed("train", *flags_of(name), *words, "--results-dir", tmp_path)
    velocity = [row["velocity"] for row in rows(tmp_path)]
    assert velocity[-1] < 0.9 * velocity[0]


def test_a_term_that_starts_late_is_absent_before(tmp_path, flags_of):
    flags = [*flags_of("layer_sync"), "--max-steps", 4]
    succeed("train", *flags, "--reg-start", 2, "--results-dir", tmp_path / "late")
    assert [row["reg_weight"] for row in rows(tmp_path / "late")] == [0, 0, 0.2, 0.2]
    succeed("train", *flags_of("vanilla"), "--max-steps", 2, "--results-dir", tmp_path / "plain")
    late, plain = rows(tmp_path / "late")[:2], rows(tmp_path / "plain")
    assert [row["velocity"] for row in late] == [row["velocity"] for row in plain]


@pytest.mark.parametrize(
    ("similarity", "teacher"),
    [
        ("centred", "own"), ("centred_all", "own"), ("spatial", "own"), ("smooth_l1", "own"),
        ("relation", "own"), ("trd", "own"),
        ("cosine", "other_image"), ("centred", "random"), ("cosine", "ema"),
    ],
)  # fmt: skip
def test_every_similarity_and_every_control_runs(tmp_path, flags_of, teacher, similarity):
    words = ["--teacher", teacher, "--similarity", similarity, "--max-steps", 2]
    words += ["--reg-weight", 0.2]  # smooth_l1 has none of its own
    succeed("train", *flags_of("layer_sync"), *words, "--results-dir", tmp_path)
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path))


def test_before_the_first_step_the_ema_teacher_is_the_model_itself(tmp_path, flags_of):
    for teacher in ("own", "ema"):
        words = [*flags_of("layer_sync"), "--teacher", teacher, "--max-steps", 3]
        succeed("train", *words, "--results-dir", tmp_path / teacher)
    (first, *_, own), (again, *_, ema) = rows(tmp_path / "own"), rows(tmp_path / "ema")
    assert again["reg"] == pytest.approx(first["reg"], rel=1e-5) and ema["reg"] != own["reg"]


def test_at_some_times_the_terms_add_up_to_the_whole(tmp_path, flags_of):
    parts = {"noisier": ["--sync-t-high", 0.4], "cleaner": ["--sync-t-low", 0.4], "all": []}
    for name, words in parts.items():
        flags = [*flags_of("layer_sync"), *words, "--max-steps", 1]
        succeed("train", *flags, "--results-dir", tmp_path / name)
    noisier, cleaner, whole = (rows(tmp_path / name)[0]["reg"] for name in parts)
    assert noisier < 0 and cleaner < 0
    assert noisier + cleaner == pytest.approx(whole, rel=1e-5)


def built(model, **flags):
    return METHODS[flags.get("loss_type", "layer_sync")](
        TrainConfig(**flags), model, domains.build("digits")
    )


def test_trd_takes_its_frames_from_a_model_of_three_axes(perturb):
    video = dict(in_channels=4, hidden_size=24, depth=5, num_heads=2, num_classes=0)
    model = perturb(SiT((3, 8, 12), (1, 2, 2), **video))
    flags = dict(similarity="trd", trd_margin=0.01, trd_pool=(2, 3))
    config, method = built(model, **flags)
    assert config.reg_weight == method.regulariser.peak_weight == 0.5
    sync = method.regulariser
    blocks = model(torch.randn(2, 4, 3, 8, 12), torch.rand(2), return_blocks=sync.blocks).blocks
    student, teacher = (blocks[number] for number in sync.blocks)
    loss = trd(student, teacher, frames=3, margin=0.01, grid=(4, 6), pool=(2, 3))
    assert sync(blocks) == -loss > 1e-3
    assert not sync(blocks).isclose(-trd(student, teacher, frames=3))
    assert built(model, reg_weight=0.002, similarity="trd")[0].reg_weight == 0.002


def test_of_images_and_of_sound_trd_is_the_relation_of_one_frame(perturb):
    for axes in ((8, 12), (10,)):
        model = perturb(SiT(axes, 2, 3, hidden_size=24, depth=5, num_heads=2, num_classes=0))
        sync = built(model, similarity="trd")[1].regulariser
        blocks = model(torch.randn(2, 3, *axes), torch.rand(2), return_blocks=sync.blocks).blocks
        assert sync(blocks) == -relation(*(blocks[number] for number in sync.blocks)) > 1e-3


def test_trd_resumes_with_its_flags(tmp_path, flags_of):
    words = ["--similarity", "trd", "--trd-margin", 1e-6, "--trd-pool", 2, 1, "--resume", "auto"]
    for stop in (2, 4):
        flags = [*flags_of("layer_sync"), *words, "--max-steps", stop]
        succeed("train", *flags, "--results-dir", tmp_path)
    found = rows(tmp_path)
    assert [row["reg_weight"] for row in found] == [0.5] * 4
    assert all(np.isfinite(row["loss"]) for row in found) and found[-1]["reg"] > 0
    other = [*flags_of("layer_sync"), *words[:-4], 1, 2, *words[-2:], "--max-steps", 6]
    assert "--trd-pool (2, 1) -> (1, 2)" in refused("train", *other, "--results-dir", tmp_path)


def test_dispersive_as_its_paper_has_it_is_at_a_quarter_of_the_depth():
    """Also the baseline of the video models, of 28 and 30 blocks."""
    for depth, block in [(28, 7), (30, 7), (12, 3), (3, 1)]:
        model = SiT((2, 4, 4), 2, 3, hidden_size=12, depth=depth, num_heads=1, num_classes=0)
        config, method = built(model, loss_type="dispersive")
        assert method.regulariser.blocks == (block,) and method.regulariser.tau == 0.5
        assert (config.encoder_depth, config.reg_weight, config.disp_tau) == (block, 0.5, 0.5)


@pytest.mark.parametrize(("name", "warns"), [("dispersive", False), ("layer_sync", True)])
def test_a_term_at_its_bound_is_nothing_to_warn_of(tmp_path, flags_of, name, warns, monkeypatch):
    """Dispersive comes to rest there within a few steps, as its authors say."""
    nil = {"grad_ratio": 0.0, "unit_ratio": 0.0}
    monkeypatch.setattr(training.Trainer, "telemetry", lambda trainer: nil)
    words = ["--max-steps", 12, "--telemetry-every", 12, "--results-dir", tmp_path]
    said = succeed("train", *flags_of(name), *words).out
    assert ("moves nothing" in said) == warns


def test_features_are_of_the_image_and_of_its_mirror_image(features, monkeypatch):
    domain = domains.build("digits")
    store = FeatureStore(str(features), domain)
    classifier = classifiers.load(features.parent / "clf.pt")
    batch = domain.train_set().__getitems__(domains.Draws.plain([7, 3, 7]))
    plain = store.of(batch).float()
    torch.testing.assert_close(plain, classifier(batch.raw).pool, rtol=1e-2, atol=1e-2)
    flipped = store.of(batch._replace(flipped=torch.tensor([True, False, False]))).float()
    torch.testing.assert_close(
        flipped[0], classifier(batch.raw[:1].flip(-1)).pool[0], rtol=1e-2, atol=1e-2
    )
    assert flipped[1:].equal(plain[1:])
    assert store.of(batch._replace(flipped=None)).float().equal(plain)  # of sets that never flip


def rewritten(features, folder, values=lambda values: values, **card):
    """A copy of a store with other values or another card."""
    folder.mkdir()
    np.save(folder / "features.npy", values(np.load(features / "features.npy")))
    content = json.loads((features / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps(content | card))
    return f"[(2, {str(folder)!r}, 1.0)]"


def test_features_that_are_not_finite_are_named(features, tmp_path, flags_of):
    def damaged(values):
        values[:] = np.inf
        return values

    targets = rewritten(features, tmp_path / "store", damaged)
    words = ["--targets", targets, "--max-steps", 1, "--results-dir", tmp_path / "results"]
    said = refused("train", *flags_of("external"), *words)
    assert "the features of image" in said and "are not finite" in said
    assert not (tmp_path / "results").exists()


def test_a_run_goes_on_with_the_features_it_began_with(features, tmp_path, flags_of):
    words = ["--results-dir", tmp_path / "results", "--resume", "auto", "--resume-anyway"]
    succeed("train", *flags_of("external"), *words, "--max-steps", 1)
    targets = rewritten(features, tmp_path / "store", made_by="another network")
    said = refused("train", *flags_of("external"), *words, "--targets", targets, "--max-steps", 2)
    assert "was aligned to features of classifier" in said and "of another network" in said


def test_weight_decay_is_not_for_projectors(tmp_path, flags_of):
    """At rate 0 nothing learns; a large decay would still shrink what it is for."""
    words = ["--weight-decay", 0.5, "--max-steps", 2, "--results-dir", tmp_path]
    succeed("train", *flags_of("sra"), *words)
    groups = checkpoint_of(tmp_path, 2)["opt"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert len(groups[1]["params"]) == 4


def test_features_of_other_images_are_refused(features, tmp_path):
    card = json.loads((features / "features.json").read_text())
    for change, words in [
        ({"data_set": "0"}, "features of other samples"),
        ({"data_set": None, "count": 5}, "holds no features"),
        ({"shape": [3]}, "holds no features"),
        ({"format": "x"}, "holds no features"),
    ]:
        folder = tmp_path / "store"
        folder.mkdir(exist_ok=True)
        (folder / "features.npy").write_bytes((features / "features.npy").read_bytes())
        (folder / "features.json").write_text(json.dumps(card | change))
        with pytest.raises(InputError, match=words):
            FeatureStore(str(folder), domains.build("digits"))


def test_features_of_as_many_other_samples_of_any_modality_are_refused(features, tmp_path):
    profiles = terrain.Terrain.create("terrain")
    for number, (data_set, says) in enumerate([("0", "other samples"), (profiles.data_set, None)]):
        known = np.zeros((len(profiles.train_set()), 1, 8), np.float16)
        told = {"count": len(known), "flips": 1, "shape": [8], "data_set": data_set}
        folder = tmp_path / str(number)
        rewritten(features, folder, lambda _, known=known: known, **told)
        with pytest.raises(InputError, match=says) if says else nullcontext():
            FeatureStore(str(folder), profiles)


def test_a_card_is_of_the_values_beside_it(features, tmp_path, monkeypatch):
    """A second look that is killed before it has written its own."""
    store = tmp_path / "store"
    rewritten(features, store)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("methods.features.write_json", killed)
    extractor = f"classifier:{features.parent / 'clf.pt'}"
    call("methods.features", "digits", "--extractor", extractor, "--out", store)
    assert (store / "features.npy").exists() and not (store / "features.json").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--loss-type external", r"--targets '\[\]' names no features"),
        ("--loss-type external --targets [(2,'gone',1.0)]", "gone holds no features"),
        ("--loss-type repa --repa-encoder nothing", "timm .* has no such network"),
        ("--loss-type repa --repa-weights gone.pth", "gone.pth: there is no such file"),
        ("--loss-type repa --dataset_name synthetic --image-size 64", "holds latents"),
        ("--loss-type sra --encoder-depth 3 --gt-encoder-depth 2", "deeper than the student"),
        ("--loss-type sra --gt-encoder-depth 9", "block 9 does not exist"),
        ("--loss-type dispersive --encoder-depth 9", "block 9 does not exist"),
        ("--loss-type dispersive --disp-tau 0", "--disp-tau 0"),
        ("--loss-type layer_sync --reg-schedule stop", "needs --reg-schedule-steps"),
        ("--loss-type repa --similarity centred", "--similarity has no meaning for .* repa"),
        ("--loss-type vanilla --encoder-depth 2", "--encoder-depth has no meaning for .* vanilla"),
        ("--loss-type sra --sra-variant cos --sra-epoch-steps 3", "cos does not decay"),
        ("--similarity trd --trd-pool 3 1", "a pool of 3 x 1 does not divide a frame's 2 x 2"),
        ("--similarity trd --trd-pool 2", "--trd-pool: a pool of 2 does not divide"),
        ("--similarity relation --trd-margin 0.1", "--trd-margin has no meaning for --similarity"),
        ("--trd-pool 2 2", "--trd-pool has no meaning for --similarity cosine"),
        ("--similarity trd --trd-margin 3", "--trd-margin 3.0: give 0 to 2"),
        ("--loss-type sra --trd-margin 0.1", "--trd-margin has no meaning for .* sra"),
        ("--loss-type vanilla --telemetry-every 5", "--telemetry-every has no meaning"),
        ("--sync-tokens all", "--sync-tokens all has no meaning for --dataset_name digits, whose"),
        (
            "--loss-type multiple_sync --multi-blocks-match [(1,2)] --sync-tokens padded",
            "--sync-tokens padded has no meaning",
        ),
        ("--loss-type vanilla --sync-tokens all", "--sync-tokens has no meaning for .* vanilla"),
        ("--reg-schedule-steps 100", "--reg-schedule constant has no length"),
        ("--loss-type multiple_sync --multi-blocks-match [(1.5,3)]", "names no pairs"),
        ("--loss-type external --targets [(1.5,'x',1.0)]", "names no features"),
        ("--loss-type external --targets [(1,'x',-1.0)]", "names no features"),
        ("--loss-type external --targets [(1,'x',1e999)]", "names no features"),
        pytest.param(
            f"--loss-type external --targets [(1,'x',1{'0' * 400})]",
            "names no features",
            id="targets of a weight beyond floats",
        ),
        ("--loss-type dispersive --global-batch-size 1", "a micro-batch needs 2 or more"),
        ("--teacher other_image --grad-accum 12", "a micro-batch needs 2 or more"),
        ("--loss-type dispersive --disp-gather --grad-accum 12", "a micro-batch needs 2 or more"),
        ("--similarity smooth_l1", "smooth_l1 .* no published weight: give --reg-weight"),
        ("--sync-t-low 0.5 --sync-t-high 0.5", "--sync-t-low 0.5 leaves no time below"),
        ("--similarity trd --trd-pool 2 2 --sync-t-low 0.5", "--trd-pool takes all tokens"),
        ("--similarity centred --sync-t-high 0.5", "centred compares the images of a batch: leave"),
        ("--teacher ema --no-stop-gradient", "--no-stop-gradient has no meaning for --teacher ema"),
        ("--loss-type vanilla --sync-t-low 0.5", "--sync-t-low has no meaning for .* vanilla"),
    ],
)
def test_what_a_method_lacks_is_one_sentence(tmp_path, words, sentence):
    import re

    said = refused("train", *TINY, *words.split(), "--results-dir", tmp_path / "results")
    assert re.search(sentence, said)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("flags", "ranks"),
    [
        (dict(loss_type="dispersive", disp_gather=True), 4),
        (dict(similarity="centred_all"), 4),
        (dict(loss_type="dispersive"), 2),
        (dict(similarity="centred"), 2),
        (dict(similarity="centred_all", teacher="other_image"), 2),
    ],
)
def test_an_image_per_rank_is_enough_where_those_of_all_ranks_are_compared(flags, ranks):
    """Of a batch of 4, on so many ranks and no more."""
    model = SiT((4, 4), 2, 3, hidden_size=12, depth=5, num_heads=1, num_classes=0)
    config, _ = built(model, global_batch_size=4, max_steps=1, **flags)
    assert training.with_length(config, 10, ranks) == config
    if ranks < 4:
        with pytest.raises(InputError, match="needs 2 or more, .* gives 1"):
            training.with_length(config, 10, 4)


@pytest.mark.parametrize(
    ("similarity", "weight"), [("cosine", 0.2), ("relation", 0.5), ("trd", 0.5)]
)
def test_of_one_loss_by_two_names_the_weight_is_one(similarity, weight):
    """Of images TRD is the relation."""
    model = SiT((4, 4), 2, 3, hidden_size=12, depth=5, num_heads=1, num_classes=0)
    assert built(model, similarity=similarity)[0].reg_weight == weight


@pytest.mark.parametrize(
    ("name", "words", "note", "is_said"),
    [
        ("sra", [], "falls from epoch 150 on, with --sra-epoch-steps", True),
        ("sra", ["--sra-epoch-steps", 3], "--sra-epoch-steps", False),
        ("sra", ["--sra-variant", "cos"], "--sra-epoch-steps", False),
        ("repa", [], "note: the encoder sees 32 x 32 pixels for 2 x 2 tokens", True),
    ],
)
def test_what_a_run_does_not_take_from_the_paper_is_said_at_its_start(
    tmp_path, flags_of, name, words, note, is_said
):
    words = [*words, "--max-steps", 1, "--results-dir", tmp_path]
    assert (note in succeed("train", *flags_of(name), *words).out) == is_said


@pytest.mark.parametrize("preset", ["t1-b", "digits"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dispersive", {12: (3, 0.5), 6: (1, 0.5)}),
        ("sra", {12: (3, 0.2), 6: (1, 0.2)}),
        ("sra2", {12: (3, 1.0), 6: (1, 1.0)}),
    ],
)
def test_a_preset_of_the_paper_leaves_rivals_their_own_settings(preset, name, expected):
    words = ["--preset", preset, "--loss-type", name, "--dry-run"]
    if preset != "digits":
        words += ["--dataset_name", "synthetic"]
    lines = dict(line.split(maxsplit=1) for line in succeed("train", *words).out.splitlines())
    depth = {"t1-b": 12, "digits": 6}[preset]
    block, weight = expected[depth]
    assert (int(lines["encoder_depth"]), float(lines["reg_weight"])) == (block, weight)


@pytest.mark.parametrize("preset", ["repa-run", "sra-run", "reed-run"])
def test_the_authors_own_recipes_are_presets(preset):
    def parsed(*words):
        return parse(TrainConfig, PRESETS, ["--preset", preset, *words])

    config = parsed()
    assert (
        config.loss_type == {"repa-run": "repa", "sra-run": "sra", "reed-run": "external"}[preset]
    )
    assert (config.clip_grad_norm, config.hflip, config.vae) == (1.0, False, "mse")
    assert (config.learn_sigma, config.precision) == (False, "bf16")
    assert parsed("--loss-type", "layer_sync").reg_weight is None


def test_sra_of_the_paper_is_from_8_to_20_and_decays_by_epochs():
    words = ["--preset", "sra-run", "--num-classes", "1000", "--dry-run", "--device", "cpu"]
    lines = dict(line.split(maxsplit=1) for line in succeed("train", *words).out.splitlines())
    assert (lines["encoder_depth"], lines["gt_encoder_depth"]) == ("8", "20")
    assert (lines["reg_weight"], lines["sra_epoch_steps"]) == ("0.2", "5004")


@pytest.mark.parametrize(
    ("preset", "method"),
    [("sra-run", "vanilla"), ("sra-run", "repa"), ("reed-run", "layer_sync"),
     ("t6", "multiple_sync"), ("t6", "vanilla"), ("repa-run", "sra")],
)  # fmt: skip
def test_a_recipe_is_a_baseline_for_every_method(preset, method):
    """What a preset says of its own method is not held against another."""
    config = parse(TrainConfig, PRESETS, ["--preset", preset, "--loss-type", method])
    check_flags(config)
    assert config.model == PRESETS[preset]["model"]


def test_a_foreign_flag_is_refused_before_a_network_is_made(monkeypatch):
    """Which may take minutes, and a download."""
    monkeypatch.setattr(training.parts, "create", lambda *args, **kwargs: pytest.fail("was made"))
    config = parse(TrainConfig, PRESETS, [*TINY, "--loss-type", "vanilla", "--teacher", "random"])
    with pytest.raises(InputError, match="--teacher has no meaning"):
        training.build(config, torch.device("cpu"))


def test_tokens_of_another_grid_are_refused(features, encoder, tmp_path):
    words = ["digits", "--encoder", ENCODER, "--weights", encoder, "--grid", 3, "--device", "cpu"]
    succeed("methods.features", *words, "--out", tmp_path / "store")
    target = f"[(2, {str(tmp_path / 'store')!r}, 1.0)]"
    words = ["--targets", target, "--max-steps", 1, "--results-dir", tmp_path / "results"]
    said = refused("train", *TINY, "--loss-type", "external", *words)
    assert "has 9 tokens per image, and the model 4" in said and "--grid 2" in said
    assert not (tmp_path / "results").exists()


def test_tokens_of_images_alone_are_for_runs_that_mirror_none(encoder, tmp_path):
    """Of REPA's recipe on ImageNet half a terabyte instead of one."""
    pixels = np.random.RandomState(0).randint(0, 255, (12, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "images" / "only").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / "only" / f"{number:02d}.png")
    data = ["--data-path", tmp_path / "images", "--image-size", 8]
    made = ["folder", *data, "--encoder", ENCODER, "--weights", encoder, "--grid", 2]
    made += ["--num-workers", 0]
    for store, words in (("both", []), ("alone", ["--no-flip"])):
        succeed("methods.features", *made, *words, "--device", "cpu", "--out", tmp_path / store)
    both, alone = (np.load(tmp_path / store / "features.npy") for store in ("both", "alone"))
    assert alone.shape == (12, 1, 4, 192) and np.array_equal(alone[:, 0], both[:, 0])

    target = f"[(2, {str(tmp_path / 'alone')!r}, 1.0)]"
    train = [*TINY, "--dataset_name", "folder", *data, "--vae", "none", "--max-steps", 1]
    train += ["--loss-type", "external", "--targets", target, "--results-dir", tmp_path / "results"]
    said = refused("train", *train)
    assert "alone has no tokens of mirror images: train with --no-hflip, or" in said
    succeed("train", *train, "--no-hflip")
    vectors = ["folder", *data, "--extractor", "inception", "--no-flip", "--out", tmp_path / "x"]
    assert "--no-flip is for the tokens of --encoder" in refused("methods.features", *vectors)


def test_a_run_without_projectors_is_not_resumed_with_them(tmp_path, flags_of):
    words = ["--results-dir", tmp_path, "--resume", "auto"]
    succeed("train", *flags_of("vanilla"), *words, "--max-steps", 1)
    said = refused("train", *flags_of("sra"), *words, "--max-steps", 2, "--resume-anyway")
    assert "head.0.weight" in said


def test_the_gradient_ratio_is_that_of_the_model(tmp_path, flags_of):
    """The projectors have a gradient of one term alone."""
    words = ["--max-steps", 1, "--telemetry-every", 1, "--results-dir", tmp_path]
    succeed("train", *flags_of("sra2"), *words)
    (row,) = [row for row in rows(tmp_path) if "telemetry" in row]
    from runtime.distributed import Ranks

    config = parse(TrainConfig, PRESETS, [str(w) for w in [*flags_of("sra2"), *words]])
    alone = Ranks(0, 1, torch.device("cpu"))
    trainer = training.Trainer(*training.build(config, alone.device), alone)
    draws = domains.order.GlobalBatches(1297, 12, seed=0, start=0, stop=2, rank=0, ranks=1)
    trainer.step(iter([trainer.domain.train_set().__getitems__(next(iter(draws)))]))
    ratio = trainer.telemetry()["grad_ratio"]
    assert ratio == pytest.approx(row["telemetry"]["grad_ratio"], rel=1e-4)
    assert not any(p.grad is not None for p in trainer.model.parameters())


def test_stored_tokens_are_those_that_repa_computes_in_the_loop(tmp_path, encoder):
    from methods.encoders import EncoderTargets

    words = ["digits", "--encoder", ENCODER, "--weights", encoder, "--grid", 2, "--device", "cpu"]
    succeed("methods.features", *words, "--out", tmp_path / "store")
    domain = domains.build("digits")
    store = FeatureStore(str(tmp_path / "store"), domain)
    assert store.kind == "tokens" and store.card.shape == (4, 192)
    batch = domain.train_set().__getitems__(domains.Draws.plain([5, 900]))
    (expected,) = EncoderTargets(ENCODER, str(encoder), (2, 2), domain)(batch)
    torch.testing.assert_close(store.of(batch).float(), expected, rtol=1e-2, atol=1e-2)
    target = f"[(2, {str(tmp_path / 'store')!r}, 1.0)]"
    train = [*TINY, "--loss-type", "external", "--targets", target, "--max-steps", 2]
    succeed("train", *train, "--results-dir", tmp_path / "results")
    said = refused("methods.features", "digits", "--out", tmp_path / "x")
    assert "--extractor for vectors or --encoder for tokens" in said
