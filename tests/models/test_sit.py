"""SiT: the public network in 2-D, the same network in 1-D and 3-D."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from layersync import LayerSync
from models import SIZES, SiT, SiT_models, Task, architecture, create
from models.embedders import sincos_positions

HERE = Path(__file__).parent
PARAMETERS = json.loads((HERE / "sit_parameters.json").read_text())


def public_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The seeded values under which the public code gave sit_reference.npz."""
    import zlib

    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    scale = 0.3 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.02
    if "adaLN" in name or "final_layer" in name:
        scale = 0.02
    return torch.from_numpy((random.standard_normal(tuple(shape)) * scale).astype(np.float32))


def normal(seed: int, *shape: int) -> torch.Tensor:
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def reference():
    return {k: torch.from_numpy(v) for k, v in np.load(HERE / "sit_reference.npz").items()}


@pytest.fixture(scope="module")
def small():
    model = SiT_models["SiT-S/2"](input_size=32, num_classes=1000).eval()
    own = model.state_dict()
    weights = {n: own[n] if n == "pos_embed" else public_weight(n, own[n].shape) for n in own}
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("name", PARAMETERS)
def test_public_sit_parameter_names_and_shapes(name):
    expected = dict(PARAMETERS[name])
    trainable = expected.pop("#trainable")
    with torch.device("meta"):
        model = SiT_models[name](input_size=32, num_classes=1000)
    assert {n: list(v.shape) for n, v in model.state_dict().items()} == expected
    assert list(model.state_dict()) == list(expected), "the optimizer's state follows this order"
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable


def test_outputs_equal_the_public_code(small, reference):
    x, t, y = normal(1, 2, 4, 32, 32), torch.tensor([0.13, 0.77]), torch.tensor([3, 1000])
    with torch.no_grad():
        pred, blocks = small(x, t, y, return_blocks=(2, 8))
        twice = torch.cat([x, x])
        time, labels = torch.full((4,), 0.4), torch.tensor([3, 7, 1000, 1000])
        guided = small.forward_with_cfg(twice, time, labels, 1.5)
    close = dict(rtol=0, atol=1e-5)
    torch.testing.assert_close(pred, reference["out"], **close)
    torch.testing.assert_close(blocks[2][:, ::37, ::53], reference["zs"], **close)
    torch.testing.assert_close(blocks[8][:, ::37, ::53], reference["gz"], **close)
    torch.testing.assert_close(LayerSync([(2, 8)])(blocks), reference["reg"], rtol=0, atol=1e-6)
    torch.testing.assert_close(guided, reference["cfg"], **close)


def test_positions_equal_the_public_table(small, reference):
    assert torch.equal(small.pos_embed[0, ::17, ::7], reference["pos_embed_384_16"])
    assert not small.pos_embed.requires_grad


def test_initial_values_are_the_public_ones():
    model = SiT_models["SiT-S/2"](input_size=32, num_classes=1000)
    weights = model.state_dict()
    zero = [n for n in weights if "adaLN" in n or "final_layer.linear" in n or n.endswith("bias")]
    assert all(not weights[name].any() for name in zero)
    for name in ("y_embedder.embedding_table", "t_embedder.mlp.0", "t_embedder.mlp.2"):
        assert weights[f"{name}.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    for name, fans in (("blocks.3.attn.qkv", 4 * 384), ("x_embedder.proj", 384 + 16)):
        bound = (6 / fans) ** 0.5  # xavier uniform; the patch convolution as a linear layer
        assert weights[f"{name}.weight"].abs().max().item() == pytest.approx(bound, rel=0.02)


def test_a_fresh_model_predicts_zero():
    model = SiT(input_size=8, hidden_size=48, depth=2, num_heads=4, num_classes=3)
    assert not model(torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([0, 3])).pred.any()


def tiny(**kwargs):
    defaults = dict(input_size=8, patch_size=2, in_channels=3, hidden_size=48, depth=3, num_heads=4)
    return SiT(**(defaults | dict(num_classes=5) | kwargs))


def test_asking_for_blocks_does_not_change_pred(perturb):
    model = perturb(tiny()).eval()
    arguments = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 3])
    asked = model(*arguments, return_blocks=(1, 3))
    assert torch.equal(asked.pred, model(*arguments).pred)
    assert set(asked.blocks) == {1, 3} and asked.blocks[1].shape == (2, 16, 48)
    assert model(*arguments).blocks == {}


