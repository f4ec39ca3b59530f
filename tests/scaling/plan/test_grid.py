"""The points of a plan: how many, which lengths, which data, which names, and every mistake at once."""

import pytest

from megatron import budget
from megatron.flags import ConfigError
from megatron.scaling.plan.axes import read_axis
from megatron.scaling.plan.grid import EPOCHS, Request, grid, read_unique, trunk_name, unique_cells

SIZES = ("57M", "117M")


def cells(**asked):
    mistakes, notes = [], []
    found = unique_cells(list(grid(Request(**asked).settled(), mistakes)), mistakes, notes)
    assert not mistakes, mistakes
    return found, notes


def refused(**asked):
    mistakes = []
    with pytest.raises(ConfigError) as error:
        unique_cells(list(grid(Request(**asked).settled(), mistakes)), mistakes, [])
        raise ConfigError([sentence for _, sentence in mistakes])
    return str(error.value)


def test_a_grid_is_a_product():
    found, _ = cells(flops=(1e18, 1e19), sizes=SIZES, seeds=(1, 2, 3), lr="grid:1e-4,2e-4", batch_size="grid:128,256")
    assert len(found) == len({cell.name for cell in found}) == 2 * 2 * 2 * 3 * 2 * 2
    assert found[0].name == "ar_chinchilla_1e18_57M_lr0.0001_gbs128_seed1"


def test_lengths_are_those_of_budget_py():
    found, _ = cells(flops=(6e18, 1e20), sizes=SIZES, objectives=("mdm",))
    for cell in found:
        params = cell.shape.published()
        assert (cell.samples, cell.warmup) == budget.flop_budget(cell.budget["flops"], params)[1:]
    found, _ = cells(tokens=(10**9,), sizes=SIZES)
    assert {(cell.samples, cell.warmup) for cell in found} == {budget.epoch_budget(10**9, 1)[1:]}
    (cell,) = cells(unique_tokens=(99952399,), epochs=(50,), sizes=("140M",), objectives=("ar",), train_data=("x",))[0]
    assert cell.samples == 2_440_244 and (cell.data, cell.first) == (("x",), 99952399)


