"""The launch files: what they would run, against a gcloud that checks its arguments, and processes started for real."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCHEMAS = Path(__file__).parent / "schemas"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])

# Which flags each group of gcloud takes here, by its reference; --project and --zone are every group's.
GCLOUD = """#!/usr/bin/env python3
import json, os, sys
from pathlib import Path
FLAGS = {
    "queued-resources create": ["--node-id", "--accelerator-type", "--runtime-version", "--spot"],
    "queued-resources describe": ["--format"],
    "queued-resources delete": ["--force", "--quiet"],
    "tpu-vm scp": ["--worker"],
    "tpu-vm ssh": ["--worker", "--command"],
}
words = sys.argv[1:]
assert words[:2] == ["compute", "tpus"], words
group, rest = " ".join(words[2:4]), words[4:]
names = [word for word in rest if not word.startswith("-")]
given = {word.partition("=")[0]: word.partition("=")[2] for word in rest if word.startswith("-")}
unknown = set(given) - {"--project", "--zone", *FLAGS[group]}
assert not unknown and given["--project"] == "p" and given["--zone"] == "z", (unknown, rest)
assert len(names) == (2 if group == "tpu-vm scp" else 1), names
folder = Path(os.environ["STAND_IN"])
with open(folder / "calls", "a") as file:
    file.write(json.dumps([group, names, given]) + "\\n")
answers = json.loads((folder / "answers").read_text())
key = group if group != "tpu-vm ssh" else next((k for k in answers if k in given["--command"]), group)
queue = answers.get(key, [])
if queue:
    print(queue.pop(0))
    (folder / "answers").write_text(json.dumps(answers))
elif group == "queued-resources describe":
    sys.exit(1)
