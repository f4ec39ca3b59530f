"""The documentation is tested like code: links lead somewhere, flags exist, commands parse, and marked blocks are run.

A comment before a block says what a test does with it: `<!-- run -->` runs it whole; `<!-- trained -->` runs it in the folder
where the README's laptop has trained; `<!-- dry -->` forecasts the memory of its training command; `<!-- sbatch -->` runs it
with an sbatch that only keeps what it is given.
"""

import ast
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from megatron import config
from megatron.flags import find
from megatron.rundir.fields import OF_FILE
from megatron.scaling.law.fit import fit_law, save_fit
from megatron.scaling.plan.entries import Request, make_plan
from megatron.training import dry_run

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted(
        [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "examples/README.md", ROOT / "ds_configs/README.md"]
    )
}
BLOCK = re.compile(r"(?:^<!-- (\w+) -->\n)?^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ENTRIES = {"pretrain_gpt.py": "ar", "pretrain_diff_gpt.py": "mdm"}
OTHERS = "nproc-per-node ntasks-per-node nodes partition time index-url slow signal".split()  # flags of pip, torchrun and Slurm
PLACES = ("megatron", "tools", "utils", "examples", *ENTRIES)


def blocks(kind, language="bash"):
    """(page, block) of a marked kind, the README's first."""
    found = [(page, text) for page, whole in PAGES.items() for *said, text in BLOCK.findall(whole) if said == [kind, language]]
    return sorted(found, key=lambda one: one[0] != "README.md")


def commands(text):
    """The words of each command of a block; a here-document is data."""
    text = re.sub(r"<<'(\w+)'(.*?)^\1$", r"\2", text, flags=re.MULTILINE | re.DOTALL) if "<<" in text else text
    lines = text.replace("\\\n", " ").splitlines()
    started = [line for line in lines if re.match(r"(\w+=\S+ )*(python|bash|torchrun|srun|sbatch) ", line)]
    return [shlex.split(line, comments=True) for line in started]


ALL = [
    (page, words)
    for page, text in PAGES.items()
    for _, language, block in BLOCK.findall(text)
    if language == "bash"
    for words in commands(block)
]


def slug(heading):
    """The anchor of a heading, as GitHub and MkDocs make it where both agree."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower()))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        there = (ROOT / page).parent / path if path else ROOT / page
        if not there.exists() or (page.startswith("docs/") and (ROOT / "docs") not in there.resolve().parents):
            lost.append(target)  # a page of docs/ is also read without the rest of the tree
        elif anchor and anchor not in {slug(h) for h in re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)}:
            lost.append(target)
    assert lost == []


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert menu == {path.name for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page, module", [("flags", "config"), ("run-folder", "rundir.fields")])
def test_made_pages_are_current(page, module):
    made = import_module(f"megatron.{module}").markdown()
    assert PAGES[f"docs/{page}.md"].strip() == made.strip(), f"python -m megatron.{module} > docs/{page}.md"


@functools.cache
def words_of(path):
    return {n.value for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@functools.cache
def spelled_in(*files):
    """Flags that a tool spells, itself or in the modules that it imports."""
    found = set()
    for path in files:
        tree = ast.parse(path.read_bytes())
        modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module.startswith("megatron")]
        names = [f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module for a in n.names]
        near = [ROOT / (name.replace(".", "/") + ending) for name in [*modules, *names] for ending in (".py", "/__init__.py")]
        found |= {word for one in (path, *near) if one.is_file() for word in words_of(one) if word.startswith("--")}
    return found


VERB = r"megatron(\.\w+)*\.(verbs|evaluation)\.\w+"  # a module that a tool loads by its name


def unknown_flags(words):
    """Flags of a command that its program does not have."""
    at = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    program, given = (words[at], words[at + 1 :]) if at is not None else ("", [])
    given, behind = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    table = config.declared()
    extra = {"--config", "--print-config", "--help"}
    if program in ENTRIES:
        given, behind = [], given
    verb = next((w.replace("-", "_") for w in given[:1] if program.endswith("scaling_laws.py") and w != "VERB"), None)
    home = ROOT / "megatron/scaling/verbs"
    files = [home / f"{verb}.py", home / "__init__.py"] if verb else [ROOT / program] if given else []
    files += [ROOT / f"{name.replace('.', '/')}.py" for path in files for name in words_of(path) if re.fullmatch(VERB, name)]
    known = spelled_in(*files)
    wrong = [w for w in given if w.startswith("--") and w.partition("=")[0] not in known | extra]
    return wrong + [w for w in behind if w.startswith("--") and w not in extra and find(w.partition("=")[0], table)[0] is None]


def test_commands_name_what_exists():
    assert len(ALL) > 40
    missing = [(page, w) for page, words in ALL for w in words if re.search(r"^[\w/]+\.(py|sh)$", w) and not (ROOT / w).exists()]
    assert missing == []
    assert [(page, flag) for page, words in ALL for flag in unknown_flags(words)] == []


def test_flags_in_the_text_exist():
    table, known = config.declared(), set()
    for folder in ("tools", "megatron"):
        for path in (ROOT / folder).rglob("*.py"):
            known |= {w for w in words_of(path) if re.fullmatch(r"--[\w-]+", w)}
    known |= {f"--{word}" for word in OTHERS} | {"--config", "--help", "--print-config", "--FLAG"}
    assert [
        (page, flag)
        for page, text in PAGES.items()
        if page != "docs/flags.md"  # made from the flags themselves
        for code in re.findall(r"`([^`\n]+)`", text)
        for flag in re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", code)
        if flag not in known and find(flag, table)[0] is None
    ] == []


def test_whole_training_commands_parse():
    """Every command without a placeholder is complete: nothing that must be given is missing, nothing contradicts."""
    whole = [
        (words[words.index(entry) + 1 :], objective)
        for _, words in ALL
        for entry, objective in ENTRIES.items()
        if entry in words and not {"FLAGS", "--config"} & set(words)
    ]
    assert len(whole) >= 4
    for argv, objective in whole:
        config.parse(argv, objective, environ={})


@pytest.fixture
def checkout(tmp_path, monkeypatch, warm):
    """A folder that looks like a checkout; what commands write stays there. `run(script)` gives its output."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(warm.python)
    for name in PLACES:
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}")

    def run(script):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
        return done.stdout

    run.folder = tmp_path
    return run


