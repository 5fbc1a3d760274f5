"""The model card of a tabular network: the Trainer's, with the call that predicts a DataFrame."""

import re
from pathlib import Path
from typing import Any

from rgd_hf.scripts.tabular.trainer import TabularTrainer

_FIRST_CODE = re.compile(r"(?s)```python\n.*?\n```")


def write_card(trainer: TabularTrainer, folder: Path, data: str, method: str) -> None:
    """Write `README.md` into `folder`, where `trainer`'s model is saved; every process has to call it.

    Args:
        trainer: trained; its output directory becomes `folder`.
        folder: the folder of the model.
        data: name of the table.
        method: name of the method.
    """
    trainer.args.output_dir = str(folder)
    trainer.evaluate()  # of the weights that are saved; those of the last epoch are not
    config: Any = trainer.model.config  # type: ignore[union-attr]
    task = "tabular-regression" if config.problem_type == "regression" else "tabular-classification"
    trainer.create_model_card(tags=["tabular", task], tasks=task, model_name=f"{data} {method}", dataset=data)
    if not trainer.is_world_process_zero():
        return
    columns = ", ".join(f"{column['name']!r}" for column in config.columns[:20])
    more = ", ..." if len(config.columns) > 20 else ""
    code = "\n".join(
        [
            "```python",
            "from transformers import AutoModel",
            "",
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
