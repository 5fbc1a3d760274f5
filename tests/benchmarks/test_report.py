"""The report of a comparison: the same every time, honest about what is missing, right in what it counts."""

import base64
import io
import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image
from study_lines import study, write_lines

from benchmarks.report import __main__ as report
from benchmarks.report.formats import counted, marked, points, ranges, rate_of, signed, verdict
from benchmarks.report.lines import read_records
from benchmarks.report.markdown import build_report
from benchmarks.report.methods import in_order, method_title
from benchmarks.report.plots_training import curve
from benchmarks.report.readme_table import marks
from benchmarks.report.sections import _remark
from benchmarks.report.summary import Tuning, final_gap
from rgd_hf.comparison.statistics import Estimate
from rgd_hf.scripts.cli import run_recipe
from rgd_hf.scripts.errors import UserError

DATASETS = {
    "mrpc": "text",
    "stsb": "regression",
    "cifar10_long_tailed": "images",
    "adult": "tabular",
    "adult_noise20": "tabular",
}
METHODS = {
    "erm": 0.0,
    "erm_lr_scaled": 0.0,
    "kl_tau1": 2.5,
    "kl_tau1_normalized": 0.0,
    "ess_90": 0.0,
    "cvar": -2.5,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[dict]]:
    """A finished study and its lines; the report is in its directory."""
    lines = study(DATASETS, METHODS, rows=80, factors=(1.0, 2.0))
    directory = write_lines(tmp_path_factory.mktemp("study"), lines)
    report.main(["--results_dir", str(directory), "--html"])
    return directory, lines


def text_of(directory: Path) -> str:
    """The report, without its pictures drawn."""
    return build_report(read_records(directory))[0]


def table_rows(text: str, heading: str) -> dict[str, list[str]]:
    """Rows of the first table below a heading by their first cell."""
    body = text.split(f"\n{heading}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in body.splitlines()
        if line.startswith("|")
    ]
    return {row[0]: row for row in reversed(cells)}


def test_report_is_the_same_every_time(finished, tmp_path):
    directory, lines = finished
    # Another order of the lines, in two files: the same runs.
    write_lines(tmp_path, lines[1::2], "runs-1of2.jsonl")
    write_lines(tmp_path, lines[0::2][::-1], "runs-2of2.jsonl")
    report.main(["--results_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--html"])
    made = sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*"))
    assert made == sorted(p.relative_to(directory) for p in directory.rglob("*.*") if p.suffix != ".jsonl")
    assert {path.name for path in made} >= {"REPORT.md", "REPORT.html", "gains.png", "mrpc_parts.png"}
    for path in made:
        assert (tmp_path / "out" / path).read_bytes() == (directory / path).read_bytes(), path


def test_words_follow_from_the_numbers(finished):
    text = (finished[0] / "REPORT.md").read_text(encoding="utf-8")
    summary = table_rows(text, "## Summary")
    assert summary["KL, τ = 1"][1:2] == ["5"] and summary["KL, τ = 1"][3:6] == ["5", "0", "0"]
    assert summary["CVaR"][3:6] == ["0", "0", "5"]
    rows = [row for row in summary.values() if row[1].isdigit()]
    counts = [sum(int(row[place]) for row in rows) for place in (3, 4, 5)]
    assert (
        f"25 comparisons of a method with ERM on a data set: {counts[0]} gains, {counts[1]} ties and {counts[2]} losses."
        in text
    )
    assert re.search(r"\| CVaR \| 5 \|.*\| ± \d\.\d\d \|", text), "what so many seeds can detect is told"
    assert "(partial)" not in text and "missing" not in text


