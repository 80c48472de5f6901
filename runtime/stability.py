"""Steps that are not taken because their gradient or loss is not to be trusted; and the way back.

What a step is refused for is decided on the device, the same on all ranks, and nothing waits for
it: the optimizer and the EMA get the answer as a tensor. The host looks at log lines."""

from typing import Any

import torch
from torch import Tensor

WINDOW = 100  # steps over which the loss's mean and deviation run
MOST_RETURNS = 3  # to one checkpoint
COUNTS = ("skipped", "in_row", "longest", "shift", "rollbacks", "returned_to", "returns")
REASONS = ("", "its gradient is not finite", "its loss is a spike")


class Guard:
    """Which steps are refused, how many there were, and how far the data order is shifted.

    Args:
        spike_sigma: a loss this many running deviations above its running mean is refused; 0: none.

    Attributes:
        skipped: refused steps of the run.
        in_row: refused steps up to the latest one; longest: the most in a row since `broke_down`
            was asked last.
        shift: step s reads the batch s + shift.
        rollbacks: of the run; returns: the latest ones of them, all to the step `returned_to`.
    """

    def __init__(self, device: torch.device, spike_sigma: float = 0.0) -> None:
        self.spike_sigma = spike_sigma
        # Steps that were taken, and the running mean and variance of their losses.
        self.running = torch.zeros(3, dtype=torch.float64, device=device)
        self.unseen: list[Tensor] = []  # of every step since the latest look, a number of REASONS
        self.skipped = self.in_row = self.longest = self.shift = self.rollbacks = 0
        self.returned_to = self.returns = 0

    def refuses(self, norm: Tensor, loss: Tensor | None = None) -> Tensor:
        """Whether a step is refused, bool (), on the device.

        Args:
            norm: of the whole gradient, ().
            loss: the mean over all ranks, (); not needed where spikes are not looked for.
        """
        finite = norm.isfinite()
        reason = (~finite).to(torch.int8)
        if self.spike_sigma:
            count, mean, variance = self.running
            spike = (loss - mean > self.spike_sigma * variance.sqrt()) & (count >= WINDOW)
            reason = reason + 2 * (finite & spike).to(torch.int8)
            self.running = torch.where(reason > 0, self.running, self.after(loss.double()))
        self.unseen.append(reason)
        return reason > 0

    def after(self, loss: Tensor) -> Tensor:
        """`running` with one loss more; of few losses, it is their plain mean and variance."""
        count, mean, variance = self.running
        share = 1 / (count + 1).clamp(max=WINDOW)
        away = loss - mean
        variance = (1 - share) * (variance + share * away.square())
        return torch.stack([count + 1, mean + share * away, variance])

    def look(self, step: int) -> dict[int, str]:
        """The steps refused since the latest look, and why; waits for the device.

        Args:
            step: steps done so far.
        """
        reasons = torch.stack(self.unseen).tolist() if self.unseen else []
        self.unseen = []
        for reason in reasons:
            self.in_row = self.in_row + 1 if reason else 0
            self.longest = max(self.longest, self.in_row)
        first = step - len(reasons) + 1
        refused = {first + i: REASONS[reason] for i, reason in enumerate(reasons) if reason}
        self.skipped += len(refused)
        return refused

    def broke_down(self, most: int) -> bool:
        """Whether more steps in a row than `most` were refused since this was asked last."""
        longest, self.longest = self.longest, 0
        return longest > most

    def went_back(self, step: int, lost: int, before: dict[str, Any]) -> None:
        """After a rollback: the batches of the lost steps are passed over.

        Args:
            step: of the checkpoint, which has been read into this.
            lost: steps done since.
            before: `content` before that.

        Raises:
            FloatingPointError: it went back there too often.
        """
        self.skipped, self.rollbacks = before["skipped"], before["rollbacks"] + 1
        self.shift = before["shift"] + lost
        self.unseen, self.in_row, self.longest = [], 0, 0
        self.returns = before["returns"] + 1 if before["returned_to"] == step else 1
        self.returned_to = step
        if self.returns > MOST_RETURNS:
            raise FloatingPointError(
                f"training broke down {self.returns} times after step {step}, each time with "
                "other data: lower --lr, give --clip-grad-norm, or go on from an older checkpoint"
            )

    def content(self) -> dict[str, Any]:
        """What a checkpoint stores, after a look."""
        return {name: getattr(self, name) for name in (*COUNTS, "running")}

    def resume(self, content: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: it is no `content`.
        """
        try:
            for name in COUNTS:
                setattr(self, name, int(content.get(name, 0)))
                if getattr(self, name) < 0:
                    raise ValueError(f"{name} is below 0")
            self.running = self.running.clone().copy_(content.get("running", torch.zeros(3)))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError("its counts of skipped steps are damaged") from error
