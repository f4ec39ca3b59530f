"""Every recipe, dry: what it would run parses, and its size, length and compute agree with megatron/budget.py."""

import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from megatron import budget, config
from megatron.scaling.plan.entries import Request, make_plan

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(
    str(path.relative_to(ROOT / "examples"))
    for path in (ROOT / "examples").rglob("*.sh")
    if path.name not in ("common.sh", "setup.sh", "launch.sh", "sanity_check.sh")
)
EXPERIMENTS = [
    r
    for r in RECIPES
    if re.search("_(dropout|masking|orders|left_to_right|low_noise|schedules|blocks|uniform|lr|fair_crossover).sh|atat/", r)
]  # slow to plan
OBJECTIVES = {"pretrain_gpt.py": "ar", "pretrain_diff_gpt.py": "mdm"}
KEEP = ("PATH", "HOME", "LANG", "TMPDIR")


@pytest.fixture(scope="module")
def start(warm):
    def started(recipe, *flags, cwd="/", **settings):
        environ = {k: v for k, v in os.environ.items() if k in KEEP} | {"PYTHON": warm.python} | settings
        words = ["bash", str(ROOT / "examples" / recipe), *flags]
        return subprocess.run(words, cwd=cwd, env=environ, capture_output=True, text=True)

    return started


@pytest.fixture(scope="module")
def dry(start):
    def planned(recipe, *flags, **settings):
        """Run name -> Config of every command that the recipe prints."""
        done = start(recipe, *flags, DRY_RUN="1", **settings)
        assert done.returncode == 0, done.stderr
        found = {}
        for line in done.stdout.splitlines():
            _, entry, *argv = shlex.split(line)
            cfg = config.parse(argv, OBJECTIVES[entry], environ={})
            found[Path(cfg.log.run_dir).name] = cfg if cfg.model.vocab_size else cfg.with_vocabulary(budget.GPT2_VOCAB)
        return found

    return planned


def flops(cfg, params):
    return 6 * params * (cfg.optim.lr_decay_samples * cfg.model.seq_length)


@pytest.mark.parametrize(
    "recipe, scale",
    [(recipe, "cpu") for recipe in RECIPES]
    + [pytest.param(recipe, "gpu", marks=pytest.mark.slow if recipe in EXPERIMENTS else ()) for recipe in RECIPES],
)
def test_every_recipe_prints_commands_that_parse(recipe, scale, tmp_path, dry):
    runs = dry(recipe, SCALE=scale, RUNS_DIR=str(tmp_path))
    assert runs
    for name, cfg in runs.items():
        size = re.search(r"[_-](\d+M|CPU_\d+K)([_-]|$)", name)[1]
        _, shape = budget.find_size(size, cfg.model.vocab_size)
        shape = replace(shape, candidate_features=64 * ("bilateral" in name))
        if "latent" in name:  # vectors of 8 are read, with 32 waves of how much of them is noise, and predicted
            shape = replace(shape, latent_features=40, latent_readout=8 * ("joint" in name))
        assert cfg.model.shape() == shape, name
        known = [o for o in ("mdm", "udm", "sdd", "joint") if o in name.replace("diffusion", "mdm")]
        assert cfg.objective.objective == (known or ["ar"])[0]
        short = 18 if "latent" in name else 128
        assert (cfg.model.seq_length, cfg.train.bf16) == ((short, False) if "CPU" in size else (2048, True))
        assert cfg.model.hidden_dropout == 0 or "hidden-dropout" in name
        assert cfg.model.attention_dropout == 0 or "attention_dropout" in name
        if "chinchilla" in recipe or "data_value" in recipe:
            check_budget(name, cfg, shape.total() if scale == "cpu" else shape.published())
    assert not list(tmp_path.iterdir())


def check_budget(name, cfg, params):
    asked = float(re.search(r"_([\d.]+e\d+)_", name)[1])
    _, samples, warmup = budget.flop_budget(asked, params, cfg.model.seq_length)
    assert (cfg.optim.lr_decay_samples, cfg.optim.lr_warmup_samples) == (samples, warmup), name
    assert flops(cfg, params) == pytest.approx(asked, rel=0.001)
    assert samples - cfg.train.global_batch_size < cfg.train.train_samples <= samples


