"""The Inception against the unmodified ADM evaluator (golden/), and against torch-fidelity.

golden/adm_evaluator.json holds what guided-diffusion's evaluator.py gave on TensorFlow with the
weights and images of golden_inputs.py.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluations.extractors import Features, inception, open_extractor
from evaluations.extractors.inception import Inception, resize
from evaluations.metrics import Moments, frechet_distance
from runtime.errors import InputError
from runtime.files import sha256_of
from tests.commands import succeed
from tests.evaluations import golden_inputs

FOLDER = Path(__file__).parent / "golden"
GOLDEN = json.loads((FOLDER / "adm_evaluator.json").read_text())
SHAPES = json.loads((FOLDER / "inception_parameters.json").read_text())


def golden_images(side):
    return torch.from_numpy(golden_inputs.images(**GOLDEN[side])).permute(0, 3, 1, 2)


@pytest.fixture(scope="session")
def state():
    return {k: torch.from_numpy(v) for k, v in golden_inputs.weights(SHAPES).items()}


@pytest.fixture(scope="session")
def weights_file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state, path)
    return path


def opened(path, **options):
    return open_extractor("inception", torch.device("cpu"), weights=path, **options)


@pytest.fixture(scope="session")
def extractor(weights_file):
    return opened(weights_file, allow_unverified=True)


@pytest.fixture(scope="session")
def features(extractor):
    """Of all golden images: {"ref": Features, "sample": Features}."""

    def read(images):
        parts = [extractor(part) for part in images.split(32)]
        pool, spatial, _ = zip(*parts, strict=True)
        return Features(torch.cat(pool), torch.cat(spatial))

    return {side: read(golden_images(side)) for side in ("ref", "sample")}


def inception_score(probabilities, split=5000):
    p = probabilities.double()
    scores = [
        (part * (part.log() - part.mean(0).log())).sum(1).mean().exp() for part in p.split(split)
    ]
    return torch.stack(scores).mean().item()


def compare_activations(first, last):
    """Features of the first reference and of the last sample, of which ADM's are stored in part.

    The first values come from a block's first branch, the last ones from its pooled branch."""
    for called, ours, stored in (
        ("pool", first.pool[0, :8], "ref_pool_0_0_8"),
        ("spatial", first.spatial[0, :14], "ref_spatial_0_0_14"),
        ("pool", last.pool[-1, -4:], "sample_pool_95_last4"),
        ("spatial", last.spatial[-1, -7:], "sample_spatial_95_last7"),
    ):
        np.testing.assert_allclose(ours, GOLDEN[stored], rtol=1e-4, err_msg=f"golden {called}")


def compare_score(probabilities, stored, split=5000):
    np.testing.assert_allclose(
        inception_score(probabilities, split), stored, rtol=1e-5, err_msg="golden score"
    )


def test_activations_are_those_of_adm(features):
    compare_activations(features["ref"], features["sample"])
    for key, side, kind in (
        ("rp", "ref", "pool"), ("rsp", "ref", "spatial"),
        ("sp", "sample", "pool"), ("ssp", "sample", "spatial"),
    ):  # fmt: skip
        total = getattr(features[side], kind).double().sum().item()
        assert total == pytest.approx(GOLDEN["sums"][key], rel=1e-6)


def test_the_inception_score_is_that_of_adm(extractor, features):
    pool = features["sample"].pool
    compare_score(extractor.probabilities(pool), GOLDEN["inception_score_split5000"])
    compare_score(extractor.probabilities(pool), GOLDEN["inception_score_split50"], split=50)
    small = pool[: GOLDEN["small"]["sample"]["count"]]
    compare_score(extractor.probabilities(small), GOLDEN["small"]["inception_score"])


@pytest.mark.parametrize("stored", [GOLDEN, GOLDEN["small"]], ids=["all", "small"])
@pytest.mark.parametrize(("distance", "kind"), [("fid", "pool"), ("sfid", "spatial")])
def test_fid_and_sfid_are_those_of_adm(features, stored, distance, kind):
    ref, sample = (
        Moments.of(getattr(features[side], kind)[: stored[side]["count"]])
        for side in ("ref", "sample")
    )
    assert frechet_distance(ref, sample) == pytest.approx(stored[distance], rel=2e-5)


