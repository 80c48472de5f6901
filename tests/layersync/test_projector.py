"""The heads between a block and its target."""

import math

import pytest
import torch
import torch.nn.functional as F

from layersync import TokenConvolution, mlp


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("width, count", [(768, 7_344_896), (1024, 7_869_184), (1152, 8_131_328)])
def test_repas_head_has_the_published_size(width, count):
    with torch.device("meta"):
        assert size(mlp(width, 2048, 2048, 768)) == count


@pytest.mark.parametrize("width, count", [(768, 2_361_600), (1024, 4_197_376), (1152, 5_311_872)])
def test_sras_head_has_the_published_size(width, count):
    with torch.device("meta"):
        assert size(mlp(width, 2 * width, width)) == count


def test_its_keys_are_the_public_checkpoints():
    names = {name.split(".")[0] for name in mlp(4, 8, 8, 3).state_dict()}
    assert names == {"0", "2", "4"}


def test_it_is_linear_silu_linear():
    head, x = mlp(4, 8, 3), torch.randn(2, 5, 4)
    hidden = x @ head[0].weight.T + head[0].bias
    expected = (hidden * hidden.sigmoid()) @ head[2].weight.T + head[2].bias
    torch.testing.assert_close(head(x), expected)


def test_weights_start_xavier_uniform_and_biases_at_zero():
    for weight, bias in (
        (mlp(64, 96, 32)[0].weight, mlp(64, 96, 32)[0].bias),
        (TokenConvolution(8, 16, (4, 4)).conv.weight, TokenConvolution(8, 16, (4, 4)).conv.bias),
    ):
        bound = math.sqrt(6 / sum(weight.flatten(1).shape))
        assert 0.95 * bound < weight.abs().max() <= bound
        torch.testing.assert_close(weight.std().item(), bound / math.sqrt(3), rtol=0.05, atol=0)
        assert not bias.any()


def test_the_convolution_sees_a_token_and_its_eight_neighbors_on_the_grid():
    """5 x 4 tokens in row-major order: token 6 is row 1, column 2."""
    head = TokenConvolution(3, 2, (5, 4))
    x = torch.randn(1, 20, 3, requires_grad=True)
    head(x)[0, 6].sum().backward()
    seen = x.grad.abs().sum(-1)[0].nonzero().flatten().tolist()
    assert seen == [row * 4 + column for row in (0, 1, 2) for column in (1, 2, 3)]
    image = x.detach().view(1, 5, 4, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(image, head.conv.weight, head.conv.bias, padding=1)
    torch.testing.assert_close(head(x), expected.permute(0, 2, 3, 1).reshape(1, 20, 2))


def test_the_convolution_needs_two_axes():
    with pytest.raises(ValueError, match="grid of 2 axes"):
        TokenConvolution(3, 2, (8,))
