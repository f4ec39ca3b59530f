"""tools/evaluate.py tasks: our own files without a library, lm-eval's task files offline, and the numbers of its own HF path."""

import json
import math

import numpy as np
import pytest

from megatron.config import parse
from megatron.data.indexed import IndexedWriter
from megatron.training.pretrain import main
from tools import evaluate

FLAGS = """--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 64 --global-batch-size 8 --train-iters 3 --lr 1e-2
    --micro-batch-size 4 --init-method-std 0.2 --tokenizer-type ByteTokenizer --split 80,20,0 --eval-iters 1 --log-interval 1
    --hidden-dropout 0 --attention-dropout 0 --num-threads 1 --device cpu""".split()
ROWS = [
    {"query": "the man ran", "choices": ["far", "to the sea", "b"], "gold": 1},
    {"query": "a b c", "choices": ["d", "efg hij"], "gold": 0},
    {"query": "so she said", "choices": ["no", "yes and no"], "gold": 1},
    {"query": "why", "choices": ["not", "so"], "gold": 0},
    {"query": "x" * 70, "choices": ["not", "so"], "gold": 0},  # longer than the window
]
YAML = """task: tiny_{kind}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {file}
validation_split: validation
fewshot_split: validation
output_type: {kind}
doc_to_text: "{{{{query}}}}"
"""
CHOICE = "doc_to_choice: choices\ndoc_to_target: gold\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n"
ROLLING = 'doc_to_target: "{{query}}"\nmetric_list:\n  - metric: bits_per_byte\n  - metric: byte_perplexity\n'
WRITING = """doc_to_target: "{{choices[0]}}"
generation_kwargs:
  until: ["e"]
  max_gen_toks: 6
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with IndexedWriter(str(folder / "corpus"), np.uint16) as writer:
        for document in np.split(np.random.default_rng(0).integers(97, 123, 8192), 16):
            writer.add_document(document)
    for objective in ("ar", "mdm"):
        out = ["--data-path", str(folder / "corpus"), "--save", str(folder / objective)]
        assert main(parse([*FLAGS, *out], objective)) == 0
    file = folder / "quiz.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for kind, rest in (("multiple_choice", CHOICE), ("loglikelihood_rolling", ROLLING), ("generate_until", WRITING)):
        (folder / f"{kind}.yaml").write_text(YAML.format(kind=kind, file=file) + rest)
    return folder


def tasks(capsys, *words):
    capsys.readouterr()
    code = evaluate.main(["tasks", *map(str, words), "--json"])
    said = capsys.readouterr()
    assert "Traceback" not in said.err, said.err
    return code, json.loads(said.out) if code == 0 else said.err


@pytest.mark.parametrize("objective, draws", [("ar", []), ("mdm", ["--num-mc", "16"]), ("mdm", ["--eval_method", "ar"])])
def test_own_files_need_no_library(runs, tmp_path, capsys, objective, draws):
    words = [runs / objective, "--task_list", runs / "quiz.jsonl", *draws, "--out", tmp_path, "--dtype", "fp64"]
    code, said = tasks(capsys, *words)
    assert code == 0 and json.loads((tmp_path / "tasks.json").read_text()) == said
    found = said["questions"]["quiz"]
    assert found["questions"] == 5 and 0 <= found["accuracy"] <= 1 and found["answer_bpb"] > 0
    assert (said["likelihood"], found["bound"]) == {
        "ar": ("exact", "exact"),
        "mdm": ("bound", "bound") if "16" in draws else ("chain", "exact"),
    }[objective]
    assert evaluate.main(["tasks", *map(str, words)]) == 0 and "quiz: accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_autoregressive_scores_are_those_of_the_harness_own_path(runs, tmp_path, capsys):
    """lm-eval with transformers on the exported run: likelihoods, few-shot prompts, whole documents and written text."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[eval]'")
    for package in ("transformers", "accelerate"):
        pytest.importorskip(package, reason=f"{package} is not installed, which lm-eval's own path needs")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from tools import convert_checkpoint

    assert convert_checkpoint.main([str(runs / "ar"), "--to", "hf", str(tmp_path / "hf")]) == 0
    names = ["multiple_choice", "loglikelihood_rolling", "generate_until"]
    theirs = HFLM(pretrained=str(tmp_path / "hf"), device="cpu", dtype="float32", batch_size=1)
    manager = TaskManager(include_path=str(runs), include_defaults=False)
    for shots in ([], ["--num_fewshot", 2]):
        files = ",".join(str(runs / f"{name}.yaml") for name in names)
        code, said = tasks(capsys, runs / "ar", "--task_list", files, "--out", tmp_path, *shots)
        assert code == 0, said
        expected = simple_evaluate(
            model=theirs,
            tasks=[f"tiny_{name}" for name in names],
            num_fewshot=shots[1] if shots else None,
            task_manager=manager,
            bootstrap_iters=0,
        )["results"]
        for task, scores in expected.items():
            for metric in (name for name in scores if name.endswith(",none") and "_stderr" not in name):
                assert said["lm_eval"][task][metric] == pytest.approx(scores[metric], rel=1e-5), (task, metric)


