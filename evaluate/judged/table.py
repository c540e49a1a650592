"""The results of a judged evaluation as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismcap.evaluate.columns import align
from prismcap.evaluate.intervals import MIN_ITEMS
from prismcap.evaluate.prism.table import percent

_HEAD = ("model", "figure", "value", "95% interval", "n", "pictures")
_LEFT_OUT = ("unread", "failed", "unrated")


def judged_table(results: Mapping[str, Any]) -> str:
    """What the figures are, a line per model and figure, what was left out, and the comparisons."""
    about = results["about"]
    lines = [about["figure"], figures_table(results["models"])]
    for model, of in results["models"].items():
        lines += [f"{model}: {text}" for text in _notes(of)]
    lines += comparison_lines(results["comparisons"])
    published = about["published"]
    found = [about["num_questions"], about["num_pictures"]]
    if published is not None and published != found:
        lines.append(
            f"The published set has {published[0]} questions on {published[1]} pictures, this one "
            f"{found[0]} on {found[1]}: not to be held against published figures."
        )
    return "\n".join(lines)


def ratings_table(results: Mapping[str, Any]) -> str:
    """judged_table of people's grades, then how far they agree."""
    raters = results["raters"]
    lines = [judged_table(results)]
    lines += [f"{name}: {number} grades" for name, number in raters["names"].items()]
    if len(raters["names"]) > 1:
        lines.append(f"raters together: {agreement_text(raters['together'])}")
        lines += [f"{pair['a']} and {pair['b']}: {agreement_text(pair)}" for pair in raters["pairs"]]
    lines += [f"{name} and the judge: {agreement_text(of)}" for name, of in raters["with_judge"].items()]
    return "\n".join(lines)


def figures_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [(*_HEAD, "")]
    for model, of in models.items():
        for name, figure in of["figures"].items():
            rows.append(
                (
                    model,
                    name,
                    _number(figure["value"]),
                    f"{_number(figure['low'])} .. {_number(figure['high'])}",
                    str(figure["n"]),
                    str(figure["num_pictures"]),
                    f"n < {MIN_ITEMS}" if figure["n"] < MIN_ITEMS else "",
                )
            )
    return align(rows, num_names=2)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _notes(of: Mapping[str, Any]) -> list[str]:
    counted, notes = of["counts"], []
    left_out = [f"{counted[name]} {name}" for name in _LEFT_OUT if counted[name]]
    if left_out:
        notes.append(f"of {counted['answers']} answers {', '.join(left_out)}: left out, not scored as 0")
    if counted["unread_replies"] or counted["failed_replies"]:
        notes.append(
            f"of {counted['replies']} replies {counted['unread_replies']} unread and "
            f"{counted['failed_replies']} failed; --retry-failed asks again for what failed"
        )
    if of["labels"]:
        notes.append(", ".join(f"{label} {percent(share)} %" for label, share in of["labels"].items()))
    if of["position"] is not None:
        notes.append(_position(of["position"]))
    if of["self_agreement"] is not None:
        notes.append(_self_agreement(of["self_agreement"]))
    return notes


def _position(position: Mapping[str, Any]) -> str:
    favour, changed = position["first_minus_second"], position["changed_winner"]
    return (
        f"position: the first place earns {favour['mean']:+.2f} points of the scale "
        f"({favour['low']:+.2f} .. {favour['high']:+.2f}); the order changes who wins in "
        f"{percent(changed['rate'])} % of answers (both orders are averaged)"
    )


def _self_agreement(found: Mapping[str, Any]) -> str:
    figures = ", ".join(_number(value) for value in found["figures"])
    return f"the judge with itself: {agreement_text(found)}; overall by repeat {figures}"


def agreement_text(found: Mapping[str, Any]) -> str:
    raw = "-" if found["raw"] is None else f"{percent(found['raw'])} %"
    alpha = "cannot be told (all alike)" if found["alpha"] is None else f"{found['alpha']:.3f}"
    return f"{raw} equal, Krippendorff's alpha ({found['level']}) {alpha}, {found['units']} units"


def comparison_lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for row in comparisons:
        difference, detectable = row["difference"], row["minimum_detectable"]
        power = "" if detectable is None else f"; detectable from {detectable:.1f}"
        lines.append(
            f"{row['figure']}: {row['a']} -> {row['b']} {difference['mean']:+.1f} "
            f"({_signed(difference['low'])} .. {_signed(difference['high'])}), n = {difference['n']}; "
            f"p = {row['p']:.3g}, corrected {row['p_holm']:.3g}{power}"
        )
    return lines


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"
