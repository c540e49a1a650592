"""Which option a free reply chooses: rules with names, and no option where the reply is ambiguous."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from prismcap.evaluate.benchmarks._contract import LETTERS
from prismcap.evaluate.scoring import phrases
from prismcap.evaluate.scoring.conclusions import (
    CHOSEN,
    HINTED,
    STATED,
    UNMATCHED,
    Conclusion,
    Extraction,
    hypothetical,
    settle,
)
from prismcap.evaluate.scoring.letters import Letters, collapse_labels
from prismcap.evaluate.scoring.mentions import OptionTexts
from prismcap.evaluate.scoring.refusal import after_refusals
from prismcap.evaluate.scoring.replies import BOX_CLOSE, BOX_OPEN, fold, plain, sentences, visible
from prismcap.evaluate.scoring.yes_no import extract_yes_no, yes_no_letters

MAX_OPTIONS = 26
_NEAR_THE_END = 8  # tokens; VLMEvalKit's rule looks at the last five
_BOX = re.compile(f"{BOX_OPEN}(.*?){BOX_CLOSE}", re.S)
# after these stands what is contrasted with the answer
_CONTRAST = re.compile(r"(?i),\s*(?:whereas|while|unlike|in contrast to)\b[^.!?;\n]*")
_LONE_LETTER = re.compile(r"\W*[A-Za-z]\W*")
_COPULA_BEFORE = re.compile(r"(?:\b(?:is|are|was|were|be|shows?|ist|est|es|è|é)\s|[=:])\s*(?:\w+\s+)?$")


def extract_choice(reply: str, options: Sequence[str]) -> Extraction:
    """The letter of the option that the reply concludes.

    how: `boxed`, `answer_form`; `verdict`, `chosen`, `letter_line`, `conclusion`; `only_text`; then, where
    nothing was concluded or refused: `text` (an option's text is the only one named), `last_text` (the last
    sentence ends by saying so), `letter` (one letter near the end); else `unmatched`.
    Raises ValueError for no options or more than letters.
    """
    if not 1 <= len(options) <= MAX_OPTIONS:
        raise ValueError(f"{len(options)} options: a choice question has 1 to {MAX_OPTIONS}, named A to Z")
    return _Reading(visible(reply), options).extract()


class _Reading:
    def __init__(self, reply: str, options: Sequence[str]) -> None:
        self.by_yes_no = yes_no_letters(options)
        self.texts = OptionTexts(() if self.by_yes_no else options)
        self.letters = Letters(len(options))
        self.reply = reply
        named = _ordinals_as_letters(plain(reply), len(options))
        self.text = collapse_labels(named, options)

    def extract(self) -> Extraction:
        found = settle(self.text, self._conclusions())
        if found is not None:
            return found
        if self.by_yes_no:
            said = extract_yes_no(self.reply)
            value = None if said.value is None else self.by_yes_no[said.value]
            if said.concluded:
                return Extraction(value, said.how, concluded=True)
        return self._weak()

    def _conclusions(self) -> Iterator[Conclusion]:
        yield from self._boxes()
        yield from self._forms()
        yield from self._verdicts()
        yield from self._lines()
        yield from self._conclusive_sentences()

    def _boxes(self) -> Iterator[Conclusion]:
        for box in _BOX.finditer(self.text):
            inner = box.group(1).strip()
            if inner:
                values = self._target(inner, anywhere=True) or self.letters.anywhere(inner)
                yield Conclusion(box.start(), box.end(), frozenset(values or ()), "boxed", STATED)

    def _forms(self) -> Iterator[Conclusion]:
        for pattern, how, strength in (
            (phrases.ANSWER_FORM, "answer_form", STATED),
            (phrases.CHOICE_FORM, "chosen", CHOSEN),
            (phrases.SAYING, "chosen", HINTED),
        ):
            for form in pattern.finditer(self.text):
                rest = self._rest_of_sentence(form.end())
                if rest.rstrip().endswith("?") or hypothetical(self.text, form.start(), form.start()):
                    continue
                values = self._target(rest, anywhere=strength == STATED)
                if values is None and strength == STATED and self._is_foreign(rest):
                    values = frozenset()
                if values is not None:
                    at = form.end() + max(1, len(rest) - len(rest.lstrip()))
                    lettered = strength == HINTED and self._target_letters(rest)
                    yield Conclusion(form.start(), at, values, how, CHOSEN if lettered else strength)

    def _verdicts(self) -> Iterator[Conclusion]:
        for values, start, end in self.letters.subjects(self.text):
            verdict = phrases.VERDICT.match(self.text, end)
            if verdict and not hypothetical(self.text, start, verdict.end()):
                yield Conclusion(start, verdict.end(), values, "verdict", CHOSEN)
        for start, sentence in sentences(self.text):
            verdict = phrases.TEXT_VERDICT.search(sentence)
            if verdict and not sentence.rstrip().endswith("?"):
                named = self.texts.named(sentence[: verdict.start()])
                if len(named) == 1:
                    yield Conclusion(start, start + verdict.end(), frozenset(named), "verdict", CHOSEN)

    def _lines(self) -> Iterator[Conclusion]:
        """A line that is only a letter, the letter at the beginning, a sentence that is only a text."""
        at = 0
        for line in self.text.split("\n"):
            values = self.letters.only(line)
            if values is not None:
                yield Conclusion(at, at + len(line), values, "letter_line", CHOSEN)
            at += len(line) + 1
        lead = self.letters.leading(self.text)
        if lead is not None:
            yield Conclusion(0, lead[1], lead[0], "letter_line", CHOSEN)
        for start, sentence in sentences(self.text):
            end = start + len(sentence)
            if sentence.rstrip().endswith("?"):
                continue
            letter = self.texts.exact(sentence)
            if letter:
                yield Conclusion(start, end, frozenset(letter), "only_text", HINTED)
            lone = end == len(self.text) and _LONE_LETTER.fullmatch(sentence)
            last = self.letters.only(sentence) if lone else None
            if last is not None:
                yield Conclusion(start, end, last, "letter_line", CHOSEN)
            pair = _same_start(self.texts, fold(sentence.split(",")[0].rstrip(" .!")), 0, whole=True)
            if pair and len(pair) > 1:
                yield Conclusion(start, end, pair, "only_text", HINTED)

    def _conclusive_sentences(self) -> Iterator[Conclusion]:
        for word in phrases.CONCLUSIVE.finditer(self.text):
            rest = self._rest_of_sentence(word.end())
            if rest.rstrip().endswith("?"):
                continue
            read = self.letters.read(rest, phrases.FILLER.match(rest))
            if read and self.letters.concluded(rest, read):
                yield Conclusion(word.start(), word.end() + read[1], read[0], "conclusion", CHOSEN)
                continue
            named = self.texts.named(rest)
            if len(named) == 1 and after_refusals(rest, self.texts.mentions):
                yield Conclusion(word.start(), word.end() + 1, frozenset(named), "conclusion", HINTED)

    def _weak(self) -> Extraction:
        """What a reply suggests that concludes nothing: only after its last refusal."""
        kept = _CONTRAST.sub("", after_refusals(self.text, self.texts.mentions))
        if not kept:
            return UNMATCHED
        named = self.texts.named(kept)
        if len(named) == 1:
            return Extraction(next(iter(named)), "text", concluded=True)
        if named:
            last = fold(sentences(kept)[-1][1]).rstrip(" .!)")
            ends = [m for m in self.texts.mentions(last) if m.end == len(last) and not m.negated]
            if ends and _COPULA_BEFORE.search(last[: ends[0].start]):
                return Extraction(ends[0].letter, "last_text", concluded=True)
            return UNMATCHED
        near = self.letters.near_the_end(kept, _NEAR_THE_END)
        return UNMATCHED if near is None else Extraction(near, "letter", concluded=True)

    def _target(self, rest: str, anywhere: bool) -> frozenset[str] | None:
        """What stands right after a form: a text, letters, or (anywhere) the texts in its sentence.

        A text comes first: "Point A" is a text with a letter in it, "A bus" one with an article.
        """
        folded = fold(rest)
        filler = phrases.FILLER.match(folded)
        begins = _same_start(self.texts, folded, filler.end() if filler else 0)
        if begins:
            return begins
        letters = self._target_letters(rest)
        if letters is not None:
            return letters if letters <= self.letters.valid else None
        return (frozenset(self.texts.named(rest)) or None) if anywhere else None

    def _target_letters(self, rest: str) -> frozenset[str] | None:
        read = self.letters.read(rest, phrases.FILLER.match(rest))
        return read[0] if read else None

    def _is_foreign(self, rest: str) -> bool:
        """Whether the form is followed by a letter or number that is no option."""
        letters = self._target_letters(rest)
        return bool(letters and not letters <= self.letters.valid) or bool(
            re.match(r"[\s:$]*-?\d[\d.,/]*\s*\S{0,3}\s*$", rest)
        )

    def _rest_of_sentence(self, start: int) -> str:
        """With the white space before it, so that places in it are places in the text."""
        rest = self.text[start:]
        body = rest.lstrip()
        found = sentences(body)
        return rest[: len(rest) - len(body)] + (found[0][1] if found else "")


def _same_start(texts: OptionTexts, folded: str, reach: int, whole: bool = False) -> frozenset[str] | None:
    """The option that the folded text begins with, and those joined to it by "and", "or" or a comma.

    whole: only when the text holds nothing else.
    """
    article = re.compile(r"(?:(?:a|an|the|el|la|le|ein|eine|un|une|una|um|uma)\s+)?")
    found: set[str] = set()
    at = reach
    for mention in texts.mentions(folded):
        begin = article.match(folded, at)
        if mention.start < at and found:
            continue
        if mention.negated or mention.start > (begin.end() if begin else at):
            break
        found.add(mention.letter)
        joined = phrases.JOINED.match(folded, mention.end)
        if not joined:
            at = mention.end
            break
        at = joined.end()
    return frozenset(found) if found and (not whole or at == len(folded)) else None


def _ordinals_as_letters(text: str, count: int) -> str:
    """ "the second option" as "option (B)"."""

    def letter(found: re.Match[str]) -> str:
        word = found.group(1).lower()
        position = count - 1 if word == "last" else phrases.ORDINALS.index(word)
        return f"option ({LETTERS[position]})" if position < count else found.group()

    return re.sub(rf"(?i)\bthe ({'|'.join(phrases.ORDINALS)}|last) (?:option|choice|answer)\b", letter, text)
