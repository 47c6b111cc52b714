"""An example of every command for its --help, and what a command says that was given nothing to work on."""

from typing import NoReturn

import typer

EXAMPLES = {
    "presets": ["rememe presets"],
    "plan": ["rememe plan demo-meme", "rememe plan meme-table1", "rememe plan search-ratios --json"],
    "train": ["rememe train demo-meme training.images=50000", "rememe train my.yaml --runs-dir /shared/runs"],
    "search": ["rememe search demo-search", "rememe search demo-search budget.num_configurations=6"],
    "report": ["rememe report demo-search", "rememe report runs/demo-meme-0123abcd --out report.html"],
    "compare": ["rememe compare demo", "rememe compare demo budget_images=20000"],
    "sample": ["rememe sample runs/demo-meme-0123abcd --num 64 --seed 1 --grid out.png"],
    "evaluate": ["rememe evaluate runs/demo-meme-0123abcd --protocol fid10k --set num_samples=2000"],
    "bake": ["rememe bake runs/demo-remix-0123abcd baked"],
    "export": [
        "rememe export runs/demo-meme-0123abcd exported",
        "rememe export runs/demo-remix-0123abcd one --expert 3 --license mit",
    ],
    "submit": ["rememe submit demo-meme --address http://HEAD:8265 --runs-dir /shared/runs"],
    "jobs": ["rememe jobs --address http://HEAD:8265"],
    "logs": ["rememe logs raysubmit_abc --address http://HEAD:8265 --follow"],
    "stop": ["rememe stop raysubmit_abc --address http://HEAD:8265"],
    "status": ["rememe status --watch", "rememe status demo-meme --json"],
    "watch": ["rememe watch demo-meme"],
    "explain": ["rememe explain training.ema_halflife_images", "rememe explain strategy"],
    "diff": ["rememe diff runs/demo-meme-0123abcd runs/demo-meme-4567cdef"],
    "ui": ["rememe ui --port 5001"],
    "doctor": ["rememe doctor demo-meme", "rememe doctor runs/demo-meme-0123abcd"],
    "data check": ["rememe data check photos --size 64"],
    "data prepare": ["rememe data prepare photos data/photos --size 64"],
    "data show": ["rememe data show data/photos --out photos.png"],
    "analyze spectra": [
        "rememe analyze spectra runs/demo-meme-0123abcd --num-images 64",
        "rememe analyze spectra runs/demo-meme-0123abcd --everywhere --control runs/demo-equal-4567cdef",
    ],
    "analyze coefficients": ["rememe analyze coefficients runs/coefficients-a-seed0-0123abcd"],
    "analyze loss": ["rememe analyze loss runs/demo-continued-0123abcd runs/demo-remix-4567cdef"],
    "store ls": ["rememe store ls --json", "rememe store ls --store s3://bucket/experts"],
    "store verify": ["rememe store verify"],
    "store repair": ["rememe store repair --yes"],
    "store gc": ["rememe store gc --yes"],
}
"""By the words of the command."""


def epilog(*commands: str) -> str:
    """The examples as they end a --help: all of a command, or one of each of several."""
    lines = [line for command in commands for line in EXAMPLES.get(command, [])[: None if len(commands) == 1 else 1]]
    # Keeps lines as they are; others are filled.
    return "\n".join(["\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)])


def teach(command: str, *folders: str) -> NoReturn:
    """What the command could work on, by name; ends it with exit code 2, for nothing was done."""
    from workloads.presets import list_presets, summary_of

    lines = [f"rememe {command} needs the name of what to work on, or a YAML file; for instance:", ""]
    lines += [f"  {line}" for line in EXAMPLES[command]]
    lines += ["", "names:", ""]
    for folder in folders:
        for name in list_presets(folder):
            lines.append(f"  {name:28} {summary_of(name, folder)}")
    lines += ["", f"A YAML file may begin with `preset: NAME` and say what differs. More: rememe {command} --help"]
    print("\n".join(lines))
    raise typer.Exit(2)
