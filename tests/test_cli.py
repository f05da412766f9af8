"""The command line: what it takes, what it says, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import yaml

from c3jax import __version__
from c3jax.cli import main
from c3jax.config.fields import list_fields
from c3jax.config.file import load_config
from c3jax.config.overrides import split_overrides
from c3jax.config.run import ConfigError
from c3jax.rollout import tree
from c3jax.run.directory import open_run_dir
from tests import tiny_run

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("train", "evaluate", "compare", "ask", "export", "score", "plan", "prepare", "overlap", "fields")
QUESTION = "the dial shows 3 . mia up 4 ."
PLAN, ANSWER = tiny_run.TREE["protocol"]["turns"]
TREE = tiny_run.TREE | {
    "steps": 1,
    "protocol": {"question_tokens": 9, "turns": [PLAN | {"role": "[red]"}, ANSWER | {"role": "answer"}]},
    "evaluation": {"samples": 0},
}


@pytest.fixture
def config(tmp_path, tmp_path_factory, monkeypatch) -> Iterator[str]:
    """A tiny config in an empty working directory; what commands set for the whole process is set back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TREE), encoding="utf-8")
    before = {
        "jax_default_matmul_precision": jax.config.jax_default_matmul_precision,
        "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir,
        "jax_persistent_cache_min_compile_time_secs": jax.config.jax_persistent_cache_min_compile_time_secs,
        "jax_disable_most_optimizations": jax.config.read("jax_disable_most_optimizations"),
    }
    jax.config.update("jax_disable_most_optimizations", True)  # programs here run for milliseconds
    yield "tiny.yaml"
    for name, value in before.items():
        jax.config.update(name, value)


