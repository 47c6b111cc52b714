"""What mlflow.pyfunc.load_model calls to load an ensemble that rememe train has logged as a model."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from pandas import DataFrame

    from workloads.ensemble import Ensemble


class EnsembleModel:
    """Draws an image per row.

    Columns: seed, as of `rememe sample --seed`; index, which of that seed's images, by default the row's number; label,
    the class, by default that of the image of this index. So rows of one seed alone give what `rememe sample` draws.
    """

    def __init__(self, ensemble: "Ensemble") -> None:
        self._ensemble = ensemble

    def predict(self, data: "DataFrame", params: dict[str, Any] | None = None) -> "DataFrame":
        """Column png: a PNG file in base64. params: sampler, num_steps and guidance_scale, unless the run's own.

        Raises ConfigError for classes or settings that do not go with the run.
        """
        import pandas as pd

        from workloads.evaluation.draw import sampling_protocol
        from workloads.evaluation.generate import batch_indices, generate, image_seeds, labels_of

        ensemble, num = self._ensemble, len(data)
        protocol = sampling_protocol(ensemble.config, num, 0, _given(params or {}))
        indices = [int(index) for index in data["index"]] if "index" in data else list(range(num))
        seeds = [image_seeds(int(seed), [index])[0] for seed, index in zip(data["seed"], indices, strict=True)]
        labels_N = labels_of(indices, ensemble.num_classes)
        if "label" in data:
            labels_N = _checked(data["label"], ensemble.num_classes)
        images: list[str] = []
        # The batches that rememe sample makes: the last bits of an image depend on what else is in its batch.
        for rows in batch_indices(protocol):
            part = slice(rows.start, rows.stop)
            images += map(_png, generate(ensemble, protocol.sampling, seeds[part], labels_N[part]).numpy())
        return pd.DataFrame({"png": images}, index=data.index)


def _load_pyfunc(data_path: str) -> EnsembleModel:
    import torch

    from workloads.ensemble import Ensemble

    return EnsembleModel(Ensemble.load(Path(data_path), "cuda" if torch.cuda.is_available() else "cpu"))


def _given(params: dict[str, Any]) -> dict[str, Any]:
    """Without those that are as MLflow fills them in."""
    left_out = {"sampler": "", "num_steps": 0, "guidance_scale": -1.0}
    return {name: value for name, value in params.items() if value is not None and value != left_out.get(name)}


def _checked(labels: Any, num_classes: int | None) -> Any:
    import torch

    from workloads.errors import ConfigError

    if num_classes is None:
        raise ConfigError("label is given, but the networks were not told classes; leave it out")
    numbers = [int(label) for label in labels]
    if wrong := [number for number in numbers if not 0 <= number < num_classes]:
        raise ConfigError(f"label is {wrong[0]}; classes are 0 to {num_classes - 1}")
    return torch.tensor(numbers)


def _png(image_CHW: Any) -> str:
    pixels = image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()
