"""What a model that thinks aloud says after it has thought."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"  # Qwen3, DeepSeek-R1 and SmolLM3


def without_thoughts(text: str) -> str:
    """The reply alone; "" where the thinking was cut off. Some templates open the thinking in the prompt, so
    that a reply has its end only."""
    if CLOSE in text:
        return text.rpartition(CLOSE)[2].strip()
    return "" if text.lstrip().startswith(OPEN) else text.strip()
