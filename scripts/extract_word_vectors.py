"""Keep only the word vectors that a prepared dataset needs: later starts take milliseconds."""

from __future__ import annotations

import argparse
from pathlib import Path

from mcan.errors import DataError, command
from mcan.text.vocabulary import Vocabulary
from mcan.text.word_vector_files import check_writable, read_word_vectors, write_word_vectors
from mcan.text.word_vectors import coverage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "vectors", type=Path, help="GloVe, word2vec or fastText: .txt, .vec, .gz, .zip or .npy"
    )
    parser.add_argument(
        "--vocabulary", type=Path, required=True, help="vocabulary.json of a prepared dataset"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help=".npy file; its words go into a .txt beside it"
    )
    options = parser.parse_args()
    check_writable(options.output)
    vocabulary = Vocabulary.read(options.vocabulary)
    vectors = read_word_vectors(options.vectors, vocabulary.words)
    if not vectors.index:
        raise DataError(f"{options.vectors}: no vector for any word of {options.vocabulary}")
    write_word_vectors(options.output, vectors)
    print(
        f"{options.output}: {vectors.dimension} numbers per word; {coverage(vocabulary, vectors)}"
    )


if __name__ == "__main__":
    command(main)
