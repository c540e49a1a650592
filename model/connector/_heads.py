"""A check that the options of connectors with attention share."""

from __future__ import annotations


def check_divides(connector: str, divisor: tuple[str, int], of: tuple[str, int]) -> None:
    """Both are an option's name and value. Raises ValueError, for a validator of pydantic."""
    if of[1] % divisor[1]:
        raise ValueError(
            f"{connector}: {divisor[0]} = {divisor[1]} does not divide {of[0]} = {of[1]}: change one of them"
        )
