"""The published tables and arithmetic, number by number."""

import subprocess
import sys

import pytest

from megatron import budget

# name, SwiGLU width, published P, published without the embedding, exact without the embedding, exact total
TABLE = [
    ("7M", 320, 7_000_448, 567_552, 566_144, 7_005_056),
    ("14M", 576, 13_614_048, 2_356_480, 2_353_120, 13_621_216),
    ("20M", 768, 19_459_296, 4_985_280, 4_611_168, 19_098_720),
    ("35M", 1152, 36_637_888, 14_122_752, 11_704_000, 34_240_192),
    ("44M", 1344, 50_659_840, 24_928_256, 24_912_384, 50_668_032),
    ("57M", 1536, 64_810_944, 35_862_912, 35_842_752, 64_817_856),
    ("74M", 1664, 80_535_680, 48_371_200, 48_346_240, 80_540_800),
    ("90M", 1664, 95_047_040, 62_882_560, 62_849_920, 95_044_480),
    ("106M", 1664, 109_558_400, 77_393_920, 77_353_600, 109_548_160),
    ("117M", 2048, 123_587_328, 84_989_952, 84_953_856, 123_587_328),
    ("140M", 2048, 144_834_816, 106_237_440, 106_192_128, 144_825_600),
    ("163M", 2048, 166_082_304, 127_484_928, 127_430_400, 166_063_872),
    ("175M", 2368, 179_175_808, 134_145_536, 134_096_256, 179_168_640),
    ("196M", 2368, 198_339_456, 153_309_184, 153_252_736, 198_325_120),
    ("217M", 2368, 217_503_104, 172_472_832, 172_409_216, 217_481_600),
    ("251M", 2688, 250_790_912, 199_327_744, 199_263_232, 250_774_528),
    ("278M", 2688, 275_706_880, 224_243_712, 224_171_008, 275_682_304),
    ("306M", 2688, 300_622_848, 249_159_680, 249_078_784, 300_590_080),
    ("425M", 3392, 416_887_040, 352_558_080, 352_467_200, 416_856_320),
    ("489M", 3392, 475_646_720, 411_317_760, 411_211_520, 475_600_640),
    ("509M", 3712, 495_882_112, 425_120_256, 425_020_288, 495_848_320),
    ("552M", 3392, 534_406_400, 470_077_440, 469_955_840, 534_344_960),
    ("587M", 3712, 566_735_488, 495_973_632, 495_856_768, 566_684_800),
    ("632M", 4096, 615_289_344, 538_094_592, 537_979_392, 615_246_336),
    ("664M", 3712, 637_588_864, 566_827_008, 566_693_248, 637_521_280),
    ("724M", 4096, 700_251_648, 623_056_896, 622_923_264, 700_190_208),
    ("816M", 4096, 785_213_952, 708_019_200, 707_867_136, 785_134_080),
    ("893M", 4736, 856_391_424, 766_330_880, 766_189_312, 856_334_080),
    ("1018M", 4736, 971_341_056, 881_280_512, 881_117_440, 971_262_208),
    ("1143M", 4736, 1_086_290_688, 996_230_144, 996_045_568, 1_086_190_336),
    ("1266M", 5440, 1_207_609_344, 1_104_683_008, 1_104_504_832, 1_207_527_424),
    ("1424M", 5760, 1_353_552_512, 1_244_193_280, 1_244_003_968, 1_353_465_472),
    ("1429M", 5440, 1_358_247_936, 1_255_321_600, 1_255_118_848, 1_358_141_440),
    ("1593M", 5440, 1_508_886_528, 1_405_960_192, 1_405_732_864, 1_508_755_456),
    ("1609M", 5760, 1_523_215_232, 1_413_856_000, 1_413_640_576, 1_523_102_080),
    ("1731M", 6144, 1_644_947_712, 1_529_155_584, 1_528_936_704, 1_644_837_120),
    ("1794M", 5760, 1_692_877_952, 1_583_518_720, 1_583_277_184, 1_692_738_688),
    ("2007M", 6144, 1_899_806_976, 1_784_014_848, 1_783_759_104, 1_899_659_520),
    ("2283M", 6144, 2_154_666_240, 2_038_874_112, 2_038_581_504, 2_154_481_920),
    ("2298M", 6784, 2_165_260_800, 2_036_602_880, 2_036_339_200, 2_165_117_440),
    ("2639M", 6784, 2_478_584_320, 2_349_926_400, 2_349_621_760, 2_478_400_000),
    ("2980M", 6784, 2_791_907_840, 2_663_249_920, 2_662_904_320, 2_791_682_560),
    ("3530M", 7168, 3_257_020_032, 3_121_929_216, 3_121_544_832, 3_256_761_984),
    ("3802M", 7488, 3_561_341_696, 3_419_817_984, 3_419_415_296, 3_561_071_360),
    ("4084M", 7808, 3_879_229_312, 3_731_272_704, 3_730_851_712, 3_878_946_688),
    ("4516M", 8192, 4_231_916_544, 4_077_527_040, 4_077_087_744, 4_231_621_632),
    ("6796M", 9536, 6_337_433_088, 6_157_312_000, 6_156_742_144, 6_337_031_680),
    ("9293M", 10880, 8_640_581_632, 8_434_728_960, 8_434_044_928, 8_640_090_112),
    ("11452M", 11584, 10_888_960_768, 10_670_242_304, 10_459_975_424, 10_678_898_432),
    ("12295M", 12288, 11_444_175_360, 11_212_591_104, 11_211_784_704, 11_443_585_536),
    ("12569M", 12288, 12_208_670_208, 11_977_085_952, 11_532_676_608, 11_764_477_440),
    ("13735M", 12928, 13_559_951_616, 13_315_501_568, 12_612_308_224, 12_856_986_880),
    ("14940M", 13312, 14_905_348_224, 14_654_465_280, 13_776_816_768, 14_027_934_336),
    ("16183M", 13632, 15_028_280_320, 14_770_964_480, 14_770_007_040, 15_027_563_520),
]
EPOCH_TOKENS = """
    25M=24743247 50M=49874872 100M=99952399 200M=199836911 500M=499791318 12B=11989951744 12B_2ep=5994199162
    12B_4ep=2996211869 12B_10ep=1197248201 12B_20ep=599002480 12B_50ep=239303648 12B_100ep=119915151 23B=22988018799
    23B_2ep=11490703400 23B_4ep=5744951068 23B_10ep=2296463795 23B_20ep=1147274152 23B_50ep=459770397 23B_100ep=229473764
    40B=39984781511 40B_2ep=19993255532 40B_4ep=9992112872 40B_10ep=3995476798 40B_20ep=1995252321 40B_100ep=399354803
    7B6=7659172026 7B6_2ep=3828933780 7B6_4ep=1912366531 7B6_10ep=765785518 7B6_20ep=382715500 7B6_50ep=153236635
    7B6_100ep=76353846 13B5=13483058828 13B5_2ep=6740277937 13B5_4ep=3369504102 13B5_10ep=1346088411 13B5_20ep=673890685
    13B5_50ep=269182389 13B5_100ep=134797413 23B8=23799431827 23B8_2ep=11896289461 23B8_4ep=5948135698 23B8_10ep=2377968564
    23B8_20ep=1188094510 23B8_100ep=237404226 SLIM_1B5=1463840091 SLIM_1B=999536648 SLIM_100M=100555177 EMOTION=9605616
"""


