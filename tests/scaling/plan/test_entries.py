"""A plan: the published recipe number by number, exact N and FLOPs, one trunk for many lengths, and a file that is read back."""

import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from megatron import budget, config
from megatron.data.indexed import IndexedWriter
from megatron.errors import BadData, CannotWrite, MissingInput, Untrusted
from megatron.flags import ConfigError
from megatron.scaling.plan.cost import Rates, speed_of_peak
from megatron.scaling.plan.entries import branch_points, load_plan, make_plan, save_csv, save_plan, short_of_asked
from megatron.scaling.plan.grid import Request

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = Request(flops=(6e18, 1e19, 3e19, 1e20), sizes=("57M", "117M", "217M", "425M", "724M"))


def parsed(run):
    cfg = config.parse(run["flags"] + ["--save", run["name"]], run["objective"], environ={})
    return cfg if cfg.model.vocab_size else cfg.with_vocabulary(budget.GPT2_VOCAB)


def test_the_published_isoflop_recipe_number_by_number():
    """D = int((F 1e9 / 6) (1e9 / P)), P = 4lh^2 + 3lhf + 6lh + Vh, samples = round(D / 2048), warm-up = max(1 %, 100)."""
    runs = make_plan(PUBLISHED).runs
    assert len(runs) == 40
    for run in runs:
        h, _, _, _, layers = budget.sizes()[run["size"]]
        params = 4 * layers * h * h + 3 * layers * h * int((4 * h * 2 / 3) / 64) * 64 + 6 * layers * h + 50257 * h
        tokens = int((run["budget"]["flops"] / 1e18 * 1e9 / 6) * (1e9 / params))
        cfg, samples = parsed(run), round(tokens / 2048)
        assert (cfg.optim.lr_decay_samples, cfg.optim.lr_warmup_samples) == (samples, max(round(samples / 100), 100))
        assert (run["params_published"], run["steps"]) == (params, samples // 256)
        assert (run["lr"], cfg.optim.min_lr, cfg.optim.lr_decay_style) == (2e-4, 2e-5, "cosine")
        assert run["flops_6nd"] == pytest.approx(run["budget"]["flops"], rel=2e-3)


@pytest.mark.parametrize(
    "name, samples, steps",
    [
        ("ar_chinchilla_1e19_217M", 3_741_565, 14_615),
        ("mdm_chinchilla_1e19_117M", 6_584_834, 25_722),
        ("ar_chinchilla_3e19_425M", 5_856_278, 22_876),
        ("mdm_chinchilla_3e19_217M", 11_224_696, 43_846),
        ("ar_chinchilla_1e20_724M", 11_621_566, 45_396),
        ("mdm_chinchilla_1e20_425M", 19_520_925, 76_253),
    ],
)
def test_published_optima(name, samples, steps):
    run = next(run for run in make_plan(PUBLISHED).runs if run["name"] == name)
    assert run["flags"][run["flags"].index("--train-samples") + 1] == str(samples) and run["steps"] == steps


def test_what_whole_batches_leave_out_is_said():
    asked = Request(scale="cpu", objectives=("ar",), sizes=("CPU_12K",), unique_tokens=(8000,), epochs=(1, 3))
    [said] = short_of_asked(make_plan(asked).runs)
    assert "u8000_1ep is 9.7% shorter than asked" in said and "7 whole batches of 8 samples (epochs: 0.896)" in said
    assert short_of_asked(make_plan(replace(asked, unique_tokens=(12800,), epochs=(4,))).runs) == []


def test_numbers_are_the_shape_s():
    for run in make_plan(PUBLISHED).runs:
        cfg = parsed(run)
        shape, tokens = cfg.model.shape(), cfg.train.train_samples * 2048
        assert [run[n] for n in ("params", "params_non_embedding", "params_with_head", "tokens", "samples")] == [
            shape.total(),
            shape.non_embedding(),
            shape.with_head(),
            tokens,
            cfg.train.train_samples,
        ]
        assert run["flops_6nd"] == 6.0 * shape.total() * tokens
        assert run["flops_exact"] == shape.flops_per_token(2048) * tokens
        assert run["entry"] == {"ar": "pretrain_gpt.py", "mdm": "pretrain_diff_gpt.py"}[run["objective"]]


def test_flags_for_every_run_replace_the_recipe_s():
    run, *_ = make_plan(replace(PUBLISHED, flags=("--eval-interval", "50", "--untie-embeddings-and-output-weights"))).runs
    cfg = parsed(run)
    assert cfg.train.eval_interval == 50 and run["params"] == cfg.model.shape().total() > run["params_published"] * 1.3


def test_runs_that_begin_with_others_weights(tmp_path):
    with IndexedWriter(str(tmp_path / "pairs"), np.uint16) as writer:
        for _ in range(10):
            writer.add_document(np.arange(20), lengths=[8, 12])
    pairs = (str(tmp_path / "pairs"),)
    asked = Request(
        scale="cpu", sizes=("CPU_5K",), tokens=(3 * 10 * 128,), train_data=pairs, valid_data=pairs, batch_size="fixed:2"
    )
    plan = make_plan(replace(asked, name="sft", finetune="{objective}_base_{size}", flags=("--data-kind", "instruct")))
    for run in plan.runs:
        assert run["load"] == {"run": f"{run['objective']}_base_CPU_5K", "step": 0, "finetune": True}
        assert run["epochs"] == 3  # a row holds a pair
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").runs == plan.runs
    with pytest.raises(ConfigError, match="--finetune a/b: expected a run's name"):
        make_plan(replace(asked, finetune="a/b"))


def test_every_mistake_of_the_flags_is_listed_once_with_its_runs():
    with pytest.raises(ConfigError) as error:
        make_plan(replace(PUBLISHED, flags=("--eval-itres", "50", "--tensor-model-parallel-size", "7")), {}, Rates(gpus=3))
    found = error.value.mistakes
    assert any("--eval-iters?" in line and "and 39 more" in line for line in found)
    assert any("multiple of 7" in line for line in found)


def test_sums():
    plan = make_plan(PUBLISHED, dict.fromkeys(("ar", "mdm"), speed_of_peak(0.4, 1e15, 8)), Rates(gpus=8, price=2.0))
    totals = plan.totals()
    assert totals["cost"] == pytest.approx(2 * totals["gpu_hours"]) == pytest.approx(16 * totals["hours"])
    assert (totals["runs"], totals["energy_kwh"]) == (40, None)
    assert totals["tokens"] == sum(run["tokens"] for run in plan.runs)


def test_a_plan_is_the_same_again_and_comes_back_from_its_file(tmp_path):
    plan, again = make_plan(PUBLISHED), make_plan(PUBLISHED)
    assert asdict(replace(again, created=plan.created)) == asdict(plan)
    save_plan(plan, tmp_path / "new" / "plan.json")
    found = load_plan(tmp_path / "new" / "plan.json")
    assert found.runs == plan.runs and (found.kind, found.scale, found.created) == (plan.kind, plan.scale, plan.created)
    save_csv(plan, tmp_path / "plan.csv")
    lines = (tmp_path / "plan.csv").read_text().splitlines()
    assert len(lines) == 41 and lines[0].startswith("name,objective,size,trunk")


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(MissingInput):
        load_plan(tmp_path / "none.json")
    for text in ("{", "[]", '{"schema_version": 99, "runs": []}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(BadData, match="plan again"):
            load_plan(tmp_path / "bad.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite):
        save_plan(make_plan(PUBLISHED), tmp_path / "file" / "plan.json")


@pytest.mark.parametrize(
    "field, value, kind",
    [
        ("name", "../x", Untrusted),
        ("name", "/tmp/x", Untrusted),
        ("name", "..", Untrusted),
        ("name", "", Untrusted),
        ("load", {"run": "a/../../b", "step": 1}, Untrusted),
        ("entry", "../evil.py", Untrusted),
        ("name", None, BadData),
        ("flags", [1], BadData),
        ("flags", None, BadData),
        ("tokens", 0, BadData),
        ("load", {"run": "x"}, BadData),
    ],
)
def test_a_plan_from_a_file_starts_nothing_elsewhere(field, value, kind, tmp_path):
    save_plan(make_plan(replace(PUBLISHED, flops=(1e19,), sizes=("57M",), objectives=("ar",))), tmp_path / "plan.json")
    held = json.loads((tmp_path / "plan.json").read_text())
    held["runs"][0][field] = value
    (tmp_path / "plan.json").write_text(json.dumps(held))
    with pytest.raises(kind, match=r"runs\[0\]"):
        load_plan(tmp_path / "plan.json")


# -- one trunk


def test_branches_share_a_trunk_and_decay_from_its_checkpoints():
    runs = make_plan(replace(PUBLISHED, schedule="wsd")).runs
    by_name = {run["name"]: run for run in runs}
    trunks, branches = [r for r in runs if not r["trunk"]], [r for r in runs if r["trunk"]]
    assert (len(trunks), len(branches)) == (10, 40)
    for run in branches:
        trunk, cfg, step = parsed(by_name[run["trunk"]]), parsed(run), run["load"]["step"]
        assert run["load"]["run"] == run["trunk"] and step in trunk.train.save_at
        assert step <= by_name[run["trunk"]]["steps"]
        assert trunk.optim.lr_decay_style == "constant" and cfg.optim.lr_decay_style == "WSD"
        assert cfg.optim.lr_warmup_samples == trunk.optim.lr_warmup_samples
        assert cfg.optim.lr_decay_samples - cfg.optim.lr_wsd_decay_samples == step * 256
        assert cfg.optim.lr_wsd_decay_samples / cfg.optim.lr_decay_samples == pytest.approx(0.2, rel=1e-3)
        assert run["forecast"]["tokens"] == run["tokens"] - step * 256 * 2048
    shared = sum(run["forecast"]["tokens"] for run in runs)
    assert shared < 0.95 * sum(run["tokens"] for run in branches)


def test_epochs_over_fixed_data_share_a_trunk():
    asked = Request(
        kind="data-value",
        unique_tokens=(10**8,),
        epochs=(1, 4, 10),
        sizes=("117M",),
        objectives=("mdm",),
        train_data=("x",),
        schedule="wsd",
    )
    trunk, *branches = make_plan(asked).runs
    assert [run["name"] for run in branches] == [f"mdm_data_value_117M_u100000000_{epochs}ep_wsd" for epochs in (1, 4, 10)]
    assert {run["trunk"] for run in branches} == {trunk["name"]} and trunk["checkpoints"] == 3
    assert {(*parsed(run).data.train_data_path, parsed(run).data.unique_tokens) for run in (trunk, *branches)} == {("x", 10**8)}


def test_a_data_value_sweep_takes_its_parts_of_one_file(tiny, tmp_path, start):
    """Seven epoch counts over nested first tokens of one corpus: what the plan says of the data is what the run finds."""
    asked = replace(
        tiny,
        kind="data-value",
        flops=(3e8,),
        epochs=(1, 2, 4, 10, 20, 50, 100),
        schedule="cosine",
        seq_length=8,
        batch_size="fixed:2",
    )
    runs = make_plan(asked).runs
    configs = [parsed(run) for run in runs]
    assert {tuple(cfg.data.train_data_path) for cfg in configs} == {tiny.train_data}
    parts = [cfg.data.unique_tokens for cfg in configs]
    assert parts == sorted(set(parts), reverse=True) and parts[1:] == [run["unique_tokens"] for run in runs[1:]]
    assert [run["epochs"] for run in runs] == pytest.approx((1, 2, 4, 10, 20, 50, 100), rel=0.02)
    done = start(runs[4], tmp_path / "runs")
    assert (done["unique_tokens"], done["epochs"], done["tokens"]) == tuple(
        runs[4][name] for name in ("unique_tokens", "epochs", "tokens")
    )


@pytest.mark.parametrize(
    "lengths, points", [([100], [80]), ([100, 200, 400], [80, 160, 320]), ([5, 7], [4, 6]), ([137, 911, 2500], [110, 729, 2000])]
)
def test_branches_leave_the_trunk_where_their_decay_begins(lengths, points):
    assert branch_points(lengths, 0.2, 0) == points
    with pytest.raises(ValueError, match=f"a run of {lengths[0]} steps is too short for {points[0] + 1} of warm-up"):
        branch_points(lengths, 0.2, points[0] + 1)


def test_a_run_too_short_to_branch_is_refused():
    with pytest.raises(ConfigError, match="too short"):
        make_plan(Request(tokens=(2048 * 256,), sizes=("57M",), schedule="wsd"))


@pytest.fixture
def tiny(tmp_path):
    """A request for a trunk and two cooldowns of a tiny model on 10,000 random tokens."""
    rng = np.random.default_rng(0)
    for name in ("train", "valid"):
        with IndexedWriter(str(tmp_path / name), np.uint16) as writer:
            for document in np.split(rng.integers(0, 250, 10_000), 20):
                writer.add_document(document)
    return Request(
        scale="cpu",
        flops=(1e9, 2e9),
        sizes=("CPU_5K",),
        objectives=("mdm",),
        schedule="wsd",
        train_data=(str(tmp_path / "train"),),
        valid_data=(str(tmp_path / "valid"),),
        flags=("--eval-iters", "1"),
    )


@pytest.fixture
def start(warm):
    def run_of(run, folder, load=None):
        words = [*run["flags"], "--save", str(folder / run["name"]), *(["--load", str(load)] if load else [])]
        done = subprocess.run([warm.python, str(ROOT / run["entry"]), *words], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return json.loads((folder / run["name"] / "result.json").read_text())

    return run_of


def test_a_cooldown_from_the_trunk_is_the_run_that_decays_on_its_own(tiny, tmp_path, start):
    """Bit for bit; and the plan says what result.json will."""
    trunk, short, _ = make_plan(tiny).runs
    start(trunk, tmp_path / "runs")
    branch = start(short, tmp_path / "runs", tmp_path / "runs" / trunk["name"] / f"step-{short['load']['step']:08d}")
    alone = start(short, tmp_path / "alone")
    assert branch["loss"] == alone["loss"] and branch["lr_decayed"]
    for plan_name, name in {"flops_6nd": "flops", "global_batch_size": "batch_size"}.items():
        assert short[plan_name] == branch[name]
    for name in (
        "params",
        "params_non_embedding",
        "params_with_head",
        "params_published",
        "tokens",
        "samples",
        "steps",
        "epochs",
        "unique_tokens",
        "flops_exact",
        "lr",
        "seed",
        "seq_length",
        "name",
        "objective",
    ):
        assert short[name] == branch[name], name
