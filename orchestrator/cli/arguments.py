"""Arguments and options that several commands have, with their help."""

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.complete import complete_any, complete_config, complete_override, complete_run

CONFIG_HELP = "Preset (see: rememe presets) or YAML file."
Config = Annotated[str, typer.Argument(help=CONFIG_HELP, show_default=False, autocompletion=complete_any)]
OptionalAnyConfig = Annotated[
    str | None, typer.Argument(metavar="CONFIG", help=CONFIG_HELP, show_default=False, autocompletion=complete_any)
]
OptionalConfig = Annotated[
    str | None, typer.Argument(metavar="CONFIG", help=CONFIG_HELP, show_default=False, autocompletion=complete_config)
]
"""Without one of these two, the command teaches."""

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="section.key=value, for instance training.batch_size=64; of section={...}, only the keys that are named.",
        show_default=False,
        autocompletion=complete_override,
    ),
]


def _directory(path: Path) -> Path:
    """Or what may become one; commands that only look would find nothing in a file, and say so."""
    from workloads.errors import ConfigError

    try:
        if path.is_dir() or not path.exists():
            return path
    except OSError:  # what no file can be called
        pass
    raise ConfigError(f"--runs-dir {str(path)[:60]} cannot be a directory; choose another")


RunsDirOption = Annotated[
    Path,
    typer.Option(
        envvar="REMEME_RUNS_DIR",
        help="Where data, experts, results and the MLflow store are kept.",
        callback=_directory,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_ADDRESS", help="Ray cluster to use; without it, a private one on this machine."),
]
Store = Annotated[
    str | None,
    typer.Option(
        envvar="REMEME_STORE",
        help="URI through which machines share finished experts, for instance s3://bucket/experts.",
        show_default=False,
    ),
]


def _storage(meaning: str) -> Any:
    """--storage, which every command takes in the same words but for what it does there."""
    return typer.Option("--storage", envvar="REMEME_STORAGE", help=f"URI of a storage {meaning}", show_default=False)


StorageOption = Annotated[
    str | None,
    _storage("where data, checkpoints and results go when nodes share no directory: s3://bucket/path."),
]
RunStorage = Annotated[
    str | None,
    _storage("where it is looked for by name; it is brought into --runs-dir and kept up to date."),
]
StandingStorage = Annotated[str | None, _storage("where to look instead.")]
JOB_SERVER = typer.Option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    help="Where the cluster takes jobs: http://HEAD:8265.",
    show_default=False,
)
WithJson = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output, all else on standard error.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RunPath = Annotated[
    Path,
    typer.Argument(
        help="A run's directory (runs/NAME-HASH), its name with the hash or without (the last one), or an ensemble.",
        show_default=False,
        autocompletion=complete_run,
    ),
]
RUNS = Path("runs")
