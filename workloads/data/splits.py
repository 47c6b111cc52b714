"""Which part of a data set, training or test, a file or folder belongs to, by its name."""

import re
from collections.abc import Iterable, Mapping, Sequence

from workloads.errors import DataError

TRAIN = "train"
WORDS = {
    TRAIN: ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
FOLDER = re.compile(r"([a-z]+)(?:[-_. ]?(?:\d+|set|images|imgs|data|split))?", re.IGNORECASE)
COLUMNS = ("split", "data_split", "subset", "partition", "set")
"""Columns that may say what split a row is of."""

MEANING = {word: split for split, words in WORDS.items() for word in words}
"""The split that each word stands for."""


def split_of_folder(name: str) -> str | None:
    """The split a folder holds by its name, as train, Validation, test2017 or train_images; None: no split's."""
    found = FOLDER.fullmatch(name)
    return MEANING.get(found[1].lower()) if found else None


def split_of_file(parts: Sequence[str]) -> str | None:
    """The split of a file by its path, as train-00000-of-00004.parquet, test/0.parquet or split=val/0.parquet."""
    *folders, name = parts
    for folder in folders:
        split = split_of_folder(folder.rpartition("=")[2])
        if split is not None:
            return split
    for word in re.split(r"[-_.\s]+", name):
        split = split_of_folder(word)
        if split is not None:
            return split
    return None


def chosen(wanted: str | None, found: Iterable[str], where: str) -> str:
    """The one of the splits found that is to be read: the wanted one, or the training split.

    DataError, with the choice, if it is not there.
    """
    there = sorted(set(found))
    split = MEANING.get(wanted.lower(), wanted) if wanted is not None else TRAIN
    if split not in there:
        asked = f"no split {wanted}" if wanted is not None else "no training split"
        raise DataError(f"{where} has {asked}; choose with --split (data.split) what it has: {', '.join(there)}")
    return split


def split_of_value(value: str) -> str:
    """The split that a cell of a table speaks of: a word for one, or a name of its own."""
    return MEANING.get(value.lower(), value)


def values_of_split(counts: Mapping[str | None, int], wanted: str | None, where: str) -> set[str] | None:
    """Which values of a column mean the wanted split; None: the column speaks of one split at most, or of none.

    counts: number of rows by value. DataError if the split is not there, or if rows without one leave a choice.
    """
    of_value = {value: split_of_value(value) for value in counts if value}
    there = set(of_value.values())
    if wanted is None and (len(there) < 2 or not there & set(WORDS)):
        return None
    if wanted is None and len(of_value) < len(counts):
        raise DataError(f"{where} leaves the split of some rows open; choose one with --split (data.split)")
    split = chosen(wanted, there, where)
    return {value for value, own in of_value.items() if own == split}


def files_of_split(paths: Sequence[Sequence[str]], wanted: str | None, where: str) -> list[int]:
    """Indices of the files that belong to the wanted split; of all, where their names speak of one split at most.

    DataError if it is not there, or if it is not clear what files that name no split belong to.
    """
    splits = [split_of_file(path) for path in paths]
    there = {split for split in splits if split is not None}
    if wanted is None and len(there) <= 1:
        return list(range(len(paths)))
    if not there:
        raise DataError(f"{where} has no split {wanted}: no name of a file speaks of splits; leave --split away")
    if wanted is None and None in splits:
        example = "/".join(paths[splits.index(None)])
        raise DataError(
            f"{where} has the splits {', '.join(sorted(there))}, and files of no split ({example}); choose one with "
            "--split (data.split), or give the path of one file or folder"
        )
    split = chosen(wanted, there, where)
    return [index for index, own in enumerate(splits) if own == split]
