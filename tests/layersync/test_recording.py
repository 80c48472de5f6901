"""Hooks: the way into a model that knows nothing of LayerSync."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layersync import LayerSync, find_blocks, record_blocks
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


def test_a_copy_made_inside_the_with_records_nothing_later(model, inputs):
    """Of an EMA, say: the copy has the hooks, too, and they are idle."""
    with record_blocks(model.blocks, (2,)) as recorded:
        before = model(*inputs)
        ema = copy.deepcopy(model)
    features = recorded[2]
    torch.testing.assert_close(ema(*inputs), before)
    assert recorded[2] is features


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


def test_blocks_are_found_by_the_name_of_their_list_or_their_own(model):
    assert find_blocks(model, "blocks") == list(model.blocks)
    assert find_blocks(model, "blocks.5", "blocks.1") == [model.blocks[5], model.blocks[1]]
    assert find_blocks(nn.Sequential(model), "0.blocks") == list(model.blocks)
    named = nn.ModuleDict({"down": nn.Linear(1, 1), "up": nn.Linear(1, 1)})
    assert find_blocks(nn.Sequential(named), "0") == [named["down"], named["up"]]


@pytest.mark.parametrize(
    ("name", "near"),
    [("block", "blocks, "), ("blocks.6", "blocks.5, "), ("transformer.blocks", "blocks, ")],
)
def test_a_name_that_does_not_exist_is_answered_with_the_nearest(model, name, near):
    with pytest.raises(ValueError, match=f"^no module '{name}' in SiT: near are .*{near}"):
        find_blocks(model, name)


def test_a_model_of_one_module_has_no_near_names():
    with pytest.raises(ValueError, match="^no module 'x' in Identity: it has no modules inside$"):
        find_blocks(nn.Identity(), "x")


class Returning(nn.Module):
    """A block that returns what it is called with."""

    def forward(self, *output):
        return output if len(output) > 1 else output[0]


def recorded(*output, **options) -> torch.Tensor:
    block = Returning()
    with record_blocks([block], (1,), **options) as blocks:
        block(*output)
    return blocks[1]


IMAGE, TEXT, WEIGHTS = torch.randn(2, 4, 3), torch.randn(2, 6, 3), torch.randn(2, 1, 4, 4)


@pytest.mark.parametrize("output", [(IMAGE,), (IMAGE, "state"), (None, IMAGE), (WEIGHTS, IMAGE)])
def test_a_tuple_is_represented_by_its_only_tokens(output):
    assert recorded(*output) is IMAGE


@pytest.mark.parametrize("output", ["no tensor", WEIGHTS, {"sample": IMAGE}])
def test_a_block_that_returns_no_tokens_is_refused(output):
    with pytest.raises(ValueError, match=r"^block 1 returns no \(batch, tokens, width\) tensor"):
        recorded(output)


def test_text_is_never_taken_for_the_image():
    with pytest.raises(ValueError, match="^block 1 returns 2 .* tensors.*output: output"):
        recorded(TEXT, IMAGE)
    assert recorded(TEXT, IMAGE, tokens=lambda output: output[1]) is IMAGE


@pytest.mark.parametrize(
    ("output", "tokens"),
    [
        (torch.cat([TEXT, IMAGE], 1), lambda output: output[:, 6:]),
        (IMAGE.transpose(0, 1), lambda output: output.transpose(0, 1)),
        ({"sample": IMAGE}, lambda output: output["sample"]),
    ],
)
def test_tokens_picks_the_image_out_of_anything(output, tokens):
    assert torch.equal(recorded(output, tokens=tokens), IMAGE)


def test_tokens_that_give_no_tokens_are_refused():
    with pytest.raises(ValueError, match="^block 1 returns no"):
        recorded(IMAGE, tokens=lambda output: output[0])


def test_tokens_that_fail_are_told_which_block_returned_what():
    with pytest.raises(ValueError, match=r"^tokens=\.\.\. fails on what block 1 returns, a tuple"):
        recorded(TEXT, IMAGE, tokens=lambda output: output[2])


def test_a_block_within_a_checkpointed_stretch_gets_the_same_gradient(perturb):
    """As timm has it: several blocks in one checkpoint, the student in the middle, and a slice."""
    layers = [nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(6)]
    model, sync = perturb(nn.Sequential(*layers)), LayerSync([(2, 5)])
    x = torch.randn(3, 7, 16)

    def gradients(forward):
        model.zero_grad()
        with record_blocks(model, sync.blocks, tokens=lambda output: output[:, 1:]) as blocks:
            loss = forward(x).square().mean()
        (loss + sync(blocks)).backward()
        return [p.grad.clone() for p in model.parameters()]

    def checkpointed(x):
        x = checkpoint(model[:3], x, use_reentrant=False)
        return checkpoint(model[3:], x, use_reentrant=False)

    for a, b in zip(gradients(model), gradients(checkpointed), strict=True):
        assert torch.equal(a, b)


def test_a_backward_pass_inside_the_with_does_no_harm(model, inputs):
    sync = LayerSync([(2, 5)])
    model.activation_checkpointing = True

    def gradients(inside):
        model.zero_grad()
        with record_blocks(model.blocks, sync.blocks) as blocks:
            loss = model(*inputs).pred.square().mean()
            if inside:
                (loss + sync(blocks)).backward()
        if not inside:
            (loss + sync(blocks)).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(a, b)


def test_a_second_forward_pass_inside_the_with_is_refused(model, inputs):
    with record_blocks(model.blocks, (2,)) as blocks:
        model(*inputs)
        first = blocks[2]
        with pytest.raises(ValueError, match="^block 2 ran twice .*a `with` for every forward"):
            model(*inputs)
    assert blocks[2] is first


class InPlace(nn.Module):
    """A block that adds to the tensor that it is given, and returns it."""

    def __init__(self, compiled=False):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        if compiled:
            self.forward = torch.compile(self.forward, backend="eager")

    def forward(self, x):
        x += self.linear(x)
        return x


@pytest.mark.parametrize("compiled", [False, True])
def test_features_that_a_later_block_changes_in_place_are_refused(compiled):
    """Student and teacher would be one tensor: a loss of -1, which looks perfect."""
    model = nn.Sequential(*(InPlace(compiled) for _ in range(6)))
    with pytest.raises(
        ValueError, match=r"^the features of block 2, .* were changed in place .* x \+="
    ):
        with record_blocks(model, (2, 5)):
            model(torch.randn(3, 4, 16))
    with record_blocks(model, (6,)) as blocks:
        output = model(torch.randn(3, 4, 16))
    assert blocks[6] is output


def test_compiled_blocks_and_inference_mode_are_recorded(model, inputs):
    with torch.inference_mode(), record_blocks(model.blocks, (2, 5)) as blocks:
        model(*inputs)
    model.compile_blocks(backend="aot_eager")
    with record_blocks(model.blocks, (2, 5)) as compiled:
        model(*inputs)
    for number, features in blocks.items():
        torch.testing.assert_close(compiled[number], features)


def test_an_error_inside_the_with_is_not_hidden_by_what_it_left_changed():
    model = nn.Sequential(InPlace(), InPlace(), InPlace())
    with pytest.raises(RuntimeError, match="^mine$"), record_blocks(model, (1,)):
        model(torch.randn(3, 4, 16))
        raise RuntimeError("mine")


def test_a_model_compiled_whole_sees_hooks_of_its_own_with_alone(model, inputs):
    """Hooks, a plain call, hooks: features are right, or there are none, but never old ones."""
    compiled = torch.compile(model, backend="eager")

    def recorded(shift):
        with record_blocks(model.blocks, (2, 5)) as blocks:
            compiled(inputs[0] + shift, *inputs[1:])
        return blocks

    first = recorded(0)
    kept = dict(first)
    compiled(inputs[0] + 1, *inputs[1:])
    assert kept.keys() == first.keys() and all(kept[n] is first[n] for n in kept)
    for shift, blocks in ((0, first), (2, recorded(2))):
        expected = model(inputs[0] + shift, *inputs[1:], return_blocks=(2, 5)).blocks
        for number, found in blocks.items():
            torch.testing.assert_close(found, expected[number])
        if not blocks:
            with pytest.raises(ValueError, match="compile it block by block"):
                LayerSync([(2, 5)])(blocks)


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
