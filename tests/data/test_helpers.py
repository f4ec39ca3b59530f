"""The compiled loops against their Python twins, also under the address and undefined-behaviour sanitizers."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from megatron.data import blend, gpt_dataset, reference_order

ROOT = Path(__file__).resolve().parents[2]
helpers = pytest.importorskip("megatron.data._helpers", reason="megatron.data._helpers is not built: no compiler at install time")


def brute_force(weights, num_samples):
    """Megatron's rule, sample by sample, in plain Python."""
    counts, ids, positions = [0] * len(weights), [], []
    for i in range(num_samples):
        errors = [w * max(i, 1) - c for w, c in zip(weights, counts, strict=True)]
        best = errors.index(max(errors))
        ids.append(best)
        positions.append(counts[best])
        counts[best] += 1
    return counts, ids, positions


def fill(function, weights, num_samples, first=0, counts=None):
    counts = np.zeros(len(weights), np.int64) if counts is None else counts.copy()
    ids, positions = np.empty(num_samples, np.int32), np.empty(num_samples, np.int64)
    function(np.array(weights), counts, first, ids, positions)
    return counts, ids, positions


WEIGHTS = [
    [1.0],
    [0.5, 0.5],
    [0.1, 0.2, 0.7],
    [1 / 3, 1 / 3, 1 / 3],
    [0.999, 0.001],
    (np.arange(1, 40) / np.arange(1, 40).sum()).tolist(),
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_compiled_python_and_brute_force_agree(weights):
    expected = brute_force(weights, 3000)
    for function in (helpers.fill_blend, blend.fill_blend):
        for found, right in zip(fill(function, weights, 3000), expected, strict=True):
            assert found.tolist() == right


@pytest.mark.parametrize("function", [helpers.fill_blend, blend.fill_blend])
def test_blocks_carry_on(function):
    weights = [0.15, 0.6, 0.25]
    whole = fill(function, weights, 1000)
    counts, ids, positions = fill(function, weights, 377)
    counts, more_ids, more_positions = fill(function, weights, 623, 377, counts)
    assert np.array_equal(whole[0], counts)
    assert np.array_equal(whole[1], np.concatenate([ids, more_ids]))
    assert np.array_equal(whole[2], np.concatenate([positions, more_positions]))


GOOD = {
    "weights": np.array([0.5, 0.5]),
    "counts": np.zeros(2, np.int64),
    "first": 0,
    "dataset_ids": np.empty(4, np.int32),
    "positions": np.empty(4, np.int64),
}


@pytest.mark.parametrize(
    "bad",
    [
        {"weights": np.array([])},
        {"weights": np.array([1.0])},
        {"weights": np.array([0.5, np.nan])},
        {"weights": np.array([1.5, -0.5])},
        {"weights": np.eye(2)},
        {"counts": np.array([0, -1])},
        {"counts": np.array([0, 2**63 - 1])},
        {"first": -1},
        {"first": 2**63 - 1},
        {"dataset_ids": np.empty(3, np.int32)},
        {"positions": np.empty((2, 2), np.int64)},
    ],
)
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="fill_blend"):
        helpers.fill_blend(**(GOOD | bad))


@pytest.mark.parametrize(
    "bad",
    [
        {"weights": np.array([0.5, 0.5], np.float32)},
        {"counts": np.zeros(2, np.int32)},
        {"positions": np.empty(8, np.int64)[::2]},
        {"dataset_ids": np.empty(4, np.int64)},
    ],
)
def test_arrays_are_never_converted(bad):
    with pytest.raises(TypeError):
        helpers.fill_blend(**(GOOD | bad))


def test_read_only_arrays_are_refused():
    frozen = np.zeros(2, np.int64)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        helpers.fill_blend(**(GOOD | {"counts": frozen}))


# build_sample_idx

SAMPLE_IDX = [("int32", np.int32), ("int64", np.int64)]


def twins(module, sizes, documents, s, num_samples):
    """What each makes of it: arrays, or None for a refusal."""
    found = []
    for name, dtype in SAMPLE_IDX:
        for function, given in ((getattr(module, f"build_sample_idx_{name}"), ()), (reference_order.build_sample_idx, (dtype,))):
            try:
                found.append(function(sizes, documents, s, num_samples, *given))
                assert found[-1].dtype == dtype and found[-1].shape == (num_samples + 1, 2)
            except ValueError:
                found.append(None)
    return found


def agree(found):
    return all(one is None for one in found) or all(one is not None and np.array_equal(one, found[0]) for one in found)