def test_the_command_scores_files_as_adm_does(weights_file, tmp_path):
    stored = GOLDEN["small"]
    for side in ("ref", "sample"):
        np.savez(tmp_path / f"{side}.npz", arr_0=golden_inputs.images(**stored[side]))
    words = ["--inception-weights", weights_file, "--allow-unverified-weights", "--device", "cpu"]
    succeed("evaluations.images.__main__", tmp_path / "ref.npz", tmp_path / "sample.npz", *words)
    found = json.loads((tmp_path / "sample.score.json").read_text())
    scores = found["scores"]
    for distance in ("fid", "sfid"):
        assert scores[distance] == pytest.approx(stored[distance], rel=2e-5)
    assert scores["inception_score"] == pytest.approx(stored["inception_score"], rel=1e-5)
    assert found["how"]["precision_recall"] == {"k": 3, "distances": "half"}
    assert found["extractor"] == {"name": inception.NAME, "sha256": sha256_of(weights_file)}


def half_pixel(before, after, device):
    source = ((torch.arange(after) + 0.5) * before / after - 0.5).clamp(min=0)
    low = source.long()
    return low, (low + 1).clamp(max=before - 1), source - low


def padded_mean(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1)


def with_bias(self, pool):
    return self.network.fc(pool).softmax(dim=1)


@pytest.mark.parametrize(
    ("place", "name", "mistake", "caught"),
    [
        (Inception, "probabilities", with_bias, "score"),
        (inception, "positions", half_pixel, "pool"),
        (inception, "average_pool", padded_mean, "pool"),
        (inception, "max_pool", inception.average_pool, "pool"),
        (inception, "flat", lambda x: x.flatten(1), "spatial"),
    ],
    ids=["bias", "half-pixel", "padded mean", "mean in 7c", "NCHW"],
)
def test_a_known_mistake_is_caught(
    weights_file, features, monkeypatch, place, name, mistake, caught
):
    def compare(extractor):
        compare_activations(
            extractor(golden_images("ref")[:1]), extractor(golden_images("sample")[-1:])
        )
        small = features["sample"].pool[: GOLDEN["small"]["sample"]["count"]]
        compare_score(extractor.probabilities(small), GOLDEN["small"]["inception_score"])

    compare(opened(weights_file, allow_unverified=True))
    monkeypatch.setattr(place, name, mistake)
    with pytest.raises(AssertionError, match=f"golden {caught}"):
        compare(opened(weights_file, allow_unverified=True))


@pytest.fixture(scope="session")
def oracle(weights_file):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    return fidelity.FeatureExtractorInceptionV3(
        "oracle", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights_file)
    )


def test_features_are_those_of_torch_fidelity_at_any_size(extractor, oracle):
    seen = []
    hook = oracle.Mixed_6d.branch1x1.register_forward_hook(lambda *call: seen.append(call[-1]))
    for height, width in ((32, 32), (48, 80), (256, 256), (299, 299), (512, 512)):
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        pool, logits = oracle(images)
        ours = extractor(images)
        spatial = seen.pop()[:, :7].permute(0, 2, 3, 1).flatten(1)
        for mine, theirs in (
            (ours.pool, pool),
            (ours.spatial, spatial),
            (extractor.probabilities(ours.pool), logits.softmax(1)),
        ):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    hook.remove()


def test_the_resize_is_that_of_tensorflow_bit_for_bit():
    tensorflow = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    for height, width in ((1, 1), (8, 8), (28, 31), (64, 64), (299, 299), (301, 512)):
        images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
        theirs = tensorflow.interpolate_bilinear_2d_like_tensorflow1x(
            images.float(), size=(299, 299), align_corners=False
        )
        assert resize(images, 299).equal(theirs)


def test_the_parameters_have_the_published_names_and_shapes(extractor):
    shapes = {k: list(v.shape) for k, v in extractor.network.state_dict().items()}
    assert shapes == SHAPES and len(shapes) == 472


def test_it_is_an_extractor(extractor, weights_file):
    assert extractor.name == "inception-2015-12-05" and extractor.half_distances
    assert extractor.fingerprint == sha256_of(weights_file)
    pool, spatial, _ = extractor(torch.zeros(2, 3, 9, 9, dtype=torch.uint8))
    assert pool.shape == (2, 2048) and spatial.shape == (2, 2023)
    assert pool.dtype == spatial.dtype == torch.float32 and not pool.requires_grad
    total = extractor.probabilities(pool).sum(1)
    torch.testing.assert_close(total, torch.ones(2))


def test_a_grey_image_counts_as_three_equal_channels(extractor):
    grey = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    assert extractor(grey).pool.equal(extractor(grey.repeat(1, 3, 1, 1)).pool)
    with pytest.raises(InputError, match="grey or color images, not 4 channels"):
        extractor(grey.expand(-1, 4, -1, -1))


