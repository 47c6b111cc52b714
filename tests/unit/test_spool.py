"""Notes are replayed in order, once, and survive an error and the end of their process."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from orchestrator.tracking.notes import Note, RefusedNoteError
from orchestrator.tracking.spool import LateFile, Spool

NOTES = [
    Note("open", "a", {"name": "a"}),
    Note("metrics", "a", {"step": 1}),
    Note("metrics", "a", {"step": 2}),
    Note("metrics", "b", {"step": 1}),
    Note("finish", "a", {}),
]


def late(identity: str, name: str, write: Callable[[Path], object]) -> LateFile:
    return LateFile(identity, name, "artifact", {"folder": None}, write)


def test_notes_come_back_in_order_and_together_where_they_belong_together(tmp_path: Path) -> None:
    spool, seen = Spool(tmp_path), []
    spool.append(NOTES[:2])
    spool.append(NOTES[2:])
    spool.replay(lambda notes: seen.append(list(notes)))
    assert seen == [[NOTES[0]], NOTES[1:3], [NOTES[3]], [NOTES[4]]]
    spool.replay(lambda notes: pytest.fail(f"{notes} a second time"))


def test_after_an_error_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    spool, seen = Spool(tmp_path), []
    spool.append(NOTES)

    def fail_at_b(notes: object) -> None:
        assert isinstance(notes, list)
        if notes[0].identity == "b":
            raise ConnectionError
        seen.extend(notes)

    with pytest.raises(ConnectionError):
        spool.replay(fail_at_b)  # type: ignore[arg-type]
    spool.append([Note("tags", "a", {})])
    spool.replay(seen.extend)
    assert seen == [*NOTES, Note("tags", "a", {})]


def test_what_an_ended_process_left_is_replayed_first(tmp_path: Path) -> None:
    ended = 2**22 + 1  # above the largest pid Linux gives out
    (tmp_path / f"notes-{ended}-0a0b0c0d.jsonl").write_text(json.dumps(NOTES[0]) + "\n")
    spool, seen = Spool(tmp_path), []
    spool.append([NOTES[1]])
    spool.replay(seen.extend)
    assert seen == NOTES[:2]
    assert not list(tmp_path.glob("notes-*"))


def test_a_line_that_is_no_note_is_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    lines = [
        json.dumps(NOTES[0]),
        '["metrics", "a", {"st',
        "\x00\x00",
        '{"kind": "open"}',
        '["finish", "a", 3]',
        "[" * 5000,
        "9" * 6000,
        json.dumps(NOTES[1]),
        json.dumps(NOTES[2])[:-4],  # torn as its process was killed
    ]
    (tmp_path / "notes-abc-x.jsonl").write_text("\n".join(lines))
    (tmp_path / "notes-1-dir.jsonl").mkdir()
    (tmp_path / "notes-1-link.jsonl").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "notes-1-pipe.jsonl")
    spool, seen = Spool(tmp_path), []
    spool.replay(seen.extend)
    assert seen == NOTES[:2]
    aside = [json.loads(line) for line in (tmp_path / "notes-abc-x.rejected").read_text().splitlines()]
    assert [one["line"] for one in aside] == [*lines[1:7], lines[8]]
    assert len(spool.rejected) == len(aside)
    assert not (tmp_path / "notes-abc-x.jsonl").exists()


def test_a_line_without_end_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.spool.MAX_LINE_BYTES", 5000)
    (tmp_path / "notes-1-a.jsonl").write_text("x" * 12_000 + "\n" + json.dumps(NOTES[0]) + "\n")
    spool, seen = Spool(tmp_path), []
    spool.replay(seen.extend)
    assert seen == NOTES[:1]
    assert "longer than 5000" in spool.rejected[0].reason


def test_of_notes_and_values_that_are_refused_the_others_are_taken(tmp_path: Path) -> None:
    taken: dict[str, int] = {}

    def refuse_bad(notes: Sequence[Note]) -> None:
        values = [pair for note in notes for pair in note.content["values"].items()]
        if any(name.startswith("bad") for name, _ in values):
            raise RefusedNoteError("a bad name")
        taken.update(values)

    spool = Spool(tmp_path)
    spool.append([Note("metrics", "a", {"values": {f"m{i}": i, f"n{i}": i}}) for i in range(20)])
    spool.append([Note("metrics", "a", {"values": {"x": 1, "bad one": 2, "y": 3, "z": 4}})])
    spool.replay(refuse_bad)
    assert taken == {f"{letter}{i}": i for letter in "mn" for i in range(20)} | {"x": 1, "y": 3, "z": 4}
    (aside,) = tmp_path.glob("*.rejected")
    (line,) = map(json.loads, aside.read_text().splitlines())
    assert json.loads(line["line"])[:3] == ["metrics", "a", {"values": {"bad one": 2}}]


def test_a_note_that_a_disk_has_changed_is_set_aside(tmp_path: Path) -> None:
    first, second = Spool(tmp_path), Spool(tmp_path)
    first.append(NOTES)
    first.close()
    (file,) = tmp_path.glob("*.jsonl")
    file.write_text(file.read_text().replace('"step": 2', '"step": 3'))
    seen: list[Note] = []
    second.replay(seen.extend)
    assert seen == [note for note in NOTES if note.content != {"step": 2}]
    assert [one.reason for one in second.rejected] == ["was changed since it was written"]


def test_notes_of_a_run_that_is_gone_are_not_tried_one_by_one(tmp_path: Path) -> None:
    calls: list[Sequence[Note]] = []

    def refuse(notes: Sequence[Note]) -> None:
        calls.append(notes)
        raise RefusedNoteError("the run is gone", is_all=True)

    spool = Spool(tmp_path)
    spool.append([Note("metrics", "a", {"values": {"loss": 1.0, "rate": 2.0}, "step": i}) for i in range(10)])
    spool.replay(refuse)
    assert len(calls) == 1
    assert len(spool.rejected) == 10


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../x", "0a/../../secret", "link/secret", "0a", ".", "secret", "0a/l"]
)
def test_only_what_was_staged_is_uploaded(tmp_path: Path, name: str) -> None:
    spool, outside = Spool(tmp_path / "spool"), tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    note = spool.stage(late("a", "grid.png", lambda file: file.write_text("grid")))
    assert spool.staged(note.content["file"]).read_text() == "grid"
    files = tmp_path / "spool" / "files"
    (files / "link").symlink_to(outside)
    (files / "0a").mkdir()
    (files / "0a" / "l").symlink_to(outside / "secret")
    with pytest.raises(RefusedNoteError):
        spool.staged(name)


def test_a_living_process_keeps_its_notes_and_a_dead_one_leaves_its_will(tmp_path: Path) -> None:
    writer = f"""
