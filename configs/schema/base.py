"""The two shapes every config section is made of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Section(BaseModel):
    """A fixed set of keys: an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Component(BaseModel):
    """`name` picks a file of a registry folder; the other keys are that file's own Options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_serializer(mode="wrap")
    def _with_nulls(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Also of exclude_none an option that says null: its default may be something (llama_2's system)."""
        return {**handler(self), **{key: None for key, value in self.options.items() if value is None}}
