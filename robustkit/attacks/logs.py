"""What an attack run leaves behind: one record for each text, in TextAttack's CSV form or as Parquet.

Changed words stand in double brackets in both texts, as in ``a [[fine]] film`` and ``a [[decent]] film``. A
score is 1 - p(true class), so a text that fools a classifier of two classes has a score above one half.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, overload

from robustkit.attacks.words.text import split_words
from trainkit.hub import read_json, write_bytes, write_json

__all__ = ["AttackLog", "AttackRecord", "AttackSummary", "ResultType", "RunLog", "strip_marks"]

ResultType = Literal["Successful", "Failed", "Skipped"]

_RESULT_TYPES = ("Successful", "Failed", "Skipped")
_TEXTS = ("original_text", "perturbed_text")
_SCORES = ("original_score", "perturbed_score")
_INTEGERS = ("original_output", "perturbed_output", "ground_truth_output", "num_queries")
_COLUMNS = (*_TEXTS, *_SCORES, *_INTEGERS, "result_type")  # TextAttack 0.3.11's, in its order
_ALTERNATIVES = "alternatives"  # ours: a JSON list
_EXAMPLE = "example"  # ours: position in the data, for rows in the order in which examples were finished
_NEWLINE = "<SPLIT>"  # TextAttack's mark for a line break
_FIELD = re.compile(r'"([^"]*(?:""[^"]*)*)"|([^",\r\n]*)')
_MARKED = re.compile(r"\[\[(.+?)\]\]")


def strip_marks(text: str, compat: Literal["github", "acl"] = "github") -> str:
    """A logged text without the marks of changed words.

    Args:
        text: Text of a record.
        compat: ``"github"`` takes away ``[[`` and ``]]`` and keeps single brackets, as the code of the
            detection benchmark on GitHub does; ``"acl"`` takes away every bracket, as its edition in the ACL
            Anthology does. Either loses double brackets that the text had before the attack.

    Raises:
        ValueError: Unknown ``compat``.
    """
    if compat == "github":
        return text.replace("[[", "").replace("]]", "")
    if compat == "acl":
        return text.replace("[", "").replace("]", "")
    raise ValueError(f"compat is {compat!r}, expected 'github' or 'acl'")


@dataclass(frozen=True)
class AttackRecord:
    """What an attack did to one text.

    Attributes:
        original_text: The text, with ``[[ ]]`` round the words that were changed.
        perturbed_text: What the attack made of it, with ``[[ ]]`` round the new words.
        original_score: 1 - p(true class) of the original text.
        perturbed_score: The same of the perturbed text.
        original_output: Class predicted for the original text.
        perturbed_output: Class predicted for the perturbed text.
        ground_truth_output: True class.
        num_queries: Texts the attack showed the classifier, the original included.
        result_type: What the attack says: ``"Successful"`` if its goal was reached, ``"Failed"`` if not, or
            ``"Skipped"`` if the original was misclassified already. See also `outcome`.
        alternatives: Further perturbed texts that reach the goal, marked like ``perturbed_text``, best first.
    """

    original_text: str
    perturbed_text: str
    original_score: float
    perturbed_score: float
    original_output: int
    perturbed_output: int
    ground_truth_output: int
    num_queries: int
    result_type: ResultType
    alternatives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.result_type not in _RESULT_TYPES:
            raise ValueError(
                f"result_type is {self.result_type!r}, expected one of {', '.join(_RESULT_TYPES)}"
            )
        for name in _SCORES:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}, expected a finite number")

    @property
    def outcome(self) -> ResultType:
        """The result by the predictions alone, whatever the goal of the attack was."""
        if self.original_output != self.ground_truth_output:
            return "Skipped"
        return "Failed" if self.perturbed_output == self.original_output else "Successful"

    def perturbed_word_rate(self) -> float:
        """Changed, deleted or inserted words by words of the original (`split_words`); 0 without words."""
        words = len(split_words(strip_marks(self.original_text)))
        changed = max(
            sum(len(split_words(marked)) for marked in _MARKED.findall(text))
            for text in (self.original_text, self.perturbed_text)
        )
        return changed / words if words else 0.0


@dataclass(frozen=True)
class AttackSummary:
    """Figures of a log. Rates are shares of one; a rate of nothing is NaN.

    Attributes:
        texts: Number of records.
        successful: Records of that result, likewise ``failed`` and ``skipped``.
        failed: See ``successful``.
        skipped: See ``successful``.
        accuracy: Share of texts the classifier gets right before the attack.
        accuracy_under_attack: Share of texts it still gets right afterwards.
        success_rate: Share of attacked texts, those not skipped, for which the attack reached its goal.
        mean_queries: Mean number of queries for an attacked text.
        perturbed_word_rate: Mean share of changed words in successful examples.
    """

    texts: int
    successful: int
    failed: int
    skipped: int
    accuracy: float
    accuracy_under_attack: float
    success_rate: float
    mean_queries: float
    perturbed_word_rate: float


class AttackLog(Sequence[AttackRecord]):
    """The records of one attack on one classifier, in the order of the data.

    Args:
        records: The records.
        name: The attack, such as ``"textfooler"``.
        model: The classifier's name.
        settings: What else tells this run from others; JSON values only.

    Example:
        ```python
        log = AttackLog.read_csv("bert_textfooler.csv.gz", broken="skip")
        print(log.summary().accuracy_under_attack)
        log.write_parquet("bert_textfooler.parquet")
        ```
    """

    def __init__(
        self,
        records: Iterable[AttackRecord],
        name: str = "",
        model: str = "",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.records = tuple(records)
        self.name = name
        self.model = model
        self.settings = dict(settings or {})

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> AttackRecord: ...
    @overload
    def __getitem__(self, index: slice) -> AttackLog: ...
    def __getitem__(self, index: int | slice) -> AttackRecord | AttackLog:
        if isinstance(index, slice):
            return AttackLog(self.records[index], self.name, self.model, self.settings)
        return self.records[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttackLog) and (self.records, self.name, self.model, self.settings) == (
            other.records,
            other.name,
            other.model,
            other.settings,
        )

    def __repr__(self) -> str:
        return f"AttackLog({len(self)} records, name={self.name!r}, model={self.model!r})"

    def summary(self) -> AttackSummary:
        """Counts and rates by ``result_type``; call `relabelled` first for those by prediction."""
        by_type = {kind: [r for r in self.records if r.result_type == kind] for kind in _RESULT_TYPES}
        successful, failed, skipped = (by_type[kind] for kind in _RESULT_TYPES)
        attacked = successful + failed
        return AttackSummary(
            texts=len(self),
            successful=len(successful),
            failed=len(failed),
            skipped=len(skipped),
            accuracy=_mean(r.result_type != "Skipped" for r in self.records),
            accuracy_under_attack=_mean(r.result_type == "Failed" for r in self.records),
            success_rate=_mean(r.result_type == "Successful" for r in attacked),
            mean_queries=_mean(r.num_queries for r in attacked),
            perturbed_word_rate=_mean(r.perturbed_word_rate() for r in successful),
        )

    def relabelled(self) -> AttackLog:
        """The same log with every ``result_type`` taken from the predictions, see `AttackRecord.outcome`."""
        records = (replace(record, result_type=record.outcome) for record in self.records)
        return AttackLog(records, self.name, self.model, self.settings)

    @classmethod
    def read_csv(
        cls,
        path: str | Path,
        *,
        name: str | None = None,
        model: str | None = None,
        broken: Literal["raise", "skip"] = "raise",
    ) -> Self:
        """Read a log in TextAttack's CSV form; columns in any order, unknown columns ignored.

        Args:
            path: UTF-8 file, compressed with gzip if its name ends in ``.gz``.
            name: The attack; by default what `write_csv` noted beside the file, else the file's name.
            model: The classifier; by default what `write_csv` noted, else the empty string.
            broken: What happens to a row that cannot be read (cells missing, stray or unclosed quotes, a cell
                that is no number, bytes that are no UTF-8): ``"raise"``, or ``"skip"`` with a warning.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: A column is missing or, unless they are skipped, a row is broken; the message names
                file and line.
        """
        if broken not in ("raise", "skip"):
            raise ValueError(f"broken is {broken!r}, expected 'raise' or 'skip'")
        path = Path(path)
        rows, errors = _parse(path, _read(path))
        if errors and broken == "raise":
            raise ValueError(errors[0] + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""))
        if errors:
            shown = "; ".join(errors[:5]) + ("; ..." if len(errors) > 5 else "")
            warnings.warn(f"skipped {len(errors)} broken row(s): {shown}", stacklevel=2)
        notes: dict[str, Any] = read_json(_notes(path)) if _notes(path).is_file() else {}
        return cls(
            (record for _, record in sorted(rows, key=lambda row: row[0])),
            name=notes.get("name", path.name.split(".")[0]) if name is None else name,
            model=notes.get("model", "") if model is None else model,
            settings=notes.get("settings"),
        )

    def write_csv(self, path: str | Path) -> None:
        """Write the log as TextAttack does; attack, model and settings go into ``PATH.json`` beside it.

        Line breaks become ``<SPLIT>``. A column ``alternatives`` is added if a record has any.

        Args:
            path: File to write or replace; compressed with gzip if its name ends in ``.gz``.
        """
        path = Path(path)
        extra = (_ALTERNATIVES,) if any(record.alternatives for record in self.records) else ()
        columns = (*_COLUMNS, *extra)
        data = "".join(
            [_line(columns), *(_line(_cells(record, columns)) for record in self.records)]
        ).encode()
        write_json(_notes(path), {"name": self.name, "model": self.model, "settings": dict(self.settings)})
        write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)

    def write_parquet(self, path: str | Path) -> None:
        """Write the log, with attack, model and settings, as one Parquet file; needs pyarrow.

        Args:
            path: File to write or replace.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {
            **dict.fromkeys((*_TEXTS, "result_type"), pa.string()),
            **dict.fromkeys(_SCORES, pa.float64()),
            **dict.fromkeys(_INTEGERS, pa.int64()),
            _ALTERNATIVES: pa.list_(pa.string()),
        }
        notes = json.dumps({"name": self.name, "model": self.model, "settings": dict(self.settings)})
        table = pa.table(
            {name: [getattr(record, name) for record in self.records] for name in types},
            schema=pa.schema(types.items(), metadata={"attack_log": notes}),
        )
        file = io.BytesIO()
        pq.write_table(table, file, compression="zstd")
        write_bytes(path, file.getvalue())

    @classmethod
    def read_parquet(cls, path: str | Path) -> Self:
        """Read a log that `write_parquet` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no Parquet file or lacks a column.
        """
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        missing = set(_COLUMNS) - set(table.column_names)
        if missing:
            raise ValueError(f"{path}: no attack log, the columns {', '.join(sorted(missing))} are missing")
        notes = json.loads((table.schema.metadata or {}).get(b"attack_log", b"{}"))
        names = [name for name in (*_COLUMNS, _ALTERNATIVES) if name in table.column_names]
        records = (
            AttackRecord(**{**row, _ALTERNATIVES: tuple(row.get(_ALTERNATIVES) or ())})
            for row in table.select(names).to_pylist()
        )
        return cls(records, **notes)


