"""Clips of real mp4 and webm files: which frames, how they are cropped, encoded and refused."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("av")

import av

import domains
from domains import Draws, NoHeldOut
from domains.clips import Cut, decoded, save_clips, strips, whole, write_mp4
from domains.codecs import VAECodec
from domains.decoding import Unreadable, center_crop
from domains.video import read_ssv2
from runtime.errors import InputError
from tests.domains.music import tone, write_mp3
from tests.domains.videos import (
    frames_of,
    hide,
    numbers_in,
    write_clevrer,
    write_numbered_ssv2,
    write_video,
)

CUT = Cut(frames=16, stride=3, size=(16, 16))  # 46 frames from first to last
GAP = (255, 255)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_clevrer(tmp_path_factory.mktemp("clevrer"))


@pytest.fixture(scope="module", params=["something-something-v2-{}.json", "labels/{}.json"])
def ssv2(request, tmp_path_factory):
    return write_numbered_ssv2(tmp_path_factory.mktemp("ssv2"), request.param)


def clevrer(root, **flags):
    return domains.build("clevrer", **dict(data_path=str(root), vae="none", image_size=16) | flags)


# Clips


def test_a_clip_is_every_third_frame_from_where_its_place_says(root):
    path = next(root.rglob("video_00000.mp4"))
    for place, first in ((0.0, 0), (0.5, 2), (0.999, 4)):  # 50 frames have room for 5 starts
        clip = decoded(path, CUT, place=place)
        assert clip.shape == (3, 16, 16, 16) and clip.dtype == np.uint8
        assert numbers_in(clip) == list(range(first, first + 46, 3))


def test_a_draw_decides_its_clip_alone(root):
    clips = clevrer(root).train_set()
    draws = Draws(np.array([1, 1, 3, 1, 0]), np.array([5, 6, 5, 7, 8]))
    one, other = (clips.__getitems__(draws).checked() for _ in range(2))
    assert torch.equal(one.raw, other.raw) and one.index.tolist() == [1, 1, 3, 1, 0]
    reordered = clips.__getitems__(Draws(draws.index[::-1].copy(), draws.seed[::-1].copy()))
    assert torch.equal(one.raw, reordered.raw.flip(0))
    starts = {clip[0] for clip in numbers_in(one.raw)}
    assert len(starts) > 1, "another seed, another start"


def test_all_starts_are_as_frequent(root):
    clips = clevrer(root, num_frames=1).train_set()
    batch = clips.__getitems__(Draws(np.zeros(150, np.int64), np.arange(150)))
    counts = np.bincount([clip[0] for clip in numbers_in(batch.raw)], minlength=50)
    assert len(counts) == 50 and (counts > 0).sum() > 40 and counts.max() < 12


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_frames_are_counted_whether_or_not_the_file_says(tmp_path, suffix):
    path = write_video(tmp_path / f"x{suffix}", frames_of(47))
    with av.open(str(path)) as file:
        assert bool(file.streams.video[0].frames) == (suffix == ".mp4")
    assert numbers_in(decoded(path, CUT, place=0.999))[0] == 1


def test_a_frame_is_resized_and_cropped_as_images_are(tmp_path):
    from PIL import Image

    picture = np.random.RandomState(0).randint(0, 256, (20, 33, 3), np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize((66, 40), Image.Resampling.BICUBIC))
    path = write_video(tmp_path / "x.mp4", [picture])
    with av.open(str(path)) as file:
        shown = next(file.decode(video=0)).to_image()
    for size in ((16, 16), (12, 24)):
        clip = decoded(path, Cut(1, 1, size), place=0.0)
        assert np.array_equal(clip[:, 0].transpose(1, 2, 0), np.asarray(center_crop(shown, size)))
    assert np.array_equal(center_crop(shown, 16), center_crop(shown, (16, 16)))
    grey = decoded(path, Cut(1, 1, (16, 16), channels=1), place=0.0)
    assert grey.shape == (1, 1, 16, 16)


def test_features_of_videos_are_of_them_however_they_are_cut_and_labeled(ssv2):
    def told(**flags):
        return domains.build("ssv2", data_path=str(ssv2), vae="none", image_size=16, **flags)

    assert told().data_set == told(num_classes=0).data_set == told(num_frames=2).data_set
    cut = told(num_frames=2).train_set().fingerprint()
    assert cut != told().train_set().fingerprint(), "but features of clips depend on the cut"


def test_videos_of_ssv2_that_are_too_short_hold_their_last_frame(ssv2):
    domain = domains.build("ssv2", data_path=str(ssv2), vae="none", image_size=16)
    assert domain.shape == (3, 33, 16, 16)
    batch = domain.train_set().__getitems__(Draws.plain([0, 1])).checked()
    long, short = numbers_in(batch.raw)
    assert long == list(range(long[0], long[0] + 33))
    assert short == list(range(20)) + [19] * 13


# Codecs and pictures


def test_every_frame_goes_through_the_images_vae_alone(root, tiny_vae):
    domain = clevrer(root, vae=tiny_vae, num_frames=3)
    assert domain.shape == (4, 3, 8, 8) and domain.raw_shape == (3, 3, 16, 16)
    raw = domain.train_set().__getitems__(Draws.plain([0, 1])).checked().raw
    codec, image_codec = domain.codec, VAECodec.load(tiny_vae)
    assert codec.identity == image_codec.identity and codec.uses_noise
    noise = torch.randn(2, 4, 3, 8, 8)
    x = codec.to_input(codec.encode(raw), noise)
    for frame in range(3):
        own = image_codec.to_input(image_codec.encode(raw[:, :, frame]), noise[:, :, frame])
        torch.testing.assert_close(x[:, :, frame], own)
    assert torch.equal(codec.decode(x)[:, :, 1], image_codec.decode(x[:, :, 1]))
    assert domain.guided_channels == 3


def test_pixels_come_back_as_they_were(root):
    domain = clevrer(root)
    raw = domain.train_set().__getitems__(Draws.plain([2])).checked().raw
    x = domain.codec.to_input(domain.codec.encode(raw), None)
    assert x.shape == (1, *domain.shape) and x.min() >= -1 and x.max() <= 1
    assert (domain.codec.decode(x).int() - raw.int()).abs().max() <= 1
    assert domain.arrays(raw).shape == (1, 16, 16, 16, 3)


def test_samples_are_a_sheet_of_frames_and_a_video(tmp_path):
    clips = torch.randint(0, 256, (3, 3, 16, 9, 9), dtype=torch.uint8)
    save_clips(clips, tmp_path / "s.png", fps=8)
    with av.open(str(tmp_path / "s.mp4")) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 16
    tile = frames[5][2:65, 2:65].reshape(9, 7, 9, 7, 3)[:, 3, :, 3]  # enlarged 7 times
    assert np.abs(tile.astype(int) - clips[0, :, 5].permute(1, 2, 0).numpy()).mean() < 25
    from PIL import Image

    with Image.open(tmp_path / "s.png") as image:
        assert image.size == (8 * (64 + 2) + 4, 3 * (64 + 2) + 2)


@pytest.mark.parametrize(
    ("name", "stride", "fps"),
    [("clevrer", 3, 25 / 3), ("clevrer", 1, 25), ("ssv2", 1, 12), ("moving", 2, 12.5)],
)
def test_samples_move_as_fast_as_the_videos(tmp_path, name, stride, fps):
    domain = domains.build(name, vae="none", image_size=16, num_frames=4, frame_stride=stride)
    domain.save_grid(torch.zeros(1, *domain.raw_shape, dtype=torch.uint8), tmp_path / "s.png")
    with av.open(str(tmp_path / "s.mp4")) as file:
        assert float(file.streams.video[0].average_rate) == pytest.approx(fps, rel=1e-3)


def test_a_strip_goes_from_the_first_frame_to_the_last():
    clips = torch.arange(10, dtype=torch.uint8).view(1, 1, 10, 1, 1).expand(2, 3, 10, 4, 4)
    found = strips(clips, most=4, size=4)
    assert found.shape == (2, 3, 4, 24) and found[0, 0, 0, ::6].tolist() == [0, 3, 6, 9]
    assert strips(clips[:, :, :2], most=4, size=2)[1, 0, 0].tolist() == [
        0,
        0,
        255,
        255,
        1,
        1,
        255,
        255,
    ]


def test_a_written_video_is_read_as_it_was(tmp_path):
    frames = frames_of(8, size=(15, 21))  # odd sides
    with open(tmp_path / "x.mp4", "wb") as file:
        write_mp4(file, frames, fps=25, crf=4)
    clip = decoded(tmp_path / "x.mp4", Cut(8, 1, (16, 22)), place=0.0)
    assert numbers_in(clip) == list(range(8))


# Folders


def test_training_and_validation_are_told_apart_by_number(root):
    domain = clevrer(root)
    train, held_out = domain.train_set(), domain.held_out_set()
    assert len(train) == 4 and len(held_out) == 2 and domain.num_classes == 0
    assert train.source.fingerprint() != held_out.source.fingerprint()
    other = clevrer(root, frame_stride=2).train_set()
    assert other.source.fingerprint() != train.source.fingerprint()
    assert clevrer(root).train_set().source.fingerprint() == train.source.fingerprint()


def test_a_folder_without_validation_videos_has_no_held_out_part(tmp_path):
    domain = clevrer(write_clevrer(tmp_path, train=1, validation=0, count=2), num_frames=1)
    with pytest.raises(NoHeldOut, match="video_10000.mp4 to video_14999.mp4"):
        domain.held_out_set()


def labeled(tmp_path, labels):
    root = write_clevrer(tmp_path / "data", train=2, validation=1, count=4)
    (root / "labels.json").write_text(labels if isinstance(labels, str) else json.dumps(labels))
    return domains.build("moving", data_path=str(root), num_frames=2, frame_stride=1)


def test_labels_beside_the_videos_are_classes(tmp_path):
    names = {"video_00000": 2, "video_00001": 0, "video_10000": 1}
    domain = labeled(tmp_path, {"classes": ["a", "b", "c"], "videos": names})
    assert domain.num_classes == 3 and domain.shape == (1, 2, 32, 32)
    assert domain.train_set().__getitems__(Draws.plain([1, 0])).checked().y.tolist() == [0, 2]
    assert domain.held_out_set().__getitems__(Draws.plain([0])).checked().y.tolist() == [1]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("{", "cannot be read as JSON"),
        ({"names": []}, "'classes' is missing"),
        ([1], "expected"),
        ({"classes": ["a"], "videos": {"video_00000": 0}}, "'video_00001' is missing"),
        ({"classes": ["a"], "videos": {"video_00000": 0, "video_00001": 1}}, "class 1, but there"),
        ({"classes": ["a"], "videos": {"video_00000": 0, "video_00001": "0"}}, "class '0', but"),
    ],
)
def test_what_is_wrong_with_labels_is_one_sentence(tmp_path, labels, sentence):
    with pytest.raises(InputError, match=sentence):
        labeled(tmp_path, labels).train_set()


def test_ssv2_is_read_under_both_names_with_its_texts(ssv2):
    found = read_ssv2(ssv2, "train")
    assert [(path.name, label) for path, label in found] == [
        ("100.webm", "holding thing 100"), ("101.webm", "holding thing 101"),
    ]  # fmt: skip
    assert all(path.is_file() for path, _ in found)
    assert read_ssv2(str(ssv2), "validation")[0][0].name == "200.webm"


# What is wrong


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (None, "expected something-something-v2-train.json or labels/train.json in it"),
        ("[{", "cannot be read as JSON"),
        ({"id": "1"}, "is no list of SSv2"),
        ([], "is no list of SSv2"),
        ([{"id": "1", "caption": "holding"}], "entry 0 has id, caption; an entry of SSv2 has id"),
        ([{"id": 1, "label": "holding"}], "a number as a string"),
        ([{"id": "../1", "label": "holding"}], "entry 0 has id, label"),
        (["1"], "entry 0 has '1'"),
        ([{"id": "7", "label": "holding"}], "1 of the 1 videos .*7.webm the first"),
    ],
)
def test_what_ssv2_lacks_is_one_sentence(tmp_path, entries, sentence):
    if entries is not None:
        content = entries if isinstance(entries, str) else json.dumps(entries)
        (tmp_path / "something-something-v2-train.json").write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_ssv2(tmp_path, "train")


def test_what_clevrer_lacks_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="--dataset_name clevrer needs --data-path"):
        clevrer(tmp_path, data_path=None).train_set()
    with pytest.raises(InputError, match="there is no such folder"):
        clevrer(tmp_path / "nothing").train_set()
    with pytest.raises(InputError, match="has no video of CLEVRER: expected video_train/"):
        clevrer(tmp_path).train_set()


def damaged(tmp_path, kind):
    path = tmp_path / "video_00000.mp4"
    if kind == "text":
        path.write_text("no video")
    elif kind == "sound":
        write_mp3(tmp_path / "x.mp3", tone(440.0, 0.2))
        (tmp_path / "x.mp3").rename(path)
    else:
        write_video(path, frames_of(50))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [("text", "cannot be decoded"), ("cut off", "cannot be decoded"), ("sound", "holds no video")],
)
def test_a_video_that_cannot_be_read_is_named(tmp_path, kind, sentence):
    path = damaged(tmp_path, kind)
    with pytest.raises(Unreadable, match=f"{path.name} {sentence}"):
        decoded(path, CUT, place=0.0)
    batch = clevrer(tmp_path).train_set().__getitems__(Draws.plain([0]))
    assert path.name in batch.error


def test_with_skip_corrupt_the_next_video_stands_in_for_one_that_cannot_be_read(tmp_path):
    write_clevrer(tmp_path, train=2, validation=0)
    damaged(tmp_path / "video_train" / "video_00000-01000", "text")
    clips = clevrer(tmp_path, skip_corrupt=True).train_set()
    draws = Draws(np.array([0, 1, 0]), np.array([3, 3, 4]))
    batch = clips.__getitems__(draws).checked()
    assert batch.index.tolist() == [1, 1, 1] and torch.equal(batch.raw[0], batch.raw[1])
    assert len(batch.problems) == 2 and "video_00000.mp4 cannot be decoded" in batch.problems[0]
    said = clevrer(tmp_path).train_set().__getitems__(draws).error
    assert "video_00000.mp4" in said and "--skip-corrupt goes on without such videos" in said


def test_frames_that_an_edit_list_hides_are_no_part_of_a_video(tmp_path):
    path = hide(write_video(tmp_path / "x.mp4", frames_of(50)), first=9, count=30)
    cut = Cut(4, 1, (16, 16))
    assert numbers_in(whole(path, cut)) == list(range(9, 39))
    for place in (0.0, 0.5, 0.999):
        first, *_, last = numbers_in(decoded(path, cut, place=place))
        assert 9 <= first and last == first + 3 <= 38


def test_a_video_that_ends_before_it_says_is_named(tmp_path):
    """Unlike one that says what it hides; here cut off between two of its frames."""
    path = write_video(tmp_path / "x.mp4", frames_of(50))
    with av.open(str(path)) as file, av.open(
        str(tmp_path / "y.mp4"), "w", options={"movflags": "faststart"}
    ) as other:  # fmt: skip
        (stream,) = file.streams.video
        copied = other.add_stream_from_template(stream)
        for packet in file.demux(stream):
            if packet.size:
                packet.stream = copied
                other.mux(packet)
    hide(tmp_path / "y.mp4", first=9, count=41)
    with av.open(str(tmp_path / "y.mp4")) as file:
        places = [packet.pos for packet in file.demux(video=0) if packet.size]
    content = (tmp_path / "y.mp4").read_bytes()
    (tmp_path / "y.mp4").write_bytes(content[: places[40]])
    with pytest.raises(Unreadable, match=r"y.mp4 ends after \d+ of its 50 frames"):
        whole(tmp_path / "y.mp4", Cut(4, 1, (16, 16)))


def test_a_video_without_a_frame_is_named(tmp_path):
    path = write_video(tmp_path / "x.webm", frames_of(3))
    with av.open(str(path)) as file:
        first = next(file.demux(video=0)).pos
    path.write_bytes(path.read_bytes()[:first])
    with pytest.raises(Unreadable, match="x.webm ends after 0 of its 1 frames"):
        whole(path, CUT)


def test_a_video_with_too_few_frames_is_named(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames_of(20))
    with pytest.raises(Unreadable, match=r"x.mp4 has 20 frames, .* 16 of 46 \(every 3\): give"):
        decoded(path, CUT, place=0.3)


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        ("moving", dict(vae="ema"), "--vae ema needs color videos"),
        ("clevrer", dict(vae="ema", image_size=20), "no multiple of 8"),
        ("digits", dict(num_frames=4), "--num-frames 4: digits has no frames, leave it out"),
        ("humanml3d", dict(frame_stride=4), "--frame-stride 4: humanml3d has no frames"),
        ("clevrer", dict(text_encoder="x"), "clevrer has no texts"),
    ],
)
def test_flags_that_do_not_fit_are_refused(name, flags, sentence):
    with pytest.raises(InputError, match=sentence):
        domains.build(name, **flags)


def test_classes_that_a_folder_does_not_have_are_refused(root):
    with pytest.raises(InputError, match="--num-classes 4: clevrer in .* has no classes"):
        clevrer(root, num_classes=4).train_set()
