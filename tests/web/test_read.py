"""What the report makes of files: figures, flags, cut-off lines, damage. No browser."""

import gzip
import json
import math

import pytest

from pbsd.compare.files import read_rows
from pbsd.report.commands import report
from pbsd.report.commands import run as run_report
from pbsd.report.elements import short, visible
from pbsd.report.explorer import explorer
from pbsd.report.files import read_lines, read_text
from pbsd.report.page import json_block
from pbsd.report.runs import difference, read_run
from pbsd.report.sections import sections
from pbsd.report.study import read_study
from pbsd.report.trials import Point, Trial, band, final_accuracy, run_labels, run_trials
from web.folders import AFTER, pair, sample, write_run, write_study


def test_intervals_are_those_derived_by_hand(tmp_path):
    """See folders.AFTER. The clustered half width of the gain of 1/4 is .3248: on the scale of atanh that is .255413 -+
    .3248 / (1 - 1/16) = .346453, from tanh(-.091040) to tanh(.601866)."""
    run = read_run(write_run(tmp_path / "run"), "run")
    before, after = run.before.accuracy("sampled"), run.after.accuracy("sampled")
    gain = difference(run.before, run.after, "sampled")
    assert (before.estimate, after.estimate, gain.estimate) == (0.5, 0.75, 0.25)
    assert (before.low, before.high) == pytest.approx((0.2143, 0.7857), abs=1e-4)
    assert (after.low, after.high) == pytest.approx((0.2056, 0.9720), abs=1e-4)
    assert (gain.low, gain.high) == pytest.approx((-0.0908, 0.5383), abs=1e-4)


def test_an_unjudged_problem_is_in_no_mean(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "eval_after.json"
    content = json.loads(path.read_text())
    content["problems"][0] |= {"num_samples": 0, "num_correct": 0, "greedy_correct": None}
    path.write_text(json.dumps(content))
    run = read_run(folder, "run")
    assert run.after.accuracy("sampled").estimate == pytest.approx((0.5 + 1 + 1) / 3)
    assert run.after.accuracy("greedy").estimate == pytest.approx(2 / 3)


def test_a_cut_off_last_line_is_reported_and_the_others_kept(tmp_path):
    folder = write_run(tmp_path / "run", samples=[pair(), pair(2)])
    path = folder / "samples.jsonl"
    path.write_text(path.read_text()[:-20])
    run = read_run(folder, "run")
    assert len(run.samples) == 1
    assert any("samples.jsonl" in note and "last line (2) is cut off" in note for note in run.notes)


def test_a_last_line_that_only_lacks_its_line_break_is_kept(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    notes = []
    assert [record["a"] for _, record in read_lines(path, notes)] == [1, 2] and not notes


@pytest.mark.parametrize("line", ["{broken", "[1]", "[" * 100_000, '"text"'])
def test_a_broken_line_in_the_middle_names_file_and_line(tmp_path, line):
    folder = write_run(tmp_path / "run")
    path = folder / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: "):
        report([folder])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"row": 0}, "step must be a number"),
        (pair(step=None), "step must be a whole number, is None"),
        (pair(step=1.5), "step must be a whole number, is 1.5"),
        (pair(margin=10**400), "margin is too large a number: 10000"),
        ({**pair(), "margin": "wide"}, "margin must be a number, is 'wide'"),
        ({**pair(), "chosen": {"text": 3, "tokens": 1, "reward": 1}}, "chosen: text must be text, is 3"),
        ({key: value for key, value in pair().items() if key != "rejected"}, "chosen without its other side"),
    ],
)
def test_a_field_of_another_kind_names_file_line_and_field(tmp_path, record, message):
    with pytest.raises(ValueError, match=rf"samples\.jsonl, line 1.*{message}"):
        report([write_run(tmp_path / "run", samples=[record])])


@pytest.mark.parametrize("field", ["row", "num_samples", "num_correct", "greedy_correct"])
def test_a_broken_evaluation_names_file_problem_and_field(tmp_path, field):
    folder = write_run(tmp_path / "run")
    path = folder / "eval_before.json"
    content = json.loads(path.read_text())
    content["problems"][1][field] = "yes"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"eval_before\.json, problem 1: {field} must be"):
        report([folder])