@pytest.mark.parametrize("name, width, published, published_body, exact_body, exact", TABLE, ids=[row[0] for row in TABLE])
def test_counts_of_every_published_size(name, width, published, published_body, exact_body, exact):
    found, shape = budget.find_size(name)
    assert (found, shape.ffn_hidden_size) == (name, width)
    assert shape.published() == published
    assert shape.published() - budget.GPT2_VOCAB * shape.hidden_size == published_body
    assert shape.non_embedding() == exact_body
    assert shape.total() == exact


def test_the_table_has_no_other_published_size():
    assert [name for name in budget.sizes() if not name.startswith("CPU_")] == [row[0] for row in TABLE]


def test_small_sizes_are_named_by_their_parameters():
    small = [name for name in budget.sizes() if name.startswith("CPU_")]
    assert small == [f"CPU_{round(budget.find_size(name, 257)[1].total() / 1000)}K" for name in small]


def test_tokens_of_every_subset():
    assert budget.epoch_tokens() == {k: int(v) for k, v in (pair.split("=") for pair in EPOCH_TOKENS.split())}


@pytest.mark.parametrize(
    "flops, name, tokens, samples, steps",
    [
        (1e19, "217M", 7.663e9, 3_741_565, 14_615),
        (1e19, "117M", 1.349e10, 6_584_834, 25_722),
        (3e19, "425M", 1.199e10, 5_856_278, 22_876),
        (3e19, "217M", 2.299e10, 11_224_696, 43_846),
        (1e20, "724M", 2.380e10, 11_621_566, 45_397),
        (1e20, "425M", 3.998e10, 19_520_925, 76_254),
    ],
)
def test_published_flop_budgets(flops, name, tokens, samples, steps):
    found_tokens, found_samples, warmup = budget.flop_budget(flops, budget.find_size(name)[1].published())
    assert found_tokens == pytest.approx(tokens, rel=1e-3)
    assert (found_samples, round(found_samples / 256), warmup) == (samples, steps, round(samples / 100))


