"""Flags of training beside the axes: columns, refusals, groups, and what choosing the best does to a loss."""

import itertools
import json

import numpy as np
import pytest

from megatron.config import declared
from megatron.errors import BadData, Mismatch
from megatron.scaling.table.covariates import FLAGS, FOLLOWING, choose_best, expected_minimum, read_covariates
from megatron.scaling.table.table import read_table

CONVENTIONS = {"tokenizer": "t", "eval_slice": "s", "params_convention": "total", "flops_convention": "6ND"}
RESULT = {"objective": "mdm", "bound": "bound", "lr_decayed": True, **CONVENTIONS}


@pytest.fixture
def folders(tmp_path):
    """Write run directories: each a dict of flags of training, with its N, D and loss."""

    def write(runs):
        for number, flags in enumerate(runs):
            stated = {"params": 1e6, "tokens": 2e7, "loss": 3.0} | flags
            folder = tmp_path / "runs" / f"r{number}"
            folder.mkdir(parents=True)
            axes = {name: stated.pop(name) for name in ("params", "tokens", "loss")}
            config: dict = {}
            for name, value in stated.items():
                config.setdefault(declared()[name][0], {})[name] = value
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "result.json").write_text(json.dumps(RESULT | axes))
        return [tmp_path / "runs"]

    return write


@pytest.mark.parametrize(
    "name, values",
    [
        ("weight_decay", (0.1, 3.0)),
        ("hidden_dropout", (0.0, 0.1)),
        ("lr_decay_style", ("constant", "cosine")),
        ("adam_beta2", (0.95, 0.999)),
        ("lr", (1e-3, 2e-3)),
        ("global_batch_size", (64, 256)),
        ("mdm_t_sampling", ("stratified", "uniform")),
        ("sdd_k", ([1, 2, 4], [1, 8])),
        ("train_data_path", (["data/c4_text"], ["data/wiki_text"])),
    ],
)
def test_runs_that_differ_beside_the_axes_are_not_pooled(folders, name, values):
    """Two sizes, of each of two settings one run: what a pooled fit would take for replicates."""
    paths = folders([{"params": size, name: value} for size, value in itertools.product((1e6, 4e6), values)])
    flag = "batch-size" if name == "global_batch_size" else name.replace("_", "-")
    with pytest.raises(Mismatch, match=f"differ in {flag}: .* in r0.*; .* in r1.*--by {flag}.*--best-of {flag}.*--allow {flag}"):
        read_table(paths)
    table = read_table(paths, allow=[flag])
    values = [",".join(map(str, value)) if isinstance(value, list) else value for value in values]
    assert table.choices["varied"] == {flag.replace("-", "_"): list(values)}
    assert {row[flag.replace("-", "_")] for row in table.rows} == set(values)
    apart = read_table(paths, by=[flag])
    assert len(apart.objectives) == 2 and all(one.startswith(f"mdm {flag}=") for one in apart.objectives)


