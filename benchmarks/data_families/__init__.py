"""Families of what people bring as data, drawn at random, each with what must come out: pixels and class, or a refusal.

hostile_data.py judges them. Pixels and classes are those that the files were written from, worked out with NumPy, never
read back with rememe.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from data_families.cases import Case, Draw
from data_families.odd import damaged, odd_entries, odd_pictures
from data_families.tables import hive_folders, odd_labels, parts, row_splits, tables
from data_families.trees import described_trees, label_tables, single_splits, trees, web_datasets

FAMILIES: dict[str, Callable[[Draw, Path], Iterator[Case]]] = {
    "folders of classes and splits, packed or not": trees,
    "a single split": single_splits,
    "dataset.json": described_trees,
    "WebDataset": web_datasets,
    "tables": tables,
    "splits by row": row_splits,
    "partitioned folders": hive_folders,
    "parts that are missing or doubled": parts,
    "tables of labels beside pictures": label_tables,
    "labels that are no class": odd_labels,
    "depth, turn, transparency, size": odd_pictures,
    "what is no picture": odd_entries,
    "damaged files": damaged,
}
