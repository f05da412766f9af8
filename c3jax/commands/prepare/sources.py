"""Where public sets come from: one literal table of pinned files, with what is known of their content.

A revision is a commit or a release of the place named, so a file cannot change behind it. A SHA-256 was computed from a
copy of the file at that revision (gsm8k, math500, cmath, svamp, asdiv, minerva_math, aime24, amc23, mbpp, mbppplus),
read in the publisher's index (math) or found the same in several public records of others (aime25, humaneval,
humanevalplus). Where it is not known, it is None, and the card says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple


class SourceFile(NamedTuple):
    """One published file: JSONL, plain or gzipped."""

    name: str  # as published
    url: str
    sha256: str | None  # of the published bytes
    split: str | Callable[[Mapping[str, Any]], str]  # of all its rows, or of a row by its fields
    unpacked_sha256: str | None = None  # of what a gzipped file holds


class Source(NamedTuple):
    """One set. `rows` counts what is published, before anything is left out."""

    task: Literal["math", "code"]  # the kind of task that reads and grades it
    home: str
    revision: str
    licence: str
    files: tuple[SourceFile, ...]
    rows: Mapping[str, int]  # by split
    left_out: Mapping[str, str] = {}  # reasons by the row's id


def _split_math(fields: Mapping[str, Any]) -> str:
    """MATH's own split, which PRM800K's files keep in the id: "test/algebra/101.json"."""
    return str(fields.get("unique_id", "")).partition("/")[0]


def _split_mbpp(fields: Mapping[str, Any]) -> str:
    """The ranges of MBPP's authors: 10 for the prompt, 500 to test, 90 to validate, 374 to train."""
    number = fields.get("task_id")
    if not isinstance(number, int):
        return f"task_id {number!r}"
    return "prompt" if number <= 10 else "test" if number <= 510 else "validation" if number <= 600 else "train"


_PRM800K = "https://media.githubusercontent.com/media/openai/prm800k/7ecc794703b2877f63226f2477a49b34f9b25163"
_GSM8K = "https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c"
_HUB = "https://huggingface.co/datasets"
_QWEN_COMMIT = "a45202bd16f1ec06f433442dc1152d0074773465"
_GITHUB = "https://raw.githubusercontent.com"
_EVALPLUS = "https://github.com/evalplus"


def _from_qwen(name: str, sha256: str, rows: int, licence: str) -> Source:
    """A set of problems as the evaluation of Qwen2.5-Math has it: evaluation/data/NAME/test.jsonl."""
    url = f"{_GITHUB}/QwenLM/Qwen2.5-Math/{_QWEN_COMMIT}/evaluation/data/{name}/test.jsonl"
    file = SourceFile("test.jsonl", url, sha256, "test")
    home = "https://github.com/QwenLM/Qwen2.5-Math"
    return Source("math", home, _QWEN_COMMIT, licence, (file,), {"test": rows})


_MAA = "none stated; the problems are the Mathematical Association of America's"

