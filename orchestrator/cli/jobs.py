"""Commands about jobs on a cluster: submit, jobs, logs, stop."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.arguments import JOB_SERVER, AsJson, Config, Overrides, StorageOption, Store
from orchestrator.execution import environment

if TYPE_CHECKING:
    from orchestrator.execution.jobs import JobServer

JobServerAddress = Annotated[str, JOB_SERVER]
JobId = Annotated[str, typer.Argument(help="As `rememe submit` and `rememe jobs` print it.", show_default=False)]


def submit(
    config: Config,
    address: JobServerAddress,
    overrides: Overrides = None,
    runs_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="REMEME_RUNS_DIR",
            help="Absolute path that all nodes see; not needed with --storage.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job's log and end with its exit code.")] = True,
    store: Store = None,
    storage: StorageOption = None,
) -> None:
    """Run a configuration, a study or a comparison as a job on a cluster.

    Checked here, carried out there: the cluster needs rememe, and gets the resolved description and nothing else.
    """
    environment.prepare_ray_environment(address)
    from orchestrator.execution.jobs import JobServer
    from orchestrator.runs.submission import describe_submission, job_command
    from orchestrator.search.study.find import find_study, whole_description

    study = find_study(config, overrides or [])
    if study is not None:
        command, description = "search", whole_description(study)
    else:
        command, description = describe_submission(config, overrides or [])
    line, files = job_command(command, description, runs_dir, store, storage)
    server = JobServer(address)
    job_id = server.submit(line, files)
    print(f"job {job_id}; see it with: rememe logs {job_id}, end it with: rememe stop {job_id}", flush=True)
    if wait:
        raise typer.Exit(_follow(server, job_id))


def jobs(address: JobServerAddress, json: AsJson = False) -> None:
    """List the jobs of a cluster, oldest first."""
    environment.prepare_ray_environment(address)
    from json import dumps as to_text

    from orchestrator.execution.jobs import JobServer
    from orchestrator.terminal.tables import print_jobs

    entries = JobServer(address).entries()
    if json:
        print(to_text([vars(entry) for entry in entries], indent=2))
    else:
        print_jobs([(entry.job_id, entry.status, entry.started_s, entry.command) for entry in entries])


def logs(
    job: JobId,
    address: JobServerAddress,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job has said."""
    environment.prepare_ray_environment(address)
    from orchestrator.execution.jobs import JobServer

    server = JobServer(address)
    if follow:
        raise typer.Exit(_follow(server, job))
    print(server.log(job), end="")


def stop(job: JobId, address: JobServerAddress) -> None:
    """Ask a job to write checkpoints and end; submitted again, it goes on from them."""
    environment.prepare_ray_environment(address)
    from orchestrator.execution.jobs import JobServer

    asked = JobServer(address).stop(job)
    print(f"{job} writes checkpoints and ends" if asked else f"{job} had ended already")


def _follow(server: "JobServer", job_id: str) -> int:
    ended = server.follow(job_id, lambda text: print(text, end="", flush=True))
    print(f"job {job_id}: {ended.status.lower()}{f' ({ended.message})' if ended.message else ''}")
    if ended.exit_code is not None:
        return ended.exit_code
    return 0 if ended.status == "SUCCEEDED" else 1
