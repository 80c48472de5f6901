"""Tables, lists and JSON of any content: read, or refused in one sentence."""

import json

from hypothesis import given
from hypothesis import strategies as st

from domains import codecs, foreign, oobleck, sources, texts, tiny_imagenet, video
from domains.decoding import Unreadable
from domains.humanml3d import read_list, spans
from domains.image_store import ImageEncoding
from domains.jamendo import HEAD, SPLIT, Jamendo
from domains.store import Manifest
from domains.track_store import TrackEncoding
from experiments.table import read_run
from runtime.errors import InputError
from runtime.files import write_json
from runtime.log import cut_after
from runtime.untrusted import name_inside
from tests.fuzz.readers import refused, written

names = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "../x",
            "/etc/passwd",
            "a/../../b",
            "\0",
            "\u202e",
            "\ud800",
            ".",
            "..",
            "x" * 5000,
            "a\nb",
        ]
    ),
)
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, 2**63, True, "7", None, -1, 1e308])
)
anything = st.recursive(
    st.one_of(names, numbers),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


def dumped(content):
    return json.dumps(content).encode(errors="surrogatepass")


lines = st.lists(st.lists(names, max_size=9).map("\t".join), max_size=4).map("\n".join)


@given(lines, st.booleans())
def test_tables_of_music(tmp_path, table, headed):
    text = "\t".join(HEAD) + "\n" + table if headed else table
    for part in ("train", "validation", "test"):
        path = tmp_path / SPLIT / f"autotagging-{part}.tsv"
        written(tmp_path, str(path.relative_to(tmp_path)), text.encode(errors="surrogatepass"))
    source = Jamendo(str(tmp_path), "none", oobleck.config_of("none", None), None)
    refused(lambda: [source.tracks(held_out=part) for part in (False, True)], InputError)


@given(st.one_of(anything, st.lists(st.tuples(names, numbers), max_size=3)))
def test_lists_of_repa(tmp_path, pairs):
    written(tmp_path, "dataset.json", dumped({"labels": pairs}))
    refused(lambda: foreign.RepaFolder(str(tmp_path)), InputError)


@given(anything, st.lists(st.fixed_dictionaries({"id": names, "label": names}), max_size=3))
def test_lists_of_videos(tmp_path, other, entries):
    for content in (other, entries):
        written(tmp_path, "labels/train.json", dumped(content))
        refused(lambda: video.read_ssv2(tmp_path, "train"), InputError)
    written(tmp_path, "labels.json", dumped({"classes": other, "videos": entries}))
    refused(lambda: video.read_labels(tmp_path / "labels.json", ["video_00000"]), InputError)


fields = [*ImageEncoding.fields, *TrackEncoding.fields]


@given(st.data())
def test_manifests_of_latents(tmp_path, data):
    kind = data.draw(st.sampled_from([ImageEncoding, TrackEncoding]))
    encoding = {name: data.draw(anything) for name in kind.fields}
    encoding |= data.draw(st.fixed_dictionaries({}, optional={"count": st.integers(1, 10**20)}))
    content = {"format": kind.format, "encoding": encoding, "shards": data.draw(anything)}
    written(tmp_path, "manifest.json", dumped(content))
    refused(lambda: Manifest(tmp_path, ImageEncoding, TrackEncoding), InputError)


configs = st.fixed_dictionaries(
    {
        "_class_name": st.sampled_from(["AutoencoderOobleck", "AutoencoderKL"]),
        "audio_channels": numbers, "decoder_input_channels": numbers, "sampling_rate": numbers,
        "downsampling_ratios": st.one_of(st.lists(numbers, max_size=3), anything),
        "latent_channels": numbers, "block_out_channels": anything, "projection_dim": numbers,
    }
)  # fmt: skip


@given(st.one_of(configs, anything))
def test_configurations_of_networks(tmp_path, config):
    written(tmp_path, "config.json", dumped(config))
    folder = str(tmp_path)
    refused(lambda: oobleck.config_of(folder, None), InputError)
    refused(lambda: codecs.latent_shape(folder, 64), InputError)
    refused(lambda: texts.width_of(folder), InputError)


@given(lines, lines)
def test_lists_of_tiny_imagenet(tmp_path, classes, pictures):
    written(tmp_path, "wnids.txt", classes.encode(errors="surrogatepass"))
    written(tmp_path, "val/val_annotations.txt", pictures.encode(errors="surrogatepass"))
    for held_out in (False, True):
        where = sources.Where("tiny-imagenet", str(tmp_path), 8, labeled=True, held_out=held_out)
        refused(lambda where=where: tiny_imagenet.TinyImageNet(where), InputError)


times = st.lists(st.one_of(st.floats(), numbers, names), max_size=3)


@given(st.lists(st.tuples(names, names, times), max_size=3), lines)
def test_captions_and_lists_of_motions(tmp_path, described, listed):
    text = "\n".join("#".join(map(str, (caption, words, *t))) for caption, words, t in described)
    path = written(tmp_path, "x.txt", text.encode(errors="surrogatepass"))
    refused(lambda: spans(path, 100), InputError, Unreadable)
    path = written(tmp_path, "train.txt", listed.encode(errors="surrogatepass"))
    refused(lambda: read_list(path), InputError)


@given(anything, st.lists(anything, max_size=3))
def test_records_and_logs_of_runs(tmp_path, record, rows):
    written(tmp_path, "run.json", dumped(record))
    refused(lambda: read_run(tmp_path), InputError)
    path = written(tmp_path, "log.jsonl", b"".join(dumped(row) + b"\n" for row in rows))
    cut_after(path, 5)


@given(names)
def test_a_name_that_is_let_through_stays_in_its_folder(tmp_path, name):
    if refused(lambda: name_inside(name), ValueError) is None:
        inside = (tmp_path / name).resolve()
        assert inside.is_relative_to(tmp_path.resolve())


def test_deep_json_is_refused(tmp_path):
    path = written(tmp_path, "labels/train.json", b"[" * 10**6)
    said = refused(lambda: video.read_ssv2(tmp_path, "train"), InputError)
    assert "nested too deeply" in said, path
    write_json(path, [])
