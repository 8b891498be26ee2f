"""Every code block of README.md and docs/ runs.

How a page is run
    Its blocks run in order, in one process, in an empty folder that holds

    - ``teacher/``: a tiny random BERT classifier of two labels with its tokenizer,
    - ``mlm-teacher/``: a tiny random BERT with its masked-language head, and ``text/raw.txt``: sentences,
    - ``data/train.tsv`` and ``data/dev.tsv``: a header ``sentence<TAB>label`` and rows with labels 0 and 1,
    - ``squad/`` and ``squad2/``: questions in SQuAD's format, those of the latter in part without an answer,
    - ``examples/`` and ``benchmarks/`` of the repository.

``python``
    All blocks of a page share one namespace. A block that begins with ``>>>`` is a doctest: its output is compared.
``bash``, ``sh``, ``shell``, ``console``
    Commands that begin with one of `RUN` are run by bash, one after another; in a ``console`` block these are the
    lines after ``$``. ``make`` must name a target of the Makefile, and ``pip install`` an extra of pyproject.toml;
    these, and those of `SHOWN`, are not run. Any other command fails the test: the page would promise what nobody
    checks. A ``python file.py`` must name a file of the repository, even where the block is skipped.
Other languages (``yaml``, ``text``, ...) are not run.

Comments right before a block change how it is run:

``<!-- skip-test: needs half an hour -->``
    It is not run; the reason is required.
``<!-- replace: bert-base-uncased => teacher -->``
    Each occurrence of the left text, which must occur, is replaced before the run. May stand several times.
"""

from __future__ import annotations

import doctest
import json
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.squad_files import save_squad

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] if path.is_file())

SHELLS = {"bash", "sh", "shell", "console"}
RUN = {"lightning-distilbert", "python", "ls", "cat", "head", "test", "mkdir"}
SHOWN = {"git", "cd", "source"}
OURS = "lightning-distilbert"
SHELL_SIGNS = set("|&;<>$`*?#~")

FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
SKIP = re.compile(r"^\s*<!--\s*skip-test\s*(?::\s*(?P<reason>.*?))?\s*-->\s*$")
REPLACE = re.compile(r"^\s*<!--\s*replace:\s*(?P<old>.+?)\s*=>\s*(?P<new>.+?)\s*-->\s*$")
KINDS = ("good", "bad", "great", "poor", "bright", "dull", "short", "small")
ASSIGNMENT = re.compile(r"^\w+=")


@dataclass
class Block:
    """A fenced block: `line` is the number of the fence in the page, so that its code begins one line below."""

    language: str
    code: str
    line: int
    skip: str = ""


def extract(text: str) -> list[Block]:
    """Return the blocks of a page that can be run, with the replacements made."""
    blocks: list[Block] = []
    skip, replacements = "", list[tuple[str, str]]()
    lines = iter(enumerate(text.splitlines(), start=1))

    def pending() -> bool:
        return bool(skip or replacements)

    for number, line in lines:
        if marker := SKIP.match(line):
            skip = marker["reason"] or ""
            assert skip, f"line {number}: skip-test needs a reason: <!-- skip-test: why -->"
        elif marker := REPLACE.match(line):
            replacements.append((marker["old"], marker["new"]))
        elif opening := FENCE.match(line):
            code = textwrap.dedent("\n".join(_until_closed(lines, opening["fence"], number)))
            if opening["language"] in {"python", *SHELLS}:
                for old, new in replacements:
                    assert old in code, f"line {number}: there is no {old!r} to replace in this block"
                    code = code.replace(old, new)
                blocks.append(Block(opening["language"], code, number, skip))
            else:
                assert not pending(), f"line {number}: a {opening['language']!r} block is not run anyway"
            skip, replacements = "", []
        elif line.strip():
            assert not pending(), f"line {number}: the comment before it is not followed by a block"
    assert not pending(), "the comment at the end of the page is not followed by a block"
    return blocks


def _until_closed(lines: Iterator[tuple[int, str]], fence: str, start: int) -> Iterator[str]:
    for _, line in lines:
        if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            return
        yield line
    raise AssertionError(f"line {start}: this block is never closed")


