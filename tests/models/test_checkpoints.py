"""State dicts: ours, the public ones, REPA's with its reversed time; fine-tuning across sizes."""

import pytest
import torch

from models import SiT, SiT_models, adapt, architecture_of, check_state, load


@pytest.fixture
def public(perturb):
    """Stands for a public file: known size, so that its heads can be told from its tensors."""
    model = SiT_models["SiT-S/4"](input_size=8, num_classes=10, learn_sigma=True)
    return perturb(model, 0.03).eval()


ARGUMENTS = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([3, 10])


def test_a_public_state_dict_tells_its_own_architecture(public):
    found = architecture_of(public.state_dict())
    assert found == {k: v for k, v in public.config.items() if k in found}
    assert torch.equal(load(public.state_dict())(*ARGUMENTS).pred, public(*ARGUMENTS).pred)


def test_a_stored_architecture_is_used_where_tensors_cannot_tell(perturb):
    model = perturb(
        SiT(input_size=(24,), patch_size=4, hidden_size=48, depth=2, num_heads=3)
    ).eval()
    loaded = load(model.state_dict(), model.config)
    x, t, y = torch.randn(2, 4, 24), torch.rand(2), torch.tensor([1, 5])
    assert torch.equal(loaded(x, t, y).pred, model(x, t, y).pred)
    assert not loaded.pos_embed.requires_grad


@pytest.mark.parametrize("head", ["projectors.0.0.weight", "ap_head.linear1.weight"])
def test_repa_files_become_sits(public, head):
    """REPA, and SRA beside it: t = 0 is data and the network predicts noise - data; projectors are
    left out."""
    weights = public.state_dict() | {head: torch.randn(8, 8)}
    x, t, y = ARGUMENTS
    as_sit = load(weights)
    close = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(as_sit(x, t, y).pred, -public(x, 1 - t, y).pred, **close)
    blocks = as_sit(x, t, y, return_blocks=(2,)).blocks[2]
    expected = public(x, 1 - t, y, return_blocks=(2,)).blocks[2]
    torch.testing.assert_close(blocks, expected, **close)
    forward = public(x, t, y).pred
    assert (as_sit(x, t, y).pred + forward).abs().max() > 0.01, "time matters in this test"


def test_the_first_tensor_that_does_not_fit_is_named(public):
    other = SiT_models["SiT-S/4"](input_size=8, num_classes=7)
    with pytest.raises(ValueError, match=r"y_embedder.embedding_table.weight is \(11, 384\)"):
        check_state(other, public.state_dict())
    weights = public.state_dict()
    del weights["blocks.3.mlp.fc1.bias"]
    with pytest.raises(ValueError, match="no tensor blocks.3.mlp.fc1.bias"):
        check_state(public, weights)
    with pytest.raises(ValueError, match="tensor extra does not exist"):
        check_state(public, public.state_dict() | {"extra": torch.zeros(1)})


def test_weights_of_something_else_are_refused():
    with pytest.raises(ValueError, match="not the weights of a SiT"):
        load({"conv.weight": torch.zeros(3, 3)})


def test_fine_tuning_to_other_classes_keeps_the_null_and_all_else(public):
    model = SiT_models["SiT-S/4"](input_size=8, num_classes=3)
    fresh = model.y_embedder.embedding_table.weight[:-1].clone()
    model.load_state_dict(adapt(public.state_dict(), model))
    table, old = model.y_embedder.embedding_table.weight, public.y_embedder.embedding_table.weight
    assert torch.equal(table[:-1], fresh)
    assert torch.equal(table[-1], old[-1])
    assert torch.equal(model.blocks[3].mlp.fc1.weight, public.blocks[3].mlp.fc1.weight)
    x, t, _ = ARGUMENTS
    null = torch.tensor([3, 3])
    assert torch.equal(model.eval()(x, t, null).pred, public(x, t, torch.tensor([10, 10])).pred)


