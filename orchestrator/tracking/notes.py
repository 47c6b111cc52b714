"""What there is to write about a run, as plain values: notes, what they may hold, and which points are new."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
"""How MLflow shows a run that has ended."""


class Note(NamedTuple):
    """Something to write about one run."""

    kind: str
    identity: str
    content: dict[str, Any]


class RefusedNoteError(Exception):
    """The store will never take a note, of several notes at least one; it says why."""

    def __init__(self, reason: str, *, is_all: bool = False) -> None:
        super().__init__(reason)
        self.is_all = is_all
        """It takes none of them, nor a part of one: there is no use in trying."""


class Point(NamedTuple):
    """One value of a curve."""

    name: str
    value: float
    time_ms: int
    step: int


def _within(folder: str | None) -> str | None:
    if folder is not None and (PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts):
        raise ValueError("leads out of the run's files")
    return folder


# What a column of 64 bits holds: larger numbers end in errors that look like the store's.
_Whole = Annotated[int, Field(ge=0, lt=2**63)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Content(BaseModel):
    model_config = ConfigDict(strict=True)


class OpenContent(_Content):
    """A run begins, or goes on."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]
    parent: str | None
    """Identity of the run above."""
    link: str
    once: bool
    """It is an expert: once finished, what is logged again would be the same."""


class MetricsContent(_Content):
    """Values at one step."""

    values: dict[str, _Finite]
    step: _Whole
    time_ms: _Whole
    once: bool = False
    """A training record: it has its step to itself."""


class ArtifactContent(_Content):
    """A file to upload, and where it goes."""

    file: str
    folder: Annotated[str | None, AfterValidator(_within)]


class ImageContent(_Content):
    """One of a series of pictures, which MLflow shows by step."""

    file: str
    key: str = Field(pattern=r"^[\w./ -]{1,200}$")
    step: _Whole
    time_ms: _Whole


class FinishContent(_Content):
    """A run ends."""

    status: RunStatus
    if_running: bool = False
    """Only if it has not ended otherwise."""


class TagsContent(_Content):
    """Words that filters find."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, str]


class DatasetContent(_Content):
    """What a run was trained on."""

    name: str = Field(min_length=1, max_length=500)
    digest: str = Field(min_length=1, max_length=36)
    source: str
    """Where it came from, as JSON."""
    profile: str
    """Its shape, as JSON."""


class ModelContent(_Content):
    """A trained ensemble, which others load."""

    run: str = Field(min_length=1, max_length=250)
    """Name of the run's directory that has it."""
    fingerprint: str = Field(pattern=r"^[0-9a-f]{8,64}$")
    """Of what it is to hold."""


Content = (
    OpenContent
    | MetricsContent
    | ArtifactContent
    | ImageContent
    | FinishContent
    | TagsContent
    | DatasetContent
    | ModelContent
)
KINDS: dict[str, type[Content]] = {
    "open": OpenContent,
    "metrics": MetricsContent,
    "artifact": ArtifactContent,
    "image": ImageContent,
    "finish": FinishContent,
    "tags": TagsContent,
    "dataset": DatasetContent,
    "model": ModelContent,
}


def content_of(note: Note) -> Content:
    """What a note says. Raises RefusedNoteError if it says nothing that can be written."""
    kind = KINDS.get(note.kind)
    if kind is None:
        raise RefusedNoteError(f"there is no note of kind {note.kind[:40]!r}")
    # It goes into a query between quotes.
    if not re.fullmatch(r"[^'\"`\\\x00-\x1f]{1,250}", note.identity):
        raise RefusedNoteError(f"{note.identity[:40]!r} is no run's name")
    try:
        return kind.model_validate(note.content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise RefusedNoteError(f"{note.kind}.{field}: {first['msg']}, not {str(first['input'])[:40]!r}") from None


def halves(note: Note) -> list[Note]:
    """A note of several values as two notes, to find the one at fault; itself if it has not several."""
    field = {"open": "params", "metrics": "values"}.get(note.kind)
    values = note.content if note.kind == "tags" else note.content.get(field or "")
    if not isinstance(values, dict) or len(values) < 2:
        return [note]
    items, middle = list(values.items()), len(values) // 2
    parts = [dict(items[:middle]), dict(items[middle:])]
    return [note._replace(content=note.content | {field: part} if field else part) for part in parts]


def new_points(notes: Sequence[MetricsContent], known: Callable[[str], Mapping[int, float]]) -> list[Point]:
    """What notes add to a run that has the points known(metric): steps and their last values.

    A training record is new if its step is; anything else also if its value is another one.
    """
    points: list[Point] = []
    seen: dict[str, dict[int, float]] = {}
    for note in notes:
        for name, value in note.values.items():
            if name not in seen:
                seen[name] = dict(known(name))
            last = seen[name].get(note.step)
            if last is None or (last != value and not note.once):
                points.append(Point(name, value, note.time_ms, note.step))
                seen[name][note.step] = value
    return points
