"""BLEU, ROUGE-L, CIDEr-D, METEOR and SPICE: by hand, against pycocoevalcap's numbers, and what they keep."""

from __future__ import annotations

import json
import math
import random
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metric_items import build, value
from pycoco_reference import GOLDEN, meteor_scores, missing, scores, tokenized

from prismcap.configs.errors import ConfigError
from prismcap.configs.registry import available
from prismcap.evaluate.metrics import meteor
from prismcap.evaluate.metrics._contract import CaptionItem, ItemFigure
from prismcap.evaluate.metrics.rouge_l import longest_common

GOLD = json.loads(GOLDEN.read_text())
TEXTUAL = ("bleu", "rouge_l", "cider_d")
NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")
TOLERANCE = 1e-6


def items_of(*pairs: tuple[str, list[str]]) -> list[CaptionItem]:
    return [
        CaptionItem(str(number), text, references=tuple(refs)) for number, (text, refs) in enumerate(pairs)
    ]


def golden_items() -> list[CaptionItem]:
    return items_of(*((item["text"], item["references"]) for item in GOLD["items"]))


def all_figures(items: list[CaptionItem]) -> dict[str, ItemFigure]:
    return {figure.name: figure for name in TEXTUAL for figure in build(name).figures(items)}


def test_figures_are_pycocoevalcaps() -> None:
    figures = all_figures(golden_items())
    assert tuple(figures) == NAMES
    for name, figure in figures.items():
        expected = GOLD["scores"][name]
        assert value(figure) == pytest.approx(expected["all"], abs=TOLERANCE), name
        assert figure.values == pytest.approx(expected["items"], abs=TOLERANCE), name


def test_bleu_by_hand() -> None:
    # four words, of which the reference has one "the" and one "cat"; the pair "the cat" is there once
    figures = all_figures(items_of(("the cat the the", ["a cat on the", "the cat"])))
    assert figures["bleu_1"].values[0] == pytest.approx(2 / 4)
    assert figures["bleu_2"].values[0] == pytest.approx(math.sqrt(2 / 4 * 1 / 3))
    assert figures["bleu_3"].values[0] == pytest.approx(0, abs=1e-4)
    # two words of four: all match, and brevity costs exp(1 - 4/2)
    assert all_figures(items_of(("a dog", ["a dog sat down"])))["bleu_1"].values[0] == pytest.approx(
        math.exp(-1)
    )


def test_bleu_takes_the_closest_reference_length_and_the_shorter_of_two_alike() -> None:
    (figure, *_) = build("bleu").figures(items_of(("a b c", ["a b", "a b c d", "a b c d e f"])))
    assert figure.sums is not None
    assert figure.sums[0].tolist() == [3, 2, 1, 0, 3, 2, 1, 0, 3, 2]


def test_bleu_of_a_set_comes_from_summed_counts_and_is_no_mean() -> None:
    items = items_of(("red dog", ["red dog"]), ("a b c d e f g h", ["x"]))
    figure = all_figures(items)["bleu_1"]
    assert figure.values == pytest.approx([1.0, 0.0], abs=1e-6)
    assert value(figure) == pytest.approx(2 / 10)


def test_rouge_l_by_hand() -> None:
    # "police the gunman": two words of three in order, of a reference of four
    (figure,) = build("rouge_l").figures(items_of(("police the gunman", ["police killed the gunman"])))
    precision, recall, beta2 = 3 / 3, 3 / 4, 1.2**2
    assert figure.values == pytest.approx([(1 + beta2) * precision * recall / (recall + beta2 * precision)])
    # precision of one reference goes with recall of another
    (figure,) = build("rouge_l").figures(items_of(("a b c d", ["a b", "a b c x y z u v"])))
    precision, recall = 3 / 4, 2 / 2
    assert figure.values == pytest.approx([(1 + beta2) * precision * recall / (recall + beta2 * precision)])


@pytest.mark.parametrize(
    ("one", "other", "length"), [("abcbdab", "bdcaba", 4), ("abc", "cba", 1), ("aaaa", "aa", 2), ("", "a", 0)]
)
def test_longest_common_subsequence(one: str, other: str, length: int) -> None:
    assert longest_common(one, other) == longest_common(other, one) == length


def test_cider_d_by_hand() -> None:
    # "a" is in both items' references: log(2/2) = 0. Two words make one pair and nothing longer: 2 sizes of 4
    items = items_of(("a dog", ["a dog"]), ("a cat", ["a hat"]))
    (figure,) = build("cider_d").figures(items)
    assert figure.values == pytest.approx([10 * 2 / 4, 0.0])
    # a word more than the reference: the norm of single words grows by it, and of pairs by one pair
    items = items_of(("red dog red", ["red dog"]), ("x", ["cat"]))
    (figure,) = build("cider_d").figures(items)
    single, pair, penalty = 2 / math.sqrt(5 * 2), 1 / math.sqrt(2), math.exp(-1 / 72)
    assert figure.values[0] == pytest.approx(10 * (single + pair) / 4 * penalty)


