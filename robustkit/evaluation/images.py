"""Images with labels from a folder, as pixels that a classifier takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustkit.classifiers.images import ImageClassifier
from robustkit.evaluation.inputs import label_numbers, saved_dataset

__all__ = ["PICTURES", "LabelledImages", "class_names", "holds_images", "read_labelled_images"]

PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings of files that are taken for pictures."""


class LabelledImages:
    """A map-style data set of pixels and labels; a picture is read when it is asked for.

    Args:
        openers: Functions that give a Pillow image each.
        labels: Numbers of classes.
        classifier: Whose processor resizes the images. One of a single channel gets them in grey.
        names: What each is called, such as its file.

    Attributes:
        labels: See above.
        names: See above.

    Raises:
        ValueError: The classifier has no processor.
    """

    def __init__(
        self,
        openers: Sequence[Callable[[], Any]],
        labels: Sequence[int],
        classifier: ImageClassifier,
        names: Sequence[str],
    ) -> None:
        if classifier.processor is None:
            raise ValueError("the classifier has no image processor, so nobody knows the size of its images")
        self._openers, self.labels, self.names = list(openers), list(labels), list(names)
        self._processor: Any = classifier.processor
        config = getattr(classifier.model, "config", None)
        self._mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Pixels float32 ``(channels, height, width)`` in [0, 1] and the label.

        Raises:
            ValueError: The file is no image that can be read.
        """
        from PIL import ImageOps

        image = ImageOps.exif_transpose(self._openers[index]()).convert(self._mode)
        found: Tensor = self._processor([image], do_normalize=False, return_tensors="pt")["pixel_values"][0]
        return found.clamp(0, 1), self.labels[index]

    def take(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pixels ``(n, channels, height, width)`` and labels int64 ``(n,)`` of some images."""
        found = [self[row] for row in rows]
        return torch.stack([pixels for pixels, _ in found]), torch.tensor([label for _, label in found])


def holds_images(path: str | Path) -> bool:
    """Whether data are images: a folder that is no saved data set of texts.

    Raises:
        FileNotFoundError: There is neither a file nor a folder.
    """
    path = Path(path)
    if path.is_file():
        return False
    if not path.is_dir():
        raise FileNotFoundError(f"there is no file or folder {str(path)!r}")
    saved = saved_dataset(path)
    return saved is None or "text" not in saved.column_names


def class_names(folder: str | Path) -> tuple[str, ...]:
    """The classes of images in a folder: names of its folders, or what a saved data set says.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Fewer than two classes.
    """
    folder = Path(folder)
    saved = saved_dataset(folder)
    if saved is None:
        names = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
    else:
        feature = saved.features.get("label")
        names = list(getattr(feature, "names", None) or map(str, sorted(set(saved["label"]))))
    if len(names) < 2:
        raise ValueError(f"{folder} has {len(names)} classes; expected a folder for each class")
    return tuple(names)


def read_labelled_images(folder: str | Path, classifier: ImageClassifier) -> LabelledImages:
    """Images with labels.

    Args:
        folder: A folder with a folder of images for each class, named by the class or its number; or a data
            set written by ``datasets``' ``save_to_disk``, with ``image`` (or ``img``) and ``label``.
        classifier: Whose classes and processor count.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has no images, a class that the classifier does not know, or not these columns.
    """
    folder = Path(folder)
    known = label_numbers(_labels(classifier, folder))
    saved = saved_dataset(folder)
    if saved is not None:
        column = next((name for name in ("image", "img") if name in saved.column_names), None)
        if column is None or "label" not in saved.column_names:
            raise ValueError(f"{folder}: no columns 'image' and 'label'; there are {saved.column_names}")
        labels = [_number(known, label, str(folder)) for label in saved["label"]]
        rows = range(len(saved))
        return LabelledImages(
            [_Row(saved, column, row) for row in rows], labels, classifier, [f"image {row}" for row in rows]
        )
    files = [
        (file, _number(known, path.name, str(path)))
        for path in sorted(folder.iterdir())
        if path.is_dir()
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in PICTURES
    ]
    if not files:
        raise ValueError(f"{folder} has no images; expected a folder of images for each class")
    return LabelledImages(
        [_File(file) for file, _ in files],
        [label for _, label in files],
        classifier,
        [str(file.relative_to(folder)) for file, _ in files],
    )


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> Any:
        from PIL import Image

        try:
            with Image.open(self.path) as image:
                image.load()
                return image
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.path} cannot be read as an image: {error}") from error


class _Row:
    def __init__(self, data: Any, column: str, row: int) -> None:
        self.data, self.column, self.row = data, column, row

    def __call__(self) -> Any:
        return self.data[self.row][self.column]


def _labels(classifier: ImageClassifier, folder: Path) -> Sequence[str]:
    return class_names(folder) if classifier.labels is None else classifier.labels


def _number(known: dict[str, int], label: object, where: str) -> int:
    found = known.get(str(label).strip().casefold())
    if found is None:
        raise ValueError(f"{where}: label {label!r} is unknown; the classifier knows {', '.join(known)}")
    return found
