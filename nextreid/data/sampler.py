"""P identities × K instances per batch, for batch-hard triplets."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from .rng import seeded_rng


class PKSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of P identities with K instances each.

    The rule of the multi-modal re-identification code bases: the samples of each identity are shuffled and cut into
    chunks of K (a remainder is left out in this epoch; an identity with fewer than K samples gives one chunk drawn
    with replacement); then P random identities that still have a chunk give one each, until fewer than P are left.

    The batches are a function of (`pids`, seed, epoch). Of R processes each gets P / R whole identities of every batch,
    and all get the same number of batches. Items are ``(index, epoch, slot)``, where slot counts the drawn instances of
    the epoch, so that a sample drawn twice is augmented twice.

    Args:
        pids: Identity of each sample.
        num_ids: P, identities per batch.
        num_instances: K, instances of each.
        seed: Seed of the run.
        rank: Which of the processes this one is, counted from 0.
        world_size: Number of processes R that share each batch.

    Raises:
        ValueError: If P or K is too small for triplets, R does not divide P, an identity is unknown (-1), or there are
            fewer than P.
    """

    def __init__(
        self,
        pids: Sequence[int] | np.ndarray,
        num_ids: int,
        num_instances: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_ids < 2 or num_instances < 1:
            raise ValueError(
                f"PKSampler needs num_ids >= 2 (a triplet needs two identities) and num_instances >= 1, "
                f"got num_ids={num_ids}, num_instances={num_instances}"
            )
        if num_ids % world_size:
            raise ValueError(
                f"num_ids={num_ids} identities of a batch cannot be shared by {world_size} processes: set num_ids to a "
                f"multiple of {world_size}, or start another number of processes"
            )
        indices: dict[int, list[int]] = {}
        for index, pid in enumerate(pids):
            indices.setdefault(int(pid), []).append(index)
        if any(pid < 0 for pid in indices):
            raise ValueError("a pid below 0 means an unknown identity: leave these samples out of training")
        if len(indices) < num_ids:
            raise ValueError(
                f"a batch of num_ids={num_ids} identities cannot be drawn from {len(indices)}: "
                + (f"set num_ids to 2 … {len(indices)}" if len(indices) > 1 else "training needs at least two")
            )
        self.num_ids = num_ids
        self.num_instances = num_instances
        self.batch_size = num_ids * num_instances // world_size  # samples of a batch in this process
        self.seed = seed
        self._part = slice(rank * self.batch_size, (rank + 1) * self.batch_size)
        self._indices = [np.array(indices[pid]) for pid in sorted(indices)]
        self.set_epoch(0)

    def __repr__(self) -> str:
        identities = f"{self.num_ids} of {len(self._indices)} ids"
        return f"PKSampler({identities} x {self.num_instances} instances, {len(self)} batches in epoch {self.epoch})"

    def set_epoch(self, epoch: int) -> None:
        """Draw the batches of `epoch` (counted from 0); call before iterating over it."""
        self.epoch = epoch
        rng, k = seeded_rng("sampler", self.seed, epoch), self.num_instances
        chunks: list[list[np.ndarray]] = []
        for indices in self._indices:
            many = len(indices) >= k
            order = rng.permutation(indices) if many else rng.choice(indices, k, replace=True)
            chunks.append([order[start : start + k] for start in range(0, len(order) - k + 1, k)])
        left = list(range(len(chunks)))
        self._batches: list[list[int]] = []
        while len(left) >= self.num_ids:
            chosen = [left[i] for i in rng.permutation(len(left))[: self.num_ids]]
            self._batches.append(np.concatenate([chunks[i].pop() for i in chosen]).tolist())
            left = [i for i in left if chunks[i]]

    def __len__(self) -> int:
        """Return the exact number of batches in the current epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        """Yield this process's lists of ``P / R * K`` items ``(index, epoch, slot)``, one identity after the other."""
        epoch = self.epoch
        for number, batch in enumerate(self._batches):
            first = number * len(batch)
            yield [(index, epoch, first + i) for i, index in enumerate(batch)][self._part]
