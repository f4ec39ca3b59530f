"""What other verbs wrote, read again for the report: fits, data-value curves, the crossover."""

from __future__ import annotations

from pathlib import Path

from megatron.errors import BadData, MissingInput
from megatron.files import read_json
from megatron.scaling.law.fitted import Fit, load_fit
from megatron.scaling.table.labels import label_of


def read_fits(paths: list[str], folder: Path) -> dict[str, Fit]:
    """Fits of `fit.json` files or their folders, or of the folders in `folder`, by the names they are shown under.

    Raises as `load_fit`.
    """
    paths = paths or [str(path) for path in sorted(folder.glob("*/fit.json"))]
    return {_shown(name, fit): fit for name, fit in zip(_names(paths), map(load_fit, paths))}


def _shown(name: str, fit: Fit) -> str:
    """What was fitted, exact or bound, beside the folder's name where that says something else."""
    objective = fit.conventions.get("objective")
    label = label_of(objective, fit.conventions) if objective else name
    return label if name in (objective, label) else f"{name}: {label}"


def _names(paths: list[str]) -> list[str]:
    """The name of each fit's folder; the whole path where two share it."""
    folders = [Path(path).parent if Path(path).suffix == ".json" else Path(path) for path in paths]
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else path for name, path in zip(names, paths)]


def read_data_value(path: str | None, folder: Path) -> list[dict]:
    """The curves of `path`, or of data_value.json in the folder where there is one, as `draw_data_value` takes them."""
    curves = _read(path, folder / "data_value.json", "data-value", {"curves": list})["curves"]
    return [curve | {"points": [_point(point) for point in curve["points"] if point["value"] is not None]} for curve in curves]


def _point(point: dict) -> tuple:
    return point["epochs"], point["value"], *point["ci"]


def read_critical(path: str | None, folder: Path) -> dict | None:
    """The crossover of `path`, or of critical_compute.json in the folder where there is one, as `draw_crossover` takes it."""
    needed: dict = {"critical": list, "unique_tokens": list, "flops": list, "difference": list}
    found = _read(path, folder / "critical_compute.json", "critical-compute", needed)
    return found if found["critical"] else None


def _read(path: str | None, default: Path, verb: str, needed: dict) -> dict:
    """The JSON object of `path`, or of the default file; empty fields where neither is there.

    Raises MissingInput for a path that is not there, BadData for one that the verb did not write.
    """
    file = Path(path) if path else default
    if not file.is_file():
        if path:
            raise MissingInput(f"{file}: no such file; run the verb {verb} first.")
        return {name: kind() for name, kind in needed.items()}
    found = read_json(file, f"run the verb {verb} again.", f"what the verb {verb} writes")
    for name, kind in needed.items():
        if not isinstance(found.get(name), kind):
            raise BadData(f"{file}: no {name} in it; expected what the verb {verb} writes.")
    return found
