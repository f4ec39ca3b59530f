import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from megatron.scaling.law.forms.chinchilla import Chinchilla
from megatron.scaling.table.table import Table

LAWS = {"ar": Chinchilla(E=1.0, A=15, B=60, alpha=0.4, beta=0.3), "mdm": Chinchilla(E=2.1, A=8, B=35, alpha=0.38, beta=0.32)}
BOUND = {"ar": "exact", "mdm": "bound"}
IDENTITY = {"params_convention": "total", "flops_convention": "6ND", "tokenizer": "bytes 1f", "eval_slice": "slice 2e", "seed": 3}
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "scaling"


@pytest.fixture
def published():
    """The path of a published table; the test is skipped where just that one is not beside the checkout."""

    def find(name):
        if not (PUBLISHED / name).is_file():
            pytest.skip(f"{name} is not in ../shared/data/scaling beside the checkout")
        return PUBLISHED / name

    return find


@pytest.fixture
def sweep():
    """A table like that of a quickstart: tiny models, a little noise."""

    def make(objectives=("ar", "mdm"), budgets=(2e11, 6e11, 2e12), largest=4e5, sizes=5):
        random, rows = np.random.default_rng(0), []
        for objective, flops, params in itertools.product(objectives, budgets, np.geomspace(4e3, largest, sizes).tolist()):
            tokens = flops / 6 / params
            loss = float(LAWS[objective].loss(params, tokens) + 0.005 * random.standard_normal())
            name = f"{objective}-{flops:.0e}-{params:.0f}"
            rows.append(
                {
                    "run": name,
                    "cluster": name,
                    "objective": objective,
                    "params": params,
                    "tokens": tokens,
                    "flops": flops,
                    "unique_tokens": tokens,
                    "loss": loss,
                    "loss_se_noise": 0.006,
                    "loss_se_data": 0.01,
                    "bound": BOUND[objective],
                    **IDENTITY,
                }
            )
        return Table(
            rows,
            dropped=[{"run": "lost", "line": None, "reason": "unfinished: no <result.json>"}],
            sources=[{"path": "table.csv", "sha256": "ab" * 32}],
            choices={"loss": "final", "unit": "nats"},
        )

    return make


@pytest.fixture
def run_folders(tmp_path, sweep):
    """The sweep as run directories."""
    for row in sweep(budgets=(2e11, 6e11), sizes=4).rows:
        folder = tmp_path / "runs" / row["run"]
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(row))
        (folder / "config.json").write_text("{}")
        (folder / "run.json").write_text(json.dumps({"code": "0123456789ab", "noise_seed": 3, "eval_seed": 7, "resumes": [{}]}))
        (folder / "metrics.jsonl").write_text(
            "".join(
                json.dumps({"kind": "train", "step": step, "flops": row["flops"] * step / 40, "loss": row["loss"] + 4 / step})
                + "\n"
                for step in range(1, 41)
            )
        )
    return tmp_path / "runs"


@pytest.fixture
def legible():
    """Check that a figure is wide enough and that no text leaves it or meets another; gives all that is written."""

    def check(figure):
        width, height = figure.get_size_inches() * figure.dpi
        assert width >= 1600
        texts = _texts(figure)
        for text, box in texts:
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{text!r} leaves the picture"
        for (one, a), (other, b) in itertools.combinations(texts, 2):
            assert not a.overlaps(b), f"{one!r} overlaps {other!r}"
        return "\n".join(text for text, _ in texts)

    return check


def _texts(figure):
    """(text, box in pixels) of everything written; drawn first, so that places are final."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _labels_out_of_view(axis)}
    # an annotation's own box would include its arrow
    return [
        (text.get_text(), Text.get_window_extent(text, canvas.get_renderer()))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text() and id(text) not in hidden
    ]


def _labels_out_of_view(axis):
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [label for tick in ticks for label in (tick.label1, tick.label2) if not low <= tick.get_loc() <= high]
