r"""Words of a caption as COCO's evaluation counts them: Penn Treebank tokens, lower case, less punctuation.

Equal to pycocoevalcap's PTBTokenizer (Stanford's PTBTokenizer 3.4.1 with -preserveLines -lowerCase, then a
list of punctuation removed), which needs Java: held to its answers in tests/assets/golden/
caption_metrics.json. Brackets are words there ("-lrb-": the list removes only "-LRB-"), and a token may hold
a no-break space ("1\xa01/2"). Where the two differ: a caption is read by itself here (theirs sees the one
after it: "no." before "5 dogs"), and line breaks inside a caption are spaces (theirs shifts all captions
after some of them).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from prismcap.evaluate.metrics._ptb_words import (
    ABBREVIATIONS,
    ADDRESS_ENDS,
    BEFORE_NUMBER,
    FILE_ENDS,
    SENTENCE_STARTS,
    SPLIT,
    TITLES,
    cased,
    kept_symbols,
    letters,
)

__all__ = ["TOKENS", "tokenize"]

TOKENS = "ptb tokens 1"  # part of every identity: change it with anything that changes tokens

# removed after tokenizing; theirs has brackets too, in upper case, which lower-cased text never holds
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_MONEY = {"¢": "cents", "£": "#", "¤": "$", "\x80": "$", "₠": "$", "€": "$"}
_QUOTES = {"‘": "`", "’": "'", "‹": "`", "›": "'", "\x91": "`", "\x92": "'"}
_QUOTES |= {"“": "``", "”": "''", "«": "``", "»": "''", "\x93": "``", "\x94": "''", "`": "`"}
_WRITTEN = _BRACKETS | _FRACTIONS | _MONEY | {"&lt;": "<", "&gt;": ">"}
_LINE_BREAKS = re.compile("[\n\r\v\f\x85\u2028\u2029]+")
# a word that no rule but the plain one can take: nothing but letters up to a space
_PLAIN = re.compile("([A-Za-z]+)(?=,?[ \n])")
_Kind = Literal["text", "split", "nothing", "bracketed", "hyphens", "ending", "quotes", "ampersand", "symbol"]


class _Rule(NamedTuple):
    """The pattern's first group is the token; what is matched after it must follow, and counts as length."""

    kind: _Kind
    pattern: re.Pattern[str]


@lru_cache(maxsize=1 << 15)
def tokenize(text: str) -> str:
    """The tokens of one caption with a space between: "" where there are none."""
    tokens = (token.lower() for token in _tokens(_LINE_BREAKS.sub(" ", text) + "\n"))
    return " ".join(token for token in tokens if token and token not in _PUNCTUATION)


def _tokens(line: str) -> Iterator[str]:
    """At each place the rule that matches longest wins, the first of them where two match as much."""
    rules = _rules()
    position = 0
    while position < len(line):
        if line[position].isspace():
            position += 1
            continue
        plain = _PLAIN.match(line, position)
        if plain and plain[0].lower() not in SPLIT:
            yield plain[0]
            position = plain.end()
            continue
        kind: _Kind = "nothing"
        longest = end = position
        for rule in rules:
            found = rule.pattern.match(line, position)
            if found and found.end() > longest:
                kind, longest, end = rule.kind, found.end(), found.end(1)
        end = max(end, position + 1)
        if kind == "split":  # what follows the first half is read anew: "'tis-a" has "is-a"
            end = position + SPLIT[line[position:end].casefold()]
        yield from _written(kind, line[position:end])
        position = end


def _written(kind: _Kind, token: str) -> Iterator[str]:
    if kind == "symbol":
        if token in kept_symbols():
            yield token
    elif kind == "ending":
        yield re.sub(_OPENING_QUOTE, "`", re.sub(_APOSTROPHE, "'", token))
    elif kind == "quotes":  # two of them are no punctuation that is known, and stay
        yield "".join(_QUOTES[quote] for quote in token)
    elif kind == "hyphens":
        yield token if len(token) > 4 else "--"
    elif kind != "nothing":
        token = _WRITTEN.get(token.lower(), token)
        if kind == "bracketed":
            token = token.replace("(", "-LRB-").replace(")", "-RRB-")
        elif kind == "ampersand":
            token = token.replace("&amp;", "&")
        yield token.replace("\xad", "").replace(" ", "\xa0")


