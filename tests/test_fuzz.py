"""Files that others wrote, damaged or of another shape: one sentence and a documented exit code, or the same as before.

A canary of each format that is read: its file is made, damaged in one place, and given to the program that reads it. Corpora
have their own fuzz in tests/data/test_sidecar.py, checkpoints in tests/core/test_checkpoint.py, run folders that a run goes on
from in tests/test_faults.py. Quick: a few mutations of each format; `-m slow`: many.
"""

import gzip
import json
import random
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest

from megatron import config
from megatron.data.tokenizer import build_tokenizer
from megatron.data.tokenizer_json import tokenizer_json
from megatron.errors import exits
from megatron.scaling.__main__ import main as scaling
from tests.scaling.table.ingest import test_event_files as events
from tests.scaling.table.ingest import test_wandb_files as wandb_files
from tests.test_faults import MUTATIONS
from tools import make_entropy_corpus, prepare_instruct, preprocess_data, run_list

CODES = {0, 1, 2, 65, 66, 74, 77, 78}  # docs/stopping.md; 1: a listed run failed
ODD = (None, True, -1, 0, 1e308, 10**400, float("nan"), "", "x", "\ud800", "../x", [], [None], {}, {"": []}, [[1], {}])


def odd_json(data, rng):
    """JSON of another shape: one value or key of it is not what it was. Anything else is damaged as bytes."""
    try:
        lines = data.decode().splitlines()
        whole = [json.loads(data)]
    except ValueError:
        try:
            whole = [json.loads(line) for line in lines]
        except (ValueError, UnboundLocalError):
            return rng.choice(list(MUTATIONS.values()))(data, rng)
    places = [(record, key) for record in whole for record, key in nodes(record)] or [(whole, 0)]
    holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD)
    return "\n".join(map(json.dumps, whole)).encode() + b"\n"


