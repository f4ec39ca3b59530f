"""What a network that is told vectors makes of them: on the run's validation rows, with each row's own and without.

    python tools/evaluate.py vectors runs/topics

    text, given its vector          nats a token, the run's own loss
    text, given another row's       a control: what a vector that does not belong to it does
    text, given no vector           what the same network says of the text alone, as --latent-dropout taught it
    vector, given ...               of --objective t2l and joint, the other way round
    what the vector tells           nothing less its own, a row: of masked diffusion a difference of two bounds

Noise and rows are the same in all of them, so that the difference has an error of its own, smaller than either's. Where the
corpus is one of tools/make_topic_pairs.py, what text and vector have in common is known and stands beside it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from megatron.objectives import Objective
    from megatron.objectives.vectors import TextGivenVector, VectorGivenText
    from megatron.training.evaluate import Slice
    from megatron.training.trained import Trained


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the verb."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder, or one of its checkpoints; or several")
    parser.add_argument("--set", default="valid", help="valid, valid:NAME or test [valid]")
    parser.add_argument("--rows", type=int, help="the first so many rows [as validation had]")
    parser.add_argument("--num-mc", type=int, help="noise draws a row [as validation had]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    parser.add_argument("--out", type=Path, help="also write vectors.json into this folder")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout")


def command(given: argparse.Namespace) -> None:
    """Measure, print, write."""
    from megatron.files import staged
    from megatron.flags import ConfigError
    from megatron.training import open_run

    counts = {"--rows": given.rows, "--num-mc": given.num_mc}
    if wrong := [f"{name} {value}: expected 1 or more" for name, value in counts.items() if value is not None and value < 1]:
        raise ConfigError(wrong)
    opened = (open_run(run, device=given.device, say=lambda line: None, vectors=True) for run in given.runs)
    found = [measure(trained, given.set, given.rows, given.num_mc) for trained in opened]
    if given.out:
        with staged(given.out) as stage:
            (stage / "vectors.json").write_text(json.dumps(found, indent=1, allow_nan=False))
    print(json.dumps(found, indent=1, allow_nan=False) if given.json else "\n".join(map(describe, found)))


def measure(trained: Trained, which: str = "valid", rows: int | None = None, num_mc: int | None = None) -> dict[str, Any]:
    """Of the text nats a token, of the vector the mean square of the error of v, each with its error; and the information in
    nats a row. Raises Mismatch for a run without vectors."""
    import numpy as np

    from megatron.errors import Mismatch
    from megatron.flags import ConfigError
    from megatron.objectives.vectors import TextAndVector, TextGivenVector, VectorGivenText

    posed = trained.objective
    text = posed.text if isinstance(posed, TextAndVector) else posed if isinstance(posed, TextGivenVector) else None
    vector = posed.vector if isinstance(posed, TextAndVector) else posed if isinstance(posed, VectorGivenText) else None
    if text is None and vector is None:
        raise Mismatch(f"{trained.checkpoint.path} reads no vectors: give a run of --data-kind pairs with --latent-size")
    if num_mc and vector is None and text is not None and text.exact:
        raise ConfigError([f"--num-mc {num_mc} acts on draws, and {trained.checkpoint.path} has none: leave it out"])
    data = trained.slice(which, rows, num_mc)
    found: dict[str, Any] = {"run": str(trained.checkpoint.path), "rows": data.rows}
    found["convention"] = data.convention(trained.reference)
    if vector is not None:
        losses = ways(trained, vector, data)
        found["vector"] = {name: summed(*loss, exact=False) for name, loss in losses.items()}
    if text is not None:
        losses, exact = ways(trained, text, data), text.exact
        found["text"] = {name: summed(*loss, exact=exact) for name, loss in losses.items()}
        found["tokens"] = int(losses["told"][1].sum())
        if "untold" in losses:
            by_vector = losses["untold"][0] - losses["told"][0]
            value = summed(by_vector, np.ones(data.rows, np.int64), exact)
            found["information"] = value | {"known": known_information(data)}
    return found


def ways(trained: Trained, objective: TextGivenVector | VectorGivenText, data: Slice) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Loss [draws, rows] and scored [rows] with a row's own other side, another row's, and none, where training had such rows."""
    found = {"told": nats(trained, objective.reference(), data), "another": nats(trained, objective.reference(), others(data))}
    if trained.cfg.objective.latent_dropout:
        found["untold"] = nats(trained, objective.untold(), data)
    return found


def others(data: Slice) -> Slice:
    """The same rows, each with the vector of the row behind it, in a circle."""
    from dataclasses import replace

    class Others:
        def __init__(self, dataset, rows: int):
            self.dataset, self.rows_in_circle = dataset, rows

        def __getattr__(self, name: str):
            return getattr(self.dataset, name)

        def vectors(self, numbers: np.ndarray) -> np.ndarray:
            return self.dataset.vectors((numbers + 1) % self.rows_in_circle)

    dataset: Any = Others(data.dataset, data.rows)
    return replace(data, dataset=dataset)


def nats(trained: Trained, objective: Objective, data: Slice) -> tuple[np.ndarray, np.ndarray]:
    """-> loss [draws, rows], scored [rows]"""
    import numpy as np

    from megatron.training.evaluate import draw

    draws = [draw(trained.engine, objective, data, number) for number in range(data.num_mc)]
    return np.stack([one.loss for one in draws]), draws[0].scored


def summed(loss: np.ndarray, scored: np.ndarray, exact: bool) -> dict[str, float | None]:
    """The mean, and its error from noise and from the choice of rows together.  loss [draws, rows], scored [rows]"""
    from megatron.standard_errors import combined
    from megatron.training.evaluate import data_error, noise_error

    noise, df = (None, None) if exact else noise_error(loss, scored)
    error, _ = combined((noise, df), (data_error(loss, scored), len(scored) - 1))
    return {"value": float(loss.mean(0).sum() / scored.sum()), "error": error}


def known_information(data: Slice) -> float | None:
    """What the scored words of a corpus of topics have in common with its vectors, in nats a row; None for other corpora."""
    from megatron.data.synthetic.topics import Topics

    dataset: Any = data.dataset
    source = Topics.of(dataset.corpus.meta)
    if source is None:
        return None
    return replace(source, length=min(source.length, data.seq_length)).information(0 if data.score_first_token else 1)


def describe(found: dict[str, Any]) -> str:
    """A line each."""
    lines = [f"{found['run']}: {found['rows']} rows"]
    names = {"told": "its", "another": "another row's", "untold": "no"}
    kinds = {"text": ("vector", "nats a token"), "vector": ("text", "mean square of the error of v")}
    for kind, (other, unit) in kinds.items():
        for name, said in found.get(kind, {}).items():
            lines.append(f"  {f'{kind}, given {names[name]} {other}':36} {number(said)} {unit}")
    if "information" in found:
        known = found["information"]["known"]
        beside = "" if known is None else f", of {known:.4f} that text and vector have in common"
        lines.append(f"  {'what the vector tells of the text':36} {number(found['information'])} nats a row{beside}")
    return "\n".join(lines)


def number(found: dict[str, float | None]) -> str:
    error = "" if found["error"] is None else f" +- {found['error']:.4f}"
    return f"{found['value']:.4f}{error}"
