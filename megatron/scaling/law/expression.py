"""A form of a law from its formula as text: `E + A/N^alpha + B/D^beta + P*R^phi; phi in 0.1:3`.

Names other than the variables N, D, U (unique tokens) and R = D/U - 1 are parameters. Those in which the loss is linear, all at
once, are positive terms and are eliminated from the search; E is the irreducible loss. The others are searched in LIMITS, or in
the limits that stand behind a semicolon; limits a thousandfold apart are of a scale, which is searched in logarithms.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron.errors import BadData, MissingInput
from megatron.scaling.law.form import Form
from megatron.scaling.law.formula import Formula

VARIABLES = ("N", "D", "U", "R")
FUNCTIONS = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "expm1": np.expm1, "log1p": np.log1p}
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
LIMITS = (1e-2, 3.0)
PLACES = {"N": np.array([3.0, 9.0, 4.0]), "D": np.array([80.0, 20.0, 90.0]), "U": np.array([10.0, 20.0, 30.0])}  # to try it at
ALIKE = 1e-6  # relative: two values that differ by rounding


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
    return form


def is_formula(text: str) -> bool:
    """Whether a word of --form is meant as a formula: names of forms have no such signs."""
    return any(sign in text for sign in "+/*^=(; ")


def parse_form(text: str) -> Formula:
    """The form of a formula. Raises BadData in one sentence for what does not parse, or has a parameter without effect."""
    body, *bounds = (part.strip() for part in text.split(";"))
    body = body.removeprefix("L").strip().removeprefix("=").strip() if body.replace(" ", "").startswith("L=") else body
    tree = _tree(body, text)
    found = sorted((node for node in ast.walk(tree) if isinstance(node, ast.Name)), key=lambda node: node.col_offset)
    names = list(dict.fromkeys(node.id for node in found))
    parameters = [name for name in names if name not in (*VARIABLES, *FUNCTIONS)]
    limits = dict(_limits(part, parameters, text) for part in bounds if part)

    def loss(p: Mapping[str, Any], N, D, U):
        return _value(tree, {**p, "N": N, "D": D, "U": U, "R": D / U - 1})

    _check(parameters, loss, names, text)
    terms = _linear(parameters, loss, limits)
    searched = {name: limits.get(name, LIMITS) for name in parameters if name not in terms}
    return Formula(
        text,
        f"L = {body}",
        loss,
        terms={name: _exponent_of(name, tree, searched) for name in terms if name != "E"},
        exponents=searched,
        repeats=bool({"U", "R"} & set(names)),
        irreducible="E" in terms,
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


def _limits(part: str, parameters, text: str) -> tuple[str, tuple[float, float]]:
    """(name, (low, high)) of `name in low:high`."""
    try:
        name, ends = (word.strip() for word in part.split(" in "))
        low, high = map(float, ends.split(":"))
    except ValueError:
        raise BadData(f"--form {text!r}: {part!r} is no limit, expected NAME in LOW:HIGH.") from None
    if name not in parameters or not -math.inf < low < high < math.inf:
        raise BadData(f"--form {text!r}: {part!r} limits no parameter ({', '.join(parameters)}), or not from low to high.")
    return name, (low, high)


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


def _check(parameters, loss, names, text: str) -> None:
    """Raises BadData where the formula has no variable, or a parameter without effect."""
    if not {"N", "D"} & set(names):
        raise BadData(f"--form {text!r}: no N and no D; a law is of {', '.join(VARIABLES)}.")
    at = {name: 0.3 + 0.1 * number for number, name in enumerate(parameters)}
    before = _tried(loss, at)
    if not np.isfinite(before).all():
        raise BadData(f"--form {text!r}: no number at ordinary values (all parameters near 0.5); mend the formula.")
    for name in parameters:
        if np.allclose(before, _tried(loss, at | {name: 1.7 * at[name]}), rtol=1e-13, atol=0):
            raise BadData(f"--form {text!r}: the parameter {name} changes nothing; leave it out.")


def _tried(loss, at) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.broadcast_to(np.asarray(loss(at, *PLACES.values()), np.float64), 3)


def _linear(parameters, loss, limits) -> list[str]:
    """The parameters in which the loss is linear at once, without a constant, E among them."""
    found: list[str] = []
    for name in parameters:
        if name not in limits and _is_linear([*found, name], parameters, loss):
            found.append(name)
    return found


def _is_linear(chosen, parameters, loss) -> bool:
    """Whether second differences along and between the chosen parameters vanish, all others at two places."""
    for base in (0.37, 0.61):
        at = {name: base + 0.07 * number for number, name in enumerate(parameters)}
        for one, other in itertools.product(chosen[-1:], chosen):
            steps = [{one: a, other: b} if one != other else {one: a + b} for a, b in ((0, 0), (1, 0), (0, 1), (1, 1))]
            corner = [_tried(loss, at | {name: at[name] + 0.4 * by for name, by in step.items()}) for step in steps]
            size = np.abs(np.stack(corner) - corner[0]).max(axis=0)
            if np.any(np.abs(corner[0] - corner[1] - corner[2] + corner[3]) > ALIKE * size + 1e-300):
                return False
    return True


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
