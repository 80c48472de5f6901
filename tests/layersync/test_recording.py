"""Hooks: the way into a model that knows nothing of LayerSync."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layersync import LayerSync, record_blocks
from models import SiT


@pytest.fixture
def model(perturb):
    return perturb(
        SiT(input_size=8, in_channels=3, hidden_size=48, depth=6, num_heads=4, num_classes=5)
    ).eval()


@pytest.fixture
def inputs():
    return torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 3])


def test_hooks_see_what_the_model_returns(model, inputs):
    with record_blocks(model.blocks, (2, 5)) as recorded:
        returned = model(*inputs, return_blocks=(2, 5)).blocks
    assert set(recorded) == {2, 5}
    assert all(recorded[number] is returned[number] for number in recorded)


def test_the_five_lines_of_the_readme_train_any_transformer():
    layers = [
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(6)
    ]
    model = nn.Sequential(*layers)
    sync = LayerSync(pairs=[(2, 4)], weight=0.2)
    with record_blocks(model, sync.blocks) as blocks:
        loss = model(torch.randn(3, 5, 16)).square().mean()
    loss = loss + sync.weight(0) * sync(blocks)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_hooks_are_gone_after_the_with(model, inputs):
    with record_blocks(model.blocks, (2,)) as recorded:
        model(*inputs)
    before = recorded[2]
    model(*inputs)
    assert recorded[2] is before
    assert not any(block._forward_hooks for block in model.blocks)


def test_hooks_are_gone_after_an_error(model, inputs):
    with pytest.raises(RuntimeError), record_blocks(model.blocks, (2,)):
        raise RuntimeError
    assert not any(block._forward_hooks for block in model.blocks)


def test_recording_survives_checkpointing(model, inputs):
    sync = LayerSync([(2, 5)])

    def gradients(checkpointed):
        model.activation_checkpointing = checkpointed
        model.zero_grad()
        with record_blocks(model.blocks, sync.blocks) as blocks:
            pred = model(*inputs).pred
        (pred.square().mean() + sync(blocks)).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(a, b)


def test_reentrant_checkpointing_is_refused_since_it_would_cut_the_gradient():
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    x = torch.randn(1, 5, 16, requires_grad=True)
    with pytest.raises(ValueError, match="use_reentrant=False"), record_blocks([block], (1,)):
        checkpoint(block, x, use_reentrant=True)


def test_a_block_that_does_not_exist_is_named(model):
    with pytest.raises(ValueError, match="block 7 does not exist.*1 to 6"):
        with record_blocks(model.blocks, (7,)):
            pass


def test_a_tuple_is_represented_by_its_first_element_and_other_things_are_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, "state"

    class Text(nn.Module):
        def forward(self, x):
            return "no tensor"

    x = torch.randn(1, 2, 3)
    with record_blocks([Pair()], (1,)) as blocks:
        model = Pair()
        model(x)
    assert blocks == {}
    pair, text = Pair(), Text()
    with record_blocks([pair], (1,)) as blocks:
        pair(x)
    assert blocks[1] is x
    with pytest.raises(ValueError, match="block 1 returns no"), record_blocks([text], (1,)):
        text(x)


def test_a_model_compiled_whole_that_ignores_hooks_is_an_error_not_a_zero(model, inputs):
    sync = LayerSync([(2, 5)])
    compiled = torch.compile(model, backend="aot_eager")
    compiled(*inputs)
    with record_blocks(model.blocks, sync.blocks) as blocks:
        compiled(*inputs)
    if blocks:  # a torch that honors them: then the features must be right
        expected = model(*inputs, return_blocks=sync.blocks).blocks
        torch.testing.assert_close(blocks[2], expected[2])
    else:
        with pytest.raises(ValueError, match="compile it block by block"):
            sync(blocks)


def test_blocks_not_asked_for_are_freed(model, inputs):
    alive = []

    def watch(_module, _inputs, output):
        alive.append(weakref.ref(output))

    handles = [block.register_forward_hook(watch) for block in model.blocks]
    with torch.no_grad():
        output = model(*inputs)
    for handle in handles:
        handle.remove()
    gc.collect()
    assert output.blocks == {}
    assert all(ref() is None for ref in alive)
