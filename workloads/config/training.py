"""Optimisation. Progress is counted in images seen, so batch size does not change schedules."""

from typing import Annotated, Literal

from pydantic import Field

from workloads.config.base import Flag, Real, StrictConfig, Whole

Decay = Annotated[Real, Field(ge=0, lt=1)]


class TrainingConfig(StrictConfig):
    """One job's training; every job of a run gets the same."""

    images: Whole = Field(ge=1)
    """Training images a job sees, rounded up to whole batches: each expert's own where experts are trained alone,
    all experts' together in a remix."""

    batch_size: Whole = Field(128, ge=1)
    """Images per optimiser step, over all workers."""

    micro_batch_size: Whole | None = Field(None, ge=1)
    """Images per forward and backward pass; a batch is accumulated from several. None: as many as possible."""

    learning_rate: Real = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""

    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or cosine to zero at the end."""

    warmup_images: Whole = Field(0, ge=0)
    """Images over which the learning rate rises linearly from zero."""

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's moment decay rates."""

    weight_decay: Real = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""

    clip_grad_norm: Real | None = Field(1.0, gt=0)
    """Largest gradient norm; None: no clipping."""

    ema_halflife_images: Real | None = Field(500_000, gt=0)
    """Half-life of the weight average used for sampling, in images; None: sample with the raw weights."""

    ema_rampup: Real | None = Field(0.05, gt=0)
    """Limit the half-life to this share of the images seen so far, so that early averages forget the start."""

    label_dropout: Real = Field(0.1, ge=0, le=1)
    """Probability of hiding the class, for classifier-free guidance; used when data.class_conditional."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast the forward pass; weights and optimiser stay fp32. On a CPU faster only with AMX, else slower."""

    channels_last: Flag = False
    """Lay convolution tensors out channels-last; faster on most hardware."""

    activation_checkpointing: Flag = False
    """Compute activations twice instead of keeping them: less memory, about a third more time."""

    compile: Flag = False
    """torch.compile the network."""

    checkpoint_every_images: Whole = Field(100_000, ge=1)
    """How often a checkpoint is written; does not change the result."""

    log_every_images: Whole = Field(1_000, ge=1)
    """How often loss and speed are reported; does not change the result."""

    num_pictures: Whole = Field(10, ge=0)
    """How often, evenly over training, what a network draws is kept as a picture, besides once before: samples of the
    same seeds, if it denoises all timesteps, and the same images denoised at its interval's middle. Fewer or none where
    they would take more than 1 % of training; 0: never. Does not change the result."""
