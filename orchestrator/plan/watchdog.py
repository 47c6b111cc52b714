"""Who has given no sign of life for too long. Pure: it is told the time."""

from orchestrator.plan.events import NoSignOfLife


class Watchdog:
    """A sign of life is anything that differs from the one before, for instance a number of steps."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._signs: dict[str, tuple[object, float, str | None]] = {}
        self._told: set[str] = set()

    def saw(self, key: str, sign: object, now_s: float, node: str | None = None) -> None:
        """What an expert shows now, on which node."""
        before = self._signs.get(key)
        if before is None or before[0] != sign:
            self._signs[key] = (sign, now_s, node)
            self._told.discard(key)

    def forget(self, key: str) -> None:
        """It does not run any more."""
        self._signs.pop(key, None)
        self._told.discard(key)

    def overdue(self, now_s: float) -> list[NoSignOfLife]:
        """Those silent for longer than the limit, each once until its next sign."""
        late = []
        for key, (_, since_s, node) in self._signs.items():
            if key not in self._told and now_s - since_s > self._limit_s:
                self._told.add(key)
                late.append(NoSignOfLife(key, now_s - since_s, node))
        return late