SOURCES: dict[str, Source] = {
    # The authors' own archive is no longer served. PRM800K moved 4,500 test problems to its train.jsonl; the ids tell.
    "math": Source(
        task="math",
        home="https://github.com/openai/prm800k",
        revision="7ecc794703b2877f63226f2477a49b34f9b25163",
        licence="MIT",
        files=(
            SourceFile(
                "train.jsonl",
                f"{_PRM800K}/prm800k/math_splits/train.jsonl",
                "90d96daeac3fe343ebb1e22ce93dd99690f75983e957f88de42f87cffe1e8076",
                _split_math,
            ),
            SourceFile(
                "test.jsonl",
                f"{_PRM800K}/prm800k/math_splits/test.jsonl",
                "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
                _split_math,
            ),
        ),
        # MATH has 7,500 and 5,000: the problem test/precalculus/24307 is in both, and here twice under that id.
        rows={"train": 7499, "test": 5001},
    ),
    "math500": Source(
        task="math",
        home=f"{_HUB}/HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        licence="MIT",
        files=(
            SourceFile(
                "test.jsonl",
                f"{_HUB}/HuggingFaceH4/MATH-500/resolve/6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be/test.jsonl",
                "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
                "test",
            ),
        ),
        rows={"test": 500},
    ),
    "gsm8k": Source(
        task="math",
        home="https://github.com/openai/grade-school-math",
        revision="3101c7d5072418e28b9008a6636bde82a006892c",
        licence="MIT",
        files=(
            SourceFile(
                "train.jsonl",
                f"{_GSM8K}/grade_school_math/data/train.jsonl",
                "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
                "train",
            ),
            SourceFile(
                "test.jsonl",
                f"{_GSM8K}/grade_school_math/data/test.jsonl",
                "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
                "test",
            ),
        ),
        rows={"train": 7473, "test": 1319},
    ),
    # The 600 problems of the first release, which some train on and others call CMATH, and the 1,098 of the second.
    "cmath": Source(
        task="math",
        home="https://github.com/XiaoMi/cmath and https://github.com/deepseek-ai/DeepSeek-Math",
        revision="9fa13ef0b2d03f5a18c1ace7001248d3981d65ea and b8b0f8ce093d80bf8e9a641e44142f06d092c305",
        licence="MIT or CC BY 4.0 (first release), CC BY 4.0 (second, as its page said)",
        files=(
            SourceFile(
                "cmath_dev.jsonl",
                f"{_GITHUB}/XiaoMi/cmath/9fa13ef0b2d03f5a18c1ace7001248d3981d65ea/datasets/cmath_dev.jsonl",
                "b9c6333a31fd740e7f5b5a71022bd59e00748798a3377364346d280549b25e3b",
                "train",
            ),
            SourceFile(
                "test.jsonl",
                f"{_GITHUB}/deepseek-ai/DeepSeek-Math/b8b0f8ce093d80bf8e9a641e44142f06d092c305"
                "/evaluation/datasets/cmath/test.jsonl",
                "cabe17c127c3227912b3384f4755e180f3aa0d9e5865677e7e5e223439bf15eb",
                "test",
            ),
        ),
        rows={"train": 600, "test": 1098},
    ),
    "svamp": _from_qwen("svamp", "d0826ff1264f3860e46fc4e71db9e31d2d188960db87090e22677f9493e67a0d", 1000, "MIT"),
    "asdiv": _from_qwen(
        "asdiv", "5759580385e706f961a30d4c07d6925b35c3f7c86d6c50bc413957169693dad2", 2215, "CC BY-NC 4.0"
    ),
    "minerva_math": _from_qwen(
        "minerva_math",
        "0e656b430d3a0a1dab6aa853f453ba3805e28e2cabe4fc72486a897cc09d8ba2",
        272,
        "none stated; the problems are MIT OpenCourseWare's",
    ),
    "aime24": _from_qwen("aime24", "af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac", 30, _MAA),
    "amc23": _from_qwen("amc23", "43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4", 40, _MAA),
    "aime25": Source(
        task="math",
        home=f"{_HUB}/math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        licence="Apache-2.0; the problems are the Mathematical Association of America's",
        files=(
            SourceFile(
                "test.jsonl",
                f"{_HUB}/math-ai/aime25/resolve/563bb8404243c5f09de6ec262f2db674fe5bce9b/test.jsonl",
                "b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331",
                "test",
            ),
        ),
        rows={"test": 30},
    ),
    "mbpp": Source(
        task="code",
        home="https://github.com/google-research/google-research/tree/master/mbpp",
        revision="4700efb9afa54286b0e04473ba80a13e8461e25f",
        licence="CC BY 4.0",
        files=(
            SourceFile(
                "mbpp.jsonl",
                f"{_GITHUB}/google-research/google-research/4700efb9afa54286b0e04473ba80a13e8461e25f/mbpp/mbpp.jsonl",
                "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
                _split_mbpp,
            ),
        ),
        rows={"prompt": 10, "test": 500, "validation": 90, "train": 374},
        left_out=dict.fromkeys(("367", "927"), "needs a class that the set does not give"),
    ),
    "mbppplus": Source(
        task="code",
        home=f"{_EVALPLUS}/mbppplus_release",
        revision="v0.2.0",
        licence="Apache-2.0",
        files=(
            SourceFile(
                "MbppPlus-OriginFmt.jsonl.gz",
                f"{_EVALPLUS}/mbppplus_release/releases/download/v0.2.0/MbppPlus-OriginFmt.jsonl.gz",
                None,
                "test",
                "132d01c96df6b4b0fe0cbb8414092fe62c51b873b160d1ec8fc2ded28484865a",
            ),
        ),
        rows={"test": 378},
    ),
    "humaneval": Source(
        task="code",
        home="https://github.com/openai/human-eval",
        revision="6d43fb980f9fee3c892a914eda09951f772ad10d",
        licence="MIT",
        files=(
            SourceFile(
                "HumanEval.jsonl.gz",
                f"{_GITHUB}/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d/data/HumanEval.jsonl.gz",
                "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
                "test",
            ),
        ),
        rows={"test": 164},
    ),
    "humanevalplus": Source(
        task="code",
        home=f"{_EVALPLUS}/humanevalplus_release",
        revision="200defce9e3429d28ca215b6dd061c0f7f31c18b",
        licence="Apache-2.0",
        files=(
            SourceFile(
                "HumanEvalPlus-OriginFmt.jsonl.gz",
                f"{_GITHUB}/evalplus/humanevalplus_release/200defce9e3429d28ca215b6dd061c0f7f31c18b"
                "/HumanEvalPlus-OriginFmt.jsonl.gz",
                "daa7661c8189924068069b0872a440b491edb60f8bdf431d5957adc88d18bae5",
                "test",
            ),
        ),
        rows={"test": 164},
        left_out={"HumanEval/32": "its test unpacks a number: no program passes"},
    ),
}
