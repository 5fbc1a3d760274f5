"""What the tests ask of a process whose Hub is the server of the tests."""

import contextlib
import importlib.metadata
import io
import logging
import re
import shlex
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard, constants
from packaging.version import Version
from sklearn.datasets import load_breast_cancer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    TrainerCallback,
    TrainingArguments,
)

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments, compare
from rgd_hf.hub.checks import explained
from rgd_hf.scripts.cli import run_recipe
from rgd_hf.scripts.files.hub import load_hub_dataset, load_pretrained
from tests.helpers.hub_server import HOST

socket.gethostname = lambda: HOST
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
MODEL, DATA = "google/bert-tiny", "acme/texts"
HINT = "--train_file FILE"
TASKS = {
    "tokens": "token-classification",
    "masked words": "fill-mask",
    "encoder-decoder": "text2text-generation",
}
USED = (("train",), ("validation", "test"))


def clear_cache() -> None:
    """Forget all that was downloaded."""
    for name in ("hub", "datasets"):
        shutil.rmtree(Path(constants.HF_HOME) / name, ignore_errors=True)
    huggingface_hub.HfFileSystem.clear_instance_cache()


def load(what: str) -> Any:
    """Load something of the Hub as the recipes do."""
    if what == "tokenizer":
        return len(load_pretrained(AutoTokenizer.from_pretrained, MODEL))
    if what == "model":
        model = load_pretrained(AutoModelForSequenceClassification.from_pretrained, MODEL)
        return sum(p.numel() for p in model.parameters())
    if what == "data":
        data = load_hub_dataset(DATA, local_hint=HINT, splits=USED)
        return {split: len(rows) for split, rows in data.items()}
    data = load_hub_dataset(DATA, local_hint=HINT, streaming=True)
    return next(iter(data["train"]))["label"]


def recipe(name: str, argv: list[str]) -> Any:
    """Run a recipe in this process."""
    return importlib.import_module(name).main(argv)


def command(name: str, argv: list[str]) -> list[Any]:
    """The exit code and the last line that a recipe ends with, as on a command line."""
    errors, sys.argv = io.StringIO(), [f"{name}.py"]
    try:
        with contextlib.redirect_stderr(errors):
            run_recipe(lambda: recipe(name, argv))
    except SystemExit as end:
        return [end.code, errors.getvalue().strip().splitlines()[-1]]
    return [0, ""]


def shorten_shuffle(size: int) -> None:
    """Let a stream be shuffled within a few rows, so that files are read one after the other while training."""
    from rgd_hf.scripts.vision import stream

    stream.SHUFFLE_BUFFER = size


class TensorBoardLog(TrainerCallback):
    """Leaves the file that the TensorBoard integration would: its names hold the host's, its content paths."""

    def on_train_begin(self, args, state, control, **kwargs):
        host = socket.gethostname()
        folder = Path(args.output_dir) / "runs" / f"Nov27_07-00-00_{host}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"events.out.tfevents.1.{host}.1.0").write_text(args.to_json_string())


def saved_every(steps: int) -> dict:
    """Arguments of a quiet training on the CPU that saves and evaluates every so many steps."""
    return {
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": steps,
        "eval_strategy": "steps",
        "eval_steps": steps,
    }