@pytest.mark.parametrize("number", [0, 4, -1])
def test_a_block_that_does_not_exist_is_refused(number):
    with pytest.raises(ValueError, match=f"block {number} does not exist: choose 1 to 3"):
        tiny()(torch.randn(1, 3, 8, 8), torch.rand(1), torch.tensor([0]), return_blocks=(number,))


@pytest.mark.parametrize(
    ("input_size", "patch_size"),
    [((24,), 1), ((24,), 4), (8, 2), ((8, 16), 2), ((4, 8, 8), (1, 2, 2)), ((4, 8, 8), 2)],
)
def test_one_two_and_three_axes(input_size, patch_size, perturb):
    model = perturb(tiny(input_size=input_size, patch_size=patch_size))
    axes = model.config["input_size"]
    x = torch.randn(2, 3, *axes)
    pred, blocks = model(x, torch.rand(2), torch.tensor([0, 1]), return_blocks=(3,))
    assert pred.shape == x.shape
    assert blocks[3].shape[1] == model.pos_embed.shape[1] == torch.Size(model.grid).numel()


@pytest.mark.parametrize(
    ("input_size", "patch_size"), [((12,), 3), ((6, 8), (3, 2)), ((4, 6, 8), (1, 3, 2))]
)
def test_unpatchify_undoes_patchify(input_size, patch_size):
    """With an identity embedding, tokens put together again are the input."""
    model = tiny(input_size=input_size, patch_size=patch_size, learn_sigma=False)
    x = torch.randn(2, 3, *model.config["input_size"])
    tokens = []
    for b in range(2):
        for cell in np.ndindex(*model.grid):
            window = tuple(
                slice(i * p, (i + 1) * p) for i, p in zip(cell, model.patch, strict=True)
            )
            tokens.append(x[(b, slice(None), *window)].movedim(0, -1).flatten())
    tokens = torch.stack(tokens).view(2, -1, 3 * model.patch_volume)
    assert torch.equal(model.unpatchify(tokens), x)


def test_positions_tell_all_cells_of_a_3d_grid_apart():
    table = tiny(input_size=(4, 8, 8), patch_size=(1, 2, 2)).pos_embed[0]
    distance = torch.cdist(table, table) + torch.eye(len(table)) * 9
    assert distance.min() > 0.1


@pytest.mark.parametrize("width", [1024, 1152, 768, 384])
def test_positions_of_any_published_width_in_3d(width):
    assert tiny(input_size=(4, 4, 4), hidden_size=width).pos_embed.shape == (1, 8, width)


@pytest.mark.parametrize(("width", "time"), [(1152, 384), (1024, 344), (96, 32)])
def test_the_width_is_shared_by_time_height_and_width_and_time_gets_the_rest(width, time):
    table = sincos_positions(width, (3, 4, 5)).view(3, 4, 5, width)
    share = (width - time) // 2
    parts = dict(zip((2, 1, 0), table.split([share, share, time], dim=-1), strict=True))
    for axis, part in parts.items():
        others = [other for other in range(3) if other != axis]
        assert (part - part.mean(others, keepdim=True)).abs().max() < 1e-6
        assert (part.diff(dim=axis).abs().amax(-1) > 0.1).all()


def test_a_models_name_may_say_its_patch_axis_by_axis():
    assert architecture("SiT-XL/1x2x2") == SIZES["XL"] | {"patch_size": (1, 2, 2)}
    model = create("SiT-Ti/2x4x4", Task((1, 8, 16, 16)))
    assert model.grid == (4, 4, 4) and model.patch == (2, 4, 4)


