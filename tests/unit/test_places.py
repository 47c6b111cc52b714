"""Names on disk: what they are, and that one module alone spells them."""

import ast
from pathlib import Path

from workloads.checkpoint import Checkpoint, CheckpointFolder
from workloads.places import EnsembleDir, JobDir, RunDir

ROOT = Path(__file__).parents[2]

OWNED = {
    *("result.json", "records.jsonl", "job.json", "coefficients.jsonl", "checkpoints", "curves", "failure.txt"),
    *("first-for", "ray-train", "config.yaml", "plan.json", "scores.json", "ensemble.json", "grid.png"),
}
"""Those that no other word of the program could be."""


def test_names_of_a_job() -> None:
    job = JobDir(Path("job"))
    files = [job.description, job.result, job.records, job.coefficients, job.lock, job.stop, job.failure, job.first_for]
    assert [file.name for file in files] == [
        *("job.json", "result.json", "records.jsonl", "coefficients.jsonl", ".lock", "stop", "failure.txt"),
        "first-for",
    ]
    folders = [job.checkpoints, job.curves, job.expert, job.remix, job.ray_train]
    assert [folder.name for folder in folders] == ["checkpoints", "curves", "expert", "remix", "ray-train"]
    assert {place.parent for place in (*files, *folders)} == {Path("job")}


def test_names_of_a_run() -> None:
    run = RunDir(Path("run"))
    assert [str(file) for file in (run.config, run.plan, run.scores, run.grid, run.ensemble.index)] == [
        *("run/config.yaml", "run/plan.json", "run/scores.json", "run/grid.png", "run/ensemble/ensemble.json")
    ]
    assert str(run.samples("0a1b")) == "run/samples/0a1b"
    assert str(run.figure("loss_matrix")) == "run/figures/loss_matrix.png"
    assert str(run.other_grid("fid2k", "0123456789abcdef")) == "run/grid-fid2k-01234567.png"
    ensemble = EnsembleDir(Path("e"))
    places = (ensemble.expert(0), ensemble.expert(11), ensemble.expert(999), ensemble.remix, ensemble.vae)
    assert [place.name for place in places] == ["expert_00", "expert_11", "expert_999", "remix", "vae"]


def test_the_newest_checkpoint_is_known_by_its_name(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    assert job.checkpointed_images() is None
    folder = CheckpointFolder(job.checkpoints, "key")
    for images_seen in (96, 1024, 128):
        folder.save(Checkpoint(images_seen, {}))
    (job.checkpoints / ".000000009999.1.partial").mkdir()
    assert job.checkpointed_images() == 1024
    folder.clear()
    assert job.checkpointed_images() is None


def test_no_other_module_spells_them() -> None:
    for file in (ROOT / "workloads").rglob("*.py"):
        words = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        assert file.name == "places.py" or not OWNED & words, file