def test_published_quickstart_and_optimum(dry):
    (ar,) = dry("quickstart/train_ar.sh", SCALE="gpu").values()
    (mdm,) = dry("quickstart/train_mdm.sh", SCALE="gpu").values()
    assert (ar.optim.lr_decay_samples, mdm.optim.lr_decay_samples) == (2_440_244, 24_402_441)
    assert (mdm.optim.lr, mdm.optim.min_lr, mdm.optim.lr_decay_style, mdm.optim.weight_decay) == (2e-4, 2e-5, "cosine", 0.1)
    runs = dry("mdm/example_training_data_value.sh", SCALE="gpu", FLOPS="1e19", EPOCHS="1 10")
    assert list(runs) == ["mdm_data_value_1e19_117M_1ep", "mdm_data_value_1e19_117M_10ep"]
    data = runs["mdm_data_value_1e19_117M_10ep"].data  # a tenth of D of one corpus
    assert (data.train_data_path_file, data.unique_tokens) == ("utils/datapaths/train_c4_full.txt", 1_348_574_076)


def test_evaluation_reads_what_training_saved(dry):
    for kind, num_mc in (("ar", 1), ("mdm", 8)):
        (trained,) = dry(f"quickstart/train_{kind}.sh", SCALE="cpu").values()
        (scored,) = dry(f"quickstart/eval_{kind}.sh", SCALE="cpu").values()
        assert scored.train.load == trained.train.save and scored.log.run_dir != trained.log.run_dir
        assert (scored.train.skip_train, scored.train.eval_interval, scored.train.eval_iters) == (True, 1, 100)
        assert scored.objective.num_mc == num_mc and scored.model == trained.model


def test_repeated_data_at_small_scale(dry):
    runs = dry("arm/example_training_data_value.sh", SCALE="cpu", FLOPS="1e11", EPOCHS="1 10")
    once, ten = (cfg.data.unique_tokens for cfg in runs.values())
    assert once == pytest.approx(10 * ten, rel=1e-3)


@pytest.mark.parametrize("param", ["425M", "1280 5120 128 10 18"])
def test_model_param_and_flops_factor_change_a_run(param, dry):
    runs = dry("mdm/example_training_chinchilla.sh", SCALE="gpu", MODEL_PARAM=param, FLOPS_FACTOR="10")
    assert list(runs) == ["mdm_chinchilla_1e19_425M"]


@pytest.mark.parametrize(
    "recipe, settings, request_",
    [
        (
            "mdm/example_training_chinchilla.sh",
            {"SIZES": "57M 117M", "FLOPS": "6e18 1e19"},
            {"objectives": ("mdm",), "flops": (6e18, 1e19), "sizes": ("57M", "117M"), "scale": "gpu"},
        ),
        (
            "arm/example_training_chinchilla.sh",
            {"SIZES": "CPU_16K", "FLOPS": "6e10"},
            {"objectives": ("ar",), "flops": (6e10,), "sizes": ("CPU_16K",), "scale": "cpu"},
        ),
        (
            "mdm/example_training_data_value.sh",
            {"FLOPS": "1e19"},
            {
                "kind": "data-value",
                "objectives": ("mdm",),
                "flops": (1e19,),
                "sizes": ("117M",),
                "epochs": (1, 2, 4, 10, 20, 50, 100),
                "scale": "gpu",
            },
        ),
        (
            "crossover.sh",
            {"FLOPS": "2e10", "SIZES": "CPU_12K CPU_25K", "UNIQUE": "8000 128000"},
            {
                "kind": "critical-compute",
                "flops": (2e10,),
                "sizes": ("CPU_12K", "CPU_25K"),
                "unique_tokens": (8000, 128000, 10**7),
                "scale": "cpu",
            },
        ),
    ],
)
def test_bash_and_python_plan_the_same_runs(recipe, settings, request_, tmp_path, monkeypatch, dry):
    monkeypatch.chdir(ROOT)
    asked = dry(recipe, RUNS_DIR=str(tmp_path), SCALE=request_["scale"], **settings)
    runs = {run["name"]: run for run in make_plan(Request(**request_)).runs}
    assert sorted(asked) == sorted(runs)
    for name, run in runs.items():
        words = [*run["flags"], "--save", str(tmp_path / name), "--load", str(tmp_path / name)]
        planned = config.parse(words, run["objective"], environ={})
        planned = planned if planned.model.vocab_size else planned.with_vocabulary(budget.GPT2_VOCAB)
        places = {"kill_switch_file": str(tmp_path / name / "kill")}
        assert replace(asked[name], log=None) == replace(planned, log=None, train=replace(planned.train, **places)), name


def test_an_array_set_in_the_recipe(tmp_path, dry):
    recipe = (ROOT / "examples/mdm/example_training_chinchilla.sh").read_text()
    edited = recipe.replace("MODEL_PARAM=${MODEL_PARAM:-}", 'MODEL_PARAM=("${PARAM_425M[@]}")').replace("${FLOPS_FACTOR:-}", "30")
    edited = edited.replace('here=$(dirname "$0")', f"here={shlex.quote(str(ROOT / 'examples/mdm'))}")
    (tmp_path / "recipe.sh").write_text(edited)
    assert list(dry(str(tmp_path / "recipe.sh"), SCALE="gpu")) == ["mdm_chinchilla_3e19_425M"]


