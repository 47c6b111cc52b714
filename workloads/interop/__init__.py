"""Trained experts in the forms of other tools: pipelines of diffusers, plain safetensors, a model card.

Needs torch, diffusers and safetensors; a script of diffusers imports `MultiExpertPipeline` from rememe.
"""

from workloads.interop.experts import TimestepExperts
from workloads.interop.pipeline import MultiExpertPipeline, TwoExpertPipeline, sample_generators

__all__ = ["MultiExpertPipeline", "TimestepExperts", "TwoExpertPipeline", "sample_generators"]
