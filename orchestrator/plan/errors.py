"""What can go wrong while jobs run on a cluster; typed, picklable, one sentence each."""

from collections.abc import Mapping

from workloads.errors import ConfigError, RememeError


class ResourcesError(ConfigError):
    """A job asks for more than any node has; nothing was started."""


class ClusterError(RememeError):
    """The Ray cluster cannot be reached or used."""


class TrackingError(RememeError):
    """The MLflow store cannot be reached or used."""


AGAIN = "the same would happen again"
"""What the cause of a failure says if trying again is no use."""


class ExpertFailedError(RememeError):
    """One expert stopped for good; the others keep training."""

    def __init__(self, expert: str, attempts: int, cause: str) -> None:
        super().__init__(
            f"{expert} failed after {attempts} attempt{'s' if attempts != 1 else ''}: {cause}. "
            f"Its last checkpoint is kept{'' if AGAIN in cause else '; run the same command again to continue it'}"
        )
        self.expert, self.attempts, self.cause = expert, attempts, cause

    # Pickle calls a class with its error's args, here the one sentence; it would lack the rest on its way out of Ray.
    def __reduce__(self) -> tuple[type, tuple[str, int, str]]:
        return type(self), (self.expert, self.attempts, self.cause)


class ExpertsFailedError(RememeError):
    """Some experts failed for good; all others are finished and kept."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        listed = "; ".join(failures.values())
        super().__init__(
            f"{len(failures)} expert{'s' if len(failures) != 1 else ''} failed, the others are kept. {listed}"
        )
        self.failures = dict(failures)

    def __reduce__(self) -> tuple[type, tuple[dict[str, str]]]:
        return type(self), (self.failures,)


class RunStoppedError(RememeError):
    """Training was interrupted and checkpoints were written."""

    # 128 + SIGINT, as shells report what Ctrl-C has ended.
    exit_code = 130
