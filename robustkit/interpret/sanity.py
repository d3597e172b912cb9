"""Sanity tests: does a map depend on the network's weights, and on the class that it explains?

Source: Adebayo et al. 2018, "Sanity Checks for Saliency Maps" (arXiv 1810.03292). A map that stays as it is
when upper layers are drawn anew, or when another class is explained, cannot say what the network has learned
there. Guided backpropagation fails the first test (Sixt, Granz and Landgraf 2020), RectGrad comes between.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustkit.classifiers.text import TextClassifier
from trainkit.seeding import derive_seed, preserved_rng

from .attribution import Attribution, Reduce
from .explaining import Method, explain
from .ranking import rank_correlation
from .subjects import GradientField, Score, Target, subject_of

__all__ = ["layers_in_order", "random_logit_test", "randomisation_test"]


def randomisation_test(
    model: nn.Module | TextClassifier,
    inputs: Any,
    methods: Mapping[str, str | Method],
    *,
    mode: Literal["cascade", "independent"] = "cascade",
    target: Target = None,
    score: Score = "logit",
    reduce: Reduce = "abs_sum",
    every: int = 1,
    skip_zeros: bool = False,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Draw layers anew, from the top, and compare maps with those of the trained network.

    The given model is not changed: a copy is. Layers are modules with weights and ``reset_parameters``;
    weights that a model holds elsewhere stay, and are listed.

    Args:
        model: See `explain`.
        inputs: See `explain`.
        methods: Names of `METHODS` or settings, by the name to report.
        mode: ``"cascade"``: the top layer, the top two, and so on to all; ``"independent"``: one at a time.
        target: The explained classes; None: those that the trained network predicts, throughout.
        score: See `explain`.
        reduce: Of maps before they are ranked, see `Attribution.map`.
        every: Compare after each so many layers only, and after the last.
        skip_zeros: Leave out entries that are 0 in both maps. In maps that are multiplied by the input, black
            pixels are 0 whatever the weights, and maps of black pictures are alike for that reason alone.
        seed: Of the new weights.
        batch_size: See `explain`.

    Returns:
        ``layers``: names from the top; ``steps``: how many of them were drawn when maps were compared;
        ``methods``: for each the mean rank correlation with the original map at each step, NaN where all maps
        were constant; ``each``: for each the rank correlations at each step by input, float64 ``(steps, n)``;
        ``kept``: names of weights that stay.

    Raises:
        ValueError: See `explain`; no methods, an unknown mode, or no layer that can be drawn anew.
    """
    if every < 1:
        raise ValueError(f"every is {every}; expected 1 or more")
    if mode not in ("cascade", "independent"):
        raise ValueError(f"mode is {mode!r}; expected 'cascade' or 'independent'")
    if not methods:
        raise ValueError("methods is empty")
    changed = copy.deepcopy(model)
    module = changed.model if isinstance(changed, TextClassifier) else changed
    layers = list(reversed(layers_in_order(changed, inputs)))
    if not layers:
        raise ValueError(f"{type(module).__name__} has no layer with reset_parameters")
    given = {name: value.clone() for name, value in module.state_dict().items()}
    settings: dict[str, Any] = {"score": score, "batch_size": batch_size}
    first = {
        name: explain(model, inputs, method, target=target, **settings) for name, method in methods.items()
    }
    # Whatever the changed network predicts, the question stays the same.
    asked = next(iter(first.values())).target
    parts = dict(module.named_modules())
    found: dict[str, list[Tensor]] = {name: [] for name in methods}
    steps = [step for step in range(1, len(layers) + 1) if step % every == 0 or step == len(layers)]
    for step, layer in enumerate(layers, 1):
        if mode == "independent":
            module.load_state_dict(given)
        with preserved_rng(), torch.no_grad():
            torch.manual_seed(derive_seed("layer", seed, step))
            parts[layer].reset_parameters()
        if step not in steps:
            continue
        for name, method in methods.items():
            own = explain(changed, inputs, method, target=asked, **settings)
            found[name].append(_likeness(first[name], own, reduce, skip_zeros))
    reached = {
        f"{layer}.{name}".lstrip(".")
        for layer in layers
        for name, _ in parts[layer].named_parameters(recurse=False)
    }
    kept = [name for name, _ in module.named_parameters() if name not in reached]
    each = {name: torch.stack(likeness) for name, likeness in found.items()}
    means = {name: likeness.nanmean(dim=1).tolist() for name, likeness in each.items()}
    return {"layers": layers, "steps": steps, "kept": kept, "methods": means, "each": each}


def random_logit_test(
    model: nn.Module | TextClassifier,
    inputs: Any,
    methods: Mapping[str, str | Method],
    *,
    score: Score = "logit",
    reduce: Reduce = "abs_sum",
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, float]:
    """Explain another class, drawn for each input, and compare maps with those of the predicted class.

    Args:
        model: See `explain`.
        inputs: See `explain`.
        methods: Names of `METHODS` or settings, by the name to report.
        score: See `explain`.
        reduce: Of maps before they are ranked, see `Attribution.map`.
        seed: Of the other classes.
        batch_size: See `explain`.

    Returns:
        For each method the mean rank correlation; near 1 means that the map does not tell classes apart. With
        two classes and gradients it is 1 where logits are each other's opposite.

    Raises:
        ValueError: See `explain`; no methods, or a model with one class.
    """
    if not methods:
        raise ValueError("methods is empty")
    field = GradientField(subject_of(model, inputs), batch_size=batch_size)
    classes = field.class_count
    if classes < 2:
        raise ValueError("the model has one class: there is no other to explain")
    predicted = field.target.cpu()
    generator = torch.Generator().manual_seed(derive_seed("classes", seed))
    other = (predicted + torch.randint(1, classes, predicted.shape, generator=generator)) % classes
    settings: dict[str, Any] = {"score": score, "batch_size": batch_size}
    return {
        name: _likeness(
            explain(model, inputs, method, target=predicted, **settings),
            explain(model, inputs, method, target=other, **settings),
            reduce,
        )
        .nanmean()
        .item()
        for name, method in methods.items()
    }


def layers_in_order(model: nn.Module | TextClassifier, inputs: Any) -> list[str]:
    """Names of the modules with weights of their own that can be drawn anew, as a forward pass meets them."""
    subject = subject_of(model, inputs)
    met: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, arguments, name=name: met.append(name))
        for name, module in subject.module.named_modules()
        if hasattr(module, "reset_parameters") and next(module.parameters(recurse=False), None) is not None
    ]
    try:
        _ = GradientField(subject).output
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(met))


def _likeness(first: Attribution, second: Attribution, reduce: Reduce, skip_zeros: bool = False) -> Tensor:
    """Rank correlation for each input, of pixels or of tokens that are no padding; ``(n,)``."""
    one, other = (maps.map(reduce).flatten(1).cpu() for maps in (first, second))
    valid = None if first.text is None else first.text.mask
    if skip_zeros:
        some = (one != 0) | (other != 0)
        valid = some if valid is None else some & valid
    return rank_correlation(one, other, valid)