@pytest.mark.slow
def test_masked_diffusion_in_the_harness(runs, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[eval]'")
    mdm = runs / "mdm"
    quiz = [mdm, "--task_list", runs / "multiple_choice.yaml", "--out", tmp_path]
    _, ours = tasks(capsys, mdm, "--task_list", runs / "quiz.jsonl", "--out", tmp_path, "--only_mc_nll")
    code, said = tasks(capsys, *quiz, "--only_mc_nll")
    assert code == 0 and said["is_greedy"] == "none" and said["largest_se"] > 0
    assert said["lm_eval"]["tiny_multiple_choice"]["acc,none"] == ours["questions"]["quiz"]["accuracy"]
    assert said["passes"] == ours["questions"]["quiz"]["passes"]
    assert tasks(capsys, *quiz)[1]["passes"] > said["passes"]  # with decoding
    _, generated = tasks(capsys, *quiz, "--only_generate")
    assert (generated["likelihood"], generated["largest_se"]) == ("none", None)
    rest = ",".join(str(runs / f"{name}.yaml") for name in ("loglikelihood_rolling", "generate_until"))
    code, said = tasks(capsys, mdm, "--task_list", rest, "--out", tmp_path)
    found = said["lm_eval"]["tiny_loglikelihood_rolling"]
    assert (
        code == 0
        and found["byte_perplexity,none"] == pytest.approx(2 ** found["bits_per_byte,none"])
        and math.isfinite(found["bits_per_byte,none"])
    )


@pytest.mark.parametrize(
    "objective, words, code, sentence",
    [
        ("ar", ["--num-mc", "4"], 2, "--num-mc acts on masked diffusion"),
        ("mdm", ["--eval_method", "ar", "--num-mc", "4"], 2, "--num-mc acts on draws, and --eval_method ar draws nothing"),
        ("mdm", ["--num-mc", "0"], 2, "--num-mc 0: expected 1 or more"),
        ("mdm", ["--sampling_eps", "1"], 2, "--sampling_eps 1.0: expected 0 or more, and below 1"),
        ("mdm", ["--num_fewshot", "2"], 2, "--num_fewshot 2 acts on lm-eval's tasks"),
        ("mdm", ["--only_mc_nll", "--eval_method", "ar"], 2, "--only_mc_nll goes with neither"),
        ("mdm", ["--checkpoint", "77"], 66, "no checkpoint 77"),
    ],
)
def test_mistakes_get_a_sentence(runs, tmp_path, capsys, objective, words, code, sentence):
    out = tmp_path / "out"
    found, said = tasks(capsys, runs / objective, "--task_list", runs / "quiz.jsonl", "--out", out, *words)
    assert (found, sentence in said) == (code, True), said
    assert not out.exists()
    assert tasks(capsys, runs / objective, "--task_list", tmp_path / "none.jsonl", "--out", out)[0] == 66
