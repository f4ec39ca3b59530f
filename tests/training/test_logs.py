"""One record, many views; none of them may stop a run."""

import csv
import importlib.util
import json
import math
import os
import pty
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from megatron import config
from megatron.rundir.records import decode, read
from megatron.training import logs
from megatron.training.logs import AXES, Log, megatron_tags, simple_tags

ROOT = Path(__file__).parents[2]


def needs(library):
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


needs_tensorboard, needs_wandb = needs("tensorboard"), needs("wandb")


@pytest.fixture(autouse=True)
def no_wandb_environment(monkeypatch):
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def train_record(step, loss=3.25, **other):
    record = dict(
        kind="train",
        step=step,
        samples=16 * step,
        tokens=1024 * step,
        epoch=step / 8,
        flops=6e6 * step,
        loss=loss,
        accuracy=0.25,
        perplexity=math.exp(min(700.0, loss)),
        lr=2e-4,
        grad_norm=1.234,
        clipped_norm=1.0,
        params_norm=30.5,
        batch_size=16,
        seq_length=64,
        step_seconds=0.5,
        tokens_per_sec=2048.0,
        tokens_per_gpu_per_sec=1024.0,
        world_size=2,
        tflops=0.125,
        mfu=0.3,
        executed_tflops=0.1,
        hfu=0.24,
        memory_bytes=1 << 20,
        utilization=None,
        skipped=0,
        skipped_in_interval=0,
        time=1.8e9 + step,
    )
    return record | other


def val_record(step, kind="val", loss=3.123456):
    return dict(
        kind=kind,
        step=step,
        samples=16 * step,
        tokens=1024 * step,
        epoch=step / 8,
        flops=6e6 * step,
        loss=loss,
        loss_se_noise=0.0125,
        loss_se_noise_df=3.0,
        loss_se_data=0.05,
        bits_per_byte=1.5,
        perplexity=math.exp(loss),
        accuracy=0.375,
        bound="bound",
        rows=32,
        num_mc=2,
        convention={"eps": 0.0},
        time=1.8e9 + step,
    )


def open_log(run_dir, resumed_step=0, total_steps=100, **flags):
    run_dir.mkdir(exist_ok=True)
    return Log(config.Log(**flags), run_dir, "tiny", total_steps, {"train": {"seed": 1}}, resumed_step=resumed_step)


def parse(line):
    """As parsers of Megatron logs do: cut at bars, then at each field's last colon."""
    fields = [field.strip() for field in line.split("|") if field.strip()]
    return {name.strip(): value.strip() for name, _, value in (f.rpartition(":") for f in fields)}


# The lines


