"""Damaged and hostile files get a sentence with file and line, in little time and memory."""

import json

import pytest

from pbsd.compare.study_file import load_study
from pbsd.evaluate.records import RECORDS, ResultFolder
from pbsd.reading import parse_yaml, read_lines, read_object, read_text, read_yaml, reading
from pbsd.recipe import load_recipe
from pbsd.report.files import read_yaml as read_yaml_of_a_report
from pbsd.run import RunFolder, _cut_after_step

NINE = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
BOMB = "\n".join(["a0: &a0 [x, x]", *NINE]) + "\n"
"""Ten lines that stand for a billion values."""
MERGES = "\n".join(
    ["m0: &m0 {k: 1, l: 2}", *(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 10))]
)
UNDER_A_KNOWN_KEY = BOMB.replace("a9: &a9 ", "reward_funcs: ").replace("a0:", "dataset_name:")


@pytest.mark.parametrize("text", [BOMB, MERGES, UNDER_A_KNOWN_KEY], ids=["lists", "merges", "known keys"])
@pytest.mark.parametrize(
    "read", [read_yaml, load_recipe, load_study, lambda path: read_yaml_of_a_report(path, [])],
    ids=["yaml", "recipe", "study", "report"],
)  # fmt: skip
def test_aliases_that_stand_for_too_much(tmp_path, text, read):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"x.yaml, line \d+: its aliases stand for more than 100,000 values"):
        read(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("a: " + "{b: " * 150 + "1" + "}" * 150, "nested more than 100 levels deep"),
        ("a: &a [*a]", "inside itself by an alias"),
        ("a: 2024-99-99", "x.yaml"),
        ("a: 1" + "0" * 5000, "x.yaml"),
        ("a: [1", "not valid YAML"),
        ("a: !!python/object:os.system 1", "not valid YAML"),
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_read(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_yaml(text, "x.yaml")
    assert "x.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("beta: 1\nx: 2\nbeta: 3", "line 3: the key 'beta' is given already in line 1"),
        ("a:\n  b: 1\n  'b': 2", "line 3: the key 'b' is given already in line 2"),
        ("a: {b: 1, b: 1}", "line 1: the key 'b' is given already in line 1"),
        ("- {a: 1}\n- a: 1\n  a: 2", "line 3: the key 'a' is given already in line 2"),
    ],
)
def test_a_key_that_is_given_twice(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    for read in (read_yaml, load_recipe, load_study):
        with pytest.raises(ValueError, match=f"x.yaml, {words}"):
            read(tmp_path / "x.yaml")


def test_equal_keys_of_different_mappings_and_over_a_merge_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: &b {x: 2}\nc: {<<: *a, <<: *b, x: 3}\n1: 1\n'1': 2", "x")["c"] == {"x": 3}


def test_aliases_and_merges_of_an_ordinary_size_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]", "x")["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("read", [read_text, read_yaml, read_object, read_lines, load_recipe, load_study])
def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path, read):
    (tmp_path / "x.yaml").write_bytes(b'{"a": 1}\n{"b": "\xff"}\n')
    with pytest.raises(ValueError, match="x.yaml, line 2: byte 0xff is not UTF-8 .byte 16 of the file.: save the file"):
        read(tmp_path / "x.yaml")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "x").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "x") == {"a": 1}


@pytest.mark.parametrize("content", ["", "[1]", "null", '"x"', "{", "\0" * 40, "[" * 100_000])
def test_json_that_is_no_object(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="x.json: (not JSON|must be a JSON object)"):
        read_object(tmp_path / "x.json")


def test_of_lines_only_a_last_one_that_was_being_written_is_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "\xe2\x80\xa8"}\n\n{"a": 2}\n{"a": "\xc3')
    assert read_lines(path) == [{"a": "\u2028"}, {"a": 2}]
    path.write_bytes(b'{"a": 1}\n{"a": 2}')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    for damaged in (b'{"a": 1\n{"a": 2}\n', b'{"a": 1}\n[2]\n', b'{"a": 1}\nx'):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x.jsonl, line [12]: "):
            read_lines(path)


@pytest.mark.parametrize("zeroed", [slice(0, None), slice(0, 10), slice(-25, None)], ids=["all", "begin", "end"])
def test_zeroed_metrics_are_refused_and_kept(tmp_path, zeroed):
    """A machine that went down leaves zero bytes. Without a line break they look like a line that was cut off."""
    RunFolder(tmp_path).append("metrics.jsonl", [{"step": step, "loss": 0.5} for step in range(1, 4)])
    path = tmp_path / "metrics.jsonl"
    content = bytearray(path.read_bytes())
    content[zeroed] = b"\0" * len(content[zeroed])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics.jsonl, line \d: not JSON .zero bytes"):
        _cut_after_step(path, 2)
    assert path.read_bytes() == content


def test_zeroed_records_are_refused_and_kept(tmp_path):
    """An evaluation cuts off a record that was being written; zero bytes are none."""
    (tmp_path / RECORDS).write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=f"{RECORDS}: what stands behind the last whole line is not a record"):
        ResultFolder(tmp_path)._keep_whole_records(5)
    assert (tmp_path / RECORDS).read_bytes() == b"\0" * 100


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), EOFError(), TypeError("no"), UnicodeError("u")])
def test_what_a_damaged_file_raises_names_it(error):
    with pytest.raises(ValueError, match="f.json: damaged, .*: bring it back"), reading("f.json", "bring it back"):
        raise error


def test_our_own_refusals_stay_as_they_are():
    with pytest.raises(ValueError, match="^beta must be positive$"), reading("f.json", "bring it back"):
        raise ValueError("beta must be positive")


def test_lines_are_cut_without_changing_those_that_stay(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append("samples.jsonl", [{"step": step, "text": "é\u2028x", "p": 1e-7 * step} for step in (1, 2, 3)])
    before = (tmp_path / "samples.jsonl").read_bytes()
    _cut_after_step(tmp_path / "samples.jsonl", 3)
    assert (tmp_path / "samples.jsonl").read_bytes() == before
    _cut_after_step(tmp_path / "samples.jsonl", 1)
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {"step": 1, "text": "é\u2028x", "p": 1e-7}


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"PK\3\4" + b"x" * 500])
def test_a_damaged_state_of_a_build_is_named(tmp_path, content):
    from pbsd.lab.base_model import build_base
    from pbsd.lab.bases import BASES

    (tmp_path / "training_state.pt").write_bytes(content)
    with pytest.raises(ValueError, match="training_state.pt: damaged, .*: remove it to build the base again"):
        build_base(BASES["arithmetic-0.2m-dense"], tmp_path)
