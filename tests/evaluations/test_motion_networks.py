"""T2M's networks: the published names, files of others, and what they see of a motion."""

import os
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evaluations.motion.networks import Matching, Sizes, load
from evaluations.motion.words import Words
from runtime.errors import InputError

SMALL = Sizes(movement=8, motion=12, text=8, embedding=6)
GRU = {
    f"gru.{part}_l0{side}": shape
    for side in ("", "_reverse")
    for part, shape in {
        "weight_ih": (3, 1), "weight_hh": (3, 1), "bias_ih": (3,), "bias_hh": (3,),
    }.items()
}  # fmt: skip


def encoder(inputs, hidden, outputs):
    """Tensors of a bidirectional encoder, as text-to-motion's modules.py has them."""
    return {
        "hidden": (2, 1, hidden), "input_emb.weight": (hidden, inputs), "input_emb.bias": (hidden,),
        **{k: tuple(n * hidden for n in shape) for k, shape in GRU.items()},
        "output_net.0.weight": (hidden, 2 * hidden), "output_net.0.bias": (hidden,),
        "output_net.1.weight": (hidden,), "output_net.1.bias": (hidden,),
        "output_net.3.weight": (outputs, hidden), "output_net.3.bias": (outputs,),
    }  # fmt: skip


PUBLISHED = {
    "movement_encoder": {
        "main.0.weight": (512, 259, 4), "main.0.bias": (512,),
        "main.3.weight": (512, 512, 4), "main.3.bias": (512,),
        "out_net.weight": (512, 512), "out_net.bias": (512,),
    },
    "motion_encoder": encoder(512, 1024, 512),
    "text_encoder": encoder(300, 512, 512) | {"pos_emb.weight": (300, 15), "pos_emb.bias": (300,)},
}  # fmt: skip


def save(path, networks, **more):
    state = {name: network.state_dict() for name, network in networks.named_children()}
    torch.save(state | {"sizes": SMALL._asdict(), "epoch": 3} | more, path)
    return path


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Matching(SMALL).eval()


# Files


def test_tensors_have_the_published_names_and_shapes():
    with torch.device("meta"):
        networks = Matching(Sizes())
    for name, network in networks.named_children():
        found = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        assert found == PUBLISHED[name]
    assert {name for name, _ in networks.named_children()} == PUBLISHED.keys()


def test_the_published_file_loads_with_all_that_it_has_besides(tmp_path):
    """Its optimizers, and its counters."""
    state = {
        name: {key: torch.full(shape, 0.5) for key, shape in tensors.items()}
        for name, tensors in PUBLISHED.items()
    }
    moments = {0: {"step": 5, "exp_avg": torch.zeros(3)}}
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}
    more = {"opt_text_encoder": optimizer, "opt_motion_encoder": optimizer, "epoch": 7, "iter": 9}
    torch.save(state | more, tmp_path / "finest.tar")
    networks, trained_on = load(tmp_path / "finest.tar")
    assert trained_on is None and not networks.training
    assert all((tensor == 0.5).all() for tensor in networks.state_dict().values())


def test_a_file_of_our_own_comes_back_to_the_bit(tmp_path, small):
    networks, trained_on = load(save(tmp_path / "x.tar", small, trained_on="9 clips of steps"))
    assert trained_on == "9 clips of steps"
    for name, tensor in small.state_dict().items():
        assert networks.state_dict()[name].equal(tensor)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["text_encoder"].pop("pos_emb.bias"), "text_encoder.pos_emb.bias is missing"),
        (lambda t: t.pop("motion_encoder"), "it has no motion_encoder"),
        (lambda t: t.update(movement_encoder=[]), "it has no movement_encoder"),
        (lambda t: t["motion_encoder"].update(more=torch.ones(1)), "motion_encoder.more is none"),
        (
            lambda t: t["motion_encoder"].update(hidden=torch.ones(2, 1, 13)),
            r"motion_encoder.hidden is \(2, 1, 13\), not \(2, 1, 12\)",
        ),
        (
            lambda t: t["motion_encoder"].update(hidden=torch.full((2, 1, 12), torch.nan)),
            "motion_encoder.hidden is not finite",
        ),
        (lambda t: t["motion_encoder"].update(hidden="x"), "motion_encoder.hidden is missing"),
        (lambda t: t.pop("sizes"), r"movement_encoder.main.0.weight is \(8, 259, 4\), not \(512"),
        (lambda t: t.update(sizes={"movement": "8"}), "no text_mot_match"),
        (lambda t: t.update(sizes={"width": 8}), "no text_mot_match"),
        (lambda t: t.update(sizes={"movement": -8}), "no text_mot_match"),
        (lambda t: t.update(sizes={"movement": 2**62}), "no text_mot_match"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, small, change, words):
    content = torch.load(save(tmp_path / "x.tar", small), weights_only=True)
    change(content)
    torch.save(content, tmp_path / "x.tar")
    with pytest.raises(InputError, match=words) as error:
        load(tmp_path / "x.tar")
    assert "\n" not in str(error.value)


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("write", [torch.save, partial(pickle.dump, protocol=2)])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, write):
    with open(tmp_path / "x.tar", "wb") as file:
        write({"movement_encoder": Payload(tmp_path / "it ran")}, file)
    with pytest.raises(InputError, match="it holds code, or is damaged"):
        load(tmp_path / "x.tar")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError, match="no text_mot_match of T2M"):
        load(tmp_path / "x.tar")


