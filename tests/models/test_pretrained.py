"""Wan2.1 and CogVideoX as diffusers builds them, small: LayerSync goes in without an edit."""

import json

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from layersync import LayerSync
from models import KINDS, Task, create, load
from runtime.ema import EMA
from tests.pipelines import SAVES, WIDTH

SHAPE = (16, 3, 6, 8)
STEPS = {"Wan2.1": None, "CogVideoX": 1000}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: save(root / kind) for kind, save in SAVES.items()}


def task_of(kind: str, **changes) -> Task:
    objective = KINDS[kind].objective
    fields = dict(shape=SHAPE, text_width=WIDTH, steps=STEPS[kind], objective=objective)
    return Task(**fields | changes)


def network(kind, folders, *, lora_rank=2, bf16=False):
    torch.manual_seed(0)
    return create(
        kind, task_of(kind, bf16=bf16), pretrained=str(folders[kind]), lora_rank=lora_rank
    )


def inputs():
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, *SHAPE, generator=random)
    y, null = (torch.randn(2, 5, WIDTH, generator=random) for _ in range(2))
    return x, torch.tensor([0.1005, 0.8005]), {"y": y, "null": null}


def stirred(model):
    """Adapters that do something: as they begin, their product is zero."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapters_change_nothing_and_time_runs_to_the_data(kind, folders):
    import diffusers

    x, t, cond = inputs()
    ours = network(kind, folders)(x, t, **cond)
    assert ours.pred.shape == x.shape and ours.blocks == {}
    plain = getattr(diffusers, KINDS[kind].network).from_pretrained(
        folders[kind], subfolder="transformer"
    )
    if kind == "Wan2.1":
        text = torch.cat([cond["y"], torch.zeros(2, 512 - 5, WIDTH)], dim=1)
        theirs = -plain(x, torch.tensor([899.5, 199.5]), text).sample
    else:
        text = torch.cat([cond["y"], torch.zeros(2, 226 - 5, WIDTH)], dim=1)
        theirs = plain(x.transpose(1, 2), text, torch.tensor([899, 199])).sample.transpose(1, 2)
    torch.testing.assert_close(ours.pred, theirs, rtol=1e-4, atol=1e-4)


ADAPTED = {
    "Wan2.1": ("attn1", "attn2", "ffn.net.0.proj ffn.net.2"),
    "CogVideoX": ("attn1", "ff.net.0.proj ff.net.2"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_on_attention_and_feed_forward_of_every_block(kind, folders):
    """As the public fine-tuning code has them: q, k, v, o and both layers of the MLP."""
    *attentions, feed_forward = ADAPTED[kind]
    parts = [f"{one}.to_{part}" for one in attentions for part in ("q", "k", "v", "out.0")]
    model = network(kind, folders)
    names = {name.split(".lora_")[0] for name in model.state_dict()}
    prefix = f"network.{KINDS[kind].blocks}"
    wanted = [*parts, *feed_forward.split()]
    assert names == {f"{prefix}.{k}.{part}" for k in range(model.depth) for part in wanted}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_the_video_tokens_after_the_named_blocks(kind, folders):
    model = network(kind, folders)
    x, t, cond = inputs()
    seen = {}
    model.blocks[3].register_forward_hook(lambda _m, _i, out: seen.update(out=out))
    output = model(x, t, **cond, return_blocks=(1, 4))
    assert torch.equal(output.pred, model(x, t, **cond).pred)
    whole = seen["out"][0] if kind == "CogVideoX" else seen["out"]
    assert torch.equal(output.blocks[4], whole) and not torch.equal(*output.blocks.values())
    assert output.blocks[1].shape == (2, 3 * 3 * 4, model.width) and model.grid == (3, 3, 4)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_term_reaches_adapters_up_to_the_student_alike_under_checkpointing(kind, bf16, folders):
    model = stirred(network(kind, folders, bf16=bf16))
    x, t, cond = inputs()
    sync = LayerSync([(2, 4)])
    found = []
    for checkpointed in (False, True):
        model.activation_checkpointing = checkpointed
        sync(model(x, t, **cond, return_blocks=sync.blocks).blocks).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad(set_to_none=True)
    plain, checkpointed = found
    prefix = f"network.{KINDS[kind].blocks}."
    reached = {int(n.removeprefix(prefix).split(".")[0]) for n, g in plain.items() if g is not None}
    assert reached == {0, 1}  # nothing above the student, and of the network itself nothing
    assert all("lora_" in name for name, gradient in plain.items() if gradient is not None)
    for name, gradient in plain.items():
        if gradient is None:
            assert checkpointed[name] is None
        else:
            assert gradient.dtype == torch.float32 and torch.equal(gradient, checkpointed[name])
    assert sum(g.abs().sum() for g in plain.values() if g is not None) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_are_neither_copied_nor_stored(kind, folders):
    model = network(kind, folders)
    ema = EMA(model, decay=0.5)
    assert all("lora_" in name for name in model.state_dict())
    assert model.state_dict().keys() == ema.model.state_dict().keys()
    for (name, one), other in zip(model.named_parameters(), ema.model.parameters(), strict=True):
        assert (one is other) == ("lora_" not in name)
    start = {name: value.clone() for name, value in ema.model.state_dict().items()}
    stirred(model)
    ema.update(model)
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, (start[name] + model.state_dict()[name]) / 2)


@pytest.mark.parametrize("lora_rank", [2, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_and_the_pretrained_files_are_the_model(kind, lora_rank, folders):
    model = network(kind, folders, lora_rank=lora_rank)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.mul_(1.1).add_(0.01)
    x, t, cond = inputs()
    config = json.loads(json.dumps(model.config))
    again = load(model.state_dict(), config)
    assert torch.equal(again(x, t, **cond).pred, model(x, t, **cond).pred)
    config["network"]["num_layers"] = 4
    with pytest.raises(ValueError, match="does not exist in this model"):
        load(model.state_dict(), config)
    shallower = {name: value for name, value in model.state_dict().items() if ".4." not in name}
    with pytest.raises(ValueError, match="has num_layers 5, and what was fine-tuned had 4"):
        load(shallower, config)
    assert lora_rank or len(model.state_dict()) == len(list(model.parameters()))


def test_wan_keeps_its_clock_in_float32(folders):
    """Loaded in bfloat16, not cast to it, and without autocast: as its pipeline runs it."""
    import diffusers

    model = network("Wan2.1", folders, bf16=True)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert dtypes["network.condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert dtypes["network.blocks.0.scale_shift_table"] == torch.float32
    assert dtypes["network.blocks.0.attn1.to_q.base_layer.weight"] == torch.bfloat16
    assert dtypes["network.blocks.0.attn1.to_q.lora_A.default.weight"] == torch.float32
    x, t, cond = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        pred = model(x, t, **cond).pred
    plain = diffusers.WanTransformer3DModel.from_pretrained(
        folders["Wan2.1"], subfolder="transformer", torch_dtype=torch.bfloat16
    )
    text = torch.cat([cond["y"], torch.zeros(2, 512 - 5, WIDTH)], dim=1).bfloat16()
    theirs = -plain(x.bfloat16(), 1000 * (1 - t), text).sample
    assert torch.equal(pred, theirs.float())


def test_dropped_captions_become_no_text(folders):
    model = network("Wan2.1", folders)
    _, _, cond = inputs()
    dropped = model.drop(cond, torch.tensor([True, False]))
    assert torch.equal(dropped["y"], torch.stack([cond["null"][0], cond["y"][1]]))
    assert torch.equal(model.null(cond)["y"], cond["null"])


def test_compiled_blocks_give_the_same_gradients(folders):
    model = stirred(network("Wan2.1", folders))
    model.activation_checkpointing = True
    x, t, cond = inputs()
    sync = LayerSync([(2, 4)])
    found = []
    for _ in range(2):
        output = model(x, t, **cond, return_blocks=sync.blocks)
        (output.pred.square().mean() + sync(output.blocks)).backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
        model.compile_blocks(backend="aot_eager")
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "kind, changes, sentence",
    [
        ("Wan2.1", dict(objective=("GVP", "velocity")), "--path-type Linear --prediction velocity"),
        ("CogVideoX", dict(objective=("Linear", "velocity")), "--path-type CogVideoX"),
        ("Wan2.1", dict(text_width=0), "for videos with captions"),
        ("Wan2.1", dict(text_width=64), "takes 32 numbers per token of a text"),
        ("CogVideoX", dict(shape=(4, 3, 6, 8)), "takes 16 channels"),
        ("CogVideoX", dict(shape=(16, 3, 5, 8)), "cannot be cut into CogVideoX's patches"),
    ],
)
def test_what_it_is_not_for_is_one_sentence(kind, changes, sentence, folders):
    with pytest.raises(ValueError, match=sentence):
        create(kind, task_of(kind, **changes), pretrained=str(folders[kind]))


def test_files_that_are_not_its_own_are_one_sentence(folders, tmp_path):
    def asked(kind, pretrained):
        with pytest.raises(ValueError) as refusal:
            create(kind, task_of(kind), pretrained=str(pretrained))
        return str(refusal.value)

    said = asked("CogVideoX", folders["Wan2.1"])
    assert "holds a WanTransformer3DModel, and --model CogVideoX is" in said
    assert "no Wan2.1" in asked("Wan2.1", tmp_path)
    assert "be had from the hub" in asked("Wan2.1", "nobody/no-such-model")
    (tmp_path / "transformer").mkdir()
    config = (folders["Wan2.1"] / "transformer" / "config.json").read_text()
    (tmp_path / "transformer" / "config.json").write_text(config)
    assert "no Wan2.1" in asked("Wan2.1", tmp_path)
    from safetensors.torch import load_file, save_file

    weights = load_file(folders["Wan2.1"] / "transformer" / "diffusion_pytorch_model.safetensors")
    del weights["blocks.2.ffn.net.2.bias"]
    save_file(weights, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors",
              {"format": "pt"})  # fmt: skip
    assert "incomplete: it has no tensor blocks.2.ffn.net.2.bias" in asked("Wan2.1", tmp_path)


@pytest.mark.parametrize("library, sentence", [("peft", "needs peft"), ("diffusers", "diffusers")])
def test_absent_libraries_are_named(library, sentence, folders, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=f"{sentence}.*pip install"):
        create("Wan2.1", task_of("Wan2.1"), pretrained=str(folders["Wan2.1"]))


def test_a_block_that_does_not_exist_is_named(folders):
    x, t, cond = inputs()
    with pytest.raises(ValueError, match="block 6 does not exist: the model has blocks 1 to 5"):
        network("Wan2.1", folders)(x, t, **cond, return_blocks=(6,))