def commands(block: Block) -> list[str]:
    """Return the commands of a shell block one by one, without comments and a console's output."""
    joined = block.code.replace("\\\n", " ")  # a continued line is one command
    if block.language == "console":
        joined = "\n".join(line[1:] for line in joined.splitlines() if line.startswith("$"))
    parts = [part.strip() for line in joined.splitlines() for part in line.split(" && ")]
    return [part for part in parts if part and not part.startswith("#")]


def make_targets() -> set[str]:
    """Return the targets that the Makefile declares phony: those that a person calls."""
    phony = re.findall(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {target for line in phony for target in line.split()}


def extras() -> set[str]:
    """Return the extras that pyproject.toml declares."""
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])


def check(command: str, skipped: bool = False) -> bool:
    """Check one command for what can be checked without running it, and return whether to run it."""
    words = shlex.split(command, comments=True)
    while words and ASSIGNMENT.match(words[0]):
        words.pop(0)
    if words[:3] == ["python", "-m", "pip"]:
        words = words[2:]
    name = words[0] if words else ""
    if name == "make":
        wanted = {word for word in words[1:] if not ASSIGNMENT.match(word)}
        assert wanted <= make_targets(), f"{command!r}: the Makefile has no target {sorted(wanted - make_targets())}"
        return False
    if name == "pip":
        named = {extra.strip() for group in re.findall(r"\[([^\]]*)\]", command) for extra in group.split(",")}
        assert named <= extras(), f"{command!r}: pyproject.toml has no extra {sorted(named - extras())}"
        return False
    if name == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), f"{command!r}: the repository has no file {words[1]}"
    if name not in SHOWN and not skipped:
        assert name in RUN, (
            f"{command!r}: nothing here checks {name!r}. Add it to RUN or SHOWN in {Path(__file__).name}, or say "
            "<!-- skip-test: why --> before the block."
        )
    return name in RUN and not skipped


def plan(page: Path) -> list[dict[str, Any]]:
    """Return what to run of a page: the blocks with their shell commands checked and filtered."""
    steps = []
    for block in extract(page.read_text(encoding="utf-8")):
        if block.language == "python":
            compile(_as_source(block.code), f"{page}:{block.line}", "exec")  # a skipped block is still valid Python
            code = block.code
        else:
            code = "\n".join([command for command in commands(block) if check(command, skipped=bool(block.skip))])
        if code and not block.skip:
            steps.append({"language": block.language, "code": code, "line": block.line})
    return steps


def _as_source(code: str) -> str:
    if not code.lstrip().startswith(">>>"):
        return code
    return "".join(example.source for example in doctest.DocTestParser().get_examples(code))


def run_steps(steps: list[dict[str, Any]], page: str) -> None:
    """Run a page's steps in this process and the current folder; the first failure raises."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    # half of the time of a short command is its imports: a server that has them forks for each command
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "transformers", "pytorch_lightning", "torchmetrics", "jsonargparse"])
    for step in steps:
        code, line = step["code"], step["line"]
        print(f"--- {page}:{line}", flush=True)
        if step["language"] != "python":
            for command in code.splitlines():
                if (words := shlex.split(command, comments=True))[:1] == [OURS] and not SHELL_SIGNS & set(command):
                    process = server.Process(target=run_ours, args=(words[1:],))
                    process.start()
                    process.join()
                    assert not process.exitcode, f"{command!r} ended with exit status {process.exitcode}"
                else:
                    subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, stdin=subprocess.DEVNULL)
        elif code.lstrip().startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(code, namespace, page, page, line)
            options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
            if doctest.DocTestRunner(optionflags=options).run(test, clear_globs=False).failed:
                raise SystemExit(1)
            namespace.update(test.globs)
        else:
            # the empty lines make a traceback name the line of the page
            exec(compile("\n" * line + code, page, "exec"), namespace)


def run_ours(arguments: list[str]) -> None:
    """Run our command line as its script does."""
    from lightning_distilbert.cli import main

    sys.argv = [str(Path(sys.executable).with_name(OURS)), *arguments]
    main()


def run_page(page: Path, folder: Path, teacher: Path, mlm: Path) -> subprocess.CompletedProcess[str]:
    """Run a page in `folder`, which is furnished first."""
    shutil.copytree(teacher, folder / "teacher")
    shutil.copytree(mlm, folder / "mlm-teacher")
    (folder / "text").mkdir()
    sentences = [f"the {kind} movie is long and the story of the man in the city is very {kind}" for kind in KINDS]
    (folder / "text" / "raw.txt").write_text("\n".join(sentences * 8), encoding="utf-8")
    (folder / "data").mkdir()
    for name, rows in (("train", 32), ("dev", 8)):
        lines = [f"the {'great' if row % 2 else 'dull'} movie is number {row}\t{row % 2}" for row in range(rows)]
        (folder / "data" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]), encoding="utf-8")
    save_squad(folder / "squad")
    save_squad(folder / "squad2", no_answer=True)
    for name in ("examples", "benchmarks"):
        if (ROOT / name).is_dir():
            (folder / name).symlink_to(ROOT / name, target_is_directory=True)
    steps = folder / ".steps.json"
    steps.write_text(json.dumps(plan(page)), encoding="utf-8")
    # `python` and `lightning-distilbert` are those of the environment that runs the tests
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, __file__, str(steps), str(page)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def test_there_is_a_readme():
    assert (ROOT / "README.md") in PAGES


@pytest.mark.parametrize("page", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in PAGES])
def test_page_runs(page: Path, tmp_path: Path, tiny_teacher_dir: Path, tiny_mlm_dir: Path):
    result = run_page(page, tmp_path, tiny_teacher_dir, tiny_mlm_dir)
    assert result.returncode == 0, f"{page}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}"


SAMPLE = """\
Text.

