"""Weights, EMA, optimizer and step: all that a checkpoint must hold to go on exactly."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .ema import EMA
from .parallel import load_whole, placed, whole


class TrainState:
    """What a training step changes.

    Args:
        model: the network, DDP taken off; it may be sharded.
        regulariser: trained with it; without parameters for LayerSync.
        clip: largest norm of the gradient; 0: no clipping.
    """

    def __init__(
        self, model: nn.Module, ema: EMA, regulariser: nn.Module, *,
        lr: float, weight_decay: float, clip: float,
    ) -> None:  # fmt: skip
        self.model, self.ema, self.regulariser = model, ema, regulariser
        self.clip = clip
        self.parameters = [*model.parameters(), *regulariser.parameters()]
        groups = [{"params": list(model.parameters())}]
        if heads := list(regulariser.parameters()):  # their authors do not decay them
            groups.append({"params": heads, "weight_decay": 0.0})
        # One kernel over all parameters: a third of the time of torch's default on a CPU.
        self.opt = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)
        self.step = 0

    def update(self) -> None:
        """One step of the optimizer and of the EMA, from the gradients there are."""
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        self.step += 1

    def grad_norm(self, parameters: Iterable[nn.Parameter] | None = None) -> Tensor:
        """The norm of the gradient before clipping, 0-dim; of all that is trained, or of some."""
        chosen = self.parameters if parameters is None else parameters
        gradients = [p.grad for p in chosen if p.grad is not None]
        return whole(nn.utils.get_total_norm(gradients))

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
        settings = [
            {name: group[name] for name in ("lr", "weight_decay")}
            for group in self.opt.param_groups
        ]
        try:
            self.opt.load_state_dict(self.optimizer_placed(origin.opt))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError("its optimizer state is not that of this model") from error
        for group, asked in zip(self.opt.param_groups, settings, strict=True):
            group.update(asked)  # --resume-anyway may have changed them
        self.step = origin.step

    def optimizer_placed(self, opt: dict[str, Any]) -> dict[str, Any]:
        """AdamW's state of whole tensors, each placed as the parameter that it belongs to."""
        # Other code's groups are not fused, and torch would leave their step counts on the CPU.
        groups = [group | {"fused": True, "foreach": None} for group in opt["param_groups"]]
        state = {
            number: {
                name: placed(value, self.parameters[number]) if torch.is_tensor(value) else value
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
            "train_steps": self.step,
        }
