"""The batches of a training run: from any step on, read ahead, on the device."""

from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader

from runtime.config import TrainConfig
from runtime.distributed import Ranks
from runtime.prefetch import Prefetch

from .domain import Batch, DataSet, loader_of
from .order import GlobalBatches


def loader(
    config: TrainConfig, images: DataSet, ranks: Ranks, *, start: int, shift: int = 0
) -> DataLoader:
    """This rank's batches after `start` steps; step s is of the batch s + shift."""
    order = GlobalBatches(
        len(images), config.global_batch_size, seed=config.global_seed, start=start + shift,
        stop=config.max_steps + shift, rank=ranks.rank, ranks=ranks.size,
        micro_batches=config.grad_accum,
    )  # fmt: skip
    # Latents are gathered from memory maps in the prefetching thread: processes would only copy.
    workers = config.num_workers if images.decodes else 0
    return loader_of(images, order, workers)


class Feed:
    """This rank's batches, read ahead and on the device, from any step on; see `loader`.

    Attributes:
        waited: seconds that the loop has waited for data so far.
    """

    def __init__(
        self, config: TrainConfig, images: DataSet, ranks: Ranks,
        attach: Callable[[Batch], Batch],
    ) -> None:  # fmt: skip
        self.config, self.images, self.ranks, self.attach = config, images, ranks, attach
        self.shift, self.waited_before = 0, 0.0
        self.ahead: Prefetch | None = None

    def seek(self, step: int, shift: int) -> None:
        """Read from the step that comes after `step` on; the first batch is there on return.

        Raises:
            LocalError: something is wrong with it.
        """
        self.close()
        self.shift = shift
        read = loader(self.config, self.images, self.ranks, start=step, shift=shift)
        read = map(self.attach, read)
        self.ahead = Prefetch(read, Batch.to_device, self.ranks.device)
        self.first: Batch | None = next(self.ahead).checked()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """
        Raises:
            LocalError: something is wrong with it.
        """
        first, self.first = self.first, None
        return next(self.ahead).checked() if first is None else first

    def images_of(self, step: int) -> list[int]:
        """The numbers of the images of a step, over all ranks."""
        read = loader(self.config, self.images, self.ranks, start=step - 1, shift=self.shift)
        return read.batch_sampler.global_batch(step - 1 + self.shift).index.tolist()

    @property
    def waited(self) -> float:
        return self.waited_before + (self.ahead.waited if self.ahead else 0.0)

    def close(self) -> None:
        if self.ahead:
            self.waited_before = self.waited
            self.ahead.__exit__()
            self.ahead = None

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *error) -> None:
        self.close()
