"""Where images come from. Every kind is turned into the same prepared shards before training."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from workloads.config.base import Flag, StrictConfig, UserPath, Whole, not_a_flag

SparseLabels = Literal["refuse", "remap", "keep"]
MissingParts = Literal["refuse", "accept"]
PixelChannels = Annotated[Literal[1, 3], BeforeValidator(not_a_flag)]


class _DataFields(StrictConfig):
    image_size: Whole = Field(32, ge=4, le=16384)
    """Height and width of the images the network sees, in pixels (or latent cells for latents)."""

    channels: PixelChannels = 3
    """1 for grey, 3 for colour; images of the other kind are converted. Latents keep their own."""

    num_classes: Whole | None = Field(None, ge=1, le=10_000_000)
    """Number of classes you expect; more in the data is an error. None: as many as the data has."""

    class_conditional: Flag = False
    """Tell the network the class of each image."""

    flip: Flag = False
    """Show each image mirrored with probability 1/2."""

    held_out: Whole = Field(0, ge=0)
    """Images kept out of training, to measure the denoising loss on; the same ones for every seed."""


class EmbeddedData(_DataFields):
    """10,000 Fashion-MNIST images that ship with the package (MIT licence)."""

    kind: Literal["embedded"] = "embedded"
    image_size: Whole = Field(28, ge=4, le=16384)
    """Height and width in pixels; the images are 28 x 28."""

    channels: PixelChannels = 1
    """1 for grey (what the images are), 3 to repeat the grey channel."""


class _FileData(_DataFields):
    path: UserPath
    """Where they lie."""

    split: str | None = None
    """Which part to use where names of folders or files speak of parts (train, val, test). None: train."""

    one_class: Flag = False
    """Read all images as one class, whatever folders or labels say."""


class _LabelledData(_FileData):
    label_column: str | None = None
    """Column (or field) of the labels; "none" for images of one class. None: the one that is clearly meant."""

    sparse_labels: SparseLabels = "refuse"
    """What to do with labels that leave most numbers out: refuse them, remap them to 0, 1, 2, ..., or keep them."""


class FolderData(_LabelledData):
    """A folder of images, one subfolder per class, or with the labels in a metadata.csv or metadata.jsonl."""

    kind: Literal["folder"] = "folder"
    path: UserPath
    """The folder; each subfolder is a class, classes are numbered in alphabetical order."""


class _PartsData(_LabelledData):
    missing_parts: MissingParts = "refuse"
    """What to do where one of several files is missing that the others count, as 00001-of-00003: refuse, or accept."""


class ArchiveData(_PartsData):
    """Images in a zip (also EDM2's, with dataset.json), a tar or a folder of tars (also WebDataset's)."""

    kind: Literal["archive"] = "archive"
    path: UserPath
    """The file, or the folder of tars."""


class _TableData(_PartsData):
    image_column: str | None = None
    """Column of the images. None: the one that is clearly meant."""


class ParquetData(_TableData):
    """A directory of Parquet files, as Hugging Face has them: image{bytes, path}, label."""

    kind: Literal["parquet"] = "parquet"
    path: UserPath
    """The directory (or one file)."""


class ArrowData(_TableData):
    """What Hugging Face's save_to_disk wrote."""

    kind: Literal["arrow"] = "arrow"
    path: UserPath
    """The directory (or one .arrow file)."""


class LatentFilesData(_DataFields):
    """Latents in one .npy each, (1, C, H, W) or (C, H, W), with the labels in another: what trainers of DiT use."""

    kind: Literal["latent_files"] = "latent_files"
    path: UserPath
    """The directory that holds a folder ..._features and a folder ..._labels."""

    vae: UserPath
    """Directory of the diffusers AutoencoderKL or VQModel that made them, already scaled by its factor."""

    channels: Annotated[Literal[4, 16], BeforeValidator(not_a_flag)] = 4  # type: ignore[assignment]
    """Of the latents."""


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

    channels: Annotated[Literal[1, 3, 4, 16], BeforeValidator(not_a_flag)] = 3  # type: ignore[assignment]
    """Of images: must be what the data has. Of latents: what `rememe plan` assumes before they are there."""


AnyData = Annotated[
    EmbeddedData
    | FolderData
    | ArchiveData
    | ParquetData
    | ArrowData
    | LatentFilesData
    | TorchvisionData
    | CIFAR10Data
    | PreparedData,
    Field(discriminator="kind"),
]
