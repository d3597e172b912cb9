"""Any image classifier as differentiable logits of pixels between 0 and 1."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from robustkit.classifiers.cache import WeightsDigest
from robustkit.classifiers.features import Features
from trainkit.hub import fingerprint, resolve

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

__all__ = ["ImageClassifier"]


class ImageClassifier(nn.Module):
    """An image classifier that takes pixels in [0, 1] and normalizes them itself.

    Calling it gives logits that are differentiable by the pixels, in whatever mode the model is; `predict`,
    `probabilities` and `extract` use the evaluation mode and leave mode and gradients as they were.

    Args:
        model: A transformers image classifier, or any module that gives logits ``(n, C)`` for normalized
            pixels.
        processor: The model's image processor: it resizes images in `pixels`, and mean and standard deviation
            are taken from it.
        mean: Mean of each channel that the model expects to be subtracted; instead of a processor.
        std: Standard deviation of each channel; instead of a processor.
        head: Name of the module whose input `extract` takes; by default the linear layer that gives the
            logits.
        labels: Names of the classes; by default the model's, or their numbers.
        name: What tables call it; by default the name that it was loaded by, or its class.
        batch_size: Images in one forward pass of `predict`, `probabilities` and `extract`.

    Attributes:
        mean: Buffer ``(channels, 1, 1)``, or a single 0 for a model that wants pixels as they are.
        std: Buffer of the same shape, or a single 1.
        name: See above.

    Shape:
        pixels ``(n, channels, height, width)`` float in [0, 1] to logits ``(n, C)``.

    Raises:
        ValueError: Both a processor and mean or std; a standard deviation that is not positive; a processor
            that does not bring pixels into [0, 1] before it normalizes them.

    Example:
        >>> classifier = ImageClassifier.from_pretrained("google/vit-base-patch16-224")
        >>> pixels = classifier.pixels([image]).requires_grad_()
        >>> classifier(pixels)[0, 281].backward()
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        processor: BaseImageProcessor | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        head: str | None = None,
        labels: Sequence[str] | None = None,
        name: str | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        if processor is not None:
            if mean is not None or std is not None:
                raise ValueError("give a processor, or mean and std, not both")
            mean, std = _normalization(processor)
        if (mean is None) != (std is None):
            raise ValueError(f"mean is {mean}, std is {std}; give both or neither")
        center, scale = torch.tensor(mean or [0.0]), torch.tensor(std or [1.0])
        if center.shape != scale.shape or not (scale > 0).all():
            raise ValueError(
                f"mean is {mean}, std is {std}; expected a number and a positive one per channel"
            )
        if head is not None and head not in dict(model.named_modules()):
            raise ValueError(f"head is {head!r}; {type(model).__name__} has no module of that name")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        config = getattr(model, "config", None)
        self.model = model
        self.processor = processor
        self.head = head
        self.batch_size = batch_size
        self.name = name or getattr(config, "_name_or_path", "") or type(model).__name__
        named = labels if labels is not None else _labels(config)
        self.labels: tuple[str, ...] | None = None if named is None else tuple(named)
        self.register_buffer("mean", center.float()[:, None, None], persistent=False)
        self.register_buffer("std", scale.float()[:, None, None], persistent=False)
        self._weights = WeightsDigest(self)
        # In whatever mode its model is: it has none of its own.
        self.training = model.training

    @classmethod
    def from_pretrained(
        cls, folder_or_id: str | Path, *, revision: str | None = None, head: str | None = None,
        name: str | None = None, batch_size: int = 64,
    ) -> Self:  # fmt: skip
        """Load a transformers image classifier with its processor; safetensors weights only.

        Args:
            folder_or_id: A folder with model and processor, or a repository on the Hugging Face Hub.
            revision: Branch, tag or commit of the repository.
            head: See the class, as for the rest.
            name: See the class.
            batch_size: See the class.

        Raises:
            FileNotFoundError: The folder is missing.
            ValueError: It holds a model of another kind, such as one of texts.
            HubError: See `trainkit.resolve`.
        """
        from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as KINDS
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

        folder = resolve(folder_or_id, revision=revision, ignore=("*.bin", "*.h5", "*.msgpack", "*.onnx"))
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kinds: Mapping[Any, Any] = KINDS
        if type(config) not in kinds:
            raise ValueError(
                f"{os.fspath(folder_or_id)!r} holds a {config.model_type}, of which transformers makes no "
                "image classifier; texts are classified by TextClassifier"
            )
        model = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        shown = os.fspath(folder_or_id) if name is None else name
        return cls(model.eval(), processor, head=head, name=shown, batch_size=batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.mean.device

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights and normalization, taken anew after training."""
        return self._weights()

    @property
    def source(self) -> str:
        """Fingerprint of everything that the vectors of `extract` depend on, up to rounding."""
        return fingerprint(self.fingerprint, self.head or "")

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits ``(n, C)`` of pixels ``(n, channels, height, width)`` in [0, 1], differentiable.

        Raises:
            ValueError: Not four dimensions, or integers.
        """
        if pixels.ndim != 4 or not pixels.is_floating_point():
            raise ValueError(
                f"pixels is {pixels.dtype} {tuple(pixels.shape)}; expected floats (n, channels, y, x)"
            )
        output = self.model((pixels - self.mean.to(pixels.dtype)) / self.std.to(pixels.dtype))
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits

    def pixels(self, images: Sequence[Any]) -> Tensor:
        """Images as the model's pixels in [0, 1], resized and cropped as its processor does.

        Args:
            images: Pillow images, or arrays with values from 0 to 255.

        Returns:
            float32 ``(n, channels, height, width)`` on the model's device.

        Raises:
            ValueError: There is no processor.
        """
        if self.processor is None:
            raise ValueError("this classifier has no processor; give pixels in [0, 1] instead of images")
        found: Tensor = self.processor(list(images), do_normalize=False, return_tensors="pt")["pixel_values"]
        return found.to(self.device).clamp(0, 1)

    def probabilities(self, pixels: Tensor) -> Tensor:
        """Softmax of the logits, ``(n, C)``, in evaluation mode and without gradient.

        Raises:
            ValueError: Pixels outside [0, 1], or none.
        """
        with self._judging():
            return torch.cat([self(part).softmax(dim=1) for part in self._parts(pixels)])

    def predict(self, pixels: Tensor) -> Tensor:
        """The class of the largest logit, int64 ``(n,)``; otherwise like `probabilities`."""
        return self.probabilities(pixels).argmax(dim=1)

    def extract(self, pixels: Tensor) -> Features:
        """The vectors that the head reads, logits and predictions, from one forward pass each.

        Args:
            pixels: ``(n, channels, height, width)`` in [0, 1].

        Returns:
            Features with values ``(n, d)``, the head's input flattened.

        Raises:
            ValueError: Pixels outside [0, 1], or none; or no linear layer gives the logits and no head was
                named.
        """
        logits, values = [], []
        with self._judging():
            for part in self._parts(pixels):
                scores, vector = self._with_head_input(part)
                logits.append(scores.float().cpu())
                values.append(vector.flatten(1).float().cpu())
        return Features.of(torch.cat(values).numpy(), logits=torch.cat(logits).numpy(), source=self.source)

    def _with_head_input(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        calls: list[tuple[Tensor, Any]] = []
        heads = [
            module
            for name, module in self.model.named_modules()
            if (isinstance(module, nn.Linear) if self.head is None else name == self.head)
        ]
        handles = [
            module.register_forward_hook(
                lambda module, arguments, output: calls.append((arguments[0], output))
            )
            for module in heads
        ]
        try:
            logits: Tensor = self(pixels)
        finally:
            for handle in handles:
                handle.remove()
        if self.head is None:
            calls = [call for call in calls if call[1].shape == logits.shape and torch.equal(call[1], logits)]
        if not calls:
            raise ValueError(
                f"no linear layer of {type(self.model).__name__} gives the logits; name the module whose "
                "input is wanted: head=..."
            )
        return logits, calls[-1][0]

    def _parts(self, pixels: Tensor) -> Iterator[Tensor]:
        if len(pixels) == 0:
            raise ValueError("pixels is empty")
        # Written so that NaN is refused too.
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"pixels go from {pixels.min().item():.3g} to {pixels.max().item():.3g}; expected [0, 1], "
                "without normalization"
            )
        for part in pixels.split(self.batch_size):
            yield part.to(self.device)

    @contextmanager
    def _judging(self) -> Iterator[None]:
        training = [module for module in self.modules() if module.training]
        try:
            self.eval()
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True


def _normalization(processor: Any) -> tuple[list[float] | None, list[float] | None]:
    if (
        not getattr(processor, "do_rescale", True)
        or abs(getattr(processor, "rescale_factor", 1 / 255) * 255 - 1) > 1e-6
    ):
        raise ValueError(
            f"{type(processor).__name__} does not divide pixels by 255; give mean and std instead"
        )
    if not getattr(processor, "do_normalize", True):
        return None, None
    return [float(m) for m in processor.image_mean], [float(s) for s in processor.image_std]


def _labels(config: Any) -> list[str] | None:
    named = getattr(config, "id2label", None)
    return None if not named else [str(named[i]) for i in sorted(named)]
