"""Typed sections of YAML files: frozen, strict, every key documented by the docstring below it.

A choice with keys of its own (a schedule) is a section beside its code. A choice without is an
entry of a registry, which the schema names with `OneOf`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import CoreSchema, core_schema

Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after loading.

    Types are taken literally (`"64"`, `64.0` and `true` are not whole numbers), with two
    exceptions: a whole number is a number, and a list becomes a tuple. A section of several kinds
    that states no `name` is of the default's kind.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    def contradictions(self) -> Iterator[str]:
        """Sentences on fields that exclude each other; `{heads}` stands for `heads=8`."""
        yield from ()

    @classmethod
    def kind(cls) -> str | None:
        """The `name` of a section that is one of several kinds; None for any other section."""
        name = cls.model_fields.get("name")
        return next(iter(get_args(name.annotation)), None) if name else None

    @model_validator(mode="before")
    @classmethod
    def _as_declared(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        for key, field in cls.model_fields.items():
            if field.discriminator and isinstance(data.get(key), dict):
                data[key] = {"name": field.default.name, **data[key]}
        return data

    @model_validator(mode="after")
    def _without_contradiction(self) -> Self:
        def stated(found: re.Match[str]) -> str:
            return f"{found[1]}={show(attrgetter(found[1])(self))}"

        for sentence in self.contradictions():
            raise ValueError(re.sub(r"\{([\w.]+)\}", stated, sentence))
        return self


def inner_sections(annotation: Any) -> list[type[Section]]:
    """The sections that a field of this annotation may hold: none, one, or one per kind."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for part in get_args(annotation) for found in inner_sections(part)]


def walk(
    section: type[Section], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[Section]]]:
    """The path of every key and the section that holds it, section by section."""
    for name, field in section.model_fields.items():
        yield (*above, name), section
        for inner in inner_sections(field.annotation):
            yield from walk(inner, (*above, name))


FREE = object()
"""`Annotated[int, FREE]` marks a key that a run may change without becoming another run.

`--resume` accepts another value of a free key, and the identity of a table's run leaves it out.
"""


class OneOf:
    """`Annotated[str, OneOf(REGISTRY)]`: the name of an entry.

    An entry that is text documents itself; otherwise its `meaning`, or the first line of its
    docstring does.
    """

    def __init__(self, registry: Mapping[str, Any]) -> None:
        self.meanings = {}
        for name, entry in registry.items():
            own = entry if isinstance(entry, str) else getattr(entry, "meaning", None)
            self.meanings[name] = str(own or entry.__doc__).partition("\n")[0].rstrip(".")

    def __get_pydantic_core_schema__(self, _: Any, __: Any) -> CoreSchema:
        return core_schema.literal_schema(list(self.meanings))

    def __get_pydantic_json_schema__(self, _: Any, __: Any) -> dict[str, Any]:
        return {"enum": list(self.meanings), "type": "string", "meanings": self.meanings}


def show(value: Any) -> str:
    """`value` as YAML writes it (text in quotes), cut if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}…"