def test_epochs_at_fixed_compute_and_at_fixed_data():
    fixed_compute, _ = cells(kind="data-value", flops=(1e19,), sizes=("117M",), objectives=("mdm",), train_data=("x",))
    assert [cell.name.rpartition("_")[2] for cell in fixed_compute] == [f"{e}ep" for e in EPOCHS]
    assert len({cell.samples for cell in fixed_compute}) == 1
    tokens = budget.flop_budget(1e19, fixed_compute[0].shape.published())[0]
    assert [cell.unique for cell in fixed_compute] == [tokens // e for e in EPOCHS]
    fixed_data, _ = cells(kind="data-value", unique_tokens=(10**8,), sizes=("117M",), objectives=("ar",), train_data=("x",))
    assert [cell.samples for cell in fixed_data] == [10**8 * e // 2048 for e in EPOCHS]
    assert len({(cell.data, cell.first) for cell in fixed_data}) == 1


def test_one_size_at_the_optimum_is_the_published_one():
    found, _ = cells(kind="data-value", flops=(1e19,), epochs=(1, 10))
    assert [cell.size for cell in found] == ["217M", "217M", "117M", "117M"]
    assert {cell.data for cell in found} == {("utils/datapaths/train_c4_full.txt",)}  # one corpus for all
    assert [cell.first for cell in found] == [cell.unique for cell in found] == [7662725892, 766272589, 13485740760, 1348574076]
    found, _ = cells(kind="data-value", flops=(1e19,), epochs=(1, 10), train_data=("data/gpt2tok_c4_{subset}_text_document",))
    assert [cell.data[0] for cell in found] == [
        f"data/gpt2tok_c4_{name}_text_document" for name in ("7B6", "7B6_10ep", "13B5", "13B5_10ep")
    ]


def test_critical_compute_has_both_objectives_over_every_u_and_reads_large_ones_once():
    found, notes = cells(
        kind="critical-compute", flops=(1e18,), unique_tokens=(10**7, 10**8, 10**12, 10**13), sizes=("57M",), train_data=("x",)
    )
    assert [cell.name for cell in found] == [
        f"{objective}_crossover_1e18_57M_{part}" for objective in ("ar", "mdm") for part in ("u10000000", "u100000000", "1ep")
    ]
    assert len(notes) == 1 and "2 runs" in notes[0]


def test_names_by_a_template_and_published_subsets_by_their_own():
    asked = dict(kind="critical-compute", flops=(1e18, 2e18), unique_tokens=(None, 99952399), sizes=("57M",), objectives=("mdm",))
    found, _ = cells(**asked, name="q_{objective}_{flops}_{size}_{part}_x", lr="5e-4")
    assert [cell.name for cell in found] == [f"q_mdm_{c}_57M_{part}_x" for c in ("1e18", "2e18") for part in ("1ep", "u100M")]
    assert [cell.unique for cell in found[:2]] == [budget.flop_budget(1e18, found[0].shape.published())[0], 99952399]
    trunks = [trunk_name(Request(**asked, name="{objective}_{flops}_{size}_{part}").settled(), cell) for cell in found]
    assert len(set(trunks)) == 3 and trunks[1] == "mdm_trunk_57M_u100M_trunk"


def test_more_unique_tokens_than_the_corpus_has(corpus):
    common = dict(scale="cpu", flops=(1e9,), sizes=("CPU_5K",), train_data=(corpus,))
    assert "has 8192 tokens, less than the 20000" in refused(kind="critical-compute", unique_tokens=(20_000,), **common)
    once, *_ = cells(kind="data-value", epochs=(1, 10), **common)[0]
    assert once.unique == 8192  # the recipes cap what nobody asked for


def test_wsd_has_the_same_sizes_at_every_budget():
    found, _ = cells(flops=(1e18, 1e20), schedule="wsd", objectives=("ar",))
    assert len(found) == 10 and len({cell.size for cell in found}) == 5


@pytest.mark.parametrize(
    "asked, sentence",
    [
        (dict(), "how long are the runs"),
        (dict(flops=(1e18,), tokens=(10**9,)), "give one"),
        (dict(unique_tokens=(10**8,), sizes=SIZES), "alone says nothing of the length"),
        (dict(flops=(1e18,), unique_tokens=(10**8,), epochs=(2,)), "leave one out"),
        (dict(kind="critical-compute", flops=(1e18,)), "needs --flops and --unique-tokens"),
        (dict(tokens=(10**9,)), "--sizes auto needs --flops"),
        (dict(flops=(1e18,), sizes=("auto", "57M")), "stands alone"),
        (dict(flops=(1e18,), lr="rule:none"), "--lr rule:none: the rules are"),
        (dict(flops=(1e18,), batch_size="x"), "--batch-size x"),
        (dict(flops=(1e18,), schedule="wsd", lr="rule:step-law"), "share one"),
        (dict(flops=(1e18,), schedule="wsd", decay_share=1.5), "between 0 and 1"),
        (dict(flops=(1e18,), sizes=("426M", "0 0 0 0 0")), "did you mean 425M"),
        (dict(flops=(1e18,), name="../x"), "--name ../x"),
        (dict(flops=(1e18,), flags=("--output-dir", "x", "--load", "y")), "--load, --run-dir: where runs live"),
        (dict(flops=(1e18,), epochs=(2,), flags=("--unique-tokens", "5M")), "give it before the --"),
        (dict(flops=(1e18,), name="{size}_{sise}"), "{sise} is none of"),
        (dict(flops=(1e18,), sizes=SIZES, name="x{flops}"), "two runs would have this name"),
        (dict(unique_tokens=(None,), epochs=(2,), sizes=SIZES), "--unique-tokens full means"),
        (dict(flops=(1e18,), sample=2), "give one"),
        (dict(flops=(1e18,), vary=(read_axis("lr=1e-3,2e-3"),), sample=3), "the axes have 2 points"),
        (dict(flops=(1e18,), vary=(read_axis("lr=1e-3,2e-3"),), lr="1e-3"), "--lr and --vary lr both set"),
        (dict(flops=(1e18,), vary=(read_axis("clip-grad=1"),), flags=("--clip-grad", "2")), "both set it"),
        (dict(flops=(1e18, 1e18), sizes=SIZES), "two runs would have this name"),
        (dict(flops=(1e18,), sizes=SIZES, epochs=(10**7,), train_data=("x",)), "less than one sample"),
    ],
)
def test_refusals(asked, sentence):
    assert sentence in refused(**asked)


def test_every_mistake_is_listed():
    assert len(refused(flops=(1e18,), tokens=(1,), lr="x", batch_size="y").splitlines()) == 3


def test_unique_tokens_are_published_subsets_at_their_scale():
    assert (read_unique("100M", "gpu"), read_unique("100M", "cpu"), read_unique("5e5", "gpu")) == (99952399, 10**8, 500_000)
    for text in ("0", "1.5", "inf", "x"):
        with pytest.raises(ValueError, match=f"--unique-tokens {text}: expected a whole number"):
            read_unique(text, "cpu")
