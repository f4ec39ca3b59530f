"""The tool as users run it, against an independent writer of the format."""
import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "preprocess_data.py"
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
    assert names(tmp_path / "o") == ["out_text_document.bin", "out_text_document.idx"]
    assert "5 documents" in done.stdout and "MB/s" in done.stdout and str(tmp_path / "o" / "out_text_document") in done.stdout
    assert done.stdout.count("\n") == 1 and not done.stderr                 # no progress off a terminal


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
    assert source.stat().st_size > 3 * (1 << 19)                            # several chunks
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


BAD_LINES = [(b'{"text": "a"', "bad JSON"), (b'["text"]', "bad JSON"), (b"[" * 100000, "bad JSON"),
             (b'{"body": "a"}', "missing key"), (b'{"text": 3}', "not a string"),
             (b'{"text": "\xff"}', "invalid UTF-8"), (b'{"text": "\\ud800"}', "invalid UTF-8")]


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


@pytest.mark.parametrize("args, code, said", [
    (["--input", "nowhere.jsonl"], 66, "nowhere.jsonl"),
    (["--input", "."], 66, "is a folder"),
    (["--input", str(TOOL), "--workers", "0"], 2, "--workers"),
    (["--input", str(TOOL), "--dataset-impl", "lazy"], 2, "lazy"),
    (["--input", str(TOOL), "--tokenizer-type", "HFTokenizer"], 66, "--tokenizer-model"),
])
def test_mistakes_of_the_command_line(tmp_path, args, code, said):
    done = to_bytes(tmp_path / "o", *args, ok=False)
    assert done.returncode == code and said in done.stderr


def children(pid):
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def start_endless(tmp_path, workers):
    """A run whose input is a pipe that stays open: it has read something and waits for more."""
    pipe = tmp_path / "endless.jsonl"
    os.mkfifo(pipe)
    command = [sys.executable, TOOL, "--tokenizer-type", "ByteTokenizer", "--input", pipe, "--workers", str(workers),
               "--output-prefix", tmp_path / "o" / "out"]
    tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
def test_a_dying_worker_ends_the_run_with_a_sentence(tmp_path):
    tool, file, line = start_endless(tmp_path, workers=2)
    wait_until(lambda: any(b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes() for c in children(tool.pid)))
    time.sleep(0.5)
    worker = next(c for c in children(tool.pid) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes())
    os.kill(worker, signal.SIGKILL)
    try:
        file.write(line * 20000)                            # wakes the reader; it may be gone already
        file.close()
    except BrokenPipeError:
        pass
    _, said = tool.communicate(timeout=30)
    assert tool.returncode == 70 and "worker process died" in said and "Traceback" not in said
    assert names(tmp_path / "o") == []
