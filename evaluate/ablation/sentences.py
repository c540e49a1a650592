"""What an ablation showed, and what it did not, in words: one sentence per level, one per axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismcap.evaluate.statistics.power import ALPHA


def shown(effect: Mapping[str, Any]) -> bool:
    """Whether a difference is shown: after the correction, not by its own interval alone."""
    return effect["p_holm"] is not None and effect["p_holm"] < ALPHA


def effect_sentence(effect: Mapping[str, Any]) -> str:
    """'mlp against linear: +4.2 points (1.0 .. 7.4), p = 0.012 after Holm', or that none could be shown."""
    share = effect["share"]
    sides = f"{effect['level']} against {effect['against']}"
    numbers = f"{_signed(effect)} ({between(effect)}), {p_text(effect['p_holm'])} after Holm"
    caveats = "".join(f"; {caveat}" for caveat in caveats_of(effect))
    if shown(effect):
        return f"{sides}: {numbers}{caveats}"
    least = amount(effect["minimum_detectable"], share)
    return f"{sides}: no difference could be shown (minimum detectable {least}): {numbers}{caveats}"


def no_effect(effect: Mapping[str, Any]) -> str:
    return f"{effect['level']} against {effect['against']}: no effect to report: {effect['why_not']}"


def caveats_of(effect: Mapping[str, Any]) -> list[str]:
    """What the interval does not cover, and what is missing."""
    found = []
    if effect["n_seeds"] == 1:
        found.append("one seed: seeds were not varied, and the interval is over items alone")
    if effect["n_seeds"] == 2 and effect["design"] == "crossed":
        found.append("two seeds: should they agree by chance, the interval is too narrow")
    if effect["design"] == "seeds":
        found.append("one cluster of items: the interval is over seeds alone")
    if effect["design"] == "nested":
        found.append("each seed has items of its own")
    without = effect["seeds_without"]
    if without:
        found.append(f"without seed{'s' * (len(without) > 1)} {_listed(without)}, where a side is missing")
    elif effect["pairs_without"]:
        total = effect["pairs"] + effect["pairs_without"]
        found.append(f"{effect['pairs_without']} of {total} pairs of cells are missing")
    if not effect["mean_of_items"]:
        found.append("of the items' own values, of which the cells' figure is no mean")
    return found


def axis_sentence(axis: str, effects: Sequence[Mapping[str, Any]]) -> str:
    """The effects of one axis on one figure, summed up."""
    tested = [effect for effect in effects if effect["p_holm"] is not None]
    parts = []
    for effect in tested:
        if shown(effect):
            sides = f"{effect['level']} against {effect['against']}"
            parts.append(f"{sides} {_signed(effect)} ({between(effect)})")
    others = [effect for effect in tested if not shown(effect)]
    if others:
        names = _listed([f"{effect['level']} against {effect['against']}" for effect in others])
        least = " and ".join(
            dict.fromkeys(amount(effect["minimum_detectable"], effect["share"]) for effect in others)
        )
        parts.append(f"no difference could be shown for {names} (minimum detectable {least})")
    absent = [effect for effect in effects if effect["p_holm"] is None]
    if absent:
        parts.append(f"no effect to report for {_listed([effect['level'] for effect in absent])}")
    if tested and all(effect["n_seeds"] == 1 for effect in tested):
        parts.append("seeds were not varied")
    return f"{axis}: {'; '.join(parts)}."


def amount(value: float, share: bool) -> str:
    """0.042 of a share is 4.2 points."""
    return f"{100 * value:.1f} points" if share else f"{value:.3g}"


def between(effect: Mapping[str, Any]) -> str:
    """'1.0 .. 7.4', in the unit of the difference."""
    low, high = effect["low"], effect["high"]
    if effect["share"]:
        return f"{_zero(f'{100 * low:.1f}')} .. {_zero(f'{100 * high:.1f}')}"
    return f"{low:.3g} .. {high:.3g}"


def p_text(p: float) -> str:
    """'p = 0.012'."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def signed(value: float, share: bool) -> str:
    """'+4.2' points of a share, else '+0.042'."""
    text = f"{100 * value:+.1f}" if share else f"{value:+.3g}"
    return text[1:] if text in ("+0.0", "-0.0", "+0", "-0") else text


def _signed(effect: Mapping[str, Any]) -> str:
    return signed(effect["difference"], effect["share"]) + " points" * bool(effect["share"])


def _zero(text: str) -> str:
    return "0.0" if text == "-0.0" else text


def _listed(values: Sequence[Any]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
