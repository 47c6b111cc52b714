"""What was found in a source of images, as a table."""

from collections.abc import Iterator, Mapping

from workloads.data.found import SourceContents, on_one_line, summary_of_bad

MAX_CLASSES = 20
"""Classes that are listed; of more, the first ones and how large the others are."""


def print_found(found: SourceContents) -> None:
    """A table of what was found, for people."""
    print("\n".join(_lines(found)))


def _lines(found: SourceContents) -> Iterator[str]:
    """Classes with their numbers of images, sizes, modes, what was done, and what was left out and why."""
    sized = [one for one in found.classes if one.num_images]
    yield f"{found.source}: {found.tally.num_images:,} images, {len(found.classes):,} classes"
    width = max((len(_shown(one.name)) for one in found.classes[:MAX_CLASSES]), default=0)
    for one in found.classes[:MAX_CLASSES]:
        name = _shown(one.name)
        none = "" if one.num_images else f"  (the class {name} has no picture)"
        yield f"  class {name:{width}}  {one.num_images:>9,} images{none}"
    if len(found.classes) > MAX_CLASSES:
        counts = [one.num_images for one in sized]
        yield f"  ... and {len(found.classes) - MAX_CLASSES:,} more; {min(counts):,} to {max(counts):,} images each"
        if found.empty_classes:
            names = ", ".join(map(_shown, found.empty_classes[:5]))
            yield f"  classes without images: {len(found.empty_classes):,} ({names})"
    if found.tally.smallest is not None and found.tally.largest is not None:
        yield f"  sizes: {_size(found.tally.smallest)} to {_size(found.tally.largest)}"
    yield f"  forms: {_counts(found.tally.forms)}"
    if found.tally.treatment:
        yield f"  treated: {_counts(found.tally.treatment)}"
    for remark in found.remarks:
        yield f"  {remark}"
    for left in found.left_out:
        yield f"  left out: {left.count:,} {left.reason}, for instance {on_one_line(left.example)}"
    if found.bad:
        yield f"  bad: {len(found.bad):,} images ({on_one_line(summary_of_bad(found.bad))})"


def _shown(name: str) -> str:
    """A name whose ends can be seen."""
    line = on_one_line(name)
    return line if line and line == line.strip() else f"'{line}'"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1]))


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
