"""What the network costs: FLOPs, graphs, memory. No timing: that is for `benchmarks`."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from layersync import LayerSync
from models import SiT, SiT_models, train_flops
from transport import Sampler, TrainingStep, create_transport

SMALL = dict(input_size=4, depth=3, hidden_size=32, num_heads=2, num_classes=3)
BACKEND = "aot_eager"  # needs no C++ compiler


def inputs(batch=2, size=4):
    x = torch.randn(batch, 4, size, size)
    return x, torch.rand(batch), torch.zeros(batch, dtype=torch.long)


@pytest.mark.parametrize("size, gflops", [("B", 138.02), ("L", 484.18), ("XL", 711.72)])
def test_flops_of_a_training_image_are_the_published_ones(size, gflops):
    with torch.device("meta"):
        model = SiT_models[f"SiT-{size}/2"]()
    assert train_flops(model) / 1e9 == pytest.approx(gflops, abs=0.01)


def test_flops_are_counted_for_any_grid_and_condition():
    shape = dict(patch_size=(1, 2, 2), hidden_size=36, depth=2, num_heads=2)
    model = SiT(input_size=(2, 4, 4), num_classes=5, multi_label=True, **shape)
    assert train_flops(SiT(input_size=(4, 4, 4), num_classes=0, **shape)) > train_flops(model) > 0


class Devices(TorchDispatchMode):
    """Notes the device of every tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen |= {leaf.device.type for leaf in tree_leaves(result) if torch.is_tensor(leaf)}
        return result


def test_a_training_step_makes_no_tensor_on_the_host():
    with torch.device("meta"):
        model = SiT(**SMALL)
        x, t, y = inputs()
        step = TrainingStep(model, create_transport(), LayerSync([(1, 2)]))
        weight = torch.zeros(())
    with Devices() as devices:
        step(x, x, t, {"y": y}, weight).total.backward()
    assert devices.seen == {"meta"}


@pytest.fixture
def graphs():
    """Counts compiled graphs; a graph break or a recompilation is one more."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def test_all_blocks_share_one_graph_that_is_never_made_anew(graphs, perturb):
    model = perturb(SiT(**SMALL))
    x, t, y = inputs()
    plain = model(x, t, y, return_blocks=(1, 3))
    model.compile_blocks(backend=BACKEND)
    for _ in range(3):
        compiled = model(x, t, y, return_blocks=(1, 3))
        compiled.pred.sum().backward()
    assert graphs() == 2, "one for the blocks, one for the final layer"
    torch.testing.assert_close(compiled.pred, plain.pred, rtol=1e-5, atol=1e-6)
    for number in (1, 3):
        torch.testing.assert_close(compiled.blocks[number], plain.blocks[number])
    for mode in (model.eval(), model.train(), model.eval()):
        with torch.no_grad():
            mode(x, t, y)
    assert graphs() == 4, "two more without gradients, whatever train and eval say"


def test_gradients_of_compiled_blocks_are_those_of_plain_ones(perturb):
    x, t, y = inputs()
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = perturb(SiT(**SMALL))
        step = TrainingStep(model, create_transport(), LayerSync([(1, 2)]))
        if compiled:
            model.compile_blocks(backend=BACKEND)
            step.compile_losses(backend=BACKEND, fullgraph=True)
        step(x, x.flip(0), t, {"y": y}, torch.tensor(0.5)).total.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm() + 1e-9


def test_the_losses_are_one_graph(graphs, perturb):
    step = TrainingStep(perturb(SiT(**SMALL)), create_transport(), LayerSync([(1, 2), (1, 3)]))
    step.compile_losses(backend=BACKEND, fullgraph=True)
    for number in range(3):
        x, t, y = inputs()
        step(x, x.flip(0), t, {"y": y}, torch.tensor(0.1 * number)).total.backward()
    assert graphs() == 1


def test_compiled_names_of_parameters_are_the_plain_ones():
    model = SiT(**SMALL)
    names = list(model.state_dict())
    model.compile_blocks(backend=BACKEND)
    assert list(model.state_dict()) == names


def test_sampling_keeps_no_block(perturb):
    """A block finds its input alive and no older output, in every call of the network."""
    model = perturb(SiT(**SMALL)).eval()
    made, kept = [], []

    def look(module, args):
        kept.append(
            sum(reference() is not None and reference() is not args[0] for reference in made)
        )

    for part in (*model.blocks, model.final_layer):
        part.register_forward_pre_hook(look)
        part.register_forward_hook(lambda module, args, out: made.append(weakref.ref(out)))
    Sampler(create_transport()).sample_ode(sampling_method="euler", num_steps=3)(
        inputs()[0], model, y=inputs()[2]
    )
    assert kept == [0] * 2 * 4