# What they compute


def test_an_embedding_does_not_depend_on_the_batch(small):
    motions, lengths = torch.randn(5, 196, 263), torch.tensor([40, 196, 100, 36, 196])
    together = small.motions(motions, lengths)
    for i in range(5):
        alone = small.motions(motions[i : i + 1], lengths[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)


def test_the_frames_after_the_end_are_seen_as_far_as_the_convolutions_reach(small):
    """Three of them, in T2M's protocol too: samples are judged with what the model drew there."""
    motion = torch.randn(1, 196, 263)
    lengths = torch.tensor([100])
    embedding = small.motions(motion, lengths)
    for frame, seen in ((99, True), (102, True), (103, False), (195, False)):
        changed = motion.clone()
        changed[:, frame] += 1
        assert small.motions(changed, lengths).equal(embedding) is not seen


def test_contacts_of_the_feet_are_not_seen(small):
    motion, lengths = torch.randn(1, 80, 263), torch.tensor([80])
    changed = motion.clone()
    changed[..., -4:] += 5
    assert small.motions(changed, lengths).equal(small.motions(motion, lengths))


def test_the_encoder_is_the_one_that_is_published(small):
    """Step by step: both directions from a learned start, the last states, and the head."""
    encoder = small.motion_encoder
    x, length = torch.randn(1, 9, 8), 7
    states = []
    for direction, name in enumerate(("l0", "l0_reverse")):
        cell = nn.GRUCell(12, 12)
        cell.load_state_dict(
            {
                f"{part}_{kind}": encoder.gru.state_dict()[f"{part}_{kind}_{name}"]
                for part in ("weight", "bias")
                for kind in ("ih", "hh")
            }
        )
        state = encoder.hidden[direction]
        steps = range(length) if direction == 0 else reversed(range(length))
        for t in steps:
            state = cell(encoder.input_emb(x[:, t]), state)
        states.append(state)
    expected = encoder.output_net(torch.cat(states, -1))
    torch.testing.assert_close(encoder(x, torch.tensor([length])), expected)
    first, norm, _, last = encoder.output_net
    hidden = F.layer_norm(first(torch.cat(states, -1)), (12,), norm.weight, norm.bias)
    torch.testing.assert_close(expected, last(F.leaky_relu(hidden, 0.2)))


def test_the_convolutions_are_the_published_ones(small):
    """Each halves the frames; a fifth of what is negative goes on."""
    encoder, frames = small.movement_encoder, torch.randn(2, 40, 259)
    x = frames.mT
    for convolution in (encoder.main[0], encoder.main[3]):
        x = F.conv1d(x, convolution.weight, convolution.bias, stride=2, padding=1)
        x = F.leaky_relu(x, 0.2)
    assert x.shape == (2, 8, 10)
    torch.testing.assert_close(encoder(frames), encoder.out_net(x.mT))


def test_words_after_the_end_are_not_read_but_kinds_are(small):
    words = Words(torch.randn(2, 22, 300), torch.eye(15)[torch.zeros(2, 22).long()],
                  torch.tensor([4, 22]))  # fmt: skip
    read = small.texts(words)
    words.vectors[:, 4:] += 1
    again = small.texts(words)
    assert again[0].equal(read[0]) and not again[1].equal(read[1])
    kinds = torch.eye(15)[torch.ones(2, 22).long()]
    assert not small.texts(words._replace(kinds=kinds))[0].equal(read[0])
