"""Attack logs: both file forms, broken files, summaries, runs that go on after an interruption."""

from __future__ import annotations

import csv
import gzip
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.attacks.logs import AttackLog, AttackRecord, RunLog, strip_marks
from trainkit.datafiles import data_file

RECORD = AttackRecord(
    original_text='a [[fine]] "film"\nwith [sic] brackets',
    perturbed_text='a [[decent]] "film"\nwith [sic] brackets',
    original_score=0.1,
    perturbed_score=0.7,
    original_output=1,
    perturbed_output=0,
    ground_truth_output=1,
    num_queries=12,
    result_type="Successful",
)
FAILED = replace(RECORD, perturbed_score=0.4, perturbed_output=1, result_type="Failed", num_queries=30)
SKIPPED = replace(RECORD, original_output=0, original_score=0.8, result_type="Skipped", num_queries=1)
LOG = AttackLog([RECORD, FAILED, SKIPPED], "pwws", "tiny", {"seed": 3})

HEADER = (
    '"original_text","perturbed_text","original_score","perturbed_score","original_output",'
    '"perturbed_output","ground_truth_output","num_queries","result_type"'
)
ROW = '"a [[b]]","a [[c]]",0.1,0.9,0.0,1.0,0.0,5.0,"Successful"'

texts = st.text(st.characters(codec="utf-8"), max_size=60).filter(lambda t: "<SPLIT>" not in t)
records = st.builds(
    AttackRecord,
    original_text=texts,
    perturbed_text=texts,
    original_score=st.floats(0, 1),
    perturbed_score=st.floats(0, 1),
    original_output=st.integers(0, 9),
    perturbed_output=st.integers(0, 9),
    ground_truth_output=st.integers(0, 9),
    num_queries=st.integers(1, 10**6),
    result_type=st.sampled_from(["Successful", "Failed", "Skipped"]),
    alternatives=st.lists(texts, max_size=2).map(tuple),
)


def read(path: Path, text: str, **options: Any) -> AttackLog:
    path.write_bytes(text.encode())
    return AttackLog.read_csv(path, **options)


# Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet"])
@given(found=st.lists(records, max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_log_comes_back_equal(found: list[AttackRecord], name: str, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("log") / name
    log = AttackLog(found, "attack", "model", {"seed": 1, "parts": ["a", None]})
    if name.endswith(".parquet"):
        log.write_parquet(path)
        assert AttackLog.read_parquet(path) == log
    else:
        log.write_csv(path)
        assert AttackLog.read_csv(path) == log


def test_the_csv_is_textattacks(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    LOG.write_csv(path)
    lines = path.read_text().split("\n")
    assert lines[0] == HEADER and lines[4:] == [""]
    assert lines[1] == (
        '"a [[fine]] ""film""<SPLIT>with [sic] brackets","a [[decent]] ""film""<SPLIT>with [sic] brackets",'
        '0.1,0.7,1,0,1,12,"Successful"'
    )
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert [row["result_type"] for row in rows] == ["Successful", "Failed", "Skipped"]


def test_alternatives_make_a_column_of_their_own(tmp_path: Path) -> None:
    log = AttackLog([replace(RECORD, alternatives=('a [[good]]\n"x"', "b"))])
    log.write_csv(tmp_path / "log.csv")
    assert (tmp_path / "log.csv").read_text().startswith(HEADER + ',"alternatives"\n')
    assert AttackLog.read_csv(tmp_path / "log.csv", name="") == log


def test_a_foreign_csv_is_read_in_any_order_with_line_breaks_and_further_columns(tmp_path: Path) -> None:
    header = (
        "index,result_type,num_queries,ground_truth_output,original_output,perturbed_output,original_score,"
    )
    header += "perturbed_score,perturbed_text,original_text\r\n"
    rows = 'x,Successful,5.0,1,1.0,0,1e-3,.9,"two\r\nlines, ""quoted""",plain text\r\n'
    log = read(tmp_path / "bert_pwws.csv", "\ufeff" + header + rows + "\r\n", model="bert")
    assert log.name == "bert_pwws" and log.model == "bert" and log.settings == {}
    assert log[0] == AttackRecord(
        "plain text", 'two\r\nlines, "quoted"', 0.001, 0.9, 1, 0, 1, 5, "Successful"
    )


def test_a_search_without_a_goal_is_judged_by_its_predictions(tmp_path: Path) -> None:
    rows = [
        ROW.replace("Successful", "Maximized"),
        ROW.replace("Successful", "Maximized").replace("0.0,1.0", "0,0"),
    ]
    log = read(tmp_path / "log.csv", "\n".join([HEADER, *rows]))
    assert [record.result_type for record in log] == ["Successful", "Failed"]


BROKEN = {
    "cells missing": ('"a","b",0.1,0.9', "4 cells instead of 9"),
    "a cell too many": (ROW + ",1", "10 cells"),
    "no number": (ROW.replace("0.9", '"high"'), "perturbed_score is 'high'"),
    "no whole number": (ROW.replace("5.0", "5.5"), "num_queries is '5.5'"),
    "an empty number": (ROW.replace("0.1,", ","), "original_score is ''"),
    "not finite": (ROW.replace("0.1,", "nan,"), "original_score is nan"),
    "unknown result": (ROW.replace("Successful", "Maybe"), "result_type is 'Maybe'"),
    "stray quote": (ROW.replace("[[b]]", '[["b]]'), "stray or unclosed quote"),
    "two stray quotes": (ROW.replace("[[b]]", '"b"'), "stray or unclosed quote"),
    "unclosed quote": ('"never closed, 0.1', "stray or unclosed quote"),
    "quote closed too late": (ROW.replace('","a [[c', ',"a [[c'), "stray or unclosed quote"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named_by_line_and_can_be_skipped(case: str, tmp_path: Path) -> None:
    row, message = BROKEN[case]
    text = "\n".join([HEADER, ROW, row, ROW, ROW, ""])
    with pytest.raises(ValueError, match=rf"log\.csv:3: .*{message}"):
        read(tmp_path / "log.csv", text)
    with pytest.warns(UserWarning, match=r"skipped 1 broken row\(s\): .*log\.csv:3: "):
        log = read(tmp_path / "log.csv", text, broken="skip")
    assert len(log) == 3 and len(set(log.records)) == 1


def test_all_broken_rows_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"log\.csv:2: .*\(and 2 more\)"):
        read(tmp_path / "log.csv", "\n".join([HEADER, '"x', ROW, "y", "z", ROW]))


def test_bytes_that_are_no_text_cost_one_row(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(
        f"{HEADER}\n{ROW}\n".encode() + ROW.encode().replace(b"[[b]]", b"\xff") + b"\n" + ROW.encode()
    )
    with pytest.warns(UserWarning, match=r"log\.csv:3: .*utf-8"):
        assert len(AttackLog.read_csv(path, broken="skip")) == 2


@pytest.mark.parametrize("text", ["", "\n", "a,b\n1,2", HEADER.replace('"num_queries",', "")])
def test_a_file_without_the_columns_is_no_log(text: str, tmp_path: Path) -> None:
    for broken in ("raise", "skip"):
        with pytest.raises(ValueError, match=r"log\.csv:1: no attack log, the columns .*num_queries"):
            read(tmp_path / "log.csv", text, broken=broken)


def test_a_damaged_archive_and_bad_arguments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(HEADER.encode())[:-9])
    with pytest.raises(ValueError, match="damaged"):
        AttackLog.read_csv(path)
    path.write_bytes(b"plain")
    with pytest.raises(ValueError, match="damaged"):
        AttackLog.read_csv(path)
    with pytest.raises(ValueError, match="broken is 'ignore'"):
        AttackLog.read_csv(path, broken="ignore")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        AttackLog.read_csv(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="result_type is 'Won'"):
        replace(RECORD, result_type="Won")  # type: ignore[arg-type]


def test_a_text_of_twenty_thousand_words_survives(tmp_path: Path) -> None:
    log = AttackLog([replace(RECORD, original_text="[[wörd]] , " * 20_000)], "x")
    log.write_csv(tmp_path / "log.csv")
    assert AttackLog.read_csv(tmp_path / "log.csv") == log


@pytest.mark.parametrize("name", ["sst2_pwws", "imdb_textfooler"])
def test_published_logs_read_whole(name: str) -> None:
    try:
        path = {
            "sst2_pwws": data_file("attack_logs/bert-base-uncased-sst2_pwws.csv.gz"),
            "imdb_textfooler": data_file("attack_logs/bert-base-uncased-imdb_textfooler.csv.gz"),
        }[name]
    except FileNotFoundError as error:
        pytest.skip(str(error))
    log = AttackLog.read_csv(path)
    summary = log.summary()
    counts = {"sst2_pwws": (872, 698, 108, 66), "imdb_textfooler": (1000, 903, 10, 87)}[name]
    assert (summary.texts, summary.successful, summary.failed, summary.skipped) == counts
    assert log.relabelled() == log  # the outcome by prediction agrees in every row
    with gzip.open(path, "rt", newline="") as file:
        expected = [row["perturbed_text"] for row in csv.DictReader(file, strict=True)]
    assert [record.perturbed_text for record in log] == expected


# What a log says --------------------------------------------------------------------------------------------


def test_summary_by_hand() -> None:
    summary = LOG.summary()
    assert (summary.texts, summary.successful, summary.failed, summary.skipped) == (3, 1, 1, 1)
    assert summary.accuracy == 2 / 3
    assert summary.accuracy_under_attack == 1 / 3
    assert summary.success_rate == 0.5
    assert summary.mean_queries == 21.0
    assert summary.perturbed_word_rate == 1 / 6  # of a, fine, film, with, sic, brackets
    empty = AttackLog([]).summary()
    assert empty.texts == 0 and all(math.isnan(x) for x in (empty.accuracy, empty.mean_queries))


@pytest.mark.parametrize(
    ("original", "perturbed", "rate"),
    [
        ("a [[don't]] b [[87-minute]]", "a [[x]] b [[y]]", 0.5),
        ("a b", "a [[new]] b", 0.5),  # an insertion marks the perturbed text only
        ("a [[b]]", "a", 0.5),
        ("", "", 0.0),
        ("?!", "?!", 0.0),
    ],
)
def test_the_rate_of_perturbed_words(original: str, perturbed: str, rate: float) -> None:
    assert replace(RECORD, original_text=original, perturbed_text=perturbed).perturbed_word_rate() == rate


def test_behaviour_17_relabelling_takes_the_outcome_from_the_predictions() -> None:
    wrong = AttackLog([replace(r, result_type="Failed") for r in LOG], "pwws", "tiny", {"seed": 3})
    assert wrong.relabelled() == LOG
    assert [r.outcome for r in LOG] == ["Successful", "Failed", "Skipped"]


def test_behaviour_16_both_conventions_of_stripping() -> None:
    assert strip_marks("a [[b c]] [d] [[e]]]") == "a b c [d] e]"
    assert strip_marks("a [[b c]] [d] [[e]]]", "acl") == "a b c d e"
    with pytest.raises(ValueError, match="compat is 'old'"):
        strip_marks("a", "old")  # type: ignore[arg-type]


def test_a_log_is_a_sequence() -> None:
    assert len(LOG) == 3 and list(LOG) == [RECORD, FAILED, SKIPPED] and LOG[-1] is SKIPPED
    assert LOG[1:] == AttackLog([FAILED, SKIPPED], "pwws", "tiny", {"seed": 3})
    assert AttackLog(LOG, "bae", "tiny", {"seed": 3}) != LOG


# Runs -------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was_cut_at_any_byte(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "log.csv"
    run = RunLog(path, "pwws", "tiny", {"seed": 3})
    for example, record in ((2, SKIPPED), (0, RECORD), (1, FAILED)):
        run.append(example, record)
    assert run.log() == LOG
    assert (
        AttackLog.read_csv(path) == LOG
    )  # rows in the order in which they came, read in the order of the data
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(ends[0], len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = RunLog(path, "pwws", "tiny", {"seed": 3})
        assert list(again.done) == [2, 0, 1][: sum(end <= cut for end in ends) - 1]
        for example, record in ((2, SKIPPED), (0, RECORD), (1, FAILED)):
            if example not in again.done:
                again.append(example, record)
        assert path.read_bytes() == whole


def test_a_run_refuses_the_file_of_another(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    RunLog(path, "pwws", "tiny", {"seed": 3})
    for other in (("bae", "tiny", {"seed": 3}), ("pwws", "big", {"seed": 3}), ("pwws", "tiny", {"seed": 4})):
        with pytest.raises(ValueError, match="belongs to another run"):
            RunLog(path, *other)
    (tmp_path / "log.csv.json").unlink()
    with pytest.raises(ValueError, match="belongs to another run"):
        RunLog(path, "pwws", "tiny", {"seed": 3})
    with pytest.raises(ValueError, match="cannot grow"):
        RunLog(tmp_path / "log.csv.gz", "pwws", "tiny", {})


def test_a_run_refuses_a_file_broken_in_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    run = RunLog(path, "pwws", "tiny", {})
    path.write_bytes(path.read_bytes() + b"nonsense\n")
    run.append(0, RECORD)
    with pytest.raises(ValueError, match=r"log\.csv:2: "):
        RunLog(path, "pwws", "tiny", {})
