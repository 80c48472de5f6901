"""Arrays, images and archives of any bytes: read, or refused in one sentence."""

import io
import zipfile

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from domains.decoding import FORMATS, Unreadable, decode
from evaluations.images.sources import NpzImages
from runtime.errors import InputError
from runtime.untrusted import read_array
from tests.fuzz.readers import edited, refused, written

sizes = st.one_of(st.integers(-2, 5), st.sampled_from([2**31, 2**40, 2**62, 2**64, 10**30, True]))
types = st.sampled_from(
    ["<f4", "|u1", "<i8", ">f8", "|O", "|S9", "<U3", "|V4", "<M8[s]", "4096f4", "f4,f4", "x", ""]
)
edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 30), st.binary(max_size=8)), min_size=1, max_size=4
)


@st.composite
def headers(draw):
    """Of .npy files: most are almost right."""
    shape = tuple(draw(st.lists(sizes, max_size=4)))
    fields = {"descr": draw(types), "fortran_order": draw(st.booleans()), "shape": shape}
    text = draw(st.one_of(st.just(repr(fields)), st.text(max_size=40), st.just("-" * 5000 + "1")))
    version, most = draw(st.sampled_from([(1, 2), (2, 4), (3, 4), (9, 4)]))
    length = draw(st.one_of(st.just(len(text.encode())), st.integers(0, 256**most - 1)))
    return b"\x93NUMPY" + bytes([version, 0]) + length.to_bytes(most, "little") + text.encode()


@given(headers(), st.binary(max_size=100), st.booleans())
def test_headers_of_arrays_claim_what_they_like(tmp_path, header, values, mapped):
    path = written(tmp_path, "x.npy", header + values)
    refused(lambda: read_array(path, mapped=mapped).sum(), ValueError, TypeError)


def npz(method=zipfile.ZIP_STORED):
    array, content = io.BytesIO(), io.BytesIO()
    np.save(array, np.zeros((6, 4, 4, 3), np.uint8))
    with zipfile.ZipFile(content, "w", method) as archive:
        archive.writestr("arr_0.npy", array.getvalue())
    return content.getvalue()


@given(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), edits)
def test_archives_of_images_with_changed_bytes(tmp_path, method, edits):
    path = written(tmp_path, "x.npz", edited(npz(method), edits))
    refused(lambda: [len(b.raw) for b in NpzImages(path).blocks(range(6), 4)], InputError)


@given(headers())
def test_arrays_in_archives_claim_what_they_like(tmp_path, header):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", header + bytes(2**20))
    refused(lambda: NpzImages(path), InputError)


def picture(form):
    content = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(content, form)
    return content.getvalue()


PICTURES = {form: picture(form) for form in FORMATS}


@given(st.sampled_from(FORMATS), edits)
def test_pictures_with_changed_bytes(form, edits):
    content = edited(PICTURES[form], edits)
    refused(lambda: decode(io.BytesIO(content), "x", 8).shape == (3, 8, 8), Unreadable)