def test_the_processors_of_all_runs_are_named(finished, tmp_path):
    lines = [dict(line) for line in finished[1] if line["dataset"] == "adult"]
    text = text_of(write_lines(tmp_path, lines))
    assert f"- Machine: 2 CPU cores; processor: not recorded for {len(lines)} runs\n" in text
    for line, name in zip(lines, ("One, AVX512", "Another, AVX2")):
        line["processor"] = name
    text = text_of(write_lines(tmp_path, lines))
    assert f"processors: Another, AVX2; One, AVX512; not recorded for {len(lines) - 2} runs\n" in text


def test_no_difference_without_its_interval(finished):
    text = (finished[0] / "REPORT.md").read_text(encoding="utf-8")
    differences = re.findall(r"\| (?:[▲▼=] )?[+−]\d+\.\d\d(?! \[| \(no interval)", text)
    assert not differences
    assert len(re.findall(r"[+−]\d+\.\d\d \[", text)) > 50


def test_regressions_have_no_parts_and_balanced_classes_no_order(finished):
    directory, _ = finished
    names = {path.name for path in (directory / "plots").iterdir()}
    assert "stsb_parts.png" not in names and "stsb_training.png" in names
    text = (directory / "REPORT.md").read_text(encoding="utf-8")
    assert "training rows of the class" in text.split("\n## cifar10_long_tailed\n")[1].split("\n## ")[0]
    assert "training rows of the class" not in text.split("\n## mrpc\n")[1].split("\n## ")[0]


def test_questions_are_answered_for_the_runs_that_they_are_about(finished, tmp_path):
    questions = [
        {
            "ask": "Is it the step?",
            "compare": ["kl_tau1", "erm_lr_scaled"],
            "datasets": [],
            "metric": "score",
        },
        {"ask": "Noise?", "compare": ["cvar", "erm"], "datasets": ["adult_noise20"], "metric": "score"},
        {"ask": "Later?", "compare": ["focal", "erm"], "datasets": [], "metric": "score"},
    ]
    directory = write_lines(tmp_path, finished[1])
    (directory / "study.json").write_text(json.dumps({"questions": questions, "headline": ["cvar"]}))
    text = text_of(directory)
    rows = table_rows(text, "### Is it the step?")
    assert (
        set(rows) >= {*DATASETS, "mean over data sets"}
        and "Of 5 data sets: 5 gains, 0 ties, 0 losses." in text
    )
    assert "before any result" not in text  # the file may have been edited since
    assert "CVaR minus ERM (points)" in text and "Of 1 data set: 0 gains, 0 ties, 1 loss." in text
    assert "No data set has runs of both methods yet." in text
    assert "| CVaR minus ERM | methods that" in text  # the first page shows what the study chose


def test_page_needs_no_other_file(finished):
    directory, _ = finished
    page = (directory / "REPORT.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == len(list((directory / "plots").iterdir()))
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.findall(r'(?:href|src)="(?!#|data:)', page)
    image = Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1])))
    assert image.format == "PNG" and not image.info
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors and anchors == set(re.findall(r'<h2 id="([^"]+)"', page))
    assert 'class="gain">▲' in page and 'class="loss">▼' in page