@lru_cache(maxsize=1)
def _rules() -> tuple[_Rule, ...]:
    """In order of precedence among equally long matches."""
    return tuple(
        _Rule(kind, re.compile(pattern))
        for group in (_markup_rules(), _word_rules(), _number_rules(), _abbreviation_rules(), _symbol_rules())
        for kind, pattern in group
    )


_ACCENTED = "&[aeiouAEIOU](?:acute|grave|uml);"
_APOSTROPHE = "(?:['\x92’]|&apos;)"
_OPENING_QUOTE = "[`\x91‘‛]"
_ANY_QUOTE = f"(?:{_APOSTROPHE}|{_OPENING_QUOTE})"
_ENDING = f"{_APOSTROPHE}(?:[msdMSD]|[rR][eE]|[vV][eE]|[lL][lL])"  # I'm, it's, they'd, we're, I've, you'll
_NOT = f"[nN]{_ANY_QUOTE}[tT]"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_ATTRIBUTE = f" +{_NAME}(?: *= *(?:\"[^\"\r\n]*\"|'[^'\r\n]*'))?"
_MARKUP = f"<(?:[!?][A-Za-z-][^>\r\n]*|/{_NAME} *|{_NAME}(?:{_ATTRIBUTE})* */? *)>"
_CAPITALS = "[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"  # AT&T
_BLANK = "[ \t\n\xa0]"
_NUMBER = "(?:\\d+(?:[.:,\xad\u066b\u066c]\\d+)*|(?:[.:,\xad\u066b\u066c]\\d+)+)"


def _letter() -> str:
    return f"(?:[\xad{letters(marks=True)}]|{_ACCENTED})"


def _alnum() -> str:
    return rf"(?:[\d\xad{letters(marks=True)}]|{_ACCENTED})"


def _word() -> str:
    letter, alnum = _letter(), _alnum()
    return f"{letter}{alnum}*(?:[.!?]{letter}{alnum}*)*"


def _thing() -> str:
    """Letters and digits with hyphens between, and d' o' l' before."""
    alnum = rf"[\d\xad{letters(marks=False)}]"
    part = f"(?:[dDoOlL]{_ANY_QUOTE}{alnum})?{alnum}+"
    return f"{part}(?:[-_\u058a\u2010\u2011]{part})*"


def _hyphenated() -> str:
    return rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{_ACRONYM}\.|[A-Za-z0-9\xad]+))+"


def _markup_rules() -> Iterator[tuple[_Kind, str]]:
    """Two words in one; tags and entities of HTML."""
    yield "split", f"((?i:{'|'.join(SPLIT)}))"
    yield "text", f"({_MARKUP})"
    yield "nothing", "(&(?:MD|mdash|ndash);|[\x96\x97–-―])"
    yield "ampersand", "(&amp;)"
    yield "text", "(&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)"


def _word_rules() -> Iterator[tuple[_Kind, str]]:
    """Words, what an apostrophe does to them, addresses."""
    quote, after = _ANY_QUOTE, "[^A-Za-z]"
    yield "text", f"({_word()}){_ENDING}"
    yield "text", f"([A-Za-z]+){_NOT}"
    yield "text", f"({_word()})"
    letter = f"[{letters(marks=False)}]"  # O'Neil, o'o, ma'am: an apostrophe inside one word
    inside = f"[A-HJ-XZn]{quote}{letter}{{2,}}|[oO]{quote}[oO]"
    inside += f"|{letter}+[aeiouyAEIOUY]{quote}[aeiouA-Z]{letter}*"
    known = "nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l"
    cut = f"{_APOSTROPHE}(?:em|cause|till?|[2-9]0s|n{_APOSTROPHE})|(?:[ldj]|dunkin|somethin|ol){_APOSTROPHE}"
    yield "text", rf"({inside}|cont'd\.?|(?i:{known}|{cut}))"
    yield "text", f"([’\x92][nN]|(?i:{_APOSTROPHE}n)(?={_BLANK}))"
    yield "text", f"([yY]{_APOSTROPHE}){_letter()}"
    # addresses end in no punctuation
    no_end = r"[^ \t\n\f\r\"<>|.!?(){},-]"
    yield "text", rf"((?i:https?://)[^ \t\n\f\r\"<>|(){{}}]+{no_end})"
    host = r"(?i:www\.)(?:[^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"
    bare = rf"(?:[^ \t\n\f\r\"`'<>|!?(){{}}$,-_]+\.)+(?i:{ADDRESS_ENDS})"
    yield "text", f"({host}|{bare})"
    yield "text", rf"((?:{host}|{bare})/[^ \t\n\f\r\"<>|()]+{no_end})"
    mail = r"[^ \t\n\f\r\"<>|(){}.\xa0]+"
    yield "text", rf"(<?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\xa0{{}}]*@(?:{mail}\.)*{mail}>?)"
    yield "text", f"(@[a-zA-Z_][a-zA-Z_0-9]*|#{_letter()}+)"
    yield "text", r"([cC]\+\+|[cCfF]#)"
    # what was left of "it's" and "isn't"; a curly apostrophe ends any word
    yield "ending", f"({_ENDING}|{_NOT}){after}"
    yield "ending", "((?:[’\x92]|&apos;)(?i:[msd]|[rv]e|ll))"


