"""Ray jobs: a run submitted to the job server of a cluster, followed, listed, stopped."""

import asyncio
import os
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.plan.errors import ClusterError
from workloads.errors import ConfigError

STOP_WAIT_S = 90
"""Ray kills a job 3 s after asking it to stop; a last checkpoint may take STOP_TIMEOUT_S of stopping.py."""

MAX_PACKAGE_BYTES = 2**20
"""A description fits many times; more would be something that was not meant to be uploaded."""

END_INTERVAL_S = 0.5
"""The log of a job may end a moment before its status says so."""


@dataclass(frozen=True)
class JobEntry:
    """A job that the server knows."""

    job_id: str
    status: str
    command: str
    started_s: float | None
    """Seconds since 1970; None before it has begun."""

    exit_code: int | None
    message: str


class JobServer:
    """Where a cluster takes jobs: http://HEAD:8265. ConfigError for what is no such address; ClusterError if none
    answers there, or does not take the token.
    """

    def __init__(self, address: str) -> None:
        _check_address(address)
        from ray.job_submission import JobSubmissionClient

        self.address = address
        # Ray lets the variable override an address that was given.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        with self._answering():
            self._client: Any = JobSubmissionClient(address)

    def submit(self, command: Sequence[str], files: dict[str, str]) -> str:
        """Run a command on the cluster, in a directory that holds just these files (text by name); the job's id."""
        job_id = f"{command[1]}-{uuid.uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory(prefix="rememe-job-") as scratch:
            for name, text in files.items():
                (Path(scratch) / name).write_text(text)
            assert sum(len(text.encode()) for text in files.values()) <= MAX_PACKAGE_BYTES
            # Unbuffered, so that its log moves while it runs.
            variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "PYTHONUNBUFFERED": "1"}
            with self._answering():
                self._client.submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=job_id,
                    runtime_env={"working_dir": scratch, "env_vars": variables},
                )
        return job_id

    def entries(self) -> list[JobEntry]:
        """All submitted jobs, oldest first."""
        with self._answering():
            found = [self._entry(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda entry: entry.started_s or float("inf"))

    def entry(self, job_id: str) -> JobEntry:
        """One job. ClusterError that names the others if there is no such job."""
        entries = self.entries()
        for entry in entries:
            if entry.job_id == job_id:
                return entry
        known = ", ".join(entry.job_id for entry in entries[-5:]) or "none"
        raise ClusterError(f"the cluster at {self.address} has no job {job_id!r}; its latest are: {known}")

    def log(self, job_id: str) -> str:
        """What the job has printed so far."""
        self.entry(job_id)
        with self._answering():
            text: str = self._client.get_job_logs(job_id)
        return text

    def follow(self, job_id: str, write: Callable[[str], None]) -> JobEntry:
        """Hand on what the job prints, as it comes, until it ends; how it ended."""
        self.entry(job_id)

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job_id):
                write(text)

        with self._answering():
            asyncio.run(tail())
        while (entry := self.entry(job_id)).status in {"PENDING", "RUNNING"}:
            time.sleep(END_INTERVAL_S)
        return entry

    def output_of(self, command: Sequence[str]) -> str:
        """What a short command prints when the cluster runs it; no job is left behind, whatever comes of it."""
        job_id = self.submit(command, {})
        try:
            self.follow(job_id, lambda _: None)
            return self.log(job_id)
        finally:
            with self._answering():
                self._client.delete_job(job_id)

    def stop(self, job_id: str) -> bool:
        """Ask a job to write checkpoints and end; False if it has ended already."""
        if self.entry(job_id).status not in {"PENDING", "RUNNING"}:
            return False
        with self._answering():
            return bool(self._client.stop_job(job_id))

    def _entry(self, details: Any) -> JobEntry:
        started_s = None if details.start_time is None else details.start_time / 1000
        message = (details.message or "").strip().splitlines()
        return JobEntry(
            job_id=details.submission_id,
            status=details.status.value,
            command=details.entrypoint,
            started_s=started_s,
            exit_code=details.driver_exit_code,
            message=message[0] if message else "",
        )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        # Ray raises ConnectionError, RuntimeError with the server's answer, and errors of requests and aiohttp.
        except Exception as error:
            if isinstance(error, ClusterError):
                raise
            said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ClusterError(
                f"the job server at {self.address} does not answer as it should ({said[:200]}); check the address "
                "(http://HEAD:8265), and that RAY_AUTH_MODE and the token are those of the cluster"
            ) from None


def _check_address(address: str) -> None:
    """Ray takes other forms too, and looks for a cluster for most of a minute before it says that there is none."""
    try:
        parts = urlsplit(address)
        is_server = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or beyond 65535
        is_server = False
    if not is_server:
        raise ConfigError(
            f"--address is {address!r}, but a cluster takes jobs at an address like http://HEAD:8265 "
            "(the port of its dashboard)"
        )
