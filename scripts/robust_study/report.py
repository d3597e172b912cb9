"""Tables of the comparison in Markdown and its figure."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from .studies import Study

__all__ = ["Result", "put", "write_report"]

PAGE = Path(__file__).parents[2] / "docs" / "si_hg.md"


@dataclass(frozen=True)
class Result:
    """One trained network.

    Attributes:
        method: Its name.
        seed: Of network, order and attacks.
        budget: Minibatch passes that it might spend.
        units: Forward 1, backward to the inputs 1, to the weights 2, per step and image of a minibatch; a
            little below the nominal figure, since an epoch's last batch is smaller.
        clean: Accuracy on test images.
        pgd: Accuracy under PGD with two restarts.
        cw: Accuracy under the same attack with the margin loss.
        suite: Accuracy under APGD-CE and targeted APGD-DLR with 50 steps and Square with 500 queries.
        seconds: Of training, see the page.
        share: Of the method's usual learning rate.
        grow: Share of the steps in which the ball grew.
    """

    method: str
    seed: int
    budget: int
    units: float
    clean: float
    pgd: float
    cw: float
    suite: float
    seconds: float
    share: float = 1.0
    grow: float = 0.0


def write_report(
    study: Study,
    rows: Sequence[Result],
    output: Path,
    *,
    attack_steps: int,
    images: int,
    rates: Sequence[float] = (),
    growth: Sequence[float] = (),
    page: bool,
) -> None:
    """Writes a table for each budget and, for several, a figure of robust accuracy against passes.

    Args:
        study: Where.
        rows: What was measured.
        output: Folder for the tables, ``digits.md`` for the digits, and the figure.
        attack_steps: Steps of PGD.
        images: Test images.
        rates: Shares of the learning rates that methods chose from.
        growth: Shares of the steps in which the ball grows that they chose from.
        page: Put tables and figure into the documentation too.
    """
    budgets = sorted({row.budget for row in rows})
    picture = (PAGE.parent / "img" if page else output) / f"si_hg_{study.name}.svg"
    command = _command(study, rows, budgets, attack_steps, images, rates, growth)
    clock = "processor time of training on one thread of a shared machine"
    if study.device == "cuda":
        clock = f"wall-clock time of training on one {torch.cuda.get_device_name()}"
    text = "\n\n".join(
        [
            f"Made by `{command}`: {study.about}, "
            f"without batch norm, l-infinity epsilon {study.epsilon:.3g}, minibatches of {study.batch}. "
            f"PGD-{attack_steps} and CW-{attack_steps} have 2 "
            "restarts; the suite is `strong_attack` with 50 steps and 500 queries of Square (no FAB-T, so it "
            f"is no AutoAttack); all on the same {images} test images. Seconds are {clock} "
            f"({platform.machine()}, torch {torch.__version__}).",
            *([_choices(rates, growth)] if rates or growth else []),
            *(
                _table(study, [row for row in rows if row.budget == budget], attack_steps)
                for budget in budgets
            ),
            *([f"![Accuracy against passes](img/{picture.name})"] if len(budgets) > 1 else []),
        ]
    )
    (output / f"{study.name}.md").write_text(text + "\n", encoding="utf-8")
    if len(budgets) > 1:
        _figure(study, rows, budgets, picture)
    if page:
        put(PAGE, study.name, text)
    print(text)


def put(page: Path, name: str, text: str) -> None:
    """Puts a text between the marks of a name on a page of the documentation."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def _command(
    study: Study,
    rows: Sequence[Result],
    budgets: Sequence[int],
    attack_steps: int,
    images: int,
    rates: Sequence[float],
    growth: Sequence[float],
) -> str:
    given = {row.method for row in rows}
    names = [entry.name for entry in study.methods()]
    parts = [
        "python scripts/robust_digits.py --page",
        f"--data {study.name}" if study.name != "digits" else "",
        f"--passes {' '.join(map(str, budgets))}",
        f"--seeds {' '.join(map(str, sorted({row.seed for row in rows})))}",
        f"--rates {' '.join(f'{rate:g}' for rate in rates)}" if rates else "",
        f"--grow {' '.join(f'{grow:g}' for grow in growth)}" if growth else "",
        f"--attack-steps {attack_steps} --test {images}",
        "--gpu" if study.device == "cuda" else "",
        "--methods " + " ".join(f'"{n}"' for n in names if n in given) if given != set(names) else "",
    ]
    return " ".join(part for part in parts if part)


def _choices(rates: Sequence[float], growth: Sequence[float]) -> str:
    offers = []
    if rates:
        offers.append(f"its peak learning rate among {_listed(rates)} times its usual one")
    if growth:
        offers.append(f"the share of the steps in which the ball grows to its size among {_listed(growth)}")
    return (
        f"Each method chose {' and '.join(offers)}, for each budget, with two seeds of their own, on "
        "training images that were held out (accuracy under PGD-20; natural training by clean accuracy)."
    )


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _table(study: Study, rows: Sequence[Result], attack_steps: int) -> str:
    seeds = sorted({row.seed for row in rows})
    lines = [
        f"**{rows[0].budget:,} passes of a minibatch**, {len(seeds)} "
        f"{'seeds' if len(seeds) > 1 else 'seed, so no spread'}:",
        "",
        "| method | peak rate, growth | units / (steps · batch size) | clean | "
        f"PGD-{attack_steps} | CW-{attack_steps} | suite: mean (min to max) | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in study.methods():
        own = [row for row in rows if row.method == entry.name]
        if own:
            robust = [row.suite for row in own]
            cells = [
                entry.name,
                f"{study.rate * entry.rate * own[0].share:g}, "
                + ("-" if entry.name == "natural" else f"{own[0].grow:g}"),
                f"{fmean(row.units for row in own):.1f}",
                f"{fmean(row.clean for row in own):.3f}",
                f"{fmean(row.pgd for row in own):.3f}",
                f"{fmean(row.cw for row in own):.3f}",
                f"{fmean(robust):.3f} ({min(robust):.3f} to {max(robust):.3f})",
                f"{fmean(row.seconds for row in own):.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(study: Study, rows: Sequence[Result], budgets: Sequence[int], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    colours = [*pyplot.get_cmap("tab10").colors, "black"]
    entries = [entry for entry in study.methods() if entry.name in {row.method for row in rows}]
    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for index, entry in enumerate(entries):
        own = {b: [row.suite for row in rows if (row.method, row.budget) == (entry.name, b)] for b in budgets}
        own = {budget: values for budget, values in own.items() if values}
        ours = entry.name.startswith("SI-HG")
        means = [fmean(values) for values in own.values()]
        spread = [
            [mean - min(values) for mean, values in zip(means, own.values(), strict=True)],
            [max(values) - mean for mean, values in zip(means, own.values(), strict=True)],
        ]
        axis.errorbar(
            [budget * 1.02 ** (index - len(entries) // 2) for budget in own],
            means,
            spread,
            color=colours[index % len(colours)],
            linestyle="-" if ours else "--",
            linewidth=1.8 if ours else 1.2,
            marker="o",
            markersize=4,
            capsize=2,
            label=entry.name,
        )
    axis.set_xscale("log")
    axis.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    axis.minorticks_off()
    axis.set_xlabel("passes of a minibatch (points of one budget are drawn side by side)")
    axis.set_ylabel("accuracy under the suite of attacks")
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"], matplotlib.rcParams["svg.fonttype"] = study.name, "none"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
