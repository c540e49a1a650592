"""What templates share in which a header names the role of every turn (chatml, Llama 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from prismcap.data.schema import Message, Segment, TemplateSpec
from prismcap.data.templates._contract import answer_text, split_system, user_segments


@dataclass(frozen=True)
class HeadedTemplate(ABC):
    """system: opens every conversation that brings no system message of its own. bos: a token before
    everything."""

    spec: TemplateSpec
    system: str | None = None
    bos: str | None = None

    @abstractmethod
    def header(self, role: str) -> list[Segment]:
        """What opens a turn."""

    @abstractmethod
    def end(self, train: bool) -> list[Segment]:
        """What ends a turn; `train`: whether its mark is a target."""

    def render(self, messages: Sequence[Message], generation: bool = False) -> list[Segment]:
        """See Template.render."""
        own_system, turns = split_system(messages, generation)
        system = self.system if own_system is None else own_system
        segments = [Segment(text=self.bos, mark=True)] if self.bos else []
        if system is not None:
            segments += self._turn("system", [Segment(text=system)])
        for turn in turns:
            if turn.role == "user":
                segments += self._turn("user", user_segments(turn))
            else:
                answer = Segment(text=answer_text(turn), train=turn.train)
                segments += self._turn("assistant", [answer], train=turn.train)
        if generation:
            segments += self.header("assistant")
        return segments

    def _turn(self, role: str, content: list[Segment], train: bool = False) -> list[Segment]:
        return [*self.header(role), *content, *self.end(train)]