def test_seed_layout_and_what_follows_size_are_no_differences(folders):
    rule = [{"params": size, "lr": 1e-3 / size, "global_batch_size": int(size // 1e4), "num_layers": 2} for size in (1e6, 4e6)]
    runs = [
        one | {"seed": seed, "micro_batch_size": seed, "tensor_model_parallel_size": seed, "padded_vocab_size": 128 * seed}
        for one, seed in itertools.product(rule, (1, 2))
    ]
    table = read_table(folders(runs))
    assert len(table) == 4 and set(table.choices["varied"]) == {"lr", "batch_size"}


def test_every_flag_of_an_experiment_counts_and_an_old_config_has_the_default():
    assert {"weight_decay", "hidden_dropout", "bf16", "seq_length", "optimizer"} <= set(FLAGS) and FOLLOWING <= set(FLAGS)
    assert not {"seed", "objective", "num_layers", "train_tokens", "micro_batch_size", "save"} & set(FLAGS)
    assert read_covariates({}, {}) == {}
    assert read_covariates({"optim": {"lr": 0.5}}, {})["weight_decay"] == declared()["weight_decay"][1].default


def test_a_corpus_may_follow_the_axes_wherever_it_lies_and_weights_taken_over_are_a_difference(folders, tmp_path):
    paths = folders([{"params": size, "train_data_path": [f"/{size:g}/c4_{size:g}/text"]} for size in (1e6, 4e6)])
    assert read_table(paths).choices["varied"] == {"train_data_path": ["c4_1e+06/text", "c4_4e+06/text"]}
    facts = {"resumes": [{"step": 0, "from": "base/step-00000100"}, {"step": 7, "from": "r1/step-00000007"}]}
    (tmp_path / "runs" / "r1" / "run.json").write_text(json.dumps(facts))
    with pytest.raises(Mismatch, match="differ in finetune: False in r0; True in r1"):
        read_table(paths)


def test_columns_of_a_table_count_too_and_empty_ones_say_nothing(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss,weight_decay,note\n1e6,2e7,3,0.1,a\n4e6,2e7,2.9,,b\n4e6,4e7,2.8,0.1,c\n")
    assert len(read_table([path])) == 3
    path.write_text(path.read_text() + "8e6,2e7,2.7,0.3,d\n")
    with pytest.raises(Mismatch, match="weight-decay: 0.1 in runs:2, runs:4; 0.3 in runs:5"):
        read_table([path])
    for flag, said in (("weight-dekay", "no such flag"), ("hidden-dropout", "do not differ in it")):
        with pytest.raises(BadData, match=said):
            read_table([path], by=[flag])
    assert len(read_table([path], by=["note"], allow=["weight-decay"]).objectives) == 4


def test_the_best_setting_stands_alone_with_all_of_its_seeds(folders):
    losses = {(0.1, 1): 3.00, (0.1, 2): 3.10, (0.3, 1): 2.99, (0.3, 2): 3.15, (1.0, 1): 3.30, (1.0, 2): 3.20}
    runs = [{"weight_decay": decay, "seed": seed, "loss": loss} for (decay, seed), loss in losses.items()]
    runs += [{"weight_decay": decay, "seed": 1, "loss": loss, "params": 4e6} for decay, loss in ((0.1, 2.9), (1.0, 2.8))]
    table = read_table(folders(runs), best_of=["weight-decay"])
    kept = [(row["params"], row["weight_decay"], row["loss"]) for row in table.rows]
    assert kept == [(1e6, 0.1, 3.0), (1e6, 0.1, 3.1), (4e6, 1.0, 2.8)]
    assert len(table.dropped) == 5 and all("has a lower loss" in row["reason"] for row in table.dropped)
    (said,) = table.warnings
    scatter = np.sqrt((0.1**2 + 0.16**2 + 0.1**2) / 2 / 3)  # of the pairs of seeds
    assert "2 to 3 settings" in said and f"{scatter:.2g} between equal runs (3 degrees of freedom" in said
    assert f"up to {0.8463 * scatter:.2g} " in said  # one seed at the second place


def test_the_error_of_choosing_is_that_of_the_least_of_equal_settings():
    for count, known in ((1, 0.0), (2, -0.564190), (3, -0.846284), (5, -1.162964), (10, -1.538753)):  # Harter 1961, table 1
        assert expected_minimum(count) == pytest.approx(known, abs=1e-5)
    random, sigma, chosen = np.random.default_rng(0), 0.02, []
    place = {"objective": "ar", "params": 1e6, "tokens": 2e7, "unique_tokens": 2e7, "loss_se_noise": sigma}
    for _ in range(400):
        rows = [
            place | {"run": str(decay), "weight_decay": decay, "loss": 3 + sigma * random.standard_normal()}
            for decay in (0.1, 0.3, 1.0, 3.0)
        ]
        (best,), _, (said,) = choose_best(rows, ["weight-decay"])
        chosen.append(best["loss"])
    assert np.mean(chosen) - 3 == pytest.approx(sigma * expected_minimum(4), rel=0.12)
    assert f"up to {-sigma * expected_minimum(4):.2g} " in said and "stated errors of the evaluation alone" in said


def test_the_rate_at_the_end_is_a_share_of_the_peak(folders):
    runs = [{"lr": lr, "min_lr": lr / 10, "loss": 3 + lr, "params": size} for size in (1e6, 4e6) for lr in (1e-3, 2e-3)]
    paths = folders(runs)
    assert {row["lr"] for row in read_table(paths, best_of=["lr"]).rows} == {1e-3}
    (paths[0] / "r0" / "config.json").write_text(json.dumps({"optim": {"lr": 1e-3, "min_lr": 5e-4}}))
    with pytest.raises(Mismatch, match="differ in min-lr"):
        read_table(paths, allow=["lr"])


def test_the_best_of_each_part_is_chosen_within_it(folders):
    runs = [
        {"weight_decay": decay, "lr": rate, "loss": 3 + abs(rate - best), "params": size}
        for size in (1e6, 4e6)
        for decay, best in ((0.1, 1e-3), (0.3, 2e-3))
        for rate in (1e-3, 2e-3)
    ]
    table = read_table(folders(runs), by=["weight-decay"], best_of=["lr"])
    found = sorted({(row["objective"], row["lr"]) for row in table.rows})
    assert found == [("mdm weight-decay=0.1", 1e-3), ("mdm weight-decay=0.3", 2e-3)] and len(table) == 4