"""


@pytest.fixture
def gcloud(tmp_path):
    """Run tpu_vm.sh with a gcloud that gives these answers, by group or by a part of the command on a worker."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gcloud").write_text(GCLOUD)
    (tmp_path / "bin" / "gcloud").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "STAND_IN": str(tmp_path), "C3JAX_POLL_SECONDS": "0"}

    def launch(words: str, **answers: list[str]) -> tuple[subprocess.CompletedProcess[str], list[list]]:
        (tmp_path / "answers").write_text(json.dumps({key.replace("__", " "): value for key, value in answers.items()}))
        (tmp_path / "calls").write_text("")
        command = ["bash", str(LAUNCH / "tpu_vm.sh"), *shlex.split(words)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        return result, [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    return launch


WHERE = "--project p --zone z --name n"
DESCRIBE = "queued-resources__describe"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path):
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program is not None
    result = subprocess.run([program, "--external-sources", script], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("name", ["skypilot.yaml:skypilot.json", "gke_jobset.yaml:jobset.json"])
def test_a_yaml_file_is_of_its_programs_schema(name: str):
    file, schema = name.split(":")
    tree, known = yaml.safe_load((LAUNCH / file).read_text()), json.loads((SCHEMAS / schema).read_text())
    jsonschema.Draft202012Validator(known).validate(tree)
    with pytest.raises(jsonschema.ValidationError):  # a name that the schema does not know is refused
        jsonschema.validate(tree | {"numnodes": 2}, known)


# --------------------------------------------------------------------------------------------------------------------
# TPU VMs


def test_create_asks_for_a_spot_slice_and_waits_for_it(gcloud):
    answers = {DESCRIBE: ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]}
    result, calls = gcloud(f"create {WHERE} --spot --type v6e-8", **answers)
    assert result.returncode == 0, result.stderr
    (created,) = [call for call in calls if call[0] == "queued-resources create"]
    flags = {"--node-id": "n", "--accelerator-type": "v6e-8", "--runtime-version": "v2-alpha-tpuv6e", "--spot": ""}
    assert created == ["queued-resources create", ["n"], flags | {"--project": "p", "--zone": "z"}]
    assert [call[0] for call in calls[2:]] == ["queued-resources describe"] * 3


def test_create_takes_a_slice_that_is_there_and_clears_one_that_was_taken_away(gcloud):
    _, calls = gcloud(f"create {WHERE}", **{DESCRIBE: ["ACTIVE"]})
    assert [call[0] for call in calls] == ["queued-resources describe"]
    _, calls = gcloud(f"create {WHERE}", **{DESCRIBE: ["SUSPENDED", "ACTIVE"]})
    assert [call[0].split()[1] for call in calls] == ["describe", "delete", "create", "describe"]
    result, _ = gcloud(f"create {WHERE}", **{DESCRIBE: ["", "FAILED"]})
    assert result.returncode == 2 and result.stderr.startswith("c3jax: the queued resource n failed")


def test_run_starts_again_on_a_new_slice_when_one_is_taken_away_and_ends_as_the_command_does(gcloud):
    """The first logs end with the slice suspended; the second with the command, whose status is 3."""
    states = ["ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE", "ACTIVE"]
    answers = {DESCRIBE: states, "run.status": ["3"]}
    result, calls = gcloud(f"run {WHERE} --bucket gs://b -- c3jax train quickstart --seed '1 2'", **answers)
    assert result.returncode == 3, result.stderr
    assert "n was taken away; asking for another" in result.stderr
    commands = [call[2]["--command"] for call in calls if call[0] == "tpu-vm ssh"]
    started = [command for command in commands if "tpu_worker.sh" in command]
    assert len(started) == 2 and "'gs://b' c3jax train quickstart --seed 1\\ 2" in started[0]
    assert [call[0].split()[1] for call in calls].count("delete") == 1
    copied = [call for call in calls if call[0] == "tpu-vm scp"]
    assert len(copied) == 2 and copied[0][1][1] == "n:c3jax.tar.gz" and copied[0][2]["--worker"] == "all"
    for command in commands:
        assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0, command


def test_nothing_is_deleted_but_on_request(gcloud):
    for action in ("status", "logs", "stop", "install"):
        _, calls = gcloud(f"{action} {WHERE}", **{DESCRIBE: ["ACTIVE"]})
        assert calls and "queued-resources delete" not in [call[0] for call in calls]
    _, calls = gcloud(f"delete {WHERE}")
    assert calls == [
        ["queued-resources delete", ["n"], {"--force": "", "--quiet": "", "--project": "p", "--zone": "z"}]
    ]


def test_a_dry_run_prints_the_commands_and_runs_none(gcloud):
    result, calls = gcloud(f"run {WHERE} --spot --dry-run -- c3jax train quickstart")
    assert (result.returncode, calls) == (0, [])
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    assert [line[:4] for line in lines if line[0] == "gcloud"][0] == ["gcloud", "compute", "tpus", "queued-resources"]
    assert [line[4] for line in lines if line[0] == "gcloud"] == ["create", "scp", "ssh", "ssh", "ssh"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "expected one of create, install, start, logs, status, stop, run, delete, got nothing"),
        ("create --zone z --name n", "--project: expected a value, got none"),
        (f"run {WHERE}", "expected a command after --, got none"),
        (f"create {WHERE} --type v9-8", "--runtime: expected a value for type v9-8, got none"),
        (f"create {WHERE} --bucket b", "--bucket: expected gs://..., got b"),
        (f"create {WHERE} --spott", "unknown option --spott"),
        (f"create {WHERE} --type", "--type: expected a value"),
    ],
)
def test_what_tpu_vm_cannot_do_is_one_sentence(gcloud, words, sentence):
    result, calls = gcloud(words)
    assert (result.returncode, result.stderr, calls) == (2, f"c3jax: {sentence}.\n", [])


