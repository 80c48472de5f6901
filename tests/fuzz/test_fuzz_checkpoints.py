"""Checkpoints of any bytes, any pickle, any plain content: read, or refused in one sentence."""

import io
import json
import pickle
import pickletools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import models
from evaluations.motion.words import values_of
from models import SiT
from runtime import checkpoint
from runtime.errors import InputError
from runtime.tensors import check_program
from tests.fuzz.readers import edited, refused, written
from tests.fuzz.test_fuzz_arrays import edits

NAMES = ("model", "ema", "opt", "args", "architecture", "codec", "targets", "train_steps", "steps")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    network = SiT(input_size=4, patch_size=2, in_channels=1, hidden_size=8, depth=1, num_heads=2)
    content = {"ema": network.state_dict(), "architecture": network.config, "train_steps": 3}
    file = io.BytesIO()
    torch.save(content, file)
    # Read once: what the libraries import at first use is no memory of a file.
    opened(written(tmp_path_factory.mktemp("good"), "x.pt", file.getvalue()))
    return file.getvalue(), content


def opened(path):
    found = checkpoint.read(path)
    return models.load(found.ema, found.architecture, args=found.args)


@given(edits)
def test_checkpoints_with_changed_bytes(tmp_path, good, edits):
    path = written(tmp_path, "0000003.pt", edited(good[0], edits))
    refused(lambda: opened(path), ValueError)


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.binary(max_size=3),
    st.sampled_from([torch.zeros(()), torch.zeros(2, 3), torch.zeros(1).expand(2**40), torch.int8]),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), values, max_size=4), st.booleans())
def test_checkpoints_of_any_content(tmp_path, good, content, zipped):
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(lambda: opened(path), ValueError)


@given(st.sampled_from([*checkpoint.READ, "enc_type", "model_avg", "diffusion_steps"]), values)
def test_flags_of_any_kind(tmp_path, good, name, value):
    torch.save(good[1] | {"args": {name: value}}, tmp_path / "x.pt")
    refused(lambda: opened(tmp_path / "x.pt"), ValueError)


sizes = st.one_of(st.integers(-1, 9), st.sampled_from([10**9, 2**70, 1.5, "8", None, (2, 2), [0]]))


@given(st.dictionaries(st.text(max_size=3), sizes, max_size=1), st.data())
def test_architectures_of_any_size(tmp_path, good, others, data):
    config = good[1]["architecture"]
    name = data.draw(st.sampled_from([*config]))
    changed = config | others | {name: data.draw(sizes)}
    torch.save(good[1] | {"architecture": changed}, tmp_path / "x.pt")
    refused(lambda: opened(tmp_path / "x.pt"), ValueError)


codes = st.sampled_from([code.code.encode("latin1") for code in pickletools.opcodes])
programs = st.lists(st.one_of(codes, st.binary(max_size=3)), max_size=30).map(b"".join)


@given(programs)
def test_programs_of_any_operations_are_followed_and_never_run(program):
    def follow():
        check_program(io.BytesIO(b"\x80\2" + program + b"."))

    refused(follow, ValueError, pickle.UnpicklingError)


@given(programs, st.sampled_from([list, dict]))
def test_pickles_of_words_of_any_operations(tmp_path, program, kind):
    path = written(tmp_path, "words.pkl", b"\x80\2" + program + b".")
    refused(lambda: values_of(path, kind), InputError)


plain = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.just([]))
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "BF16", "F4", "C64", "x", 3]),
        "shape": st.lists(st.one_of(st.integers(-1, 4), st.just(2**62)), max_size=3),
        "data_offsets": st.lists(
            st.one_of(st.integers(-1, 64), st.just(2**63)), min_size=1, max_size=3
        ),
    }
)


@given(
    st.dictionaries(st.text(max_size=4), st.one_of(entries, plain), max_size=3),
    st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
def test_headers_of_safetensors(tmp_path, header, size):
    text = json.dumps(header, default=str).encode(errors="replace")
    length = (len(text) if size is None else size).to_bytes(8, "little")
    path = written(tmp_path, "x.safetensors", length + text + bytes(64))
    refused(lambda: opened(path), ValueError)