def test_the_readme_is_short_and_its_laptop_command_trains(checkout):
    assert len(PAGES["README.md"].splitlines()) <= 110
    page, text = blocks("run")[0]
    assert page == "README.md"
    said = checkout(text)
    assert "finished: runs/mdm/result.json" in said and "bound nats per token" in said
    run, corpus = checkout.folder / "runs/mdm", checkout.folder / "data/train_text_document.meta.json"
    for file in ("config.json", "result.json", "run.json", "exit.json"):
        assert set(json.loads((run / file).read_text())) <= set(OF_FILE[file]), file
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {name for record in records for name in record} <= set(OF_FILE["metrics.jsonl"])
    (manifest,) = run.glob("step-*/manifest.json")
    assert fields_of("## Checkpoints") == set(json.loads(manifest.read_text()))
    assert fields_of("## A corpus") == set(json.loads(corpus.read_text()))
    for _, block in blocks("trained", "python"):
        checkout(f"python - <<'END'\n{block}END")


@pytest.mark.slow
def test_the_readme_asks_what_its_laptop_trained(checkout):
    pytest.importorskip("transformers", reason="pip install -e '.[hf]'")
    checkout(blocks("run")[0][1])
    ((page, text),) = blocks("trained")
    assert page == "README.md"
    said = checkout(text)
    assert "upper bound, mixture over all orders" in said and "runs/mdm: tight" in said and "quiz: accuracy" in said
    assert (checkout.folder / "exported/config.json").exists()


def test_python_blocks_run(checkout):
    """All in one process, each a program of its own."""
    programs = [f"exec(compile({block!r}, {page!r}, 'exec'), {{'__name__': 'block'}})" for page, block in blocks("run", "python")]
    assert len(programs) >= 3
    checkout("python - <<'END'\n" + "\n".join(programs) + "\nEND")


def test_the_tutorial_runs(checkout):
    """Its code cells, one after the other; it is kept without outputs."""
    notebook = json.loads((ROOT / "examples/tutorial.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 8 and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    checkout("MPLBACKEND=agg python - <<'END'\n" + "\n".join("".join(cell["source"]) for cell in cells) + "\nEND")
    assert (checkout.folder / "tutorial/isoflop.png").exists()


def fields_of(heading):
    """First column of the tables below a heading of docs/formats.md."""
    page = PAGES["docs/formats.md"]
    section = page[page.index(f"{heading}\n") + len(heading) :]
    section = re.split(rf"^#{{1,{heading.index(' ')}}} ", section, flags=re.MULTILINE)[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def test_the_format_of_a_fit_and_of_a_plan_is_documented(tmp_path):
    rows = {"params": [1e7, 1e8, 1e9] * 3, "tokens": [1e9] * 3 + [1e10] * 3 + [1e11] * 3}
    rows["loss"] = [1.8 + 480 / n**0.35 + 2100 / d**0.37 for n, d in zip(rows["params"], rows["tokens"])]
    save_fit(fit_law(rows, num_resamples=0), tmp_path)
    assert fields_of("## The fit") == set(json.loads((tmp_path / "fit.json").read_text()))
    plan = make_plan(Request(flops=(1e19,), sizes=("117M", "217M"), schedule="wsd"))
    assert fields_of("## The plan") == set(vars(plan)) | {name for run in plan.runs for name in run}


@pytest.mark.slow
@pytest.mark.parametrize("page, text", blocks("run")[1:])
def test_marked_blocks_run(page, text, checkout):
    checkout(text)


def test_the_one_gpu_command_fits_24_gigabytes(capsys):
    page, text = blocks("dry")[0]
    assert page == "README.md"
    (argv,) = [words[2:] for words in commands(text) if words[1] == "pretrain_diff_gpt.py"]
    code = dry_run.show(config.parse([*argv, "--dry-run", "--device-memory", "24G"], "mdm", environ={}))
    assert code == 0, capsys.readouterr().err


def test_the_slurm_commands_submit_every_run(checkout):
    page, text = blocks("sbatch")[0]
    assert page == "README.md"
    stub = checkout.folder / "bin/sbatch"
    stub.write_text('#!/bin/bash\ncp "${@: -1}" "$(dirname "$0")/submitted.sh"\necho 7\n')
    stub.chmod(0o755)
    checkout(text)
    script = (stub.parent / "submitted.sh").read_text()
    for line in ("--array=0-11%4", "--gpus-per-node=8", "--partition=gpu", "--time=24:00:00", "--requeue"):
        assert f"#SBATCH {line}\n" in script


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    built = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(built, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists()
