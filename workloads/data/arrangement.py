"""Which pictures of a tree are read, and of what class each is, by the folders they lie in."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from workloads.data.found import printable
from workloads.data.labels import ONE_CLASS
from workloads.data.splits import TRAIN, chosen, split_of_folder
from workloads.data.trees import Parts
from workloads.errors import DataError


class Placed(NamedTuple):
    """A picture that is read."""

    number: int
    """Among all pictures of the tree."""

    label: int


class Arrangement(NamedTuple):
    """What the folders of a tree say."""

    class_names: tuple[str, ...]
    pictures: list[Placed]
    remarks: list[str]
    outside: list[int]
    """Pictures that lie in no class folder and are left out."""

    num_folders: int = 0
    """That the pictures lie in, those of splits not counted."""


class _SplitPart(NamedTuple):
    """Pictures by number with their paths, the folders of splits taken out."""

    pictures: list[tuple[int, Parts]]
    folders: set[Parts]
    remarks: list[str]
    others_have_classes: bool = False


def arrange(
    pictures: Sequence[Parts], folders: Collection[Parts], *, where: str, split: str | None, one_class: bool
) -> Arrangement:
    """A class per folder of the wanted split, in alphabetical order; or one class of all.

    DataError, with the choice, where the folders can be understood in more than one way.
    """
    part = _of_split(list(enumerate(pictures)), set(folders), where, split)
    inside = [(index, path) for index, path in part.pictures if len(path) > 1]
    loose = [index for index, path in part.pictures if len(path) == 1]
    if one_class or not inside:
        if part.others_have_classes and not one_class:
            raise DataError(
                f"{where}: the pictures of this split lie in no class folders, those of the others do; read it as one "
                "class with --label-column none, or sort its pictures into folders"
            )
        remarks = part.remarks + ([] if one_class else ["no folders of classes: all pictures are of one class"])
        everything = [Placed(index, 0) for index, _ in part.pictures]
        return Arrangement((ONE_CLASS,), everything, remarks, [], len({path[0] for _, path in inside}))
    if len(loose) > len(inside):
        raise DataError(
            f"{where} holds {len(loose)} pictures that lie in no class folder, beside {len(inside)} in folders "
            f"({_named(path[0] for _, path in inside)}); move them into folders, or the folders away, or read all as "
            "one class with --label-column none"
        )
    names = sorted({path[0] for path in part.folders})
    label_of = {name: label for label, name in enumerate(names)}
    placed = sorted((label_of[path[0]], path, index) for index, path in inside)
    remarks = part.remarks + _about_classes(names, inside, where)
    if loose:
        remarks.append(f"{len(loose)} pictures lie in no class folder and were left out")
    return Arrangement(
        tuple(printable(name) for name in names),
        [Placed(index, label) for label, _, index in placed],
        remarks,
        loose,
    )


def _give_the_path(where: str) -> str:
    """What to advise where only a folder is meant: one within an archive has no path."""
    return "unpack it and give the path" if Path(where).is_file() else "give the path"


def _about_classes(names: Sequence[str], inside: Sequence[tuple[int, Parts]], where: str) -> list[str]:
    if len(names) > 1:
        return []
    depth = 1
    while len(below := {path[depth] for _, path in inside if len(path) > depth + 1}) == 1:
        depth += 1  # a folder that holds but one
    if not below:
        return []
    above = next(path[depth - 1] for _, path in inside if len(path) > depth + 1)
    return [
        f"the only class, {printable(names[0])}, is made of folders ({_named(below)}); {_give_the_path(where)} "
        f"of {printable(above)} to make each a class"
    ]


def _of_split(pictures: list[tuple[int, Parts]], folders: set[Parts], where: str, wanted: str | None) -> _SplitPart:
    tops = sorted({path[0] for _, path in pictures if len(path) > 1})
    splits = {top: split for top in tops if (split := split_of_folder(top)) is not None}
    deep = {path[0] for _, path in pictures if len(path) > 2}
    if splits and not (wanted is None and _are_classes(tops, splits, deep)):
        return _top_split(pictures, folders, where, wanted, tops, splits)
    return _inner_split(pictures, folders, where, wanted)


def _are_classes(tops: Sequence[str], splits: dict[str, str], deep: set[str]) -> bool:
    """Whether folders named like splits are classes all the same: trains beside cars and ships."""
    return not deep & set(splits) and len(splits) < len(tops) and set(splits) == {TRAIN}


def _top_split(
    pictures: list[tuple[int, Parts]],
    folders: set[Parts],
    where: str,
    wanted: str | None,
    tops: Sequence[str],
    splits: dict[str, str],
) -> _SplitPart:
    others = [top for top in tops if top not in splits]
    if others and wanted is None:
        raise DataError(
            f"{where} holds the split {_named(splits)} beside other folders ({_named(others)}); choose a split with "
            f"--split (data.split), or {_give_the_path(where)} of one folder"
        )
    if wanted in splits:
        chosen_tops = [wanted]
    else:
        split = chosen(wanted, splits.values(), where)
        chosen_tops = [top for top in splits if splits[top] == split]
    if len(chosen_tops) > 1:
        raise DataError(
            f"{where} has more than one such split; choose with --split (data.split): {_named(chosen_tops)}"
        )
    (top,) = chosen_tops
    counts = Counter(path[0] for _, path in pictures if len(path) > 1)
    rest = [f"{printable(name)} ({counts[name]} pictures)" for name in tops if name != top]
    loose = sum(len(path) == 1 for _, path in pictures)
    if wanted is None and loose > counts[top]:
        raise DataError(
            f"{where} holds {loose} pictures beside the split {printable(top)} ({counts[top]} pictures); choose that "
            "with --split (data.split), or move the folder away"
        )
    rest += [f"{loose} pictures outside"] if loose else []
    return _SplitPart(
        [(index, path[1:]) for index, path in pictures if path[0] == top and len(path) > 1],
        {path[1:] for path in folders if path[0] == top and len(path) > 1},
        [f"read the split {printable(top)}" + (f"; not read: {', '.join(rest)}" if rest else "")],
        any(len(path) > 2 for _, path in pictures if path[0] != top and path[0] in splits),
    )


def _inner_split(pictures: list[tuple[int, Parts]], folders: set[Parts], where: str, wanted: str | None) -> _SplitPart:
    """Splits inside the folders of classes, as bottle/train/0.png."""
    inner = [split_of_folder(path[1]) if len(path) > 2 else None for _, path in pictures]
    there = {split for split in inner if split is not None}
    if wanted is None and len(there) < 2:
        return _SplitPart(pictures, folders, [])
    if not there:
        raise DataError(f"{where} has no split {wanted}: none of its folders is called so; leave --split away")
    tops = {path[0] for _, path in pictures}
    if len(tops) == 1 and any(len(path) > 3 for _, path in pictures):
        (top,) = tops
        raise DataError(
            f"{where} holds splits ({', '.join(sorted(there))}) in its folder {top}; {_give_the_path(where)} of that"
        )
    if wanted is None and None in inner:
        example = "/".join(pictures[inner.index(None)][1])
        raise DataError(
            f"{where} holds splits ({', '.join(sorted(there))}) inside folders of classes, beside other pictures "
            f"({printable(example)}); choose a split with --split (data.split)"
        )
    split = chosen(wanted, there, where)
    kept = [(i, path[:1] + path[2:]) for (i, path), own in zip(pictures, inner, strict=True) if own == split]
    counts = Counter(own or "no split" for own in inner if own != split)
    rest = ", ".join(f"{name} ({count} pictures)" for name, count in sorted(counts.items()))
    return _SplitPart(kept, folders, [f"read the split {split} of each class; not read: {rest}"])


def _named(names: Iterable[str]) -> str:
    shown = [printable(name) for name in sorted(set(names))]
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")
