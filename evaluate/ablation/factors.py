"""Which cells are held against which: by axis and level, with what else differs equal on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prismcap.evaluate.ablation.read import Ablation, Cell

# how several axes that change together are named, and their levels
TOGETHER = " + "
Context = tuple[str, ...]  # levels of the other axes


@dataclass(frozen=True)
class Factor:
    """An axis, or, of a paired ablation, all axes as the one that they are: level k of each together."""

    name: str
    question: str
    levels: tuple[str, ...]
    cumulative: bool
    axes: tuple[str, ...]

    def level_of(self, cell: Cell) -> str:
        return TOGETHER.join(cell.levels[axis] for axis in self.axes)

    def context_of(self, cell: Cell) -> Context:
        return tuple(level for axis, level in cell.levels.items() if axis not in self.axes)

    def against(self, level: str) -> str | None:
        """What a level is held against: the first, or, where each lies on top of the last, the last. None of
        the first."""
        place = self.levels.index(level)
        if place == 0:
            return None
        return self.levels[place - 1] if self.cumulative else self.levels[0]


@dataclass(frozen=True)
class Pair:
    """Two cells of one seed that differ in nothing but the factor."""

    seed: int
    cell: Cell
    against: Cell


def factors(ablation: Ablation) -> list[Factor]:
    if ablation.combine != "paired":
        return [
            Factor(axis.name, axis.question, axis.levels, axis.cumulative, (axis.name,))
            for axis in ablation.axes
        ]
    return [
        Factor(
            name=TOGETHER.join(axis.name for axis in ablation.axes),
            question=" ".join(axis.question for axis in ablation.axes),
            levels=tuple(
                TOGETHER.join(levels) for levels in zip(*(axis.levels for axis in ablation.axes), strict=True)
            ),
            cumulative=any(axis.cumulative for axis in ablation.axes),
            axes=tuple(axis.name for axis in ablation.axes),
        )
    ]


def pairs_of(cells: Sequence[Cell], factor: Factor, level: str) -> Iterator[Pair]:
    """Every planned pair of a level with what it is held against, done or not."""
    other = factor.against(level)
    partners = {
        (factor.context_of(cell), cell.seed): cell for cell in cells if factor.level_of(cell) == other
    }
    for cell in cells:
        partner = partners.get((factor.context_of(cell), cell.seed))
        if factor.level_of(cell) == level and partner is not None:
            yield Pair(cell.seed, cell, partner)


def cells_of(cells: Sequence[Cell], factor: Factor, level: str) -> list[Cell]:
    """The planned cells of a level that its average is taken over: with the others' levels under which all
    levels of the factor are planned, so that the averages differ in nothing else."""
    contexts = [
        {factor.context_of(cell) for cell in cells if factor.level_of(cell) == name} for name in factor.levels
    ]
    common = set.intersection(*contexts)
    return [cell for cell in cells if factor.level_of(cell) == level and factor.context_of(cell) in common]
