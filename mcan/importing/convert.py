"""From sources to a store, by several processes, in the order of the sources."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

import mcan
from mcan.data.parts import read_parts
from mcan.data.region_checks import storable_features
from mcan.data.store_filling import Broken, Filled, Found, ImageRows, StoreLayout, fill_store
from mcan.errors import DataError
from mcan.importing.source import Source

StoreDtype = Literal["float16", "float32"]


def import_features(
    sources: Sequence[tuple[str, Source]],
    output: Path,
    *,
    dtype: StoreDtype = "float16",
    wanted: frozenset[str] | None = None,
    workers: int = 0,
    resume: bool = False,
    skip_broken: bool = False,
) -> Filled:
    """Write the images of all `sources`, pairs of format and source, as the store `output`.

    `wanted` are the ids, as text, to take (None: all); `workers` processes read and convert.
    Raises `DataError`; for what happens then: `fill_store`.
    """
    readers = [source for _, source in sources]
    layout = _layout(readers, dtype, wanted)
    description = [
        {"format": name, "path": str(source.path), "identity": source.identity}
        for name, source in sources
    ]
    digest = None if wanted is None else hashlib.sha256(repr(sorted(wanted)).encode()).hexdigest()
    return fill_store(
        output,
        layout,
        part_names(readers),
        lambda todo: read_parts(_Parts(readers, todo, dtype, wanted), workers),
        settings={"sources": description, "wanted": digest},
        provenance={
            "made_by": "import_features",
            "mcan": mcan.__version__,
            "sources": [{"format": name, "path": str(source.path)} for name, source in sources],
            "notes": [source.note for source in readers if source.note],
        },
        unit=readers[0].unit,
        wanted=wanted or (),
        resume=resume,
        skip_broken=skip_broken,
    )


def part_names(sources: Sequence[Source]) -> list[str]:
    """All parts, each with the number of its source before it."""
    return [f"{number}:{part}" for number, source in enumerate(sources) for part in source.parts]


def read_part(
    sources: Sequence[Source], name: str, wanted: Container[str] | None
) -> Iterator[Found]:
    """The images of a part of `part_names`; one that cannot be read at all is broken as a whole."""
    number, part = name.split(":", 1)
    try:
        yield from sources[int(number)].read(part, wanted)
    except DataError as error:
        yield Broken(part, str(error))


@dataclass(frozen=True)
class _Parts(Dataset[tuple[str, list[Found]]]):
    """Parts as they go into the store: features already in its dtype."""

    sources: Sequence[Source]
    names: Sequence[str]
    dtype: StoreDtype
    wanted: Container[str] | None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, list[Found]]:
        name = self.names[index]
        found = read_part(self.sources, name, self.wanted)
        return name, [self._convert(image) for image in found]

    def _convert(self, image: Found) -> Found:
        if isinstance(image, Broken):
            return image
        try:
            features = storable_features(image.features, None, self.dtype)
        except ValueError as error:
            return Broken(str(image.image_id), str(error))
        return replace(image, features=features)


def _layout(
    sources: Sequence[Source], dtype: StoreDtype, wanted: frozenset[str] | None
) -> StoreLayout:
    """What the first readable image has; all others must have the same."""
    reason = "it holds no image that is wanted"
    for name in part_names(sources):
        for image in read_part(sources, name, wanted):
            if isinstance(image, ImageRows):
                try:
                    features = storable_features(image.features, None, dtype)
                except ValueError as error:
                    reason = f"image {image.image_id!r}: {error}"
                    continue
                return StoreLayout(
                    feature_dim=features.shape[1],
                    dtype=dtype,
                    boxes=image.boxes is not None,
                    sizes=image.size is not None,
                    grid=image.grid_shape is not None,
                )
            reason = f"{image.image}: {image.reason}"
    paths = ", ".join(str(source.path) for source in sources)
    raise DataError(f"{paths}: no image can be read; {reason}")