def plain_script(
    output_dir: str,
    texts: list[str],
    pairs: bool = False,
    lora: bool = False,
    model: str = MODEL,
    name_base: str | None = None,
    reweighted: bool = True,
    **settings: Any,
) -> str:
    """What a reader's own script does: train, and push."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    trained: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    if lora:
        from peft import LoraConfig, get_peft_model

        trained = get_peft_model(
            trained, LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=64, target_modules=["query"])
        )
        if name_base:
            trained.peft_config["default"].base_model_name_or_path = name_base
    rows = [{**tokenizer(text, text if pairs else None), "labels": i % 2} for i, text in enumerate(texts)]
    args = (ReweightedTrainingArguments if reweighted else TrainingArguments)(
        output_dir=output_dir,
        per_device_train_batch_size=4,
        max_steps=4,
        **saved_every(2),
        **settings,
    )
    data = Dataset.from_list(rows)
    trainer = ReweightedTrainer(
        trained,
        args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        callbacks=[TensorBoardLog()],
    )
    trainer.train()
    trainer.save_state()
    trainer.push_to_hub(dataset_tags=DATA, dataset="Texts of acme")
    return str(trainer.hub_model_id)


def plain_searches(output_dir: str) -> str:
    """A comparison, a hyperparameter search, a training and the push, all of one output directory."""
    words = AutoTokenizer.from_pretrained(MODEL)("word1 good")
    data = Dataset.from_list([{**words, "labels": i % 2} for i in range(8)])

    def make_trainer(seed: int, reweighting: str) -> ReweightedTrainer:
        return ReweightedTrainer(
            args=TrainingArguments(
                output_dir=output_dir,
                seed=seed,
                max_steps=2,
                **saved_every(1),
                load_best_model_at_end=True,
            ),
            model_init=lambda: AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2),
            reweighting=reweighting,
            train_dataset=data,
            eval_dataset=data,
            callbacks=[TensorBoardLog()],
        )

    compare(make_trainer, seeds=[0, 1], output_dir=output_dir)
    trainer = make_trainer(0, "kl")
    for name in (None, lambda trial: f"tau {trial.number}"):
        trainer.hyperparameter_search(
            n_trials=1, hp_space=lambda trial: {"tau": trial.suggest_float("tau", 1, 3)}, hp_name=name
        )
    trainer.train()
    trainer.push_to_hub()
    return str(trainer.hub_model_id)


def push_untrained(output_dir: str, **options: Any) -> str:
    """Push a model beside what is in the output directory already."""
    args = TrainingArguments(output_dir=output_dir, report_to=[], use_cpu=True)
    trainer = ReweightedTrainer(AutoModelForSequenceClassification.from_pretrained(MODEL), args)
    trainer.push_to_hub(**options)
    return str(trainer.hub_model_id)


def plain_task(output_dir: str, task: str, texts: list[str], **settings: Any) -> str:
    """Train and push a model of another task by a script of one's own."""
    name, cls = {
        "tokens": (MODEL, AutoModelForTokenClassification),
        "masked words": (MODEL, AutoModelForMaskedLM),
        "encoder-decoder": ("acme/t5-tiny", AutoModelForSeq2SeqLM),
    }[task]
    tokenizer = AutoTokenizer.from_pretrained(name)
    rows = [{**tokenizer(text)} for text in texts]
    for row in rows:
        row["labels"] = [i % 2 for i in row["input_ids"]] if task == "tokens" else row["input_ids"]
    args = ReweightedTrainingArguments(
        output_dir=output_dir, max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, **settings
    )
    trainer = ReweightedTrainer(
        cls.from_pretrained(name),
        args,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows[:4]),
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    trainer.train()
    trainer.evaluate()
    trainer.push_to_hub(dataset_tags=DATA, dataset="Texts of acme", tasks=TASKS[task])
    return str(trainer.hub_model_id)


def validate_card(repository: str) -> dict[str, Any]:
    """The metadata of a repository's card, after the server has validated it."""
    card = ModelCard.load(repository)
    if Version(huggingface_hub.__version__).major > 1:  # 1.x asks the public Hub, whatever HF_ENDPOINT says.
        card.validate()
    again = ModelCard(str(card))
    assert again.data.to_dict() == card.data.to_dict()
    return card.data.to_dict()


def weights_of(repository: str) -> float:
    """A number that tells one set of weights from another."""
    model = AutoModelForSequenceClassification.from_pretrained(repository)
    return sum(p.double().abs().sum() for p in model.parameters()).item()


def download(repository: str, folder: str, patterns: list[str]) -> None:
    """Get some files of a repository into a folder."""
    HfApi().snapshot_download(repository, local_dir=folder, allow_patterns=patterns)


def offline(function: str, *arguments: Any) -> Any:
    """Call a function of this module as with HF_HUB_OFFLINE=1, which the libraries read when they are imported."""
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return globals()[function](*arguments)
    finally:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False


def by_xet(function: str, *arguments: Any) -> Any:
    """Call a function of this module with large files going by the Xet protocol instead of LFS."""
    constants.HF_HUB_DISABLE_XET = False
    try:
        return globals()[function](*arguments)
    finally:
        constants.HF_HUB_DISABLE_XET = True


def upload(folder: str, repository: str) -> None:
    """Push a folder, as the library does."""
    with explained(f"{repository} was not pushed"):
        HfApi().create_repo(repository, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=folder)


def command_line(arguments: str) -> None:
    """What `hf` does with these arguments in a shell."""
    (hf,) = importlib.metadata.entry_points(group="console_scripts", name="hf")
    sys.argv = ["hf", *shlex.split(arguments)]
    try:
        hf.load()()
    except SystemExit as end:
        assert not end.code, end.code


def push_tabular(folder: str, repository: str) -> list[str]:
    """What the tabular recipe advises; what the pushed model predicts, beside what the folder's does."""
    AutoModel.from_pretrained(folder, trust_remote_code=True).push_to_hub(repository.split("/")[1])
    frame = load_breast_cancer(as_frame=True).data
    models = (AutoModel.from_pretrained(name, trust_remote_code=True) for name in (folder, repository))
    return [",".join(map(str, model.predict(frame))) for model in models]


def run_card(repository: str, revision: str = "main") -> None:
    """Run the code of a repository's card."""
    card = ModelCard.load(HfApi().hf_hub_download(repository, "README.md", revision=revision))
    (code,) = re.findall(r"(?s)```python\n(.*?)\n```", card.text)
    exec(code, {})


def create_branch(repository: str, branch: str) -> None:
    """Create a repository with a branch beside the main one, both empty."""
    name = HfApi().create_repo(repository).repo_id
    HfApi().create_branch(name, branch=branch)