SWITCHES = (
    torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn,
    torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn,
)  # fmt: skip


def precisions():
    return [switch.fp32_precision for switch in SWITCHES]


@pytest.fixture
def settings():
    """Puts back what a test sets of torch's precision."""
    before, matmul = precisions(), torch.get_float32_matmul_precision()
    yield
    for switch in SWITCHES:
        switch.fp32_precision = "ieee"
    torch.set_float32_matmul_precision(matmul)
    for switch, precision in zip(SWITCHES, before, strict=True):
        switch.fp32_precision = precision


@pytest.mark.parametrize("legacy", ["highest", "high", "medium"])
@pytest.mark.parametrize("switch", [None, *range(len(SWITCHES))])
def test_it_computes_in_float32_and_puts_the_settings_back(extractor, settings, legacy, switch):
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    plain, inside = extractor(image), []
    torch.set_float32_matmul_precision(legacy)
    if switch is not None:
        SWITCHES[switch].fp32_precision = "tf32"
    before, random = precisions(), torch.get_rng_state()
    hook = extractor.network.register_forward_hook(
        lambda *_: inside.append((torch.is_grad_enabled(), *precisions()))
    )
    with torch.autocast("cpu", torch.bfloat16):
        features = extractor(image)
        assert torch.is_autocast_enabled("cpu")
    hook.remove()
    assert inside == [(False, *["ieee"] * len(SWITCHES))] and torch.is_grad_enabled()
    assert features.pool.equal(plain.pool) and features.spatial.equal(plain.spatial)
    with pytest.raises(InputError):
        extractor(torch.zeros(1, 2, 8, 8, dtype=torch.uint8))
    assert precisions() == before and torch.get_rng_state().equal(random)
    if switch is None:  # else torch will not say
        assert torch.get_float32_matmul_precision() == legacy


def test_loading_draws_no_random_numbers(weights_file):
    before = torch.get_rng_state()
    opened(weights_file, allow_unverified=True)
    assert torch.get_rng_state().equal(before)


# Our names -> those of OpenAI's file, by name and not by order, which is how the code does it.
BLOCKS = {
    "Conv2d_1a_3x3": "conv", "Conv2d_2a_3x3": "conv_1", "Conv2d_2b_3x3": "conv_2",
    "Conv2d_3b_1x1": "conv_3", "Conv2d_4a_3x3": "conv_4", "Mixed_5b": "mixed",
    "Mixed_5c": "mixed_1", "Mixed_5d": "mixed_2", "Mixed_6a": "mixed_3", "Mixed_6b": "mixed_4",
    "Mixed_6c": "mixed_5", "Mixed_6d": "mixed_6", "Mixed_6e": "mixed_7", "Mixed_7a": "mixed_8",
    "Mixed_7b": "mixed_9", "Mixed_7c": "mixed_10",
}  # fmt: skip
IN_5_AND_6 = {
    "branch1x1": "conv", "branch5x5_1": "tower.conv", "branch5x5_2": "tower.conv_1",
    "branch3x3dbl_1": "tower_1.conv", "branch3x3dbl_2": "tower_1.conv_1",
    "branch3x3dbl_3": "tower_1.conv_2", "branch7x7_1": "tower.conv", "branch7x7_2": "tower.conv_1",
    "branch7x7_3": "tower.conv_2", "branch7x7dbl_1": "tower_1.conv",
    "branch7x7dbl_2": "tower_1.conv_1", "branch7x7dbl_3": "tower_1.conv_2",
    "branch7x7dbl_4": "tower_1.conv_3", "branch7x7dbl_5": "tower_1.conv_4",
    "branch_pool": "tower_2.conv",
}  # fmt: skip
IN_7 = {
    "branch1x1": "conv", "branch3x3_1": "tower_conv", "branch3x3_2a": "tower_mixed_conv",
    "branch3x3_2b": "tower_mixed_conv_1", "branch3x3dbl_1": "tower_1_conv",
    "branch3x3dbl_2": "tower_1_conv_1", "branch3x3dbl_3a": "tower_1_mixed_conv",
    "branch3x3dbl_3b": "tower_1_mixed_conv_1", "branch_pool": "tower_2_conv",
}  # fmt: skip
UNITS = {block: IN_5_AND_6 for block in BLOCKS} | {
    "Mixed_6a": {
        "branch3x3": "conv", "branch3x3dbl_1": "tower.conv", "branch3x3dbl_2": "tower.conv_1",
        "branch3x3dbl_3": "tower.conv_2",
    },
    "Mixed_7a": {
        "branch3x3_1": "tower.conv", "branch3x3_2": "tower.conv_1",
        "branch7x7x3_1": "tower_1.conv", "branch7x7x3_2": "tower_1.conv_1",
        "branch7x7x3_3": "tower_1.conv_2", "branch7x7x3_4": "tower_1.conv_3",
    },
    "Mixed_7b": IN_7,
    "Mixed_7c": IN_7,
}  # fmt: skip
TENSORS = {
    "conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean", "bn.running_var": "var",
}  # fmt: skip


