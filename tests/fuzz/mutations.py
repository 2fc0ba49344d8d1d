"""Hypothesis strategies that damage a file: its bytes, its structure, or the members of an archive.

A structure is a tree of dictionaries, lists, numpy arrays and plain values, whatever the format.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePath
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import safetensors.torch
import torch
import yaml
from hypothesis import strategies as st

DEEP: Any = [[[]]]
for _ in range(200):
    DEEP = [DEEP]
ODD_TEXTS = ["", " ", "\0", "a\nb", "\ud800", "../../x", "/etc/passwd", "~/x", "x" * 5000, "nan"]
ODD_TEXTS += ["1e999", "-1", "null", "{", "\x1b[31m", "é犬", "$(true)", "a=b", "1" * 5000]
ODD_NUMBERS = [0, -1, 1, 3, 0.5, 2**31, 2**63, -(2**63), 10**30, 1e308, 10**9]
ODD_NUMBERS += [float("nan"), float("inf"), -float("inf")]
ODD: list[Any] = [None, True, False, [], {}, [None], {"": {}}, {"name": []}, DEEP]
ODD += [*ODD_TEXTS, *ODD_NUMBERS]
CHUNKS = [b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b'"', b",", b"\t", b"]", b"}", b"1e999", b"-"]
CHUNKS += [
    b"9" * 5000,
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b"null",
    b"\xef\xbb\xbf",
    b"&a *a",
    b": ",
]
BYTE_WAYS = ["flip", "set", "cut", "insert", "delete", "zero", "swap", "repeat", "empty"]
ABSENT, FOLDER = "absent", "folder"
"""What may take the place of a file, besides bytes."""


@st.composite
def damaged(draw: Any, name: str, content: bytes) -> bytes | str:
    """What takes the place of the `content` of the file `name`; never the content itself."""
    ways: list[Callable[[], Any]] = [lambda: _damage_bytes(draw, content)] * 4
    suffix = ".idx" if name.endswith("idx.pkl") else PurePath(name).suffix
    if suffix in CODECS:
        ways += [lambda: _damage_tree(draw, suffix, content)] * 5
    if content.startswith(b"PK\x03\x04"):
        ways += [lambda: _damage_member(draw, content)] * 4
    if suffix == ".gz":
        inner = damaged(name.removesuffix(suffix), gzip.decompress(content))
        inner = inner.filter(lambda new: isinstance(new, bytes))
        ways += [
            lambda: gzip.compress(draw(inner.filter(lambda new: isinstance(new, bytes))), mtime=0)
        ] * 6
    if draw(st.integers(0, 40)) == 40:
        return draw(st.sampled_from([ABSENT, FOLDER]))
    new = draw(st.sampled_from(ways))()
    return new if new != content else content[:-1]


def _damage_bytes(draw: Any, content: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        size = len(content)
        at = draw(st.integers(0, max(size - 1, 0)))
        end = min(size, at + draw(st.sampled_from([1, 2, 8, 100, 4096])))
        way = draw(st.sampled_from(BYTE_WAYS))
        block = content[at:end]
        if way == "flip" and size:
            block = bytes([block[0] ^ 1 << draw(st.integers(0, 7))]) + block[1:]
        elif way == "set" and size:
            block = bytes([draw(st.integers(0, 255))]) + block[1:]
        elif way == "insert":
            block = draw(st.sampled_from(CHUNKS) | st.binary(max_size=9)) + block
        elif way == "zero":
            block = bytes(len(block))
        elif way == "repeat":
            block *= draw(st.integers(2, 9))
        other = content[end : 2 * end - at] if way == "swap" else b""
        if way in ("cut", "empty"):
            content = content[: at if way == "cut" else 0]
        else:
            kept = b"" if way == "delete" else other + block
            content = content[:at] + kept + content[end + len(other) :]
    return content


def _damage_tree(draw: Any, suffix: str, content: bytes) -> bytes:
    decode, encode = CODECS[suffix]
    with suppress(Exception):  # a format cannot hold every value
        tree = decode(content)
        for _ in range(draw(st.integers(1, 2))):
            tree = _changed(draw, tree)
        return encode(tree)
    return _damage_bytes(draw, content)


def _damage_member(draw: Any, content: bytes) -> bytes:
    """A member is damaged and the checksums of the archive fit again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = draw(st.sampled_from(sorted(members)))
    new = draw(damaged(name, members[name]))
    where = draw(st.sampled_from([name] * 9 + [f"../{name}", "x"]))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", draw(st.sampled_from([0, 0, 8]))) as archive:
        for key, value in members.items():
            if key != name:
                archive.writestr(zipfile.ZipInfo(key), value)
            elif isinstance(new, bytes):
                archive.writestr(zipfile.ZipInfo(where), new)
    return packed.getvalue()


