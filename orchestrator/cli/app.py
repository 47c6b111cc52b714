"""`rememe`: all commands together, and what becomes of errors."""

import os
import sys

import typer

from orchestrator.cli import configurations, data, ensembles, jobs, machine, status, store, studies

app = typer.Typer(
    name="rememe",
    no_args_is_help=True,
    add_completion=False,
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
        "  rememe ui                                 results in the browser\n\n"
        "CONFIG is the name of a preset or a YAML file; OVERRIDES are section.key=value."
    ),
)

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
    machine.ui,
    machine.doctor,
):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(ensembles.analyze, name="analyze")
app.add_typer(store.app, name="store")


def main() -> None:
    """Run the command line; errors a user can act on become one sentence and an exit code."""
    from orchestrator.terminal.notes import show_warnings_as_notes
    from orchestrator.terminal.streams import explain, settle
    from workloads.errors import RememeError

    show_warnings_as_notes()
    try:
        settle()
        app(standalone_mode=True)
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
    main()
