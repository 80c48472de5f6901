"""Weights, EMA, optimizer and step: all that a checkpoint must hold to go on exactly."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .ema import EMA
from .parallel import load_whole, local, placed, whole
from .stability import Guard


class TrainState:
    """What a training step changes.

    Args:
        model: the network, DDP taken off; it may be sharded.
        regulariser: trained with it; without parameters for LayerSync.
        clip: largest norm of the gradient; 0: no clipping.
        spike_sigma: see Guard.
        warmup: steps over which the learning rate grows to `lr`.
    """

    def __init__(
        self, model: nn.Module, ema: EMA, regulariser: nn.Module, *,
        lr: float, weight_decay: float, clip: float, betas: tuple[float, float] = (0.9, 0.999),
        spike_sigma: float = 0.0, warmup: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.ema, self.regulariser = model, ema, regulariser
        self.clip, self.lr, self.warmup = clip, lr, warmup
        self.parameters = [*model.parameters(), *regulariser.parameters()]
        groups = [{"params": list(model.parameters())}]
        if heads := list(regulariser.parameters()):  # their authors do not decay them
            groups.append({"params": heads, "weight_decay": 0.0})
        # One kernel over all parameters: a third of the time of torch's default on a CPU.
        self.opt = torch.optim.AdamW(
            groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=True
        )
        self.guard = Guard(self.parameters[0].device, spike_sigma)
        self.step = 0

    def update(self, loss: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of the optimizer and of the EMA from the gradients there are; or none, where the
        guard refuses it: weights, moments and EMA stay as they are.

        Args:
            loss: see Guard.refuses.

        Returns:
            The norm of the gradient before clipping, and whether the step was refused; both ().
        """
        sharded = nn.utils.get_total_norm(self.gradients(self.parameters))
        norm = whole(sharded)
        refused = self.guard.refuses(norm, loss)
        if self.clip:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, sharded)
        if self.step < self.warmup:
            for group in self.opt.param_groups:
                group["lr"] = self.lr * (self.step + 1) / self.warmup
        self.opt.found_inf = refused.float()  # as a GradScaler tells it
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        self.ema.update(self.model, refused)
        self.step += 1
        return norm, refused

    def grad_norm(self, parameters: Iterable[nn.Parameter] | None = None) -> Tensor:
        """The norm of the gradient of all that is trained, or of some parameters, ()."""
        chosen = self.parameters if parameters is None else parameters
        return whole(nn.utils.get_total_norm(self.gradients(chosen)))

    def gradients(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        return [p.grad for p in parameters if p.grad is not None]

    def is_finite(self) -> Tensor:
        """1 where all of weights, EMA and moments are numbers, else 0; of this rank's parts, ()."""
        moments = [m[name] for m in self.opt.state.values() for name in ("exp_avg", "exp_avg_sq")]
        ema = [p for p in self.ema.model.parameters() if p.is_floating_point()]
        state = map(local, (*(p.detach() for p in self.parameters), *ema, *moments))
        parts = [part for part in state if part.numel()]
        return nn.utils.get_total_norm(parts, norm_type=math.inf).isfinite().float()

    def resume(self, origin: Checkpoint) -> None:
        """Go on from a checkpoint whose weights fit.

        Raises:
            ValueError: it holds no state to go on from, or another model's.
        """
        if origin.reversed_time:
            raise ValueError("a file of REPA cannot be resumed as a SiT: use --fine-tune")
        if not origin.opt or not origin.model or origin.step is None:
            raise ValueError(
                "there is no optimizer state or step, so it cannot be resumed: "
                "use --fine-tune to start from its EMA weights"
            )
        load_whole(self.model, origin.model)
        load_whole(self.ema.model, origin.ema)
        load_whole(self.regulariser, origin.regulariser)
        try:
            self.opt.load_state_dict(self.optimizer_placed(origin.opt))
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError("its optimizer state is not that of this model") from error
        self.guard.resume(origin.guard)
        self.step = origin.step

    def roll_back(self, origin: Checkpoint) -> None:
        """`resume`, but on to other data: what was read since is passed over.

        Raises:
            FloatingPointError: too often.
        """
        lost, before = self.step - origin.step, self.guard.content()
        self.resume(origin)
        self.guard.went_back(self.step, lost, before)

    def optimizer_placed(self, opt: dict[str, Any]) -> dict[str, Any]:
        """AdamW's state of whole tensors, each placed as the parameter that it belongs to."""
        # Settings are those of the flags: --resume-anyway may have changed them, and in groups that
        # are not fused, as other code's, torch would leave step counts on the CPU.
        groups = [
            ours | {"params": group["params"]}
            for ours, group in zip(
                self.opt.state_dict()["param_groups"], opt["param_groups"], strict=True
            )
        ]
        for number, moments in opt["state"].items():
            if not 0 <= float(moments["step"]) < math.inf:
                raise ValueError(f"step {number} is {moments['step']}")
            shape = self.parameters[number].shape
            for name in ("exp_avg", "exp_avg_sq"):
                if moments[name].shape != shape:
                    raise ValueError(f"{name} {number} is {tuple(moments[name].shape)}")
        state = {
            number: {
                name: placed(value.clone(), self.parameters[number])
                if torch.is_tensor(value)  # its own memory, not the file's
                else value
                for name, value in moments.items()
            }
            for number, moments in opt["state"].items()
        }
        return {"state": state, "param_groups": groups}

    def content(self) -> dict[str, Any]:
        """What a checkpoint stores; sharded tensors are still in parts."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "opt": self.opt.state_dict(),
            "regulariser": self.regulariser.state_dict(),
            "guard": self.guard.content(),
            "train_steps": self.step,
        }