```python
from pathlib import Path
count = len(Path("data/train.tsv").read_text().splitlines())
```

- an item

  ```console
  $ python -c "open('made', 'w').write('by the shell')"
  output that is not run
  $ make test
  ```

<!-- replace: some/hub-name => teacher -->
```python
assert Path("some/hub-name/config.json").is_file() and Path("made").read_text() == "by the shell"
```

<!-- skip-test: it would stop the page -->
```python
raise SystemExit(3)
```

```yaml
trainer: {}
```

```python
>>> count
33
```
"""


def write(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return page


@pytest.fixture
def runs(tmp_path: Path, tiny_teacher_dir: Path, tiny_mlm_dir: Path):
    """Return a function that runs a text as a page."""

    def run(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "cwd").mkdir()
        return run_page(write(tmp_path, text), tmp_path / "cwd", tiny_teacher_dir, tiny_mlm_dir)

    return run


def test_blocks_are_found_with_their_lines_and_markers():
    blocks = extract(SAMPLE)
    assert [(block.language, block.line, block.skip) for block in blocks] == [
        ("python", 3, ""),
        ("console", 10, ""),
        ("python", 17, ""),
        ("python", 22, "it would stop the page"),
        ("python", 30, ""),
    ]
    assert commands(blocks[1]) == ["python -c \"open('made', 'w').write('by the shell')\"", "make test"]


def test_sample_page_runs_in_order_in_one_namespace(runs):
    result = runs(SAMPLE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("--- ") == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nx = 1\n\nassert x == 2\n```", 'page.md", line 4'),
        ("```python\n>>> 1 + 1\n3\n```", "Expected:\n    3"),
        ("```bash\npython -c 'raise SystemExit(7)'\n```", "exit status 7"),
    ],
)
def test_failing_block_fails_the_page_at_its_line(runs, text: str, message: str):
    result = runs(text)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\ncd x && make coffee\n```", "no target \\['coffee'\\]"),
        ("<!-- skip-test: slow -->\n```bash\nmake coffee\n```", "no target"),
        ("```bash\npip install 'lightning-distilbert[data,tea]'\n```", "no extra \\['tea'\\]"),
        ("```bash\npython examples/missing.py\n```", "no file examples/missing.py"),
        ("```bash\ncurl https://example.org\n```", "nothing here checks 'curl'"),
        ("<!-- skip-test -->\n```python\n```", "needs a reason"),
        ("<!-- skip-test: slow -->\ntext\n```python\n```", "not followed by a block"),
        ("<!-- replace: a => b -->\n```python\nx\n```", "no 'a' to replace"),
        ("```python\nx = 1", "never closed"),
    ],
)
def test_page_that_promises_what_is_not_there_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(AssertionError, match=message):
        plan(write(tmp_path, text))


def test_real_targets_and_extras_are_accepted(tmp_path: Path):
    shown = "git clone x && cd x && make quickstart\nmake PYTHON=python3.12 test  # all\npip install '.[data]'"
    assert plan(write(tmp_path, f"```bash\n{shown}\n```")) == []


if __name__ == "__main__":
    run_steps(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2])
