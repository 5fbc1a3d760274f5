"""Tables from files to encoded splits: types, missing values, unseen categories, and what is wrong with them."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.tabular.columns import ColumnArguments, choose_columns, find_target
from rgd_hf.scripts.tabular.preprocessing import TablePreprocessor, as_dates, is_day_first
from rgd_hf.scripts.tabular.sources import load_table
from rgd_hf.scripts.tabular.splits import PreparedTable, limit_rows, without_rare_classes
from rgd_hf.scripts.tabular.table import TableArguments, prepare_table

ROWS = 200


def mixed_frame() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    height = draw.normal(170, 10, ROWS)
    height[::7] = np.nan
    return pd.DataFrame(
        {
            "height": height,
            "income": np.where(np.arange(ROWS) == 3, np.inf, draw.lognormal(10, 1, ROWS)),
            "city": draw.choice(["Oslo", "Rome", "Lima"], ROWS),
            "member": draw.random(ROWS) < 0.5,
            "when": pd.Timestamp("2020-02-28") + pd.to_timedelta(np.arange(ROWS), unit="D"),
            "day": [f"{1 + i % 28:02d}/03/2021" for i in range(ROWS)],
            "text_number": [str(i % 17) for i in range(ROWS)],
            "same": 1,
            "empty": [None] * ROWS,
            "row_id": np.arange(ROWS),
            "mixed": [1 if i % 2 else "one" for i in range(ROWS)],
            "y": draw.choice(["no", "yes"], ROWS),
        }
    )


def chosen(frame: pd.DataFrame, target: str = "y", **options) -> tuple[dict[str, str], list[str]]:
    warnings: list[str] = []
    columns = choose_columns(frame, target, ColumnArguments(**options), warnings.append)
    return {column["name"]: column["kind"] for column in columns}, warnings


def target_of(values, **options):
    frame = pd.DataFrame({"x": range(len(values)), "y": values})
    args = ColumnArguments(**options)
    frame, target = find_target(frame, "y", args, [].append)
    settings = {"drop": args.drop_rare_classes, "limited": False, "warn": [].append}
    frame, _, target = without_rare_classes(frame, target.encode(frame["y"]), target, **settings)
    return frame, target


def test_types_are_inferred_and_every_oddity_is_warned_of():
    kinds, warnings = chosen(mixed_frame())
    assert kinds == {
        "height": "numeric",
        "income": "numeric",
        "city": "categorical",
        "member": "categorical",
        "when": "date",
        "day": "date",
        "text_number": "numeric",
        "row_id": "numeric",
        "mixed": "categorical",
    }
    text = "\n".join(warnings)
    for piece in ("'same'", "constant", "'empty'", "all missing", "'row_id'", "identifier", "'income'"):
        assert piece in text
    assert "1 infinite" in text and "'mixed' mixes" in text


def test_the_user_overrules_the_types():
    options = {"categorical_columns": ["row_id"], "drop_columns": ["height"], "numeric_columns": ["mixed"]}
    kinds, _ = chosen(mixed_frame(), **options)
    assert kinds["row_id"] == "categorical" and "height" not in kinds and kinds["mixed"] == "numeric"
    with pytest.raises(UserError, match=r"no columns 'nosuch'.*'height'"):
        chosen(mixed_frame(), drop_columns=["nosuch"])


def fitted(frame: pd.DataFrame, **options) -> TablePreprocessor:
    columns = choose_columns(frame, "y", ColumnArguments(**options), [].append)
    return TablePreprocessor(columns).fit(frame)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"drop_columns": ["y"]}, "'y' is the target"),
        ({"numeric_columns": ["y"]}, "'y' is the target.*--task says"),
        ({"numeric_columns": ["mixed"], "categorical_columns": ["mixed"]}, "'mixed' are in more than one of"),
        ({"date_columns": ["when"], "drop_columns": ["when"]}, "'when' are in more than one of"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        chosen(mixed_frame(), **options)


def test_categories_that_share_a_code_are_counted():
    names = [f"c{i % 250}" for i in range(600)]
    frame = pd.DataFrame({"c": [None, *names[1:]], "few": names, "y": [0, 1] * 300})
    frame["few"] = frame["few"].str[:3]
    _, warnings = chosen(frame)
    assert warnings == [
        "column 'c' has 251 categories: the 199 that are most frequent in the training rows have a code of their own, "
        "the other 52 share one."
    ]
    assert TablePreprocessor([{"name": "c", "kind": "categorical"}]).fit(frame).cardinalities == [1 + 200]


@pytest.mark.parametrize(
    "texts, example",
    [
        (["01/01/2020", "01/02/2020", "12/03/2020"], "'01/02/2020'"),
        (["1-2-20", "3-4-20"], "'1-2-20'"),
        (["01/02/2020", "13/02/2020"], None),
        (["01.02.2020", "03.02.2020"], None),
        (["2020-01-02", "2020-03-02"], None),
        (["01/01/2020", "02/02/2020"], None),
    ],
)
def test_dates_whose_day_could_be_the_month_are_warned_of(texts, example):
    frame = pd.DataFrame({"when": texts * 10, "y": [0, 1] * 5 * len(texts)})
    kinds, warnings = chosen(frame)
    assert kinds == {"when": "date"} and len(warnings) == (example is not None)
    if example:
        assert f"such as {example} and" in warnings[0] and "month first" in warnings[0]
        assert "write them as YYYY-MM-DD" in warnings[0]


def test_encoding_has_no_holes_and_keeps_unknown_categories_apart():
    frame = mixed_frame()
    preprocessor = fitted(frame)
    x_num, x_cat = preprocessor.transform(frame)
    assert x_num.dtype == np.float32 and x_cat.dtype == np.int64
    assert np.isfinite(x_num).all() and x_num.shape[1] == preprocessor.n_num_features
    assert (x_cat > 0).all() and (x_cat < preprocessor.cardinalities).all()
    new = frame.head(3).copy()
    new["city"] = ["Oslo", "Atlantis", None]
    new["height"] = [np.inf, 1e9, np.nan]
    new["when"] = [None, "not a date", "2030-01-01"]
    y_num, y_cat = preprocessor.transform(new)
    assert np.isfinite(y_num).all()
    assert y_cat[0, 0] == x_cat[frame.city == "Oslo"][0, 0] and y_cat[1, 0] == 0 and y_cat[2, 0] == 0


def test_encoders_see_the_training_rows_alone():
    frame = mixed_frame()
    one, other = frame.copy(), frame.copy()
    prepared = [
        PreparedTable("t", f, np.arange(ROWS) % 2, find_target(f, "y", ColumnArguments(), print)[1], columns)
        for f, columns in ((f, [{"name": "height", "kind": "numeric"}]) for f in (one, other))
    ]
    train_rows = {tuple(row) for row in prepared[0].split(0).train.x_num}
    first = prepared[0].split(0)
    # Move the heights of all rows outside the training split: nothing in training may change.
    position = frame.index[~frame.index.isin(_train_index(prepared[0]))]
    other.loc[position, "height"] = 1e6
    second = prepared[1].split(0)
    np.testing.assert_array_equal(first.train.x_num, second.train.x_num)
    assert train_rows and not np.array_equal(first.test.x_num, second.test.x_num)


def _train_index(prepared: PreparedTable) -> list[int]:
    """The rows of the training split, found by encoding the row number as the only column."""
    frame = prepared.frame.assign(number=[f"r{i}" for i in range(ROWS)])
    table = PreparedTable(
        "t", frame, prepared.y, prepared.target, [{"name": "number", "kind": "categorical"}]
    )
    ordinal = table.split(0).preprocessor.encoders["ordinal"]
    return [int(name[1:]) for name in ordinal.categories_[0]]


def test_splits_share_the_test_rows_and_differ_in_the_rest():
    frame = pd.DataFrame({"x": np.arange(100.0), "y": np.arange(100) % 4})
    target = find_target(frame, "y", ColumnArguments(), print)[1]
    table = PreparedTable("t", frame, target.encode(frame.y), target, [{"name": "x", "kind": "categorical"}])
    one, two = table.split(0), table.split(1)
    np.testing.assert_array_equal(one.test.y, two.test.y)
    known = [set(s.preprocessor.encoders["ordinal"].categories_[0]) for s in (one, two)]
    assert known[0] != known[1] and (one.test.x_cat == 0).all() and (two.test.x_cat == 0).all()
    for part, rows in ((one.train, 64), (one.validation, 16), (one.test, 20)):
        assert len(part) == rows and len(set(np.bincount(part.y))) == 1


def test_the_encoders_survive_saving(tmp_path):
    frame = mixed_frame()
    preprocessor = fitted(frame)
    preprocessor.save_pretrained(tmp_path)
    again = TablePreprocessor.from_pretrained(str(tmp_path), preprocessor.columns)
    for before, after in zip(preprocessor.transform(frame), again.transform(frame)):
        np.testing.assert_array_equal(before, after)
    with pytest.raises(ValueError, match="lacks the column\\(s\\) 'city'"):
        again.transform(frame.drop(columns="city"))


def test_odd_numbers_are_encoded_and_constant_features_left_out():
    frame = pd.DataFrame(
        {
            "huge": np.random.default_rng(0).normal(size=60) * 1e300,
            "nearly_missing": [1.5, *[np.nan] * 59],
            "infinite": [np.inf, -np.inf] * 30,
            "date": pd.date_range("2020-01-01", periods=60),
            "waited": pd.to_timedelta(range(60), unit="h"),
            "maybe": pd.array([True, None, False] * 20, dtype="boolean"),
            "y": ["a", "b"] * 30,
        }
    )
    kinds, warnings = chosen(frame)
    assert kinds["waited"] == "numeric" and kinds["maybe"] == "categorical" and "infinite" not in kinds
    assert not any("mixes" in warning for warning in warnings)
    x_num, _ = fitted(frame).transform(frame)
    # huge, whether nearly_missing is missing, four parts of the date (it has no hour), waited
    assert np.isfinite(x_num).all() and x_num.shape[1] == 7 and (np.ptp(x_num, axis=0) > 0).all()


def test_the_order_of_day_and_month_is_that_of_the_column():
    days = pd.Series(pd.date_range("2020-02-01", periods=40, freq="D", tz="UTC"))
    for form, day_first in (
        ("%d/%m/%Y", True),
        ("%d.%m.%Y %H:%M", True),
        ("%m/%d/%Y", False),
        ("%Y-%m-%d", False),
        ("%Y-%m-%dT%H:%M", False),
    ):
        texts = days.dt.strftime(form)
        assert is_day_first(texts) is day_first, form
        assert as_dates(texts, day_first).tolist() == days.tolist(), form
    assert is_day_first(pd.Series(["01.02.2020", None])) and not is_day_first(
        pd.Series(["01/02/2020", "n/a"])
    )
    iso = pd.Series(["2020-02-01", "01/02/2020", None])
    assert as_dates(iso, True).tolist() == [pd.Timestamp("2020-02-01", tz="UTC")] * 2 + [pd.NaT]


def test_new_rows_are_read_in_the_order_of_day_and_month_of_the_training_rows(tmp_path):
    days = pd.date_range("2020-01-01", periods=90, freq="D")
    columns = [{"name": "when", "kind": "date"}]
    TablePreprocessor(columns).fit(pd.DataFrame({"when": days.strftime("%d/%m/%Y")})).save_pretrained(
        tmp_path
    )
    preprocessor = TablePreprocessor.from_pretrained(str(tmp_path), columns)
    texts, dates = (
        pd.DataFrame({"when": ["05/03/2020"]}),
        pd.DataFrame({"when": [pd.Timestamp("2020-03-05")]}),
    )
    np.testing.assert_array_equal(preprocessor.transform(texts)[0], preprocessor.transform(dates)[0])


def test_a_value_with_many_ties_lands_in_their_middle():
    values = np.concatenate([np.zeros(300), np.linspace(1, 2, 100)])
    frame = pd.DataFrame({"x": values, "y": ["a", "b"] * 200})
    x_num, _ = fitted(frame).transform(frame)
    # The zeros are the lower three quarters: their middle is the quantile 0.375.
    assert x_num[0, 0] == pytest.approx(-0.32, abs=0.05)


def test_classes_or_numbers():
    assert target_of(["a", "b"] * 5)[1].classes == ("a", "b")
    assert target_of([3.0, 1.0] * 5)[1].classes == (1, 3)
    assert target_of([True, False] * 5)[1].classes == (False, True)
    assert target_of([0.5, 1.5] * 5)[1].is_regression
    assert target_of(list(range(50)))[1].is_regression
    assert target_of([3, 1] * 5, task="regression")[1].is_regression
    frame, target = target_of(["a", None, "b"] * 5)
    assert len(frame) == 10 and target.encode(frame.y).tolist() == [0, 1] * 5


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["a"] * 9, {}, "one class only"),
        ([None] * 9, {}, "has no values"),
        (["a"] * 9 + ["b"] * 2, {}, "too rare to split.*'b' \\(2\\).*--drop_rare_classes"),
        (["a", "b"] * 5, {"task": "regression"}, "needs numbers.*'a'"),
        ([1.0] * 9, {"task": "regression"}, "one value only"),
        (pd.date_range("2024-01-01", periods=30), {}, "dates or durations.*days or seconds"),
        (pd.to_timedelta(range(30), unit="h"), {}, "dates or durations.*days or seconds"),
        ([["a"], ["b"]] * 5, {}, r"lists, dicts or bytes \(\['a'\]\)"),
        ([None, *[{"a": 1}, {"a": 2}] * 5], {}, "lists, dicts or bytes"),
    ],
)
def test_a_target_that_cannot_be_learned(values, options, message):
    with pytest.raises(UserError, match=message):
        target_of(values, **options)


def test_rare_classes_are_dropped_where_asked():
    frame, target = target_of(["a"] * 9 + ["b"] * 5 + ["c"], drop_rare_classes=True)
    assert target.classes == ("a", "b") and len(frame) == 14


def test_a_subset_keeps_the_classes_proportions():
    frame = pd.DataFrame({"y": [0] * 80 + [1] * 20})
    target = find_target(frame, "y", ColumnArguments(), print)[1]
    kept, y = limit_rows(frame, frame.y.to_numpy(), target, 10, seed=0)
    assert len(kept) == 10 and y.tolist() == [0] * 8 + [1] * 2


@pytest.mark.parametrize("rows", [8, 9])
def test_a_subset_may_leave_out_fewer_rows_than_there_are_classes(rows):
    """The rows that are left out come from the classes that have most."""
    frame = pd.DataFrame({"y": ["a", "b", "b", "b", "b", "a", "c", "c", "a", "c"]})
    target = find_target(frame, "y", ColumnArguments(), print)[1]
    drawn = set()
    for seed in range(20):
        kept, y = limit_rows(frame, target.encode(frame["y"]), target, rows, seed)
        assert kept["y"].value_counts().to_dict() == {"a": 3 if rows == 9 else 2, "b": 3, "c": 3}
        assert kept.index.is_monotonic_increasing and (target.encode(kept["y"]) == y).all()
        drawn.add(tuple(kept.index))
    assert len(drawn) > 2


@pytest.mark.parametrize("rows", [60, 100, 150, 200, 300, 2990, None])
@pytest.mark.parametrize("drop", [True, False])
def test_classes_that_a_subset_makes_rare_are_dropped_or_told(rows, drop, tmp_path, capsys):
    y = np.repeat(["a", "b", "c", "single", "other"], [1490, 1490, 20, 1, 1])
    draw = np.random.default_rng(0)
    pd.DataFrame({"x": draw.normal(size=len(y)), "y": draw.permutation(y)}).to_csv(tmp_path / "t.csv")
    args = TableArguments(data=str(tmp_path / "t.csv"), target="y", max_rows=rows)
    try:
        table = prepare_table(args, ColumnArguments(drop_rare_classes=drop), 0.0)
    except UserError as error:
        assert not drop and ("--max_rows" in str(error)) == (rows is not None)
        return
    counts = np.bincount(table.y, minlength=len(table.target.classes))
    assert counts.min() >= 3 and [table.target.classes[n] for n in table.y] == table.frame["y"].tolist()
    said = capsys.readouterr().out
    assert all(f"'{name}'" in said for name in {"a", "b", "c", "single", "other"} - set(table.target.classes))
    splits = table.split(0)
    assert all(set(part.y) == set(table.y) for part in (splits.train, splits.validation, splits.test))


def test_text_files_of_all_kinds(tmp_path):
    contents = {
        "comma.csv": "a,y\n1, yes\n?,no\n",
        "semicolon.csv": "a;y\n1;yes\n;no\n",
        "tab.tsv": "a\ty\n1\tyes\n\tno\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        frame = load_table(str(tmp_path / name), "y").frame
        assert frame["y"].tolist() == ["yes", "no"] and frame["a"].isna().tolist() == [False, True], name
    (tmp_path / "latin.csv").write_bytes("a,y\né,1\nb,2\n".encode("latin-1"))
    assert load_table(str(tmp_path / "latin.csv"), "y").frame["a"][0] == "é"


def test_decimal_commas_are_numbers_where_the_separator_is_no_comma(tmp_path):
    text = "a;b;c;y\n1,5;1.234,5;1,2,3;x\n;-7;4;z\n-2e-05;0,25;5,6;x\n"
    (tmp_path / "comma.csv").write_text(text)
    frame = load_table(str(tmp_path / "comma.csv"), "y").frame
    assert frame["a"][[0, 2]].tolist() == [1.5, -2e-05] and np.isnan(frame["a"][1])
    assert frame["b"].tolist() == [1234.5, -7, 0.25]
    assert frame["c"].tolist() == ["1,2,3", "4", "5,6"]
    (tmp_path / "thousands.csv").write_text('a,y\n"1,500",x\n"2,500",z\n')
    assert load_table(str(tmp_path / "thousands.csv"), "y").frame["a"].tolist() == ["1,500", "2,500"]


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "rows.csv").write_text("a,b\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bad.parquet").write_text("no parquet")
    for name, target, message in (
        ("t.csv", "y", "no column 'y'.*'a', 'b'"),
        ("t.csv", None, "--target COLUMN.*'a', 'b'"),
        ("rows.csv", "b", "no rows"),
        ("empty.csv", "b", "is empty"),
        ("bad.parquet", "b", "could not be read"),
        ("nosuch.csv", "b", "no file"),
        ("t.xlsx", "b", "no file"),
    ):
        with pytest.raises(UserError, match=message):
            load_table(str(tmp_path / name), target)
    with pytest.raises(UserError, match="breast_cancer"):
        load_table("nosuch", "y")
    with pytest.raises(UserError, match="the target of scikit-learn's wine is 'target', not 'foo'"):
        load_table("wine", "foo")
    assert load_table("wine", "target").target == "target"


def test_small_images_become_one_column_a_pixel(tmp_path):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    images = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    pd.DataFrame({"image": images, "label": [0, 1]}).to_parquet(tmp_path / "train.parquet")
    table = load_table(str(tmp_path / "train.parquet"), "label")
    assert table.name == tmp_path.name
    np.testing.assert_array_equal(table.frame.drop(columns="label").to_numpy(), pixels.reshape(2, 9))
