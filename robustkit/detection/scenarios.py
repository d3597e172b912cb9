"""Detection sets out of attack logs: the two scenarios of the word-adversary benchmark (Yoo et al. 2022).

Scenario 1 holds as many clean as adversarial texts, from different sources. Scenario 2 holds clean texts and,
for those that were attacked with success, the adversarial version too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robustkit.attacks.logs import AttackLog, AttackRecord, strip_marks

__all__ = ["DetectionSet", "make_scenario", "split_log"]

Scenario = Literal["s1", "s2"]
Convention = Literal["corrected", "released"]


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """Clean and adversarial texts to tell apart, clean ones first.

    Attributes:
        texts: n texts without marks.
        is_adversarial: bool (n,).
        ground_truth: int64 (n,), the true class of each text's source.
        source_id: int64 (n,), position of the source in the log; a clean text and its adversarial version
            share one, so whatever resamples must keep equal ids together.
        logged_output: int64 (n,), the class that the log says was predicted for the text.
        logged_score: float64 (n,), 1 - p(true class) of the text by the log.
    """

    texts: tuple[str, ...]
    is_adversarial: NDArray[np.bool_]
    ground_truth: NDArray[np.int64]
    source_id: NDArray[np.int64]
    logged_output: NDArray[np.int64]
    logged_score: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.texts)


def split_log(log: AttackLog, val_ratio: float = 0.3, seed: int = 0) -> tuple[AttackLog, AttackLog]:
    """Split a log into a validation and a test part, the one that `make_scenario` uses.

    The originals of the validation part are the clean texts to calibrate a threshold on.

    Args:
        log: The log.
        val_ratio: Share of rows in the validation part, at least 0 and below 1; rounded down.
        seed: Seed of the permutation.

    Returns:
        Validation and test part, each in permuted order.

    Raises:
        ValueError: ``val_ratio`` is out of range.
    """
    validation, test = _split(len(log), val_ratio, seed)
    return tuple(  # type: ignore[return-value]
        AttackLog((log[int(row)] for row in rows), log.name, log.model, log.settings)
        for rows in (validation, test)
    )


def make_scenario(
    log: AttackLog,
    scenario: Scenario,
    n_adv: int | None = None,
    seed: int = 0,
    val_ratio: float = 0.3,
    include_failed: bool = False,
    min_confidence: float | None = None,
    compat: Literal["github", "acl"] = "github",
    convention: Convention = "corrected",
) -> DetectionSet:
    """Draw a detection set from the test part of a log.

    A row's outcome is taken from its predictions, not from its ``result_type``: an attack with a stricter
    goal may call a flipped label a failure. Rows are shuffled, then walked from the front. In scenario 1 the
    first rows give their adversarial texts and the rows after them as many originals, misclassified ones
    included. In scenario 2 the first rows give their originals and, where the attack succeeded, their
    adversarial texts.

    Args:
        log: The log of one attack.
        scenario: ``"s1"`` or ``"s2"``.
        n_adv: Wanted number of adversarial texts; None takes all the log can give.
        seed: Seed of the split and of the order; the same seed gives the same rows.
        val_ratio: Share of rows set aside by `split_log` before anything is drawn; 0 for a log that is all
            test.
        include_failed: Whether texts that did not fool the classifier count as adversarial too.
        min_confidence: If given, only altered texts with ``perturbed_score`` of at least this count as
            adversarial; 0.9 makes the far-boundary set (ADDMU, EMNLP 2022).
        compat: Convention of `strip_marks`.
        convention: ``"corrected"`` takes exactly ``n_adv`` adversarial texts. ``"released"`` repeats the
            arithmetic of the benchmark's code, which divides by the accuracy twice and so takes more.

    Raises:
        ValueError: An argument is out of range, the log holds no adversarial text, or it has fewer than
            ``n_adv`` (for scenario 1: or too few rows besides); the message says how many there are.
    """
    if scenario not in ("s1", "s2"):
        raise ValueError(f"scenario is {scenario!r}, expected 's1' or 's2'")
    if convention not in ("corrected", "released"):
        raise ValueError(f"convention is {convention!r}, expected 'corrected' or 'released'")
    if n_adv is not None and n_adv < 1:
        raise ValueError(f"n_adv is {n_adv}, expected at least 1")
    rows = np.random.default_rng(seed).permutation(_split(len(log), val_ratio, seed)[1])
    kinds = ("Successful", "Failed") if include_failed else ("Successful",)
    attacked = np.array(
        [
            log[int(row)].outcome in kinds
            and (min_confidence is None or log[int(row)].perturbed_score >= min_confidence)
            for row in rows
        ],
        dtype=bool,
    )
    if not attacked.any():
        raise ValueError(f"the {len(rows)} test rows of the log hold no adversarial text of the wanted kind")
    if convention == "released":
        skipped = np.mean([log[int(row)].outcome == "Skipped" for row in rows])
        size = _released_size(scenario, attacked, 1.0 - float(skipped), n_adv)
    else:
        size = _corrected_size(scenario, attacked, n_adv)
    adversarial = rows[:size][attacked[:size]]
    clean = rows[:size] if scenario == "s2" else rows[size : size + len(adversarial)]
    if len(adversarial) == 0 or (scenario == "s1" and len(clean) < len(adversarial)):
        raise ValueError(
            f"the released rule takes {len(adversarial)} adversarial and {len(clean)} clean texts from these "
            f"{len(rows)} test rows; choose another n_adv"
        )
    return _collect(log, clean, adversarial, compat)


def _split(rows: int, val_ratio: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if not 0 <= val_ratio < 1:
        raise ValueError(f"val_ratio is {val_ratio}, expected at least 0 and below 1")
    order = np.random.default_rng(seed).permutation(rows)
    n_val = int(val_ratio * rows)
    return order[:n_val], order[n_val:]


def _corrected_size(scenario: Scenario, attacked: NDArray[np.bool_], n_adv: int | None) -> int:
    """How many of the shuffled rows are looked at for adversarial texts."""
    counts = np.cumsum(attacked)  # adversarial texts in the first 1, 2, ... rows
    if scenario == "s1":  # as many rows must be left as there are adversarial texts
        counts = counts[counts <= len(attacked) - np.arange(1, len(attacked) + 1)]
    most = int(counts[-1]) if len(counts) else 0
    if most == 0 or (n_adv is not None and n_adv > most):
        wanted = "any" if n_adv is None else n_adv
        raise ValueError(
            f"n_adv: {wanted} wanted, but scenario {scenario} finds {most} in this log's test part"
        )
    if n_adv is None:
        return len(attacked) if scenario == "s2" else len(counts)
    return int(np.searchsorted(counts, n_adv)) + 1


def _released_size(
    scenario: Scenario, attacked: NDArray[np.bool_], accuracy: float, n_adv: int | None
) -> int:
    """The same by the benchmark's released code, specification section 8.1."""
    rows, adversarial = len(attacked), int(attacked.sum())
    target = adversarial if n_adv is None else n_adv
    wanted = target / (adversarial / rows) / accuracy
    if scenario == "s2":
        return min(rows, int(wanted))
    ratio = wanted / rows
    while ratio >= 0.4:
        ratio = target / adversarial
        target -= 10
    return int(ratio * rows)


def _collect(
    log: AttackLog, clean: NDArray[np.int64], adversarial: NDArray[np.int64], compat: Literal["github", "acl"]
) -> DetectionSet:
    source_id = np.concatenate([clean, adversarial])
    is_adversarial = np.arange(len(source_id)) >= len(clean)
    records: list[AttackRecord] = [log[int(row)] for row in source_id]
    pairs = list(zip(records, is_adversarial, strict=True))
    return DetectionSet(
        texts=tuple(strip_marks(r.perturbed_text if a else r.original_text, compat) for r, a in pairs),
        is_adversarial=is_adversarial,
        ground_truth=np.array([r.ground_truth_output for r in records], dtype=np.int64),
        source_id=source_id,
        logged_output=np.array(
            [r.perturbed_output if a else r.original_output for r, a in pairs], dtype=np.int64
        ),
        logged_score=np.array(
            [r.perturbed_score if a else r.original_score for r, a in pairs], dtype=np.float64
        ),
    )