from pathlib import Path
from orchestrator.tracking.notes import Note
from orchestrator.tracking.spool import LateFile, Spool
spool = Spool(Path({str(tmp_path)!r}))
spool.append([Note("open", "a", {{}})])
spool.stage(LateFile("a", "of-no-note.txt", "artifact", {{}}, lambda file: file.touch()))
print("there", flush=True)
input()
"""
    process = subprocess.Popen([sys.executable, "-c", writer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    spool, seen = Spool(tmp_path), []
    spool.replay(seen.extend)
    assert not seen
    assert list(tmp_path.rglob("of-no-note.txt"))
    process.kill()
    process.communicate()
    spool.replay(seen.extend)
    assert seen == [Note("open", "a", {}), Note("finish", "a", {"status": "KILLED", "if_running": True})]
    assert [path.name for path in tmp_path.rglob("*")] == ["files"]


def test_what_was_staged_for_no_note_goes_with_its_process(tmp_path: Path) -> None:
    """It was killed before it had written any."""
    writer = f"""
import os
from pathlib import Path
from orchestrator.tracking.spool import LateFile, Spool
late = LateFile("a", "b.txt", "artifact", {{}}, lambda file: os.kill(os.getpid(), 9))
Spool(Path({str(tmp_path)!r})).stage(late)
"""
    subprocess.run([sys.executable, "-c", writer], check=False)
    assert len(list((tmp_path / "files").iterdir())) == 1
    living = Spool(tmp_path)
    living.stage(late("a", "c.txt", lambda file: file.touch()))
    Spool(tmp_path).replay(lambda notes: None)
    assert [path.name for path in (tmp_path / "files").rglob("*.txt")] == ["c.txt"]


def test_who_ends_well_leaves_no_will(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append([NOTES[0]])
    spool.close()
    later, seen = Spool(tmp_path), []
    later.replay(seen.extend)
    assert seen == NOTES[:1]


@pytest.fixture
def small_disk(mounted: Callable[[str], Path]) -> Path:
    """A file system of 64 KiB."""
    return mounted("64k")


def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    filler = small_disk / "filler"
    spool, seen = Spool(small_disk / "spool"), []
    spool.append(NOTES[:2])
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    many = [Note("metrics", "b", {"step": step, "text": "x" * 100}) for step in range(400)]
    with pytest.raises(OSError, match="No space"):
        spool.append(many)
    assert spool.num_in_memory() == 400
    picture = late("b", "late.png", lambda file: file.write_bytes(b"x" * 2000))
    with pytest.raises(OSError, match="No space"):
        spool.append(NOTES[4:], [picture])
    # A store elsewhere takes them from memory.
    half: list[Note] = []

    def take_half(notes: Sequence[Note]) -> None:
        if len(half) > 2:
            raise ConnectionError
        half.extend(notes)

    with pytest.raises(ConnectionError):
        spool.replay(take_half)
    filler.unlink()
    spool.append([])
    assert spool.num_in_memory() == 0
    spool.replay(seen.extend)
    assert [*half, *seen][:-1] == [*NOTES[:2], *many, *NOTES[4:]]
    assert spool.staged(seen[-1].content["file"]).stat().st_size == 2000