def test_training_line_is_megatrons_field_for_field(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.record(train_record(10))
    line = capsys.readouterr().out.splitlines()[0]
    assert line == (
        " iteration       10/     100 | consumed samples:          160 | consumed tokens:        10240 | "
        "epoch: 1.250 | elapsed time per iteration (ms): 500.0 | "
        "learning rate: 2.000E-04 | global batch size:    16 | "
        "lm loss: 3.250000E+00 | loss scale: 1.0 | grad norm: 1.234 | params norm: 30.500 | actual seqlen:    64 | "
        "number of skipped iterations:   0 | number of nan iterations:   0 | samples per second: 32.000 | "
        "tokens per gpu per second (tgs): 1024.000 | TFLOPs: 0.12 | executed TFLOPs: 0.10 |"
    )
    assert re.search(r"iteration\s+(\d+)/\s+(\d+) \|.*lm loss: (\S+) \|", line).groups() == ("10", "100", "3.250000E+00")
    assert float(parse(line)["consumed tokens"]) == 10240


@pytest.mark.parametrize("loss", [math.nan, math.inf, 0.0, -1.0])
def test_loss_is_printed_whatever_it_is(tmp_path, capsys, loss):
    with open_log(tmp_path) as log:
        log.record(train_record(7, loss, skipped=3, skipped_in_interval=1, grad_norm=math.nan))
    fields = parse(capsys.readouterr().out.splitlines()[0])
    assert float(fields["lm loss"]) == pytest.approx(loss, nan_ok=True)
    assert fields["number of skipped iterations"] == fields["number of nan iterations"] == "1"


def test_validation_block(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.record(val_record(1000))
        log.record(val_record(1000, kind="test", loss=25.0))
    dashes, line, closing, ours, _, test_line, *_ = capsys.readouterr().out.splitlines()
    assert line == " validation loss at iteration 1000 | lm loss value: 3.123456E+00 | lm loss PPL: 2.272478E+01 | "
    assert dashes == closing == "-" * (len(line) + 1)
    fields = parse(ours)
    assert fields["bound nats per token"] == "3.123456"
    assert (fields["+- se_noise"], fields["+- se_data"]) == ("0.012500 (3 degrees of freedom)", "0.050000")
    assert (fields["bits per byte"], fields["accuracy"]) == ("1.500000", "0.375000")
    assert "validation loss" not in ours and "lm loss" not in ours
    assert test_line.startswith(" validation loss at iteration 1000 on test set | lm loss value: 2.500000E+01 | ")
    assert float(parse(test_line)["lm loss PPL"]) == pytest.approx(math.exp(20), rel=1e-6)


def test_train_log_has_every_line_of_stdout_and_grows(tmp_path, capsys):
    for step in (1, 2):
        with open_log(tmp_path, resumed_step=1) as log:
            log.say("Tokens per epoch: 8192")
            log.record(train_record(step))
    assert (tmp_path / "train.log").read_text() == capsys.readouterr().out
    assert (tmp_path / "train.log").read_text().count("Tokens per epoch") == 2


def test_events_are_lines_and_records(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.record({"kind": "event", "event": "preempted", "step": 5, "signal": "SIGTERM", "time": 1.8e9})
    assert capsys.readouterr().out == " preempted at iteration 5 | signal: SIGTERM |\n"
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["signal"] == "SIGTERM"


# metrics.jsonl and metrics.csv


def test_metrics_round_trip_as_strict_json(tmp_path):
    written = [train_record(1, math.nan, grad_norm=math.inf), val_record(1), train_record(2, -math.inf)]
    with open_log(tmp_path) as log:
        for count, record in enumerate(written, 1):
            log.record(record)
            assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == count  # on disk before the next step

    def refuse(token):
        raise AssertionError(token)

    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0], parse_constant=refuse)
    assert (first["loss"], first["grad_norm"]) == ("nan", "inf")
    read = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(read[0]["loss"]) and read[0]["grad_norm"] == math.inf
    assert read[1] == written[1] and read[2] == written[2]


def read_metrics(path):
    return [record for _, record in read(path)]


def run_steps(run_dir, steps, resumed_step):
    with open_log(run_dir, resumed_step=resumed_step) as log:
        for step in steps:
            log.record(train_record(step))
            if step % 2 == 0:
                log.record(val_record(step))


def test_resumed_records_equal_those_of_an_uninterrupted_run(tmp_path, capsys):
    run_steps(tmp_path / "whole", range(1, 11), 0)
    run_steps(tmp_path / "cut", range(1, 8), 0)
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "ste')  # killed within a write
    run_steps(tmp_path / "cut", range(5, 11), 4)
    assert "metrics.jsonl: 5 lines later than step 4, written twice or cut short moved" in capsys.readouterr().out
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    *lines, torn = (tmp_path / "cut" / "metrics.superseded.jsonl").read_bytes().splitlines()
    aside = [decode(line) for line in lines]
    assert torn == b'{"kind": "train", "ste'
    assert [r["step"] for r in aside] == [5, 6, 6, 7]
    assert not (tmp_path / "whole" / "metrics.superseded.jsonl").exists()


def test_without_a_resumed_step_records_are_added(tmp_path):
    run_steps(tmp_path, range(1, 4), 0)
    with open_log(tmp_path, resumed_step=None) as log:
        log.record(val_record(1))
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 2, 3, 1]


