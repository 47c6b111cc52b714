"""What `python -m benchmarks` measures: which command, and which of its figures is compared with what."""

from typing import Any, NamedTuple


class Row(NamedTuple):
    """A line of the table: a figure of a command's report."""

    what: str
    figure: tuple[str, ...]
    """Where it stands in the report: names from the outside in."""

    goal: float | None = None
    is_least: bool = False
    """Whether the goal is the least that will do; else it is the most."""

    peer: str = ""
    """Beside what it was measured in the same run."""

    spread: tuple[tuple[str, ...], ...] = ()
    """Where its least and most stand."""

    limit: str = ""
    """What stands in the way of the goal where it is missed: said below the table."""


class Bench(NamedTuple):
    """A command and what is read from the JSON that it prints."""

    name: str
    arguments: tuple[str, ...]
    rows: tuple[Row, ...]
    minutes: float
    """That it takes on two cores, about."""

    takes_peers: bool = False
    """Whether it has `--peers`."""


def _ratio(what: str, name: str, goal: float | None, peer: str, *, is_least: bool = False, limit: str = "") -> Row:
    spread = (("ratio", name, "least"), ("ratio", name, "most"))
    return Row(what, ("ratio", name, "median"), goal, is_least, peer, spread, limit)


_PRODUCTS = (
    "Products of matrices and attention are 75 % of the CPU time of a step (torch.profiler), by the same oneDNN and "
    "the same attention as in the public code. Only the rest can differ: norms, modulation, gates, AdamW and the "
    "average. The optimiser and the average are fused passes already; torch.addcmul for the modulation was tried and "
    "is no faster; torch.compile, which fuses what is left, is a row of its own."
)
_COMPILED = (
    "Inductor fuses only what is not a product of matrices or attention, a quarter of the step, and leaves those to "
    "oneDNN as eager does."
)
_SHARE = (
    "A quarter of the CPU time of a step is no product of matrices (torch.profiler), so that 0.75 is the most in "
    "float32. bf16 is a row of its own."
)
_BAKED = (
    "A baked expert is a plain network, the same code on other weights; what differs is the scatter of the rounds, and "
    "that its weights come from memory anew where the expert changes."
)
_FIRST_STEP = (
    "Bound by the processor: importing Python's modules is 6 to 8 CPU seconds in the driver (torch, diffusers, MLflow) "
    "and 4 to 5 in each of two workers, Ray's own processes are 6, on two cores. Done: of diffusers and SciPy only "
    "what is used, timm where it is used, and nothing collects garbage in between (before: 8 in each worker)."
)
_FRECHET = (
    "The eigenvalues of one symmetric matrix of 2,048, by LAPACK on one thread, are more than half (0.63 of 1.11 s); "
    "torch-fidelity has no matrix square root either."
)