def test_a_killed_study_gives_a_report_that_says_so(finished, tmp_path):
    _, lines = finished
    left = [
        line
        for line in lines
        if line["stage"] == "tuning"
        or line["seed"] < 2
        or (line["seed"] == 2 and (line["dataset"], line["method"]) < ("cifar10_long_tailed", "kl_tau1"))
    ]
    broken = left.pop(-1)
    failed = {k: v for k, v in broken.items() if k != "score"} | {
        "error": "FloatingPointError: loss is\n nan"
    }
    write_lines(tmp_path, [*left, failed])
    with (tmp_path / "runs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(left[0])[:50])
    text = text_of(tmp_path)
    assert text.startswith("# Re-weighted training against tuned ERM (partial)")
    assert "- `cifar10_long_tailed/kl_tau1/seed2`\n" in text
    assert f"- `{failed['cell']}`: FloatingPointError: loss is nan" in text


def test_a_study_that_has_barely_begun_still_gives_a_report(finished, tmp_path):
    """One run; a method without ERM; nothing logged."""
    _, lines = finished
    bare = {k: v for k, v in lines[-1].items() if k not in ("history", "samples", "versions", "settings")}
    write_lines(tmp_path, [bare])
    report.main(["--results_dir", str(tmp_path)])
    assert "No method shares a seed with ERM on the same device yet." in (tmp_path / "REPORT.md").read_text(
        encoding="utf-8"
    )


def test_the_later_of_two_lines_counts(finished, tmp_path):
    _, lines = finished
    first = next(line for line in lines if line["stage"] == "final")
    error = {k: v for k, v in first.items() if k != "score"} | {"error": "stopped"}
    write_lines(tmp_path, [error, first, first | {"score": 0.123}])
    found = read_records(tmp_path)
    assert [record["score"] for record in found.final.values()] == [0.123] and not found.failed
    # A cell's name holds its factor: the failed run of another factor is of no interest once the seed has a run.
    write_lines(tmp_path, [error | {"cell": "other"}, first])
    assert not read_records(tmp_path).failed


def test_runs_of_an_edited_study_are_not_mixed_in_silence(finished, tmp_path):
    _, lines = finished
    final = [line for line in lines if line["stage"] == "final" and line["dataset"] == "adult"]
    chosen = [line for line in final if line["method"] in ("erm", "kl_tau1")]
    changed = [
        line | {"settings": line["settings"] | ({"max_rows": 99} if line["method"] == "kl_tau1" else {})}
        for line in chosen
    ]
    reweighted = [
        line | {"settings": line["settings"] | {"reweighting": line["method"], "seed": line["seed"]}}
        for line in chosen
    ]
    assert read_records(write_lines(tmp_path / "a", changed)).mixed() == ["adult/kl_tau1: max_rows"]
    assert read_records(write_lines(tmp_path / "b", reweighted)).mixed() == []
    reweighted[-1]["settings"]["tau"] = 3.0
    assert read_records(write_lines(tmp_path / "b", reweighted)).mixed() == ["adult/kl_tau1: tau"]


def test_a_study_without_tuning_and_with_other_names_is_told_as_what_it_is(tmp_path):
    methods = {"erm": 0.0, "mine": 2.0, "yours": -2.0, "theirs": 0.0}
    lines = study({"a": "text", "b": "images"}, methods, seeds=1, rows=40, factors=())
    for line in lines:
        line["settings"]["tau"] = 0.25
    text = text_of(write_lines(tmp_path, lines))
    assert text.startswith("# Re-weighted training against ERM\n") and "and no learning rate tuned." in text
    assert "and the same learning rate, in points" in text and "**Tuning.** None" in text
    assert "No method has 2 seeds on any data set, the fewest for an interval over seeds" in text
    assert "| mine minus ERM | theirs minus ERM |" in text and "KL" not in text.split("## Method")[0]
    assert table_rows(text, "## Data sets")["a"][-1] == "–"
    assert "`mine` (mine): `tau: 0.25`" in text


def test_where_only_some_data_sets_were_tuned_the_others_are_named(tmp_path):
    lines = study({"a": "text", "b": "text"}, {"erm": 0.0, "kl_tau1": 1.0}, rows=20)
    lines = [line for line in lines if (line["dataset"], line["stage"]) != ("b", "tuning")]
    text = text_of(write_lines(tmp_path, lines))
    assert "a learning rate tuned in the same way (on b the same one), in points" in text


def test_one_data_set_has_no_summary_over_data_sets(tmp_path):
    lines = study({"a": "text"}, {"erm": 0.0, "kl_tau1": 5.0}, rows=20)
    text = text_of(write_lines(tmp_path, lines))
    summary = text.split("## Summary")[1].split("**How to read it.**")[0]
    assert "1 comparison of a method with ERM on a data set: 1 gain, 0 ties and 0 losses." in summary
    assert "|" not in summary and "over data sets" not in summary
    assert text.startswith(
        "# Re-weighted training against tuned ERM\n\n1 method against ERM on 1 data set (text: a): 10"
    )


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    lines = study({"a": "text"}, {"erm": 0.0}, seeds=1, rows=20, factors=())
    directory = write_lines(tmp_path / "study", lines)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file.*: give another --output_dir"):
        report.main(["--results_dir", str(directory), "--output_dir", str(tmp_path / "file")])


def test_readme_table_is_written_and_checked(tmp_path):
    lines = study({"mrpc": "text"}, {"erm": 0.0, "kl_tau1": 2.5}, rows=20, factors=(1.0,))
    directory = write_lines(tmp_path / "study", lines)
    readme = tmp_path / "README.md"
    options = ["--results_dir", str(directory), "--readme", str(readme)]
    with pytest.raises(UserError, match="no file"):
        report.main(options)
    readme.write_text("# Mine\n\nno marks\n", encoding="utf-8")
    with pytest.raises(UserError, match="study:begin"):
        report.main(options)
    begin, end = marks("study")
    readme.write_text(
        f"# Mine\n\n{marks('other')[0]}\n{marks('other')[1]}\n{begin}\nold\n{end}\nafter\n", encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"README\.md.*without --check"):
        report.main([*options, "--check"])
    assert "old" in readme.read_text(encoding="utf-8")
    report.main(options)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# Mine\n\n{marks('other')[0]}\n{marks('other')[1]}\n{begin}\n")
    assert text.endswith(f"{end}\nafter\n") and "old" not in text
    assert "| mrpc | tiny-model; 400 | 5 |" in text and "▲ +" in text
    report.main([*options, "--check"])
    (directory / "REPORT.md").write_text("stale", encoding="utf-8")
    with pytest.raises(UserError, match=r"REPORT\.md"):
        report.main([*options, "--check"])


def test_errors_say_how_to_go_on(tmp_path, capsys):
    with pytest.raises(UserError, match=r"benchmarks\.study .*makes them"):
        report.main(["--results_dir", str(tmp_path)])
    write_lines(tmp_path, [{"name": "another recipe's"}])
    with pytest.raises(UserError, match="not a run of a study"):
        report.main(["--results_dir", str(tmp_path)])
    lines = study({"mrpc": "text"}, {"erm": 0.0}, seeds=1, rows=8)
    write_lines(tmp_path, [line for line in lines if line["stage"] == "tuning"])
    with pytest.raises(UserError, match="no final run yet"):
        report.main(["--results_dir", str(tmp_path)])
    with pytest.raises(SystemExit):
        report.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("results_dir", "output_dir", "readme", "check"))
    with pytest.raises(SystemExit) as stopped:
        run_recipe(lambda: report.main(["--results_dir", str(tmp_path)]))
    assert stopped.value.code == 2


