"""What parameters are made of: blocks that know their names, and kinds of numbers."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def refuse(wrong: bool, sentence: str) -> None:
    """A ValueError where something is wrong; pydantic says of which parameter.

    >>> refuse(2 < 1, "two is less than one")
    """
    if wrong:
        raise ValueError(sentence)


def _no_flag(value: Any) -> Any:
    refuse(isinstance(value, bool), "should be a whole number")  # pydantic takes True for 1
    return value


Whole = Annotated[int, BeforeValidator(_no_flag)]
Count = Annotated[Whole, Field(ge=1)]
NonNegativeCount = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