def _changed(draw: Any, value: Any) -> Any:
    """One change somewhere in a tree."""
    if isinstance(value, np.ndarray):
        return _changed_array(draw, value)
    if not isinstance(value, dict | list | tuple) or not value or draw(st.integers(0, 9)) == 9:
        near: list[Any] = [None]
        if isinstance(value, str):
            near = [value.encode(), f"{value}\0", value.upper(), value[:-1], [value], 7]
        elif isinstance(value, int | float):
            near = [-value, value + 1, float(value), str(value), [value], value * 10**6]
        return draw(st.sampled_from(ODD) | st.sampled_from(near))
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    at = draw(st.integers(0, len(items) - 1))
    key, inner = items[at]
    way = draw(st.sampled_from(["inside"] * 7 + ["delete", "rename", "repeat", "add"]))
    if way == "inside":
        items[at] = (key, _changed(draw, inner))
    elif way == "delete":
        del items[at]
    elif way == "rename":
        items[at] = (draw(st.sampled_from(["", "x", f"{key}\n", str(key).upper()])), inner)
    else:
        new = (f"{key}2", inner) if way == "repeat" else ("name", draw(st.sampled_from(ODD)))
        items[at:at] = [new] * draw(st.sampled_from([1, 2, 30]))
    return dict(items) if isinstance(value, dict) else [item for _, item in items]


def _changed_array(draw: Any, array: np.ndarray) -> Any:
    flat, way = array.reshape(-1), draw(st.sampled_from(["value", "value", "dtype", "shape"]))
    if way == "value" and array.size and array.dtype.kind in "fiu":
        new, at = flat.copy(), draw(st.integers(0, array.size - 1))
        with suppress(OverflowError, ValueError), np.errstate(all="ignore"):
            new[at] = draw(st.sampled_from(ODD_NUMBERS))
        return new.reshape(array.shape)
    if way == "dtype":
        kind = draw(st.sampled_from(["f2", "f4", "f8", "i4", "i8", "u1", "?", "c8", "S3"]))
        with np.errstate(all="ignore"):
            return array.astype(kind)
    shapes = [flat, flat[:0], flat[:1], array[..., None], np.stack([array, array]), array.T]
    return draw(st.sampled_from([*shapes, np.float32(2), array.tobytes()]))


# ------------------------------------------------------- formats: suffix -> (to a tree, to bytes)


def _saved(write: Callable[[Any, io.BytesIO], Any]) -> Callable[[Any], bytes]:
    def encode(tree: Any) -> bytes:
        file = io.BytesIO()
        write(tree, file)
        return file.getvalue()

    return encode


def _to_json(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False, default=repr).encode("utf-8", "surrogatepass")


def _each(tree: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """The tree with every value of a kind converted."""
    if isinstance(tree, dict):
        return {key: _each(value, kind, convert) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_each(value, kind, convert) for value in tree]
    return convert(tree) if isinstance(tree, kind) else tree


def _tensors(tree: Any) -> Any:
    return _each(tree, np.ndarray, lambda array: torch.from_numpy(array.copy()))


def _read_group(group: Any) -> Any:
    attributes = {f"@{name}": np.asarray(value) for name, value in group.attrs.items()}
    items = group.items()
    return attributes | {k: v[()] if hasattr(v, "dtype") else _read_group(v) for k, v in items}


def _write_group(tree: Any, group: Any) -> None:
    for name, value in tree.items():
        if name.startswith("@"):
            group.attrs[name[1:]] = value
        elif isinstance(value, dict):
            _write_group(value, group.create_group(name))
        else:
            group[name] = value


def _read_safetensors(content: bytes) -> Any:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    stated = {k: json.loads(v) for k, v in header.get("__metadata__", {}).items() if k == "mcan"}
    tensors = dict(sorted(safetensors.torch.load(content).items()))  # they come in any order
    return _each(tensors, torch.Tensor, torch.Tensor.numpy) | {"@": stated}


def _write_safetensors(tree: Any) -> bytes:
    header = {key: json.dumps(value) for key, value in tree.pop("@", {}).items()}
    return safetensors.torch.save(_tensors(tree), header)


def _table(delimiter: str) -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    return (
        lambda content: [line.split(delimiter) for line in content.decode().splitlines()],
        lambda rows: "".join(
            delimiter.join(map(str, row if isinstance(row, list) else [row])) + "\n" for row in rows
        ).encode("utf-8", "surrogatepass"),
    )


CODECS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    ".json": (json.loads, _to_json),
    ".jsonl": (
        lambda content: list(map(json.loads, content.splitlines())),
        lambda tree: b"\n".join(map(_to_json, tree)),
    ),
    ".yaml": (yaml.safe_load, lambda tree: yaml.safe_dump(tree).encode("utf-8", "surrogatepass")),
    ".csv": _table(";"),
    ".tsv": _table("\t"),
    ".txt": _table(" "),
    ".npy": (
        lambda content: np.load(io.BytesIO(content)),
        _saved(lambda t, file: np.save(file, t)),
    ),
    ".npz": (
        lambda content: dict(np.load(io.BytesIO(content))),
        _saved(lambda tree, file: np.savez(file, **tree)),
    ),
    ".idx": (pickle.loads, pickle.dumps),
    ".h5": (
        lambda content: _read_group(h5py.File(io.BytesIO(content))),
        _saved(lambda tree, file: _write_group(tree, h5py.File(file, "w"))),
    ),
    ".safetensors": (_read_safetensors, _write_safetensors),
    ".parquet": (
        lambda content: pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist(),
        _saved(lambda tree, file: pyarrow.parquet.write_table(pa.Table.from_pylist(tree), file)),
    ),
}
for _suffix in (".pt", ".pth", ".pkl"):
    CODECS[_suffix] = (
        lambda c: _each(torch.load(io.BytesIO(c)), torch.Tensor, torch.Tensor.numpy),
        _saved(lambda tree, file: torch.save(_tensors(tree), file)),
    )
