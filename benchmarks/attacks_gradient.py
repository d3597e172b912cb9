"""PGD and APGD on given MNIST and CIFAR networks: our attacks against torchattacks', strength and speed.

    python benchmarks/attacks_gradient.py [--networks adversarial resnet20] [--images 64] [--steps 20]
        [--repeats 3] [--threads 1] [--fgsm-images 1000]

MNIST with epsilon 0.3 (LeNet-5 trained cleanly and adversarially, the small CNN of TRADES), CIFAR-10 with
epsilon 8/255 on images that went through JPEG, so no figure here is one of CIFAR-10 itself. Both sides attack
the same images with the same number of steps and step size, one restart, in this process with the same
number of threads, and take turns; times are medians of CPU seconds, which tell more than wall-clock time on a
shared machine, and ratios are medians over the turns. ``ours, all steps`` keeps samples that fool the model
in the batch, as torchattacks does: its ratio is that of a single gradient; ``all steps, bf16`` is the same
under autocast, with success judged in full precision, and torchattacks as before. That no pixel leaves
ball and box is asserted for both.

FGSM with epsilon 0.3 on MNIST comes with the accuracies that the networks were published with. Needs the data
folder (environment variable KIT_DATA); without torchattacks (``pip install --no-deps torchattacks==3.5.1``)
only our side is measured.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from robustkit.attacks.gradient import APGD, FGSM, PGD, LInf
from robustkit.classifiers import ImageClassifier
from scripts.given_networks import cifar_images, cifar_resnet, mnist_images, mnist_network
from trainkit.hub import write_json

OURS, ALL_STEPS, HALF, PEER = "ours", "ours, all steps", "all steps, bf16", "torchattacks"
NETWORKS: dict[str, tuple[Callable[[], ImageClassifier], Callable[..., tuple[Tensor, Tensor]], float]] = {
    "clean": (lambda: mnist_network("clean"), mnist_images, 0.3),
    "adversarial": (lambda: mnist_network("adversarial"), mnist_images, 0.3),
    "trades": (lambda: mnist_network("trades"), mnist_images, 0.3),
    "resnet20": (lambda: cifar_resnet(20), cifar_images, 8 / 255),
    "resnet56": (lambda: cifar_resnet(56), cifar_images, 8 / 255),
}
# Accuracy in % under FGSM with epsilon 0.3, as published with the weights.
PUBLISHED_FGSM = {"clean": 0.9, "adversarial": 95.6, "trades": 96.9}

Side = Callable[[Tensor, Tensor], tuple[Tensor, int]]
"""Pixels and labels to perturbed pixels and the number of gradients that were taken."""


def our_side(
    attack: PGD | APGD, classifier: ImageClassifier, precision: Literal["no", "bf16"] = "no"
) -> Side:
    def attacked(pixels: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        found = attack.run(classifier, pixels, labels, seed=0, mixed_precision=precision)
        return found.perturbed, int(found.backwards.sum())

    return attacked


def peer_side(attack: Any, gradients: int) -> Side:
    def attacked(pixels: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        torch.manual_seed(0)
        return attack(pixels, labels), gradients * len(pixels)

    return attacked


def contenders(
    kind: str, classifier: ImageClassifier, epsilon: float, steps: int, peer: bool
) -> dict[str, Side]:
    """The sides of one attack."""
    ball, step = LInf(epsilon), 2.5 * epsilon / steps
    if kind == "PGD":
        sides = {
            OURS: our_side(PGD(ball, steps, step), classifier),
            ALL_STEPS: our_side(PGD(ball, steps, step, early_stop=False), classifier),
            HALF: our_side(PGD(ball, steps, step, early_stop=False), classifier, "bf16"),
        }
    else:
        sides = {OURS: our_side(APGD(ball, steps), classifier)}
    if peer:
        import torchattacks

        if kind == "PGD":
            theirs = torchattacks.PGD(classifier, eps=epsilon, alpha=step, steps=steps, random_start=True)
            sides[PEER] = peer_side(theirs, steps)
        else:
            theirs = torchattacks.APGD(classifier, eps=epsilon, steps=steps, n_restarts=1, loss="ce", seed=0)
            sides[PEER] = peer_side(theirs, steps + 1)
    return sides


def measure(
    sides: dict[str, Side], classifier: ImageClassifier, pixels: Tensor, labels: Tensor, epsilon: float,
    steps: int, repeats: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """CPU seconds, robust accuracy and gradients of each side, and how many times torchattacks' speed."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    table: dict[str, dict[str, float]] = {}
    for side in sides.values():
        side(pixels[:2], labels[:2])  # warms up
    for _ in range(repeats):
        for name, side in sides.items():
            began = time.process_time()
            perturbed, gradients = side(pixels, labels)
            seconds[name].append(time.process_time() - began)
            assert (perturbed - pixels).abs().max() <= epsilon + 1e-6, name
            assert perturbed.min() >= 0 and perturbed.max() <= 1, name
            table[name] = {
                "robust_accuracy": (classifier.predict(perturbed) == labels).double().mean().item(),
                "gradients": gradients,
            }
    for name, row in table.items():
        row["cpu_s"] = statistics.median(seconds[name])
        row["ms_per_gradient"] = 1000 * row["cpu_s"] / row["gradients"]
        row["ms_per_nominal_gradient"] = 1000 * row["cpu_s"] / (steps * len(pixels))
        if PEER in table:
            turns = zip(seconds[PEER], seconds[name], strict=True)
            row["times_torchattacks"] = statistics.median(theirs / own for theirs, own in turns)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fgsm-images", type=int, default=1000, help="MNIST images for FGSM; 0 for none")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/attacks_gradient.json"))
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")

    torch.set_num_threads(arguments.threads)
    peer = find_spec("torchattacks") is not None
    if not peer:
        print("torchattacks is not installed: only our side is measured")
    results: dict[str, Any] = {}
    for network in arguments.networks:
        load, images, epsilon = NETWORKS[network]
        classifier = load()
        if network in PUBLISHED_FGSM and arguments.fgsm_images:
            pixels, labels = images(arguments.fgsm_images)
            parts = zip(pixels.split(100), labels.split(100), strict=True)
            fooled = [FGSM(LInf(epsilon)).run(classifier, *part).success for part in parts]
            accuracy = 100 * (1 - torch.cat(fooled).double().mean().item())
            results[f"{network}, FGSM"] = {"accuracy": accuracy, "published": PUBLISHED_FGSM[network]}
            print(f"{network}: {accuracy:.1f} % under FGSM {epsilon}, published {PUBLISHED_FGSM[network]} %")
        pixels, labels = images(arguments.images)
        clean = (classifier.predict(pixels) == labels).double().mean().item()
        print(f"{network}: {len(pixels)} images, clean accuracy {clean:.3f}, epsilon {epsilon:.4f}")
        print(f"  {'':6}{'':18}{'accuracy':>9}{'gradients':>11}{'CPU s':>8}{'ms/gradient':>13}{'ratio':>8}")
        for kind in ("PGD", "APGD"):
            sides = contenders(kind, classifier, epsilon, arguments.steps, peer)
            table = measure(sides, classifier, pixels, labels, epsilon, arguments.steps, arguments.repeats)
            results[f"{network}, {kind}"] = table
            for name, row in table.items():
                ratio = f"{row['times_torchattacks']:8.2f}" if PEER in table else ""
                print(
                    f"  {kind:6}{name:18}{row['robust_accuracy']:9.3f}{row['gradients']:11.0f}"
                    f"{row['cpu_s']:8.2f}{row['ms_per_gradient']:13.2f}{ratio}",
                    flush=True,
                )
    write_json(
        arguments.output,
        {
            "results": results,
            "images": arguments.images,
            "steps": arguments.steps,
            "repeats": arguments.repeats,
            "threads": arguments.threads,
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "torchattacks": metadata.version("torchattacks") if peer else None,
        },
    )
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
