"""Option letters in a text, told apart from the article "A", the pronoun "I" and letters of names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from prismcap.evaluate.benchmarks._contract import LETTERS
from prismcap.evaluate.scoring import phrases
from prismcap.evaluate.scoring.mentions import ARTICLES
from prismcap.evaluate.scoring.replies import BOX_CLOSE, BOX_OPEN, plain

WORDS = "AI"  # letters that are words of English too
_CYRILLIC = {"А": "A", "В": "B", "С": "C", "Е": "E"}  # drawn like the Latin letters of the options
_NAME = r"A-Za-z0-9À-ɏЀ-ӿ_'"  # characters that make a letter part of a word; ideographs do not
_LETTER = re.compile(
    rf"([\s(\[{{\"'“「『{BOX_OPEN}]*)([A-Za-zАВСЕ])(?![{_NAME}+#]|-\w|\.\w)(\s*[)\]}}\"'”」』{BOX_CLOSE}]*)"
)
_RUN = re.compile(rf"[\s(]*([A-Z]{{2,6}})(?![{_NAME}])")
_SUBJECT = re.compile(rf"(?<![{_NAME}.-])(\(?)([A-Z])(?![{_NAME}])(\)?)")
_ONLY_BEFORE = re.compile(r"(?i:[\s>|-]*(?:the\s+)?(?:option|choice|letter|answer|选项|選択肢)?\s*:?\s*)")
_ONLY_AFTER = re.compile(r"[\s.,:;!。)です]*$")
_NEGATED = re.compile(r"(?i:\b(?:neither|nor|not|whether|than)\s+(?:that\s+)?(?:option\s+)?)$")
_MARKED = re.compile(
    r"(?i:(?:\b(?:option|choice|answer|letter|opción|opção|opzione|antwort|réponse|вариант)\s+|选项\s*))$"
)
# a letter after these names a thing of the picture, not an option
_NAMES = re.compile(
    r"(?i:\b(?:vitamin|plan|point|line|figure|fig\.?|panel|region|team|class|type|grade|hepatitis|section|"
    r"labell?ed|angle|side|vertex|segment|group|part|area|box|circle|set|node|block|model|exhibit|platform|"
    r"gate|room|row|column|step|case|curve|graph|object|beaker|sample)\s+)$"
)


class Letters:
    def __init__(self, count: int) -> None:
        self.valid = frozenset(LETTERS[:count])

    def read(self, text: str, filler: re.Match[str] | None = None) -> tuple[frozenset[str], int] | None:
        """The letter, or letters joined by "and", "or" or a comma, at the start, and where they end. They may
        lie beyond the options. None where a word begins."""
        starts = (filler.end(), 0) if filler and filler.end() else (0,)
        for start in starts:
            run = _RUN.match(text, start)
            if run and set(run.group(1)) <= self.valid and list(run.group(1)) == sorted(set(run.group(1))):
                return frozenset(run.group(1)), run.end()
            found: set[str] = set()
            end = at = start
            while (one := self._one(text, at)) is not None:
                found.add(one[0])
                end = one[1]
                joined = phrases.JOINED.match(text, end)
                if not joined:
                    break
                at = joined.end()
            if found:
                return frozenset(found), end
        return None

    def concluded(self, text: str, read: tuple[frozenset[str], int]) -> bool:
        """Whether options were read and their sentence, or its clause, ends with them."""
        goes_on = re.match(r"\s*(?:and|or)\b", text[read[1] :])
        return read[0] <= self.valid and not goes_on and bool(phrases.LETTER_ENDS.match(text, read[1]))

    def _one(self, text: str, at: int) -> tuple[str, int] | None:
        match = _LETTER.match(text, at)
        if match is None:
            return None
        letter, closed = match.group(2), bool(match.group(3).strip())
        ends = phrases.LETTER_ENDS.match(text, match.end())
        follows = re.match(r"\s+(?:is\b|[A-Z][a-z])", text[match.end() :])
        if letter in _CYRILLIC:
            return (_CYRILLIC[letter], match.end()) if closed or ends else None
        if letter.islower() or letter in WORDS:
            bounded = closed or bool(ends) or (letter in WORDS and bool(follows))
            return (letter.upper(), match.end()) if bounded else None
        return letter, match.end()

    def anywhere(self, text: str) -> frozenset[str]:
        """All letters that stand alone and are options."""
        return frozenset(m.group(2) for m in _SUBJECT.finditer(text)) & self.valid

    def subjects(self, text: str) -> Iterator[tuple[frozenset[str], int, int]]:
        """Letters, alone or joined, that a verdict may follow: values, start, end."""
        end = 0
        for match in _SUBJECT.finditer(text):
            if match.start() < end or _NEGATED.search(text[: match.start()]):
                continue
            found, end = {match.group(2)}, match.end()
            while (joined := phrases.JOINED.match(text, end)) and (
                more := _SUBJECT.match(text, joined.end())
            ):
                if more.group(2) in found:  # "between C and D, D is …"
                    break
                found.add(more.group(2))
                end = more.end()
            if found <= self.valid:
                yield frozenset(found), match.start(), end

    def only(self, line: str) -> frozenset[str] | None:
        """The letters of a line that holds nothing else."""
        before = _ONLY_BEFORE.match(line)
        read = self.read(line[before.end() :] if before else line)
        if read is None or not read[0] <= self.valid:
            return None
        rest = line[(before.end() if before else 0) + read[1] :]
        return read[0] if _ONLY_AFTER.match(rest) else None

    def leading(self, text: str) -> tuple[frozenset[str], int] | None:
        """The letter that a reply begins with, unless it begins to list its options."""
        read = self.read(text)
        if read is None or not read[0] <= self.valid:
            return None
        closed = text[: read[1]].rstrip()[-1] in ")]"
        if phrases.NO_LEAD.match(text, read[1]) or not (closed or phrases.LETTER_ENDS.match(text, read[1])):
            return None
        labels = re.findall(r"(?:^|\n)\W*([A-Z])\s*[.):]|\(([A-Z])\)\s*(?=[,;\n(]|$)", text)
        listed = {a or b for a, b in labels} & self.valid
        return None if len(listed | read[0]) > len(read[0]) else read

    def near_the_end(self, text: str, tokens: int) -> str | None:
        """The only letter of the text, when it stands among its last tokens."""
        found: dict[str, int] = {}
        for match in _SUBJECT.finditer(text):
            letter = match.group(2)
            before = text[: match.start()]
            marked = bool(match.group(1) and match.group(3)) or bool(_MARKED.search(before))
            ends = re.match(r"\s*(?:[.!,;:]|$)", text[match.end() :])
            joined = phrases.JOINED.match(text, match.end())
            if joined and not _SUBJECT.match(text, joined.end()):
                joined = None
            is_letter = marked or letter not in WORDS or ends or joined
            if letter in self.valid and is_letter and (marked or not _NAMES.search(before)):
                found[letter] = match.end()
        if len(found) != 1:
            return None
        letter, end = next(iter(found.items()))
        line = text[:end].rpartition("\n")[2]
        labels = (
            text[end:].lstrip()[:1] == ":" and len(line.strip(" ()")) == 1
        )  # it begins to weigh an option
        negated = _NEGATED.search(text[:end].rstrip(") ")[:-1].rstrip("("))
        if negated or labels or re.match(r"\s*\)?\?", text[end:]):
            return None
        return letter if len(re.findall(r"\w+", text[end:])) < tokens else None


def collapse_labels(text: str, options: Sequence[str]) -> str:
    """Letters with their option's text as the letter in brackets: "B. dog" as "(B)".

    With another option's text and nothing more, as both letters: "B. cat." as "(B/A).".
    """
    texts = {letter: _flexible(option) for letter, option in zip(LETTERS, options, strict=False)}
    words = {letter: said for letter, said in texts.items() if said}
    present = {
        found.group(2).upper()
        for found in re.finditer(rf"(?<![{_NAME}.-])(\(?)([A-Za-z])(?![{_NAME}])", text)
    }
    labelled = sorted(present & set(words))
    for letter in labelled:
        label = rf"(?<![{_NAME}.-])(?:\({letter}\)|{letter}\s*[.):\]]|{letter}(?=\s*\()|{letter}\s+[-–—]\s)"
        own = rf"(?i){label}\s*[-:]?\s*[\"'(]?{words[letter]}[\"')]?(?![\w]|[.,/]\d)"
        text = re.sub(own, f"({letter})", text)
    for letter in labelled:
        others = "|".join(rf"(?P<{other}>{said})" for other, said in words.items() if said != words[letter])
        if others:
            label = rf"(?<![{_NAME}.-])(?:\({letter}\)|{letter}\s*[.):\]])"
            whole = rf"(?i:{label}\s*[\"']?(?:{others})[\"']?)(?=\s*(?:[.,;!](?!\d)|\n|$))"
            found = list(re.finditer(whole, text))
            for match in reversed(found):
                text = f"{text[: match.start()]}({letter}/{match.lastgroup}){text[match.end() :]}"
    return text


def _flexible(option: str) -> str:
    """An option's text as an expression: any white space, with or without its article."""
    text = re.sub(rf"^(?i:{ARTICLES})\s+(?=\S)", "", plain(option).strip(" .;"))
    return rf"(?:{ARTICLES}\s+)?" + r"\s*".join(map(re.escape, text.split())) if text else ""
