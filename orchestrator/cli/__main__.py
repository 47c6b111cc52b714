"""`python -m orchestrator.cli`: the same as `rememe`."""

from orchestrator.cli.app import program

program()
