"""Files of word vectors, of which only the wanted words are read.

- Text (.txt, .vec, the same as .gz, or alone in a .zip): one word a line, then its D numbers, with
  single spaces between them, as in GloVe. word2vec and fastText begin with a line `count D`.
- .npy: a matrix (count, D), with the words, one a line, in the .txt file of the same name.

A word is looked up as it is written; its first vector counts.
"""

from __future__ import annotations

import gzip
import itertools
import zipfile
import zlib
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mcan.errors import DataError
from mcan.files import saving, write_atomically, write_text
from mcan.progress import progress
from mcan.text.word_vectors import WordVectors

_SUFFIXES = (".txt", ".vec", ".gz", ".zip", ".npy")


def read_word_vectors(path: Path, words: Collection[str]) -> WordVectors:
    """The vectors of those `words` that the file `path` has, in the order of the file.

    Rows of other words are checked for their length only. Raises `DataError` for a file that is
    missing, empty, damaged, ragged or of another kind, and for a value that is no finite number.
    """
    if path.suffix not in _SUFFIXES:
        raise DataError(f"{path}: expected word vectors in a {', '.join(_SUFFIXES)} file")
    try:
        if path.suffix == ".npy":
            vectors = _read_array(path, words)
        else:
            with _open_text(path) as lines:
                vectors = _read_lines(path, lines, words)
    except (EOFError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or incomplete ({error})") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot read word vectors ({error.strerror or error}); for none, set "
            "model.question.word_vectors=null"
        ) from None
    finite = np.isfinite(vectors.matrix).all(axis=1)
    if not finite.all():
        word = list(vectors.index)[int(np.argmin(finite))]
        raise DataError(f"{path}: the vector of '{word}' has a value that is no finite number")
    return vectors


def check_writable(path: Path) -> None:
    """Raise `DataError` where `path` does not end in .npy, or it or its word list exists."""
    if path.suffix != ".npy":
        raise DataError(f"{path}: expected the suffix .npy for the word vectors to write")
    for target in (path, path.with_suffix(".txt")):
        if target.exists():
            raise DataError(f"{target}: exists already and is not overwritten")


def write_word_vectors(path: Path, vectors: WordVectors) -> None:
    """Write the .npy file `path` and its word list; raises as `check_writable` does."""
    check_writable(path)
    words = "".join(f"{word}\n" for word in vectors.index)
    with saving(path):
        write_text(path.with_suffix(".txt"), words)
        write_atomically(path, lambda file: np.save(file, vectors.matrix))


def _read_array(path: Path, words: Collection[str]) -> WordVectors:
    try:
        matrix = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise DataError(f"{path}: not an array in numpy's .npy format ({error})") from None
    if matrix.ndim != 2 or not matrix.size or not np.issubdtype(matrix.dtype, np.floating):
        found = f"{matrix.dtype} of shape {matrix.shape}"
        raise DataError(f"{path}: expected a matrix of floating-point numbers, found {found}")
    list_path = path.with_suffix(".txt")
    try:
        listed = list_path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: its word list {list_path.name} is missing beside it") from None
    except UnicodeDecodeError:
        raise DataError(f"{list_path}: not a word list (not UTF-8 text)") from None
    # Not splitlines(): a word of a foreign list may hold what Unicode takes for the end of a line.
    names = listed.removesuffix("\n").split("\n")
    if len(names) != len(matrix):
        raise DataError(f"{path}: {len(matrix)} rows, but {len(names)} words in {list_path.name}")
    wanted = set(words)
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        if name in wanted:
            rows.setdefault(name, row)
    with np.errstate(over="ignore"):
        kept = np.asarray(matrix[list(rows.values())], np.float32)
    return WordVectors({name: number for number, name in enumerate(rows)}, kept)


def _open_text(path: Path) -> AbstractContextManager[Iterable[bytes]]:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix != ".zip":
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            names = ", ".join(member.filename for member in members) or "none"
            raise DataError(
                f"{path}: expected one file in it, found {names}; extract the one meant"
            )
        try:
            return archive.open(members[0])
        except (RuntimeError, NotImplementedError) as error:
            raise DataError(f"{path}: cannot read the archive ({error})") from None


def _read_lines(path: Path, lines: Iterable[bytes], words: Collection[str]) -> WordVectors:
    lines = iter(lines)
    first = next(lines, b"")
    header = _header(first)
    count, dimension = header or (None, _count_trailing_numbers(first))
    if not dimension:
        found = repr(first[:40].decode(errors="replace")) if first else "an empty file"
        raise DataError(f"{path}: expected a word and its numbers in line 1, found {found}")
    rest = enumerate(lines, 2) if header else enumerate(itertools.chain([first], lines), 1)
    wanted = {word.encode("utf-8", "surrogatepass"): word for word in words}
    # The words of a few lines contain spaces: the first part alone tells whether to look closer.
    beginnings = {word.split(b" ", 1)[0] for word in wanted}
    vectors: dict[str, NDArray[np.float32]] = {}
    rows = 0
    bar = progress(rest, path.name, count, delay=2, unit=" words", unit_scale=True, disable=None)
    for number, raw in bar:
        line = raw.rstrip(b" \r\n")
        if not line:
            continue
        rows += 1
        surplus = line.count(b" ") - dimension
        if surplus < 0 or (surplus > 0 and not _is_word(line.rsplit(b" ", dimension)[0])):
            raise DataError(
                f"{path}, line {number}: expected a word and {dimension} numbers with single "
                f"spaces between them, found {dimension + surplus} parts after the first"
            )
        if line.split(b" ", 1)[0] in beginnings:
            name, *fields = line.rsplit(b" ", dimension)
            word = wanted.get(name)
            if word is not None and word not in vectors:
                vectors[word] = _parse(path, number, fields)
    if count is not None and rows != count:
        raise DataError(f"{path}: {rows} vectors, but its first line announces {count}")
    matrix = np.stack(list(vectors.values())) if vectors else np.zeros((0, dimension), np.float32)
    return WordVectors({word: row for row, word in enumerate(vectors)}, matrix)


def _header(line: bytes) -> tuple[int, int] | None:
    """Count and dimension, if `line` announces them."""
    fields = line.split()
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        return int(fields[0]), int(fields[1])
    return None


def _count_trailing_numbers(line: bytes) -> int:
    fields = line.rstrip(b" \r\n").split(b" ")[1:]
    return sum(1 for _ in itertools.takewhile(_is_number, reversed(fields)))


def _is_word(name: bytes) -> bool:
    """Whether `name`, which has spaces, can be a word: GloVe has some, none with a number in it."""
    return not any(not part or _is_number(part) for part in name.split(b" ")[1:])


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _parse(path: Path, number: int, fields: list[bytes]) -> NDArray[np.float32]:
    try:
        values = [float(field) for field in fields]
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not a number ({error})") from None
    with np.errstate(over="ignore"):
        return np.array(values, np.float32)