def test_a_short_flop_budget_warms_up_for_100_samples():
    assert budget.flop_budget(1e15, 7_000_448)[1:] == (11_625, 116)
    assert budget.flop_budget(1e14, 7_000_448)[1:] == (1_162, 100)


@pytest.mark.parametrize(
    "data, epochs, tokens, samples, steps", [("100M", 50, 4.998e9, 2_440_244, 9_532), ("100M", 500, 4.998e10, 24_402_441, 95_322)]
)
def test_published_epoch_budgets(data, epochs, tokens, samples, steps):
    found_tokens, found_samples, warmup = budget.epoch_budget(budget.find_tokens(data), epochs)
    assert found_tokens == pytest.approx(tokens, rel=1e-3)
    assert (found_samples, round(found_samples / 256), warmup) == (samples, steps, samples // 100)


def test_five_numbers_are_a_size():
    assert budget.find_size("1280 5120 128 10 18") == budget.find_size("1280,5120,128,10,18") == budget.find_size("425M")
    assert budget.find_size("100 400 20 5 3")[0] == "3x100"


def cli(*argv):
    command = [sys.executable, "-m", "megatron.budget", *argv]
    return subprocess.run(command, cwd=budget.TABLES.parent, capture_output=True, text=True)


def test_command_line():
    fields = ["train_samples", "warmup_samples", "flops"]
    assert cli("--model", "217M", "--flops", "1e19", "--field", *fields).stdout == "3741565 37416 1e19\n"
    assert cli("--model", "140M", "--tokens", "100M", "--epochs", "50", "--field", "flops").stdout == "4.34298e18\n"
    assert "params_total=217481600\n" in cli("--model", "217M").stdout


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--model", "426M"], "no size '426M' in utils/model_params.sh; did you mean 425M or 489M?"),
        (["--model", "CPU_25"], "did you mean CPU_25K"),
        (["--model", "7M", "--tokens", "7B"], "did you mean 7B6"),
        (["--model", "425M", "--flops", "1e9"], "less than one sample"),
        (["--model", "425M", "--flops", "-1"], "positive number"),
        (["--model", "0 0 0 0 0"], "must be positive"),
    ],
)
def test_a_mistake_is_a_sentence(argv, sentence):
    done = cli(*argv)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_floor_zero_imports_no_torch():
    code = "import sys, megatron.budget; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=budget.TABLES.parent).returncode == 0


def test_executed_flops_are_what_a_step_computes():
    """By hand: 2 layers, h 8, w 8, f 16, V 32, s 4: blocks 2 (4 64 + 3 128) = 1280 weights, head 256."""
    shape = budget.Shape(num_layers=2, hidden_size=8, num_attention_heads=2, kv_channels=4, ffn_hidden_size=16, vocab_size=32)
    assert shape.flops_per_token(4) == 6 * (1280 + 256) + 12 * 2 * 8 * 4
    assert shape.executed_flops_per_token(4, 1.0, causal=False) == shape.flops_per_token(4)
    assert shape.executed_flops_per_token(4, 0.5, causal=False) == 6 * (1280 + 128) + 12 * 2 * 8 * 4
    assert shape.executed_flops_per_token(4, 1.0, causal=True) == 6 * (1280 + 256) + 12 * 2 * 8 * 2.5
    twice = 6 * (2 * 1280 + 256) + 12 * 2 * 8 * 2 * 8  # of blocks: 8 places read for 4 tokens, and each sees 8
    assert shape.flops_per_token(4, reads=2) == shape.executed_flops_per_token(4, 1.0, causal=False, reads=2) == twice
    again = [shape.executed_flops_per_token(4, 0.0, False, kind) - 6 * 1280 - 3 * 256 for kind in ("selective", "full")]
    assert again == [256, 256 + 2 * 1280]
