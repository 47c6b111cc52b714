"""What a cluster is told to run: a command, and the one file it needs. Checked here, before anything is sent."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from workloads.config.load import find_comparison, load_config
from workloads.errors import ConfigError


def describe_submission(source: str, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Which command takes a run or a comparison, and the whole of it as plain values. ConfigError if it is wrong."""
    if (comparison := find_comparison(source, overrides)) is not None:
        return "compare", comparison.model_dump(mode="json")
    return "train", load_config(source, overrides).model_dump(mode="json")


def job_command(
    command: str, description: Mapping[str, Any], runs_dir: Path | None, store: str | None, storage: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """The job's command line, and the text of its files by name. ConfigError if its results would be lost."""
    if storage is None and (runs_dir is None or not runs_dir.is_absolute()):
        raise ConfigError(
            f"--runs-dir is {runs_dir or 'missing'}, which in a job is Ray's temporary copy of the working directory; "
            "give an absolute path that all nodes of the cluster see, or a --storage"
        )
    file = f"{description['name']}.yaml"
    given = {"--runs-dir": runs_dir, "--store": store, "--storage": storage}
    options = [[name, str(value)] for name, value in given.items() if value is not None]
    return ["rememe", command, file, *chain(*options)], {file: yaml.safe_dump(dict(description), sort_keys=False)}
