"""Notes are replayed in order, once, and survive an error and the end of their process."""

import json
from pathlib import Path

import pytest

from orchestrator.tracking.spool import Note, Spool

NOTES = [
    Note("open", "a", {"name": "a"}),
    Note("metrics", "a", {"step": 1}),
    Note("metrics", "a", {"step": 2}),
    Note("metrics", "b", {"step": 1}),
    Note("finish", "a", {}),
]


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
