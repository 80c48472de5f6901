"""LayerSync (arXiv 2510.12581) for any torch model: LayerSync the loss, record_blocks the taps.

Beside it its rivals, each in its own file: Dispersive, Alignment (REPA, iREPA, REED), SRA, SRA2.
"""

from .alignment import Alignment, Target
from .dispersive import Dispersive, dispersion
from .layersync import LayerSync
from .pairs import admissible_pairs, check_pairs, default_pair, default_weight
from .projector import TokenConvolution, mlp
from .recording import find_blocks, record_blocks
from .regulariser import Context, Regulariser
from .relations import check_pool, relation, trd
from .schedules import SCHEDULES, constant, cosine_decay, linear_decay, sra_decay, stop_at
from .similarity import SIMILARITIES, centred, cosine, smooth_l1, spatial
from .sra import SRA, SRA2, patchify
from .telemetry import alarms, effective_rank, gradient_ratio, statistics

__version__ = "1.0.0"
__all__ = [
    "SCHEDULES",
    "SIMILARITIES",
    "SRA",
    "SRA2",
    "Alignment",
    "Context",
    "Dispersive",
    "LayerSync",
    "Regulariser",
    "Target",
    "TokenConvolution",
    "admissible_pairs",
    "alarms",
    "centred",
    "check_pairs",
    "check_pool",
    "constant",
    "cosine",
    "cosine_decay",
    "default_pair",
    "default_weight",
    "dispersion",
    "effective_rank",
    "find_blocks",
    "gradient_ratio",
    "linear_decay",
    "mlp",
    "patchify",
    "record_blocks",
    "relation",
    "smooth_l1",
    "spatial",
    "sra_decay",
    "statistics",
    "stop_at",
    "trd",
]
