"""A Prism run: benchmarks, perceivers, instructions and reasoners, and which of them meet.

Source: Prism, arXiv 2406.14544.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from prismcap.configs.schema.base import Component, Section
from prismcap.configs.schema.run import RUN_NAME

BLIND = "blind"  # a reasoner without a description
END_TO_END = "end_to_end"  # the perceiver answers the question itself
RESERVED = (BLIND, END_TO_END)
InstructionKey = Literal["human1", "human2", "gpt1", "gpt2", "cot", "decompose"]


class Decoding(Section):
    """How texts are generated. temperature 0 is greedy; beams exclude sampling."""

    max_new_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    num_beams: int = Field(default=1, ge=1)
    thinking_tokens: int | None = Field(
        default=None,
        ge=0,
        description="budget of models that think before they answer; none: the model's own",
    )

    @model_validator(mode="after")
    def _beams_do_not_sample(self) -> Decoding:
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError("num_beams above 1 is not sampled: set temperature to 0")
        return self


class InstructionConfig(Section):
    """What a perceiver is told: one of the paper's texts or one of your own, for every question alike; with
    `written_by`, a reasoner adds what each question makes worth seeing (query-specific)."""

    key: InstructionKey | None = None
    text: str | None = Field(default=None, min_length=1)
    written_by: str | None = Field(default=None, description="a reasoner's name; makes it query-specific")
    options_shown: bool = Field(default=False, description="the writer sees the options too")
    file: str | None = Field(
        default=None, description="JSONL of written parts, shared by all perceivers and kept; query-specific"
    )

    @model_validator(mode="after")
    def _one_text(self) -> InstructionConfig:
        if self.key is not None and self.text is not None:
            raise ValueError("give `key` (one of the paper's) or `text` (your own), not both")
        if self.written_by is None and (self.options_shown or self.file is not None):
            raise ValueError("options_shown and file belong to a query-specific instruction: set written_by")
        return self


class CellsConfig(Section):
    """Every combination of these names. Empty lists mean all; `blind` may stand among the perceivers and
    `end_to_end` among the reasoners."""

    benchmarks: tuple[str, ...] = ()
    perceivers: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    reasoners: tuple[str, ...] = ()
    limit: int | None = Field(default=None, ge=1, description="the first so many questions of each benchmark")


class PriceConfig(Section):
    """US dollars per million tokens, as the provider lists them."""

    tokens_in: float = Field(ge=0)
    tokens_out: float = Field(ge=0)


class DecodingConfig(Section):
    """Decoding by stage of the pipeline."""

    instruct: Decoding = Decoding()
    perceive: Decoding = Decoding()
    reason: Decoding = Decoding()
    judge: Decoding = Decoding()


class LocalConfig(Section):
    """Of models that run in this process."""

    batch_size: int = Field(default=16, ge=1)
    num_threads: int | None = Field(default=None, ge=1)
    max_image_pixels: int = Field(default=100_000_000, ge=1)


class PrismConfig(Section):
    """The whole of one Prism YAML file, after `base:` and the overrides."""

    name: str = Field(pattern=RUN_NAME)
    seed: int = 0
    output_dir: str = "checkpoints"
    benchmarks: dict[str, Component] = Field(min_length=1)
    perceivers: dict[str, Component] = Field(min_length=1)
    instructions: dict[str, InstructionConfig] = Field(
        default_factory=lambda: {"generic": InstructionConfig(key="human1")}
    )
    reasoners: dict[str, Component] = Field(min_length=1)
    cells: tuple[CellsConfig, ...] = Field(
        default=(), description="none: every combination, and every reasoner blind"
    )
    decoding: DecodingConfig = DecodingConfig()
    judge: str | None = Field(
        default=None,
        description="a reasoner's name; it says which option a reply chooses where no rule could tell",
    )
    local: LocalConfig = LocalConfig()
    prices: dict[str, PriceConfig] = Field(
        default_factory=dict, description="by name of a perceiver or reasoner of this file"
    )

    @field_validator("benchmarks", "perceivers", "instructions", "reasoners")
    @classmethod
    def _names(cls, parts: dict[str, object]) -> dict[str, object]:
        for name in parts:
            if name in RESERVED:
                raise ValueError(f"the name {name!r} is kept for its meaning in cells; choose another")
            # not "-", which is a cell without an instruction, nor "..": folders are named by it
            if name[:1] in ("-", ".") or not name.replace("-", "_").replace(".", "_").isidentifier():
                raise ValueError(
                    f"the name {name!r} must be letters, digits and -_., a letter first: it names files"
                )
        return parts

    @model_validator(mode="after")
    def _names_exist(self) -> PrismConfig:
        for position, cells in enumerate(self.cells):
            at = f"cells.{position}"
            for key, extra in (
                ("benchmarks", ()),
                ("perceivers", (BLIND,)),
                ("instructions", ()),
                ("reasoners", (END_TO_END,)),
            ):
                known = (*getattr(self, key), *extra)
                for name in getattr(cells, key):
                    if name not in known:
                        raise ValueError(f"{at}.{key}: no {name!r} here; there are {', '.join(known)}")
        for name, instruction in self.instructions.items():
            if instruction.written_by is not None and instruction.written_by not in self.reasoners:
                raise ValueError(
                    f"instructions.{name}.written_by: no reasoner {instruction.written_by!r}; "
                    f"there are {', '.join(self.reasoners)}"
                )
        if self.judge is not None and self.judge not in self.reasoners:
            raise ValueError(f"judge: no reasoner {self.judge!r}; there are {', '.join(self.reasoners)}")
        for name in self.prices:
            if name not in self.perceivers and name not in self.reasoners:
                raise ValueError(f"prices.{name}: neither a perceiver nor a reasoner of this file")
        return self
