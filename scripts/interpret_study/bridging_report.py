"""Tables and figures of "bridging", and the page that shows them."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch

from robustkit.interpret.manifold import normalised
from trainkit.hub import read_json

from .networks import STANDARD, Study
from .tradeoff import GIVEN, MODES, PUBLISHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PAGE", "better", "distance_table", "write_report"]

PAGE = Path(__file__).parents[2] / "docs" / "bridging.md"
BEGIN, END = "<!-- bridging: begin -->", "<!-- bridging: end -->"


def write_report(studies: Sequence[Study], runs: Path, *, page: bool, target: Path = PAGE) -> None:
    """Writes ``report.md`` and figures of what is there; with ``page`` into the documentation as well.

    Args:
        studies: Those that may be there.
        runs: Folder of the runs.
        page: Put tables, figures and the picture of MNIST gradients into the documentation.
        target: The page, with the two markers; figures go into ``img`` beside it.
    """
    pictures = target.parent / "img" if page else runs
    pictures.mkdir(parents=True, exist_ok=True)
    there = [study for study in studies if (runs / study.name).exists()]
    parts = [f"Machine: shared, {platform.machine()}, torch {torch.__version__}."]
    for study in there:
        parts += _sections(study, runs / study.name)
    if any(_groups(runs / study.name, "manifold") for study in there):
        _distance_figure(there, runs, pictures / "bridging_manifold.svg")
        parts.append("![How far attacked images lie from the data](img/bridging_manifold.svg)")
    done = [study for study in there if (runs / study.name / "tradeoff.json").exists()]
    if done:
        _tradeoff_figure(done, runs, pictures / "bridging_tradeoff.svg")
        parts.append("![Accuracy against scores of ROAR and KAR](img/bridging_tradeoff.svg)")
    text = "\n\n".join(parts)
    (runs / "report.md").write_text(text + "\n", encoding="utf-8")
    if page:
        before, _, rest = target.read_text(encoding="utf-8").partition(BEGIN)
        target.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
        # Pictures of CIFAR-10 stay in the folder of the runs: their licence is not stated.
        for drawn in sorted((runs / "mnist").glob("*/gradients.png")):
            shutil.copyfile(drawn, pictures / f"bridging_gradients_{drawn.parent.name}.png")
    print(text)


def _groups(folder: Path, name: str) -> dict[str, Any]:
    """What the groups of a study have in a file of this name."""
    return {path.parent.name: read_json(path) for path in sorted(folder.glob(f"*/{name}.json"))}


def _sections(study: Study, folder: Path) -> list[str]:
    found = []
    accuracies = _groups(folder, "accuracies")
    if accuracies:
        found += [f"### {study.title}: networks", _accuracy_table(study, accuracies)]
    distances = _groups(folder, "manifold")
    if distances:
        found += [f"### {study.title}: distance from the data", distance_table(distances)]
    if (folder / "tradeoff.json").exists():
        document = read_json(folder / "tradeoff.json")
        found += [f"### {study.title}: ROAR and KAR", _score_table(document["records"])]
        found += [_series_table(document["series"], published=study.name == "cifar")]
        found += [better(document["series"])]
    shapes = _groups(folder, "shapes")
    if shapes:
        found += [f"### {study.title}: what the shape of half of the pixels tells", _shape_table(shapes)]
    return found


def _accuracy_table(study: Study, groups: Mapping[str, Any]) -> str:
    heads = [f"{norm} {radii[-1]:g}" for norm, radii in study.radii.items()]
    rows = []
    for name, own in _by_network(groups).items():
        columns = ("clean", *study.radii)
        rows.append([name, str(len(own)), *(spread([one[column] for one in own]) for column in columns)])
    return _table(["network", "n", "accuracy", *(f"under attack, {head}" for head in heads)], rows)


def distance_table(groups: Mapping[str, Any]) -> str:
    """Median distance of each network's attacked images, where clean images go from 0 to 1.

    "Nearer" is how much less the distance is than that of the first, standard network of the same seed.

    Args:
        groups: What `bridging.moved_distances` gives, by group.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for group, own in groups.items():
        medians = {
            measure: {
                name: normalised(torch.tensor(values), torch.tensor(distances["clean"])).median().item()
                for name, values in distances.items()
            }
            for measure, distances in own["distances"].items()
        }
        standard = next(iter(own["counted"]))
        for name in next(iter(medians.values())):
            # Networks of others share the first seed's autoencoder: its clean images are there already.
            if name == "clean" and group == GIVEN and len(groups) > 1:
                continue
            row = {measure: median[name] for measure, median in medians.items()}
            if name != "clean":
                row |= {"counted": own["counted"][name], "moved": own["moved"][name]}
            if name not in ("clean", standard):
                row |= {f"nearer {key}": median[standard] - median[name] for key, median in medians.items()}
            found.setdefault(name, []).append(row)
    columns = {
        "autoencoder": ".3f", "nearer autoencoder": "+.3f", "neighbours": ".3f", "nearer neighbours": "+.3f",
        "counted": ".0f", "moved": ".2f",
    }  # fmt: skip
    rows = []
    for name, own in found.items():
        cells = [
            "" if key not in own[0] else spread([one[key] for one in own], form)
            for key, form in columns.items()
        ]
        rows.append([name, str(len(own)), *cells])
    heads = ["attacked network", "n", "autoencoder", "nearer", "5 neighbours", "nearer", "images", "step"]
    return _table(heads, rows)