def run_module(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "c3jax.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **changes})


# --------------------------------------------------------------------------------------------------------------------
# Help


def test_help_fits_a_terminal_and_answers_without_jax():
    program = f"""
import sys
from c3jax.cli import main
for words in [[], *([name] for name in {COMMANDS!r})]:
    try:
        main([*words, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
main(["fields"])
assert main(["train", "missing.yaml"]) == 2
heavy = sorted({{"jax", "flax", "transformers", "tokenizers", "rich", "orbax"}} & set(sys.modules))
assert not heavy, heavy
for words in ("train trio --trackers [wand]", "plan trio --platform cpu --topology x", "ask trio up --checkpoint 7"):
    assert main(words.split()) == 2, words
assert "jax" not in sys.modules
"""
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    assert max(map(len, answer.stdout.splitlines())) <= 80
    for name in COMMANDS:
        assert re.search(rf"^    {name} +[a-z]", answer.stdout, re.MULTILINE)  # in the list of commands
        assert f"usage: c3jax {name} [-h]" in answer.stdout
    # Every option is explained, and the commands that take overrides say so.
    assert not re.findall(r"^  --?[a-z-]+[^ ]* ?[A-Z]*\n  -", answer.stdout, re.MULTILINE)
    assert answer.stdout.count("Any field of the config may be set by its dotted path:") == 4


def test_the_module_runs_as_the_command_does():
    answer = run_module("--version")
    assert (answer.returncode, answer.stdout) == (0, f"c3jax {__version__}\n")
    answer = run_module("train", "missing.yaml")
    sentence = (
        "c3jax: missing.yaml: expected a YAML file, or one of code_repair, debate, game, gsm8k_smollm2, math_qwen,"
    )
    assert (answer.returncode, answer.stdout) == (2, "") and answer.stderr.startswith(sentence)


def test_fields_lists_every_field_with_its_meaning(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["fields"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("--")] == [
        f"--{field.path}" for field in list_fields()
    ]
    assert "--learner.epochs  integer  [1]" in lines and max(map(len, lines)) <= 80
    assert lines[lines.index("--learner.epochs  integer  [1]") + 1] == "    Passes over a step's messages."


def test_a_reader_that_has_seen_enough_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "c3jax.cli", "fields"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


# --------------------------------------------------------------------------------------------------------------------
# Words


@pytest.mark.parametrize(
    ("words", "kept", "overrides"),
    [
        ("train a.yaml --seed 1", "train a.yaml", {"seed": 1}),
        ("train --seed 1 a.yaml", "train a.yaml", {"seed": 1}),
        ("train --seed=1 a.yaml --run-dir here", "train a.yaml --run-dir here", {"seed": 1}),
        ("ask run --checkpoint best --sample", "ask run --checkpoint best --sample", {}),
        ("train a --checkpoint.every 5", "train a", {"checkpoint.every": 5}),
        ("train a --learner.learning-rate 4e-3", "train a", {"learner.learning_rate": 0.004}),
        (
            "train a --task.path a=b --task.heldout_path=c=d",
            "train a",
            {"task.path": "a=b", "task.heldout_path": "c=d"},
        ),
        ("train a --seed -1 --sampling.top_p -2.5e-1", "train a", {"seed": -1, "sampling.top_p": -0.25}),
        ("train a --seed=", "train a", {"seed": None}),
        ("train a --protocol.turns.0.role=--x", "train a", {"protocol.turns.0.role": "--x"}),
        ("train a --seed 1 --seed 2", "train a", {"seed": 2}),
        ("ask run --seed 1 -- --seed 2", "ask run -- --seed 2", {"seed": 1}),
        ("compare a b --format csv -h", "compare a b --format csv -h", {}),
    ],
)
def test_overrides_are_told_from_the_commands_own_words(words, kept, overrides):
    assert split_overrides(words.split()) == (kept.split(), overrides)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train a --seed", "^seed: expected a value after --seed, got nothing$"),
        ("train a --seed --steps 3", "^seed: expected a value after --seed, got --steps$"),
    ],
)
def test_an_override_without_a_value_is_said(words, message):
    with pytest.raises(ConfigError, match=message):
        split_overrides(words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "the following arguments are required: config"),
        (["train", "a", "b"], "unrecognized arguments: b"),
        (["train", "a", "-x"], "unrecognized arguments: -x"),
        (["ask", "run"], "the following arguments are required: question"),
        (["compare", "a", "--format", "word"], "invalid choice: 'word'"),
        (["compare", "a", "--seed", "3"], "unrecognised argument --seed"),
        (["fields", "--seed=3"], "unrecognised argument --seed"),
    ],
)
def test_words_that_are_no_command_line_show_the_usage(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("usage: c3jax")
    assert shown.err.rpartition("\nc3jax: ")[2].count("\n") == 1 and message in shown.err


# --------------------------------------------------------------------------------------------------------------------
# What the user can mend: exit code 2, one sentence, nothing written


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train tiny.yaml --steps x", 'steps: expected an integer, got "x"'),
        ("train --steps x tiny.yaml", 'steps: expected an integer, got "x"'),
        ("train tiny.yaml --learner.learning_rate -1e-3", "learner.learning_rate: expected greater than 0, got -0.001"),
        (
            "train tiny.yaml --problems 4 --rollout_problems 3",
            r"rollout_problems: expected a divisor of problems \(4\), got 3",
        ),
        (
            "train tiny.yaml --evaluation.suites '[{name: heldout, kind: math, path: x}]'",
            "evaluation.suites.0.name: expected a name no other suite has, got 'heldout'",
        ),
        (
            "train tiny.yaml --unsafe-no-sandbox",
            "--unsafe-no-sandbox: expected a task that runs programs, got arithmetic",
        ),
        (
            "train tiny.yaml --unsafe_no_sandbox true",
            "--unsafe_no_sandbox: expected --unsafe-no-sandbox",
        ),
        ("train tiny.yaml --run_dir x", "--run_dir: expected --run-dir"),
        ("train tiny.yaml --run-dir=", "--run-dir: expected a folder, got an empty name"),
        ("train tiny.yaml --workers 100000", "workers: expected at most .* cores and .* GiB of memory, got 100,000"),
        ("train tin", "tin: expected a YAML file, or one of code_repair, debate, .*, trio, found none"),
        (
            "train credit_bench",
            r"config credit_bench: expected that of a run, got that of a study \(c3jax study credit_bench\)",
        ),
        ("study trio", r"config trio: expected that of a study, got that of a run \(c3jax train trio\)"),
        ("train tiny.yaml --credit.fan_out [1,4]", "credit.fan_out: method c3 would give turn 0 zero credit: .*"),
        ("train tiny.yaml --problems 3 --learner.minibatches 2", "learner.minibatches: expected a divisor .*"),
        (
            "train tiny.yaml --problems 5",
            "problems: expected at most the 4 training problems whose question fits protocol.question_tokens, got 5",
        ),
        ("train tiny.yaml --model.context 9", r"protocol.turns.0: expected a context and message of at most 9 .*"),
        (
            "train tiny.yaml --model '{kind: smollm2}' --task '{kind: numeric, path: no.jsonl, heldout_path: b}'",
            r"no.jsonl: the file cannot be read \(No such file or directory\)",
        ),
        ("train tiny.yaml --run-dir tiny.yaml", "run directory tiny.yaml: expected a directory, got a file"),
        ("train tiny.yaml --run-dir tiny.yaml/x", "run directory tiny.yaml/x: expected a directory, got one inside .*"),
        ("train ''", "an empty name: expected a YAML file, or one of code_repair, .*"),
        ("ask '' up", "source: expected a run directory or a config, got an empty name"),
        ("train .", r"config .: cannot be read \(Is a directory\)"),
        (
            "evaluate nothing",
            "nothing: expected a run directory, a config file, or one of code_repair, debate, .*, found none",
        ),
        ("evaluate .", "run directory .: expected a run with a config.yaml, found none"),
        ("evaluate begun", "begun: expected a run with a checkpoint, got none yet"),
        (
            "evaluate tiny.yaml --seed 6 --out begun",
            "run directory begun: holds the run of another config, where seed .*",
        ),
        ("evaluate tiny.yaml --checkpoint 3", "--checkpoint: expected a run directory to take '3' from, got a config"),
        ("ask tiny.yaml dials", "question: expected words of the tokenizer, got 'dials', which is none of its 25"),
        ("ask tiny.yaml ' '", "question: expected some text, got none"),
        (
            f"ask tiny.yaml '{'up ' * 15}'",
            "question: expected one that leaves every context and message within the model's 20 tokens, got 15 tokens"
            " and so up to 21",
        ),
        ("ask tiny.yaml up --sampling.top_p 0.5", "sampling.top_p: expected 1 while sampling.top_k is 0 .*"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(capsys, config, tmp_path, words, sentence):
    open_run_dir("begun", load_config(config), ["c3jax"]).lock.close()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    assert main(shlex.split(words)) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and re.fullmatch(f"c3jax: {sentence}\n", shown.err), shown.err
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


# --------------------------------------------------------------------------------------------------------------------
# A run from the command line


def test_a_run_is_trained_evaluated_and_asked(capsys, config, tmp_path, monkeypatch):
    words = ["train", "--run-dir", "out", "--steps", "2", config]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "c3jax")])
    monkeypatch.setenv("PATH", "/nowhere")  # as a launcher has it, which takes the program by its path
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "held-out accuracy" in shown and 'Next: bin/c3jax ask out "..."' in shown
    assert max(map(len, shown.splitlines())) <= 80
    manifest = json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))
    assert manifest["command"] == ["c3jax", *words]
    assert load_config("out/config.yaml") == load_config(config, {"steps": 2})

    assert main(["evaluate", "out", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    after = json.loads(Path("out/eval/after.json").read_text(encoding="utf-8"))
    assert printed == {"source": "out", "unsafe_no_sandbox": False} | after and printed["step"] == 2
    assert json.loads(Path("out/eval/suites-2.json").read_text(encoding="utf-8")) == after

    row = {"question": QUESTION, "answer": "7"}
    Path("dial.jsonl").write_text("".join(json.dumps(row | {"id": str(place)}) + "\n" for place in range(3)))
    suites = "[{name: dial, kind: numeric, path: dial.jsonl}, {name: lost, kind: math, path: lost.jsonl}]"
    assert main(["evaluate", "out", "--evaluation.suites", suites]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"^dial +greedy +3 +1 ", shown, re.MULTILINE) and re.search(r"^lost +missing", shown, re.MULTILINE)
    assert re.search(r"^lost is missing: .*lost.jsonl", shown, re.MULTILINE)
    kept = json.loads(Path("out/eval/suites-2.json").read_text(encoding="utf-8"))["results"]
    assert [result["suite"] for result in kept] == ["heldout", "dial", "lost"] and kept[1]["ids"] == ["0", "1", "2"]

    # What another seed gives is not the run's.
    assert main(["evaluate", "out", "--seed", "3", "--evaluation.samples", "0"]) == 0
    assert "Not kept in out: with another seed they are not its own." in capsys.readouterr().out
    assert json.loads(Path("out/eval/suites-2.json").read_text(encoding="utf-8"))["results"] == kept

    # In two calls a step draws the same messages, each by the address of its problem.
    assert main([*words, "--run-dir", "split", "--rollout_problems", "1"]) == 0
    figures = [
        [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for run in ("out", "split")
    ]
    kept = ("return", "correct_share", "evaluator_calls", "messages", "generated_tokens", "truncated_share")
    assert [[row[name] for name in kept] for row in figures[0]] == [[row[name] for name in kept] for row in figures[1]]
    files = [Path(run, "rollouts", "step-000000.jsonl").read_text(encoding="utf-8") for run in ("out", "split")]
    texts = [[node["text"] for line in file.splitlines() for node in json.loads(line)["nodes"]] for file in files]
    assert texts[0] == texts[1] and len(texts[0]) == 2 * 6
    capsys.readouterr()

    traced, make_model = [], tree.make_model
    monkeypatch.setattr(tree, "make_model", lambda *given: traced.append(given[2]) or make_model(*given))
    assert main(["ask", "out", QUESTION, "--transcript"]) == 0
    assert traced == ["[red]", "answer"]  # what was compiled before the weights were there is what draws
    said = json.loads(capsys.readouterr().out)
    plan, answer = said["turns"]
    assert plan["context"] == f"<|user|> {QUESTION} plan : <|assistant|>" and plan["role"] == "[red]"
    assert answer["context"] == " ".join(f"<|user|> {plan['message']} answer : <|assistant|>".split())
    assert said["question"] == QUESTION and said["step"] == 2
    assert main(["ask", "out", QUESTION, "--checkpoint", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "plan ([red])" and lines[1] == (plan["message"] or "(nothing)")
    assert lines[3] == "answer" and lines[4] == (answer["message"] or "(nothing)")
    assert lines[6] == f"answer {said['answer'] or '(none could be read)'}"

    for checkpoint, expected in (("7", "newest, best or one of [0, 2]"), ("best", "a run whose config keeps the best")):
        assert main(["ask", "out", QUESTION, "--checkpoint", checkpoint]) == 2
        assert capsys.readouterr().err.startswith(f"c3jax: --checkpoint: expected {expected}")


def test_a_device_whose_plugin_is_missing_is_one_sentence(capsys, config, monkeypatch):
    def fail():  # as JAX does for cuda
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", fail)
    assert main(["train", config]) == 2
    assert capsys.readouterr().err == (
        "c3jax: JAX_PLATFORMS=cuda: expected devices that are here, got none (its plugin is missing)\n"
    )


def test_a_device_that_is_not_there_and_a_disk_that_is_full_are_one_sentence(config):
    command = [sys.executable, "-m", "c3jax.cli"]
    environment = os.environ | {"JAX_PLATFORMS": "abacus", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*command, "train", config], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("c3jax: JAX_PLATFORMS=abacus: "), done.stderr
    assert done.stderr.count("\n") == 1
    with open("/dev/full", "w") as full:
        for words in (["fields"], ["--help"]):
            done = subprocess.run([*command, *words], env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
            assert done.returncode == 1
            assert done.stderr == "c3jax: the output cannot be written (No space left on device)\n"


def test_a_name_that_cannot_be_shown_and_a_folder_that_is_gone_are_no_traceback(capsys, config, tmp_path):
    (tmp_path / "gone").mkdir()
    change = (
        "import os, sys; os.chdir('gone'); os.rmdir('../gone'); from c3jax.cli import main; sys.exit(main(['fields']))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", change], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "c3jax: expected a folder to run in, got one that is gone\n")
    assert main(["fields", "\udcff"]) == 2
    assert capsys.readouterr().err == "c3jax: expected words in UTF-8, got 'fields \\udcff'\n"
    command = [sys.executable, "-m", "c3jax.cli", "sweep", config, "--out", "\xfc", "--print"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and r"--run-dir=\xfc/tiny/seed-0" in done.stdout


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_has_its_exit_code_while_the_program_is_still_being_imported(tmp_path, name, code):
    """Also where what it imports would make another error of it."""
    kill = f"try:\n    os.kill(os.getpid(), signal.{name})\nexcept KeyboardInterrupt:\n    raise ImportError from None"
    (tmp_path / "pydantic.py").write_text(f"import os, signal\n{kill}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "c3jax.cli", "fields"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "c3jax: stopped\n")
