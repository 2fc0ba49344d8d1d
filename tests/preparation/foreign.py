"""Makes the files of every foreign format out of the same made-up images."""

from __future__ import annotations

import base64
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch


@dataclass
class Foreign:
    """An image as other people's tools know it; `boxes` are in pixels."""

    number: int
    features: np.ndarray
    boxes: np.ndarray
    width: int
    height: int

    @property
    def coco_name(self) -> str:
        return f"COCO_train2014_{self.number:012d}"

    @property
    def scaled_boxes(self) -> np.ndarray:
        return self.boxes / [self.width, self.height, self.width, self.height]


def make_images(count: int, rows: int | None = None, dim: int = 8, seed: int = 0) -> list[Foreign]:
    """`rows` None: 1 to 7 rows, fewer than `dim`, so that the shape says which is which."""
    random = np.random.default_rng(seed)
    images = []
    for number in range(count):
        n = rows or int(random.integers(1, 8))
        width, height = (int(side) for side in random.integers(100, 700, 2))
        corners = np.sort(random.random((n, 2, 2)), axis=1).reshape(n, 4)
        boxes = (corners * [width, height, width, height]).astype(np.float32)
        features = np.abs(random.standard_normal((n, dim))).astype(np.float32)
        images.append(Foreign(number * 7 + 3, features, boxes, width, height))
    return images


def write_npz(folder: Path, images: list[Foreign]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        write_one_npz(folder / f"{image.coco_name}.jpg.npz", image)
    return folder


def write_one_npz(path: Path, image: Foreign, **changes: object) -> None:
    arrays = {
        "x": image.features.T,
        "bbox": image.boxes,
        "image_w": image.width,
        "image_h": image.height,
        "num_bbox": len(image.boxes),
    }
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})


def encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def bottom_up_line(image: Foreign) -> str:
    numbers = image.number, image.width, image.height, len(image.boxes)
    return "\t".join([*map(str, numbers), encode(image.boxes), encode(image.features)])


def write_bottom_up(path: Path, images: list[Foreign]) -> Path:
    path.write_text("".join(f"{bottom_up_line(image)}\n" for image in images))
    return path


def write_lxmert(path: Path, images: list[Foreign], names: list[str] | None = None) -> Path:
    lines = []
    for image, name in zip(images, names or [i.coco_name for i in images], strict=True):
        n = len(image.boxes)
        objects = [encode(np.arange(n)), encode(np.ones(n, np.float32))] * 2
        arrays = [encode(image.boxes), encode(image.features)]
        lines.append([name, str(image.height), str(image.width), *objects, str(n), *arrays])
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


def spatial(image: Foreign) -> np.ndarray:
    scaled = image.scaled_boxes
    return np.concatenate([scaled, scaled[:, 2:] - scaled[:, :2]], 1).astype(np.float32)


def write_hdf5(path: Path, images: list[Foreign], join: Any) -> Path:
    """With an index as Python 2 pickled it, in protocol 2."""
    with h5py.File(path, "w") as file:
        file["image_features"] = join([i.features for i in images])
        file["image_bb"] = join([i.boxes for i in images])
        file["spatial_features"] = join([spatial(i) for i in images])
    table = {image.number: row for row, image in enumerate(images)}
    index = path.with_name(f"{path.stem}_imgid2idx.pkl")
    index.write_bytes(pickle.dumps(table, protocol=2))
    return path


def write_fixed(path: Path, images: list[Foreign]) -> Path:
    """All images have the same number of boxes; rows are in another order than ids."""
    return write_hdf5(path, images[::-1], np.stack)


def write_adaptive(path: Path, images: list[Foreign]) -> Path:
    write_hdf5(path, images, np.concatenate)
    ends = np.cumsum([len(i.features) for i in images])
    with h5py.File(path, "r+") as file:
        file["pos_boxes"] = np.stack([ends - [len(i.features) for i in images], ends], 1)
    return path


def write_numbered(folder: Path, name: str, images: dict[str, tuple[dict[str, Any], ...]]) -> Path:
    """Two files with the arrays of each image, and what the info file says of it."""
    info: dict[str, Any] = {}
    for number in (0, 1):
        part = list(images)[number::2]
        info |= {key: {**images[key][1], "idx": n, "file": number} for n, key in enumerate(part)}
        with h5py.File(folder / f"{name}_{number}.h5", "w") as file:
            for array in images[part[0]][0]:
                file[array] = np.stack([images[key][0][array] for key in part])
    (folder / f"{name}_info.json").write_text(json.dumps(info))
    return folder


def write_numbered_objects(folder: Path, images: list[Foreign], most: int = 12) -> Path:
    """Unused rows are zero; ids are text, one of which is not a number."""
    made = {}
    for image in images:
        count = len(image.features)
        unused = ((0, most - count), (0, 0))
        arrays = {"features": np.pad(image.features, unused), "bboxes": np.pad(image.boxes, unused)}
        said = {"width": image.width, "height": image.height, "objectsNum": count}
        made[text_id(image)] = (arrays, said)
    return write_numbered(folder, "gqa_objects", made)


def text_id(image: Foreign) -> str:
    return f"n{image.number}" if image.number == 3 else str(image.number)


def write_numbered_grid(folder: Path, grids: dict[str, np.ndarray]) -> Path:
    made = {name: ({"features": grid}, {}) for name, grid in grids.items()}
    return write_numbered(folder, "gqa_spatial", made)


def write_grids(folder: Path, grids: dict[int, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, grid in grids.items():
        torch.save(torch.from_numpy(grid)[None], folder / f"COCO_train2014_{number:012d}.pth")
    return folder


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