def test_the_same_text_scores_the_most_there_is() -> None:
    texts = ["a man riding a horse", "two dogs on the green grass", "red kite over a lake, at 5 p.m."]
    figures = all_figures(items_of(*((text, ["something else entirely", text]) for text in texts)))
    for name in NAMES[:5]:
        assert figures[name].values == pytest.approx([1.0] * 3, abs=TOLERANCE)
        assert value(figures[name]) == pytest.approx(1.0, abs=TOLERANCE)
    figures = all_figures(items_of(*((text, [text]) for text in texts)))
    assert figures["cider_d"].values == pytest.approx([10.0] * 3)


def test_the_order_of_references_makes_no_difference() -> None:
    before = all_figures(golden_items())
    after = all_figures(items_of(*((item.text, list(item.references[::-1])) for item in golden_items())))
    for name in NAMES:
        assert after[name].values == pytest.approx(before[name].values, abs=1e-12)


def test_the_order_of_items_makes_no_difference() -> None:
    items = golden_items()
    order = list(range(len(items)))
    random.Random(0).shuffle(order)
    before, after = all_figures(items), all_figures([items[position] for position in order])
    for name in NAMES:
        assert value(after[name]) == pytest.approx(value(before[name]), abs=1e-12)
        moved = [before[name].values[position] for position in order]
        assert after[name].values == pytest.approx(moved, abs=1e-12)


def test_an_empty_text_scores_nothing_and_is_a_number() -> None:
    figures = all_figures(items_of(("", ["a dog", "a cat"]), ("a dog", ["a dog"])))
    for name in NAMES:
        assert figures[name].values[0] == pytest.approx(0.0, abs=1e-9)
        assert math.isfinite(value(figures[name]))


def test_bleu_of_many_resamples_at_once_is_that_of_each() -> None:
    figure = all_figures(golden_items())["bleu_4"]
    assert figure.sums is not None and figure.combine is not None
    counts = np.random.default_rng(0).multinomial(
        len(figure.values), [1 / len(figure.values)] * 32, size=(3, 7)
    )
    drawn = counts.astype(np.float64) @ figure.sums
    together = figure.combine(drawn)
    assert together.shape == (3, 7)
    for place in np.ndindex(3, 7):
        items = [item for item, n in zip(golden_items(), counts[place], strict=True) for _ in range(n)]
        assert together[place] == pytest.approx(value(all_figures(items)["bleu_4"]), abs=1e-12)


def test_every_metric_of_this_file_is_registered_needs_references_and_says_what_it_is() -> None:
    names = (*TEXTUAL, "meteor", "spice")
    assert set(names) <= set(available("metric"))
    metrics = [build(name) for name in names]
    assert all(metric.needs == {"references"} for metric in metrics)
    assert len({metric.identity for metric in metrics}) == len(names)
    with pytest.raises(ConfigError, match="unknown key"):
        build("bleu", n=4)


# METEOR and SPICE: their programs are played by a script


def test_meteor_from_the_programs_statistics_is_the_programs_score() -> None:
    expected = GOLD["scores"]["meteor"]
    sums = meteor.read_statistics(meteor_rows(), len(expected["items"]))
    assert meteor.combine(sums) == pytest.approx(expected["items"], abs=TOLERANCE)
    assert meteor.combine(sums.sum(axis=0)) == pytest.approx(expected["all"], abs=TOLERANCE)
    together = meteor.combine(np.stack([sums, sums[::-1]]))
    assert together == pytest.approx(np.array([expected["items"], expected["items"][::-1]]), abs=TOLERANCE)


def meteor_rows() -> str:
    return "\n".join(GOLD["scores"]["meteor"]["statistics"])


