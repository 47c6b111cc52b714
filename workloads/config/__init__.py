"""The typed run description. Never imports torch, so that planning and --help stay fast."""

from workloads.config.data import AnyData
from workloads.config.diffusion import DiffusionConfig
from workloads.config.evaluation import ProtocolConfig, SamplingConfig
from workloads.config.execution import ExecutionConfig, Resources
from workloads.config.intervals import Interval, IntervalTable
from workloads.config.job import DataSpec, ExpertJob, InitialWeights, Job
from workloads.config.load import load_config
from workloads.config.models import AnyModel, DiTConfig, IUNetConfig, LDMUNetConfig
from workloads.config.run import RunConfig
from workloads.config.strategy import AnyStrategy, Independent, Meme, Remix, RemixJob, Single
from workloads.config.training import TrainingConfig

__all__ = [
    "AnyData",
    "AnyModel",
    "AnyStrategy",
    "DataSpec",
    "DiTConfig",
    "DiffusionConfig",
    "ExecutionConfig",
    "ExpertJob",
    "IUNetConfig",
    "Independent",
    "InitialWeights",
    "Interval",
    "IntervalTable",
    "Job",
    "LDMUNetConfig",
    "Meme",
    "ProtocolConfig",
    "Remix",
    "RemixJob",
    "Resources",
    "RunConfig",
    "SamplingConfig",
    "Single",
    "TrainingConfig",
    "load_config",
]