def test_token_ratios_must_fit_their_tokens(tmp_path):
    record = pair()
    record["chosen"] |= {"token_texts": ["go", "od"], "token_log_ratios": [0.5]}
    with pytest.raises(ValueError, match="lists of one length"):
        report([write_run(tmp_path / "run", samples=[record])])


def test_bytes_that_are_not_utf8_are_shown_and_reported(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"text": "a\xff\xfeb"}\n')
    notes = []
    assert read_lines(path, notes)[0][1]["text"] == "a\ufffd\ufffdb"
    assert "first at byte 11" in notes[0]


def test_a_damaged_archive_is_an_error(tmp_path):
    path = tmp_path / "results.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}" * 100)[:-6])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_text(path, [])


def test_a_gzip_bomb_is_refused_by_name(tmp_path):
    """300 MB of spaces in 0.3 MB, as one line and as many: neither is unpacked whole."""
    for name, line in (("metrics.jsonl.gz", b" " * 1000), ("runs.jsonl.gz", b"{}" + b" " * 997 + b"\n")):
        path = tmp_path / name
        with gzip.open(path, "wb") as file:
            for _ in range(300):
                file.write(line * 1000)
        for read in (lambda path: read_text(path, []), read_rows):
            with pytest.raises(ValueError, match=f"{name}: unpacks to more than 256 MiB from [0-9,]+ bytes"):
                read(path)