def test_a_worker_keeps_its_commands_output_and_exit_status(tmp_path):
    """Its number is given, there is no bucket; SIGTERM reaches the command."""
    command = "trap 'exit 75' TERM; echo ready $C3JAX_DISTRIBUTED; while true; do sleep 0.05; done"
    arguments = ["bash", str(LAUNCH / "tpu_worker.sh"), "0", "", "bash", "-c", command]
    with subprocess.Popen(arguments, cwd=tmp_path) as process:
        wait_for(lambda: (tmp_path / "run.log").is_file() and "ready 1" in (tmp_path / "run.log").read_text())
        assert int((tmp_path / "run.pid").read_text()) == process.pid
        process.terminate()
        assert process.wait(20) == 75
    assert (tmp_path / "run.status").read_text() == "75\n"


def test_slurms_dry_run_prints_the_step():
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "--dry-run", "c3jax", "train", "quickstart"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == f"srun --kill-on-bad-exit=1 --chdir={ROOT} c3jax train quickstart\n"


@pytest.mark.parametrize(("status", "calls"), [(0, ["srun"]), (3, ["srun"]), (75, ["srun", "scontrol requeue 41"])])
def test_a_slurm_job_that_stopped_on_request_goes_back_into_the_queue(tmp_path, status, calls):
    for name, code in (("srun", status), ("scontrol", 0)):
        words = "scontrol $*" if name == "scontrol" else "srun"
        (tmp_path / name).write_text(f'#!/bin/sh\necho {words} >>"{tmp_path}/calls"\nexit {code}\n')
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "41"}
    result = subprocess.run(["bash", str(LAUNCH / "slurm.sbatch"), "c3jax"], env=environment, cwd=tmp_path)
    assert result.returncode == status and (tmp_path / "calls").read_text().splitlines() == calls


# --------------------------------------------------------------------------------------------------------------------
# Processes on this machine


def wait_for(is_so, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def start_processes(count: str, *command: str) -> subprocess.Popen[str]:
    arguments = ["bash", str(LAUNCH / "local_processes.sh"), count, *command]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_are_told_who_they_are_and_their_lines_say_it():
    output, errors = start_processes(
        "3", "bash", "-c", "echo $C3JAX_PROCESS/$C3JAX_PROCESSES $C3JAX_COORDINATOR; echo no >&2"
    ).communicate(timeout=30)
    lines = sorted(output.splitlines())
    assert [line.rpartition(":")[0] for line in lines] == [f"{number}: {number}/3 127.0.0.1" for number in range(3)]
    assert len({line.rpartition(":")[2] for line in lines}) == 1
    assert sorted(errors.splitlines()) == ["0: no", "1: no", "2: no"]


def test_one_that_fails_is_named_and_the_others_are_ended():
    command = "[ $C3JAX_PROCESS = 1 ] && exit 3; exec sleep 600"
    process = start_processes("3", "bash", "-c", command)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert errors == "c3jax: process 1 ended with exit status 3; ending the others\n"


def test_one_that_does_not_end_is_killed_after_a_while(monkeypatch):
    monkeypatch.setenv("C3JAX_GRACE_SECONDS", "1")
    command = "trap '' TERM; [ $C3JAX_PROCESS = 1 ] && { sleep 0.5; exit 4; }; while :; do sleep 0.05; done"
    process = start_processes("2", "bash", "-c", command)
    process.communicate(timeout=30)
    assert process.returncode == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_is_passed_on_and_all_that_stopped_are_75(number):
    process = start_processes("2", "bash", "-c", "trap 'echo bye; exit 75' TERM; echo on; while :; do sleep 0.05; done")
    assert process.stdout is not None
    assert sorted(process.stdout.readline() for _ in range(2)) == ["0: on\n", "1: on\n"]
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and sorted(output.splitlines()) == ["0: bye", "1: bye"]


def test_processes_that_end_well_are_0_and_words_that_cannot_be_are_refused():
    process = start_processes("2", "true")
    assert process.communicate(timeout=30) == ("", "") and process.returncode == 0
    for words in (("0", "true"), ("2",), ("two", "true")):
        process = start_processes(*words)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 2 and errors.startswith("c3jax: expected local_processes.sh N COMMAND")
