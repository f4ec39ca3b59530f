"""The tool as users run it, against an independent writer of the format."""

import csv
import gzip
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megatron.data import text_files
from megatron.data.indexed import IndexedDataset
from megatron.data.lineage import input_record
from megatron.data.prepare import shuffle
from tools import inspect_data, prepare_corpus, prepare_instruct, preprocess_data

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "preprocess_data.py"
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
DOCUMENTS = ["Hello, world.", "", "two\nlines\r\n", "\u65e5\u672c\u8a9e \U0001f600", "<|endoftext|> inside", " "]


def run(*args, ok=True, **more):
    done = subprocess.run([sys.executable, str(TOOL), *map(str, args)], capture_output=True, text=True, timeout=120, **more)
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def to_bytes(folder, *args, ok=True):
    return run("--tokenizer-type", "ByteTokenizer", "--output-prefix", folder / "out", *args, ok=ok)


def jsonl(path, documents, key="text"):
    path.write_text("".join(json.dumps({key: document}) + "\n" for document in documents), encoding="utf-8")
    return path


def expected_files(documents, eod=256, code=8, dtype="<u2"):
    """.bin and .idx of byte ids, written as reference_facts spells the format, without the project's code."""
    ids = [[*document.encode(), *([eod] if eod is not None else [])] for document in documents if document]
    sizes = np.array([len(i) for i in ids], "<i4")
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype="<i8")[:-1]]).astype("<i8") * np.dtype(dtype).itemsize
    bin_ = np.concatenate([np.array(i, dtype) for i in ids]).tobytes()
    idx = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(ids), len(ids) + 1)
    return bin_, idx + sizes.tobytes() + offsets.tobytes() + np.arange(len(ids) + 1, dtype="<i8").tobytes()


def written(folder, key="text"):
    return tuple((folder / f"out_{key}_document{end}").read_bytes() for end in (".bin", ".idx"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("eod", [None, 256])
def test_files_are_megatrons_byte_for_byte(tmp_path, eod):
    source = jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    done = to_bytes(tmp_path / "o", "--input", source, *(["--append-eod"] if eod else []))
    assert written(tmp_path / "o") == expected_files(DOCUMENTS, eod)
    assert names(tmp_path / "o") == ["out_text_document.bin", "out_text_document.idx", "out_text_document.meta.json"]
    assert "5 documents" in done.stdout and "MB/s" in done.stdout and str(tmp_path / "o" / "out_text_document") in done.stdout
    assert done.stdout.count("\n") == 1 and not done.stderr  # no progress off a terminal


def test_blank_lines_and_byte_order_marks_are_no_text(tmp_path):
    lines = [json.dumps({"text": document}) for document in DOCUMENTS]
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n\n \r\n".join(lines).encode())
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfall of\r\none file\n")
    to_bytes(tmp_path / "o", "--input", tmp_path / "a.jsonl", tmp_path / "b.txt", "--append-eod")
    assert written(tmp_path / "o") == expected_files([*DOCUMENTS, "all of\r\none file\n"])


def test_gzip_globs_and_several_inputs_keep_the_order(tmp_path):
    for name, text in (("2.txt.gz", "second"), ("1.txt.gz", "first")):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(jsonl(tmp_path / "z.jsonl", ["third", "fourth"]).read_bytes()))
    to_bytes(tmp_path / "o", "--input", tmp_path / "*.txt.gz", "--input", tmp_path / "z.jsonl.gz", "--append-eod")
    assert written(tmp_path / "o") == expected_files(["first", "second", "third", "fourth"])


def test_any_number_of_workers_writes_the_same(tmp_path):
    documents = [f"document {i} " * (i % 97 + 1) for i in range(4000)]
    source = jsonl(tmp_path / "a.jsonl", documents)
    assert source.stat().st_size > 3 * (1 << 19)  # several chunks
    for workers in (1, 2):
        to_bytes(tmp_path / str(workers), "--input", source, "--append-eod", "--workers", workers)
    assert written(tmp_path / "1") == written(tmp_path / "2") == expected_files(documents)


def test_each_key_has_its_own_output(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"title": t, "text": d}) + "\n" for t, d in (("A", "aaa"), ("", "bbb"))))
    to_bytes(tmp_path / "o", "--input", source, "--json-keys", "title", "text", "--append-eod")
    assert written(tmp_path / "o", "title") == expected_files(["A"])
    assert written(tmp_path / "o", "text") == expected_files(["aaa", "bbb"])