def _score_table(records: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys((row["test"], row["map"]) for row in records))
    rows = []
    for name in dict.fromkeys(row["network"] for row in records):
        cells = []
        for column in columns:
            own = [
                row["score"]
                for row in records
                if (row["network"], row["test"], row["map"]) == (name, *column)
            ]
            cells.append(spread(own, "+.4f"))
        rows.append([name, str(len(own)), *cells])
    return _table(["score of", "n", *(f"{test}, {map_name}" for test, map_name in columns)], rows)


def _shape_table(groups: Mapping[str, Any]) -> str:
    found: dict[str, dict[str, list[float]]] = {}
    for name, values in _by_network(groups).items():
        classifier, _, map_name = name.rpartition("/")
        found.setdefault(classifier, {})[map_name] = values
    maps = list(dict.fromkeys(name for own in found.values() for name in own))
    rows = [[name, *(spread(own[column]) for column in maps)] for name, own in found.items()]
    return _table(["accuracy on masks of", *maps], rows)


def _series_table(series: Sequence[Mapping[str, Any]], published: bool) -> str:
    heads = ["series", "standard", "strongest", "gain ± sd", "n", "r with radius", "r with accuracy"]
    rows = []
    for one in series:
        found = one["correlations"]
        gain = f"{one['gain']:+.4f}" + ("" if one["sd"] is None else f" ± {one['sd']:.4f}")
        row = [
            f"{one['test']}, {one['norm']}, {one['map']}", f"{one['standard']:+.4f}",
            f"{one['strongest']:+.4f}", gain, str(one["n"]),
            *("" if found is None else f"{found[key]:+.2f}" for key in ("linear radius", "linear accuracy")),
        ]  # fmt: skip
        if published:
            known = PUBLISHED.get((one["norm"], one["map"], one["test"]))
            row.append("" if known is None else f"{known:+.2f}")
        rows.append(row)
    return _table([*heads, *(["published r with radius"] if published else [])], rows)


def better(series: Sequence[Mapping[str, Any]]) -> str:
    """In how many series the most robust network has the higher score, and in how many clearly."""
    lines = []
    for test in MODES.values():
        own = [one for one in series if one["test"] == test]
        more = [one for one in own if one["gain"] > 0]
        known = [one for one in own if one["sd"] is not None]
        clear = {
            sign: sum(sign * one["gain"] > 2 * one["sd"] / one["n"] ** 0.5 for one in known)
            for sign in (1, -1)
        }
        line = f"{test}: the most robust network is better in {len(more)} of {len(own)} series"
        if known:
            line += f" (by more than two standard errors in {clear[1]}, worse by as much in {clear[-1]})"
        lines.append(f"{line}.")
    return " ".join(lines)


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    mean = format(fmean(values), form)
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):{form.lstrip('+')}}"