class RunLog:
    """The log of a run under way: a CSV file that grows by whole rows, in the order in which texts are done.

    A second run with the same path, attack, model and settings finds in `done` what an interrupted one left;
    a row torn by the interruption is dropped. The file reads as an `AttackLog` at any time. Beyond
    TextAttack's columns it has ``alternatives`` and ``example``, the position in the data.

    Args:
        path: The CSV file, new or of an interrupted run; must not end in ``.gz``.
        name: The attack.
        model: The classifier's name or fingerprint.
        settings: What else decides the results, the data included; JSON values only.

    Raises:
        ValueError: The file belongs to another run or a row in its middle is broken.

    Example:
        ```python
        run = RunLog("log.csv", "pwws", classifier.name, settings)
        for index in set(range(len(data))) - set(run.done):
            run.append(index, attack(data[index]))
        log = run.log()
        ```
    """

    def __init__(self, path: str | Path, name: str, model: str, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.done: dict[int, AttackRecord] = {}
        if self.path.suffix == ".gz":
            raise ValueError(f"{self.path} cannot grow: give a path that does not end in .gz")
        self._notes = json.loads(json.dumps({"name": name, "model": model, "settings": dict(settings)}))
        if self.path.exists():
            self._resume()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(_notes(self.path), self._notes)
            write_bytes(self.path, _line((*_COLUMNS, _ALTERNATIVES, _EXAMPLE)).encode())

    def _resume(self) -> None:
        notes = read_json(_notes(self.path)) if _notes(self.path).is_file() else None
        if notes != self._notes:
            raise ValueError(
                f"{self.path} belongs to another run: {_notes(self.path).name} says {notes}, this run is "
                f"{self._notes}; remove the file or choose another path"
            )
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        rows, errors = _parse(self.path, whole)
        if errors:
            raise ValueError(errors[0])
        self.done = dict(rows)
        if len(whole) < len(data):
            write_bytes(self.path, whole)

    def append(self, example: int, record: AttackRecord) -> None:
        """Add the record of one example to the file.

        Args:
            example: Position in the data, from 0.
            record: Its record.
        """
        cells = [*_cells(record, (*_COLUMNS, _ALTERNATIVES)), example]
        with open(self.path, "ab") as file:
            file.write(_line(cells).encode())
        self.done[example] = record

    def log(self) -> AttackLog:
        """What was done so far, in the order of the data."""
        return AttackLog((self.done[example] for example in sorted(self.done)), **self._notes)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else math.nan


def _notes(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _line(cells: Iterable[object]) -> str:
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(cells)
    return file.getvalue()


def _cells(record: AttackRecord, columns: Iterable[str]) -> list[object]:
    special: dict[str, object] = {name: getattr(record, name).replace("\n", _NEWLINE) for name in _TEXTS}
    special[_ALTERNATIVES] = json.dumps(record.alternatives, ensure_ascii=False)
    return [special.get(column, getattr(record, column)) for column in columns]


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error


def _parse(path: Path, data: bytes) -> tuple[list[tuple[int, AttackRecord]], list[str]]:
    """The rows of a log with their position in the data, and what is wrong with rows that cannot be read.

    A broken row ends with its line, so that a quote that is never closed costs one row and not the rest.
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    header = _split(lines[0])
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise ValueError(f"{path}:1: no attack log, the columns {', '.join(missing)} are missing")
    rows: list[tuple[int, AttackRecord]] = []
    errors: list[str] = []
    first = 1
    while first < len(lines):
        last = first + 1
        # A text may hold line breaks: take lines until its quotes are closed or another row starts.
        quotes = lines[first].count(b'"')
        while quotes % 2 and last < len(lines) and not _is_record(header, lines[last]):
            quotes += lines[last].count(b'"')
            last += 1
        line = b"\n".join(lines[first:last])
        if line.strip():
            try:
                rows.append(_record(header, line, len(rows)))
            except ValueError as error:
                errors.append(f"{path}:{first + 1}: {error}")
                last = first + 1
        first = last
    return rows, errors


def _is_record(header: list[str], line: bytes) -> bool:
    try:
        _record(header, line, 0)
    except ValueError:
        return False
    return True


def _record(header: list[str], line: bytes, position: int) -> tuple[int, AttackRecord]:
    cells = _split(line)
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells instead of {len(header)}")
    row = dict(zip(header, cells, strict=True))
    values: dict[str, Any] = {name: row[name].replace(_NEWLINE, "\n") for name in _TEXTS}
    values |= {name: _number(name, row[name]) for name in _SCORES}
    values |= {name: _integer(name, row[name]) for name in _INTEGERS}
    values["result_type"] = row["result_type"]
    if row.get(_ALTERNATIVES):
        values[_ALTERNATIVES] = tuple(json.loads(row[_ALTERNATIVES]))
    if row["result_type"] == "Maximized":  # TextAttack's word for the end of a search without a goal to reach
        values["result_type"] = "Failed"
        values["result_type"] = AttackRecord(**values).outcome
    return _integer(_EXAMPLE, row.get(_EXAMPLE, str(position))), AttackRecord(**values)


def _split(line: bytes) -> list[str]:
    """The cells of a row. Python's reader repairs stray quotes and refuses more than 131,072 characters."""
    text = line.decode("utf-8").removesuffix("\r")
    cells, position = [], 0
    while True:
        match = _FIELD.match(text, position)
        assert match is not None  # the second form matches the empty string
        cells.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        position = match.end()
        if position == len(text):
            return cells
        if text[position] != ",":
            raise ValueError(f"a stray or unclosed quote, or a line break, after {text[:position][-20:]!r}")
        position += 1


def _number(name: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{name} is {cell[:40]!r}, expected a number") from None


def _integer(name: str, cell: str) -> int:
    number = _number(name, cell)
    if not number.is_integer():
        raise ValueError(f"{name} is {cell[:40]!r}, expected a whole number")
    return int(number)
