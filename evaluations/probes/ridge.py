"""A linear probe in closed form: seconds, and nothing to tune."""

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-2  # times the number of images


def ridge_accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """The share of test features (M, D) that a linear map fitted to (N, D) reads right: its first
    guess is their class, or, where labels are multi-hot (N, K), one of theirs."""
    if y.ndim == 1:
        classes = int(max(y.max(), y_test.max())) + 1
        y, y_test = F.one_hot(y, classes), F.one_hot(y_test, classes)
    x, x_test = x.double(), x_test.double()
    mean, std = x.mean(0), x.std(0).clamp(min=1e-8)
    x, x_test = ((one - mean) / std for one in (x, x_test))
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    y = y.double()
    weights = torch.linalg.solve(gram, x.T @ (y - y.mean(0)))
    guess = (x_test @ weights + y.mean(0)).argmax(1, keepdim=True)
    return y_test.gather(1, guess).double().mean().item()