def _by_network(groups: Mapping[str, Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for own in groups.values():
        for name, value in own.items():
            found.setdefault(name, []).append(value)
    return found


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _distance_figure(studies: Sequence[Study], runs: Path, path: Path) -> None:
    """Densities of the autoencoder's distances, seeds together, kernels of a quarter as in the paper."""
    import numpy as np
    from scipy.stats import gaussian_kde

    shown = [study for study in studies if _groups(runs / study.name, "manifold")]
    figure, panels = _canvas(1, len(shown))
    for axis, study in zip(panels[0], shown, strict=True):
        pooled: dict[str, list[float]] = {}
        for group, found in _groups(runs / study.name, "manifold").items():
            own = found["distances"]["autoencoder"]
            clean = torch.tensor(own["clean"])
            for name, values in own.items():
                if group != GIVEN:
                    pooled.setdefault(name, []).extend(normalised(torch.tensor(values), clean).tolist())
        most = max(max(values) for values in pooled.values())
        places = np.linspace(0, most, 400)
        for name, values in pooled.items():
            if len(set(values)) > 1:
                strongest = any(name == f"{norm} {radii[-1]:g}" for norm, radii in study.radii.items())
                style = "-" if strongest or name in ("clean", STANDARD) else ":"
                axis.plot(places, gaussian_kde(values, 0.25)(places), style, label=name, color=_colour(name))
        axis.set_title(study.title)
        axis.set_xlabel("distance from the autoencoder's reconstruction; clean images: 0 to 1")
        axis.set_ylabel("density")
        axis.legend(fontsize=8)
    _save(figure, path)


def _tradeoff_figure(studies: Sequence[Study], runs: Path, path: Path) -> None:
    """Mean score against mean accuracy: a line for each norm and map, larger dots for larger radii."""
    figure, panels = _canvas(2, len(studies))
    styles = {"gradient": ":", "gradient × input": "--", "integrated gradients": "-"}
    for column, study in enumerate(studies):
        rows = [
            row for row in read_json(runs / study.name / "tradeoff.json")["records"] if row["group"] != GIVEN
        ]
        for axis, test in zip((panels[0][column], panels[1][column]), MODES.values(), strict=True):
            for norm in study.radii:
                for map_name, style in styles.items():
                    own = [row for row in rows if (row["map"], row["test"]) == (map_name, test)
                           and row["norm"] in ("", norm)]  # fmt: skip
                    radii = sorted({row["radius"] for row in own})
                    points = [
                        [fmean(row[key] for row in own if row["radius"] == radius) for radius in radii]
                        for key in ("accuracy", "score")
                    ]
                    sizes = [20 * (i + 1) for i in range(len(radii))]
                    axis.scatter(*points, s=sizes, color=_colour(norm))
                    axis.plot(*points, style, label=f"{norm}, {map_name}", color=_colour(norm))
                    axis.plot(points[0][:1], points[1][:1], "ks", markersize=5)
            axis.set_title(f"{study.title}: {test}")
            axis.set_xlabel("accuracy on clean images")
            axis.set_ylabel("score (above random maps)")
    panels[0][0].legend(fontsize=7)
    _save(figure, path)


def _colour(name: str) -> str:
    if name in ("clean", STANDARD):
        return "black" if name == "clean" else "C3"
    return "C0" if name.startswith("L2") else "C1"


def _canvas(rows: int, columns: int) -> tuple[Figure, Sequence[Sequence[Axes]]]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(6 * columns, 4 * rows), layout="constrained", squeeze=False
    )
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    import matplotlib
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"], matplotlib.rcParams["svg.fonttype"] = "bridging", "none"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
