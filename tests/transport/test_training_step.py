"""The training step: velocity loss and regulariser in one module, for any network."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transport_toys import golden, normal, toy_field

from layersync import LayerSync, Regulariser
from models import Output, SiT
from transport import TrainingStep, create_transport


class Seen(Regulariser):
    """Keeps the context that it is shown."""

    blocks = (1, 3)
    teacher_blocks = (2,)

    def velocity_weight(self, step):
        return 0.5

    def teacher_time(self, t, uniform):
        return (t + 0.2 * uniform).clamp(max=1)

    def penalty(self, context):
        self.context = context
        return context.blocks[3].square().mean()


BATCH = (normal(1, 6, 4, 4, 4), normal(2, 6, 4, 4, 4), torch.linspace(0.05, 0.95, 6))


def cond():
    return {"y": torch.tensor([0, 1, 2, 3, 0, 1])}


@pytest.fixture
def step(perturb):
    """step(regulariser, **transport): a training step around a tiny SiT, alike at every call."""

    def make(regulariser=None, **transport):
        torch.manual_seed(0)
        model = SiT(
            input_size=4,
            patch_size=1,
            hidden_size=16,
            depth=3,
            num_heads=2,
            num_classes=3,
            class_dropout_prob=0.0,
            learn_sigma=False,
        )
        return TrainingStep(perturb(model), create_transport(**transport), regulariser)

    return make


def gradients(module, losses):
    module.zero_grad()
    losses.total.backward()
    trained = [parameter for parameter in module.model.parameters() if parameter.requires_grad]
    return [parameter.grad.clone() for parameter in trained]


def stored_losses():
    return sorted(name[: -len("/loss")] for name in golden() if name.endswith("/loss"))


@pytest.mark.parametrize("name", stored_losses())
def test_losses_equal_the_public_code(name):
    """Its regulariser there: student z = the tokens of x_t, teacher z / 2 + network output."""

    class Public(nn.Module):
        def forward(self, x, t, return_blocks):
            pred = toy_field(x, t)
            z, o = (v.flatten(2).transpose(1, 2) for v in (x, pred))
            return Output(pred, {1: z, 2: z / 2 + o})

    stored = {
        key: torch.from_numpy(golden()[f"{name}/{key}"]) for key in ("loss", "reg", "x0", "t")
    }
    _, path, prediction, weight = name.split("/")
    transport = create_transport(path, prediction, None if weight == "None" else weight)
    module = TrainingStep(Public(), transport, LayerSync([(1, 2)]))
    x1 = normal(5, 6, 4, 4, 4)
    losses = module(x1, stored["x0"], stored["t"], {}, torch.tensor(0.2))
    velocity, reg = stored["loss"].mean(), stored["reg"].mean()
    torch.testing.assert_close(losses.velocity, velocity, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.reg, reg, rtol=0, atol=1e-6)
    torch.testing.assert_close(losses.total, velocity + 0.2 * reg, rtol=1e-6, atol=1e-6)


def test_weight_zero_is_vanilla_bit_for_bit(step):
    vanilla, synced = step(), step(LayerSync([(1, 3)]))
    plain = vanilla(*BATCH, cond(), torch.tensor(0.0))
    zero = synced(*BATCH, cond(), torch.tensor(0.0))
    assert torch.equal(plain.total, zero.total) and zero.reg < 0 == plain.reg
    for a, b in zip(gradients(vanilla, plain), gradients(synced, zero), strict=True):
        assert torch.equal(a, b)


def test_total_is_velocity_plus_weighted_regulariser(step):
    module = step(LayerSync([(1, 3)]))
    losses = module(*BATCH, cond(), torch.tensor(0.3))
    torch.testing.assert_close(losses.total.detach(), losses.velocity + 0.3 * losses.reg)
    assert [value.shape for value in losses] == [()] * 3
    assert [value.requires_grad for value in losses] == [True, False, False]
    zero = gradients(module, module(*BATCH, cond(), torch.tensor(0.0)))
    some = gradients(module, module(*BATCH, cond(), torch.tensor(0.3)))
    assert not all(torch.equal(a, b) for a, b in zip(zero, some, strict=True))


def test_without_regulariser_any_model_function_works():
    class Plain(nn.Module):
        def forward(self, x, t):
            return toy_field(x, t)

    losses = TrainingStep(Plain(), create_transport())(*BATCH, {}, torch.tensor(0.2))
    x1, noise, t = BATCH
    expected = create_transport().training_losses(toy_field, x1, x0=noise, t=t)["loss"].mean()
    assert torch.equal(losses.total, expected)
    assert torch.equal(losses.velocity, expected) and losses.reg == 0


def test_the_regulariser_sees_the_whole_step(step):
    seen = Seen()
    module, labels = step(seen), cond()
    tokens = torch.ones(6, 16, dtype=torch.bool)
    ema, targets = copy.deepcopy(module.model).eval(), (torch.ones(6, 2),)
    uniform = torch.linspace(0, 0.9, 6)
    settings = dict(token_mask=tokens, ema=ema, uniform=uniform, targets=targets)
    losses = module(
        *BATCH, labels, torch.tensor(1.0), velocity_weight=torch.tensor(0.5), **settings
    )
    context, (x1, noise, t) = seen.context, BATCH
    assert context.x is x1 and context.noise is noise and context.t is t
    assert context.cond is labels and context.token_mask is tokens
    assert sorted(context.blocks) == [1, 3] and context.targets is targets
    torch.testing.assert_close(context.x_t, t.view(-1, 1, 1, 1) * (x1 - noise) + noise)
    torch.testing.assert_close(losses.total, 0.5 * losses.velocity + losses.reg)
    # The EMA model sees the same data, noise and labels at its own time, and only so far.
    later = (t + 0.2 * uniform).clamp(max=1).view(-1, 1, 1, 1)
    seen_by_ema = ema(later * (x1 - noise) + noise, later.flatten(), **labels, return_blocks=(2,))
    assert list(context.teacher) == [2] and not context.teacher[2].requires_grad
    torch.testing.assert_close(context.teacher[2], seen_by_ema.blocks[2])


def test_projectors_of_a_regulariser_are_parameters_of_the_step_but_not_of_the_model(step):
    seen = Seen()
    seen.head = nn.Linear(16, 16)
    module = step(seen)
    assert "regulariser.head.weight" in dict(module.named_parameters())
    assert not any("head" in name for name in module.model.state_dict())


def test_losses_count_only_what_the_masks_say(step):
    module, (x1, noise, t) = step(LayerSync([(1, 3)])), BATCH
    mask = torch.zeros(6, 1, 4, 4, dtype=torch.bool)
    mask[:, :, :2] = True
    settings = dict(mask=mask, token_mask=mask.flatten(1))
    losses = module(x1, noise, t, cond(), torch.tensor(0.2), **settings)
    x_t, velocity = module.transport.path.sample(x1, noise, t)
    output = module.model(x_t, t, **cond(), return_blocks=(1, 3))
    kept = (output.pred - velocity)[:, :, :2]
    torch.testing.assert_close(losses.velocity, kept.square().mean().detach())
    cosine = F.cosine_similarity(output.blocks[1][:, :8], output.blocks[3][:, :8], dim=-1)
    torch.testing.assert_close(losses.reg, -cosine.mean().detach())
    whole = module(x1, noise, t, cond(), torch.tensor(0.2))
    assert (whole.velocity - losses.velocity).abs() > 1e-3
    assert (whole.reg - losses.reg).abs() > 1e-3


def test_losses_are_float32_under_autocast(step):
    module = step(LayerSync([(1, 3)]))
    x1, noise, t = BATCH
    x_t, _ = module.transport.path.sample(x1, noise, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = module(*BATCH, cond(), torch.tensor(0.2))
        output = module.model(x_t, t, **cond())
    assert output.pred.dtype == torch.bfloat16
    assert {value.dtype for value in losses} == {torch.float32}
    torch.testing.assert_close(losses.velocity, F.mse_loss(output.pred.float(), x1 - noise))


@pytest.mark.parametrize("prediction", ["velocity", "score"])
def test_the_step_compiles_as_one_graph(step, prediction):
    settings = dict(path_type="VP", prediction=prediction)
    module = step(LayerSync([(1, 2), (1, 3)]), **settings)
    arguments = (*BATCH, cond(), torch.tensor(0.2))
    eager = module(*arguments)
    expected = gradients(module, eager)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)(*arguments)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(module, compiled), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_step_never_reads_the_device(step):
    """On the meta device any read of a value raises."""
    module = step(LayerSync([(1, 3)])).to("meta")
    batch = [value.to("meta") for value in BATCH]
    labels = {"y": cond()["y"].to("meta")}
    losses = module(*batch, labels, torch.tensor(0.2, device="meta"))
    losses.total.backward()
    assert losses.total.shape == ()
