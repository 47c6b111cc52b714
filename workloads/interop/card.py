"""A model card: what was exported, what made it, how good it is, and how it is used. As model hubs read them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from workloads.config import RunConfig
from workloads.config.text import parse_yaml
from workloads.ensemble import Ensemble
from workloads.errors import ConfigError
from workloads.evaluation.protocol import Score
from workloads.interop.forms import Exported, Form

CARD = "README.md"
"""What hubs show of a directory."""

TASK = "unconditional-image-generation"
"""The hubs' word for images without a text."""

UNKNOWN = "not stated beside its file; find it out before you share what was made of it"


@dataclass(frozen=True)
class CardFacts:
    """What a card says that is not in the ensemble."""

    scores: Sequence[Score]
    description: str
    """Name of the file beside the card that is the run's description."""

    commands: Sequence[str]
    """That made it, in order."""

    license: str | None
    """Of the export, by the user's word."""

    start_license: str | None
    """Of the weights it started from."""


def model_card(ensemble: Ensemble, form: Form, exported: Exported, facts: CardFacts) -> str:
    """The text of README.md: a YAML header, and Markdown."""
    config = ensemble.config
    header = ModelCardData(
        model_name=config.name,
        license=facts.license,
        library_name="diffusers" if exported.pipeline is not None else None,
        pipeline_tag=TASK,
        tags=["diffusion", "image-generation", "rememe", f"strategy:{config.strategy.kind}"],
        eval_results=[_result(config, score) for score in facts.scores] or None,
    )
    parts = [
        f"# {config.name}",
        _introduction(ensemble, exported),
        "## Use",
        _use(form, ensemble, exported),
        "## Experts",
        "\n".join(_experts(ensemble, exported)),
        "## Training",
        "\n".join(_training(ensemble, facts)),
        "## Score",
        "\n".join(_scores(facts.scores)),
        "## Made with",
        "```\n" + "\n".join(facts.commands) + "\n```",
    ]
    return f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def license_beside(weights: Path) -> str | None:
    """What a model card or a licence beside weights, or one directory up, says of them; None if nothing does."""
    folder = weights if weights.is_dir() else weights.parent
    for place in (folder, folder.parent):
        if (card := place / CARD).is_file() and (said := _licence_of(card)) is not None:
            return f"{said} ({card.name} beside it)"
        for file in sorted(place.glob("LICEN[CS]E*")):
            lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.is_file() else []
            if first := next((line.strip() for line in lines if line.strip()), None):
                return f"{first[:100]} ({file.name} beside it)"
    return None


def _licence_of(card: Path) -> str | None:
    header = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        said = None if header is None else parse_yaml(header[1], str(card))
    except ConfigError:
        return None
    return str(said["license"]) if isinstance(said, dict) and said.get("license") else None


def _introduction(ensemble: Ensemble, exported: Exported) -> str:
    shape = "x".join(map(str, ensemble.shape_CHW))
    what = f"{shape} latents" if ensemble.index.latent is not None else f"{shape} images"
    classes = f"of {ensemble.num_classes} classes" if ensemble.num_classes is not None else "without classes"
    total = len(ensemble.intervals)
    of = f"{len(exported.experts)} of {total} experts" if len(exported.experts) < total else f"{total} expert(s)"
    objective, num_timesteps = ensemble.diffusion.objective, ensemble.diffusion.num_timesteps
    return (
        f"A diffusion model over {what} {classes}: {of}, strategy `{ensemble.config.strategy.kind}`, which predict "
        f"`{objective}` at {num_timesteps} timesteps (schedule `{ensemble.diffusion.schedule}`). "
        "Trained with rememe; `rememe` must be installed where a class is said to be its own."
    )


def _use(form: Form, ensemble: Ensemble, exported: Exported) -> str:
    if exported.pipeline is None:
        return (
            "One file per expert, whose metadata has `class`, `config` and `timesteps` (from, up to but without).\n\n"
            "```python\nfrom safetensors.torch import load_file\n\n"
            f'weights = load_file("expert_{exported.experts[0]:02d}.safetensors")\n```'
        )
    kind, sampling = exported.pipeline.__name__, ensemble.config.evaluation.sampling
    source = "diffusers" if exported.pipeline.__module__.startswith("diffusers.") else "rememe"
    asked = "class_labels=[0], " if ensemble.num_classes is not None else ""
    guided = f"guidance_scale={sampling.guidance_scale:g}, "
    wan = ""
    if form == "wan":
        wan = "\n\n`transformer` denoises where `t >= boundary_ratio * num_train_timesteps`, `transformer_2` below."
    return (
        f"```python\nimport torch\nfrom {source} import {kind}\n\n"
        f'pipe = {kind}.from_pretrained("PATH OF THIS DIRECTORY")\n'
        f"images = pipe({asked}num_inference_steps={sampling.num_steps}, {guided}"
        f"generator=torch.manual_seed(0)).images\n```{wan}"
    )


def _experts(ensemble: Ensemble, exported: Exported) -> Iterator[str]:
    yield "| expert | timesteps | class | parameters |"
    yield "|--:|---|---|--:|"
    for index, network, size in zip(exported.experts, exported.networks, exported.num_parameters, strict=True):
        yield f"| {index} | {ensemble.intervals[index]} | `{network}` | {size:,} |"


def _training(ensemble: Ensemble, facts: CardFacts) -> Iterator[str]:
    config, data, training = ensemble.config, ensemble.data, ensemble.config.training
    jobs = config.jobs(data)
    flip = ", mirrored at random" if data.flip else ""
    yield f"- Data: `{config.data.kind}`, {data.image_size} x {data.image_size} x {data.channels}{flip}; "
    yield f"  content `{data.fingerprint[:16]}`" + (f", {data.held_out} images held out" if data.held_out else "")
    yield (
        f"- Budget: {sum(job.training.images for job in jobs):,} images seen in {len(jobs)} job(s), batches of "
        f"{training.batch_size}, peak learning rate {training.learning_rate:g}, seed {config.seed}"
    )
    if config.initial_weights is not None:
        yield f"- Started from `{config.initial_weights.name}`; its licence: {facts.start_license or UNKNOWN}"
    yield f"- Licence of these weights: {facts.license or 'not stated'}"
    yield f"- All settings: [{facts.description}]({facts.description})"


def _scores(scores: Sequence[Score]) -> Iterator[str]:
    if not scores:
        yield "Not measured."
        return
    yield "| metric | value, 95 % interval over samples | samples | protocol |"
    yield "|---|---|--:|---|"
    for score in scores:
        protocol = f"{score.protocol.get('name')} `{score.protocol_hash}`"
        yield f"| {score.name} | {score.value:.4g}{score.half_width} | {score.num_samples:,} | {protocol} |"
        for words in score.other_words:
            name, _, value = words.partition(" ")
            yield f"| {name} | {value} | {score.num_samples:,} | {protocol} |"
    yield ""
    for score in scores:
        said: Any = score.protocol["sampling"]
        drawn = f"{said['sampler']}, {said['num_steps']} steps, guidance {said['guidance_scale']:g}"
        yield f"- `{score.protocol_hash}`: {drawn}; seed {score.protocol['seed']}"
        if score.warning:
            yield f"- {score.name} under `{score.protocol_hash}` is {score.warning}"
    yield "- Scores of different protocols are not comparable."


def _result(config: RunConfig, score: Score) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type=config.data.kind,
        dataset_name=config.data.kind,
        metric_type=re.sub(r"\W", "-", score.name),
        metric_value=score.value,
        metric_name=f"{score.name}{score.half_width} ({score.protocol.get('name')} {score.protocol_hash})",
    )