def openai_name(name):
    if name.startswith("fc."):
        return name.replace("fc", "output")
    place, *kind = name.rsplit(".", 2)
    block, *unit = place.split(".")
    units = [UNITS[block][u] for u in unit]
    return ".".join(["layers", BLOCKS[block], *units, TENSORS[".".join(kind)]])


def test_openai_s_layout_gives_the_same_network(state, extractor, tmp_path):
    theirs = {openai_name(k): v for k, v in state.items() if not k.endswith("bn.weight")}
    assert len(theirs) == 94 * 4 + 2 and "layers.mixed_6.conv.beta" in theirs
    torch.save(dict(sorted(theirs.items())), tmp_path / "inception-2015-12-05.pt")
    other = opened(tmp_path / "inception-2015-12-05.pt", allow_unverified=True)
    ours = extractor.network.state_dict()
    assert all(v.equal(ours[k]) for k, v in other.network.state_dict().items())
    for change in (
        lambda s: s.pop("layers.mixed_6.conv.beta"),
        lambda s: s.update({"layers.mixed_11.conv.beta": torch.zeros(1)}),
    ):
        wrong = dict(theirs)
        change(wrong)
        torch.save(wrong, tmp_path / "wrong.pt")
        with pytest.raises(InputError, match="these are no weights of inception-2015-12-05"):
            opened(tmp_path / "wrong.pt", allow_unverified=True)


def test_legacy_files_and_counts_of_batches_load(state, extractor, tmp_path):
    path = tmp_path / "legacy.pth"
    counted = state | {"Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(0)}
    torch.save(counted, path, _use_new_zipfile_serialization=False)
    other = opened(path, allow_unverified=True)
    assert other.network.fc.bias.equal(extractor.network.fc.bias)


@pytest.mark.parametrize("file", inception.FILES)
def test_a_file_of_either_release_is_found_and_verified(weights_file, tmp_path, monkeypatch, file):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / file).symlink_to(weights_file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=f"{file}: its SHA-256 is .*--allow-unverified-weights"):
        opened(None)
    monkeypatch.setattr(inception, "SHA256", sha256_of(weights_file))
    assert opened(None).fingerprint == inception.SHA256


def test_absent_weights_are_one_sentence_that_says_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError) as error:
        opened(None)
    sentence, folder = str(error.value), tmp_path / "hub" / "checkpoints"
    for words in (
        str(folder / "weights-inception-2015-12-05-6726825d.pth"),
        str(folder / "pt_inception-2015-12-05-6726825d.pth"),
        "--inception-weights FILE",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        "pytorch-fid", "torch-fidelity", "--extractor classifier:FILE",
    ):  # fmt: skip
        assert words in sentence
    assert "\n" not in sentence
    with pytest.raises(InputError, match="looked for .*nowhere.pth; give"):
        opened(tmp_path / "nowhere.pth")


def test_a_file_that_is_no_inception_is_refused_and_not_run(state, tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"fc.weight": Payload()}, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": 1}, tmp_path / "other.pth")
    torch.save({"fc.bias": state["fc.bias"]}, tmp_path / "part.pth")
    torch.save(state | {"fc.bias": torch.zeros(1000)}, tmp_path / "shape.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_bytes(b"hello")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "shape.pth").read_bytes()[:2000])
    (tmp_path / "classify_image_graph_def.pb").write_bytes(b"\n\x2a\n\x03abc")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("inception/constants.pkl", b"")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    words = {
        "code.pth": "it holds code",
        "classify_image_graph_def.pb": "GraphDef .*util_convert_inception_weights.py",
        "script.pt": "TorchScript",
    }
    for path in files:
        with pytest.raises(InputError, match=words.get(path.name, "no weights of")) as error:
            opened(path, allow_unverified=True)
        sentence = str(error.value)
        assert str(path) in sentence and "\n" not in sentence and len(sentence) < 600
    assert not (tmp_path / "executed").exists()
    with pytest.raises(InputError, match="SHA-256"):
        opened(tmp_path / "code.pth")
    assert not (tmp_path / "executed").exists()
