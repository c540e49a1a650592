"""Steps of samples that are alike: of one modality, or of similar length.

For training without packing, where a short sample beside a long one is padded. What is shuffled is then
whole steps, so samples of a step are no longer independent draws: packing is the better way where there
is no need to repeat a published recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# group_by_length of transformers sorts 50 batches together (trainer_pt_utils.get_length_grouped_indices)
STEPS_SORTED_TOGETHER = 50


@dataclass(eq=False)
class GroupedOrder:
    """An Order (data/mix.py) of an epoch, computed once per epoch and process.

    tokens, has_image: of every sample of the epoch, as Mix numbers them. In an epoch every sample comes once.
    by_modality: the steps of LLaVA-1.5 (group_by_modality_length of its trainer): all samples of a step have
    a picture, or none has; those that are left over of both fill the rest of the epoch. Otherwise samples
    of similar length: 50 steps of a random order are sorted by length and cut into steps. The order of the
    steps is random either way. Steps begin at multiples of samples_per_step of the run, so the two ends of
    an epoch may be parts of steps.
    """

    tokens: np.ndarray  # [N]
    has_image: np.ndarray  # bool [N]
    samples_per_step: int
    seed: int
    by_modality: bool
    _epoch: tuple[int, np.ndarray] | None = field(default=None, init=False, repr=False)

    def place(self, epoch: int, offset: int) -> int:
        """See Order.place."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._ordered(epoch)
        return int(self._epoch[1][offset])

    def _ordered(self, epoch: int) -> np.ndarray:
        """All places in the order of this epoch: [part of a step,] whole steps [, part of a step]."""
        size, num = self.samples_per_step, len(self.tokens)
        digest = hashlib.blake2b(f"{self.seed}/{epoch}/grouped".encode(), digest_size=16).digest()
        # RandomState and not Generator: only its numbers never change with NumPy's version (NEP 19)
        random = np.random.RandomState(np.frombuffer(digest, dtype=np.uint32))
        shuffled = np.argsort(random.random_sample(num), kind="stable")
        groups = [shuffled]
        if self.by_modality:
            groups = [shuffled[self.has_image[shuffled]], shuffled[~self.has_image[shuffled]]]
        head = min(-epoch * num % size, num)
        num_steps = (num - head) // size
        steps: list[np.ndarray] = []
        rest: list[np.ndarray] = []
        for group in groups:
            whole = len(group) // size * size
            steps += self._cut(group[:whole])
            rest.append(group[whole:])
        order = np.argsort(random.random_sample(len(steps)), kind="stable")
        steps = [steps[i] for i in order]
        # the two ends of the epoch need samples too: they may cost a step, and leave enough for a mixed one
        left = np.concatenate([*rest, *steps[num_steps:]])
        left = left[np.argsort(random.random_sample(len(left)), kind="stable")]
        return np.concatenate([left[:head], *steps[:num_steps], left[head:]])

    def _cut(self, places: np.ndarray) -> Sequence[np.ndarray]:
        """Whole steps of these places."""
        if self.by_modality:
            together = self.samples_per_step
        else:
            together = self.samples_per_step * STEPS_SORTED_TOGETHER
        found: list[np.ndarray] = []
        for start in range(0, len(places), together):
            block = places[start : start + together]
            block = block[np.argsort(-self.tokens[block], kind="stable")]
            found += np.split(block, len(block) // self.samples_per_step)
        return found
