"""Networks by the name that --model gives."""

from functools import partial
from typing import Any

from .denoiser import Denoiser, Task
from .mdm import MDM
from .pretrained import KINDS, Pretrained
from .sit import SiT_models

NETWORKS: dict[str, partial] = SiT_models | {
    "MDM": partial(MDM, hidden_size=512, depth=8, num_heads=4, dropout=0.1),
    **{
        name: partial(Pretrained, kind=name, pretrained=kind.hub_id, lora_rank=32, lora_alpha=None)
        for name, kind in KINDS.items()
    },
}


def architecture(name: str, **overrides: int | float | str | None) -> dict[str, Any]:
    """Arguments of a network for its name, `overrides` (depth, hidden_size, num_heads, ...)
    replacing the named size's where they are not None.

    Raises:
        ValueError: an unknown name, or an argument that it does not have.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown model {name!r}; choose from {', '.join(NETWORKS)}")
    size = NETWORKS[name].keywords
    given = {key: value for key, value in overrides.items() if value is not None}
    if foreign := sorted(given.keys() - size.keys()):
        raise ValueError(f"--{foreign[0].replace('_', '-')}: {name} has none, leave it out")
    return size | given


def create(name: str, task: Task, **overrides: int | float | str | None) -> Denoiser:
    """A new network by its name.

    Raises:
        ValueError: an unknown name, or a network that is not for this task.
    """
    size = architecture(name, **overrides)
    return NETWORKS[name].func.made_for(task, **size)
