"""What once got through, a test for each."""

import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from domains import clips
from domains.clips import Cut
from domains.clips import decoded as clip_of
from domains.decoding import Unreadable, decode
from domains.prompts import check_parts
from domains.sound import whole
from domains.sources import image_files
from domains.video import read_ssv2
from evaluations.images.sources import NpzImages
from models import load
from runtime.errors import InputError, one_line
from runtime.untrusted import DEFLATE, block_of, open_archive, read_array
from tests.commands import refused
from tests.domains.videos import frames_of, write_video


@pytest.mark.parametrize("playlist", ["ffconcat version 1.0\nfile other.mp4\n", "#EXTM3U\n"])
def test_a_playlist_that_calls_itself_mp4_opens_no_other_file(tmp_path, playlist):
    write_video(tmp_path / "other.mp4", frames_of(8))
    (tmp_path / "list.mp4").write_text(playlist)
    cut = Cut(4, 1, (16, 16))
    assert clip_of(tmp_path / "other.mp4", cut, place=0).shape == (3, 4, 16, 16)
    with pytest.raises(Unreadable, match="cannot be decoded"):
        clip_of(tmp_path / "list.mp4", cut, place=0)


def test_sound_at_one_sample_per_second_is_not_blown_up(tmp_path):
    import wave

    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(1)
        file.writeframes(bytes(2000))
    with pytest.raises(Unreadable, match="1 channels at 1 per second"):
        whole(tmp_path / "x.wav", 44_100)


def test_folders_that_link_to_their_parents_are_read_once(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for name in ("one", "other"):
        (tmp_path / name).symlink_to(tmp_path)
    assert list(image_files(tmp_path)) == [str(tmp_path / "x.png")]


def test_a_link_to_another_folder_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "far" / "x.png")
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    assert list(image_files(tmp_path / "near")) == [str(tmp_path / "near" / "link" / "x.png")]


def test_a_video_of_frames_without_end_does_not_take_the_memory(tmp_path, monkeypatch):
    """100 frames that are all alike have 2 kB, and 40,000 of them half a megabyte."""
    monkeypatch.setattr(clips, "MOST_BYTES", 20 * 64 * 64 * 3)
    path = tmp_path / "video.mp4"
    clips.write_mp4(path, [np.zeros((16, 16, 3), np.uint8)] * 21, fps=25)
    assert path.stat().st_size < 4096
    with pytest.raises(Unreadable, match="more than 20 frames of 64 x 64"):
        clips.whole(path, clips.Cut(1, 1, (64, 64)))
    assert clips.whole(path, clips.Cut(1, 1, (32, 32))).shape == (3, 21, 32, 32)


def test_a_pipe_among_pictures_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(Unreadable, match="is no file of data"):
        decode(str(tmp_path / "x.png"), "x", 8)


def test_a_picture_that_claims_too_many_pixels_is_not_decoded(tmp_path):
    Image.new("1", (20_000, 7_000)).save(tmp_path / "x.png")
    with pytest.raises(Unreadable, match="claims 20000 x 7000 pixels"):
        decode(str(tmp_path / "x.png"), "x", 8)


def test_a_pipeline_of_its_own_code_is_refused():
    check_parts({"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"]})
    with pytest.raises(ValueError, match="its text_encoder is"):
        check_parts({"text_encoder": ["evil", "Encoder"]})


def test_a_member_cannot_claim_more_than_its_bytes_stand_for(tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", bytes(10**6))
        archive.infolist()[0].file_size = 10**6 * DEFLATE
    with pytest.raises(ValueError, match="claims 1,032,000,000 bytes"):
        open_archive(path)


def test_legitimate_files_that_are_large_pass(tmp_path):
    """50,000 images of 256 pixels, 10 GB: a file of holes, of which nothing but the end is read."""
    header = tmp_path / "x.npy"
    shape = (50_000, 256, 256, 3)
    np.lib.format.open_memmap(header, "w+", np.uint8, shape).flush()
    assert read_array(header, mapped=True).shape == shape
    with pytest.raises(ValueError, match="are read at most"):
        read_array(header)


def test_compressed_pictures_of_one_color_pass(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", np.zeros((64, 64, 64, 3), np.uint8))
    assert len(NpzImages(tmp_path / "x.npz")) == 64


def test_one_long_name_does_not_make_all_names_long():
    with pytest.raises(ValueError, match="the longest of 4,000 bytes"):
        block_of(["x" * 4000, *[""] * 1_000_000])


def test_a_digit_that_is_no_number_is_no_video(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "train.json").write_text('[{"id": "²", "label": "x"}]')
    with pytest.raises(InputError, match="entry 0 has id, label"):
        read_ssv2(tmp_path, "train")


def test_an_architecture_of_a_billion_blocks_is_refused_at_once():
    with pytest.raises(ValueError, match="depth 1e"):
        load({"blocks.0.w": np.zeros(1)}, {"depth": 10**9})


def test_a_name_cannot_command_the_terminal(tmp_path):
    said = refused("sample", "ODE", "--ckpt", f"{tmp_path}/\x1b[2J\n\u202ea.pt")
    assert "\\x1b[2J \\u202ea.pt" in said and said == one_line(said)


def test_a_model_larger_than_the_machine_is_refused_before_it_is_built():
    said = refused(
        "train", "--preset", "digits", "--hidden-size", 1_000_000, "--num-heads", 2, "--dry-run"
    )
    assert "parameters" in said and "this machine has" in said


def test_a_model_whose_size_is_no_number_is_refused():
    said = refused("train", "--preset", "digits", "--num-classes", 2**62, "--dry-run")
    assert "more bytes than a number holds" in said
