"""What happens in a process that is to be killed: it counts moments, says how far it is, ends at one of them."""

import json
import os
import re
import signal
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = tuple(str(ROOT / name) + os.sep for name in ("workloads", "orchestrator"))

STAGES = {
    "training_data": "preparing data",
    "reference_data": "preparing data",
    "try_lock": "claiming",
    "CheckpointFolder.load_latest": "resuming",
    "CheckpointFolder.save": "checkpoint",
    "RecordHook.__call__": "record",
    "CoefficientHistory.__call__": "record",
    "DenoisingStep.__call__": "step",
    "RemixStep.__call__": "step",
    "_Training.finish": "finishing an expert",
    "gather": "gathering",
    "draw_here": "sampling",
    "evaluate_samples": "scoring",
    "_keep": "keeping a score",
    "_save_grid": "keeping a score",
    "Spool.stage": "keeping notes",
    "Spool.append": "keeping notes",
    "MlflowWriter.connect": "connecting to MLflow",
    "MlflowWriter.apply": "writing to MLflow",
    "Spool.replay": "handing notes on",
    "Spool.close": "closing the spool",
}
"""By the function whose call is going on; the innermost counts."""

ORDER = {"elsewhere": 0, "preparing data": 0, "gathering": 2, "sampling": 3, "scoring": 4, "keeping a score": 5}
"""Of stages in a run; all others are training."""

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}
PACKAGES = tuple(str(ROOT / name) + os.sep for name in ("workloads", "orchestrator"))
STEPS = frozenset({"DenoisingStep.__call__", "RemixStep.__call__"})


@dataclass(frozen=True)
class Kill:
    """Of one process: at the index-th moment of a stage, or, without one, so long after its start."""

    rank: int = 0
    stage: str | None = None
    index: int = 0
    after_s: float = 0.0


class Tracer:
    """Counts moments by stage in a process, says on a file how far it is, and ends it at its moment."""

    def __init__(self, told: Path, out: Path, kill: Kill | None) -> None:
        self._told = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._out, self._kill = str(out), kill
        self.counts: Counter[str] = Counter()
        self._of_thread = threading.local()
        self._names: dict[Any, str] = {}
        self._is_off = False

    def __enter__(self) -> "Tracer":
        sys.addaudithook(self._on_file)
        threading.settrace(self._on_call)  # of the tracker
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self._is_off = True  # an audit hook stays

    @property
    def _stages(self) -> list[str]:
        """Those this thread is in."""
        if not hasattr(self._of_thread, "stages"):
            self._of_thread.stages = ["elsewhere"]
        stages: list[str] = self._of_thread.stages
        return stages

    def say(self, **what: Any) -> None:
        """A line that is there even if this process ends now."""
        os.write(self._told, (json.dumps(what) + "\n").encode())

    def _on_call(self, frame: Any, event: str, _: Any) -> Any:  # noqa: ARG002
        code = frame.f_code
        name = self._names.get(code)
        if name is None:  # asked at every call of the process, of torch's too
            name = self._names[code] = code.co_qualname if code.co_filename.startswith(PACKAGES) else ""
        if not name:
            return None
        if name in STEPS:
            self.say(step=frame.f_locals["state"].images_seen, of=frame.f_locals["self"]._job.name)
        if name not in STAGES:
            self._moment(name)
            return None
        self._stages.append(STAGES[name])
        self._moment(name)
        frame.f_trace_lines = False
        return self._on_return

    def _on_return(self, frame: Any, event: str, _: Any) -> Any:
        if event == "return":
            self._stages.pop()
            self._moment(f"end of {frame.f_code.co_qualname}")
        return self._on_return

    def _on_file(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._is_off or event not in FILE_EVENTS or not arguments:
            return
        path = str(arguments[0])
        if not path.startswith(self._out):
            return
        if event == "os.rename" and Path(str(arguments[1])).parent.name == "checkpoints":
            manifest = json.loads((Path(path) / "manifest.json").read_text())
            self.say(checkpoint=str(arguments[1])[len(self._out) :], sha256=manifest["sha256"])
        self._moment(f"{event} {re.sub(r'[0-9a-f]{8,}|[0-9]+', '#', path[len(self._out) :])}")

    def _moment(self, name: str) -> None:
        stage, kill = self._stages[-1], self._kill
        self.counts[stage] += 1
        if kill is not None and kill.stage == stage and kill.index < self.counts[stage]:
            self.say(killed=name, stage=stage)
            os.kill(os.getpid(), signal.SIGKILL)