def test_a_huge_text_is_cut_and_said_with_its_place(tmp_path):
    """In a sample, with its tokens, and in a manifest."""
    long = "x" * 3_000_000
    huge = pair(1) | {"prompt": [{"role": "user", "content": long}]}
    huge["chosen"] = huge["chosen"] | {"text": long, "token_texts": list(long[:9]), "token_log_ratios": [0.0] * 9}
    folder = write_run(tmp_path / "run")
    small = len(report([folder]))
    with (folder / "samples.jsonl").open("a") as file:
        file.write(json.dumps(huge) + "\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"note": long}))
    run = read_run(folder, "run")
    lines = len((folder / "samples.jsonl").read_text().splitlines())
    for where in (f"samples.jsonl, line {lines}", "manifest.json"):
        assert any(note.startswith(f"{where}: a text of 3,000,000 characters") for note in run.notes), run.notes
    assert "ratios" not in explorer(run, 100).records[-1]["sides"][0]
    assert len(report([folder])) < small + 3_100_000


def test_one_record_that_is_larger_than_the_page_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("pbsd.report.explorer.MAX_BYTES", 20_000)
    folder = write_run(tmp_path / "run")
    words = [{"role": "user", "content": "word " * 10} for _ in range(1000)]
    (folder / "samples.jsonl").write_text(json.dumps(pair(1) | {"prompt": words}) + "\n")
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 1: this record alone takes 0\.1 MB of the page"):
        explorer(read_run(folder, "run"), 100, max_bytes=20_000)


def test_a_run_that_has_only_begun_is_shown(tmp_path):
    folder = write_run(tmp_path / "run", before=None, after=None, steps=6)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (folder / name).unlink()
    run = read_run(folder, "run")
    assert run.state == "unfinished, step 0 of 6"
    assert "No evaluation has been written yet." in report([folder])


def test_folders_that_are_no_runs_say_what_is_missing(tmp_path):
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds one: name those"):
        report([tmp_path / "runs"])
    with pytest.raises(ValueError, match="neither a run"):
        report([tmp_path / "empty"])
    with pytest.raises(ValueError, match="no such folder"):
        report([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="named twice"):
        report([tmp_path / "runs" / "one"] * 2)


def test_flags(tmp_path):
    """One pair of each kind; the longest 5% of six are one, that of eleven words."""
    records = [
        pair(),
        pair(swapped=True),
        pair(rewards=(0.0, 1.0)),
        pair(margin=-4.5),
        pair(chosen="As the reference solution says, 4."),
        pair(rejected=" ".join("abcdefghijk")),
    ]
    found = explorer(read_run(write_run(tmp_path / "run", samples=records), "run"), 100)
    assert [record["flags"] for record in found.records] == [
        [], ["flipped"], ["flipped"], ["saturated"], ["leaking"], ["longest"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("base.yaml", b"beta: 1"), ("config.json", b"{}"), ("weights.bin", b"\0\1"), ("x.xml", b"<htm/>"),
        ("notes.html", b"<p>mine"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_page_is_not_replaced(tmp_path, name, content):
    run = str(write_run(tmp_path / "run"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}' exists and is not a web page"):
        run_report([run, "--out", str(tmp_path / name)])
    assert (tmp_path / name).read_bytes() == content
    with pytest.raises(ValueError, match="is no file"):
        run_report([run, "--out", str(tmp_path / "run")])


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><p>", b"\xef\xbb\xbf\n<HTML lang=en>"])
def test_an_earlier_page_is_replaced(tmp_path, content):
    out = tmp_path / "report.html"
    out.write_bytes(content)
    run = str(write_run(tmp_path / "run"))
    for _ in range(2):  # its own page too
        run_report([run, "--out", str(out)])
        assert out.stat().st_size > 10_000


@pytest.mark.parametrize(("total", "limit", "kept"), [(10, 10, 10), (10, 3, 3), (10, 4, 4), (3, 10, 3)])
def test_more_pairs_than_the_limit_are_thinned_evenly(tmp_path, total, limit, kept):
    """No two neighbours kept are further apart than ceil(total / limit), the first is kept, the total is told."""
    run = read_run(write_run(tmp_path / "run", samples=[pair(step=n + 1) for n in range(total)]), "run")
    found = explorer(run, limit)
    steps = [record["step"] for record in found.records]
    assert len(set(steps)) == kept and found.total == total and steps[0] == 1
    assert max(later - earlier for earlier, later in zip(steps, [*steps[1:], total + 1], strict=True)) <= math.ceil(
        total / limit
    )


def test_pairs_are_thinned_to_fit_the_bytes(tmp_path):
    """Twenty pairs hold 1000 two-byte letters each: 2000 bytes, their prompts and contexts (20 each) and short texts
    besides. 20,500 bytes hold nine of them; one pair is kept even where it is too large."""
    run = read_run(write_run(tmp_path / "run", samples=[pair(n, n, chosen="é" * 1000) for n in range(20)]), "run")
    whole, found, one = (explorer(run, 100, max_bytes) for max_bytes in (10**6, 20_500, 10))
    assert (len(whole.records), whole.more) == (20, "--max_pairs") and whole.size > 40_000
    assert (len(found.records), found.total, found.more) == (9, 20, "--max_megabytes") and found.size <= 20_500
    assert [record["step"] for record in found.records] == [n * 20 // 9 for n in range(9)]
    assert len(one.records) == 1


def test_the_runs_of_a_page_share_its_bytes(tmp_path):
    """Each of the two holds about 2,000 bytes."""
    runs = [write_run(tmp_path / name, samples=[pair(n, chosen="x" * 900) for n in (1, 2)]) for name in "ab"]
    assert report(runs, max_bytes=5000).count('"more":"--max_megabytes"') == 0
    assert report(runs, max_bytes=3000).count('"more":"--max_megabytes"') == 2


@pytest.mark.parametrize("option", ["--max_pairs", "--max_megabytes"])
def test_a_page_holds_one_pair_at_least(option, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_report([str(write_run(tmp_path / "run")), option, "0"])
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err


def test_tokens_are_stored_once(tmp_path):
    """As lengths in UTF-16 units, and what the text lacks: the stop token; all after a character of several tokens."""
    record = pair(chosen="go 👩!", rejected="é.")
    record["chosen"] |= {"token_texts": ["go", " 👩", "!", "</s>"], "token_log_ratios": [0.0004, -1.25, None, 40]}
    record["rejected"] |= {"token_texts": ["\ufffd", "\ufffd", "."], "token_log_ratios": [1, 2, 3]}
    sides = explorer(read_run(write_run(tmp_path / "run", samples=[record]), "run"), 1).records[0]["sides"]
    packed = [[side[key] for key in ("lengths", "rest", "ratios")] for side in sides]
    assert packed == [["2,3,1,4", "</s>", "0,-1250,,40000"], ["1,1,1", "\ufffd\ufffd.", "1000,2000,3000"]]


def test_a_text_that_many_pairs_share_is_stored_once(tmp_path):
    records = [pair(row=n % 2) for n in range(50)]
    found = explorer(read_run(write_run(tmp_path / "run", samples=records), "run"), 100)
    assert len(found.texts) == 4  # two prompts and two contexts


def test_chat_messages_keep_their_roles(tmp_path):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text"}]}]
    run = read_run(write_run(tmp_path / "run", samples=[pair() | {"prompt": messages}]), "run")
    found = explorer(run, 1)
    (first, second) = found.texts[found.records[0]["prompt"]]
    assert first == ("system", "be brief") and second[0] == "user" and json.loads(second[1]) == [{"type": "text"}]


def test_labels_name_what_differs_and_seeds_share_one(tmp_path):
    settings = {"a": ("pbsd", 0, 0.1), "b": ("pbsd", 1, 0.1), "c": ("pbsd", 0, 0.5), "d": ("grpo", 0, 0.0)}
    runs = [
        read_run(write_run(tmp_path / name, method=method, seed=seed, options={"beta": beta}), name)
        for name, (method, seed, beta) in settings.items()
    ]
    assert run_labels(runs) == {"a": "pbsd beta=0.1", "b": "pbsd beta=0.1", "c": "pbsd beta=0.5", "d": "grpo"}


def test_points_of_a_run_are_its_evaluations(tmp_path):
    run = read_run(write_run(tmp_path / "run", curve=[(2, 0.9), (4, 0.6)]), "run")
    (trial,) = run_trials([run])
    assert trial.points == (Point(0, 0, 0.5), Point(2, 200, 0.9), Point(4, 400, 0.6), Point(6, 600, 0.75))
    assert trial.peak == Point(2, 200, 0.9) and trial.drop == pytest.approx(0.15)


def trial(points, seed="0", final=()):
    return Trial("m", "c", seed, "s", tuple(Point(*point) for point in points), dict(final))


def test_a_band_is_the_range_over_seeds():
    seeds = [trial([(1, 10, 0.2), (2, 20, 0.4)]), trial([(1, 14, 0.6)], "1")]
    assert [tuple(spread) for spread in band(seeds, "tokens")] == [
        (12, pytest.approx(0.4), 0.2, 0.6, 2),
        (20, 0.4, 0.4, 0.4, 1),
    ]


def test_final_accuracy_of_seeds_counts_their_spread():
    """All problems 1 under one seed and .5 under the other: problem means do not differ, seed means do, by .25 from
    their mean. Half width: t(.975, 1) sqrt(2 * .25^2 / 2) = 12.706 * .25, over .75 * .25 on the logit scale."""
    seeds = [trial([], name, dict.fromkeys("abcd", value).items()) for name, value in (("0", 1.0), ("1", 0.5))]
    value = final_accuracy(seeds)
    half = 12.7062 * 0.25 / 0.1875
    assert value.estimate == 0.75
    assert 1 - value.high == pytest.approx(1 / (1 + 3 * math.exp(half)), rel=1e-3)


def test_seeds_that_solve_nothing_are_not_certain():
    """Four problems that both seeds fail: 1 - .025^(1/4), as with one seed."""
    seeds = [trial([], name, dict.fromkeys("abcd", 0.0).items()) for name in "01"]
    assert (final_accuracy(seeds).low, final_accuracy(seeds).high) == (0, pytest.approx(0.60236, abs=1e-5))


def test_final_accuracy_on_different_problems_is_over_problems():
    """Problem means over the seeds that have them .5, 1 and 1: mean 2.5 / 3, deviation .2887, t(.975, 2) = 4.3027: half
    width .71713, on the logit scale over 5/36, about ln 5."""
    seeds = [trial([], "0", {"a": 1.0, "b": 1.0}.items()), trial([], "1", {"a": 0.0, "c": 1.0, "d": math.nan}.items())]
    value = final_accuracy(seeds)
    assert value.estimate == pytest.approx(2.5 / 3)
    assert value.low == pytest.approx(1 / (1 + math.exp(0.71713 * 36 / 5) / 5), rel=1e-3)


def test_a_study_is_read_by_method_cell_and_seed(tmp_path):
    curves = {("pbsd", "dense", 0): [(10, 100, 0.5), (20, 200, 0.4)]}
    study = read_study(write_study(tmp_path / "s", curves, {("pbsd", "dense", 0): (4, 2)}), "s")
    (found,) = study.trials
    assert (found.label, found.cell, found.seed) == ("pbsd", "arithmetic · dense · 0.2m", "0")
    assert found.final == {"0": 1.0, "1": 0.5} and found.drop == pytest.approx(0.1)


def test_a_problem_counted_twice_is_an_error(tmp_path):
    folder = write_study(tmp_path / "s", {}, {("pbsd", "dense", 0): (4,)})
    path = folder / "results.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) * 2))
    with pytest.raises(ValueError, match="problem 0 is there twice for pbsd"):
        read_study(folder, "s")


def test_quantiles_of_margins_are_those_the_metrics_have(tmp_path):
    """Margins 0 to 10 of one step: the nearest ranks are 1, 2 (rounded from 2.5), 5, 8 (from 7.5) and 9."""
    run = read_run(write_run(tmp_path / "run", samples=[pair(margin=float(m)) for m in range(11)]), "run")
    (part,) = [part for part in sections([run], [], run_trials([run])) if part.id == "distributions"]
    (choice,) = part.charts[0].choices
    assert choice.tables[0].rows == [["1", "margin", "11", "1.000", "2.000", "5.000", "8.000", "9.000"]]


def test_the_page_does_not_change_between_two_calls(tmp_path):
    folder = write_run(tmp_path / "run", samples=[pair(), sample()])
    assert report([folder]) == report([folder])


@pytest.mark.parametrize("text", ["</script><script>", "<!--", "\ud800", "\u2028", "\x00"])
def test_a_json_block_cannot_end_its_element_and_says_the_same(text):
    block = json_block({"text": text, "nan": math.nan})
    assert "<" not in block
    assert json.loads(block.encode()) == {"text": text, "nan": None}


def test_invisible_and_reordering_characters_are_written_out():
    assert visible("a\u202eb\u2066\x00\ud800\U000e0041") == "a⟨U+202E⟩b⟨U+2066⟩⟨U+0000⟩⟨U+D800⟩⟨U+E0041⟩"
    hidden = (0xAD, 0x34F, 0x115F, 0x1160, 0x180B, 0x180D, 0x2800, 0x3164, 0xFE00, 0xFE0F, 0xFFA0, 0xE0100, 0xE01EF)
    assert visible("".join(map(chr, hidden))) == "".join(f"⟨U+{code:04X}⟩" for code in hidden)
    assert visible("❤\ufe0f") == "❤⟨U+FE0F⟩"  # the heart is seen
    assert visible("tab\tline\n👩\u200d🔬 فارسی") == "tab\tline\n👩\u200d🔬 فارسی"


def test_a_long_label_keeps_its_ends():
    assert short("<b>") == "&lt;b&gt;" and short("a" * 36) == "a" * 36
    assert short("begin" + "-" * 100 + "end<") == "begin" + "-" * 13 + "…" + "-" * 13 + "end&lt;"


def test_everything_after_training_is_in_the_overview(tmp_path):
    assert sum(AFTER) / 32 == 0.75
    html = report([write_run(tmp_path / "run")])
    assert "50.0 → 75.0%" in html and "+25.0 [\N{MINUS SIGN}9.1, +53.8] points" in html