def test_sweeps_and_overrides(dry):
    runs = dry(
        "arm/example_training_chinchilla.sh",
        SCALE="gpu",
        SIZES="57M 117M",
        FLOPS="6e18 1e+19",
        LEARNING_RATE="1e-3",
        GRAD_CLIP_NORM="0.5",
        MICRO_BATCH_SIZE="4",
        GLOBAL_BATCH_SIZE="64",
        PAPER="1",
    )
    assert [name.removesuffix("_lr1e-3_clip0.5_gbs64_paper") for name in runs] == [
        f"ar_chinchilla_{budget}_{size}" for budget in ("6e18", "1e19") for size in ("57M", "117M")
    ]
    cfg = next(iter(runs.values()))
    assert (cfg.optim.lr, cfg.optim.min_lr, cfg.optim.clip_grad) == (1e-3, 1e-4, 0.5)
    assert (cfg.train.micro_batch_size, cfg.train.global_batch_size, cfg.model.attention_dropout) == (4, 64, 0.1)
    assert dry("arm/example_training.sh", "--keep-every", "500", SCALE="cpu").popitem()[1].train.keep_every == 500


def test_a_finished_run_is_skipped(tmp_path, dry):
    finished = tmp_path / "runs" / "ar_chinchilla_6e18_57M"
    finished.mkdir(parents=True)
    (finished / "result.json").write_text("{}")
    runs = dry("arm/example_training_chinchilla.sh", SCALE="gpu", SIZES="57M 117M", FLOPS="6e18", RUNS_DIR=str(tmp_path / "runs"))
    assert list(runs) == ["ar_chinchilla_6e18_117M"]


@pytest.mark.parametrize(
    "settings, code, sentence",
    [
        ({"SCALE": "gpu"}, 66, "is missing: prepare the corpus with python tools/preprocess_data.py"),
        ({"SCALE": "tpu"}, 2, "SCALE=tpu must be cpu or gpu"),
        ({"SCALE": "cpu", "NNODES": "a[$(touch runs)]"}, 2, "NNODES=a[$(touch runs)] must be a whole number"),
        ({"SCALE": "gpu", "DRY_RUN": "1", "SIZES": "57M", "GLOBAL_BATCH_SIZE": "x[1]"}, 2, "GLOBAL_BATCH_SIZE=x[1] must be"),
        ({"SCALE": "cpu", "CORPUS": "no such file.jsonl"}, 66, "cannot be read"),
        ({"SCALE": "gpu", "DRY_RUN": "1", "SIZES": "426M"}, 2, "did you mean 425M or 489M?"),
    ],
)
def test_refusals(settings, code, sentence, tmp_path, start):
    done = start("mdm/example_training_chinchilla.sh", cwd=tmp_path, RUNS_DIR="runs", DATA_DIR="data", **settings)
    assert (done.returncode, done.stdout) == (code, "") and sentence in done.stderr and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "quickstart.sh"])
def test_a_recipe_fits_on_a_screen_and_can_be_requeued(recipe):
    text = (ROOT / "examples" / recipe).read_text()
    assert text.count("\n") <= 40 and "#SBATCH --requeue\n" in text and "#SBATCH --signal=B:USR1@120\n" in text


def test_a_small_sweep_runs_and_resumes(tmp_path, start):
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "text.txt").write_text("To be, or not to be, that is the question.\n" * 400)
    settings = dict(SCALE="cpu", CORPUS="text.txt", DATA_DIR="data", RUNS_DIR="runs", SIZES="CPU_5K", FLOPS="5e8", EVAL_ITERS="2")
    first = start("arm/example_training_chinchilla.sh", cwd=folder, **settings)
    assert first.returncode == 0 and (folder / "runs/ar_chinchilla_5e8_CPU_5K/result.json").exists(), first.stderr
    again = start("arm/example_training_chinchilla.sh", cwd=folder, **settings)
    assert again.returncode == 0 and "ar_chinchilla_5e8_CPU_5K is finished: skipped" in again.stderr


def test_a_score_that_does_not_exist_is_known_before_anything_is_trained(start, tmp_path):
    done = start("crossover.sh", SCORES="nelbo elbo", SCALE="cpu", RUNS_DIR=str(tmp_path / "runs"))
    assert done.returncode == 2 and "ConfigError: SCORES elbo: expected nelbo" in done.stderr and not (tmp_path / "runs").exists()