def test_no_key_is_published_when_one_is_empty(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"title": "", "text": "aaa"}) + "\n")
    done = to_bytes(tmp_path / "o", "--input", source, "--json-keys", "text", "title", ok=False)
    assert done.returncode == 65 and "'title'" in done.stderr and names(tmp_path / "o") == []


BAD_LINES = [
    (b'{"text": "a"', "bad JSON"),
    (b'["text"]', "bad JSON"),
    (b"[" * 100000, "bad JSON"),
    (b'{"body": "a"}', "missing key"),
    (b'{"text": 3}', "not a string"),
    (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'{"text": "\\ud800"}', "invalid UTF-8"),
]


@pytest.mark.parametrize("line, kind, workers", [*((*case, 1) for case in BAD_LINES), (*BAD_LINES[4], 2)])
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path, line, kind, workers):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    done = to_bytes(tmp_path / "o", "--input", tmp_path / "a.jsonl", "--workers", workers, ok=False)
    assert done.returncode == 65 and f"a.jsonl:2: {kind}" in done.stderr and len(done.stderr) < 1000
    assert names(tmp_path / "o") == []


def test_skipped_lines_are_listed_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([b'{"text": "good"}', *(line for line, _ in BAD_LINES), b'{"text": "end"}']))
    done = to_bytes(tmp_path / "o", "--input", tmp_path / "a.jsonl", "--on-bad-line", "skip")
    assert written(tmp_path / "o") == expected_files(["good", "end"], eod=None)
    *rejects, counts = [json.loads(line) for line in (tmp_path / "o" / "out.rejects.jsonl").read_text().splitlines()]
    assert [(r["line"], r["kind"]) for r in rejects] == [(n, kind) for n, (_, kind) in enumerate(BAD_LINES, 2)]
    kinds = {"bad JSON": 3, "missing key": 1, "not a string": 1, "invalid UTF-8": 2}
    assert counts == {"rejected": 7, "documents": 2, "kinds": kinds}
    assert "7 lines skipped" in done.stdout


def test_an_empty_result_is_refused(tmp_path):
    for name, content in (("a.jsonl", ""), ("b.jsonl", '{"text": ""}\n\n'), ("c.txt", "")):
        (tmp_path / name).write_text(content)
        done = to_bytes(tmp_path / "o", "--input", tmp_path / name, ok=False)
        assert done.returncode == 65 and "no document" in done.stderr and names(tmp_path / "o") == []


def test_a_damaged_gzip_is_refused_even_when_lines_may_be_skipped(tmp_path):
    whole = gzip.compress(jsonl(tmp_path / "a.jsonl", DOCUMENTS * 100).read_bytes())
    for name, data in (("cut", whole[:-20]), ("not", b'{"text": "plain"}\n'), ("flip", whole[:30] + b"\xff" * 9 + whole[39:])):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(data)
        done = to_bytes(tmp_path / "o", "--input", tmp_path / f"{name}.jsonl.gz", "--on-bad-line", "skip", ok=False)
        assert done.returncode == 65 and "gzip" in done.stderr and names(tmp_path / "o") == []


def test_an_output_is_replaced_only_on_request(tmp_path):
    first, second = jsonl(tmp_path / "1.jsonl", ["one"]), jsonl(tmp_path / "2.jsonl", ["two"])
    to_bytes(tmp_path / "o", "--input", first)
    done = to_bytes(tmp_path / "o", "--input", second, ok=False)
    assert done.returncode == 73 and "--overwrite" in done.stderr
    assert written(tmp_path / "o") == expected_files(["one"], eod=None)
    to_bytes(tmp_path / "o", "--input", second, "--overwrite")
    assert written(tmp_path / "o") == expected_files(["two"], eod=None)


@pytest.mark.parametrize(
    "args, code, said",
    [
        (["--input", "nowhere.jsonl"], 66, "nowhere.jsonl"),
        (["--input", "."], 66, "is a folder"),
        (["--input", str(TOOL), "--workers", "0"], 2, "--workers"),
        (["--input", str(TOOL), "--dataset-impl", "lazy"], 2, "lazy"),
        (["--input", str(TOOL), "--tokenizer-type", "HFTokenizer"], 66, "--tokenizer-model"),
    ],
)
def test_mistakes_of_the_command_line(tmp_path, args, code, said):
    done = to_bytes(tmp_path / "o", *args, ok=False)
    assert done.returncode == code and said in done.stderr


