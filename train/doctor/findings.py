"""What a check says: fine, or what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from prismcap.configs.errors import ConfigError

Level = Literal["ok", "warning", "error"]


class DoctorError(ConfigError):
    """At least one check found that the run would fail or learn the wrong thing."""


@dataclass(frozen=True)
class Finding:
    """One check's result. `remedy` is empty when all is well."""

    level: Level
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        indent = "\n" + " " * 9
        text = f"{self.level:<8} {self.what}" + (f"\n{self.remedy}" if self.remedy else "")
        return text.replace("\n", indent)


def ok(what: str) -> Finding:
    return Finding("ok", what)


def warning(what: str, remedy: str) -> Finding:
    return Finding("warning", what, remedy)


def error(what: str, remedy: str) -> Finding:
    return Finding("error", what, remedy)


def errors(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "error"]
