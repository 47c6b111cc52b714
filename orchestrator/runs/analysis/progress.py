"""Progress of what looks at one network after the other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from orchestrator.terminal.progress import progress
from workloads.ensemble import Ensemble


@contextmanager
def counting_networks(title: str, ensembles: Sequence[Ensemble]) -> Iterator[Callable[[], None]]:
    """Progress over all experts of the ensembles; yields what is to be called after each."""
    num_done, num_networks = count(1), sum(len(ensemble.intervals) for ensemble in ensembles)
    with progress(title, "networks") as advance:
        advance(0, num_networks)
        yield lambda: advance(next(num_done), num_networks)
