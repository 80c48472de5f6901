"""The public LayerSync code as an opponent: its step and samplers restated, or a checkout of it.

Restated in our words with what makes them slow, in float32 (TF32 on CUDA), uncompiled: a table of
frequencies made on the CPU in every forward, all blocks returned, times and SDE noise drawn on the
CPU, default AdamW, an EMA loop over names, three `.item()` a step, two network calls per SDE step.
Read at vita-epfl/LayerSync 4001d6d. Its DistributedDataParallel around one process is left out.
"""

import copy
import importlib.util
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from layersync import default_pair
from runtime.errors import InputError

Solve = Callable[..., Any]  # fn(z, model_fn, **cond) -> states of which [-1] is the sample


class PublicCode(NamedTuple):
    """What a benchmark needs of the public code, by its own interface."""

    # (**architecture, encoder_depth, gt_encoder_depth) -> network(x, t, y) -> (pred, (zs, zt, all))
    network: Callable[..., nn.Module]
    # (network, x, {"y": y}) -> {"loss": (B,), "reg": (B, N)}
    losses: Callable[[nn.Module, Tensor, dict[str, Tensor]], dict[str, Tensor]]
    sde: Callable[..., Solve]  # num_steps=N -> Euler-Maruyama, D = sigma, mean last step of 0.04
    ode: Callable[..., Solve]  # num_steps=N -> Heun


class RestatedSiT(models.SiT):
    """The public network: our parameters under their public names, its own forward passes."""

    def __init__(
        self, *, encoder_depth: int, gt_encoder_depth: int, class_dropout_prob: float = 0.1,
        **network: Any,
    ) -> None:  # fmt: skip
        super().__init__(**network, class_dropout_prob=class_dropout_prob)
        self.student, self.teacher = encoder_depth, gt_encoder_depth
        self.dropout = class_dropout_prob

    def forward(self, x: Tensor, t: Tensor, y: Tensor):
        x = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        if self.training:
            dropped = torch.rand(len(y), device=y.device) < self.dropout
            y = torch.where(dropped, self.num_classes, y)
        c = self.t_embedder.mlp(frequencies(t)) + self.y_embedder.embedding_table(y)
        outputs = {}
        for number, block in enumerate(self.blocks, start=1):
            x = outputs[number] = block_output(block, x, c)
        shift, scale = self.final_layer.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        x = self.final_layer.linear(modulated(self.final_layer.norm_final(x), shift, scale))
        x = self.unpatchify(x)
        pred = x.chunk(2, dim=1)[0] if self.learn_sigma else x
        return pred, (outputs[self.student], outputs[self.teacher], outputs)

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float):
        """The guided prediction of both halves of a doubled batch, on three channels."""
        half = x[: len(x) // 2]
        pred, _ = self(torch.cat([half, half]), t, y)
        cond, uncond = pred[:, :3].chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), pred[:, 3:]], dim=1), None


