"""What the report says in words. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.search.study.options import FULL, QUICK
from orchestrator.search.study.trial import Rung, Trial, factor_saved, metric_name, total_images
from orchestrator.terminal.words import si
from workloads.evaluation.estimates import Estimate

GOOD, POOR = 0.7, 0.4
"""Rank correlations from which, and below which, one score is called a good and a poor guide to another."""

MIN_JUDGED = 5
"""Fewer configurations do not tell whether a rank correlation is good or poor."""

STATES = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "interrupted": "to be gone on with"}
MAX_TIED = 8


def protocol(rung: Rung, description: Mapping[str, Any]) -> str:
    """What a score was measured by, as far as the study's description tells."""
    if not rung.protocol_hash:
        held_out = description.get("ladder", {}).get("held_out") or {}
        how = f", {held_out['num_images']} images in each of {held_out['num_bins']} parts" if held_out else ""
        return f"{metric_name(rung)}: loss on images kept out of training{how}"
    raw = description.get({FULL: "evaluation", QUICK: "quick"}.get(rung.name, ""), None) or {}
    sampling = raw.get("sampling", {})
    words = [f"protocol {raw['name']}"] if "name" in raw else []
    words += [f"{rung.num_samples:,} samples"]
    words += [f"{sampling['sampler']} with {sampling['num_steps']} steps"] if sampling else []
    words += [f"guidance {sampling['guidance_scale']:g}"] if sampling.get("guidance_scale", 1) != 1 else []
    doubts = f"; not trustworthy: {'; '.join(rung.doubts)}" if rung.doubts else ""
    return f"{metric_name(rung)}: {', '.join(words)}, hash {rung.protocol_hash[:8]}{doubts}"


def counts(trials: Sequence[Trial]) -> str:
    """How many configurations there are, by what became of them."""
    if not trials:
        return "No configuration has been begun."
    found = [(sum(trial.state == state for trial in trials), words) for state, words in STATES.items()]
    found.append((sum(trial.state == "running" for trial in trials), "running"))
    said = [f"{number} {words}" for number, words in found if number]
    return f"{len(trials)} configuration{'s' if len(trials) > 1 else ''}: {', '.join(said)}."


def score(rung: Rung | None) -> str:
    """A score and half of its 95 % interval."""
    if rung is None:
        return ""
    half = Estimate(rung.value, rung.stderr).spread("±")
    return f"{rung.value:.4g}{half}{' (not trustworthy)' if rung.doubts else ''}"


def other(rung: Rung | None, name: str) -> str:
    """The same of another metric."""
    if rung is None or name not in rung.others:
        return "not available" if rung is not None and name in rung.unavailable else ""
    found = rung.others[name]
    return f"{found.value:.4g}{found.spread('±')}"


def interval(rung: Rung) -> str:
    """A score and its 95 % interval."""
    if rung.doubts:
        return f"{rung.value:.4g} (not trustworthy: {'; '.join(rung.doubts)})"
    if rung.stderr is None:
        return f"{rung.value:.4g} (its spread was not measured)"
    lo, hi = Estimate(rung.value, rung.stderr).interval
    return f"{rung.value:.4g} (95 % interval {lo:.4g} to {hi:.4g})"


def ties(tied: Sequence[Trial]) -> str:
    """Which configurations are as good as the best, for all that is known."""
    if not tied:
        return "No other is tied with it."
    names = [f"#{trial.number}" for trial in tied[:MAX_TIED]]
    if len(tied) > MAX_TIED:
        names.append(f"{len(tied) - MAX_TIED} more")
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"It is tied with {listed}: a difference inside its own 95 % interval is called a tie."


def saved(trials: Sequence[Trial]) -> str:
    """What the store saved."""
    jobs = [job for trial in trials for job in trial.jobs]
    if not jobs:
        return "Nothing has been trained yet."
    distinct, trained_here = len({job.key for job in jobs}), sum(job.trained for job in jobs)
    trained, reused = total_images(trials)
    if not trained:
        return (
            f"All {distinct} experts were trained before this study; {si(reused).strip()} training images were reused."
        )
    return (
        f"Its configurations have {len(jobs)} experts together: {trained_here} were trained for it and "
        f"{len(jobs) - trained_here} reused. {si(trained).strip()} training images did the work of "
        f"{si(trained + reused).strip()}, a factor of {factor_saved(trained, reused):.2f} saved."
    )


def trust(correlation: float | None, number: int, *, poor: str) -> str:
    """What a rank correlation over that many configurations means; poor: what follows from a poor one."""
    if correlation is None:
        return f"{number} configurations have both, too few or too alike to tell."
    said = f"rank correlation {correlation:.2f} over {number} configurations"
    if number < MIN_JUDGED:
        return f"{said}, too few to rely on."
    if correlation >= GOOD:
        return f"{said}: good, it can be trusted to choose which configurations go on."
    if correlation < POOR:
        return f"{said}: poor: {poor}."
    return f"{said}: fair, it sorts out the worst but does not find the best."