BENCHES = (
    Bench(
        "limits",
        ("benchmarks/limits.py",),
        (
            Row("GFLOP/s of a product of matrices", ("matmul_gflops",)),
            Row("GB/s of a copy in memory, read and written", ("copy_gb_per_s",)),
            Row("JPEG photos of 500 x 375 decoded per second", ("jpeg_images_per_s",)),
        ),
        0.5,
    ),
    Bench(
        "step",
        ("benchmarks/training_step.py", "--rounds", "7"),
        (
            _ratio(
                "step of DiT-S/2 over the public DiT's", "plain over public DiT", 0.8, "public DiT", limit=_PRODUCTS
            ),
            _ratio(
                "step of Remix-S/2 4-20, one expert per step, over the public Remix-DiT's",
                "remix-1 over public Remix-DiT",
                0.85,
                "public Remix-DiT",
                limit=_PRODUCTS,
            ),
            _ratio(
                "the same, four experts per step, over the public one's single",
                "remix-4 over public Remix-DiT",
                1.0,
                "public Remix-DiT",
            ),
            _ratio("Remix step, one expert, over our plain step", "remix-1 over plain", 1.0, "plain DiT-S/2"),
            _ratio("Remix step, four experts, over our plain step", "remix-4 over plain", 1.0, "plain DiT-S/2"),
            _ratio(
                "step of DiT-S/2, eager over compiled",
                "plain over plain-compiled",
                1.3,
                "eager",
                is_least=True,
                limit=_COMPILED,
            ),
            _ratio(
                "step of Remix-S/2, one expert, eager over compiled",
                "remix-1 over remix-1-compiled",
                1.3,
                "eager",
                is_least=True,
                limit=_COMPILED,
            ),
            _ratio("step of DiT-S/2, float32 over bf16", "plain over plain-bf16", 1.5, "float32", is_least=True),
            _ratio(
                "step of Remix-S/2, one expert, float32 over bf16",
                "remix-1 over remix-1-bf16",
                1.5,
                "float32",
                is_least=True,
            ),
            _ratio(
                "step of DiT-S/2, bf16 and compiled, over the public DiT's in float32",
                "plain-bf16-compiled over public DiT",
                0.8,
                "public DiT",
            ),
            _ratio(
                "step of Remix-S/2, one expert, bf16, over the public Remix-DiT's in float32",
                "remix-1-bf16 over public Remix-DiT",
                0.85,
                "public Remix-DiT",
            ),
            Row("graphs compiled while steps were timed, experts changing", ("graphs_while_timed",), 0),
            Row("graph breaks", ("graph_breaks",), 0),
            Row(
                "share of the machine's product of matrices in a step of DiT-S/2",
                ("share_of_product", "median"),
                0.7,
                True,
                "torch.matmul",
                (("share_of_product", "least"), ("share_of_product", "most")),
                _SHARE,
            ),
        ),
        8,
        takes_peers=True,
    ),
    Bench(
        "step memory",
        ("benchmarks/remix_step.py", "--rounds", "1"),
        (
            Row(
                "peak memory of a Remix step beyond the bases' own state, over the plain step's",
                ("memory_ratio", "remix-1"),
                1.05,
                peer="plain DiT-S/2",
            ),
        ),
        2,
    ),
    Bench(
        "sampling",
        ("benchmarks/remix_latency.py", "--rounds", "3"),
        (
            _ratio(
                "call of a baked expert over the plain network's, experts changing",
                "baked",
                1.001,
                "plain DiT-S/2",
                limit=_BAKED,
            ),
            _ratio("50 DDIM steps, mixed while sampling, over plain", "mixed", 1.05, "plain DiT-S/2"),
        ),
        5,
    ),
    Bench(
        "MEME",
        ("benchmarks/meme_latency.py", "--rounds", "3", "--steps", "20"),
        (
            _ratio("call of LDM-L over one of MEME's experts, paper sizes", "call", 3.3, "LDM-L", is_least=True),
            _ratio("20 DDIM steps of LDM-L over MEME's, experts changing", "trajectory", 3.3, "LDM-L", is_least=True),
        ),
        5,
    ),
    Bench(
        "exchange",
        ("benchmarks/remix_exchange.py",),
        tuple(
            Row(
                f"bytes exchanged per step, {number} of 20 experts, over reducing every basis",
                (f"experts_per_step={number}", "share_of_plain"),
                0.337 if number == 1 else 1.0,
                peer="one gradient per basis",
            )
            for number in (1, 2, 4, 8)
        ),
        2,
    ),
    Bench(
        "Ray",
        ("benchmarks/ray_train.py", "--workers", "2", "--images", "12800"),
        (Row("images/s of two workers under Ray over torchrun's", ("ratio",), 0.99, True, "torchrun"),),
        4,
    ),
    Bench(
        "gradient exchange",
        ("benchmarks/gradient_exchange.py", "--rounds", "7"),
        (
            _ratio(
                "step of two workers, gradients summed behind it over DDP's buckets",
                "flat over DDP",
                None,
                "one flat sum of gradients",
            ),
        ),
        2,
    ),
    Bench(
        "checkpoint",
        ("benchmarks/checkpoint_stall.py", "--rounds", "5"),
        (
            Row(
                "seconds a checkpoint of DiT-S/2 costs training, written beside it",
                ("stall_s", "beside", "median"),
                spread=(("stall_s", "beside", "least"), ("stall_s", "beside", "most")),
            ),
            Row(
                "seconds training waits for one",
                ("stall_s", "waited", "median"),
                spread=(("stall_s", "waited", "least"), ("stall_s", "waited", "most")),
            ),
            Row("seconds between checkpoints at which the cost is 1 %", ("seconds_between",)),
        ),
        5,
    ),
    Bench(
        "first step",
        ("benchmarks/first_step.py", "--rounds", "3"),
        (
            Row(
                "seconds from the command to the first eight steps", ("elapsed_s", "first_record"), 8, limit=_FIRST_STEP
            ),
            Row("of these until all is planned and Ray runs", ("elapsed_s", "planned_and_ray_started")),
            Row("of these until the first process has imported all", ("elapsed_s", "first_process_is_up")),
        ),
        3,
    ),
    Bench(
        "four experts",
        ("benchmarks/parallel_experts.py", "--seconds", "60"),
        (Row("four equal experts on two slots over twice one alone", ("ratio",), 1.03, peer="one expert alone"),),
        5,
    ),
    Bench(
        "many experts",
        ("benchmarks/thousand_experts.py",),
        (
            Row("makespan of 1,000 unequal experts on 256 GPUs over its lower bound", ("makespan_ratio",), 1.05),
            Row("goodput of the same, half of the nodes spot", ("goodput",), 0.97, True),
            *(
                Row(
                    f"makespan of {experts} unequal experts on {gpus} GPUs over its lower bound",
                    ("makespan_ratio_of_few", f"{experts} on {gpus}"),
                    1.05,
                )
                for experts, gpus in ((4, 2), (16, 4), (64, 8))
            ),
        ),
        1,
    ),
    Bench(
        "planning",
        ("benchmarks/planning.py",),
        (Row("seconds to plan 1,000 experts", ("elapsed_s",), 2), Row("MB that it takes", ("grown_mb",), 200)),
        0.5,
    ),
    Bench(
        "loader",
        ("benchmarks/loader.py",),
        (Row("share of a step spent waiting for data", ("loader_wait_share",), 0.02),),
        1,
    ),
    Bench(
        "data formats",
        ("benchmarks/data_formats.py",),
        (
            Row("images/s into training, of the prepared form", ("images_per_s", "prepared")),
            *(
                Row(f"the same over {what}", ("times", name), goal, True, what)
                for name, what, goal in (
                    ("npy", "a .npy file per image", 10),
                    ("png", "a PNG file per image", None),
                    ("ray data", "Ray Data over Parquet", None),
                )
            ),
        ),
        1.5,
    ),
    Bench(
        "prepare",
        ("benchmarks/prepare.py", "--images", "1000"),
        (
            Row(
                "images/s of data prepare over a plain loop's",
                ("ratio",),
                3,
                True,
                "a plain loop with Pillow",
                limit="The row below it is the most that these cores can do with the same pixels.",
            ),
            Row("what cannot be passed with the same pixels", ("bound",)),
        ),
        1,
    ),
    Bench(
        "Frechet distance",
        ("benchmarks/frechet.py",),
        (
            Row(
                "SciPy's seconds over ours, 2,048 features",
                ("rows", "SciPy sqrtm", "times_ours"),
                20,
                True,
                "SciPy",
                limit=_FRECHET,
            ),
            Row(
                "torch-fidelity's over ours",
                ("rows", "torch-fidelity", "times_ours"),
                20,
                True,
                "torch-fidelity",
                limit=_FRECHET,
            ),
            Row("ours less the closed form", ("rows", "rememe", "off_closed_form"), 1e-6),
        ),
        3,
    ),
    Bench(
        "search",
        ("benchmarks/search.py", "overhead"),
        (
            Row("seconds of a configuration of a search beside its own work", ("each_s",), 0.05),
            Row("the last quarter's over the first's", ("last_quarter_over_first",), 1.1),
            Row("MB by which the driver grows from the first quarter's end to the last's", ("driver_grown_mb",)),
        ),
        2,
    ),
)
"""In the order of the table."""


def found(report: Any, figure: tuple[str, ...]) -> float | None:
    """A figure of a report; None if it has none, as without a peer."""
    for name in figure:
        if not isinstance(report, dict) or name not in report:
            return None
        report = report[name]
    return float(report)
