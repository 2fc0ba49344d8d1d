"""Keep only the word vectors that a prepared dataset needs: later starts take a second."""

from __future__ import annotations

import argparse
from pathlib import Path

from mcan.errors import command
from mcan.files import refuse_existing, save_text
from mcan.text.vocabulary import Vocabulary
from mcan.text.word_vectors import coverage, read_word_vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "vectors", type=Path, help="GloVe, word2vec or fastText: .txt, .vec, .gz or .zip"
    )
    parser.add_argument(
        "--vocabulary", type=Path, required=True, help="vocabulary.json of a prepared dataset"
    )
    parser.add_argument("--output", type=Path, required=True, help="text file, as those of GloVe")
    options = parser.parse_args()
    refuse_existing(options.output, "--output")
    vocabulary = Vocabulary.read(options.vocabulary)
    vectors = read_word_vectors(options.vectors, vocabulary.words)
    lines = (" ".join([word, *map(str, vector)]) for word, vector in vectors.items())
    save_text(options.output, "\n".join(lines) + "\n")
    print(f"{options.output}: {coverage(vocabulary, vectors)}")


if __name__ == "__main__":
    command(main)
