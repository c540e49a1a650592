"""From flags of single items to figures: which items and which flag make each rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prismcap.evaluate.intervals import rate_of
from prismcap.evaluate.scenes.items import Item
from prismcap.evaluate.scenes.scoring import RIGHT

Control = Literal["none", "blank", "shuffled"]
CONTROLS: tuple[Control, ...] = ("none", "blank", "shuffled")


@dataclass(frozen=True)
class Result:
    """What the model said to one item with one picture. `shown`: the item whose picture it was."""

    item: Item
    control: Control
    text: str
    flags: dict[str, bool]
    shown: Item | None


@dataclass(frozen=True)
class Figure:
    """A rate over the items of one kind (and number of objects, None for any) that have the flag."""

    name: str
    kind: str
    flag: str
    num_objects: int | None
    note: str


def figures_of(items: Sequence[Item]) -> list[Figure]:
    """The figures that a split's items allow, the most telling one first."""
    kinds = {item.kind for item in items}
    found = []
    short = [item for item in items if item.kind == "short"]
    counts = {item.num_objects for item in short}
    if any(thing.unseen for item in short for thing in item.graph.objects):
        note = "short caption: names the word of every drawing that was not seen in training"
        found.append(Figure("object_right", "short", "object_right", None, note))
    if 2 in counts:
        two = "short caption of two objects: "
        found += [
            Figure("all_right", "short", RIGHT, 2, f"{two}every object and every place right, nothing else"),
            Figure("objects_right", "short", "objects_right", 2, f"{two}names exactly these objects"),
            Figure(
                "places_right", "short", "places_right", 2, f"{two}each true object it names at its place"
            ),
        ]
    for count in sorted(counts - {2}):
        objects = "one object" if count == 1 else f"{count} objects"
        note = f"short caption of {objects}: every object and every place right, nothing else"
        found.append(Figure(f"num_objects_{count}", "short", RIGHT, count, note))
    if "long" in kinds:
        found.append(Figure("long_exact", "long", RIGHT, None, "long caption: word for word right"))
    notes = {
        "place": "What is on the left?",
        "count": "How many animals are there?",
        "yes_no": "Is there a hammer? Half of the answers are yes: guessing scores 50 %",
    }
    found += [Figure(kind, kind, RIGHT, None, note) for kind, note in notes.items() if kind in kinds]
    return found


def counted(figure: Figure, results: Sequence[Result], control: Control) -> list[Result]:
    """The results that the figure is the rate of."""
    return [
        result
        for result in results
        if result.control == control
        and result.item.kind == figure.kind
        and figure.num_objects in (None, result.item.num_objects)
        and figure.flag in result.flags
    ]


def figure_values(figure: Figure, results: Sequence[Result]) -> dict[str, Any]:
    """{rate, low, high, n, controls: {blank, shuffled}}; each control again {rate, low, high, n}."""
    values: dict[str, Any] = {}
    for control in CONTROLS:
        flags = [result.flags[figure.flag] for result in counted(figure, results, control)]
        if not flags:
            continue
        rate = rate_of(flags).as_dict()
        if control == "none":
            values.update(rate, controls={})
        else:
            values["controls"][control] = rate
    return values