def test_table_has_fixed_columns_and_blank_cells(tmp_path):
    scores = dict.fromkeys(("accuracy", "accuracy_se", "accuracy_norm", "answer_bpb", "answer_bpb_se"), 0.5)
    task = {name: val_record(2)[name] for name in AXES} | scores | {"kind": "task-quiz", "bound": "exact", "questions": 4}
    with open_log(tmp_path) as log:
        log.record(train_record(2))
        log.record(val_record(2))
        log.record({"kind": "event", "event": "preempted", "step": 2, "time": 1.8e9})
        log.record(task)
    train, val, scored = list(csv.DictReader(open(tmp_path / "metrics.csv")))
    assert (train["kind"], float(train["loss"]), train["loss_se_noise"], train["utilization"]) == ("train", 3.25, "", "")
    assert (val["kind"], val["bound"], float(val["loss_se_noise"]), val["lr"]) == ("val", "bound", 0.0125, "")
    assert (scored["kind"], scored["answer_bpb"], scored["loss"]) == ("task-quiz", "0.5", "")
    other = {"k", "ignore_acc", "text_loss", "vector_loss", "loss_of_text", "gradient_noise_scale"}  # where there are such
    assert set(train_record(1)) | set(val_record(1)) - {"convention"} | set(scores) | other == set(train)
    assert simple_tags(task) == {f"task-quiz/{name}": 0.5 for name in scores} and megatron_tags(task, None) == {}


# Sinks that fail


