"""The model card of a tabular network: the Trainer's, with the call that predicts a DataFrame."""

import re
from pathlib import Path
from typing import Any

from rgd_hf.scripts.files.dialects import NO_SEPARATOR
from rgd_hf.scripts.tabular.splits import PreparedTable
from rgd_hf.scripts.tabular.trainer import TabularTrainer

_PANDAS_OWN = {"sep": (",", NO_SEPARATOR), "encoding": ("utf-8",), "decimal": (".",)}
_NO_TEXTS = ("skiprows", "skipinitialspace", "quoting")
_MISSING = ["", "?", "-", ".", "NA", "N/A", "#N/A", "NaN", "nan", "null", "None", "missing"]
_FIRST_CODE = re.compile(r"(?s)```python\n.*?\n```")


def write_card(trainer: TabularTrainer, folder: Path, table: PreparedTable, method: str) -> None:
    """Write `README.md` into `folder`, where `trainer`'s model is saved; every process has to call it.

    Args:
        trainer: trained; its output directory becomes `folder`.
        folder: the folder of the model.
        table: what it was trained on.
        method: name of the method.
    """
    trainer.args.output_dir = str(folder)
    trainer.evaluate()  # of the weights that are saved; those of the last epoch are not
    config: Any = trainer.model.config  # type: ignore[union-attr]
    task = "tabular-regression" if config.problem_type == "regression" else "tabular-classification"
    trainer.create_model_card(
        tags=["tabular", task], tasks=task, model_name=f"{table.name} {method}", dataset=table.name
    )
    if not trainer.is_world_process_zero():
        return
    reading = _reading(table)
    columns = ", ".join(f"{column['name']!r}" for column in config.columns[:20])
    more = ", ..." if len(config.columns) > 20 else ""
    code = "\n".join(
        [
            "```python",
            *(["import pandas as pd"] if table.marks.get("sep") else []),
            "from transformers import AutoModel",
            "",
            *reading,
            f'model = AutoModel.from_pretrained("{folder.name}", trust_remote_code=True)',
            "model.predict(frame)  # a pandas DataFrame with the columns",
            f"# {columns}{more}",
            "```",
            "",
            f"It returns `{config.target}` for every row; `predict_proba` returns probabilities. The preprocessing is "
            "saved with the model; it needs the packages rtdl_revisiting_models, rtdl_num_embeddings, tabm, "
            "scikit-learn and skops.",
        ]
    )
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(_FIRST_CODE.sub(lambda _: code, text, count=1), encoding="utf-8")


def _reading(table: PreparedTable) -> list[str]:
    """The call of pandas that reads a file like that of the table as training did, or where there is none, what it has to be.

    Nothing where it was no delimited text.
    """
    if not table.marks:
        return []
    texts = [column["name"] for column in table.columns if column["kind"] != "numeric"]
    if "sep" not in table.marks:
        named = ", ".join(map(repr, texts)) or "none"
        return [
            "# No call of pandas.read_csv reads a file of this form as training did.",
            f"# Columns of texts, as they stand in the file: {named}. All others: numbers.",
        ]
    numbers = [column["name"] for column in table.columns if column["kind"] == "numeric"]
    decimal = table.marks["decimal"]
    # Beside another word pandas leaves the numbers of a column as they stand, which matters where that is with commas.
    gaps = [name for name in numbers if decimal != "." and table.frame[name].isna().any()]
    options = {name: mark for name, mark in table.marks.items() if mark not in _PANDAS_OWN.get(name, ())}
    given = [f"{name}={mark if name in _NO_TEXTS else repr(mark)}" for name, mark in options.items()]
    given += [f"dtype=dict.fromkeys({texts!r}, str)"] if texts else []
    given += ["keep_default_na=False"]
    given += [f"na_values=dict.fromkeys({gaps!r}, {_MISSING!r})" if gaps else 'na_values=[""]']
    return [
        "# As for training: codes and words as they stand.",
        f'frame = pd.read_csv("FILE", {", ".join(given)})',
    ]
