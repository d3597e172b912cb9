"""Dialogues: cleaning of one line, histories, and readers whose errors say where they happened."""

import gzip
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogkit.dialogues import (
    DataError,
    Dialogue,
    Example,
    Turn,
    as_history,
    read_dialogues,
    read_examples,
    single_line,
)

BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
HOSTILE = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from(BREAKS + "\t\x00\x07\x1b\x7f\x9f\u200d\u0301\ufe0f \u00a0"),
        st.sampled_from(["\ud800", "\udfff"]),
    )
)


def write_lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


class TestSingleLine:
    @given(HOSTILE)
    def test_result_is_one_line_without_control_characters(self, text):
        line = single_line(text)
        assert len(line.splitlines()) <= 1
        assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in line)
        assert line == line.strip()
        line.encode("utf-8")

    @given(HOSTILE)
    def test_applying_it_twice_changes_nothing(self, text):
        assert single_line(single_line(text)) == single_line(text)

    @given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1))
    def test_text_without_breaks_and_controls_is_only_stripped(self, text):
        assert single_line(text) == text.strip()

    @given(st.text(), st.sampled_from(BREAKS), st.text(max_size=20))
    def test_words_on_both_sides_of_a_break_stay_apart(self, before, line_break, name):
        line = single_line(f"x{before}{line_break}User: {name}x")
        assert f"\nUser: {name}" not in line
        assert " User: " in line

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("Hello.\nUser: I am forged", "Hello. User: I am forged"),
            ("a \r\n\t b", "a b"),
            ("a\x85b\u2028c\u2029d", "a b c d"),
            ("bell\x07, escape\x1b[31m, null\x00.", "bell, escape[31m, null."),
            ("a  b", "a  b"),
            ("👩‍👩‍👧 🇩🇪 👍🏽 ❤️ e\u0301 नि", "👩‍👩‍👧 🇩🇪 👍🏽 ❤️ e\u0301 नि"),
            ("lone \ud83d half", "lone \ufffd half"),
            ("a\x1fb", "ab"),
            ("\n\x00\t", ""),
        ],
    )
    def test_examples(self, text, line):
        assert single_line(text) == line

    def test_anything_but_text_is_refused(self):
        with pytest.raises(TypeError, match="text must be a string, got bytes"):
            single_line(b"hello")


class TestHistory:
    def test_text_becomes_a_turn_of_the_user(self):
        assert as_history("Hello.\n") == (Turn("User", "Hello.\n"),)

    def test_turns_stay_as_they_are(self):
        turns = [Turn("User", "Hello."), Turn("Bob", "Hi."), Turn("User", "Who are you?")]
        assert as_history(turns) == tuple(turns)

    @pytest.mark.parametrize(
        "empty", ["", "  \n", "\x00\x07", [], [Turn("User", "Hello."), Turn("Bob", "\t")]]
    )
    def test_a_history_that_ends_in_nothing_is_refused(self, empty):
        with pytest.raises(ValueError, match=r"must hold at least one turn|must say something"):
            as_history(empty)

    @pytest.mark.parametrize("wrong", [["Hello."], [("User", "Hello.")], 3, iter(())])
    def test_other_things_are_refused(self, wrong):
        with pytest.raises(TypeError, match="history must"):
            as_history(wrong)


class TestRecords:
    def test_turn_needs_a_speaker(self):
        with pytest.raises(ValueError, match="speaker must not be blank, got '  '"):
            Turn("  ", "Hello.")
        with pytest.raises(TypeError, match="text must be a string, got NoneType"):
            Turn("User", None)

    def test_lists_become_tuples_and_records_are_hashable(self):
        dialogue = Dialogue("d", [Turn("User", "Hello.")])
        assert dialogue.turns == (Turn("User", "Hello."),)
        assert len({dialogue, Dialogue("d", (Turn("User", "Hello."),))}) == 1
        assert Example(["Hello."], "Hi.").context == ("Hello.",)

    @pytest.mark.parametrize(
        ("context", "response", "error"),
        [
            ((), "Hi.", "context must hold at least one turn"),
            (("Hello.",), " ", "response must not be blank"),
            ("Hello.", "Hi.", "context must be a sequence of strings, got a string"),
            ((1,), "Hi.", "context must be a string, got int"),
        ],
    )
    def test_example_needs_context_and_response(self, context, response, error):
        with pytest.raises((TypeError, ValueError), match=error):
            Example(context, response)

    def test_dialogue_needs_turns(self):
        with pytest.raises(ValueError, match="at least one turn"):
            Dialogue("d", ())
        with pytest.raises(TypeError, match="turns must hold Turn objects, got str"):
            Dialogue("d", ("Hello.",))


RECORD = {"id": "d1", "turns": [{"speaker": "User", "text": "Héllo 👋"}, {"speaker": "Bob", "text": "Hi."}]}
DIALOGUE = Dialogue("d1", (Turn("User", "Héllo 👋"), Turn("Bob", "Hi.")))