def nodes(value):
    """(container, key) of everything below."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in list(items):
        yield value, key
        yield from nodes(below)


def odd_events(data, rng):
    """Event records whose checksums are right and whose insides are not."""
    payloads, at = [], 0
    while at < len(data):
        length = struct.unpack_from("<Q", data, at)[0]
        payloads.append(data[at + 12 : at + 12 + length])
        at += 16 + length
    which = rng.randrange(len(payloads))
    payloads[which] = odd_bytes(payloads[which], rng)
    return events.framed(payloads)


def odd_wandb(data, rng):
    """The same for a .wandb file: each of its records fits into a block here."""
    out, at = bytearray(data[:7]), 7
    while at < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + 7 : at + 7 + length]
        at += 7 + length
        part = odd_bytes(part, rng) if rng.random() < 0.3 else part
        out += struct.pack("<IHB", zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
    return bytes(out)


def odd_bytes(data, rng):
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        data = rng.choice(
            [
                lambda d, a=at: d[:a] + bytes([rng.randrange(256)]) + d[a + 1 :],
                lambda d, a=at: d[:a],
                lambda d, a=at: d[:a] + b"\xff" * 12 + d[a:],
                lambda d, a=at: d[:a] + d[a + 1 :],
            ]
        )(data)
    return data


def zipped(data, rng):
    """An archive whole as a file, with one member of other contents, gone, twice, or under a name that leaves the folder."""
    import io

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen, what = rng.choice(names), rng.randrange(4)
        for name in names:
            content = old.read(name)
            if name != chosen:
                new.writestr(name, content)
            elif what == 1:
                new.writestr(name, odd_bytes(content, rng))
            elif what == 2:
                new.writestr("../" + name, content)
            elif what == 3:
                new.writestr(name + "x", content)
    return out.getvalue()


def unpacked(data, rng):
    """Text below a compression."""
    return gzip.compress(odd_json(gzip.decompress(data), rng))


# The formats: what makes the files to damage, and the program that reads them


def event_files(folder):
    rows = [events.event(n, ("lm loss validation", 3 - n / 9), ("lm loss validation vs samples", 3 - n / 9)) for n in range(1, 6)]
    return events.write(folder / "tb", 1, *rows, events.event(3, restart=True), events.event(6, ("lm loss validation", 2.0)))


def wandb_run(folder):
    rows = [wandb_files.history(_step=n, iteration=10 * n, val__loss=3 - n / 10, tokens=n * 100) for n in range(5)]
    return wandb_files.log(folder / "wandb" / "offline-run-1" / "run-abc.wandb", wandb_files.run_record(), *rows)


def lines(folder, name, rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


POINTS = [
    {"run": f"r{n}", "objective": "ar", "params": n * 1e6, "tokens": n * 1e7, "loss": 3 + 1 / n, "step": n} for n in range(1, 13)
]


def csv_table(folder):
    path = folder / "t.csv"
    path.write_text("\n".join([",".join(POINTS[0]), *(",".join(map(str, row.values())) for row in POINTS)]) + "\n")
    return path


def listed(folder):
    path = folder / "t.json"
    path.write_text(json.dumps(POINTS))
    return path


def printed_log(folder):
    path = folder / "a.log"
    path.write_text(
        "  seq_length ...... 128\n number of parameters on (tensor, pipeline) model parallel rank (0, 0): 1234\n"
        + "".join(f" iteration {n}/ 9 | consumed samples: {8 * n} | lm loss: {3 - n / 9} |\n" for n in range(1, 9))
        + " validation loss at iteration 8 on validation set | lm loss value: 2.5 | lm loss PPL: 12.2 |\n"
    )
    return path


def run_folder(folder, name):
    run = folder / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"train": {"global_batch_size": 8, "seed": 1}, "model": {"seq_length": 128}}))
    (run / "run.json").write_text(
        json.dumps({"params": 1000000, "fingerprints": {"tokenizer": "t"}, "resumes": [{"from": "b/step-1", "step": 1}]})
    )
    result = POINTS[0] | {"eval_slice": "s", "bound": "exact", "convention": {"scored_tokens": "1..127", "conditioned_on": "0"}}
    (run / "result.json").write_text(json.dumps(result))
    axes = {"samples": 8, "tokens": 1024, "flops": 1e9, "epoch": 0.5, "time": 1.0}
    lines(run, "metrics.jsonl", [{"kind": kind, "step": n, **axes, "loss": 3.0} for n in (1, 2) for kind in ("train", "val")])
    return run / name


def plan(folder):
    words = ["--flops", "2e11,6e11", "--sizes", "auto", "--num-sizes", "2", "--objectives", "ar", "--scale", "cpu"]
    assert scaling(["plan", *words, "--out", str(folder / "plan.json")]) == 0
    return folder / "plan.json"


def fitted(folder):
    rows = [
        {
            "run": f"r{n}-{d}",
            "objective": "ar",
            "params": 10.0**n,
            "tokens": 10.0**d,
            "loss": 1 + 50 / 10 ** (0.4 * n) + 9 / 10 ** (0.2 * d),
        }
        for n in (6, 6.5, 7, 7.5)
        for d in (8, 8.5, 9, 9.5)
    ]
    assert scaling(["fit", str(lines(folder, "t.jsonl", rows)), "--bootstrap", "0", "--out", str(folder / "fit")]) == 0
    return folder / "fit" / "fit.json"


def archived(folder):
    run_folder(folder, "result.json")
    words = [str(folder / "runs"), "--out", str(folder / "a.zip"), "--title", "t", "--author", "a"]
    assert scaling(["archive", *words]) == 0
    return folder / "a.zip"


def deepspeed_json(folder):
    path = folder / "ds.json"
    said = {"train_batch_size": 8, "zero_optimization": {"reduce_bucket_size": 5000, "stage": 0}, "steps_per_print": 10}
    path.write_text(json.dumps(said))
    return path


@exits
def parsed(words):
    config.parse(words)


@exits
def conflicts(words):
    """What a DeepSpeed file says beside the flags."""
    from megatron.engine.deepspeed import additions

    additions(config.parse(words))


FLAGS = [
    "--num-layers",
    "2",
    "--hidden-size",
    "32",
    "--num-attention-heads",
    "2",
    "--seq-length",
    "32",
    "--micro-batch-size",
    "2",
]
FLAGS += ["--global-batch-size", "8", "--train-iters", "2", "--lr", "1", "--tokenizer-type", "ByteTokenizer", "--device", "cpu"]


def saved_config(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(config.parse([*FLAGS, "--train-data-path", "x"]).as_dict()))
    return path


def tokenizer_file(folder):
    path = folder / "tokenizer.json"
    path.write_bytes(tokenizer_json(build_tokenizer("ByteTokenizer")))
    return path


def gpt2_files(folder):
    letters = [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    vocab = {letter: n for n, letter in enumerate([*letters, "ab", "<|endoftext|>"])}
    (folder / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return folder / "vocab.json"


def ranks_file(folder):
    import base64

    path = folder / "a.tiktoken"
    path.write_text("".join(f"{base64.b64encode(bytes([n])).decode()} {n}\n" for n in range(256)))
    return path


def text(folder):
    return lines(folder, "a.jsonl", [{"text": "one two"}, {"text": "three"}])


def packed_text(folder):
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one two"}\n{"text": "three"}\n'))
    return path


def columns(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one two", "three"]}), folder / "a.parquet")
    return folder / "a.parquet"


def alpaca(folder):
    path = folder / "a.json"
    path.write_text(json.dumps([{"instruction": f"do {n}", "input": "", "output": "done"} for n in range(4)]))
    return path


def source(folder):
    path = folder / "s.json"
    path.write_text(json.dumps({"kind": "hmm", "transitions": [[[0.5, 0.25], [0.1, 0.2]], [[0.15, 0.1], [0.3, 0.4]]]}))
    return path


def list_of_runs(folder):
    path = folder / "list"
    path.write_text(f"pretrain_gpt.py --num-layers 2 --run-dir '{folder}/a b'\n")
    return path


def tensors(folder):
    import torch

    for name, rows in (("tokens", [[1, 2, 3, 4]] * 3), ("masks", [[0, 0, 1, 1]] * 3)):
        torch.save(torch.tensor(rows), folder / f"train_{name}.pt")
    return folder / "train_tokens.pt"


def vectors(folder):
    (folder / "texts").mkdir()
    (folder / "vectors").mkdir()
    (folder / "texts" / "a.txt").write_text("hello")
    np.save(folder / "vectors" / "a.npy", np.ones(4, np.float32))
    return folder / "vectors" / "a.npy"


def weights(folder):
    from safetensors.numpy import save_file

    save_file({"model.norm.weight": np.ones(4, np.float32)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def ingest(flag):
    return lambda path, out: scaling(["ingest", flag, str(path), "--out", str(out / "t.csv"), "--set", "params=1e6"])


def encode(*words):
    def use(path, out):
        given = [word.format(path=path, folder=path.parent) for word in words]
        return preprocess_data.main([*given, "--output-prefix", str(out / "o"), "--workers", "1"])

    return use


BYTES = ["--tokenizer-type", "ByteTokenizer"]
HELLO = ["--input", "{folder}/hello.txt"]


def hello(make):
    def both(folder):
        (folder / "hello.txt").write_text("hello ab")
        return make(folder)

    return both


FORMATS = {
    "events": (event_files, lambda path, out: ingest("--tb")(path.parent, out), odd_events),
    "wandb": (wandb_run, ingest("--wandb"), odd_wandb),
    "csv": (csv_table, ingest("--csv"), None),
    "csv of a fit": (csv_table, lambda path, out: scaling(["fit", str(path), "--bootstrap", "0"]), None),
    "jsonl": (lambda folder: lines(folder, "t.jsonl", POINTS), ingest("--jsonl"), odd_json),
    "json list": (listed, lambda path, out: scaling(["fit", str(path), "--bootstrap", "0"]), odd_json),
    "log": (printed_log, ingest("--log"), None),
    **{
        f"run's {name}, {verb[0]} {verb[1]}": (
            lambda folder, n=name: run_folder(folder, n),
            lambda path, out, v=verb: scaling([word.format(path.parent, out) for word in v]),
            odd_json,
        )
        for name in ("config.json", "run.json", "result.json", "metrics.jsonl")
        for verb in (("ingest", "--metrics", "{0}", "--out", "{1}/t.csv"), ("runs", "ls", "{0}"), ("runs", "show", "{0}"))
    },
    "plan": (plan, lambda path, out: scaling(["status", str(path), "--runs-dir", str(out)]), odd_json),
    "plan that runs": (plan, lambda path, out: scaling(["run", str(path), "--runs-dir", str(out), "--dry-run"]), odd_json),
    "fit": (fitted, lambda path, out: scaling(["predict", str(path), "--flops", "1e18"]), odd_json),
    "fits": (fitted, lambda path, out: scaling(["compare", str(path), str(path)]), odd_json),
    "archive": (archived, lambda path, out: scaling(["archive", "--check", str(path)]), zipped),
    "deepspeed": (
        deepspeed_json,
        lambda path, out: conflicts([*FLAGS, "--train-data-path", "x", "--deepspeed", "--deepspeed_config", str(path)]),
        odd_json,
    ),
    "config": (saved_config, lambda path, out: parsed(["--config", str(path)]), odd_json),
    "tokenizer.json": (
        hello(tokenizer_file),
        encode(*HELLO, "--tokenizer-type", "HFTokenizer", "--tokenizer-model", "{path}"),
        odd_json,
    ),
    "vocab.json": (
        hello(gpt2_files),
        encode(*HELLO, "--tokenizer-type", "GPT2BPETokenizer", "--vocab-file", "{path}", "--merge-file", "{folder}/merges.txt"),
        odd_json,
    ),
    "tiktoken": (hello(ranks_file), encode(*HELLO, "--tokenizer-type", "TikTokenizer", "--tokenizer-model", "{path}"), None),
    "text": (text, encode("--input", "{path}", *BYTES), odd_json),
    "gzip": (packed_text, encode("--input", "{path}", *BYTES), unpacked),
    "parquet": (columns, encode("--input", "{path}", *BYTES), None),
    "pairs": (
        alpaca,
        lambda path, out: prepare_instruct.main(["--input", str(path), "--output-prefix", str(out / "o"), *BYTES]),
        odd_json,
    ),
    "tensors": (
        tensors,
        lambda path, out: prepare_instruct.main(["--from-pt", str(path.parent), "--output-prefix", str(out / "o"), *BYTES]),
        zipped,
    ),
    "source": (
        source,
        lambda path, out: make_entropy_corpus.main([str(path), "--tokens", "100", "--output", str(out / "o")]),
        odd_json,
    ),
    "list": (list_of_runs, lambda path, out: run_list.main([str(path)]), None),
}


def fuzz(tmp_path, name, num, seed, capfd):
    """Exit codes of so many damaged files of a format; the file as it was is read."""
    make, use, odd = FORMATS[name]
    (tmp_path / "made").mkdir()
    path = make(tmp_path / "made")
    rng, codes, wrong = random.Random(seed), [], []
    assert use(path, fresh(tmp_path / "out")) in (0, 1, 65), capfd.readouterr()
    whole = path.read_bytes()
    for number in range(num):
        mutate = odd if odd and number % 3 else rng.choice(list(MUTATIONS.values()))
        damaged = tmp_path / f"made-{number}" / path.relative_to(tmp_path / "made")  # what was read before is kept by its path
        shutil.copytree(tmp_path / "made", tmp_path / f"made-{number}")
        damaged.write_bytes(mutate(whole, rng))
        capfd.readouterr()
        try:
            code = use(damaged, fresh(tmp_path / "out"))
        except SystemExit as left:  # argparse
            code = left.code
        said = "".join(capfd.readouterr())
        if code not in CODES or any(word in said for word in ("Traceback", "Exception ignored", "Warning")):
            wrong.append((damaged, code, said[-600:]))
        else:
            shutil.rmtree(tmp_path / f"made-{number}")
        codes.append(code)
    assert not wrong, (name, seed, len(wrong), *wrong[:3])
    return codes


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_some_damage_of_what_others_wrote(tmp_path, name, capfd):
    assert len(fuzz(tmp_path, name, 3, 0, capfd)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_much_damage_of_what_others_wrote(tmp_path, name, capfd):
    codes = fuzz(tmp_path, name, 300, 1, capfd)
    print(name, {code: codes.count(code) for code in sorted(set(codes))})
