"""Makes the files of every foreign format out of the same made-up images."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    """`rows` None: 1 to 12 rows."""
    random = np.random.default_rng(seed)
    images = []
    for number in range(count):
        n = rows or int(random.integers(1, 13))
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
    return "\t".join(
        [
            str(image.number),
            str(image.width),
            str(image.height),
            str(len(image.boxes)),
            encode(image.boxes),
            encode(image.features),
        ]
    )


def write_bottom_up(path: Path, images: list[Foreign]) -> Path:
    path.write_text("".join(f"{bottom_up_line(image)}\n" for image in images))
    return path


def write_lxmert(path: Path, images: list[Foreign], names: list[str] | None = None) -> Path:
    lines = []
    for image, name in zip(images, names or [i.coco_name for i in images], strict=True):
        n = len(image.boxes)
        integers, floats = encode(np.arange(n)), encode(np.ones(n, np.float32))
        lines.append(
            [
                *(name, str(image.height), str(image.width)),
                *(integers, floats, integers, floats),
                *(str(n), encode(image.boxes), encode(image.features)),
            ]
        )
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


def spatial(image: Foreign) -> np.ndarray:
    scaled = image.scaled_boxes
    return np.concatenate([scaled, scaled[:, 2:] - scaled[:, :2]], 1).astype(np.float32)


def write_index(path: Path, images: list[Foreign], order: list[int], as_json: bool = False) -> None:
    table = {image.number: row for image, row in zip(images, order, strict=True)}
    if as_json:
        path.with_suffix(".json").write_text(json.dumps(table))
    else:
        # Protocol 2 is what Python 2 wrote.
        path.with_suffix(".pkl").write_bytes(pickle.dumps(table, protocol=2))


def write_fixed(path: Path, images: list[Foreign], as_json: bool = False) -> Path:
    """All images have the same number of boxes; rows are in another order than ids."""
    order = list(np.random.default_rng(1).permutation(len(images)))
    placed = [images[order.index(row)] for row in range(len(images))]
    with h5py.File(path, "w") as file:
        file["image_features"] = np.stack([i.features for i in placed])
        file["image_bb"] = np.stack([i.boxes for i in placed])
        file["spatial_features"] = np.stack([spatial(i) for i in placed])
    index = path.with_name(f"{path.stem}_imgid2idx")
    write_index(index, images, [int(row) for row in order], as_json)
    return path


def write_adaptive(path: Path, images: list[Foreign], with_spatial: bool = True) -> Path:
    ends = np.cumsum([len(i.features) for i in images])
    with h5py.File(path, "w") as file:
        file["image_features"] = np.concatenate([i.features for i in images])
        file["image_bb"] = np.concatenate([i.boxes for i in images])
        file["pos_boxes"] = np.stack([ends - [len(i.features) for i in images], ends], 1)
        if with_spatial:
            file["spatial_features"] = np.concatenate([spatial(i) for i in images])
    write_index(path.with_name(f"{path.stem}_imgid2idx"), images, list(range(len(images))))
    return path


def write_numbered_objects(folder: Path, images: list[Foreign], most: int = 12) -> Path:
    """Two files; unused rows are zero; ids are text, one of which is no number."""
    info = {}
    for number, part in enumerate((images[::2], images[1::2])):
        features = np.zeros((len(part), most, images[0].features.shape[1]), np.float32)
        boxes = np.zeros((len(part), most, 4), np.float32)
        for row, image in enumerate(part):
            count = len(image.features)
            features[row, :count], boxes[row, :count] = image.features, image.boxes
            info[text_id(image)] = {
                "width": image.width,
                "height": image.height,
                "objectsNum": count,
                "idx": row,
                "file": number,
            }
        with h5py.File(folder / f"gqa_objects_{number}.h5", "w") as file:
            file["features"], file["bboxes"] = features, boxes
    (folder / "gqa_objects_info.json").write_text(json.dumps(info))
    return folder


def text_id(image: Foreign) -> str:
    return f"n{image.number}" if image.number == 3 else str(image.number)


def write_numbered_grid(folder: Path, grids: dict[str, np.ndarray]) -> Path:
    info = {}
    names = list(grids)
    for number, part in enumerate((names[:2], names[2:])):
        with h5py.File(folder / f"gqa_spatial_{number}.h5", "w") as file:
            file["features"] = np.stack([grids[name] for name in part])
        info.update({name: {"idx": row, "file": number} for row, name in enumerate(part)})
    (folder / "gqa_spatial_info.json").write_text(json.dumps(info))
    return folder


def write_grids(folder: Path, grids: dict[int, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, grid in grids.items():
        torch.save(torch.from_numpy(grid)[None], folder / f"COCO_train2014_{number:012d}.pth")
    return folder


Writer = Callable[[Path, list[Foreign]], Path]
