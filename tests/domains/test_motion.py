"""HumanML3D by its rules of loading, captions by CLIP, and motions as the loop sees them."""

import errno
import os

import numpy as np
import pytest
import torch

import domains
from domains import Draws
from domains.humanml3d import Caption, cropped_length, read_clips, read_statistics
from domains.texts import TextEncoder, embedded
from evaluations.motion.batches import real_batches
from evaluations.motion.evaluator import Statistics
from runtime import files
from runtime.errors import InputError
from tests.domains.motions import captions, motion, save_clip, write_humanml3d


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_humanml3d(tmp_path_factory.mktemp("motion") / "HumanML3D")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    pytest.importorskip("transformers")
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny")


def domain_of(root, clip="none", **flags):
    return domains.build("humanml3d", data_path=str(root), text_encoder=str(clip), **flags)


# Files


def write_one(root, frames, text, name="000000"):
    for folder in ("new_joint_vecs", "texts"):
        (root / folder).mkdir(exist_ok=True)
    np.save(root / "new_joint_vecs" / f"{name}.npy", motion(frames, 1.0))
    (root / "texts" / f"{name}.txt").write_text(text)
    (root / "train.txt").write_text(name)
    return root


def test_a_caption_with_times_is_a_clip_of_its_own(tmp_path):
    text = captions(("a", 0, 0), ("b", 1.0, 3.5), ("c", float("nan"), float("nan")), ("d", 0, 1.0))
    found = read_clips(str(write_one(tmp_path, 100, text)), "train")
    spans = [(c.start, c.stop, [found.captions[row].text for row in c.captions])
             for c in found.clips]  # fmt: skip
    # "d" lasts one second, and clips of less than two are left out
    assert spans == [(20, 70, ["b"]), (0, 100, ["a", "c"])]
    assert found.captions[0] == Caption("b", ("b/NOUN",))
    assert found.of_caption().tolist() == [0, 1, 1]


@pytest.mark.parametrize(("frames", "kept"), [(39, 0), (40, 1), (199, 1), (200, 0)])
def test_clips_last_two_to_ten_seconds(tmp_path, frames, kept):
    write_one(tmp_path, frames, captions(("a", 0, 0)))
    if kept:
        assert len(read_clips(str(tmp_path), "train")) == kept
    else:
        with pytest.raises(InputError, match="no clip of 2 to 10 seconds in train.txt"):
            read_clips(str(tmp_path), "train")


def test_lengths_are_multiples_of_four_and_sometimes_one_less():
    assert [cropped_length(n, short=False) for n in (40, 43, 199)] == [40, 40, 196]
    assert [cropped_length(n, short=True) for n in (40, 43, 199)] == [36, 36, 192]


def test_a_third_of_the_draws_is_shorter(root):
    motions = domain_of(root).held_out_set()
    seeds = np.arange(600)
    batch = motions.__getitems__(Draws(np.zeros(600, np.int64), seeds)).checked()
    lengths = batch.mask.sum((1, 2))
    whole = cropped_length(motions.clips.clips[0].length, short=False)
    assert set(lengths.tolist()) == {whole, whole - 4}
    assert (lengths == whole - 4).float().mean() == pytest.approx(1 / 3, abs=0.06)


def test_a_part_of_a_file_that_is_too_long_is_not_used(tmp_path):
    """HumanML3D's loader looks at the file first."""
    write_one(tmp_path, 400, captions(("a", 1.0, 6.0)))
    with pytest.raises(InputError, match="no clip of 2 to 10 seconds"):
        read_clips(str(tmp_path), "train")


# The domain


def test_a_batch_is_a_canvas_whose_padding_is_zero_to_the_model(root, clip, tmp_path):
    domain = domain_of(root, clip, cache_dir=str(tmp_path))
    assert domain.shape == (263, 196) and domain.text_width == 12 and domain.num_classes == 0
    batch = domain.train_set().__getitems__(Draws.plain(range(7))).checked()
    x = domain.codec.to_input(domain.codec.encode(batch.raw), None)
    assert x.shape == (7, 263, 196) and batch.mask.shape == (7, 1, 196) and batch.y.shape == (7, 12)
    assert not x.masked_select(~batch.mask).any() and x.masked_select(batch.mask).std() > 0.5
    assert batch.cond.keys() == {"y", "mask"}
    torch.testing.assert_close(domain.codec.decode(x), batch.raw, rtol=1e-5, atol=1e-5)


