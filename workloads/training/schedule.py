"""Learning rate as a function of images seen."""

import math

from workloads.config.training import TrainingConfig


def learning_rate(config: TrainingConfig, images_seen: int) -> float:
    """Linear warm-up from zero, then constant or half a cosine down to zero at the end of the budget."""
    rate = config.learning_rate
    if images_seen < config.warmup_images:
        return rate * images_seen / config.warmup_images
    if config.lr_schedule == "constant":
        return rate
    span = max(1, config.images - config.warmup_images)
    progress = min(1.0, (images_seen - config.warmup_images) / span)
    return rate * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_remark(config: TrainingConfig) -> str:
    """That the warm-up is longer than the training; empty if it is not."""
    if config.warmup_images <= config.images:
        return ""
    return (
        f"training.warmup_images {config.warmup_images:,} is more than training.images {config.images:,}: "
        f"the learning rate never reaches {config.learning_rate:g}"
    )
