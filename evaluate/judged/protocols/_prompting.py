"""How texts stand in a judge's prompt, and the line of its reply that counts."""

from __future__ import annotations

from prismcap.evaluate.scoring.replies import visible

EMPTY = "(no text)"
_MARKS = "*_`#> \t"


def quoted(tag: str, text: str) -> str:
    """The text between tags of its own. What is judged cannot close them."""
    closing = f"</{tag}>"
    while closing in text:  # one that is taken out may leave another: </ans</answer>wer>
        text = text.replace(closing, "")
    return f"<{tag}>\n{text.strip() or EMPTY}\n{closing}"


def first_line(reply: str) -> str:
    """The first line with a word on it, without thinking before it and Markdown around it."""
    for line in visible(reply).splitlines():
        if text := line.strip(_MARKS):
            return text
    return ""