def test_a_draw_is_a_function_of_its_seed(root, clip, tmp_path):
    motions = domain_of(root, clip, cache_dir=str(tmp_path)).train_set()
    draws = Draws(np.array([3, 3, 1]), np.array([5, 6, 5]))
    one, other = (motions.__getitems__(draws) for _ in range(2))
    assert torch.equal(one.raw, other.raw) and torch.equal(one.y, other.y)
    reordered = motions.__getitems__(Draws(draws.index[::-1].copy(), draws.seed[::-1].copy()))
    assert torch.equal(one.raw, reordered.raw.flip(0))


def test_a_shorter_canvas_cuts_clips(root):
    domain = domain_of(root, image_size=32)
    batch = domain.train_set().__getitems__(Draws.plain([0, 1]))
    assert batch.raw.shape == (2, 263, 32) and batch.mask.all()


def test_samples_go_through_the_shuffled_test_split(root, clip, tmp_path):
    """Every clip comes before one comes again, in an order that depends on the replication."""
    domain = domain_of(root, clip, cache_dir=str(tmp_path))
    clips = domain.test_clips
    orders = []
    for replication in (0, 1, 2):
        numbers = range(1024 * replication, 1024 * replication + 2 * len(clips))
        chosen = domain.chosen(numbers, torch.zeros(2 * len(clips), dtype=torch.long))
        rows, lengths = domain.labels(chosen).T
        visited = clips.of_caption()[rows].tolist()
        assert sorted(visited[: len(clips)]) == sorted(visited[len(clips) :]) == [0, 1, 2, 3]
        whole = [cropped_length(clips.clips[number].length, short=False) for number in visited]
        assert all(length in (n, n - 4) for length, n in zip(lengths, whole, strict=True))
        cond = domain.condition(chosen)
        assert torch.equal(cond["mask"].sum((1, 2)), torch.from_numpy(lengths))
        torch.testing.assert_close(cond["y"], domain.test_vectors[rows])
        orders.append(visited)
    assert orders[0] != orders[1] or orders[1] != orders[2]
    assert domain.titles(chosen) == [clips.captions[row].text for row in rows]


def test_a_third_of_clips_is_shown_shorter_as_in_the_published_loader(root):
    """In training, among real motions of the evaluation, and among samples."""
    domain = domain_of(root)
    clips, motions = domain.test_clips, domain.held_out_set()
    whole = sum(cropped_length(clip.length, short=False) for clip in clips.clips)
    turns, count = 400, 400 * len(clips)
    statistics = Statistics(np.zeros(263, np.float32), np.ones(263, np.float32))
    shorter = {
        "training": sum(
            whole - motions.__getitems__(Draws(np.arange(4), np.full(4, seed))).mask.sum().item()
            for seed in range(turns)
        ),
        "real": sum(
            whole - batch.lengths.sum().item()
            for seed in range(turns)
            for batch in real_batches(clips, statistics, seed, size=len(clips))
        ),
        "samples": 4 * (domain.chosen(range(count), torch.zeros(count)) % 2).sum().item(),
    }  # frames, four for each that is shorter
    for who, frames in shorter.items():
        assert frames / 4 / count == pytest.approx(1 / 3, abs=0.05), who


# Texts


def test_captions_are_encoded_once_and_found_again(root, clip, tmp_path):
    texts = ["a person walks", "a person jumps fast"]
    first = embedded(texts, str(clip), str(tmp_path), "cpu")
    (file,) = tmp_path.glob("captions-*.safetensors")
    before = file.stat().st_mtime_ns
    assert torch.equal(embedded(texts, str(clip), str(tmp_path), "cpu"), first)
    assert file.stat().st_mtime_ns == before
    embedded([*texts, "another"], str(clip), str(tmp_path), "cpu")
    assert len(list(tmp_path.glob("captions-*.safetensors"))) == 2
    file.write_bytes(b"rest of a file")
    with pytest.raises(InputError, match="is damaged .* delete it, and it is made anew"):
        embedded(texts, str(clip), str(tmp_path), "cpu")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_captions_are_encoded_on_the_device_that_is_asked_for(
    root, clip, tmp_path, monkeypatch, device
):
    """Whatever else there is: "meta" stands for one that is not the CPU."""
    devices = []

    def encode(encoder, texts):
        devices.append(encoder.model.device.type)
        return torch.zeros(len(texts), 12)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(TextEncoder, "__call__", encode)
    domain = domain_of(root, clip, cache_dir=str(tmp_path), device=device)
    domain.held_out_set()
    domain.prompted(["a person walks"], None)
    assert devices == [device] * 2