def random_case(rng):
    """Sizes with empty ones among them, a document index, and a sample length; some samples too many now and then."""
    sizes = rng.integers(0, rng.choice([2, 5, 40]), rng.integers(1, 30)).astype(np.int32)
    documents = rng.integers(0, len(sizes), rng.integers(0, 60)).astype(np.int32)
    s = int(rng.integers(1, 12))
    return sizes, documents, s, max(0, (int(sizes[documents].sum()) - 1) // s + int(rng.integers(-2, 3)))


def test_sample_idx_and_its_twin_agree():
    rng, refused = np.random.default_rng(0), 0
    for _ in range(500):
        found = twins(helpers, *random_case(rng))
        assert agree(found)
        refused += found[0] is None
    assert 50 < refused < 350


def test_the_twin_walks_blocks_of_documents(monkeypatch):
    monkeypatch.setattr(reference_order, "SAMPLE_BLOCK", 7)
    rng = np.random.default_rng(1)
    assert all(agree(twins(helpers, *random_case(rng))) for _ in range(200))


def test_no_overflow_at_2_to_the_33_tokens():
    sizes = np.array([2**31 - 1, 0, 2**31 - 1, 12345], np.int32)
    documents = np.tile(np.arange(4, dtype=np.int32), 3)
    s, total = 2**20 + 7, 3 * int(sizes.sum(dtype=np.int64))
    num_samples = (total - 1) // s
    found = twins(helpers, sizes, documents, s, num_samples)
    assert agree(found) and total > 2**33
    begins = np.concatenate([[0], sizes[documents].cumsum(dtype=np.int64)])[:-1]
    assert np.array_equal(begins[found[0][:, 0]] + found[0][:, 1], np.arange(num_samples + 1, dtype=np.int64) * s)


SIZES, DOCUMENTS = np.array([3, 0, 4], np.int32), np.array([2, 1, 0], np.int32)
HOSTILE = [
    (SIZES, np.array([3], np.int32), 1, 1),
    (SIZES, np.array([-1], np.int32), 1, 1),
    (SIZES, np.array([-(2**31)], np.int32), 1, 1),
    (np.array([-1], np.int32), np.zeros(9, np.int32), 1, 3),
    (np.array([-(2**31)], np.int32), np.zeros(9, np.int32), 1, 3),
    (SIZES[:0], DOCUMENTS, 1, 1),
    (SIZES, DOCUMENTS[:0], 1, 1),
    (SIZES, DOCUMENTS, 0, 1),
    (SIZES, DOCUMENTS, -5, 1),
    (SIZES, DOCUMENTS, 1, -1),
    (SIZES, DOCUMENTS, 1, 7),
    (SIZES, DOCUMENTS, 7, 1),
    (SIZES, DOCUMENTS, 2**63 - 1, 1),
    (SIZES, np.array([1, 1], np.int32), 1, 1),
]
ENDLESS = [(SIZES, DOCUMENTS, 1, 2**63 - 1), (SIZES, DOCUMENTS, 2**62, 2**62), (SIZES, DOCUMENTS, 1, 2**61)]


@pytest.mark.parametrize("case", HOSTILE)
def test_sample_idx_refuses_what_would_read_out_of_range(case):
    assert twins(helpers, *case) == [None] * 4


@pytest.mark.parametrize("case", ENDLESS)
def test_sample_idx_refuses_before_it_asks_for_memory(case):
    for name, _ in SAMPLE_IDX:
        with pytest.raises(ValueError, match="build_sample_idx"):
            getattr(helpers, f"build_sample_idx_{name}")(*case)


@pytest.mark.parametrize(
    "bad", [(SIZES.astype(np.int64), DOCUMENTS), (SIZES, DOCUMENTS.astype(np.int64)), (SIZES, np.arange(6, dtype=np.int32)[::2])]
)
def test_sample_idx_never_converts(bad):
    with pytest.raises(TypeError):
        helpers.build_sample_idx_int32(*bad, 1, 1)


def test_sample_idx_takes_vectors():
    with pytest.raises(ValueError, match="one-dimensional"):
        helpers.build_sample_idx_int32(SIZES[None], DOCUMENTS, 1, 1)


# shuffle_words

LENGTHS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 255, 256, 257, 511, 512, 513, 1023, 1025, 5000]


def shuffles_like_numpy(module, length, seed):
    """Two shuffles of one generator, and the state that they leave."""
    theirs = np.random.RandomState(seed)
    right, state = np.arange(length, dtype=np.uint32), theirs.get_state(legacy=False)["state"]
    found, key, position = right.copy(), state["key"], state["pos"]
    for _ in range(2):
        theirs.shuffle(right)
        position = module.shuffle_words(found, key, position)
    left = theirs.get_state(legacy=False)["state"]
    return np.array_equal(found, right) and np.array_equal(key, left["key"]) and position == left["pos"]


def test_words_are_shuffled_as_numpy_does():
    assert all(shuffles_like_numpy(helpers, length, length + 1) for length in LENGTHS)


