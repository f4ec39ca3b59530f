"""A form of a law from its formula as text: `E + A/N^alpha + B/D^beta + P*R^phi/W^psi; phi in 0.1:3; W = weight-decay`.

Names other than the variables N, D, U (unique tokens) and R = D/U - 1, and other than those of columns of the table (`W = COLUMN`
behind a semicolon), are parameters. Those in which the loss is linear, all at once, are positive terms and are eliminated from
the search; E is the irreducible loss. The others are searched in LIMITS, or in the limits that stand behind a semicolon; limits
a thousandfold apart are of a scale, which is searched in logarithms, and min(X) or max(X) is an end of the column X.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron.errors import BadData, MissingInput
from megatron.scaling.law.form import Form
from megatron.scaling.law.formula import End, Formula
from megatron.scaling.law.identifiable import check, linear, trials
from megatron.scaling.table.covariates import spelled, unspelled

VARIABLES = ("N", "D", "U", "R")
FUNCTIONS = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "expm1": np.expm1, "log1p": np.log1p}
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
LIMITS = (1e-2, 3.0)
DATA_END = re.compile(r"(min|max)\(\s*(\w+)\s*\)")


def read_form(text: str, forms: Mapping[str, Form]) -> Form:
    """What a word of --form means: one of these forms, a Python file whose FORM is one, or a formula. Raises BadData."""
    if text in forms:
        return forms[text]
    if text.endswith(".py"):
        return _from_file(Path(text))
    if not is_formula(text):
        near = difflib.get_close_matches(text, forms, n=1)
        more = f"did you mean {near[0]}? Else give" if near else f"expected one of {', '.join(forms)},"
        raise BadData(f"--form {text}: no such form; {more} a formula such as 'E + A/N^alpha + B/D^beta', or a Python file.")
    return parse_form(text)


def _from_file(path: Path) -> Form:
    """FORM of a Python file of the user's own, which is run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise MissingInput(f"--form {path}: no such file; give a Python file that defines FORM.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadData(f"--form {path}: {type(error).__name__}: {error}; mend the file.") from error
    form = getattr(module, "FORM", None)
    if not isinstance(form, Form):
        raise BadData(f"--form {path}: FORM is {type(form).__name__}, expected a Formula, as in docs/extending.md.")
    form.origin = {"path": str(path.resolve()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return form


def form_of_file(origin: Mapping[str, str], where: str) -> Form:
    """The form of the Python file that a fit was made with. Raises MissingInput, and BadData where the file is another now."""
    path = Path(origin["path"])
    if not path.is_file():
        raise MissingInput(f"{where}: the form is one of {path}, which is not there; put that file back, or fit again.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != origin["sha256"]:
        raise BadData(
            f"{where}: the form is one of {path} with sha256 {origin['sha256'][:12]}.., and the file has {found[:12]}..; "
            "put that file back, or fit again."
        )
    return _from_file(path)


def is_formula(text: str) -> bool:
    """Whether a word of --form is meant as a formula: names of forms have no such signs."""
    return any(sign in text for sign in "+/*^=(; ")


def parse_form(text: str, name: str | None = None) -> Formula:
    """The form of a formula, called `name` (default: its text). Raises BadData in one sentence for what does not parse, or has a
    parameter without effect, or parameters of which the data see only a combination."""
    body, *clauses = (part.strip() for part in text.split(";"))
    body = body.removeprefix("L").strip().removeprefix("=").strip() if body.replace(" ", "").startswith("L=") else body
    tree = _tree(body, text)
    found = sorted((node for node in ast.walk(tree) if isinstance(node, ast.Name)), key=lambda node: node.col_offset)
    names = list(dict.fromkeys(node.id for node in found))
    columns = _once([_column(part, names, text) for part in clauses if " in " not in part and part], text)
    if len(set(columns.values())) < len(columns):
        raise BadData(f"--form {text!r}: two names for one column; use one of them.")
    parameters = [one for one in names if one not in (*VARIABLES, *FUNCTIONS, *columns)]
    limits = _once([_limits(part, parameters, columns, text) for part in clauses if " in " in part], text)
    if not {*VARIABLES, *columns} & set(names):
        raise BadData(f"--form {text!r}: no {', '.join(VARIABLES)} and no column (NAME = COLUMN): a law is of these.")

    def loss(p: Mapping[str, Any], N, D, U):
        return _value(tree, {**p, "N": N, "D": D, "U": U, "R": D / U - 1})

    terms = linear(parameters, check(parameters, trials(loss, list(columns), limits), text))
    searched: dict[str, tuple[End, End]] = {one: limits.get(one, LIMITS) for one in parameters if one not in terms}
    return Formula(
        name or text,
        f"L = {body}" + "".join(f", {symbol} {spelled(column)}" for symbol, column in columns.items()),
        loss,
        terms={one: _exponent_of(one, tree, searched) for one in terms if one != "E"},
        exponents=searched,
        repeats=bool({"U", "R"} & set(names)),
        irreducible="E" in terms,
        columns=columns,
        axes=tuple(axis for axis, symbols in (("params", "N"), ("tokens", "DUR")) if set(symbols) & set(names)),
    )


def _tree(body: str, text: str) -> ast.expr:
    try:
        tree = ast.parse(body.replace("^", "**"), mode="eval").body
    except SyntaxError as error:
        at = f" near {(body.replace('^', '**')[: error.offset or 0])[-12:]!r}" if error.offset else ""
        raise BadData(f"--form {text!r} does not parse{at}: expected a formula such as 'E + A/N^alpha + B/D^beta'.") from None
    for node in ast.walk(tree):
        known = isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Name, ast.operator, ast.unaryop, ast.expr_context))
        number = isinstance(node, ast.Constant) and isinstance(node.value, (int, float))
        call = (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and len(node.args) == 1
        )
        if not (known or number or call) or isinstance(node, ast.BinOp) and not isinstance(node.op, OPERATORS):
            what = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
            raise BadData(f"--form {text!r}: {what!r} is none of + - * / ^, numbers, names and {', '.join(FUNCTIONS)}.")
    return tree


def _once(pairs: Sequence[tuple[str, Any]], text: str) -> dict[str, Any]:
    """Clauses behind semicolons by the name that they are of. Raises BadData for a name with two."""
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadData(f"--form {text!r}: {twice} has two clauses behind semicolons; leave out one of them.")
    return dict(pairs)


def _column(part: str, names, text: str) -> tuple[str, str]:
    """(name in the formula, column of the table) of `W = weight-decay`."""
    name, sign, column = (word.strip() for word in part.partition("="))
    if not sign or not column or not name.isidentifier():
        raise BadData(f"--form {text!r}: {part!r} is no limit, expected NAME in LOW:HIGH, and no column, expected NAME = COLUMN.")
    if name in (*VARIABLES, *FUNCTIONS) or name not in names:
        raise BadData(f"--form {text!r}: {part!r} names no free name of the formula ({', '.join(names)}).")
    return name, unspelled(column)


def _limits(part: str, parameters, columns, text: str) -> tuple[str, tuple[End, End]]:
    """(name, (low, high)) of `name in low:high`."""
    try:
        name, ends = (word.strip() for word in part.split(" in "))
        low, high = (_end(end, columns) for end in ends.split(":"))
    except ValueError:
        raise BadData(f"--form {text!r}: {part!r} is no limit, expected NAME in LOW:HIGH.") from None
    numbers = [end for end in (low, high) if not isinstance(end, str)]
    if name not in parameters or not all(map(math.isfinite, numbers)) or len(numbers) == 2 and not numbers[0] < numbers[1]:
        raise BadData(f"--form {text!r}: {part!r} limits no parameter ({', '.join(parameters)}), or not from low to high.")
    return name, (low, high)


def _end(text: str, columns) -> End:
    found = DATA_END.fullmatch(text.strip())
    if found is None:
        return float(text)
    if found[2] not in columns:
        raise ValueError
    return f"{found[1]}({found[2]})"


def _value(node, at: Mapping[str, Any]):
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, (int, float))  # all that the reader lets pass
        return np.float64(node.value)  # whole numbers of Python grow without end, and divide by 0 with an exception
    if isinstance(node, ast.Name):
        return at[node.id]
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, at)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return FUNCTIONS[node.func.id](_value(node.args[0], at))
    left, right = _value(node.left, at), _value(node.right, at)
    if isinstance(node.op, ast.Add):
        return left + right
    if isinstance(node.op, ast.Sub):
        return left - right
    if isinstance(node.op, ast.Mult):
        return left * right
    return left / right if isinstance(node.op, ast.Div) else _power(left, right)


def _power(base, exponent):
    """base^exponent; 0 where the base is 0, as R is for data seen once, whatever the exponent."""
    if isinstance(exponent, (int, float)) or not np.any(np.equal(base, 0)):
        return base**exponent
    nothing = np.equal(base, 0)
    return np.where(nothing, 0, np.where(nothing, 1, base) ** exponent)


def _exponent_of(term: str, tree, searched) -> str | None:
    """The first searched parameter beside this term in its addend: without it the size of the term is not known."""
    for addend in _addends(tree):
        names = [node.id for node in ast.walk(addend) if isinstance(node, ast.Name)]
        if term in names:
            return next((name for name in names if name in searched), None)
    return None


def _addends(node):
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
        return [*_addends(node.left), *_addends(node.right)]
    return [node]