def test_curves_of_seeds_that_stopped_at_different_steps_meet_on_common_ones():
    runs = [
        {"history": [{"step": s, "eval_loss": 2.0 * s} for s in (10, 20, 30)]},
        {"history": [{"step": s, "eval_loss": 4.0 * s} for s in (5, 25)] + [{"step": 25, "loss": 1.0}]},
        {"history": [{"step": 10, "eval_loss": 1.0}]},
    ]
    steps, values = curve(runs, ["eval_loss"])
    assert (steps[0], steps[-1]) == (10, 25) and values.shape == (2, len(steps))
    assert values[0] == pytest.approx(2 * steps) and values[1] == pytest.approx(4 * steps)
    assert curve(runs, ["effective_sample_size"]) is None


def test_methods_are_named_and_ordered():
    names = ["tilted", "ess_80", "kl_tau5", "mine", "erm", "kl_tau1_normalized", "ess_95", "kl_tau1", "chi2"]
    expected = [
        "erm",
        "kl_tau1",
        "kl_tau1_normalized",
        "kl_tau5",
        "ess_95",
        "ess_80",
        "chi2",
        "tilted",
        "mine",
    ]
    assert in_order(set(names)) == expected
    assert method_title("ess_90_second_half") == "ESS 90 %, second half only"
    assert method_title("reverse_kl_normalized") == "reverse KL, mean-one weights"
    assert method_title("kl_tau_chosen") == "KL, τ chosen" and method_title("coral_kl") == "CORAL + KL"
    assert method_title("my_method") == "my method"