def test_dropping_a_label_is_asking_for_the_null(perturb):
    model = perturb(tiny()).eval()
    x, t, y = torch.randn(3, 3, 8, 8), torch.rand(3), torch.tensor([0, 1, 2])
    dropped = model.drop({"y": y}, torch.tensor([False, True, False]))
    assert dropped["y"].tolist() == [0, 5, 2]
    assert torch.equal(model(x, t, **dropped).pred[1], model(x, t, **model.null({"y": y})).pred[1])


def test_train_mode_drops_labels_as_sit_does():
    model = tiny(class_dropout_prob=0.25).train()
    torch.nn.init.normal_(model.y_embedder.embedding_table.weight)
    y = torch.zeros(4000, dtype=torch.long)
    null = model.y_embedder.embedding_table.weight[-1]
    share = (model.y_embedder(y) == null).all(1).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.03)
    model.eval()
    assert not (model.y_embedder(y) == null).all(1).any()


def test_multi_label_condition_is_the_mean_of_its_rows():
    model = tiny(num_classes=4, multi_label=True)
    table = torch.nn.init.normal_(model.y_embedder.embedding_table.weight)
    y = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]])
    embedded = model.y_embedder(y)
    torch.testing.assert_close(embedded[0], (table[0] + table[2]) / 2)
    assert torch.equal(embedded[1], table[4]), "no label is the null condition"
    assert model.drop({"y": y}, torch.tensor([True, False]))["y"].sum() == 0
    assert torch.equal(model.y_embedder(model.null({"y": y})["y"])[0], table[4])


def test_unconditional_model_has_no_table_and_needs_no_y(perturb):
    model = perturb(tiny(num_classes=0))
    assert not any("y_embedder" in name for name in model.state_dict())
    x, t = torch.randn(2, 3, 8, 8), torch.rand(2)
    assert torch.equal(model(x, t).pred, model(x, t, torch.tensor([1, 2])).pred)


def test_timestep_table_moves_with_the_model_and_is_not_saved():
    model = tiny()
    assert "t_embedder.freqs" in dict(model.named_buffers())
    assert not any("freqs" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(patch_size=3), "does not divide"),
        (dict(num_heads=5), "5 heads do not divide the width 48"),
        (dict(input_size=(8, 8), patch_size=(2,)), "1, 2 or 3 axes"),
    ],
)
def test_impossible_shapes_fail_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'SiT-G/2'; choose from SiT-XL/2"):
        architecture("SiT-G/2")


def test_a_pass_for_blocks_only_ends_at_the_deepest(perturb):
    shape = dict(input_size=4, hidden_size=32, depth=3, num_heads=2, num_classes=3)
    model = perturb(SiT(**shape)).eval()
    x, t, y = torch.randn(2, 4, 4, 4), torch.rand(2), torch.tensor([0, 2])
    ran = []
    for number, part in enumerate((*model.blocks, model.final_layer), start=1):
        part.register_forward_hook(lambda *_, number=number: ran.append(number))
    only = model(x, t, y, return_blocks=(1, 2), only_blocks=True)
    assert ran == [1, 2] and only.pred is None
    whole = model(x, t, y, return_blocks=(1, 2)).blocks
    assert all(only.blocks[number].equal(whole[number]) for number in (1, 2))


def test_a_block_that_is_left_out_passes_on_what_it_is_given(perturb):
    shape = dict(input_size=4, hidden_size=32, depth=3, num_heads=2, num_classes=3)
    model = perturb(SiT(**shape)).eval()
    inputs = torch.randn(2, 4, 4, 4), torch.rand(2), torch.tensor([0, 2])
    whole = model(*inputs, return_blocks=(1, 2)).pred
    model.skip_blocks([2])
    output = model(*inputs, return_blocks=(1, 2))
    assert output.blocks[2] is output.blocks[1] and not output.pred.equal(whole)
    model.skip_blocks([])
    assert model(*inputs).pred.equal(whole)
    with pytest.raises(ValueError, match="block 4 does not exist"):
        model.skip_blocks([4])
