"""Where images come from. Every kind is turned into the same prepared shards before training."""

from typing import Annotated, Literal

from pydantic import Field

from workloads.config.base import StrictConfig, UserPath


class _DataFields(StrictConfig):
    image_size: int = Field(32, ge=4, le=16384)
    """Height and width of the images the network sees, in pixels (or latent cells for latents)."""

    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour; images of the other kind are converted. Latents keep their own."""

    num_classes: int | None = Field(None, ge=1, le=10_000_000)
    """Number of classes you expect; more in the data is an error. None: as many as the data has."""

    class_conditional: bool = False
    """Tell the network the class of each image."""

    flip: bool = False
    """Show each image mirrored with probability 1/2."""

    held_out: int = Field(0, ge=0)
    """Images kept out of training, to measure the denoising loss on; the same ones for every seed."""


class EmbeddedData(_DataFields):
    """10,000 Fashion-MNIST images that ship with the package (MIT licence)."""

    kind: Literal["embedded"] = "embedded"
    image_size: int = Field(28, ge=4, le=16384)
    """Height and width in pixels; the images are 28 x 28."""

    channels: Literal[1, 3] = 1
    """1 for grey (what the images are), 3 to repeat the grey channel."""


class FolderData(_DataFields):
    """A folder of images, one subfolder per class."""

    kind: Literal["folder"] = "folder"
    path: UserPath
    """The folder; each subfolder is a class, classes are numbered in alphabetical order."""


class ParquetData(_DataFields):
    """A directory of Parquet files in the Hugging Face layout: image{bytes, path}, label."""

    kind: Literal["parquet"] = "parquet"
    path: UserPath
    """The directory (or one file)."""


class TorchvisionData(_DataFields):
    """A torchvision data set that is already on disk."""

    kind: Literal["torchvision"] = "torchvision"
    dataset: str
    """Name of the class in torchvision.datasets, for instance FashionMNIST."""

    path: UserPath
    """The root directory torchvision was given when it downloaded the data."""

    split: Literal["train", "test"] = "train"
    """Which part to use."""


class CIFAR10Data(_DataFields):
    """CIFAR-10 from torchvision's download (cifar-10-batches-py) or from an .npz of uint8 arrays."""

    kind: Literal["cifar10"] = "cifar10"
    path: UserPath
    """An .npz with train_images, train_labels, test_images, test_labels, or torchvision's root directory."""

    split: Literal["train", "test"] = "train"
    """Which part to use."""


class PreparedData(_DataFields):
    """What `rememe data prepare` wrote: Arrow shards of uint8 images or VAE latents with a manifest."""

    kind: Literal["prepared"] = "prepared"
    path: UserPath
    """The directory that holds manifest.json."""

    channels: Literal[1, 3, 4, 16] = 3  # type: ignore[assignment]
    """Of images: must be what the data has. Of latents: what `rememe plan` assumes before they are there."""


AnyData = Annotated[
    EmbeddedData | FolderData | ParquetData | TorchvisionData | CIFAR10Data | PreparedData,
    Field(discriminator="kind"),
]