def test_captions_whose_file_fails_in_passing_are_read_again(clip, tmp_path, monkeypatch):
    from safetensors import torch as library

    texts, reads = ["a person walks"], []
    whole, read = embedded(texts, str(clip), str(tmp_path), "cpu"), library.load_file

    def fails_once(path):
        reads.append(path)
        if len(reads) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(files, "PAUSES", (0.0,))
    monkeypatch.setattr(library, "load_file", fails_once)
    assert torch.equal(embedded(texts, str(clip), str(tmp_path), "cpu"), whole) and len(reads) == 2


def test_texts_are_clips_own_features_whatever_they_are_batched_with(clip):
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    encoder = TextEncoder.load(str(clip), None, "cpu")
    texts = ["a person walks", "a person walks slowly and waves and jumps and runs", "a"]
    together = encoder(texts)
    assert together.shape == (3, 12) and (together.norm(dim=1) - 1).abs().min() > 1e-3
    alone = torch.cat([encoder([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    words = AutoTokenizer.from_pretrained(clip)(texts[0], return_tensors="pt")
    expected = CLIPTextModelWithProjection.from_pretrained(clip)(**words).text_embeds
    torch.testing.assert_close(together[:1], expected)


def test_clip_sees_twenty_words(clip):
    encoder = TextEncoder.load(str(clip), None, "cpu")
    long = "a " * 20
    torch.testing.assert_close(encoder([long + "person jumps"]), encoder([long]))


# What is wrong in the data


def spoilt(root, tmp_path, file, content):
    import shutil

    copy = shutil.copytree(root, tmp_path / "spoilt")
    path = copy / file
    if content is None:
        path.unlink()
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_text(content)
    return copy


NAN = motion(60, 1.0)
NAN[7, 5] = np.nan


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("train.txt", None, "expected HumanML3D's"),
        ("train.txt", "../../etc", "leads out of the folder"),
        ("new_joint_vecs/000002.npy", None, "000002.npy the first"),
        ("new_joint_vecs/000002.npy", "text", "cannot be read as an array of numbers"),
        ("new_joint_vecs/000002.npy", np.zeros((60, 251)), "a motion of HumanML3D has 263"),
        ("texts/000001.txt", None, "000001.txt the first"),
        ("texts/000001.txt", "a person walks\n", "line 1 is no caption#word/POS"),
        ("texts/000001.txt", "\n", "has no caption"),
        ("texts/000001.txt", "a#a/DET#inf#inf\n", "line 1 is no caption#word/POS"),
        ("Mean.npy", None, "it belongs to HumanML3D"),
        ("Std.npy", np.zeros(263), "deviations are more than 0"),
        ("Std.npy", np.ones(251), "it has 263 finite numbers"),
    ],
)
def test_what_a_folder_lacks_is_one_sentence(root, tmp_path, file, content, sentence):
    broken = str(spoilt(root, tmp_path, file, content))
    with pytest.raises(InputError, match=sentence):
        read_clips(broken, "train")
        read_statistics(broken)


def test_a_motion_with_nan_is_named_by_the_batch(root, tmp_path):
    broken = spoilt(root, tmp_path, "new_joint_vecs/000007.npy", NAN)
    batch = domain_of(broken).held_out_set().__getitems__(Draws.plain(range(4)))
    assert "000007.npy has numbers that are not finite" in batch.error


def test_pickled_arrays_are_not_opened(root, tmp_path):
    broken = spoilt(root, tmp_path, "new_joint_vecs/000002.npy", np.array([{}], dtype=object))
    with pytest.raises(InputError, match="cannot be read as an array of numbers"):
        read_clips(str(broken), "train")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (dict(vae="ema"), "--vae ema: motions are not encoded"),
        (dict(num_classes=3), "has captions, not classes"),
        (dict(image_size=50), "a multiple of 4"),
        (dict(image_size=400), "4 to 196 frames"),
    ],
)
def test_flags_of_other_modalities_are_refused(root, flags, sentence):
    with pytest.raises(InputError, match=sentence):
        domain_of(root, **flags)


def test_an_absent_text_encoder_is_named(root, tmp_path):
    domain = domain_of(root, tmp_path)
    with pytest.raises(InputError, match="is no folder of transformers' CLIPTextModel"):
        _ = domain.text_width
    absent = domains.build("humanml3d", data_path=str(root), cache_dir=str(tmp_path))
    with pytest.raises(InputError, match="--text-encoder openai/clip-vit-base-patch32 can neither"):
        absent.train_set()
    with pytest.raises(InputError, match="--text-encoder x: digits has no texts"):
        domains.build("digits", text_encoder="x")
