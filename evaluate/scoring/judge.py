"""An optional judge: a text LLM that says which option a reply means where no rule could. It never sees the
right answer, and counts only when it answers with a valid letter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from prismcap.evaluate.benchmarks._contract import LETTERS, Question
from prismcap.evaluate.reasoners._contract import Reasoner, ReasonRequest
from prismcap.evaluate.scoring.letters import Letters
from prismcap.evaluate.scoring.replies import plain, visible

JUDGE_VERSION = 1  # raise it whenever the prompt or what is done with the answer changes
JUDGE_PROMPT = (
    "Someone answered a multiple-choice question. Say which option the reply chooses. Do not solve the "
    "question yourself and do not correct the reply.\n\n"
    "Question: {question}\nOptions:\n{options}\n\nReply:\n<reply>\n{reply}\n</reply>\n\n"
    "Answer with the letter of the option that the reply chooses and nothing else. Answer with {nothing} if "
    "the reply chooses none, more than one, or says that it cannot tell."
)
_NOTHING = "NONE"
_MAX_REPLY_CHARS = 8000  # the conclusion stands at the end: the beginning of a longer reply is left out


class Judge(Protocol):
    def choose(self, question: Question, reply: str) -> str | None:
        """The letter of the option that the reply means, or None."""


class ReasonerJudge:
    """Any reasoner as judge. Verdicts are kept: `prefetch` asks for many at once, `choose` then looks up."""

    def __init__(self, reasoner: Reasoner) -> None:
        self._reasoner = reasoner
        self._verdicts: dict[str, str | None] = {}

    @property
    def identity(self) -> str:
        """Changes with everything that decides a verdict. Part of a cache's key."""
        return f"judge {JUDGE_VERSION} {self._reasoner.identity}"

    def choose(self, question: Question, reply: str) -> str | None:
        prompt = judge_prompt(question, reply)
        if prompt not in self._verdicts:
            self.prefetch([(question, reply)])
        return self._verdicts[prompt]

    def prefetch(self, replies: Iterable[tuple[Question, str]]) -> None:
        """Asks about the replies that have no verdict yet, in one batch. A failed request is None."""
        prompts: dict[str, Letters] = {}
        for question, reply in replies:
            prompt = judge_prompt(question, reply)
            if prompt not in self._verdicts:
                prompts[prompt] = Letters(len(question.options))
        asked = list(prompts)
        self._verdicts.update(dict.fromkeys(asked))
        for position, answer in self._reasoner.answer([ReasonRequest(prompt) for prompt in asked]):
            prompt = asked[position]
            if answer.status == "ok":
                self._verdicts[prompt] = _valid_letter(answer.text, prompts[prompt])


def judge_prompt(question: Question, reply: str) -> str:
    """The whole prompt. The reply's thinking is left out."""
    options = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, question.options, strict=False))
    said = visible(reply)[-_MAX_REPLY_CHARS:]
    return JUDGE_PROMPT.format(question=question.text, options=options, reply=said, nothing=_NOTHING)


def _valid_letter(text: str, letters: Letters) -> str | None:
    chosen = letters.only(plain(visible(text)))
    return next(iter(chosen)) if chosen is not None and len(chosen) == 1 else None
