"""The rules of the house, read off the source with `ast`: floors, one importer a library, no hidden state, nothing unpickled."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".ci", ".github", "docs", "ds_configs", "examples", "megatron", "tests", "tools", "utils")
MADE = ("__pycache__", "utils/data", ".so", ".pyc", "ds_configs/zero")  # made on the machine, not source
FLOORS = [
    {
        "__init__",
        "config",
        "catalogue",
        "batch",
        "budget",
        "errors",
        "files",
        "flags",
        "forecast",
        "layout",
        "locks",
        "machines",
        "nested_keys",
        "progress",
        "rundir",
        "score_names",
        "standard_errors",
        "step_time",
        "stopping",
    },
    {"core", "data", "scaling"},
    {"objectives"},
    {"engine"},
    {"sampling"},
    {"tasks"},
    {"training"},
    {"exchange"},
    {"proof", "likelihood", "evaluation"},
    {"program"},
]
# The rooms of megatron/scaling: finished runs make a table, tables a law, a law a plan, a plan runs; then questions are answered.
CHAIN = ("table", "law", "plan", "run", "answers", "show", "verbs")
ONE_IMPORTER = {"deepspeed", "lm_eval", "rouge_score", "sentencepiece", "tensorboard", "transformers", "wandb", "yaml"}
ONE_IMPORTER |= {"zstandard"}
OTHERS_FILES = (
    "megatron/data/prepare/pair_tensors.py",
    "megatron/exchange/dictionary.py",
    "megatron/exchange/megatron_deepspeed.py",
)
FOR_OTHERS = ("megatron/data/prepare/pair_tensors.py", "megatron/exchange/dictionary.py")
SHIPPED = "megatron/exchange/modeling_masked_diffusion.py"  # goes out with exported weights, and runs where transformers is
# Tests of the whole, without one file that they mirror.
CARRYING = {"bound", "docs", "documents", "faults", "fuzz", "golden", "house", "layout", "open", "resume"}
MUTATORS = {"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault", "sort", "update"}
CONTAINERS = {"Counter", "OrderedDict", "defaultdict", "deque", "dict", "list", "set"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
SOURCES = [
    path
    for path in (*ROOT.iterdir(), *(p for f in FOLDERS for p in (ROOT / f).rglob("*")))
    if path.is_file() and not any(m in path.relative_to(ROOT).as_posix() for m in MADE) and path.name != ".git"
]
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in SOURCES if path.suffix == ".py"}
PRODUCT = {name: tree for name, tree in TREES.items() if not name.startswith("tests/")}


def room(name: str) -> str:
    """`megatron/core/norm.py` -> core, `megatron/config.py` -> config, a program or tool -> program."""
    parts = name.removesuffix(".py").split("/")
    return parts[1] if parts[0] == "megatron" and len(parts) > 1 else "program"


def floor(of: str) -> int:
    return next((n for n, rooms in enumerate(FLOORS) if of in rooms), -1)


def imports(tree: ast.AST, types_too: bool = True) -> list[tuple[str, int]]:
    """(dotted name, line) of every import, also those in functions; `from a import b` is a.b."""
    skipped = (
        {
            id(node)
            for test in ast.walk(tree)
            if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
            for node in ast.walk(test)
        }
        if not types_too
        else set()
    )
    found = []
    for node in ast.walk(tree):
        if id(node) not in skipped and isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        if id(node) not in skipped and isinstance(node, ast.ImportFrom):
            found += [("." * node.level + f"{node.module or ''}.{alias.name}", node.lineno) for alias in node.names]
    return found


def inside_functions(tree: ast.AST) -> set[int]:
    """ids of all nodes that run only when a function is called."""
    return {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, FUNCTION)
        for node in ast.walk(function)
        if node is not function
    }


def wrong_floors(name: str, tree: ast.AST) -> list[str]:
    found = []
    for dotted, line in imports(tree):
        if dotted.startswith("."):
            found.append(f"{name}:{line}: a relative import hides its floor")
        if dotted.split(".")[0] != "megatron":
            continue
        here, there = (
            room(name),
            room(
                dotted.replace(".", "/")
                if dotted.count(".") > 1 or dotted.split(".")[-1] in set().union(*FLOORS)
                else "megatron/__init__"
            ),
        )
        if there != here and not (floor(there) < floor(here) or floor(there) == floor(here) == 0):
            found.append(f"{name}:{line}: {here} imports {there}, which is not below it")
    return found


def wrong_order(name: str, tree: ast.AST) -> list[str]:
    """A room of scaling that imports one which the chain reaches later: what a room needs has been made before it."""
    if not name.startswith("megatron/scaling/") or name.count("/") < 3:
        return []
    here, found = name.split("/")[2], []
    for dotted, line in imports(tree):
        there = dotted.split(".")[2] if dotted.startswith("megatron.scaling.") else here
        if here not in CHAIN or there not in CHAIN:
            found.append(f"{name}:{line}: {here} or {there} has no place in the chain {', '.join(CHAIN)}")
        elif CHAIN.index(there) > CHAIN.index(here):
            found.append(f"{name}:{line}: {here} imports {there}, which the chain reaches after it")
    return found


def wrong_companions(name: str, tree: ast.AST) -> list[str]:
    """What a room must not know at all."""
    unknown = {
        "core": ("megatron.config", "argparse"),
        "objectives": ("torch.distributed", "argparse"),
        "scaling": ("torch",),
        "config": ("torch", "numpy"),
        "budget": ("torch", "numpy"),
        "errors": ("torch", "numpy"),
        "files": ("torch", "numpy"),
        "locks": ("torch", "numpy"),
        "rundir": ("torch", "numpy"),
        "score_names": ("torch", "numpy"),
        "__init__": ("torch", "numpy"),
    }
    return [
        f"{name}:{line}: {room(name)} knows nothing of {one}"
        for dotted, line in imports(tree, types_too=False)
        for one in unknown.get(room(name), ())
        if (dotted + ".").startswith(one + ".")
    ]


def wrong_state(name: str, tree: ast.Module) -> list[str]:
    """Containers at module level that are not constants, and functions that change what belongs to the module."""
    found, names = [], set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        here = [t.id for t in targets if isinstance(t, ast.Name)]
        names.update(here)
        value = getattr(node, "value", None)
        held = isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)) or (
            isinstance(value, ast.Call) and getattr(value.func, "id", getattr(value.func, "attr", "")) in CONTAINERS
        )
        found += [
            f"{name}:{node.lineno}: {n} is mutable and not a constant"
            for n in here
            if held and not n.isupper() and n != "__all__"
        ]
    for function in (n for n in ast.walk(tree) if isinstance(n, FUNCTION)):
        own = {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)}
        own |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in ast.walk(function):
            changed = None
            if isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
                changed = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
                changed = node.func.value
            if isinstance(node, ast.Global) or (isinstance(changed, ast.Name) and changed.id in names - own):
                found.append(f"{name}:{node.lineno}: a function changes module state")
    return found


def wrong_calls(name: str, tree: ast.AST) -> list[str]:
    banned = {"torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "torch.save"}
    modules = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    found = [f"{name}:{line}: imports {dotted}" for dotted, line in imports(tree) if dotted.split(".")[0] in modules]
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        called = ast.unparse(node.func)
        truths = {k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True}
        loose_norm = (
            called.endswith(".norm") and called not in ("self.norm", "np.linalg.norm") and name != "megatron/core/norm.py"
        )
        # a peer in the benchmark clips as its users do
        loose_clip = called.endswith("clip_grad_norm_") and name != "tools/benchmark_plain.py"
        if called == "torch.load" and name in OTHERS_FILES and "weights_only" in truths:
            continue  # other trainers' files: tensors and plain containers, and nothing is run
        if called == "torch.save" and name in FOR_OTHERS:
            continue
        if called in banned or truths & {"allow_pickle", "shell"} or loose_clip or loose_norm:
            found.append(f"{name}:{node.lineno}: {called}() is banned")
    return found


def wrong_length(name: str, tree: ast.AST) -> list[str]:
    return [
        f"{name}:{n.lineno}: {n.name} has {n.end_lineno - n.lineno + 1} lines"
        for n in ast.walk(tree)
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and n.end_lineno - n.lineno >= 60
    ]


DRAWS = {"rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "normal", "bernoulli", "multinomial"}
SEEDED = {"Generator", "Philox", "RandomState", "default_rng"}  # of numpy; a seed is what they are given


def wrong_draws(name: str, tree: ast.AST) -> list[str]:
    """Numbers from a global random stream: no restart, no other layout and no other batch would draw the same."""
    found, has_random = [], "random" in {dotted for dotted, _ in imports(tree)}
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Call) and name.startswith("megatron/")):
        called, given = ast.unparse(node.func), {k.arg for k in node.keywords}
        module, _, function = called.rpartition(".")
        unseeded = module == "np.random" and (function not in SEEDED or not (node.args or node.keywords))
        torchs = module == "torch" and function in DRAWS and "generator" not in given
        dropout = called in ("nn.Dropout", "F.dropout", "nn.functional.dropout", "torch.dropout")
        if unseeded or torchs or dropout or (has_random and module == "random" and function != "Random"):
            found.append(f"{name}:{node.lineno}: {called}() draws from a global stream: use Noise.uniform or a generator")
    return found


def wrong_protocols(name: str, tree: ast.AST) -> list[str]:
    """Python 3.10 replaces the __init__ of a Protocol by one that does nothing."""
    kinds = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and "Protocol" in map(ast.unparse, n.bases)]
    made = [(kind.name, n) for kind in kinds for n in kind.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    return [
        f"{name}:{n.lineno}: the Protocol {kind} has an __init__, which Python 3.10 drops: derive it from ABC" for kind, n in made
    ]


RULES = [wrong_protocols, wrong_floors, wrong_order, wrong_companions, wrong_state, wrong_calls, wrong_draws, wrong_length]


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    sources = TREES if rule is wrong_length else PRODUCT
    assert len(PRODUCT) > 10
    assert [line for name, tree in sources.items() for line in rule(name, tree)] == []


@pytest.mark.parametrize(
    "rule, name, bad, good",
    [
        (
            wrong_floors,
            "megatron/core/a.py",
            "from megatron.data import b",
            "from megatron.core import b\nfrom megatron import batch",
        ),
        (
            wrong_floors,
            "megatron/batch.py",
            "def f():\n import megatron.core.b",
            "from megatron.budget import b\nfrom megatron import __version__",
        ),
        (wrong_floors, "megatron/engine/a.py", "from megatron.training.b import c", "from megatron.scaling import b"),
        (wrong_floors, "megatron/training/a.py", "from . import b", "from megatron.engine.b import c"),
        (
            wrong_order,
            "megatron/scaling/law/a.py",
            "def f():\n from megatron.scaling.answers.b import c",
            "from megatron.scaling.table.b import c\nfrom megatron.scaling.law.b import d",
        ),
        (wrong_order, "megatron/scaling/table/a.py", "from megatron.scaling.other.b import c", "import json"),
        (
            wrong_companions,
            "megatron/core/a.py",
            "from megatron.config import Model",
            "if TYPE_CHECKING:\n from megatron import config",
        ),
        (wrong_companions, "megatron/objectives/a.py", "import torch.distributed as d", "import torch"),
        (wrong_companions, "megatron/budget.py", "def f():\n import numpy as np", "import json"),
        (wrong_state, "a.py", "seen = {}", "SEEN = {'a': 1}"),
        (wrong_state, "a.py", "SEEN: dict = {}\ndef f(x): SEEN[x] = 1", "def f(SEEN): SEEN[0] = 1"),
        (wrong_state, "a.py", "SEEN = set()\ndef f(x): SEEN.add(x)", "def f(x):\n seen = set()\n seen.add(x)"),
        (wrong_state, "a.py", "N = 0\ndef f():\n global N\n N = 1", "def f():\n N = 1"),
        (wrong_calls, "a.py", "import pickle", "import json"),
        (wrong_calls, "a.py", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=False)"),
        (wrong_calls, "a.py", "x.norm()", "self.norm(x)"),
        (wrong_calls, "a.py", "yaml.load(x)", "yaml.safe_load(x)"),
        (wrong_calls, "a.py", "eval(x)", "model.eval()"),
        (wrong_calls, "a.py", "run(x, shell=True)", "run([x])"),
        (wrong_calls, "a.py", "nn.utils.clip_grad_norm_(p, 1)", "clip(p, 1)"),
        (wrong_calls, "a.py", "torch.load(f)", "checkpoint.load(f)"),
        (wrong_calls, "a.py", "torch.load(f, weights_only=True)", "checkpoint.load(f)"),
        (
            wrong_calls,
            "megatron/data/prepare/pair_tensors.py",
            "torch.load(f)",
            "torch.load(f, weights_only=True)\ntorch.save(x, f)",
        ),
        (wrong_calls, "megatron/exchange/megatron_deepspeed.py", "torch.load(f)", "torch.load(f, weights_only=True)"),
        (wrong_draws, "megatron/a.py", "torch.randn(3)", "torch.randn(3, generator=g)"),
        (wrong_draws, "megatron/a.py", "self.drop = nn.Dropout(0.1)", "self.drop = Dropout(0.1, 3)"),
        (wrong_draws, "megatron/a.py", "np.random.rand(3)", "np.random.default_rng(3).random(3)"),
        (wrong_draws, "megatron/a.py", "np.random.default_rng()", "np.random.Generator(bits)"),
        (wrong_draws, "megatron/a.py", "import random\nrandom.shuffle(x)", "import random\nrandom.Random(3).shuffle(x)"),
        (
            wrong_protocols,
            "a.py",
            "class A(Protocol):\n def __init__(self): self.x = 1",
            "class A(ABC):\n def __init__(self): self.x = 1",
        ),
        (wrong_length, "a.py", "def f():" + "\n x = 1" * 60, "def f():" + "\n x = 1" * 59),
    ],
)
def test_rule_tells_good_from_bad(rule, name, bad, good):
    assert len(rule(name, ast.parse(bad))) == 1
    assert rule(name, ast.parse(good)) == []


def test_optional_library_has_one_importer_inside_a_function():
    users: dict[str, set[str]] = {library: set() for library in ONE_IMPORTER}
    at_import = []
    for name, tree in ((n, t) for n, t in PRODUCT.items() if n != SHIPPED):
        late = inside_functions(tree)
        for node in (n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))):
            for library in {dotted.split(".")[0] for dotted, _ in imports(node)} & ONE_IMPORTER:
                users[library].add(name)
                at_import += [] if id(node) in late else [f"{name}:{node.lineno}: {library}"]
    assert at_import == [] and {library: files for library, files in users.items() if len(files) > 1} == {}


def test_floor_0_is_imported_without_torch_and_numpy():
    code = (
        "import sys, megatron, megatron.config, megatron.budget, megatron.errors; "
        "sys.exit(', '.join({'torch', 'numpy', 'scipy', 'yaml'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_python_file_of_the_package_has_a_floor():
    assert [name for name in PRODUCT if floor(room(name)) < 0] == []


def test_names_of_files():
    assert [name for name in TREES if Path(name).stem in ("base", "common", "helpers", "misc", "utils")] == []


def test_tests_mirror_the_layout():
    lost = []
    for name in (n for n in TREES if Path(n).name.startswith("test_")):
        *folders, file = name.removeprefix("tests/").removesuffix(".py").split("/")
        stem = file.removeprefix("test_")
        if folders[:1] in (["examples"], ["utils"]):  # no Python there: they mirror the folder
            continue
        homes = [ROOT.joinpath("megatron", *folders), ROOT.joinpath(*folders)]
        if not (stem in CARRYING and not folders) and not any(any(home.glob(f"{stem}.*")) for home in homes):
            lost.append(name)
    assert lost == []


def lines_with(pattern: str, suffixes: tuple[str, ...], where: str = "") -> list[str]:
    found = []
    for path in (p for p in SOURCES if p.suffix in suffixes or (p.parent.name == ".ci" and "" in suffixes)):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(where):
            found += [
                f"{name}:{n}"
                for n, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
                if re.search(pattern, line)
            ]
    return found


def test_source_is_ascii():
    assert lines_with(r"[^\x00-\x7f]", (".py", ".sh", ".cpp", ".toml", ".yml", ".yaml", ".ipynb", "")) == []


def test_nothing_is_left_for_later():
    words = "TO[D]O|FIX[M]E|XX[X]|NotImplemented[E]rror"  # so spelled, this line is not one of them
    assert lines_with(rf"\b({words})\b", (".py", ".sh", ".cpp", ".toml", ".md", ".yml", ".ipynb", "")) == []


def test_nothing_names_the_machine_it_was_made_on():
    roots = "|".join(["work", "opt", "root", "home"])
    everywhere = lines_with(
        rf"(?<![\w.$}}\])*/])/({roots})(/|\b(?![-\w]))",
        (".py", ".sh", ".cpp", ".toml", ".md", ".yml", ".ipynb", ".txt", ".json", ""),
    )
    assert everywhere == []
    notes = "|".join(["design", "seeds", "bench"])
    assert lines_with(rf"shared/({notes})", (".py", ".sh", ".cpp", ".toml", ".md", ".txt", "")) == []


@pytest.mark.parametrize("words", ["mypy", "ruff check .", "ruff format --check ."])
def test_types_lint_and_format(words):
    done = subprocess.run([sys.executable, "-m", *words.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