KEY = np.zeros(624, np.uint32)
NO_SHUFFLE = [
    {"words": np.zeros((2, 2), np.uint32)},
    {"key": KEY[1:]},
    {"key": KEY.reshape(2, 312)},
    {"position": -1},
    {"position": 625},
    {"position": 2**63 - 1},
]


@pytest.mark.parametrize("bad", NO_SHUFFLE)
def test_a_generator_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="shuffle_words"):
        helpers.shuffle_words(**({"words": np.zeros(9, np.uint32), "key": KEY.copy(), "position": 624} | bad))


@pytest.mark.parametrize("bad", [np.zeros(4, np.int32), np.zeros(4, np.int64), np.zeros(8, np.uint32)[::2]])
def test_words_are_never_converted(bad):
    with pytest.raises(TypeError):
        helpers.shuffle_words(bad, KEY.copy(), 624)


def test_read_only_words_are_refused():
    frozen = np.zeros(9, np.uint32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        helpers.shuffle_words(frozen, KEY.copy(), 624)


# Sanitizers


def sanitized(folder):
    """The extension built with both sanitizers, and the libraries to load before it. Skips where there is none."""
    compiler = shutil.which("g++")
    if not compiler or not os.path.isabs(asan := located(compiler, "libasan.so")):
        pytest.skip("NOT CHECKED under sanitizers: this machine has no g++ with libasan")
    built = folder / ("_helpers" + sysconfig.get_config_var("EXT_SUFFIX"))
    command = [
        compiler,
        "-std=c++17",
        "-O0",
        "-g1",
        "-fPIC",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        f"-I{pytest.importorskip('pybind11').get_include()}",
        f"-I{sysconfig.get_paths()['include']}",
    ]
    objects = {ROOT / "megatron/data" / f"{name}.cpp": folder / f"{name}.o" for name in ("helpers", "circle")}
    at_once = [subprocess.Popen([*command, "-c", source, "-o", made]) for source, made in objects.items()]
    assert [one.wait() for one in at_once] == [0, 0]
    subprocess.run([*command, "-shared", *objects.values(), "-o", built], check=True)
    return built, f"{asan} {located(compiler, 'libstdc++.so')}"  # without the second, exceptions cannot be watched


def located(compiler, library):
    return subprocess.run([compiler, f"-print-file-name={library}"], capture_output=True, text=True).stdout.strip()


def test_nothing_to_report_under_sanitizers(tmp_path):
    built, libraries = sanitized(tmp_path)
    environment = os.environ | {"LD_PRELOAD": libraries, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__, built], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing to report\n", "")


def hammer(module):
    """Random, edge and hostile arguments for every function of the extension."""
    rng = np.random.default_rng(2)
    for case in [random_case(rng) for _ in range(300)] + HOSTILE:
        assert agree(twins(module, *case))
    for case in ENDLESS:
        assert refuses(module.build_sample_idx_int32, *case) and refuses(module.build_sample_idx_int64, *case)
    for _ in range(50):
        weights = rng.dirichlet(np.ones(rng.integers(1, 300))).tolist()
        for mine, right in zip(fill(module.fill_blend, weights, 200), fill(blend.fill_blend, weights, 200), strict=True):
            assert np.array_equal(mine, right)
    assert all(shuffles_like_numpy(module, length, seed) for length in LENGTHS for seed in range(3))
    for bad in NO_SHUFFLE:
        assert refuses(module.shuffle_words, **({"words": np.zeros(9, np.uint32), "key": KEY.copy(), "position": 624} | bad))
    for first in (-1, 0, 2**63 - 5, 2**63 - 4, 2**63 - 1):
        refuses(module.fill_blend, **(GOOD | {"first": first}))
    for size, s in ((9, 8), (97, 8), (2**40 + 3, 1), (2**60, 2**59), (2**60, 1), (2**62, 7), (8, 8), (-5, 1), (5, 0), (5, -1)):
        numbers = np.concatenate([rng.integers(-1, 2**63 - 1, 20), np.arange(60), [-(2**63), 2**63 - 1]])
        for number in numbers.tolist():
            refuses(module.place_on_circle, np.array([number]), size, s, 2**64 - 1)
    small = np.arange(300)
    assert np.array_equal(module.place_on_circle(small, 97, 8, 5), gpt_dataset.place_on_circle(small, 97, 8, 5))


def refuses(function, *given, **named):
    try:
        function(*given, **named)
    except ValueError:
        return True
    return False


if __name__ == "__main__":
    assert "libasan" in Path("/proc/self/maps").read_text()
    spec = importlib.util.spec_from_file_location("_helpers", sys.argv[1])
    sanitized_helpers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sanitized_helpers)
    hammer(sanitized_helpers)
    print("nothing to report")
