"""One evaluator for every architecture: what a checkpoint is worth on validation text, what it writes, and how fast.

    python tools/evaluate.py --checkpoint RUN --metrics perplexity,accuracy,generation,speed --output results.json

RUN is a run's folder, one of its checkpoints, or the file that `convert_checkpoint.py --to dict` wrote. What it was trained on
is found in it; --architecture only insists. An autoregressive model has a perplexity; masked diffusion has none, and
exp(bound) is an upper bound on one, named so; sparse distribution diffusion has neither, but the loss that it denoises with.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron.catalogue import need_likelihood
from megatron.errors import BadData, Mismatch, MissingInput
from megatron.flags import ConfigError

METRICS = ("perplexity", "accuracy", "generation", "speed")
ARCHITECTURES = {"ar": "ar", "diffusion": "mdm", "sdd": "sdd", "udm": "udm"}  # by their names there, our objectives
ACCURACY = {
    "ar": "of the next token",
    "diffusion": "at hidden places, as many as the bound hides",
    "udm": "at every place and noise level, of what all others say: a place that kept its token is not to be copied",
    "sdd": "at every place and noise level, where little noise hides little",
}
PROMPT, NEW_TOKENS = 8, 64


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run, one of its checkpoints, or a dictionary's file")
    parser.add_argument("--data_dir", type=Path, help="folder with another validation corpus, valid*.idx [the run's own]")
    parser.add_argument("--architecture", choices=ARCHITECTURES, help="refuse a checkpoint of another [as it is]")
    parser.add_argument("--metrics", help=f"of {', '.join(METRICS)}, with commas between [all that the run has]")
    parser.add_argument("--num_samples", type=int, default=100, help="texts to write, for generation and speed [100]")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    parser.add_argument("--output", type=Path, default=Path("results.json"), help="file to write [results.json]")


def command(given: argparse.Namespace) -> None:
    """Measure, print, write."""
    wanted = given.metrics.split(",") if given.metrics is not None else list(METRICS)
    if wrong := [name for name in wanted if name not in METRICS]:
        raise ConfigError([f"--metrics {wrong[0] or given.metrics}: expected names of {', '.join(METRICS)}, with commas between"])
    if given.num_samples < 1:
        raise ConfigError([f"--num_samples {given.num_samples}: expected 1 or more"])
    if given.output.is_dir() or not given.output.parent.is_dir():
        raise ConfigError([f"--output {given.output}: expected a file in a folder that exists"])
    from megatron.files import replace_file

    trained = opened(given.checkpoint, given.device)
    known = trained.cfg.objective.objective
    if given.architecture and ARCHITECTURES[given.architecture] != known:
        raise Mismatch(
            f"--architecture {given.architecture}, but {given.checkpoint} is a run of --objective {known}: leave it out"
        )
    if given.metrics and "perplexity" in wanted:
        need_likelihood(known, "--metrics perplexity")
    if given.data_dir:
        trained = elsewhere(trained, given.data_dir)
    found = overview(trained, wanted, given.num_samples)
    if trained.engine.mesh.chief:
        replace_file(given.output, json.dumps(found, indent=1, allow_nan=False).encode())
        print(describe(found))


def opened(path: Path, device: str) -> Any:
    """A run, or a dictionary as the checkpoint that it was. Raises the classes of errors."""
    from megatron.core import checkpoint
    from megatron.core.checkpoint import whole
    from megatron.exchange.dictionary import facts_of, is_dictionary, load_dictionary
    from megatron.training import open_run

    def quiet(line: str) -> None:
        pass

    if not is_dictionary(path):
        return open_run(path, device=device, say=quiet)
    state = load_dictionary(path)
    with tempfile.TemporaryDirectory() as folder:
        tensors = {f"model/{name}": tensor for name, tensor in state["model_state_dict"].items()}
        saved = checkpoint.Saving(Path(folder), state["global_step"], whole(tensors), facts_of(path, state), say=quiet).finish()
        return open_run(saved, device=device, say=quiet)


def elsewhere(trained: Any, folder: Path) -> Any:
    """The same model with the validation corpus of a folder. Raises MissingInput, Mismatch."""
    if trained.cfg.data.data_kind == "random-window":
        raise Mismatch(f"--data_dir {folder}: a run of --data-kind random-window has one file for all, leave it out")
    corpora = sorted(path.with_suffix("") for path in folder.glob("val*.idx"))
    if len(corpora) != 1:
        raise MissingInput(f"--data_dir {folder} holds {len(corpora)} validation corpora, expected one valid*.idx with its .bin")
    nothing = {name: None for name in ("data_path", "valid_data_path_file", "test_data_path", "test_data_path_file")}
    data = replace(trained.cfg.data, **nothing, valid_data_path=[str(corpora[0])])
    return replace(trained, cfg=replace(trained.cfg, data=data))


def overview(trained: Any, wanted: list[str], num_samples: int) -> dict:
    """The metrics asked for, each with what it means."""
    from megatron.sampling.quality import self_bleu
    from megatron.training.evaluate import evaluate

    objective, known = trained.reference, trained.cfg.objective.objective
    names = {ours: theirs for theirs, ours in ARCHITECTURES.items()}
    found: dict = {"architecture": names[known], "checkpoint": str(trained.checkpoint.path), "step": trained.checkpoint.step}
    found |= trained.averaged
    scores = evaluate(trained.engine, objective, trained.slice()) if {"perplexity", "accuracy"} & set(wanted) else {}
    if scores:
        wanted_scores = ("loss", "loss_se_noise", "loss_se_data", "bits_per_byte", "rows", "convention")
        found |= {name: scores[name] for name in wanted_scores if name in scores}
    if "perplexity" in wanted and objective.likelihood:
        value = math.exp(min(700.0, scores["loss"]))
        found |= {"perplexity": value if objective.exact else None, "perplexity_upper_bound": None if objective.exact else value}
    if "accuracy" in wanted:
        hides = known == "udm" and trained.cfg.objective.uniform_share == 0  # masked diffusion by another name
        found |= {"accuracy": scores["accuracy"], "accuracy_is": ACCURACY["diffusion" if hides else names[known]]}
        found |= {name: value for name, value in scores.items() if name.startswith(("accuracy_t", "loss_t"))}
    if {"generation", "speed"} & set(wanted):
        made = written(trained, num_samples)
        tokens = sum(sample.new_tokens for sample in made.samples)
        if "generation" in wanted:
            new = [sample.ids[PROMPT:] for sample in made.samples]
            alike = float(self_bleu(new).mean()) if len(new) > 1 else None  # of tokens
            texts = [sample.text for sample in made.samples]
            found["generation"] = {"self_bleu": alike, "prompt_tokens": PROMPT, "temperature": 1.0, "samples": texts}
        if "speed" in wanted:
            found["speed"] = {"tokens_per_sec": tokens / made.seconds, "new_tokens": tokens, "passes": made.passes}
    return found


def written(trained: Any, num_samples: int) -> Any:
    """Continuations of the first tokens of validation rows. Raises BadData where the window is too short."""
    import numpy as np

    from megatron.sampling.draws import How
    from megatron.sampling.generate import Source, Template, generate
    from megatron.sampling.table import default_of

    source = Source.of(trained.cfg, trained.tokenizer)
    room = min(NEW_TOKENS, source.window - PROMPT)
    if room < 1:
        raise BadData(f"generation begins with {PROMPT} tokens of a validation row, and the window has {source.window}")
    data = trained.slice().dataset
    rows = data.rows(np.arange(num_samples) % data.rows_in_first_epoch)[:, :PROMPT]
    templates = [Template(ids=[*(int(i) for i in row), *[None] * room]) for row in rows]
    seed = trained.cfg.train.eval_seed
    return generate(trained.engine, source, templates, default_of(source.objective), How(), seed)


def describe(found: dict) -> str:
    lines = [f"{found['architecture']} at step {found['step']}"]
    if found.get("perplexity") is not None:
        lines.append(f"perplexity {found['perplexity']:.4f}")
    if found.get("perplexity_upper_bound") is not None:
        lines.append(f"perplexity at most {found['perplexity_upper_bound']:.4f}: exp of an upper bound, no perplexity")
    if found["architecture"] == "sdd" and "loss" in found:
        lines.append(f"loss {found['loss']:.4f} nats a token, {found['convention']['value']}")
    if "accuracy" in found:
        lines.append(f"accuracy {found['accuracy']:.4f} {found['accuracy_is']}")
        quarters = [f"{found[name]:.4f}" for name in sorted(found) if name.startswith("accuracy_t")]
        if quarters:
            lines.append(f"accuracy by quarters of the noise level, from little to all: {' '.join(quarters)}")
    if "generation" in found and found["generation"]["self_bleu"] is not None:
        lines.append(f"self-BLEU {found['generation']['self_bleu']:.4f} of {len(found['generation']['samples'])} texts")
    if "speed" in found:
        lines.append(f"{found['speed']['tokens_per_sec']:.1f} tokens/s")
    return "\n".join(lines)