def test_numbers_are_printed_with_their_signs():
    assert signed(Estimate(0.304, -0.2, 0.811, 5)) == "+0.30 [−0.20, +0.81]"
    assert marked(Estimate(math.nan, None, None, 5)) == "no difference: a value is not finite"
    assert signed(Estimate(-0.3, None, None, 2)) == "−0.30 (no interval: 2 values)"
    assert points(-0.001) == "0.00" and points(-0.006) == "−0.01"
    assert ranges([0, 1, 2]) == "0–2" and ranges([0, 2]) == "0, 2"


def test_verdicts_are_those_of_the_printed_interval():
    assert verdict(Estimate(0.5, 0.004, 1.0, 5)) == "tie" and "[0.00," in signed(Estimate(0.5, 0.004, 1.0, 5))
    assert verdict(Estimate(0.5, 0.006, 1.0, 5)) == "gain" and "[+0.01," in signed(
        Estimate(0.5, 0.006, 1.0, 5)
    )
    assert verdict(Estimate(-0.5, -1.0, -0.004, 5)) == "tie"
    assert verdict(Estimate(-0.5, -1.0, -0.006, 5)) == "loss"
    assert verdict(Estimate(0.5, None, None, 1)) is None


def test_a_gap_is_made_of_plain_losses_alone():
    plain = {"step": 1, "eval_loss": 0.5, "loss": 9.0, "unweighted_loss": 0.2}
    smoothed = {"step": 1, "eval_loss": 0.5, "loss": 0.9}
    assert final_gap({0: {"history": [plain]}}) == pytest.approx(0.3)
    assert final_gap({0: {"history": [smoothed]}}) is None


def test_a_learning_rate_at_an_end_of_those_tried_is_remarked():
    scores = {"lr0.5": 0.1, "lr1": 0.3, "lr2": 0.2}
    remarks = {rate: _remark(Tuning({**scores, rate: 0.9}, chosen=rate, is_best=True)) for rate in scores}
    assert remarks == {"lr0.5": " (the smallest tried)", "lr1": "", "lr2": " (the largest tried)"}
    assert _remark(Tuning(scores, chosen="lr2", is_best=False)) == " (not the best)"
    assert _remark(Tuning({"lr1": 0.3}, chosen="lr1", is_best=True)) == ""
    assert _remark(Tuning(scores, "lr1", True, ties=1)) == " (tied with 1 other)"
    assert _remark(Tuning(scores, "lr0.5", True, ties=9)) == " (the smallest tried; tied with 9 others)"
    grid = {f"lr{rate},tau{tau}": 0.1 for rate in (0.5, 1, 2) for tau in (1, 3)}
    assert _remark(Tuning(grid, chosen="lr2,tau1", is_best=True)) == " (the largest tried)"
    assert _remark(Tuning(grid, chosen="lr1,tau3", is_best=True)) == ""


def test_a_learning_rate_is_told_from_other_settings():
    assert rate_of("lr0.5,tau3") == ("lr0.5", "tau3")
    assert rate_of("lr1e-05") == ("lr1e-05", "")
    assert rate_of("lrs_1,leaves7") == ("", "lrs_1,leaves7")


def test_words_are_counted():
    found = [
        counted(1, "loss"),
        counted(2, "loss"),
        counted(0, "gain"),
        counted(3, "class"),
        counted(1, "seed"),
    ]
    assert found == ["1 loss", "2 losses", "0 gains", "3 classes", "1 seed"]