def children(pid):
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def start_endless(tmp_path, workers, **more):
    """A run whose input is a pipe that stays open: it has read something and waits for more."""
    pipe = tmp_path / "endless.jsonl"
    os.mkfifo(pipe)
    command = [
        sys.executable,
        TOOL,
        "--tokenizer-type",
        "ByteTokenizer",
        "--input",
        pipe,
        "--workers",
        str(workers),
        "--output-prefix",
        tmp_path / "o" / "out",
    ]
    tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    file = open(pipe, "wb")
    line = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    file.write(line * 3000)
    file.flush()
    return tool, file, line


def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    assert true()


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@needs_proc
def test_a_killed_run_leaves_no_output_and_no_process(tmp_path):
    tool, file, _ = start_endless(tmp_path, workers=2)
    wait_until(lambda: len(children(tool.pid)) >= 2)
    time.sleep(0.5)
    workers = children(tool.pid)
    tool.send_signal(signal.SIGKILL)
    tool.wait(timeout=20)
    file.close()
    try:
        assert not [name for name in names(tmp_path / "o") if name.startswith("out")]
        wait_until(lambda: all(map(is_gone, workers)))
    finally:
        for worker in workers:
            if not is_gone(worker):
                os.kill(worker, signal.SIGKILL)


@needs_proc
def test_a_dying_worker_ends_the_run_with_a_sentence(tmp_path):
    tool, file, line = start_endless(tmp_path, workers=2)
    wait_until(lambda: any(b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes() for c in children(tool.pid)))
    time.sleep(0.5)
    worker = next(c for c in children(tool.pid) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes())
    os.kill(worker, signal.SIGKILL)
    try:
        file.write(line * 20000)  # wakes the reader; it may be gone already
        file.close()
    except BrokenPipeError:
        pass
    _, said = tool.communicate(timeout=30)
    assert tool.returncode == 70 and "worker process died" in said and "Traceback" not in said
    assert names(tmp_path / "o") == []


# ---- formats


def zstd(data):
    return pytest.importorskip("zstandard").compress(data)


def write_parquet(path, documents):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"n": list(range(len(documents))), "text": documents}), path)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_packing_gives_the_same_corpus(tmp_path, workers):
    data = jsonl(tmp_path / "a.jsonl", DOCUMENTS).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(data[:40]) + zstd(data[40:]))
    write_parquet(tmp_path / "a.parquet", DOCUMENTS)
    (tmp_path / "z.txt.zst").write_bytes(zstd(b"plain\n"))
    to_bytes(tmp_path / "o", "--input", tmp_path / "a.*", tmp_path / "*.zst", "--append-eod", "--workers", workers)
    assert written(tmp_path / "o") == expected_files([*DOCUMENTS * 4, "plain\n"])


@pytest.mark.parametrize(
    "name, make, said",
    [
        ("a.jsonl.zst", lambda: zstd(b'{"text": "a"}\n' * 999)[:-5], "cut short"),
        ("a.jsonl.zst", lambda: b"{}" * 99, "zstd stream is damaged"),
        ("a.parquet", lambda: b"PAR1 and nothing", "no parquet file"),
    ],
)
def test_a_damaged_packing_is_refused_even_when_lines_may_be_skipped(tmp_path, name, make, said):
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(make())
    done = to_bytes(tmp_path / "o", "--input", tmp_path / name, "--on-bad-line", "skip", ok=False)
    assert done.returncode == 65 and name in done.stderr and said in done.stderr and names(tmp_path / "o") == []


def test_rows_that_are_no_text_are_named_or_skipped(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["good", None, "end"])
    done = to_bytes(tmp_path / "o", "--input", tmp_path / "a.parquet", ok=False)
    assert done.returncode == 65 and "a.parquet:2: not a string: 'text' holds null" in done.stderr
    to_bytes(tmp_path / "o", "--input", tmp_path / "a.parquet", "--on-bad-line", "skip")
    assert written(tmp_path / "o") == expected_files(["good", "end"], eod=None)


