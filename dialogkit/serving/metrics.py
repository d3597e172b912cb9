"""What a server counts, as text for Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

__all__ = ["SECONDS", "Metrics"]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the classes of a duration."""

_Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, histograms and gauges by name.

    Args:
        help_texts: What each name means; only these can be used.
        gauges: How to look up values that go up and down, by name.
        buckets: Upper bounds of the classes of each histogram, ascending.
    """

    def __init__(
        self,
        help_texts: Mapping[str, str],
        *,
        gauges: Mapping[str, Callable[[], float]],
        buckets: Mapping[str, Sequence[float]],
    ) -> None:
        self._help = dict(help_texts)
        self._gauges = dict(gauges)
        self._buckets = dict(buckets)
        self._counts: dict[str, dict[_Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._observed: dict[str, dict[_Labels, list[int]]] = defaultdict(dict)
        self._sums: dict[str, dict[_Labels, float]] = defaultdict(lambda: defaultdict(float))

    def count(self, name: str, labels: Mapping[str, str] | None = None, by: float = 1.0) -> None:
        """Adds to a counter."""
        self._counts[name][tuple((labels or {}).items())] += by

    def observe(self, name: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Adds a value to a histogram."""
        key = tuple((labels or {}).items())
        bounds = self._buckets[name]
        classes = self._observed[name].setdefault(key, [0] * (len(bounds) + 1))
        classes[bisect_left(bounds, value)] += 1
        self._sums[name][key] += value

    def text(self) -> str:
        """Everything in Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        for name, meaning in self._help.items():
            kind = "gauge" if name in self._gauges else "histogram" if name in self._buckets else "counter"
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            if name in self._gauges:
                lines.append(f"{name} {self._gauges[name]():.15g}")
            for labels, value in self._counts[name].items():
                lines.append(f"{name}{_braces(labels)} {value:.15g}")
            for labels, classes in self._observed[name].items():
                lines += self._histogram(name, labels, classes)
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str, labels: _Labels, classes: Sequence[int]) -> list[str]:
        bounds = [*(f"{bound:g}" for bound in self._buckets[name]), "+Inf"]
        lines = [
            f"{name}_bucket{_braces((*labels, ('le', bound)))} {total}"
            for bound, total in zip(bounds, accumulate(classes), strict=True)
        ]
        total = self._sums[name][labels]
        return [
            *lines,
            f"{name}_sum{_braces(labels)} {total:.15g}",
            f"{name}_count{_braces(labels)} {sum(classes)}",
        ]


def _braces(labels: _Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in labels)
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
