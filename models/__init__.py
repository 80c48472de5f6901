"""Networks: x_t, t, condition -> Output(pred, blocks). `from models import SiT_models`."""

from .checkpoints import adapt, architecture_of, check_state, load
from .denoiser import Denoiser, Output, Task
from .dit import dit_config, dit_weights, from_dit
from .flops import train_flops
from .mdm import MDM
from .names import architecture, create
from .pretrained import ADAPTER, KINDS, Pretrained, adapter_of
from .sit import SIZES, SiT, SiT_models

__all__ = [
    "ADAPTER",
    "KINDS",
    "MDM",
    "SIZES",
    "Denoiser",
    "Output",
    "Pretrained",
    "SiT",
    "SiT_models",
    "Task",
    "adapt",
    "adapter_of",
    "architecture",
    "architecture_of",
    "check_state",
    "create",
    "dit_config",
    "dit_weights",
    "from_dit",
    "load",
    "train_flops",
]
