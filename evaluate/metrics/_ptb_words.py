"""The words and characters that Penn Treebank tokenization knows by name.

Found by asking Stanford's PTBTokenizer 3.4.1: every word of up to four letters and the words of some ten
megabytes of text with a point after, and every character of Unicode's first plane.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

# two tokens written as one word -> where the second begins
SPLIT = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3, "'tis": 2, "'twas": 2}

# the point belongs to them; in any case. "+": the first letter must be a capital. "-": only the first may
ABBREVIATIONS = """al ala apr ariz +ark assn aug +az bhd bldg blvd bros calif co colo conn corp cos ct dak
dec +del esq est etc ext feb fla fri ga +ill inc ind intl jan jr jul jun kan kans ky +la ltd mar +mass md
mich minn +miss mo mon mont neb nev nov oct okla +ore +pa penn plc -ppte -ppty -pte -ptes -pty -ptys rd rt
sep sept seq sq sr sys tel tenn +tex thu thurs tue tues univ va vt +wash wed wis wisc wyo"""
TITLES = """adj adm adv alex assoc asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs
elec ens ft gen gov govs hon insp invt jos lt maj messrs -mfg mlle mme mr mrs ms msgr mt -mtg natl pfc ph pres
prof profs pvt rep reps rev sen sens sfc sgt spc st ste supt supts treas vs wm"""
BEFORE_NUMBER = "art ca fig no nos op pp prop"
# "plan b. The dog": the point after one letter ends a sentence before one of these
SENTENCE_STARTS = """+a +about +according +additionally +after +an +as +at +but +earlier +he +her +here
+however +if +in +it +last +many +more +mr. +ms. +now +once +one +other +our +she +since +so +some +such +that
+the +their +then +there +these +they +this +we +what +when +while +yet +you"""
FILE_ENDS = (
    "bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|"
    "tar|txt|wav|x|xml|zip"
)
ADDRESS_ENDS = "com|net|org|edu"

# characters by code point, from-to; letters that Unicode got after 6.0 are no letters there, and marks of
# many scripts are
_NO_LETTERS = """37f 528-52f 560 588 5ef 860-88e 8a1 8ad-8c9 978 980 9fc af9 c34 c5a-c5d c80 cdd d04 d54-d5f
e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5-13fd 16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0 19c8-19c9
1b4c 1c80-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d a78f a794-a79f
a7ab-a7f7 a8fd-a8fe a9e0-a9fe aa7e-aa7f ab30-abbf"""
_LETTERS_TOO = """2c2-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7 615-61a 64b-65e 670
6d6-6fe 70f-7b0 7eb-7f3 900-903 93c-94e 951-955 962-963 981-983 9bc-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03
a3c a3e-a4f a81-a83 abc-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31-e3a e47-e4e
eb1-ebc ec8-ecd 1885-1886"""
# what is a token by itself; all other characters vanish, emoji among them
_SYMBOLS = """21-7e a1-37e 387 589 5be-5c6 5f3-5f4 600-603 606-60c 614-61b 61e-61f 66a 66d-70d 7f6-7f8
964-965 e3f-e4f 1fbd 2016-2023 2030-203b 203e-2042 2044 2070 2074-208e 20a4 2100-214f 2155-215e 2190-2bff
3001-3002 3012 30fb ff01-ff65 ffe0-ffe1 ffe5-ffe6"""


def cased(words: str) -> str:
    """A pattern of the words in all the cases they are known in."""
    patterns = []
    for word in words.split():
        sign, spelled = ("", word) if word[0].isalpha() else (word[0], word[1:])
        first, rest = spelled[0], re.escape(spelled[1:])
        if sign == "+":
            patterns.append(f"{first.upper()}(?i:{rest})")
        else:
            patterns.append(f"[{first}{first.upper()}]{rest}" if sign else f"(?i:{first}{rest})")
    return "|".join(patterns)


@lru_cache(maxsize=2)
def letters(marks: bool) -> str:
    """The ranges of a character class; marks: those that are letters in words, not between hyphens."""
    codes = {code for code in range(0x10000) if chr(code).isalpha()} - set(_codes(_NO_LETTERS))
    if marks:
        codes |= {code for code in _codes(_LETTERS_TOO) if not chr(code).isdecimal()}
    ranges: list[list[int]] = []
    for code in sorted(codes):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in ranges)


@lru_cache(maxsize=1)
def kept_symbols() -> frozenset[str]:
    return frozenset(map(chr, _codes(_SYMBOLS)))


def _codes(ranges: str) -> Iterator[int]:
    for part in ranges.split():
        first, _, last = part.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)
