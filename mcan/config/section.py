"""What every section of the config has in common."""

from __future__ import annotations

import re
from operator import attrgetter
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mcan.config.messages import show

Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after loading.

    Types are taken literally (`"64"`, `1.0` and `true` are no whole numbers), but for two: a whole
    number is a number, and lists become tuples, since YAML has no tuples.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}


class ContradictionError(ValueError):
    """Fields of a section that exclude each other.

    `template` is a sentence that names them in braces, relative to `section`: `{heads} ...`.
    """

    def __init__(self, section: Section, template: str) -> None:
        self.fields: tuple[str, ...] = tuple(re.findall(r"\{([\w.]+)\}", template))
        self._values = {field: attrgetter(field)(section) for field in self.fields}
        self._template = template
        super().__init__(self.told())

    def told(self, prefix: str = "") -> str:
        """The sentence, each field as `key=value` with `prefix` before its key."""
        return re.sub(
            r"\{([\w.]+)\}",
            lambda match: f"{prefix}{match[1]}={show(self._values[match[1]])}",
            self._template,
        )