def test_a_full_disk_stops_nothing(tmp_path):
    """A real limit on file size, in a process of its own."""
    script = textwrap.dedent("""
        import resource, sys
        sys.path.insert(0, sys.argv[2])
        from tests.training.test_logs import open_log, train_record, Path
        log = open_log(Path(sys.argv[1]), tensorboard_dir=sys.argv[1] + "/tb", tensorboard_queue_size=1)
        log.record(train_record(1))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, hard))
        for step in range(2, 20):
            log.record(train_record(step))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log.record(train_record(20))
        log.close()
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(ROOT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 21))  # nothing lost, nothing torn
    said = done.stdout.splitlines()
    assert sum(line.startswith("metrics.jsonl failed") for line in said) == 1
    assert "metrics.jsonl is written again" in said
    assert sum(line.startswith("metrics.csv is off: ") for line in said) == 1
    assert any(re.fullmatch(r"metrics.csv missed \d+ records", line) for line in said)
    assert not any(line.startswith("metrics.jsonl missed") for line in said)
    assert all(len(row) == len(logs.COLUMNS) for row in csv.reader(open(tmp_path / "metrics.csv")))


def test_a_folder_where_a_file_should_be(tmp_path, capsys):
    for name in ("metrics.jsonl", "metrics.csv", "train.log"):
        (tmp_path / name).mkdir()
    (tmp_path / "tb").write_text("")
    with open_log(tmp_path, tensorboard_dir=str(tmp_path / "tb")) as log:
        for step in (1, 2):
            log.record(train_record(step))
    out = capsys.readouterr().out.splitlines()
    assert sum(" iteration " in line for line in out) == 2
    for name in ("metrics.jsonl failed", "metrics.csv is off", "train.log is off", "tensorboard is off"):
        assert sum(line.startswith(name) for line in out) == 1, name
    assert "metrics.jsonl missed 2 records" in out


def test_memory_of_unwritten_records_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "NUM_PENDING", 3)
    (tmp_path / "metrics.jsonl").mkdir()
    with open_log(tmp_path) as log:
        for step in range(1, 6):
            log.record(train_record(step))
        (tmp_path / "metrics.jsonl").rmdir()
        log.record(train_record(6))
        assert log.sinks["metrics.jsonl"].num_unwritten() == 3
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [4, 5, 6]


def test_a_damaged_record_costs_one_line_only(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.record(train_record(1, grad_norm=None))
        log.record(train_record(2))
    out = capsys.readouterr().out
    assert out.count("log line failed") == 1 and " iteration        2/" in out


def test_a_closed_pipe_stops_nothing(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\nfrom tests.training.test_logs import open_log, train_record, Path\n"
        "log = open_log(Path(sys.argv[1]))\nfor i in range(5000): log.record(train_record(i))\nlog.close()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")
    process.stderr.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5000
    assert "stdout is off: Broken pipe" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize("library,flags", [("tensorboard", {"tensorboard_dir": "tb"}), ("wandb", {"wandb_project": "p"})])
def test_a_missing_library_is_named_once(tmp_path, capsys, monkeypatch, library, flags):
    for name in [n for n in sys.modules if n.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.chdir(tmp_path)
    with open_log(tmp_path, **flags) as log:
        log.record(train_record(1))
    out = capsys.readouterr().out
    assert out.count(f"{library} is off: ") == out.count("pip install -e .[tracking]") == 1
    assert log.wandb_id is None


# TensorBoard


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


SIMPLE = {
    "train/loss",
    "train/accuracy",
    "train/perplexity",
    "train/lr",
    "train/tokens_per_sec",
    "train/tokens_per_gpu_per_sec",
    "train/mfu",
    "train/executed_tflops",
    "train/hfu",
    "train/memory_bytes",
    "val/loss",
    "val/accuracy",
    "val/perplexity",
    "val/bits_per_byte",
    "val/loss_se_noise",
    "val/loss_se_noise_df",
    "val/loss_se_data",
}
REFERENCE = {
    "lm-loss-training/lm loss",
    "learning-rate/learning-rate",
    "grad-norm/grad-norm",
    "params-norm/params-norm",
    "seqlen/actual_seq_length",
    "world-size/world-size",
    "lm-loss-validation/lm loss validation",
    "lm-loss-validation/lm loss test",
}


def write_events(tmp_path, **flags):
    with open_log(tmp_path, tensorboard_dir=str(tmp_path / "tb"), **flags) as log:
        for step in (1, 2):
            log.record(train_record(step))
        log.record(val_record(2))
        log.record(val_record(2, kind="test"))
    return read_events(tmp_path / "tb")


@needs_tensorboard
@pytest.mark.parametrize("names", ["simple", "megatron", "both"])
def test_tensorboard_tags(tmp_path, names):
    events = write_events(tmp_path, log_names=names)
    assert (SIMPLE <= set(events)) == (names != "megatron")
    assert (REFERENCE <= set(events)) == (names != "simple")
    assert not any(tag.startswith(("batch-size", "iteration-time", "throughput")) or " ppl" in tag for tag in events)
    if names == "simple":
        assert all(tag.startswith(("train/", "val/", "test/")) for tag in events)
        assert events["train/loss"] == [(1, 3.25), (2, 3.25)]
        return
    assert events["lm-loss-training/lm loss vs samples"] == [(16, 3.25), (32, 3.25)]
    assert events["lm-loss-training/lm loss vs tokens"] == [(1024, 3.25), (2048, 3.25)]
    assert events["lm-loss-validation/lm loss validation vs tokens"][0][0] == 2048
    assert events["steps-vs-tokens/y=steps,x=tokens"] == [(1024, 1), (2048, 2)]


@needs_tensorboard
@pytest.mark.parametrize(
    "flag,tags",
    [
        ("log_timers_to_tensorboard", {"iteration-time/iteration-time", "throughput/tflops"}),
        ("log_batch_size_to_tensorboard", {"batch-size/batch-size", "batch-size/batch-size vs samples"}),
        (
            "log_validation_ppl_to_tensorboard",
            {"lm-loss-validation/lm loss validation ppl", "lm-loss-validation/lm loss test ppl vs tokens"},
        ),
    ],
)
def test_tensorboard_flags_add_their_tags(tmp_path, flag, tags):
    assert tags <= set(write_events(tmp_path, log_names="megatron", **{flag: True}))


@needs_tensorboard
def test_tensorboard_shows_a_resumed_run_once(tmp_path):
    flags = {"tensorboard_dir": str(tmp_path / "tb")}
    for steps, resumed_step, loss in [(range(1, 8), 0, 9.0), (range(5, 11), 4, 3.0)]:
        with open_log(tmp_path, resumed_step=resumed_step, **flags) as log:
            for step in steps:
                log.record(train_record(step, loss))
    events = read_events(tmp_path / "tb")
    assert events["train/loss"] == [(step, 9.0 if step <= 4 else 3.0) for step in range(1, 11)]
    assert [x for x, _ in events["lm-loss-training/lm loss vs samples"]] == [16 * step for step in range(1, 11)]


@needs_tensorboard
def test_tensorboard_keeps_what_is_not_finite(tmp_path):
    with open_log(tmp_path, tensorboard_dir=str(tmp_path / "tb")) as log:
        log.record(train_record(1, math.nan))
    assert math.isnan(read_events(tmp_path / "tb")["train/loss"][0][1])


def test_logs_need_neither_torch_nor_a_tracker():
    script = "import sys, megatron.training.logs; print({'torch', 'numpy', 'wandb', 'tensorboard', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


# W&B


class FakeWandb(types.ModuleType):
    """Remembers what it is asked; refuses as the real one does."""

    def __init__(self, has_key=False, reachable=True):
        super().__init__("wandb")
        self.has_key, self.reachable, self.held = has_key, reachable, False
        self.starts, self.rows, self.defined, self.exit_codes = [], [], [], []

    def login(self, prompt, verify):
        assert not prompt and not verify
        return self.has_key

    def teardown(self):
        self.held = False

    def Settings(self, **settings):
        return settings

    def init(self, **given):
        self.starts.append(given)
        assert not self.held, "the service holds this id until it is torn down"
        if given["mode"] == "online" and not self.reachable:
            self.held = True
            raise ConnectionError("no route to host")
        return types.SimpleNamespace(
            define_metric=lambda *a, **k: self.defined.append((*a, k)),
            log=self.rows.append,
            finish=lambda exit_code: self.exit_codes.append(exit_code),
        )


def install(monkeypatch, **given):
    fake = FakeWandb(**given)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_without_a_key_is_offline_and_keeps_its_id(tmp_path, monkeypatch, capsys):
    fake = install(monkeypatch)
    for step in (1, 2):
        with open_log(tmp_path, resumed_step=step - 1, wandb_project="p", wandb_group="g") as log:
            log.record(train_record(step))
            log.record(val_record(step))
    assert [s["mode"] for s in fake.starts] == ["offline", "offline"]
    assert capsys.readouterr().out.count("wandb has no key") == 2
    assert fake.starts[0]["id"] == fake.starts[1]["id"] == (tmp_path / "wandb_id.txt").read_text().strip() == log.wandb_id
    assert all((s["resume"], s["name"], s["group"], s["dir"]) == ("allow", "tiny", "g", str(tmp_path)) for s in fake.starts)
    assert ("*", {"step_metric": "iteration"}) in fake.defined
    assert [row["iteration"] for row in fake.rows] == [1, 1, 2, 2]
    assert {"train/loss", "lm-loss-training/lm loss", "throughput/tokens_per_sec", "tokens", "flops"} <= set(fake.rows[0])
    assert {"val/loss", "val/loss_se_noise", "lm-loss-validation/lm loss validation"} <= set(fake.rows[1])
    assert not any(" vs " in tag for row in fake.rows for tag in row)
    assert fake.exit_codes == [0, 0]


def test_wandb_environment_and_flags_win(tmp_path, monkeypatch):
    fake = install(monkeypatch, has_key=True)
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with open_log(tmp_path / "run", wandb_project="p", wandb_exp_name="mine", wandb_save_dir=str(tmp_path / "else")) as log:
        assert log.wandb_id == "chosen"
    start = fake.starts[0]
    assert (start["mode"], start["name"], start["dir"], start["id"]) == ("disabled", "mine", str(tmp_path / "else"), "chosen")
    assert start["group"] is None  # so that wandb itself reads WANDB_RUN_GROUP


def test_wandb_takes_the_id_of_a_checkpoint_in_a_new_folder(tmp_path, monkeypatch):
    install(monkeypatch)
    with Log(config.Log(wandb_project="p"), tmp_path, "tiny", 1, {}, resumed_step=0, wandb_id="before") as log:
        assert log.wandb_id == "before"


def test_wandb_that_cannot_be_reached_goes_offline(tmp_path, monkeypatch, capsys):
    fake = install(monkeypatch, has_key=True, reachable=False)
    with open_log(tmp_path, wandb_project="p") as log:
        log.record(train_record(1))
    assert [s["mode"] for s in fake.starts] == ["online", "offline"]
    assert "wandb cannot be reached (ConnectionError: no route to host)" in capsys.readouterr().out
    assert len(fake.rows) == 1


def test_wandb_that_breaks_is_left(tmp_path, monkeypatch, capsys):
    fake = install(monkeypatch)
    with pytest.raises(KeyError), open_log(tmp_path, wandb_project="p") as log:
        fake.rows = None
        log.sinks["wandb"].run.log = lambda row: 1 / 0
        for step in (1, 2, 3):
            log.record(train_record(step))
        raise KeyError
    out = capsys.readouterr().out
    assert out.count("wandb is off: ZeroDivisionError") == 1 and "wandb missed 3 records" in out
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3


def test_no_wandb_means_none(tmp_path, monkeypatch):
    fake = install(monkeypatch)
    with open_log(tmp_path, wandb_project="p", no_wandb=True) as log:
        log.record(train_record(1))
    assert not fake.starts and not (tmp_path / "wandb_id.txt").exists()


WANDB_RUN = (
    "import sys; sys.path.insert(0, sys.argv[2])\nfrom tests.training.test_logs import open_log, train_record, Path\n"
    "with open_log(Path(sys.argv[1]), wandb_project='p') as log:\n    log.record(train_record(1))"
)


def run_wandb(tmp_path, **environment):
    """A process that logs one record to the real W&B, with no settings of this machine; its stdout and the runs it left."""
    environment |= {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WANDB_RUN, str(tmp_path), str(ROOT)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "wandb is off:" not in done.stdout
    identity = (tmp_path / "wandb_id.txt").read_text().strip()
    return done.stdout, list((tmp_path / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))


@needs_wandb
@pytest.mark.slow
def test_wandb_itself_goes_offline_when_its_server_is_not_there(tmp_path):
    out, written = run_wandb(tmp_path, WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "wandb cannot be reached" in out and b"train/loss" in written[0].read_bytes()


@needs_wandb
@pytest.mark.slow
def test_wandb_itself_writes_an_offline_run_without_a_key(tmp_path):
    for _ in range(2):
        out, written = run_wandb(tmp_path)
        assert "wandb has no key" in out
    assert written and all(b"train/loss" in path.read_bytes() for path in written)


# The terminal


def on_a_terminal(script, *arguments):
    """Run a script whose stdout is a pseudo-terminal; what it showed."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=theirs, stdin=subprocess.DEVNULL, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return shown.decode()


def test_a_terminal_has_one_progress_line_and_whole_log_lines(tmp_path):
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from tests.training.test_logs import open_log, train_record, Path\n"
        "with open_log(Path(sys.argv[1]), total_steps=20) as log:\n"
        "    log.say('[bold]a line with [brackets] :smile:')\n"
        "    for step in range(1, 21):\n        log.advance(step)\n        time.sleep(0.05)\n"
        "        if step % 10 == 0: log.record(train_record(step))"
    )
    shown = on_a_terminal(script, tmp_path, ROOT)
    assert "eta" in shown and "20/20" in shown and "loss 3.2500" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").split("\n")
    for line in (tmp_path / "train.log").read_text().splitlines():
        assert line in plain
    assert "eta" not in (tmp_path / "train.log").read_text()


def test_a_pipe_has_no_progress_line(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.advance(1)
        log.record(train_record(1))
    out = capsys.readouterr().out
    assert "eta" not in out and "\x1b" not in out and "\r" not in out
