"""The whole run description: one RunConfig is one configuration."""

from typing import Any

from pydantic import Field, model_validator

from workloads.config.base import Name, StrictConfig, UserPath, Whole, merge
from workloads.config.data import AnyData
from workloads.config.diffusion import DiffusionConfig
from workloads.config.evaluation import OWN_SAMPLERS, VARIANCE_SAMPLERS, ProtocolConfig
from workloads.config.execution import ExecutionConfig, Resources
from workloads.config.intervals import IntervalTable, check_cuts
from workloads.config.job import CommonFields, DataSpec, InitialConversion, InitialWeights, Job
from workloads.config.models import AnyModel
from workloads.config.strategy import AnyStrategy
from workloads.config.training import TrainingConfig


class RunConfig(StrictConfig):
    """Data, diffusion, architecture, strategy, training and the protocol of the score."""

    name: Name
    """Name of the run; becomes part of its directory's name."""

    seed: Whole = Field(0, ge=0)
    """Seed of every draw in training."""

    data: AnyData
    """Where images come from."""

    diffusion: DiffusionConfig = DiffusionConfig()
    """Noise schedule and objective."""

    model: AnyModel
    """The architecture; MEME experts say how theirs differ."""

    strategy: AnyStrategy
    """How experts come to be."""

    initial_weights: UserPath | None = None
    """Weights every network, or every basis, starts from: a finished run of one network, an expert's directory,
    a file (.safetensors, or .pt as trainers of DiTs write), the index of one in parts, or a diffusers directory.
    Averaged weights are preferred. A remix may also start from a run of a smaller remix."""

    initial_conversion: InitialConversion | None = None
    """What may be made of initial_weights that are not quite of this network: classes, variance, positions.
    None: nothing."""

    training: TrainingConfig
    """Optimisation and budget."""

    evaluation: ProtocolConfig
    """How the score is measured."""

    reference: AnyData | None = None
    """Images the score compares with; None: those of `data`. Needed where `data` holds latents."""

    execution: ExecutionConfig = ExecutionConfig()
    """Resources and supervision; changes no result."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_expert_models(cls, raw: Any) -> Any:
        """Complete each MEME expert's `model` from the run's `model`."""
        strategy = raw.get("strategy") if isinstance(raw, dict) else None
        if not (isinstance(strategy, dict) and isinstance(strategy.get("experts"), list | tuple)):
            return raw
        base = raw.get("model")
        experts = [
            expert | {"model": merge(base, expert.get("model", {}))} if isinstance(expert, dict) else expert
            for expert in strategy["experts"]
        ]
        return raw | {"strategy": strategy | {"experts": experts}}

    @model_validator(mode="after")
    def _check_across_sections(self) -> "RunConfig":
        try:
            check_cuts(self.strategy.resolve_cuts(self.diffusion.num_timesteps), self.diffusion.num_timesteps)
        except ValueError as error:
            raise ValueError(f"strategy.{error}") from None
        self.strategy.check_run(self.execution, self.training)
        self._check_fewer_workers()
        for model in self.strategy.architectures or (self.model,):
            model.check_size(self.data.image_size)
        self._check_shared_gpus()
        if self.initial_conversion is not None and self.initial_weights is None:
            raise ValueError(
                "initial_conversion converts initial_weights, and there are none; give some or leave it out"
            )
        if self.reference is not None and self.reference.held_out:
            raise ValueError(
                f"reference.held_out is {self.reference.held_out}; scores compare with all images, leave it out"
            )
        # Mixer blocks cannot; diffusers would refuse too, but only when training begins.
        if self.training.activation_checkpointing and self.model.kind == "iunet":
            raise ValueError("training.activation_checkpointing does not go with model.kind iunet; set it to false")
        self._check_sampling()
        return self

    def _check_sampling(self) -> None:
        sampling = self.evaluation.sampling
        if sampling.num_steps > self.diffusion.num_timesteps:
            raise ValueError(
                f"evaluation.sampling.num_steps {sampling.num_steps} exceeds "
                f"diffusion.num_timesteps {self.diffusion.num_timesteps}"
            )
        if sampling.guidance_scale != 1 and not self.data.class_conditional:
            raise ValueError(
                f"evaluation.sampling.guidance_scale {sampling.guidance_scale} needs data.class_conditional: true"
            )
        learned = {getattr(model, "variance", "fixed") for model in self.strategy.architectures or (self.model,)}
        if sampling.variance == "learned" and "learned" not in learned:
            raise ValueError(
                "evaluation.sampling.variance is learned, but no network learns one; set model.variance to learned or "
                "leave it out"
            )
        leaves_out = sampling.variance == "fixed" or "variance_type" in sampling.options
        if "learned" in learned and sampling.sampler not in {*OWN_SAMPLERS, *VARIANCE_SAMPLERS} and not leaves_out:
            raise ValueError(
                f"evaluation.sampling.sampler {sampling.sampler} cannot take the learned variance of model.variance; "
                "set the sampler to ddpm, or evaluation.sampling.variance to fixed to leave it out"
            )

    def _check_fewer_workers(self) -> None:
        fewest = self.execution.min_workers
        if fewest is None:
            return
        if fewest > self.num_workers:
            raise ValueError(
                f"execution.min_workers is {fewest}, but only {self.num_workers} are wanted for each job; lower it, or "
                "raise execution.workers_per_expert (of a remix: execution.num_workers)"
            )
        # Room for more of them is looked for on any node.
        if self.execution.placement == "STRICT_PACK":
            raise ValueError(
                "execution.min_workers does not go with execution.placement STRICT_PACK, which has all workers on one "
                "node; say PACK"
            )

    def _check_shared_gpus(self) -> None:
        if self.num_workers == 1:
            return
        for index in range(self.strategy.num_jobs):
            if 0 < (share := self.expert_resources(index).num_gpus) < 1:
                raise ValueError(
                    f"num_gpus is {share:g} for each of {self.num_workers} workers of one job, but NCCL does not let "
                    "them share a GPU; give each a whole one, or use one worker"
                )

    @property
    def num_workers(self) -> int:
        """How many workers train each job together."""
        return self.strategy.num_workers(self.execution)

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """How many workers may train each job together, the most first; several only with execution.min_workers."""
        fewest = self.execution.min_workers or self.num_workers
        counts = range(self.num_workers, fewest - 1, -1)
        return tuple(count for count in counts if self.strategy.can_share(count, self.training))

    @property
    def intervals(self) -> IntervalTable:
        """Which expert owns which timesteps."""
        return IntervalTable(self.strategy.resolve_cuts(self.diffusion.num_timesteps), self.diffusion.num_timesteps)

    def jobs(self, data: DataSpec, initial: InitialWeights | None = None) -> tuple[Job, ...]:
        """What is to be trained, nearest the clean image first."""
        common = CommonFields(
            diffusion=self.diffusion, data=data, training=self.training, seed=self.seed, initial=initial
        )
        return self.strategy.jobs(self.model, common)

    def expert_resources(self, index: int) -> Resources:
        """What expert `index` asks of the cluster."""
        return self.strategy.resources_of(index) or self.execution.resources