def _number_rules() -> Iterator[tuple[_Kind, str]]:
    """Dates, numbers, fractions ("1 1/2"), words with slashes, money."""
    yield "text", r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})"
    yield "text", f"([-+]?{_NUMBER})"
    yield "text", "([⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+))"
    yield "text", "((?:\\d{1,4}[- \xa0])?\\d{1,4}(?:\\\\?/|⁄)\\d{1,4})"
    yield "text", "([¼-¾⅓-⅞])"
    special = r"-[RL][RCS]B-|C\.D\.s|pro-|anti-|S&(?:amp;)?P-500|S&(?:amp;)?Ls"
    special += f"|Cap{_APOSTROPHE}n|c{_APOSTROPHE}est"
    yield "ampersand", f"((?i:{special}))"
    yield "text", rf"({_APOSTROPHE}\d\d){_BLANK}"
    yield "ampersand", f"({_CAPITALS})"
    slash = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
    yield "text", rf"({slash}(?:\\?/{slash}){{1,2}})"
    yield "text", r"([A-Z]*\$|#)"
    yield "text", "([¢-¥\x80₠€؋฿₤￠￡￥￦])"


def _abbreviation_rules() -> Iterator[tuple[_Kind, str]]:
    """The point stays with the word."""
    shortened = rf"(?i:ph|ed)\.[dD]|{cased(ABBREVIATIONS)}"
    yield "text", rf"((?:{shortened}|{cased(TITLES)})\.)"
    yield "text", rf"((?:{shortened})\.)[\s\S]{{2}}"  # "inc.c" is two tokens, "mr.x" is one
    yield "text", rf"((?:{cased(BEFORE_NUMBER)})\.){_BLANK}*\d"
    yield "text", rf"({_ACRONYM}\.|[A-Za-z]\.)"
    yield "text", rf"([A-Za-z])\.{_BLANK}+(?:{cased(SENTENCE_STARTS)}|{_MARKUP}){_BLANK}"
    yield "text", rf"((?:{_word()}|{_thing()}|{_hyphenated()}|{_CAPITALS})\.)[,;:、]"


def _symbol_rules() -> Iterator[tuple[_Kind, str]]:
    """Numbers of telephones, faces, names of files, what has hyphens inside, and single characters."""
    area = r"\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- ])?[0-9]{2,4}[- ]"
    dotted = r"(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
    yield "bracketed", rf"((?:{area})[0-9]{{3,4}}[- ]?[0-9]{{3,5}}|{dotted})"
    yield "bracketed", r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]"
    eye = "[-^x=~<>']"
    yield "bracketed", rf"({eye}_{eye}|\({eye}[_.]?{eye}\))"
    yield "text", rf"((?:{_alnum()}+\.)+(?i:{FILE_ENDS}))[ \n.,!?]"
    yield "text", f"({_thing()})"
    yield "text", f"({_hyphenated()})"
    yield "hyphens", "(-+)"
    yield "nothing", r"(\.{3,5}|(?:\.[ \xa0]){2,4}\.|…)"
    yield "text", r"([?!]+|@+|#+|_+|\*+|(?:\\\*){1,3}|<<|>>)"
    yield "text", r"([()\[\]{}]|(?i:&lt;|&gt;))"
    yield "nothing", "((?i:&nbsp;|&quot;|&apos;)|''|['\"‛])"
    yield "quotes", f"([{''.join(_QUOTES)}]{{1,2}})"
    yield "symbol", r"(\S)"