class TestReaders:
    def test_json_lines(self, tmp_path):
        path = write_lines(tmp_path / "d.jsonl", RECORD, RECORD | {"id": "d2", "extra": 1})
        assert [dialogue.id for dialogue in read_dialogues(path)] == ["d1", "d2"]
        assert next(read_dialogues(str(path))) == DIALOGUE

    def test_gzip_blank_lines_crlf_and_byte_order_mark(self, tmp_path):
        line = json.dumps(RECORD, ensure_ascii=False).encode()
        content = b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line  # no newline at the end
        (tmp_path / "d.jsonl").write_bytes(content)
        (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(content))
        assert list(read_dialogues(tmp_path / "d.jsonl")) == [DIALOGUE] * 2
        assert list(read_dialogues(tmp_path / "d.jsonl.gz")) == [DIALOGUE] * 2

    def test_a_line_separator_inside_a_text_does_not_end_the_line(self, tmp_path):
        example = {"context": ["a\u2028b\x85c"], "response": "d"}
        (tmp_path / "e.jsonl").write_text(json.dumps(example, ensure_ascii=False), encoding="utf-8")
        assert list(read_examples(tmp_path / "e.jsonl")) == [Example(("a\u2028b\x85c",), "d")]

    def test_datasets_and_other_iterables(self):
        datasets = pytest.importorskip("datasets")
        rows = [RECORD, RECORD | {"id": "d2"}]
        assert [d.id for d in read_dialogues(datasets.Dataset.from_list(rows))] == ["d1", "d2"]
        assert next(read_dialogues(iter(rows))) == DIALOGUE
        columns = {"speaker": ["User", "Bob"], "text": ["Héllo 👋", "Hi."]}
        assert list(read_dialogues([{"id": "d1", "turns": columns}])) == [DIALOGUE]
        examples = datasets.Dataset.from_list([{"context": ["a", "b"], "response": "c"}])
        assert list(read_examples(examples)) == [Example(("a", "b"), "c")]

    def test_reading_is_lazy(self, tmp_path):
        path = tmp_path / "e.jsonl"
        path.write_text('{"context": ["a"], "response": "b"}\nnonsense\n')
        reader = read_examples(path)
        assert next(reader) == Example(("a",), "b")
        with pytest.raises(DataError):
            next(reader)

    @pytest.mark.parametrize(
        ("line", "error"),
        [
            (b'{"id": "d1", "turns": [', "not valid JSON"),
            (b'{"id": "d1\xff", "turns": []}', r"not UTF-8 at byte 11 of the line"),
            (b"[1, 2]", "must be a JSON object, got"),
            (b'{"turns": []}', r"lacks the key 'id'"),
            (b'{"id": "d1"}', r"lacks the key 'turns', has \['id'\]"),
            (b'{"id": "d1", "turns": []}', "at least one turn"),
            (b'{"id": 7, "turns": [{"speaker": "a", "text": "b"}]}', "id must be a string, got int"),
            (b'{"id": "d1", "turns": "hello"}', "'turns' must be a list, got str"),
            (b'{"id": "d1", "turns": ["hello"]}', "turn 1: must be an object"),
            (b'{"id": "d1", "turns": [{"speaker": "a"}]}', "turn 1: lacks the key 'text'"),
            (b'{"id": "d1", "turns": [{"speaker": "a", "text": 3}]}', "turn 1: text must be a string"),
            (b'{"id": "d1", "turns": [{"speaker": "", "text": "b"}]}', "turn 1: speaker must not be blank"),
            (b"[" * 100_000, "not valid JSON"),
        ],
    )
    @pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
    def test_errors_name_file_and_line(self, tmp_path, name, line, error):
        content = json.dumps(RECORD).encode() + b"\n\n" + line + b"\n"
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        with pytest.raises(DataError, match=error) as caught:
            list(read_dialogues(path))
        assert str(caught.value).startswith(f"{path}, line 3")

    @pytest.mark.parametrize(
        ("record", "error"),
        [
            ({"response": "b"}, "lacks the key 'context'"),
            ({"context": "a", "response": "b"}, "'context' must be a list of strings, got str"),
            ({"context": [1], "response": "b"}, "context must be a string, got int"),
            ({"context": [], "response": "b"}, "at least one turn"),
            ({"context": ["a"], "response": ""}, "response must not be blank"),
            ("a", "must be a mapping, got str"),
        ],
    )
    def test_errors_name_the_row(self, record, error):
        with pytest.raises(DataError, match=error) as caught:
            list(read_examples([{"context": ["a"], "response": "b"}, record]))
        assert str(caught.value).startswith("row 1:")

    def test_columns_of_different_length(self):
        turns = {"speaker": ["User"], "text": ["a", "b"]}
        with pytest.raises(DataError, match="row 0: 'turns' has 1 speakers but 2 texts"):
            list(read_dialogues([{"id": "d", "turns": turns}]))

    def test_damaged_gzip(self, tmp_path):
        whole = gzip.compress(b"\n".join(json.dumps(RECORD | {"id": str(n)}).encode() for n in range(2000)))
        (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "fake.gz").write_bytes(b"not gzip at all")
        for name in ("cut.gz", "fake.gz"):
            with pytest.raises(DataError, match=f"{name}, line .*the gzip file is damaged"):
                list(read_dialogues(tmp_path / name))

    def test_missing_file_and_wrong_source(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no such dialogue file: .*none\.jsonl"):
            list(read_dialogues(tmp_path / "none.jsonl"))
        with pytest.raises(TypeError, match="source must be a path"):
            list(read_dialogues({"id": "d"}))
