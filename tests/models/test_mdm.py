"""MDM: its tensors' names, its output under fixed weights, and what blocks it shows."""

import math

import pytest
import torch
from torch import nn

from models import MDM, Task, adapt, create, load

TINY = dict(input_size=(12,), in_channels=7, hidden_size=16, depth=3, num_heads=2, text_width=5)


@pytest.fixture
def model():
    return MDM(**TINY).eval()


def inputs(batch=3):
    return torch.randn(batch, 7, 12), torch.rand(batch), torch.randn(batch, 5)


def published(weights, x, ticks, text, width=16, depth=3):
    """The released network, written out: sequence first, the table sliced, functions of torch."""
    pe = weights["sequence_pos_encoder.pe"]
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.1, "gelu")
    encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).eval()
    prefix = "seqTransEncoder."
    encoder.load_state_dict(
        {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    )

    def linear(name, value):
        return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    emb = linear("embed_timestep.time_embed.0", pe[ticks])  # (B, 1, D)
    emb = linear("embed_timestep.time_embed.2", emb * torch.sigmoid(emb)).permute(1, 0, 2)
    emb = emb + linear("embed_text", text)
    frames = linear("input_process.poseEmbedding", x.permute(2, 0, 1))
    sequence = torch.cat([emb, frames])
    sequence = sequence + pe[: len(sequence)]
    return linear("output_process.poseFinal", encoder(sequence)[1:]).permute(1, 2, 0)


def test_it_computes_what_the_published_network_does(model):
    x, _, text = inputs()
    ticks = torch.tensor([0, 417, 999])
    t = 1 - (ticks + 0.5) / 1000
    expected = published(model.state_dict(), x, ticks, text)
    torch.testing.assert_close(model(x, t, text).pred, expected, rtol=1e-5, atol=1e-5)


def test_its_tensors_have_the_published_names():
    names = set(MDM(depth=8).state_dict())
    layer = [
        f"seqTransEncoder.layers.{number}.{part}"
        for number in range(8)
        for part in (
            "self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight",
            "self_attn.out_proj.bias", "linear1.weight", "linear1.bias", "linear2.weight",
            "linear2.bias", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias",
        )
    ]  # fmt: skip
    others = [
        f"{module}.{part}"
        for module in (
            "input_process.poseEmbedding", "embed_timestep.time_embed.0",
            "embed_timestep.time_embed.2", "embed_text", "output_process.poseFinal",
        )
        for part in ("weight", "bias")
    ]  # fmt: skip
    assert names == {*layer, *others, "sequence_pos_encoder.pe"}
    assert sum(p.numel() for p in MDM().parameters()) == pytest.approx(18e6, rel=0.01)


def test_a_released_file_is_recognized_by_its_tensors(model):
    """With CLIP's weights and the table's second name, as MDM's own training writes it."""
    released = model.state_dict() | {
        "clip_model.logit_scale": torch.ones(1),
        "embed_timestep.sequence_pos_encoder.pe": model.sequence_pos_encoder.pe,
    }
    del released["sequence_pos_encoder.pe"]
    found = load(released, args={"diffusion_steps": 50, "mask_frames": True})
    assert found.steps == 50 and found.mask_frames and found.depth == 3
    assert found.config["text_width"] == 5 and found.config["mlp_ratio"] == 2
    again = load(released, model.config)
    x, t, text = inputs()
    assert torch.equal(again(x, t, text).pred, model(x, t, text).pred)
    with pytest.raises(ValueError, match="no tensor seqTransEncoder.layers.1.linear1.bias"):
        del released["seqTransEncoder.layers.1.linear1.bias"]
        load(released, model.config)


def test_asking_for_blocks_changes_nothing_and_leaves_out_the_condition(model):
    x, t, text = inputs()
    alone = model(x, t, text)
    seen = model(x, t, text, return_blocks=(1, 3))
    assert torch.equal(alone.pred, seen.pred) and alone.blocks == {}
    assert {k: tuple(v.shape) for k, v in seen.blocks.items()} == {1: (3, 12, 16), 3: (3, 12, 16)}
    final = model.output_process(seen.blocks[3]).transpose(1, 2)
    torch.testing.assert_close(final, seen.pred)
    model.keeps_condition_token = True
    whole = model(x, t, text, return_blocks=(3,), only_blocks=True)
    assert whole.pred is None and whole.blocks[3].shape == (3, 13, 16)
    torch.testing.assert_close(whole.blocks[3][:, 1:], seen.blocks[3])


def test_gradients_are_equal_with_activation_checkpointing():
    """Dropout included: the second forward pass draws what the first one drew."""
    x, t, text = inputs()
    gradients = []
    for again in (False, True):
        torch.manual_seed(0)
        model = MDM(**TINY)
        model.activation_checkpointing = again
        torch.manual_seed(1)
        output = model(x, t, text, return_blocks=(2,))
        (output.pred.square().mean() + output.blocks[2].square().mean()).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_no_text_is_a_vector_of_zeros_and_its_bias_stays(model):
    x, t, text = inputs()
    cond = {"y": text, "mask": torch.ones(3, 1, 12, dtype=torch.bool)}
    where = torch.tensor([True, False, True])
    dropped, null = model.drop(cond, where)["y"], model.null(cond)["y"]
    assert torch.equal(dropped[1], text[1]) and not dropped[[0, 2]].any() and not null.any()
    bare = model(x, t, null).pred
    assert not torch.allclose(bare, model(x, t, text).pred)
    torch.testing.assert_close(model(x, t, dropped).pred[0], bare[0])


@pytest.mark.parametrize("masks", [False, True])
def test_padding_is_seen_only_where_frames_are_not_masked(masks):
    model = MDM(**TINY, mask_frames=masks).eval()
    x, t, text = inputs()
    mask = torch.arange(12)[None, None] < torch.tensor([5, 12, 8])[:, None, None]
    other = torch.where(mask, x, torch.randn_like(x))
    a, b = (model(one, t, text, mask).pred * mask for one in (x, other))
    assert a.isfinite().all() and torch.allclose(a, b, atol=1e-6) == masks


def test_time_runs_backwards_through_the_clock():
    model = MDM(**TINY, steps=50)
    t = torch.tensor([1.0, 0.99, 0.5, 0.0])
    assert model.tick(t).tolist() == [0, 0, 25, 49]


def test_what_it_is_not_for_is_one_sentence():
    task = Task((263, 40), text_width=8)
    assert create("MDM", task, depth=2, dropout=0.0).has_dropout is False
    for name, asked, words, sentence in (
        ("SiT-S/1", task, {}, "give --model MDM"),
        ("MDM", Task((3, 8, 8)), {}, "a model of sequences"),
        ("MDM", Task((3, 8), num_classes=10), {}, "conditioned on texts"),
        ("SiT-S/1", Task((3, 8)), {"dropout": 0.1}, "--dropout: SiT-S/1 has none"),
        ("SiT-S/1", Task((3, 8), pads=True), {}, "the data are padded: give --model MDM"),
        ("SiT-S/1", Task((3, 8), mask_frames=True), {}, "--mask-frames: SiT has none"),
    ):
        with pytest.raises(ValueError, match=sentence):
            create(name, asked, **words)


def test_blocks_are_left_out_and_weights_pruned(model):
    x, t, text = inputs()
    model.skip_blocks([2])
    shallow = MDM(**TINY | {"depth": 2}).eval()
    shallow.load_state_dict(adapt(model.state_dict(), shallow, pruned=[2]))
    torch.testing.assert_close(shallow(x, t, text).pred, model(x, t, text).pred)


def test_a_random_teacher_has_blocks_that_differ(model):
    other = model.like()
    other.randomize_gates()
    x, t, text = inputs()
    blocks = other.eval()(x, t, text, return_blocks=(1, 3)).blocks
    cosine = torch.cosine_similarity(blocks[1], blocks[3], dim=-1)
    assert cosine.mean() < 0.99 and math.isfinite(cosine.mean().item())


def test_a_network_like_it_shows_the_same_tokens(model):
    """Else a random teacher's features would lack the token that the student's have."""
    model.keeps_condition_token = True
    other = model.like(depth=2)
    x, t, text = inputs()
    assert other(x, t, text, return_blocks=(2,)).blocks[2].shape == (3, 13, 16)
    assert not MDM(**TINY).keeps_condition_token
