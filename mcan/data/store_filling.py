"""A region store filled part by part: resumable, with every broken or missing image named.

n rows of an image, D width of a feature row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import ArrayLike

from mcan.data.hdf5 import Id
from mcan.data.journal import Journal
from mcan.data.store_writer import RefusedImageError, RegionStoreWriter
from mcan.errors import DataError
from mcan.files import write_text
from mcan.progress import progress

_SHOWN = 5


@dataclass(frozen=True)
class ImageRows:
    """One image for a region store; what each is: `RegionStoreWriter.add`."""

    image_id: Id
    features: ArrayLike
    boxes: ArrayLike | None = None
    size: tuple[int, int] | None = None
    grid_shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Broken:
    """An image (its id, or its file where the id is unknown) that cannot be stored, and why.

    `reason` becomes one line of at most 200 characters.
    """

    image: str
    reason: str

    def __post_init__(self) -> None:
        line = " ".join(self.reason.split())
        object.__setattr__(self, "reason", line if len(line) <= 200 else f"{line[:197]}...")


Found = ImageRows | Broken
Produce = Callable[[Sequence[str]], Iterable[tuple[str, Sequence[Found]]]]
"""From the names of the parts to do, to each with its images, in this order."""


@dataclass(frozen=True)
class StoreLayout:
    """Width and dtype of the rows, and which optional datasets the store has."""

    feature_dim: int
    dtype: Literal["float16", "float32"]
    boxes: bool
    sizes: bool
    grid: bool


@dataclass(frozen=True)
class Filled:
    """What a finished store holds; `earlier` of its images are from before a resume."""

    images: int
    earlier: int
    broken: int
    missing: int


def fill_store(
    output: Path,
    layout: StoreLayout,
    parts: Sequence[str],
    produce: Produce,
    *,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    unit: str,
    wanted: Collection[str] = (),
    resume: bool = False,
    skip_broken: bool = False,
) -> Filled:
    """Write the store `output` from all images of `parts`, names that stay the same on a resume.

    What is finished survives a kill in `OUTPUT.partial`; `resume` continues there if `settings`
    and `layout` are the same, and tries parts with broken images again. Images that are broken,
    and `wanted` ones (ids as text) that did not come, are listed in `OUTPUT.broken.tsv`. Raises
    `DataError` if there are any, unless `skip_broken`; nothing is published then.
    """
    journal = Journal(output, {**settings, **asdict(layout)}, resume)
    with RegionStoreWriter(
        output, **asdict(layout), provenance=provenance, journal=journal
    ) as writer:
        earlier = len(writer.image_ids)
        broken = _fill(writer, parts, produce, unit)
        named = {item.image for item in broken}
        have = {str(image_id) for image_id in writer.image_ids}
        missing = sorted(set(wanted) - have - named)
        problems = [*broken, *(Broken(image, "is not in the source") for image in missing)]
        listing = _list_problems(output, problems)
        if problems and not skip_broken:
            raise DataError(_refusal(output, broken, missing, listing))
        if problems:
            writer.provenance["skipped"] = {item.image: item.reason for item in problems}
    return Filled(len(writer.image_ids), earlier, len(broken), len(missing))


def _fill(
    writer: RegionStoreWriter, parts: Sequence[str], produce: Produce, unit: str
) -> list[Broken]:
    """Add what is not there yet; all broken images, of earlier runs too."""
    broken: dict[str, list[Broken]] = {}
    added: dict[str, set[Id]] = {}
    for (part, reasons), entries in writer.done:
        broken[part] = [Broken(*item) for item in reasons]
        added.setdefault(part, set()).update(entry.image_id for entry in entries)
    todo = [part for part in parts if part not in added or broken[part]]
    bar = progress(
        total=len(parts), initial=len(parts) - len(todo), unit=f" {unit}", smoothing=0.05
    )
    with bar:
        for part, images in produce(todo):
            broken[part] = list(_add(writer, images, added.get(part, set())))
            writer.commit([part, [[item.image, item.reason] for item in broken[part]]])
            bar.update()
            bar.set_postfix(images=len(writer.image_ids), refresh=False)
    return [item for items in broken.values() for item in items]


def _add(writer: RegionStoreWriter, images: Sequence[Found], earlier: set[Id]) -> Iterable[Broken]:
    """Add those that were not added `earlier`; yields the broken ones."""
    for image in images:
        if isinstance(image, Broken):
            yield image
        elif image.image_id in earlier:
            earlier.remove(image.image_id)
        else:
            try:
                writer.add(
                    image.image_id, image.features, image.boxes, image.size, image.grid_shape
                )
            except RefusedImageError as error:
                yield Broken(str(image.image_id), error.reason)


def _list_problems(output: Path, problems: Sequence[Broken]) -> Path:
    """Write them beside the store, one per line; no file where there are none."""
    listing = output.with_name(f"{output.name}.broken.tsv")
    lines = [f"{item.image}\t{item.reason}\n" for item in problems]
    if lines:
        write_text(listing, "".join(lines))
    else:
        listing.unlink(missing_ok=True)
    return listing


def _refusal(output: Path, broken: list[Broken], missing: list[str], listing: Path) -> str:
    parts = []
    if broken:
        shown = "; ".join(f"{item.image}: {item.reason}" for item in broken[:_SHOWN])
        parts.append(f"{len(broken):,} {_images(broken)} cannot be stored ({shown}{_more(broken)})")
    if missing:
        parts.append(
            f"{len(missing):,} wanted {_images(missing)} not in the source "
            f"({', '.join(missing[:_SHOWN])}{_more(missing)})"
        )
    return (
        f"{output}: not written: {' and '.join(parts)}; all are listed in {listing}; repair them "
        "and use --resume, or leave them out with --resume --skip-broken"
    )


def _images(items: Sequence[object]) -> str:
    return "image" if len(items) == 1 else "images"


def _more(items: Sequence[object]) -> str:
    return ", ..." if len(items) > _SHOWN else ""