class Played:
    """A folder with the package's files and a `java` that does what it is told."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.package = folder / "site" / "pycocoevalcap"
        about = folder / "site" / "pycocoevalcap-1.2.dist-info"
        for inside in ("meteor", "spice/lib"):
            (self.package / inside).mkdir(parents=True)
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pycocoevalcap\nVersion: 1.2\n")
        for jar in ("meteor/meteor-1.5.jar", "spice/spice-1.0.jar"):
            (self.package / jar).write_text("")
        self.given = folder / "given"
        self._java = folder / "bin" / "java"
        self._java.parent.mkdir()
        patch.syspath_prepend(str(folder / "site"))
        patch.setenv("PATH", str(self._java.parent))

    def java(self, body: str) -> None:
        lines = [f"#!{sys.executable} -S", "import sys", f"given = {str(self.given)!r}", body]
        self._java.write_text("\n".join(lines) + "\n")
        self._java.chmod(0o755)


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(tmp_path, monkeypatch)


def test_meteor_asks_the_program_for_every_item(played: Played) -> None:
    played.java(f"open(given, 'w').write(sys.stdin.read()); print({meteor_rows()!r})")
    (figure,) = build("meteor").figures(golden_items())
    assert figure.values == pytest.approx(GOLD["scores"]["meteor"]["items"], abs=TOLERANCE)
    assert value(figure) == pytest.approx(GOLD["scores"]["meteor"]["all"], abs=TOLERANCE)
    asked = played.given.read_text().splitlines()
    assert len(asked) == len(GOLD["items"])
    tokens = GOLD["items"][0]["tokens"]
    assert asked[0] == " ||| ".join(["SCORE", *tokens["references"], tokens["text"]])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "sys.exit('Error: no such file: paraphrase-en.gz')",
            "meteor-1.5.jar ended with code 1: .*no such file",
        ),
        ("print('1.0 2.0')", "expected 32 lines of 23 numbers .* found 1 lines"),
    ],
)
def test_a_program_that_fails_is_explained(played: Played, body: str, message: str) -> None:
    played.java(f"sys.stdin.read(); {body}")
    with pytest.raises(ConfigError, match=message):
        build("meteor").figures(golden_items())


@pytest.mark.parametrize("name", ["meteor", "spice"])
def test_what_is_missing_is_named_with_how_to_get_it(
    name: str, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric, items = build(name), golden_items()[:1]
    for model in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        if name == "spice":
            with pytest.raises(ConfigError, match=f"{model}.*pycocoevalcap.spice.get_stanford_models"):
                metric.figures(items)
            (played.package / "spice" / "lib" / model).write_text("")
    with pytest.raises(ConfigError, match="no `java` on the PATH"):
        metric.figures(items)

    def absent(package: str) -> Any:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ConfigError, match=f"{name} needs .*pip install --no-deps pycocoevalcap"):
        metric.figures(items)


def test_spice_reads_the_programs_scores_by_item(played: Played) -> None:
    for model in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (played.package / "spice" / "lib" / model).write_text("")
    scored = [
        {"image_id": 1, "scores": {"All": {"f": 0.25}}},
        {"image_id": 0, "scores": {"All": {"f": 0.5}}},
        {"image_id": 2, "scores": {"All": {"f": float("nan")}}},
    ]
    played.java(
        "arguments = sys.argv[sys.argv.index('-jar') + 2:]\n"
        "open(given, 'w').write(open(arguments[0]).read())\n"
        f"open(arguments[arguments.index('-out') + 1], 'w').write({json.dumps(scored)!r})"
    )
    (figure,) = build("spice").figures(golden_items()[:3])
    assert figure.values == [0.5, 0.25, None]
    asked = json.loads(played.given.read_text())
    assert [entry["image_id"] for entry in asked] == [0, 1, 2]
    tokens = GOLD["items"][0]["tokens"]
    assert asked[0]["test"] == tokens["text"] and asked[0]["refs"] == tokens["references"]
    with pytest.raises(ConfigError, match="expected 4 scores"):
        build("spice").figures(golden_items()[:4])


@pytest.mark.slow
def test_figures_are_those_of_pycocoevalcap_here_and_now() -> None:
    if missing():
        pytest.skip(missing())
    draw = random.Random(1)
    words = sorted({word for item in GOLD["items"] for word in item["text"].split()})

    def caption() -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(0, 15)))

    pairs = [(caption(), [caption() or "x" for _ in range(draw.randint(1, 5))]) for _ in range(60)]
    pairs += [(item["text"], item["references"]) for item in GOLD["items"]]
    found = iter(tokenized([text for pair in pairs for text in (pair[0], *pair[1])]))
    tokens = [(next(found), [next(found) for _ in references]) for _, references in pairs]
    texts, references = [text for text, _ in tokens], [group for _, group in tokens]
    expected = scores(references, texts) | {"meteor": meteor_scores(references, texts)}
    figures = all_figures(items_of(*pairs))
    figures["meteor"] = build("meteor").figures(items_of(*pairs))[0]
    for name, figure in figures.items():
        assert value(figure) == pytest.approx(expected[name]["all"], abs=TOLERANCE), name
        assert figure.values == pytest.approx(expected[name]["items"], abs=TOLERANCE), name
