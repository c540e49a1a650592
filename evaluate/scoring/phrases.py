"""The words by which replies conclude, as regular expressions: English, Chinese, German, French, Spanish,
Portuguese, Italian, Russian, Japanese, and Korean's words for "answer"."""

from __future__ import annotations

import re

_IS = (
    r"(?:is|are|was|would be|must be|should be|will be|can only be|has to be|seems to be|appears to be|"
    r"lautet|ist|wäre|est|serait|es|sería|é|seria|è|sarebbe|это)\b"
)
_SIGN = r"(?:->|→|=>|[:=]|\s[—–-](?=\s))"
_IS_CJK = r"(?:应该是|应为|应是|是|为|は|が|은|는)"
_ANSWER = (
    r"(?:answers?|antwort|lösung|réponse|respuesta|resposta|risposta|ответ|conclusion|solution|"
    r"(?:correct|right|best|only|remaining|final|richtige|bonne) (?:options?|choices?|statement)|"
    r"(?:option|choice)(?=\s+(?:is|must|would))|alternativa|opción(?=\s+correcta)|opção(?=\s+correta)|opzione)\b"
)
_ANSWER_CJK = r"(?:答案|正解|答え|解答|정답|답)"
_QUALITY = r"(?:\s+(?:correcta|correta|corretta|correcte|exacte|juste|верный|choice|option|here|then))?"
_ABOUT = r"(?:\s+(?:to|for|of|that|given)\b[^.\n:!?]{0,40}?)?"
_HEDGE = (
    r"(?:\s*(?:most likely|probably|likely|clearly|therefore|definitely|simply|thus|actually|indeed|"
    r"in fact)\b)?"
)

# "the answer is", "Answer:", {"answer": …; what was concluded follows
ANSWER_FORM = re.compile(
    rf"(?i:\b{_ANSWER}[\"']?{_QUALITY}{_ABOUT}\s*(?:{_IS}(?!n't)\s*:?|{_SIGN})|"
    rf"{_ANSWER_CJK}\s*(?:{_IS_CJK}\s*:?|:)|"
    r"(?:correct|right) (?:answer|option|choice)(?=\s+\([A-Za-z]\))|ответ(?=\s+[A-ZАВСЕ](?:[.,)]|$)))"
    rf"(?i:{_HEDGE})"
)
# "I would choose", "it must be", "that leaves"; what was chosen follows at once
CHOICE_FORM = re.compile(
    r"(?i:\bi(?:'d| would| will|'ll| must| have to)?\s+(?:choose|pick|select|go with|say|guess|answer|"
    r"opt for|lean towards?)(?: it(?:'s| is))?|\bgoing with|"
    r"\bmy (?:best |final )?(?:guess|choice|pick|selection) (?:is|would be)|\b(?:must|has to) be|"
    r"\b(?:that|this|which) leaves(?: us with| only)?|\bonly leaves|"
    r"\bleaving(?: us with)?(?: only)?|\bleft with(?: only)?|"
    r"\bpoints? (?:to|at|towards)|"
    r"\bnot\b[^.\n]{1,30}?\bbut(?: rather)?\b|选(?!项)择?:?|而是|\bc'est|\bil s'agit de|\bsondern|"
    r"\bse trata de|\bes la)(?![a-z])"
)
# "it is C"; before a text it commits to less: "it is red" may be about anything
SAYING = re.compile(
    r"(?i:(?:^|(?<=[.,;:!?\n])|(?<=[.,;:!?]\s)|\b(?:so|that|thus|therefore|hence|and|but|believe|think|guess)\s+)"
    r"(?:it|that|this)(?:'s| is| would be)|\bi (?:believe|think|guess))(?![a-z])"
    rf"(?i:{_HEDGE})"
)
# "so", "therefore": the rest of the sentence concludes
CONCLUSIVE = re.compile(
    r"(?i:(?:^|(?<=[\s,;.:(]))(?:so|therefore|thus|hence|consequently|in conclusion|conclusion|finally|"
    r"(?:for|making) a total of|in total|daher|"
    r"deshalb|donc|por lo tanto|por tanto|portanto|quindi|perciò|итак|поэтому|следовательно)\b|"
    r"因此|所以|したがって|よって)\s*[,:、]?\s*(?i:(?:option|choice)\s+)?"
)
# what may stand between a form and the letter or text: an article, the word "option"
FILLER = re.compile(
    r"(?i:[\s:\"'“「(\[]*(?:(?:the|la|le|el|der|die|das|a|o|l'|de|den|option|options|choice|letter|answer|"
    r"response|réponse|respuesta|resposta|risposta|antwort|alternativa|opción|opção|opzione|buchstabe|"
    r"lettre|letra|lettera|вариант|буква|选项|选择|選択肢|both|either)(?:\s+|:\s*|(?=[A-Z(]))){0,3})"
)
JOINED = re.compile(
    r"\s*(?:,?\s*\(?(?:(?i:and|or|und|oder|et|ou|или)|y|o|e|и)(?=[\s(])|,|/|&|\+|和|或者?|与|、|と|または)\s*"
    r"(?:(?i:options?|either|maybe|possibly|perhaps)\s+)?"
)
# what may follow a capital A or I, or a letter after "so", for it to be a letter and not a word
LETTER_ENDS = re.compile(
    r"\s*(?:$|[.,;:!?()\]\"'|/\ue001\n。，、；—–]|[^\x00-\u024f\u0400-\u04ff]|-\s|"
    r"(?i:because|since|as|due|which|and|or|given|for|here|weil|da|denn|car|parce|porque|perché|потому)\b)"
)
# after the letter that a reply begins with: then it is an option that is being weighed, not the answer
NO_LEAD = re.compile(
    r"[\s.,:;)\]—–-]*(?i:(?:is|are|was|does|do|can|cannot|could|would|might|may|has|have|incorrect|wrong|no|not|false|"
    r"and|or)\b|❌|✗|✘|×|[^\x00-\u024f\u0400-\u04ff\u2000-\u206f])"
)
_GOOD = (
    r"correct\b|right\b(?! (?:of|side|hand|next|now|in)\b)|best\b|true\b|accurate\b|most (?:likely|plausible|"
    r"accurate|appropriate|fitting|suitable|consistent|logical|reasonable)\b|"
    r"more (?:likely|plausible|consistent|fitting)\b|(?:strongest|closest)\b|"
    r"(?:(?:best|correct|right|only|most) )+(?:answer|option|choice|match|fit)|yes\b|"
    r"✅|✓|✔|正确|对(?!的?吗)|正しい|正解|適切|richtig\b|korrekt\b|correcte\b|correcta\b|corretta\b|correta\b|верн|правильн"
)
_VERB = (
    r"(?:(?:is|are|must be|seems|appears|looks|ist|est|es|è|é|sind)\s+(?:(?:the|also|therefore|clearly|"
    r"indeed|thus|die|la|le|el|a)\s+)?|(?:选项|項|项)?\s*(?:是|为|が|は)\s*|\s*[:|—–-]+\s*|\s*[.)]\s*|(?<=\))\s*)"
)
# the verdict on the letters before it
VERDICT = re.compile(
    rf"\s*(?i:{_VERB}(?:{_GOOD})|(?:fits|matches)(?: the \w+)?(?: best\b|\s*[.,]|$)|it is\b|✅|✓|✔)"
)
TEXT_VERDICT = re.compile(
    r"(?i:\s+is (?:clearly |indeed )?(?:the )?(?:correct|right|best|most likely)"
    r"(?: (?:answer|option|choice))?\b)"
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
