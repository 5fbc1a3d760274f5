"""`sft.py` in this process: chats, prompts with completions and texts, at both levels; what it refuses."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from helpers.tiny_models import save_llama
from rgd_hf.scripts.errors import UserError
from tests.helpers.releases import loads_adapters

pytest.importorskip("trl")
pytest.importorskip("peft")
import sft

pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = [f"w{i}" for i in range(20)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("tiny_llama"), WORDS)


def sentence(n):
    """A word is followed by the next one: something to learn."""
    return " ".join(WORDS[(n + i) % len(WORDS)] for i in range(4 + n % 5))


ROWS = {
    "messages": lambda n: {
        "messages": [
            {"role": "user", "content": sentence(n)},
            {"role": "assistant", "content": sentence(n + 7)},
        ]
    },
    "completion": lambda n: {"prompt": sentence(n), "completion": " " + sentence(n + 3)},
    "text": lambda n: {"text": sentence(n)},
}


@pytest.fixture
def command(model_dir, tmp_path):
    def arguments(kind="text", *options):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(ROWS[kind](n)) + "\n" for n in range(24)), encoding="utf-8")
        settings = {
            "train_file": path,
            "holdout_fraction": 0.25,
            "model_name_or_path": model_dir,
            "output_dir": tmp_path / "out",
            "max_steps": 4,
            "learning_rate": 0.02,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "eval_strategy": "no",
            "gradient_checkpointing": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
        }
        return [*(f"--{name}={value}" for name, value in settings.items()), *options]

    return arguments


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("messages", ["--assistant_only_loss=true"]),
        ("messages", ["--packing=true", "--max_length=32", "--assistant_only_loss=true"]),
        ("completion", ["--reweighting_level=sample"]),
        pytest.param("completion", ["--target_ess=0.9", "--lora_rank=2"], marks=loads_adapters),
        ("text", ["--normalize_weights=true"]),
    ],
    ids=["assistant", "packed", "sample level", "lora", "text"],
)
def test_trains_evaluates_and_leaves_a_model(kind, options, command, tmp_path):
    record = sft.main(command(kind, *options))
    out = tmp_path / "out"
    assert json.loads((out / "all_results.json").read_text()) == record
    assert record["eval_perplexity"] == pytest.approx(2.718281828 ** record["eval_loss"], rel=1e-6)
    state = json.loads((out / "trainer_state.json").read_text())
    logs = [log for log in state["log_history"] if "weight_mean" in log]
    assert len(logs) == 4 and logs[0]["weight_max"] > 1
    assert "text-generation" in (out / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(out)


def test_a_whole_model_in_the_place_of_adapters_is_loaded_without_them(command, tmp_path):
    sft.main(command("text", "--lora_rank=2"))
    sft.main(command("text", "--overwrite_output_dir"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    assert not [*(tmp_path / "out").glob("adapter_*")]


def test_learns_and_needs_no_logits(command, monkeypatch):
    from rgd_hf.heads import FusedHead

    calls = []
    run = FusedHead.run
    monkeypatch.setattr(FusedHead, "run", lambda *args: calls.append(run(*args)) or calls[-1])
    record = sft.main(command("text", "--max_steps=30"))
    assert record["eval_perplexity"] < len(WORDS) / 2
    assert len(calls) >= 30 and all(losses is not None for _, losses in calls)


def test_an_interrupted_run_goes_on(command, tmp_path):
    options = ["--save_strategy=steps", "--save_steps=2"]
    whole = sft.main(command("text", *options))
    out = tmp_path / "out"
    (out / "all_results.json").unlink()
    for path in out.glob("checkpoint-4"):
        path.rename(tmp_path / "gone")
    assert sft.main(command("text", *options))["eval_loss"] == whole["eval_loss"]


def test_compare_trains_both(command, capsys):
    results = sft.main(command("text", "--compare=true"))
    assert list(results["runs"]) == ["erm", "kl"]
    assert "perplexity" in capsys.readouterr().out


def test_rows_that_truncation_leaves_nothing_of_are_counted(command, tmp_path, capsys):
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": sentence(n) * (1 + 20 * (n % 2)), "completion": " " + sentence(n)} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [f"--train_file={path}", "--max_steps=1", "--max_length=32", "--compare=true"]
    sft.main(command("completion", *options, "--output_dir", str(tmp_path / "some")))
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("5 of 9 training rows are left out: cut to 32 tokens (--max_length)") == 1
    assert "1 of 3 validation rows are left out" in said and "fine-tuning: 4 training samples" in said
    sft.main(command("completion", *options, "--max_length=400", "--output_dir", str(tmp_path / "all")))
    said = " ".join(capsys.readouterr().out.split())
    assert "left out" not in said and "fine-tuning: 9 training samples" in said
    sft.main(command("completion", *options, "--packing=true", "--output_dir", str(tmp_path / "packed")))
    said = " ".join(capsys.readouterr().out.split())
    assert "left out" not in said and "fine-tuning: 9 training samples, packed into" in said
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[1::2]))
    with pytest.raises(UserError, match=r"4 of 4 training rows are left out.* Raise --max_length"):
        sft.main(command("completion", *options, "--output_dir", str(tmp_path / "none")))


def test_a_column_of_weights_weights_the_rows(command, tmp_path):
    path = tmp_path / "weighted.jsonl"
    losses = []
    for weights in (1, 1), (1, 3):
        rows = [{"text": sentence(n), "sample_weight": weights[n % 2]} for n in range(12)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = [f"--train_file={path}", "--overwrite_output_dir=true", "--reweighting=none"]
        losses.append(sft.main(command("text", *options))["eval_loss"])
    assert losses[0] != losses[1]


def test_lines_of_a_text_file(command, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(sentence(n) + "\n\n" for n in range(12)), encoding="utf-8")
    assert sft.main(command("text", f"--train_file={path}", "--max_steps=1"))["eval_loss"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--validation_file=x.jsonl"], "either --validation_file or --holdout_fraction"),
        (["--hard_examples=3"], "--hard_examples"),
        (["--train_file=missing.jsonl"], "no file"),
        (["--train_file=missing.txt"], "no file"),
        (["--loss_type=dft"], "--loss_type dft has weights of tokens of its own.*nll"),
        (["--class_weights=balanced"], "--class_weights are for classification"),
        (["--assistant_only_loss=true"], "--assistant_only_loss is for chats.* holds texts: leave it out"),
        (["--lora_rank=-2"], "--lora_rank must be at least 1, or 0.*not -2"),
        (["--metric_for_best_model=bleu"], "computes 'loss', 'perplexity'; choose one"),
        (["--dtype=float61"], "--dtype must be one of 'float32', 'bfloat16', .*not 'float61'"),
        (["--max_length=-5"], "--max_length must be at least 1, not -5"),
        (
            ["--reweighting_level=sample", "--packing=true"],
            "--reweighting_level sample .* leave out --packing",
        ),
        (["--reweighting_level=sample", "--padding_free=true"], "leave out --padding_free, or give .* token"),
        (
            ["--router_aux_loss_coef=0.1"],
            "--router_aux_loss_coef is for mixtures of experts, which .* is not",
        ),
    ],
)
def test_what_cannot_work_is_refused(options, message, command):
    with pytest.raises(UserError, match=message):
        sft.main(command("text", *options))


def test_other_columns_are_named(command, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"question": "a"}\n{"question": "b"}\n')
    with pytest.raises(UserError, match=r"'question'.* but needs 'prompt' and 'completion', or 'messages'"):
        sft.main(command("text", f"--train_file={path}"))


def test_chats_need_a_template(command, model_dir, tmp_path):
    from transformers import AutoTokenizer

    bare = tmp_path / "bare"
    LlamaForCausalLM.from_pretrained(model_dir).save_pretrained(bare)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    with pytest.raises(UserError, match="--chat_template_path"):
        sft.main(command("messages", f"--model_name_or_path={bare}"))
    for mistyped in ("chat.jinja", "no/such/folder"):
        with pytest.raises(UserError, match=mistyped):
            sft.main(command("messages", f"--chat_template_path={mistyped}"))


@pytest.mark.parametrize("kind", [*ROWS])
def test_a_tokenizer_without_an_end_of_sequence_token(kind, command, model_dir, tmp_path):
    without = tmp_path / "without"
    shutil.copytree(model_dir, without)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    pads = tokenizer.pad_token
    token, tokenizer.eos_token = tokenizer.eos_token, None
    tokenizer.save_pretrained(without)
    arguments = [*command(kind), f"--model_name_or_path={without}"]
    if kind != "messages" or not pads:
        with pytest.raises(UserError, match=r"no end-of-sequence token: .*--eos_token TOKEN"):
            sft.main(arguments)
    if kind != "messages":
        arguments.append(f"--eos_token={token}")
    sft.main(arguments)


def test_the_option_for_the_text_column_is_named():
    with pytest.raises(UserError, match=r"'--text_column' is no option .* give --dataset_text_field"):
        sft.main(["--text_column", "x"])
