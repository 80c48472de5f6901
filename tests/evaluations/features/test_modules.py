"""Named modules of models that are not ours."""

import pytest
import torch
from torch import nn

from domains import Batch
from evaluations.features import Modules
from runtime.errors import InputError

BATCH = Batch(torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8), torch.zeros(3),
              torch.arange(3), [])  # fmt: skip


def tokens_of(batch):
    return batch.raw.float().flatten(2).mT / 255  # 64 tokens of 3 numbers


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(3, 1, 8, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()


def test_outputs_of_named_modules_are_blocks_in_the_order_of_the_names(encoder):
    subject = Modules(encoder, ["layers.2", "layers.0"], tokens_of, "model")
    found = subject(BATCH)
    first = encoder.layers[0](tokens_of(BATCH))
    torch.testing.assert_close(found[2], first)
    torch.testing.assert_close(found[1], encoder.layers[2](encoder.layers[1](first)))


def test_the_pass_ends_with_the_last_module_and_leaves_no_hook(encoder):
    ran = []
    encoder.layers[3].register_forward_hook(lambda *_: ran.append(3))
    Modules(encoder, ["layers.0", "layers.1"], tokens_of, "model")(BATCH)
    assert not ran
    encoder(tokens_of(BATCH))
    assert ran == [3]


def test_a_model_in_training_is_looked_at_in_eval_mode_and_left_as_it_was(encoder):
    encoder.train()
    subject = Modules(encoder, ["layers.1"], tokens_of, "model")
    assert torch.equal(subject(BATCH)[1], subject(BATCH)[1])  # dropout is off
    assert encoder.training and encoder.layers[0].training


def test_a_map_of_features_has_a_token_per_pixel():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten())
    (found,) = Modules(model, ["0"], lambda batch: batch.raw.float(), "model")(BATCH).values()
    expected = model[0](BATCH.raw.float())
    assert found.shape == (3, 64, 5) and torch.equal(found[:, 9], expected[:, :, 1, 1])


def test_what_is_no_block_is_refused(encoder):
    with pytest.raises(InputError, match="no module 'layer.0' in model: near are layers.0"):
        Modules(encoder, ["layer.0"], tokens_of, "model")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(ValueError, match="1 returns no"):
        Modules(flat, ["1"], lambda batch: batch.raw.float(), "model")(BATCH)
    spare = nn.ModuleDict({"used": nn.Identity(), "unused": nn.Identity()})
    spare.forward = lambda x: spare["used"](x)
    with pytest.raises(ValueError, match="unused did not run"):
        Modules(spare, ["used", "unused"], tokens_of, "model")(BATCH)