def test_a_line_of_absurd_length_is_named_and_skipped_on_request(tmp_path):
    with open(tmp_path / "a.jsonl", "w") as file:
        for text in ("good", "x" * (3 << 20), "y" * 2000, "end"):
            file.write(json.dumps({"text": text}) + "\n")
    few = ["--input", tmp_path / "a.jsonl", "--max-line-bytes", "1000"]
    done = to_bytes(tmp_path / "o", *few, ok=False)
    assert done.returncode == 65 and "a.jsonl:2: too long: 3,145,741 bytes, more than the 1,000 of --max-line" in done.stderr
    done = to_bytes(tmp_path / "o", *few, "--on-bad-line", "skip")
    assert written(tmp_path / "o") == expected_files(["good", "end"], eod=None) and "2 too long" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "o" / "out.rejects.jsonl").read_text().splitlines()]
    assert [line.get("line") for line in lines] == [2, 3, None]


# ---- tokenizers and the sidecar


def gpt2_like(folder):
    from megatron.data.tokenizer import byte_symbols

    pairs = [("t", "e"), ("s", "t"), ("te", "st"), ("<", "|"), ("\u0120", "te")]
    words = [*byte_symbols(), *(a + b for a, b in pairs), "<|endoftext|>"]
    (folder / "v.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "m.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")
    return ["--vocab-file", folder / "v.json", "--merge-file", folder / "m.txt"]


def test_both_libraries_write_the_same_files_and_end_of_text_ends_only_documents(tmp_path):
    pytest.importorskip("gigatoken")
    from megatron.data.tokenizer import build_tokenizer

    flags = gpt2_like(tmp_path)
    source = jsonl(tmp_path / "a.jsonl", ["test <|endoftext|> test", "<|endoftext|>", "", "a\n<|endoftext|>\n" * 50, "\x00"])
    outputs = []
    for backend in ("gigatoken", "tiktoken", "auto"):
        folder = tmp_path / backend
        run(*flags, "--input", source, "--output-prefix", folder / "out", "--append-eod", "--bpe-backend", backend)
        outputs.append(tuple(path.read_bytes() for path in sorted(folder.iterdir())))
        assert (
            (np.fromfile(folder / "out_text_document.bin", "<u2") == 261).sum()
            == 4
            == len(IndexedDataset(folder / "out_text_document").sizes)
        )
    assert outputs[0] == outputs[1] == outputs[2]
    meta = json.loads((folder / "out_text_document.meta.json").read_text())
    tokenizer = build_tokenizer("GPT2BPETokenizer", *map(str, flags[1::2]))
    assert meta["tokenizer"] == {
        "type": "GPT2BPETokenizer",
        "fingerprint": tokenizer.fingerprint(),
        "vocab_size": 262,
        "eod": 261,
    }
    assert meta["extra"] == {
        "inputs": [input_record(str(source))],
        "json_key": "text",
        "append_eod": True,
        "text_bytes": 837,
        "rejects": {},
    }


# ---- one process, its memory and its imports

MEASURED = """
import sys
from tools import preprocess_data
assert preprocess_data.main(sys.argv[1:]) == 0
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) >> 10, *sorted({name.split(".")[0] for name in sys.modules}),
      "POOL" if "multiprocessing.popen_spawn_posix" in sys.modules else "", file=sys.stderr)
"""


def scripted(script, *args, ok=True):
    """A script with the tool inside, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


@needs_proc
def test_one_worker_is_this_process_with_few_imports_and_a_memory_that_the_corpus_does_not_raise(tmp_path):
    peaks = []
    for megabytes in (4, 60):
        source = jsonl(tmp_path / f"{megabytes}.jsonl", [f"document {i} " * 90 for i in range(900 * megabytes)])
        flags = gpt2_like(tmp_path)
        done = scripted(MEASURED, *flags, "--input", source, "--append-eod", "--output-prefix", tmp_path / str(megabytes) / "out")
        peak, *modules = done.stderr.split()
        peaks.append(int(peak))
        assert not {"torch", "awkward", "pyarrow", "zstandard", "scipy", "yaml", "POOL"} & set(modules)
    assert peaks[1] < peaks[0] + 16 and peaks[1] < 350


# ---- ended and gone on with

ENDING = """
import os, signal, sys
from megatron.data import journal
from tools import preprocess_data
journal.SECONDS, journal.TOKENS = 0, 1
real, left, who = journal.Journal.note, [int(sys.argv[1])], sys.argv[2]
def note(self):
    real(self)
    left[0] -= 1
    if not left[0]:
        children = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read().split()
        os.kill(os.getpid() if who == "itself" else max(map(int, children)), signal.SIGKILL)
journal.Journal.note = note
sys.exit(preprocess_data.main(sys.argv[3:]))
"""


@pytest.fixture
def corpus(tmp_path):
    """The flags for 16 MiB of ids with a bad line here and there, and what they must give."""
    documents = [f"document {i} " * (i % 97 + 1) for i in range(12000)]
    source = tmp_path / "a.jsonl"
    with open(source, "w") as file:
        for i, document in enumerate(documents):
            file.write(json.dumps({"text": document}) + "\n" + "bad\n" * (i % 1000 == 0))
    flags = ["--input", source, "--append-eod", "--on-bad-line", "skip", "--tokenizer-type", "ByteTokenizer"]
    to_bytes(tmp_path / "plain", *flags)
    assert written(tmp_path / "plain") == expected_files(documents)
    return flags


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_proc
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_again_and_again_goes_on_and_gives_the_same(tmp_path, corpus, workers):
    flags = ["--output-prefix", tmp_path / "o" / "out", *corpus, "--workers", workers]
    for notes in (2, 3):
        done = scripted(ENDING, notes, "itself", *flags, ok=False)
        assert done.returncode == -signal.SIGKILL and names(tmp_path / "o") == [".out.work"]
    assert "going on after" in done.stderr
    done = run(*flags)
    assert int(done.stderr.split("going on after ")[1].split()[0].replace(",", "")) > 2000
    assert files_of(tmp_path / "o") == files_of(tmp_path / "plain")


@needs_proc
def test_a_worker_killed_ends_the_run_which_then_goes_on(tmp_path, corpus):
    flags = ["--output-prefix", tmp_path / "o" / "out", *corpus]
    done = scripted(ENDING, 3, "a worker", *flags, "--workers", 2, ok=False)
    assert done.returncode == 70 and "worker process died" in done.stderr and names(tmp_path / "o") == [".out.work"]
    done = run(*flags, "--workers", 1)
    assert "going on after" in done.stderr and files_of(tmp_path / "o") == files_of(tmp_path / "plain")


def test_work_on_an_input_that_has_changed_is_not_gone_on_with(tmp_path, corpus):
    flags = ["--output-prefix", tmp_path / "o" / "out", *corpus]
    scripted(ENDING, 3, "itself", *flags, ok=False)
    jsonl(tmp_path / "a.jsonl", ["another"])
    done = run(*flags)
    assert "is dropped" in done.stderr and "going on" not in done.stderr
    assert written(tmp_path / "o") == expected_files(["another"])


@needs_proc
def test_a_refused_run_leaves_the_work_of_the_one_before(tmp_path, corpus):
    flags = ["--output-prefix", tmp_path / "o" / "out", *corpus]
    scripted(ENDING, 4, "itself", *flags, ok=False)
    (tmp_path / "o" / "out_text_document.idx").touch()
    assert run(*flags, ok=False).returncode == 73
    assert "going on after" in run(*flags, "--overwrite").stderr and files_of(tmp_path / "o") == files_of(tmp_path / "plain")


def test_the_many_core_scripts_flags_are_taken(tmp_path):
    jsonl(tmp_path / "a.jsonl", ["one"])
    to_bytes(
        Path("o"),
        "--root",
        tmp_path,
        "--input",
        "a.jsonl",
        "--json-keys",
        "text",
        "--dataset-impl",
        "mmap",
        "--seq-length",
        "1024",
        "--make-vocab-size-divisible-by",
        "128",
        "--workers",
        "2",
        "--log-interval",
        "100",
        "--partitions",
        "1",
    )
    assert written(tmp_path / "o") == expected_files(["one"], eod=None)


def test_a_run_killed_while_it_publishes_is_finished_by_the_next(tmp_path, corpus):
    script = """
import os, signal, sys
from tools import preprocess_data
real = os.replace
def replace(source, target):
    real(source, target)
    if os.path.basename(target).startswith("out_text_document.bin") and "work" not in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
preprocess_data.main(sys.argv[1:])
"""
    flags = ["--output-prefix", tmp_path / "o" / "out", *corpus]
    assert scripted(script, *flags, ok=False).returncode == -signal.SIGKILL
    assert names(tmp_path / "o") == [".out.work", "out_text_document.bin"]
    done = run(*flags)
    assert "an earlier run had finished it" in done.stdout and files_of(tmp_path / "o") == files_of(tmp_path / "plain")


@needs_proc
def test_a_second_run_on_the_same_output_is_refused(tmp_path):
    tool, file, line = start_endless(tmp_path, workers=1)
    try:
        wait_until(lambda: (tmp_path / "o" / ".out.work" / "0.sizes").exists())
        done = to_bytes(tmp_path / "o", "--input", jsonl(tmp_path / "b.jsonl", ["b"]), ok=False)
        assert done.returncode == 73 and "another run is preparing this output" in done.stderr
    finally:
        file.close()
        tool.communicate(timeout=30)
    assert tool.returncode == 0 and written(tmp_path / "o") == expected_files(["x" * 1000] * 3000, eod=None)


def test_progress_is_shown_on_a_terminal(tmp_path):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        TOOL,
        "--tokenizer-type",
        "ByteTokenizer",
        "--log-interval",
        "1",
        "--output-prefix",
        tmp_path / "out",
        "--input",
        jsonl(tmp_path / "a.jsonl", ["x" * 1000] * 3000),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0 and "documents" in shown and "MB/s" in shown and " s left" in shown


# ---- in this process


def here(folder, *args):
    words = ["--tokenizer-type", "ByteTokenizer", "--output-prefix", folder / "out", *args]
    return preprocess_data.main([str(word) for word in words])


def test_shuffled_documents_are_exactly_a_permutation(tmp_path, monkeypatch, capsys):
    """The same for any number of workers and of documents at a time; both keys in one order; said in the sidecar."""
    documents = [f"{i} {'x' * (i % 40)}" for i in range(1000)]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": d, "title": d}) + "\n" for d in documents))
    more = ["--input", source, "--append-eod", "--json-keys", "text", "title"]
    assert here(tmp_path / "o", *more) == here(tmp_path / "1", *more, "--shuffle", 7, "--json") == 0
    monkeypatch.setattr(shuffle, "DOCUMENTS", 300)
    monkeypatch.setattr(shuffle, "TOKENS", 900)
    assert here(tmp_path / "2", *more, "--shuffle", 7, "--workers", 2) == here(tmp_path / "3", *more, "--shuffle", 8) == 0
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2") and written(tmp_path / "1") == written(tmp_path / "1", "title")
    orders = []
    for name in ("o", "1", "3"):
        data = IndexedDataset(tmp_path / name / "out_text_document")
        orders.append([bytes(data.document(i)[:-1].tolist()).decode() for i in range(1000)])
    assert orders[0] == documents and sorted(orders[1]) == sorted(orders[2]) == sorted(documents)
    assert len({tuple(order[:10]) for order in orders}) == 3
    assert IndexedDataset(tmp_path / "1" / "out_text_document").meta["extra"]["shuffle"] == 7
    assert [json.loads(line)["documents"] for line in capsys.readouterr().out.splitlines() if line[0] == "{"] == [1000, 1000]


def test_several_sources_in_a_row_are_warned_of(tmp_path, capsys):
    for name in ("c4.00000", "c4.00001", "wiki.00000"):
        jsonl(tmp_path / f"{name}.jsonl", [name])
    assert here(tmp_path / "a", "--input", tmp_path / "c4*.jsonl") == 0 and not capsys.readouterr().err
    assert here(tmp_path / "b", "--input", tmp_path / "*.jsonl", "--shuffle", 1) == 0 and not capsys.readouterr().err
    assert here(tmp_path / "c", "--input", tmp_path / "*.jsonl") == 0
    assert "warning: the input names 2 sources" in (said := capsys.readouterr().err) and "--shuffle SEED" in said


def test_arrays_and_tables_are_read(tmp_path, monkeypatch):
    """As the same lines are, whatever the blocks; an array may be written over many lines, a value may hold line ends."""
    documents = ["one, two", 'a "quoted"\nline', "\u65e5\u672c", "", "end"]
    (tmp_path / "flat.json").write_text(json.dumps([{"text": d, "n": 1.5} for d in documents]))
    (tmp_path / "pretty.json").write_text(
        json.dumps([{"text": d, "n": [1, {}]} for d in documents], indent=2, ensure_ascii=False)
    )
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([("n", "text"), *enumerate(documents)])
    with gzip.open(tmp_path / "b.tsv.gz", "wt", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("n", "text"), *enumerate(documents)])
    for size in (1 << 20, 7):
        monkeypatch.setattr(text_files, "BLOCK_BYTES", size)
        for name in ("flat.json", "pretty.json", "a.csv", "b.tsv.gz"):
            assert here(tmp_path / f"{name}{size}", "--input", tmp_path / name, "--append-eod") == 0
            assert written(tmp_path / f"{name}{size}") == expected_files(documents), name


@pytest.mark.parametrize(
    "name, data, code, said",
    [
        ("a.jsonl", b"BZh91AY&SY", 65, "a.jsonl: is bzip2"),
        ("a.jsonl", b"\x1f\x8b\x08", 65, "is gzip, expected UTF-8 text by its name; name it .gz"),
        ("a.txt", "\ufeffwords".encode("utf-16-le"), 65, "iconv -f UTF-16"),
        ("a.jsonl", json.dumps({"text": "words"}).encode("utf-16-le"), 65, "as in UTF-16"),
        ("a.jsonl", b'{\n  "text": "a"\n}\n', 65, "a.jsonl:1: bad JSON: .*jq -c"),
        ("a.jsonl", b'[{"text": "a"}]', 65, "an array is read from a file named .json"),
        ("a.jsonl", b'{"text": "caf\xe9"}', 65, "invalid UTF-8: .*iconv -f LATIN1"),
        ("a.json", b'[{"text": "a"}, {"text": ', 65, "begins as a JSON array and is none"),
        ("a.json", b'[{"text": "a"} 3]', 65, "found '3', expected , or ]"),
        ("a.csv", b"title\nx\n", 65, "missing key: no 'text' among its columns 'title'"),
        ("a.jsonl", None, 66, "a.jsonl: is a link to .*gone, which is not there"),
    ],
)
def test_files_that_are_not_what_their_names_say(tmp_path, name, data, code, said, capsys):
    (tmp_path / name).symlink_to(tmp_path / "gone") if data is None else (tmp_path / name).write_bytes(data)
    assert here(tmp_path / "o", "--input", tmp_path / name) == code
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1 and not list(tmp_path.glob("o/out*"))


@pytest.mark.parametrize(
    "tool, flags",
    [
        (preprocess_data, ["--input", "{file}", "--output-prefix", "{out}"]),
        (prepare_corpus, ["mine", "--from", "{file}", "--output", "{out}"]),
        (prepare_instruct, ["--input", "{file}", "--output-prefix", "{out}"]),
        (inspect_data, ["{file}", "--decode", "1"]),
    ],
)
@pytest.mark.parametrize("given", [["--tokenizer-model", "x.json"], ["--tokenizer-type", "ByteTokenizer", "--vocab-file", "x"]])
def test_no_tool_ignores_a_tokenizer_flag(tmp_path, tool, flags, given, capsys):
    source = jsonl(tmp_path / "a.jsonl", ["one"])
    if tool is inspect_data:
        assert here(tmp_path, "--input", source) == 0
        source = tmp_path / "out_text_document"
    made = set(tmp_path.iterdir())
    words = [word.format(file=source, out=tmp_path / "o" / "x") for word in flags]
    assert tool.main([*words, *given]) == 2
    assert f"{given[-2]} {given[-1]} is not read by --tokenizer-type" in capsys.readouterr().err
    assert not list((tmp_path / "o").rglob("*.*")) if (tmp_path / "o").exists() else made == set(tmp_path.iterdir())


@needs_proc
def test_ctrl_c_is_one_sentence_and_130(tmp_path):
    """Also of the workers, whom the terminal interrupts too."""
    tool, file, line = start_endless(tmp_path, workers=2, start_new_session=True)
    try:
        wait_until(lambda: (tmp_path / "o" / ".out.work" / "0.sizes").exists(), 60)
        time.sleep(1.0)  # it waits for more of the pipe
        os.killpg(tool.pid, signal.SIGINT)
        _, error = tool.communicate(timeout=60)
    finally:
        file.close()
    assert tool.returncode == 130 and error.count("\n") == 1 and "Ctrl-C" in error
