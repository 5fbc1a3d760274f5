"""A method that may choose and chose what another has is the same training: no evidence of a tie."""

import pytest
from study_lines import study

from benchmarks.report.lines import Records
from benchmarks.report.markdown import build_report
from benchmarks.report.readme_table import readme_table
from benchmarks.report.summary import all_verdicts, overall, rows, same_runs

QUESTION = {"ask": "Does choosing lose?", "compare": ["kl_tau_chosen", "kl_tau1"], "metric": "score"}


@pytest.fixture
def records():
    """On `one` and `two` the chosen tau is 1, on `three` it is 5."""
    lines = study(
        dict.fromkeys(("one", "two", "three"), "tabular"), {"erm": 0.0, "kl_tau1": 1.0, "kl_tau_chosen": 1.0}
    )
    final = {(r["dataset"], r["method"], r["seed"]): r for r in lines if r["stage"] == "final"}
    for (name, method, seed), line in final.items():
        line["settings"] = {**line["settings"], "tau": 5 if name == "three" and "chosen" in method else 1}
        if name != "three" and "chosen" in method:
            line["score"] = final[name, "kl_tau1", seed]["score"]
        if "chosen" in method:
            line["compared_with"] = "kl_tau1"
    return Records(final, {}, study={"questions": [QUESTION]})


def test_they_are_told_by_settings_and_scores(records):
    assert [same_runs(records, name, "kl_tau_chosen", "kl_tau1") for name in ("one", "two", "three")] == [
        True,
        True,
        False,
    ]
    assert not same_runs(records, "one", "kl_tau1", "erm")


def test_a_question_counts_them_apart(records):
    answer = build_report(records)[0].split("### Does choosing lose?")[1].split("\n## ")[0]
    rows = {
        row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in answer.splitlines() if "|" in row
    }
    assert rows["one"] == rows["two"] == ["5", "the same runs", "– |"]
    assert "[" in rows["three"][1] and "±" in rows["three"][2]
    assert rows["mean over data sets, 2 of them the same runs"][0] == "3"
    assert rows["mean over data sets, 2 of them the same runs"][2] == "– |"
    assert "Of 1 data set: 0 gains, 1 tie, 0 losses. On 2 data sets both are the same runs." in answer


def test_the_table_of_methods_says_so_too(records):
    table = build_report(records)[0].split("\n## one\n")[1]
    assert "| the same runs (KL, τ = 1) |" in table


def test_every_training_is_counted_once(records):
    text, found = build_report(records)[0], overall(records)
    assert len(all_verdicts(found)) == 3 + 1
    assert "4 comparisons of a method with ERM on a data set: " in text
    assert "The same runs as another method's are not counted again (2)." in text
    assert "| KL, τ chosen | 3 (2 the same runs) |" in text
    table = {row.split(" | ")[0].strip("| "): row for row in readme_table(records, found)}
    assert table["data"].endswith(
        "| KL (τ = 1) minus ERM | KL (τ chosen) minus ERM | methods that gain / tie / lose |"
    )
    assert table["one"].split(" | ")[5] == "the same runs" and "[" in table["three"].split(" | ")[5]
    each = [sum(map(int, table[name].split(" | ")[-1].strip("| ").split(" / "))) for name in ("one", "three")]
    assert each == [1, 2]
    one = rows(records, "one")
    assert [row.holm for row in one[1:]] == [one[1].p] * 2, "one test is no family of two"


def test_a_script_of_a_methods_own_is_another_model_and_not_counted(records):
    for (_, method, _), line in records.final.items():
        line["settings"]["recipe"] = "other.py" if method == "kl_tau1" else "recipe.py"
    found = overall(records)
    assert {method.method: set(method.counted) for method in found} == {
        "kl_tau1": set(),
        "kl_tau_chosen": {"one", "two", "three"},
    }
    text = build_report(records)[0]
    assert "3 comparisons of a method" in text and "Not counted: KL, τ = 1, another model." in text
    assert "| KL, τ = 1 (another model) | 3 |" in text
    assert "The last column leaves out KL, τ = 1, another model." in text


def test_the_list_of_methods_has_values_tried_not_those_of_one_data_set(records):
    for line in records.final.values():
        line["method_options"] = ["model", "networks", "tau"]
        line["settings"] |= {"model": "mlp"}
    tried = {
        ("one", "kl_tau_chosen", 100, f"lr1,tau{tau}", ""): {
            "score": 0.5,
            "settings": {"model": "mlp", "tau": tau, "networks": networks},
        }
        for tau, networks in ((10, ["a", "b"]), (1, ["a"]), (2.5, ["a"]))
    }
    text = build_report(Records(records.final, tried))[0]
    assert "`kl_tau1` (KL, τ = 1): `model: mlp, tau: 1`\n" in text
    assert (
        "`kl_tau_chosen` (KL, τ chosen): `model: mlp`; tuned: `networks` (values tried: ['a', 'b'], ['a']), "
        "`tau` (values tried: 1, 2.5, 10)\n"
    ) in text
