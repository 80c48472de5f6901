"""Losses of the joint batch, each of two ranks holding half of it.

DDP averages the gradients of the ranks: half of each rank's must be the joint loss's.
"""

from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from regulariser_toys import context, features, gradient

from layersync import Dispersive, LayerSync, centred

REGULARISERS = {
    "dispersive": lambda: Dispersive(2, gather=True),
    "centred": lambda: LayerSync([(2, 5)], similarity=partial(centred, all_ranks=True)),
}
RUNS = [(name, compiled) for name in REGULARISERS for compiled in (False, True)]


def blocks():
    return {2: features(4, 3, 8, seed=1), 5: features(4, 3, 8, seed=2)}


def half(rank: int, folder: str) -> None:
    """Loss and student's gradient of one rank, of every run."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seen = {}
    for name, compiled in RUNS:
        own = {k: b.detach().chunk(2)[rank].requires_grad_() for k, b in blocks().items()}
        penalty = REGULARISERS[name]().penalty
        if compiled:
            penalty = torch.compile(penalty, fullgraph=True, backend="aot_eager")
        loss = penalty(context(own))
        seen[name, compiled] = loss.detach(), gradient(loss, own[2])
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(half, (str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name, compiled", RUNS)
def test_two_ranks_have_the_value_and_the_gradient_of_one(name, compiled, ranks):
    whole = blocks()
    joint = REGULARISERS[name]().penalty(context(whole))
    values, grads = zip(*(rank[name, compiled] for rank in ranks), strict=True)
    torch.testing.assert_close(sum(values) / 2, joint)
    torch.testing.assert_close(torch.cat(grads) / 2, gradient(joint, whole[2]))


def test_every_rank_has_the_gathered_loss(ranks):
    one, other = (rank["dispersive", False][0] for rank in ranks)
    assert one == other
