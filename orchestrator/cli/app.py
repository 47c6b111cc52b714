"""`rememe`: all commands together, and what becomes of errors."""

import gc
import os
import sys
from typing import Annotated

import typer

from orchestrator.cli import configurations, data, ensembles, jobs, machine, questions, status, store, studies
from orchestrator.cli.teaching import epilog

app = typer.Typer(
    name="rememe",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=(
        "Train multi-expert diffusion models on a Ray cluster, score them, compare them in MLflow.\n\n"
        # Keeps the lines below as they are; others are filled.
        "\b\n"
        "  rememe plan demo-meme                     what would run; nothing is started\n"
        "  rememe train demo-meme                    train, sample, score; again = resume\n"
        "  rememe train demo-meme training.images=50000\n"
        "  rememe search demo-search                 which boundaries and architectures are best\n"
        "  rememe ui                                 results in the browser\n"
        "  rememe explain training.batch_size        what a key means\n"
        "  rememe --install-completion               Tab completes presets, runs and keys\n\n"
        "CONFIG is the name of a preset or a YAML file; OVERRIDES are section.key=value."
    ),
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        import rememe

        print(f"rememe {rememe.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


# In the order of --help.
for command in (
    configurations.presets,
    configurations.plan,
    configurations.train,
    studies.search,
    studies.report,
    configurations.compare,
    ensembles.sample,
    configurations.evaluate,
    ensembles.bake,
    ensembles.export,
    jobs.submit,
    jobs.jobs,
    jobs.logs,
    jobs.stop,
    status.status,
    status.watch,
    questions.explain,
    questions.diff,
    machine.ui,
    machine.doctor,
):
    app.command(epilog=epilog(command.__name__))(command)
for name, group in (("data", data.app), ("analyze", ensembles.analyze), ("store", store.app)):
    commands = [f"{name} {registered.name}" for registered in group.registered_commands]
    for registered, words in zip(group.registered_commands, commands, strict=True):
        registered.epilog = epilog(words)
    app.add_typer(group, name=name, epilog=epilog(*commands))


def program() -> None:
    """`rememe` as a process of its own."""
    from workloads.imports import ends_at_once

    with ends_at_once():
        main()


def main() -> None:
    """Run the command line; errors a user can act on become one sentence and an exit code."""
    from orchestrator.terminal.notes import show_warnings_as_notes
    from orchestrator.terminal.streams import explain, settle
    from workloads.errors import RememeError

    # For a command that ends; Python looks for garbage after 700 objects, and imports make a million that stay.
    gc.set_threshold(50_000, 20, 20)
    show_warnings_as_notes()
    try:
        settle()
        app(standalone_mode=True, prog_name="rememe")
    except RememeError as error:
        print(f"error: {error}", file=sys.stderr)
        if os.environ.get("REMEME_TRACEBACK"):
            raise
        sys.exit(error.exit_code)
    except OSError as error:
        if os.environ.get("REMEME_TRACEBACK"):
            raise
        sentence, code = explain(error)
        print(f"error: {sentence}; set REMEME_TRACEBACK=1 to see where", file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        # As RunStoppedError does: 128 + SIGINT.
        sys.exit(130)


if __name__ == "__main__":
    program()