def frequencies(t: Tensor, size: int = 256) -> Tensor:
    """Sinusoids of t (B,) -> (B, size), from a table that is made on the CPU and copied."""
    half = size // 2
    table = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half).to(t)
    angles = t[:, None] * table
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(B, N, D) with shift and scale (B, 1, D)."""
    return x * (1 + scale) + shift


def block_output(block: nn.Module, x: Tensor, c: Tensor) -> Tensor:
    """One block, operation by operation: adaLN-zero around attention and MLP."""
    parts = block.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
    shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = parts
    B, N, D = x.shape
    h = modulated(block.norm1(x), shift_attn, scale_attn)
    qkv = block.attn.qkv(h).reshape(B, N, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    h = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(B, N, D)
    x = x + gate_attn * block.attn.proj(h)
    h = modulated(block.norm2(x), shift_mlp, scale_mlp)
    return x + gate_mlp * block.mlp.fc2(F.gelu(block.mlp.fc1(h), approximate="tanh"))


def restated_losses(network: nn.Module, x: Tensor, cond: dict[str, Tensor]) -> dict[str, Tensor]:
    noise = torch.randn_like(x)
    t = torch.rand(len(x)).to(x)
    at = t.view(-1, *[1] * (x.ndim - 1))
    pred, (student, teacher, _) = network(at * x + (1 - at) * noise, t, **cond)
    velocity = ((pred - (x - noise)) ** 2).flatten(1).mean(1)
    aligned = F.normalize(student, dim=-1) * F.normalize(teacher.clone().detach(), dim=-1)
    return {"loss": velocity, "reg": -aligned.sum(-1)}


def restated_sde(*, num_steps: int, last_step_size: float = 0.04) -> Solve:
    times = torch.linspace(0, 1 - last_step_size, num_steps)
    dt = times[1] - times[0]

    def sample(z: Tensor, model_fn: Callable[..., Any], **cond: Any) -> list[Tensor]:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return model_fn(x, t, **cond)[0]

        def score(x: Tensor, t: Tensor) -> Tensor:
            return (t * velocity(x, t.flatten()) - x) / ((1 - t) ** 2 + t * (1 - t))

        def drift(x: Tensor, t: Tensor) -> Tensor:
            """v + D score with D = sigma; each asks the network."""
            at = t.view(-1, *[1] * (x.ndim - 1))
            return velocity(x, t) + (1 - at) * score(x, at)

        x, states = z, []
        for time in times[:-1]:
            noise = torch.randn(x.size()).to(x)
            t = torch.ones(len(x)).to(x) * time
            jump = torch.sqrt(2 * (1 - t)).view(-1, *[1] * (x.ndim - 1)) * torch.sqrt(dt) * noise
            x = x + drift(x, t) * dt + jump
            states.append(x)
        t = torch.ones(len(x), device=x.device) * (1 - last_step_size)
        return [*states, x + drift(x, t) * last_step_size]

    return sample


def restated_ode(*, num_steps: int) -> Solve:
    from torchdiffeq import odeint

    def sample(z: Tensor, model_fn: Callable[..., Any], **cond: Any) -> Tensor:
        def velocity(t: Tensor, x: Tensor) -> Tensor:
            return model_fn(x, torch.ones(len(x)).to(x) * t, **cond)[0]

        return odeint(velocity, z, torch.linspace(0, 1, num_steps).to(z.device), method="heun2")

    return sample


RESTATED = PublicCode(RestatedSiT, restated_losses, restated_sde, restated_ode)


def public(path: str | None) -> PublicCode:
    """The code in a checkout of the public repository; without a path, the restated one.

    Its modules are loaded under private names, beside our `models` and `transport`.

    Raises:
        InputError: no such checkout, a package that it needs is missing, or another interface.
    """
    if path is None:
        return RESTATED
    networks = load("models", Path(path) / "models.py", path)
    transports = load("transport", Path(path) / "transport" / "__init__.py", path)
    try:
        transport = transports.create_transport()
        sampler = transports.Sampler(transport)
        return PublicCode(
            network=networks.SiT,
            losses=partial(transport.training_losses, loss_type="layer_sync"),
            sde=partial(sampler.sample_sde, diffusion_form="sigma"),
            ode=partial(sampler.sample_ode, sampling_method="heun2"),
        )
    except (AttributeError, TypeError) as error:
        raise InputError(f"--against {path} is not the public LayerSync code: {error}") from error


def load(name: str, file: Path, path: str) -> ModuleType:
    """A module or package of the checkout, as `benchmarks_public_{name}`."""
    if not file.is_file():
        raise InputError(
            f"--against {path}: there is no {file}; give a checkout of the public LayerSync code, "
            "with models.py and transport/"
        )
    private = f"benchmarks_public_{name}"
    folder = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(private, file, submodule_search_locations=folder)
    # What an earlier checkout left would answer the relative imports of this one.
    for loaded in [m for m in sys.modules if m == private or m.startswith(private + ".")]:
        del sys.modules[loaded]
    module = sys.modules[private] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise InputError(f"--against {path}: {file} cannot be loaded ({error})") from error
    return module


def public_network(code: PublicCode, model: models.SiT) -> nn.Module:
    """The public network with our model's architecture and weights, and its published pair."""
    config = dict(
        model.config, input_size=model.config["input_size"][-1], patch_size=model.patch[-1]
    )
    del config["multi_label"]  # the public code has classes alone
    student, teacher = default_pair(model.depth)
    network = code.network(**config, encoder_depth=student, gt_encoder_depth=teacher)
    network.load_state_dict(model.state_dict())
    return network


class PublicLoop:
    """The body of the public training loop for one process.

    Args:
        network: the public code's, already on the device; it is trained in place.
        weight: of the LayerSync term.
    """

    def __init__(self, code: PublicCode, network: nn.Module, *, weight: float) -> None:
        self.losses, self.weight = code.losses, weight
        self.network = network.train()
        self.ema = copy.deepcopy(network).requires_grad_(False).eval()
        self.opt = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0)
        self.loss = self.velocity = self.reg = 0.0

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step on model inputs x (B, C, h, w) and classes y (B,)."""
        terms = self.losses(self.network, x, {"y": y})
        velocity, reg = terms["loss"].mean(), terms["reg"].mean()
        loss = velocity + self.weight * reg
        self.opt.zero_grad()
        loss.backward()
        self.update()
        self.loss += loss.item()
        self.velocity += velocity.item()
        self.reg += reg.item()

    def update(self) -> None:
        self.opt.step()
        self.average()

    @torch.no_grad()
    def average(self, decay: float = 0.9999) -> None:
        averaged = dict(self.ema.named_parameters())
        for name, parameter in self.network.named_parameters():
            averaged[name].mul_(decay).add_(parameter.data, alpha=1 - decay)
