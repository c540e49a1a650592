"""Coverage by scene graph counted by hand, and by a judge that says what it is told to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from metric_items import build, by_name, scene, values_of

from prismcap.configs.errors import ConfigError
from prismcap.data.scenes.text import long_caption, short_caption
from prismcap.evaluate.clients.answer import Answer, failed
from prismcap.evaluate.metrics import coverage
from prismcap.evaluate.metrics._contract import CaptionItem, MetricContext
from prismcap.evaluate.metrics._scene_text import read_scene, scene_statements
from prismcap.evaluate.metrics._vocabulary import scene_vocabulary
from prismcap.evaluate.reasoners._contract import ReasonRequest

TWO = scene(("tiger", "left"), ("hammer", "right"))


@dataclass
class ToldJudge:
    """Answers last to first, as a judge may."""

    say: Callable[[str], str | None]
    identity: str = "told"
    asked: list[str] = field(default_factory=list)

    def answer(self, requests: Sequence[ReasonRequest]) -> Iterator[tuple[int, Answer]]:
        for position in reversed(range(len(requests))):
            prompt = requests[position].prompt
            self.asked.append(prompt)
            text = self.say(prompt)
            yield position, failed("no answer") if text is None else Answer(text)


def statement(prompt: str) -> str:
    return prompt.partition("Statement: ")[2].partition("\n")[0]


@pytest.mark.parametrize(
    ("text", "entailed"),
    [
        (long_caption(TWO), 6),
        (short_caption(TWO), 5),  # all but the background
        ("A tiger on the right and a drum on the left.", 2),  # the tiger, and that there are two
        ("A striped blue background.", 1),
        ("A hammer.", 1),
        ("", 0),
    ],
)
def test_by_graph_counted_by_hand(text: str, entailed: int) -> None:
    item = CaptionItem("1", text, graph=TWO)
    assert build("coverage").figures([item])[0].values == [pytest.approx(entailed / 6)]


def test_statements_of_all_scenes_weigh_the_same() -> None:
    one = scene(("tiger", "middle"))
    items = [CaptionItem("1", "A hammer.", graph=TWO), CaptionItem("2", long_caption(one), graph=one)]
    assert values_of(build("coverage"), items) == {"coverage": pytest.approx((1 + 4) / (6 + 4))}


ITEMS = [
    CaptionItem("1", "t1", statements=("a yes", "b no", "c yes", "d none")),
    CaptionItem("2", "t2 {text} {statement}", statements=("e yes", "f perhaps", "e yes")),
    CaptionItem("3", "t3"),
]
REPLIES = {"yes": "Yes.", "no": "**No**, it does not.", "perhaps": "It is likely.", "none": None}


def test_by_judge_counted_by_hand() -> None:
    judge = ToldJudge(lambda prompt: REPLIES[statement(prompt).split()[-1]])
    metric = build("coverage", MetricContext(judge=judge), by="judge")
    assert metric.needs == {"statements"} and build("coverage").needs == {"graph"}
    figures = by_name(metric.figures(ITEMS))
    assert figures["coverage"].values == [0.5, pytest.approx(2 / 3), None]
    assert figures["unread"].values == [0.25, pytest.approx(1 / 3), None]
    assert values_of(metric, ITEMS) == pytest.approx({"coverage": 4 / 7, "unread": 2 / 7})
    assert len(judge.asked) == 12, "six prompts that differ, for each of two calls"


def test_the_judge_is_asked_of_each_statement_with_the_whole_text() -> None:
    judge = ToldJudge(lambda _: "yes")
    build("coverage", MetricContext(judge=judge), by="judge").figures(ITEMS[1:2])
    assert sorted(map(statement, judge.asked)) == ["e yes", "f perhaps"]
    assert all("<description>\nt2 {text} {statement}\n</description>" in prompt for prompt in judge.asked)


def test_a_judge_that_reads_as_the_graph_does_finds_the_same() -> None:
    facts = {one.text: one for one in scene_statements(TWO)}

    def say(prompt: str) -> str:
        text = prompt.partition("<description>\n")[2].partition("\n</description>")[0]
        said = read_scene(text, scene_vocabulary().terms)
        return "yes" if facts[statement(prompt)].said_in(said) else "no"

    texts = [short_caption(TWO), long_caption(TWO), "A hammer.", "Two objects, a tiger on the left"]
    items = [CaptionItem(str(i), text, graph=TWO, statements=tuple(facts)) for i, text in enumerate(texts)]
    judged = build("coverage", MetricContext(judge=ToldJudge(say)), by="judge").figures(items)[0]
    assert judged.values == build("coverage").figures(items)[0].values


def test_without_a_judge_it_says_what_is_missing() -> None:
    with pytest.raises(
        ConfigError, match=r"run\.yaml: evaluation\.metrics: coverage\.by: judge needs a judge"
    ):
        build("coverage", MetricContext(where="run.yaml: evaluation.metrics"), by="judge")


def test_prompt_judge_and_reader_are_in_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(name: str) -> str:
        return build("coverage", MetricContext(judge=ToldJudge(str, identity=name)), by="judge").identity

    assert len({identity("a"), identity("b"), build("coverage").identity}) == 3
    before = identity("a")
    monkeypatch.setattr(coverage, "PROMPT_VERSION", 99)
    assert identity("a") != before
