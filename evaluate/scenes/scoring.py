"""Whether a generated text says what is in the scene."""

from __future__ import annotations

from collections.abc import Mapping

from prismcap.data.scenes.graph import SceneGraph
from prismcap.data.scenes.text import Kind, answer_right, parse_short_caption

RIGHT = "right"  # the flag of every kind that says whether the whole text is right


def score_short_caption(text: str, graph: SceneGraph) -> dict[str, bool]:
    """Flags of a short caption. Order of the objects and case do not matter.

    right: it says every object at its place and nothing else (all_right).
    objects_right: it names exactly the objects of the scene, wherever it puts them.
    places_right: it names at least one object of the scene, and each that it names at its place.
    object_right: only for scenes with an unseen drawing: it names the word of every unseen drawing.
    """
    said = parse_short_caption(text)
    true = graph.pairs()
    words_said = {word for word, place in said if place}
    # a piece that was not understood has an empty place: it is more than the objects of the scene
    understood = all(place for _, place in said)
    named = {(word, place) for word, place in said if word in graph.words}
    flags = {
        RIGHT: said == true,
        "objects_right": understood and words_said == set(graph.words) and len(said) == len(true),
        "places_right": bool(named) and named <= true,
    }
    unseen = {item.word for item in graph.objects if item.unseen}
    if unseen:
        flags["object_right"] = unseen <= words_said
    return flags


def score(kind: Kind, text: str, truth: str, graph: SceneGraph) -> Mapping[str, bool]:
    """The flags of one generated text. Long captions must be exact, answers exact after normalising."""
    if kind == "short":
        return score_short_caption(text, graph)
    if kind == "long":
        return {RIGHT: text.strip() == truth.strip()}
    return {RIGHT: answer_right(text, truth)}
