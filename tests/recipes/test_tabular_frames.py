"""Frames that a saved table model is given: read like the training rows, in another way, or with new values."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from transformers import AutoModel

import tabular
from rgd_hf.scripts.tabular.card import _reading
from rgd_hf.scripts.tabular.columns import ColumnArguments
from rgd_hf.scripts.tabular.preprocessing import TablePreprocessor
from rgd_hf.scripts.tabular.table import TableArguments, prepare_table

MARKS = {"sep": ";", "encoding": "cp1252", "skiprows": 1}
SHOWN = 'pd.read_csv("FILE", '


def as_pandas_reads_it(model, frame) -> tuple[np.ndarray, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = model.predict_proba(frame)
    return found, [str(each.message) for each in caught if issubclass(each.category, UserWarning)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file as spreadsheets write it, and the folder of the model that was trained on it."""
    folder, draw = tmp_path_factory.mktemp("frames"), np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "active": draw.choice(["true", "false"], 200),
            "code": [f"00{n}" for n in draw.integers(0, 5, 200)],
            "alley": draw.choice(["NA", "Grün", "Pave"], 200),
            "price": [f"{v:.2f}".replace(".", ",") for v in draw.normal(size=200) * 3000],
            "y": draw.choice(["up", "down"], 200),
        }
    )
    frame.loc[:3, "price"] = "NA"
    text = "sep=;\n" + frame.to_csv(sep=";", index=False)
    (folder / "t.csv").write_bytes(text.encode("cp1252"))
    options = ["--num_train_epochs", "1", "--n_blocks", "1", "--d_block", "16", "--use_cpu", "true"]
    out = folder / "out"
    tabular.main(["--data", str(folder / "t.csv"), "--target", "y", "--output_dir", str(out), *options])
    return folder / "t.csv", out


def test_the_cards_call_reads_the_file_as_training_did(trained):
    file, out = trained
    code = re.search(r"(?s)```python\n(.*?)\n```", (out / "README.md").read_text()).group(1)
    names: dict = {}
    exec(code.replace('"FILE"', repr(str(file))).replace(f'"{out.name}"', repr(str(out))), names)
    found, said = as_pandas_reads_it(names["model"], names["frame"])
    assert not said
    typed = pd.read_csv(file, **MARKS, dtype=str, keep_default_na=False)
    typed["price"] = pd.to_numeric(typed["price"].str.replace(",", "."), errors="coerce")
    np.testing.assert_array_equal(found, names["model"].predict_proba(typed))


def rows(separator, decimal=".", word="käse", end=""):
    """A header and 24 rows of the columns `code`, `word`, `price` and `y`."""
    cells = [
        (f"00{n % 3}", [word, "NA", "true"][n % 3], f"{n * 1.25:.2f}".replace(".", decimal), "ud"[n % 2])
        for n in range(24)
    ]
    lines = [("code", "word", "price", "y"), *cells]
    return "".join(separator.join(line) + end + "\n" for line in lines)


FILES = {
    "plain": (rows(",").encode(), SHOWN + "dtype"),
    "decimal commas": (rows(";", ",").encode(), SHOWN + "sep=';', decimal=','"),
    "sep line": (("sep=;\r\n" + rows(";", ",")).encode(), "sep=';', skiprows=1, decimal=','"),
    "sep line, old line ends": (("sep=;\n" + rows(";")).replace("\n", "\r").encode(), "sep=';', skiprows=1"),
    "Windows-1252": (rows(",").encode("cp1252"), SHOWN + "encoding='cp1252'"),
    "UTF-8 with a mark": (rows(",").encode("utf-8-sig"), "encoding='utf-8-sig'"),
    "sep line after a mark": (("sep=;\n" + rows(";")).encode("utf-8-sig"), "encoding='utf-8-sig', skiprows=1"),
    "UTF-16": (rows("\t").encode("utf-16"), "sep='\\t', encoding='utf-16'"),
    "UTF-16 without a mark": (rows("\t").encode("utf-16-be"), "encoding='utf-16-be'"),
    "UTF-32": (rows(";").encode("utf-32"), "encoding='utf-32'"),
    "sep line in UTF-16": (("sep=;\n" + rows(";")).encode("utf-16"), "encoding='utf-16', skiprows=1"),
    "spaces": (rows(" ").encode(), "sep='\\\\s+'"),
    "spaces after commas": (rows(", ").encode(), SHOWN + "skipinitialspace=True"),
    "spaces and quotes": (rows(", ", word='"a, b"').encode(), SHOWN + "skipinitialspace=True"),
    "a comma in quotes": (rows(",", word='"a, b"').encode(), SHOWN + "dtype"),
    "a lone quote": (rows(",").replace("käse", '"käse', 1).encode(), SHOWN + "quoting=3"),
    "line ends of several kinds": (rows(",").replace("\n", "\r\n", 3).replace("true,2.50,u\n", "true,2.50,u\r", 1).encode(), SHOWN + "dtype"),
    "names of rows": (re.sub(r"\n(?=.)", lambda end: f"\nr{end.start()},", rows(",")).encode(), None),
    "rows end in a separator": (rows(",", end=",").replace("y,", "y", 1).encode(), None),
    "a name ends in a space": (rows(",").replace("word,", "word ,", 1).encode(), None),
}  # fmt: skip


