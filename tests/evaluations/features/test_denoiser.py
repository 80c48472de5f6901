"""What a checkpoint's blocks are shown, and that nothing else shows in them."""

import pytest
import torch

import domains
from domains import Draws
from evaluations.features import CLEAN, Denoiser, View
from runtime.config import SampleFlags
from runtime.errors import InputError
from sampling import open_checkpoint
from tests.evaluations.lab import digits_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def opened(tmp_path_factory, perturb):
    path = digits_run(tmp_path_factory.mktemp("runs"), perturb)
    return open_checkpoint(SampleFlags(ckpt=str(path), compile="off"), CPU)


@pytest.fixture(scope="module")
def batch():
    return domains.build("digits").held_out_set().__getitems__(Draws.plain([3, 1, 4, 15, 9]))


def test_features_are_the_blocks_of_a_plain_forward_pass(opened, batch):
    subject = Denoiser(opened, (1, 3))
    model, codec = opened.network.model, opened.domain.codec
    x = codec.to_input(codec.encode(batch.raw), torch.zeros(5, 1, 8, 8))
    y = torch.full((5,), 10)  # the null class
    expected = model(x, torch.full((5,), CLEAN), y, return_blocks=(1, 3)).blocks
    found = subject(batch)
    assert list(found) == [1, 3]
    assert all(torch.equal(found[block], expected[block]) for block in found)


def test_noise_is_named_by_its_share_and_the_clean_end_is_t_near_1(opened, batch):
    model, seen = opened.network.model, []
    embedders = (model.x_embedder, model.t_embedder)
    hooks = [one.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
             for one in embedders]  # fmt: skip
    for noise in (0.0, 0.3, 1.0):
        Denoiser(opened, (4,), View(noise=noise))(batch)
    for hook in hooks:
        hook.remove()
    (clean, at_clean), (some, at_some), (noise, at_noise) = zip(seen[::2], seen[1::2], strict=True)
    for t, expected in ((at_clean, CLEAN), (at_some, 0.7), (at_noise, 0.0)):
        assert t.tolist() == pytest.approx([expected] * 5)
    torch.testing.assert_close(some, 0.7 * clean + 0.3 * noise)
    assert clean.abs().max() <= 1 and abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.2


def test_the_public_scripts_view_is_noise_at_t_one_tenth_with_the_class_and_no_first_token(
    opened, batch
):
    model, codec = opened.network.model, opened.domain.codec
    view = View(noise=0.9, label="true", first_token=False)
    subject = Denoiser(opened, (1, 4), view)
    x, noise = Denoiser(opened, (), view).inputs(batch, 0)
    assert x.equal(codec.to_input(codec.encode(batch.raw), torch.zeros_like(x)))
    t = torch.full((5,), 0.1)
    expected = model(0.1 * x + 0.9 * noise, t, batch.y, return_blocks=(1, 4)).blocks
    found = subject(batch)
    for block in (1, 4):
        torch.testing.assert_close(found[block], expected[block][:, 1:])
    assert subject.grid is None and subject.identity["first_token"] is False
    assert "first_token" not in Denoiser(opened, (1, 4)).identity


def test_noise_alone_shows_no_image(opened, batch):
    blank = batch._replace(raw=torch.zeros_like(batch.raw))
    hidden, partly = (Denoiser(opened, (2,), View(noise=share)) for share in (1.0, 0.9))
    assert torch.equal(hidden(batch)[2], hidden(blank)[2])
    assert not torch.equal(partly(batch)[2], partly(blank)[2])


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_features_of_an_image_do_not_depend_on_its_batch(opened, batch, noise):
    subject = Denoiser(opened, view=View(noise=noise))
    whole = subject(batch)
    for row in range(5):
        one = batch._replace(**{k: getattr(batch, k)[row : row + 1] for k in ("raw", "y", "index")})
        for block, tokens in subject(one).items():
            torch.testing.assert_close(tokens[0], whole[block][row], rtol=1e-4, atol=1e-4)


def test_the_pass_ends_at_the_deepest_block_asked_for(opened, batch):
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(opened.network.model.blocks, start=1)
    ]
    Denoiser(opened, (2, 1))(batch)
    for hook in hooks:
        hook.remove()
    assert ran == [1, 2]


def test_the_true_label_is_another_condition_than_the_null(opened, batch):
    null, true = (Denoiser(opened, (2,), View(label=label))(batch)[2] for label in ("null", "true"))
    assert not torch.allclose(null, true)


def test_two_models_see_the_same_noise(opened, batch, tmp_path, perturb):
    path = digits_run(tmp_path, perturb, depth=2, hidden_size=16)
    other = open_checkpoint(SampleFlags(ckpt=str(path), compile="off"), CPU)
    inputs = [Denoiser(one, view=View(noise=0.5)).inputs(batch, 0) for one in (opened, other)]
    assert all(torch.equal(a, b) for a, b in zip(*inputs, strict=True))
    again = Denoiser(opened, view=View(noise=0.5)).inputs(batch, draw=1)
    assert not torch.equal(again[1], inputs[0][1])


def test_skipping_all_blocks_is_the_final_layer_on_the_embedded_input(opened, batch):
    model = opened.network.model
    x, t, y = torch.randn(5, 1, 8, 8), torch.rand(5), batch.y
    whole = model(x, t, y).pred
    model.skip_blocks(())
    assert torch.equal(model(x, t, y).pred, whole)
    model.skip_blocks(range(1, model.depth + 1))
    embedded = model.x_embedder(x) + model.pos_embed
    c = model.t_embedder(t) + model.y_embedder(y)
    expected = model.unpatchify(model.final_layer(embedded, c)).chunk(2, dim=1)[0]
    found = model(x, t, y, return_blocks=(3,))
    model.skip_blocks(())
    assert torch.equal(found.pred, expected) and torch.equal(found.blocks[3], embedded)
    assert not torch.allclose(found.pred, whole)


def test_what_cannot_be_looked_at_is_refused(opened, tmp_path, perturb):
    with pytest.raises(InputError, match="--noise 1.5 is the share of noise: give 0 to 1"):
        Denoiser(opened, view=View(noise=1.5))
    with pytest.raises(InputError, match="--blocks 5 does not exist: choose 1 to 4"):
        Denoiser(opened, (5,))
    path = digits_run(tmp_path, perturb, num_classes=0)
    unconditional = open_checkpoint(SampleFlags(ckpt=str(path), compile="off"), CPU)
    with pytest.raises(InputError, match="trained without classes"):
        Denoiser(unconditional, view=View(label="true"))
