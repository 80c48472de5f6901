"""FVD: a scripted stub with the interface of StyleGAN-V's I3D file, and clips in .npz files."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import domains
from evaluations.extractors import i3d, open_extractor
from evaluations.extractors.classifier import Classifier, SmallCNN
from evaluations.extractors.extractor import as_color
from evaluations.images.sources import NpzImages, open_images
from evaluations.metrics import Moments, frechet_distance
from runtime.errors import InputError
from tests.commands import refused, succeed
from tests.ssv2 import write_ssv2

SCORE = "evaluations.images.__main__"
CPU = ["--device", "cpu", "--num-workers", 0]


class Stub(nn.Module):
    """Called as the file is; 6 features that see colors, places and time."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False,
        return_features: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        if not (rescale and resize and return_features):
            return torch.zeros(x.shape[0], 1)
        x = x / 255
        colors = x.mean(dim=(2, 3, 4))
        last = x[:, :, -1].mean(dim=(2, 3)) - x[:, :, 0].mean(dim=(2, 3))
        return torch.cat([colors, last], dim=1)


class Silent(nn.Module):
    def forward(
        self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool
    ) -> torch.Tensor:
        return x


class Raises(nn.Module):
    def forward(
        self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool
    ) -> torch.Tensor:
        raise ValueError("not today")
        return x


def saved(network, path):
    torch.jit.save(torch.jit.script(network), str(path))
    return path


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    return saved(Stub(), tmp_path_factory.mktemp("i3d") / "stub.pt")


def opened(path):
    return open_extractor(f"i3d:{path}", torch.device("cpu"), allow_unverified=True)


def clips(count, brightness, seed=0, frames=12):
    random = np.random.RandomState(seed)
    levels = (
        random.normal(brightness, 25, (count, 1, 1, 1, 3)) + np.arange(frames)[:, None, None, None]
    )
    noise = random.normal(0, 10, (count, frames, 8, 8, 3))
    return (levels + noise).clip(0, 255).astype(np.uint8)


def test_fvd_is_the_frechet_distance_of_what_the_file_gives(stub, tmp_path):
    real, drawn = clips(60, 100), clips(50, 140, seed=1)
    for name, arrays in (("real", real), ("drawn", drawn)):
        np.savez(tmp_path / f"{name}.npz", arr_0=arrays)
    words = ["--extractor", f"i3d:{stub}", "--allow-unverified-weights", *CPU]
    said = succeed(SCORE, tmp_path / "real.npz", tmp_path / "drawn.npz", *words).out
    found = json.loads((tmp_path / "drawn.score.json").read_text())

    def moments(arrays):
        x = torch.from_numpy(arrays).permute(0, 4, 1, 2, 3).float()
        return Moments.of(Stub()(x, True, True, True))

    expected = frechet_distance(moments(drawn), moments(real))
    assert found["scores"]["fvd"] == pytest.approx(expected, rel=1e-4) and expected > 0.05
    assert "FVD" in said and "12 frames of 8 x 8 pixels" in said and "kvd" in found["scores"]
    assert found["clips"] == {"frames": 12, "height": 8, "width": 8, "frame_stride": None}
    assert found["extractor"]["name"].startswith("i3d") and len(found["extractor"]["sha256"]) == 64
    assert (tmp_path / "drawn.score.png").stat().st_size > 2000


def test_results_of_other_clips_are_not_compared(stub, tmp_path):
    words = ["--extractor", f"i3d:{stub}", "--allow-unverified-weights", *CPU]
    for frames in (12, 11):
        arrays = clips(20, 100, frames=frames)
        np.savez(tmp_path / f"{frames}.npz", arr_0=arrays)
        succeed(SCORE, tmp_path / f"{frames}.npz", tmp_path / f"{frames}.npz", *words)
    both = [tmp_path / "12.score.json", tmp_path / "11.score.json"]
    assert "clips" in refused(SCORE, "--compare", *both)


@pytest.fixture(scope="module")
def ssv2(tmp_path_factory):
    pytest.importorskip("av")
    captions = {"validation": [f"holding a cup {number}" for number in range(9)]}
    return write_ssv2(tmp_path_factory.mktemp("ssv2"), frames=16, captions=captions)


def real_clips(root, path, **flags):
    """Held-out clips in oblong frames as samples, with the protocol that sample_ddp.py writes."""
    shape = dict(image_size=(24, 40), num_frames=11) | flags
    domain = domains.build("ssv2", data_path=str(root), vae="none", **shape)
    numbers = domains.held_out_order(9)[:5]
    raw = domain.held_out_set().__getitems__(domains.Draws.plain(numbers)).checked().raw
    np.savez(path, arr_0=domain.arrays(raw))
    protocol = {"sampler": {}, "frame_stride": domain.frame_stride}
    path.with_suffix(".json").write_text(json.dumps(protocol))
    return path