def test_fine_tuning_to_twice_the_size_resamples_positions(public):
    model = SiT_models["SiT-S/4"](input_size=16, num_classes=10)
    weights = adapt(public.state_dict(), model)
    old = public.pos_embed.view(2, 2, -1).mean((0, 1))
    new = weights["pos_embed"].view(4, 4, -1)
    assert new.shape == (4, 4, 384)
    torch.testing.assert_close(new.mean((0, 1)), old, atol=0.05, rtol=0)
    left, right = new[:, 0], new[:, -1]
    assert (left - public.pos_embed.view(2, 2, -1)[:, 0].mean(0)).norm() < (left - right).norm()


def test_a_grid_of_as_many_tokens_is_another_grid():
    """2 x 4 x 4 and 8 x 2 x 2 are 32 tokens both, of which the second is elsewhere."""
    shape = dict(patch_size=1, in_channels=3, hidden_size=24, depth=2, num_heads=2, num_classes=0)
    old = SiT((2, 4, 4), **shape)
    same, other, longer = (SiT(axes, **shape) for axes in ((2, 4, 4), (8, 2, 2), (4, 4, 4)))
    found = adapt(old.state_dict(), same, old.config)["pos_embed"]
    assert torch.equal(found, old.pos_embed)
    table = old.pos_embed.view(2, 4, 4, 24)
    found = adapt(old.state_dict(), other, old.config)["pos_embed"].view(8, 2, 2, 24)
    torch.testing.assert_close(found[0], table[0].view(2, 2, 2, 2, 24).mean((1, 3)))
    torch.testing.assert_close(found[-1], table[-1].view(2, 2, 2, 2, 24).mean((1, 3)))
    found = adapt(old.state_dict(), longer, old.config)["pos_embed"].view(4, 4, 4, 24)
    torch.testing.assert_close(found[[0, -1]], table)


def test_a_stored_grid_that_the_positions_are_not_of_is_refused():
    shape = dict(patch_size=1, in_channels=3, hidden_size=24, depth=2, num_heads=2, num_classes=0)
    old = SiT((2, 4, 4), **shape)
    with pytest.raises(ValueError, match="stored architecture is not that of its tensors"):
        adapt(old.state_dict(), SiT((4, 4, 4), **shape), old.config | {"input_size": (3, 4, 4)})


def test_fine_tuning_cannot_change_the_width(public):
    with pytest.raises(ValueError, match="pos_embed is .* in this model"):
        adapt(public.state_dict(), SiT_models["SiT-B/4"](input_size=8, num_classes=10))
    with pytest.raises(ValueError, match="is .* in this model"):  # nor with other classes
        adapt(public.state_dict(), SiT_models["SiT-B/4"](input_size=8, num_classes=7))


def test_a_pruned_model_is_the_whole_one_with_those_blocks_skipped(perturb):
    shape = dict(input_size=8, patch_size=2, hidden_size=32, num_heads=2, num_classes=10)
    whole = perturb(SiT(depth=5, **shape)).eval()
    pruned = SiT(depth=3, **shape).eval()
    pruned.load_state_dict(adapt(whole.state_dict(), pruned, pruned=(2, 4)))
    x, t, y = torch.randn(3, 4, 8, 8), torch.rand(3), torch.tensor([1, 2, 10])
    expected = whole(x, t, y, return_blocks=(3, 5))
    whole.skip_blocks((2, 4))
    skipped = whole(x, t, y, return_blocks=(3, 5))
    found = pruned(x, t, y, return_blocks=(2, 3))
    assert torch.equal(found.pred, skipped.pred) and not torch.allclose(skipped.pred, expected.pred)
    assert torch.equal(found.blocks[2], skipped.blocks[3])


@pytest.mark.parametrize(
    ("pruned", "sentence"),
    [((6,), r"blocks \[6\] cannot be taken out of 5"), ((1, 2, 3, 4, 5), "cannot be taken out"),
     ((2,), "4 blocks are left, and the model has 3: give --depth 4")],
)  # fmt: skip
def test_blocks_that_cannot_be_pruned_are_named(pruned, sentence):
    shape = dict(input_size=8, patch_size=2, hidden_size=32, num_heads=2, num_classes=10)
    with pytest.raises(ValueError, match=sentence):
        adapt(SiT(depth=5, **shape).state_dict(), SiT(depth=3, **shape), pruned=pruned)