@pytest.mark.parametrize("content, shown", FILES.values(), ids=FILES)
def test_the_call_reads_every_kind_of_file_as_training_did_or_is_not_shown(content, shown, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    table = prepare_table(TableArguments(str(path), "y"), ColumnArguments(), 0.0)
    code = "\n".join(_reading(table))
    texts = [column["name"] for column in table.columns if column["kind"] != "numeric"]
    if shown is None:
        assert "read_csv(" not in code and all(repr(name) in code for name in texts)
        assert all(line.startswith("#") for line in code.splitlines())
        return
    assert shown in code
    names: dict = {"pd": pd}
    exec(code.replace('"FILE"', repr(str(path))), names)
    found = names["frame"]
    assert len(found) == len(table.frame) and {column["name"] for column in table.columns} <= {*found.columns}
    for column in table.columns:
        name = column["name"]
        if name in texts:
            assert found[name].str.strip().tolist() == table.frame[name].tolist()
        else:
            np.testing.assert_array_equal(found[name], table.frame[name])


def test_what_pandas_makes_of_the_cells_matches_or_is_told(trained):
    file, out = trained
    model = AutoModel.from_pretrained(out, trust_remote_code=True)
    right = pd.read_csv(file, **MARKS, dtype=str, keep_default_na=False)
    right["price"] = pd.to_numeric(right["price"].str.replace(",", "."), errors="coerce")
    plain, (expected, _) = pd.read_csv(file, **MARKS), as_pandas_reads_it(model, right)
    for column, told in {
        "active": None,
        "code": None,
        "alley": "nan; known are",
        "price": "no finite numbers",
    }.items():
        found, said = as_pandas_reads_it(model, right.assign(**{column: plain[column]}))
        if told is None:
            assert not said
            np.testing.assert_array_equal(found, expected)
        else:
            (only,) = said
            assert f"column {column!r}: " in only and told in only and "model card" in only
    missing = right.assign(price=None, active=None)  # these say so in any reading
    assert not as_pandas_reads_it(model, missing)[1]


@pytest.mark.parametrize(
    ("known", "values", "codes"),
    [
        (["true", "false"], [True, np.bool_(False)], ["true", "false"]),
        (["TRUE", "FALSE"], [True, False], ["TRUE", "FALSE"]),
        (["007", "010"], [7, 10.0], ["007", "010"]),
        (["1.50", "2.25"], [1.5, np.float32(2.25)], ["1.50", "2.25"]),
        (["True", "true"], [True, False], [None, None]),  # the first may be either, the second is none
        (["7", "007"], [7, "007"], [None, "007"]),
        (["9007199254740993", "x"], [9007199254740992, 9007199254740993], [None, "9007199254740993"]),
        (["007", "x"], ["7", "X"], [None, None]),  # texts are what they are
        (["1", "0"], [True, 1.0], [None, "1"]),
    ],
)
def test_numbers_and_truth_values_are_the_category_that_writes_them(known, values, codes):
    columns = [{"name": "c", "kind": "categorical"}]
    fitted = TablePreprocessor(columns).fit(pd.DataFrame({"c": known * 3}))
    new = pd.DataFrame({"c": pd.Series(values, dtype=object)})
    for row, code in enumerate(codes):
        found = fitted.transform(new.iloc[[row]])[1]
        doubts = fitted.doubts(new.iloc[[row]])
        assert bool(doubts) == (code is None)
        if code is not None:
            np.testing.assert_array_equal(found, fitted.transform(pd.DataFrame({"c": [code]}))[1])