def test_real_clips_as_samples_score_nothing_beside_as_many_held_out_ones(stub, ssv2, tmp_path):
    samples = real_clips(ssv2, tmp_path / "x.npz", frame_stride=1)
    words = ["--extractor", f"i3d:{stub}", "--allow-unverified-weights", *CPU, "--data-path", ssv2]
    succeed(SCORE, "ssv2", samples, "--held-out", *words)
    found = json.loads((tmp_path / "x.score.json").read_text())
    assert abs(found["scores"]["fvd"]) < 1e-6
    assert found["reference"]["images"] == found["images"] == 5
    assert found["clips"] == {"frames": 11, "height": 24, "width": 40, "frame_stride": 1}


def test_clips_of_another_shape_or_stride_are_not_scored(stub, ssv2, tmp_path):
    samples = real_clips(ssv2, tmp_path / "x.npz", frame_stride=2, num_frames=6)
    words = ["--extractor", f"i3d:{stub}", "--allow-unverified-weights", *CPU]
    real = ["ssv2", samples, "--held-out", "--data-path", ssv2]
    said = refused(SCORE, *real, *words, "--image-size", 24)
    assert "x.npz has clips of 6 frames of 24 x 40 pixels" in said and "24 x 24" in said
    said = refused(SCORE, *real, *words, "--frame-stride", 1)
    assert "--frame-stride 1: the samples have 2, leave it out" in said
    arrays = np.load(samples)["arr_0"]
    np.savez(tmp_path / "real.npz", arr_0=arrays, frame_stride=np.array(3))
    said = refused(SCORE, tmp_path / "real.npz", samples, *words)
    assert "every 3. frame of its videos, and the samples every 2." in said


def test_as_many_of_the_held_out_clips_are_looked_at_as_there_are_samples(ssv2):
    flags = dict(data_path=str(ssv2), image_size=16, num_frames=4, held_out=1)
    (one,) = open_images("ssv2", **flags).images.numbers
    assert one == domains.held_out_order(9)[0]


def test_grey_clips_are_seen_as_color(stub):
    grey = torch.randint(0, 256, (2, 1, 10, 8, 8), dtype=torch.uint8)
    extractor = opened(stub)
    assert torch.equal(extractor(grey).pool, extractor(grey.expand(-1, 3, -1, -1, -1)).pool)


def test_clips_of_an_npz_are_read_in_order(tmp_path):
    arrays = np.random.RandomState(0).randint(0, 256, (7, 4, 6, 5, 3), np.uint8)
    np.savez(tmp_path / "x.npz", arr_0=arrays, arr_1=np.arange(7))
    images = NpzImages(tmp_path / "x.npz")
    assert len(images) == 7 and images.shape == (3, 4, 6, 5)
    raw, y = (torch.cat(parts) for parts in zip(*images.blocks(range(2, 7), 3), strict=True))
    assert np.array_equal(raw.permute(0, 2, 3, 4, 1), arrays[2:]) and y.tolist() == [2, 3, 4, 5, 6]


# The file is a program


def test_another_file_than_the_published_one_is_not_run(stub, tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=clips(4, 100))
    words = [tmp_path / "x.npz", tmp_path / "x.npz", *CPU]
    said = refused(SCORE, *words, "--extractor", f"i3d:{stub}")
    assert "is not the published i3d_torchscript.pt" in said and "it is a program" in said
    said = refused(SCORE, *words, "--extractor", "i3d:nowhere.pt")
    assert "i3d:nowhere.pt: there is no such file; give StyleGAN-V's i3d_torchscript.pt" in said


def test_the_published_file_needs_no_flag(stub, monkeypatch):
    monkeypatch.setattr(i3d, "SHA256", i3d.sha256_of(stub))
    assert open_extractor(f"i3d:{stub}", torch.device("cpu")).fingerprint == i3d.SHA256


@pytest.mark.parametrize("network", [Silent(), Raises(), nn.Linear(2, 2)])
def test_a_program_that_is_no_i3d_is_refused(network, tmp_path):
    with pytest.raises(InputError, match="other.pt is no I3D"):
        opened(saved(network, tmp_path / "other.pt"))


def test_a_file_that_is_no_program_is_refused(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("text")
    for name in ("state.pt", "text.pt"):
        with pytest.raises(InputError, match=f"{name} is no I3D"):
            opened(tmp_path / name)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2, 3, 8, 8), r"sees clips, and these are \(3, 8, 8\)"),
        ((2, 3, 9, 8, 8), "sees 10 frames or more, and these clips have 9"),
    ],
)
def test_what_i3d_cannot_see_is_one_sentence(stub, shape, sentence):
    with pytest.raises(InputError, match=sentence):
        opened(stub)(torch.zeros(shape, dtype=torch.uint8))


def test_extractors_of_images_do_not_take_clips():
    config = dict(channels=1, num_classes=2, image_size=8)
    classifier = Classifier(SmallCNN(**config), config, "digits", 0.9)
    clip = torch.zeros(2, 1, 4, 8, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match=r"trained on images of \(1, 8, 8\)"):
        classifier(clip)
    with pytest.raises(InputError, match="reads images, and these are"):
        as_color(clip, "inception")
