"""Which samples of a step share a row, which rows a micro-batch, and which rank computes it.

The rows of a step are packed over all ranks together and then dealt out, from nothing but the lengths of
its samples: every rank makes the same plan by itself, and it does not know of workers or of where a run
began. What is paid for is the positions computed, rows times the longest row of a micro-batch, and the
slowest rank; so rows are made equally long, and every rank gets equally many.

Where lengths come from: up to LENGTHS_BY_ENCODING_RANKS ranks, each encodes the text of all samples of
a step, which takes below a millisecond a sample in a worker, and reads the pictures of its own rows only:
nothing has to be known before the first step. With more ranks that would repeat the same work too often,
and grouped sampling must know a whole epoch: both take the lengths from an index (data/lengths.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise

from prismcap.configs.schema.data import BatchConfig
from prismcap.data.schema import DataError

LENGTHS_BY_ENCODING_RANKS = 8
# rows are cut to the longest of their batch, rounded up (past row_tokens, if that is no multiple) to
# what matrix units like
_ROW_STEP_TOKENS = 8
_ROWS_TRIED = 3  # more find little more

Row = tuple[int, ...]  # samples, by their number in the step
MicroBatch = tuple[Row, ...]


def row_width(longest: int) -> int:
    """Positions of a row in a micro-batch whose longest row has `longest` tokens."""
    return -(-max(longest, 1) // _ROW_STEP_TOKENS) * _ROW_STEP_TOKENS


@dataclass(frozen=True)
class StepPlan:
    """ranks[r]: the micro-batches of rank r, in order; the longest row comes first."""

    ranks: tuple[tuple[MicroBatch, ...], ...]

    def micro_batches(self) -> Iterator[MicroBatch]:
        """Those of all ranks."""
        for rank in self.ranks:
            yield from rank

    def num_positions(self, tokens: Sequence[int]) -> int:
        """Positions computed on all ranks, padding included. tokens: lengths of the samples."""
        return sum(_positions(batch, tokens) for batch in self.micro_batches())

    def fill_share(self, tokens: Sequence[int]) -> float:
        """Tokens of samples among the positions computed; 1 for an empty plan."""
        samples = sum(tokens[i] for batch in self.micro_batches() for row in batch for i in row)
        return samples / self.num_positions(tokens) if samples else 1.0

    def rank_balance(self, tokens: Sequence[int]) -> float:
        """Positions of the average rank by those of the busiest: 1 when no rank waits for another."""
        busy = [sum(_positions(batch, tokens) for batch in rank) for rank in self.ranks]
        return sum(busy) / len(busy) / max(busy) if max(busy) else 1.0


def _positions(batch: MicroBatch, tokens: Sequence[int]) -> int:
    return len(batch) * row_width(max(sum(tokens[i] for i in row) for row in batch))


def plan_step(
    tokens: Sequence[int], num_images: Sequence[int], batch: BatchConfig, world_size: int = 1
) -> StepPlan:
    """The plan of a step whose sample i has tokens[i] tokens and num_images[i] pictures.

    Every sample is in one row; no row has more than row_tokens tokens, no micro-batch more than
    rows_per_micro_batch rows and images_per_micro_batch pictures (with anyres: tiles of pictures). Raises
    DataError for a sample that no row takes.
    """
    _check_fit(tokens, num_images, batch)
    if batch.packing:
        rows = _packed(tokens, num_images, batch, world_size)
    else:
        rows = [[i] for i in range(len(tokens))]
    return _dealt(rows, tokens, num_images, batch, world_size)


def _check_fit(tokens: Sequence[int], num_images: Sequence[int], batch: BatchConfig) -> None:
    for i, (length, images) in enumerate(zip(tokens, num_images, strict=True)):
        if length > batch.row_tokens or images > batch.images_per_micro_batch:
            raise DataError(
                f"sample {i} of {length} tokens and {images} pictures does not fit into a row of "
                f"{batch.row_tokens} tokens and {batch.images_per_micro_batch} pictures: keep "
                "data.max_tokens <= batch.row_tokens, and raise batch.images_per_micro_batch"
            )


def _packed(
    tokens: Sequence[int], num_images: Sequence[int], batch: BatchConfig, world_size: int
) -> list[list[int]]:
    """As few rows as best fit needs, rounded up to equally many per rank, and equally long if they can be."""
    limits = batch.row_tokens, batch.images_per_micro_batch
    fewest = best_fit(tokens, *limits, num_images)
    num_rows = min(-(-len(fewest) // world_size) * world_size, len(tokens))
    return even_rows(tokens, num_rows, *limits, num_images) or fewest


def best_fit(
    tokens: Sequence[int], row_tokens: int, row_images: int, num_images: Sequence[int]
) -> list[list[int]]:
    """Samples to few rows, best fit decreasing: within 11/9 of the fewest possible (Johnson 1973).

    Longest sample first (ties in the given order), into the fullest row that still takes it (ties: the
    oldest row). Every sample must fit into an empty row.
    """
    rows: list[list[int]] = []
    image_room: list[int] = []
    open_rows: list[tuple[int, int]] = []  # (room in tokens, row), sorted: the fullest row comes first
    for index in _longest_first(tokens):
        need = tokens[index]
        at = bisect_left(open_rows, (need, -1))
        while at < len(open_rows) and image_room[open_rows[at][1]] < num_images[index]:
            at += 1
        if at < len(open_rows):
            room, row = open_rows.pop(at)
        else:
            room, row = row_tokens, len(rows)
            rows.append([])
            image_room.append(row_images)
        rows[row].append(index)
        image_room[row] -= num_images[index]
        insort(open_rows, (room - need, row))
    return rows


def even_rows(
    tokens: Sequence[int], num_rows: int, row_tokens: int, row_images: int, num_images: Sequence[int]
) -> list[list[int]] | None:
    """Samples to `num_rows` rows of nearly equal length; None where a row would go over a limit.

    Longest sample first, into the emptiest row that takes it (Graham 1969: the longest row is within 4/3
    of the best); then samples of the longest row are exchanged while that makes it shorter.
    """
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    loads = [(0, 0, row) for row in range(num_rows)]  # (tokens, pictures, row): a heap
    heapify(loads)
    for index in _longest_first(tokens):
        full: list[tuple[int, int, int]] = []  # of pictures
        while loads and loads[0][1] + num_images[index] > row_images:
            full.append(heappop(loads))
        if not loads or loads[0][0] + tokens[index] > row_tokens:
            return None
        load, images, row = heappop(loads)
        rows[row].append(index)
        heappush(loads, (load + tokens[index], images + num_images[index], row))
        for entry in full:
            heappush(loads, entry)
    _level(rows, tokens, row_images, num_images)
    return rows


def _level(rows: list[list[int]], tokens: Sequence[int], row_images: int, num_images: Sequence[int]) -> None:
    """Exchange a sample of the longest row with one of the shortest rows, as long as the gap gets smaller."""
    loads = [sum(tokens[i] for i in row) for row in rows]
    images = [sum(num_images[i] for i in row) for row in rows]
    improved = len(rows) > 1
    while improved:
        improved = False
        order = sorted(range(len(rows)), key=loads.__getitem__)
        longest = order[-1]
        for shortest in order[:_ROWS_TRIED]:
            gap = loads[longest] - loads[shortest]
            # what is left of the gap, and the places of the two samples in their rows
            found = [
                (abs(gap - 2 * (tokens[a] - tokens[b])), i, k)
                for i, a in enumerate(rows[longest])
                for k, b in enumerate(rows[shortest])
                if 0 < tokens[a] - tokens[b] < gap
                and images[shortest] + num_images[a] - num_images[b] <= row_images
                and images[longest] + num_images[b] - num_images[a] <= row_images
            ]
            if found:
                _, i, k = min(found)
                a, b = rows[longest][i], rows[shortest][k]
                rows[longest][i], rows[shortest][k] = b, a
                for row, more, less in ((longest, b, a), (shortest, a, b)):
                    loads[row] += tokens[more] - tokens[less]
                    images[row] += num_images[more] - num_images[less]
                improved = True
                break


def _longest_first(tokens: Sequence[int]) -> list[int]:
    return sorted(range(len(tokens)), key=lambda i: -tokens[i])


def _dealt(
    rows: list[list[int]],
    tokens: Sequence[int],
    num_images: Sequence[int],
    batch: BatchConfig,
    world_size: int,
) -> StepPlan:
    """Rows of neighbouring length into one micro-batch, and equally many rows to each rank."""
    rows = sorted(rows, key=lambda row: -sum(tokens[i] for i in row))
    images = [sum(num_images[i] for i in row) for row in rows]
    rows_of_a_rank = -(-len(rows) // world_size)
    num_rounds = -(-rows_of_a_rank // batch.rows_per_micro_batch)
    plans: list[tuple[int, int, StepPlan]] = []
    # where rounds differ by a row: small ones first spread long rows over the ranks, small ones last leave a
    # short row alone
    for small_first in (True, False):
        while True:
            sizes = sorted(_even_parts(rows_of_a_rank, num_rounds), reverse=not small_first)
            rounds = _rounds(len(rows), world_size, sizes)
            if all(sum(images[a:b]) <= batch.images_per_micro_batch for cuts in rounds for a, b in cuts):
                break
            num_rounds += 1  # at the latest with single rows, which keep the limit, this ends
        plan, busy = _to_ranks(rows, rounds, tokens, world_size)
        plans.append((max(busy), sum(busy), plan))
    return min(plans, key=lambda found: found[:2])[2]


def _rounds(num_rows: int, world_size: int, sizes: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Slices of 0 .. num_rows-1, in order: in a round one per rank, of equal size but for the last rows."""
    rounds: list[list[tuple[int, int]]] = []
    start = 0
    for size in sizes:
        left = min(size * world_size, num_rows - start)
        ends = list(accumulate(_even_parts(left, world_size), initial=start))
        rounds.append([(a, b) for a, b in pairwise(ends) if b > a])
        start += left
    return rounds


def _to_ranks(
    rows: list[list[int]], rounds: list[list[tuple[int, int]]], tokens: Sequence[int], world_size: int
) -> tuple[StepPlan, list[int]]:
    """In each round the longest micro-batch goes to the rank that had the least so far. The plan, and the
    positions of each rank."""
    dealt: list[list[MicroBatch]] = [[] for _ in range(world_size)]
    busy = [0] * world_size
    for cuts in rounds:
        for rank, (start, end) in zip(sorted(range(world_size), key=busy.__getitem__), cuts, strict=False):
            micro_batch = tuple(tuple(sorted(row)) for row in rows[start:end])
            dealt[rank].append(micro_batch)
            busy[rank] += _positions(micro_batch, tokens)
    return StepPlan(tuple(tuple(rank) for rank in dealt)), busy


def _even_parts(size: int, parts: int) -> list[int]:
    """`size` as a sum of `parts` numbers that differ by one at most, largest first."""
    return [size // parts + (part < size % parts) for part in range(parts)]
