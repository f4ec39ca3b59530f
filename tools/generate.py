"""What a trained run writes: continuations of prompts, or text for gaps.

    python tools/generate.py RUN_DIR --prompt "def " --num-samples 4 --temperature 0.8 --top-p 0.95
    python tools/generate.py RUN_DIR --infill "import [MASK:6] as np" --sampler confidence
    python tools/generate.py RUN_DIR --vectors vectors.npy --guidance 1       # a run of texts with vectors (--latent-size)
    python tools/generate.py RUN_DIR --prompts texts.txt --to-vectors out.npy # one that predicts vectors (--objective t2l, joint)

Sample i is a function of the seed and i: the same alone or in any batch. An autoregressive run is continued until it draws the
end of the document; text of a masked-diffusion run is cut there. Runs in one process, whatever layout the run had.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
import json

from megatron.errors import BadData, CannotWrite, Mismatch, MissingInput, exits  # noqa: E402
from megatron.flags import ConfigError  # noqa: E402
from megatron.sampling.table import SAMPLERS, SETTINGS, default_of, sampler_for  # noqa: E402


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="generate.py", allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder of a run, or one of its checkpoints")
    p.add_argument("--checkpoint", help="a step, best, newest, or a path [the last of a run that is finished]")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--prompt", help="text to go on with [the beginning of a document]")
    what.add_argument("--prompts", type=Path, metavar="FILE", help='one prompt a line; of a .jsonl file {"prompt": ...} a line')
    what.add_argument("--infill", metavar="TEXT", help="text with gaps, [MASK:5] for five tokens")
    p.add_argument(
        "--vectors", type=Path, metavar="FILE.npy", help="write texts for the vectors of this file, [m, d] or [d], as they came"
    )
    p.add_argument(
        "--to-vectors", type=Path, metavar="OUT.npy", help="write a vector for each prompt here, by --steps of DDIM [50]"
    )
    p.add_argument("--num-samples", type=int, default=1, help="of each prompt, or vector [1]")
    p.add_argument("--max-new-tokens", type=int, help="at most so many [the rest of the run's --seq-length]")
    p.add_argument("--sampler", choices=SAMPLERS, help="[ar: autoregressive; mdm: ancestral; sdd: sdd-renoise]")
    p.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token [1]")
    p.add_argument("--top-k", type=int, help="draw from the k likeliest tokens")
    p.add_argument("--top-p", type=float, help="draw from the likeliest tokens that together reach p")
    p.add_argument("--min-p", type=float, help="draw from tokens with this share of the likeliest one's probability")
    p.add_argument("--steps", type=int, help="forward passes of a sample, for masked diffusion [one a token]")
    p.add_argument("--block-length", type=int, help="fill blocks of so many tokens one after the other [one block]")
    p.add_argument("--threshold", type=float, help="probability that the sampler threshold asks for [0.9]")
    p.add_argument("--factor", type=float, help="of the sampler factor: n places need a probability of 1 - f / (n + 1) [1]")
    p.add_argument("--entropy-bound", type=float, help="nats of the sampler entropy-bounded [0.1]")
    p.add_argument("--eta", type=float, help="how much remdm samplers hide again [0.04; remdm-confidence 1]")
    p.add_argument(
        "--cache",
        choices=("prefix", "dual", "delayed"),
        help="not read again in a block: what stands left of it, all around it, and with delayed also what is filled",
    )
    p.add_argument("--guidance", type=float, metavar="W", help="move away from what is likely without the prompt")
    p.add_argument("--seed", type=int, default=0, help="names all random numbers, with the number of the sample [0]")
    p.add_argument("--stop", metavar="TEXT", help="end a sample before this text")
    p.add_argument("--ignore-end", action="store_true", help="go on behind the end of a document")
    p.add_argument("--batch-size", type=int, default=32, help="samples at once [32]")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run [auto]")
    p.add_argument("--dtype", choices=("fp64", "fp32", "bf16"), help="precision of the model [the run's]")
    p.add_argument("--json", action="store_true", help="for programs: one JSON value on stdout, all else on stderr")
    return p


def refuse_early(given: argparse.Namespace) -> None:
    """What is wrong whatever the run is.  Raises ConfigError."""
    counts = ("num_samples", "max_new_tokens", "batch_size")
    mistakes = [
        f"--{name.replace('_', '-')} {getattr(given, name)}: expected 1 or more"
        for name in counts
        if getattr(given, name) is not None and getattr(given, name) < 1
    ]
    if not 0 <= given.seed < 2**64:
        mistakes.append(f"--seed {given.seed}: expected 0 or more, and below 2**64")
    if given.stop == "":
        mistakes.append("--stop is empty: give the text that ends a sample, or leave it out")
    for name in ("max_new_tokens", "stop", "ignore_end"):
        if given.infill is not None and getattr(given, name):
            mistakes.append(
                f"--{name.replace('_', '-')} would do nothing with --infill, whose gaps say what is filled: leave it out"
            )
    if given.vectors and given.prompts:
        mistakes.append("--vectors and --prompts are both read one by one: give one --prompt, or none")
    if given.to_vectors:
        unread = ("vectors", "infill", "sampler", "max_new_tokens", "stop", "ignore_end")
        mistakes += [
            f"--{name.replace('_', '-')} would do nothing with --to-vectors, which reads texts: leave it out"
            for name in unread
            if getattr(given, name)
        ]
    if mistakes:
        raise ConfigError(mistakes)


def read_prompts(path: Path) -> list[str]:
    """Raises MissingInput, BadData."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MissingInput(f"--prompts {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadData(f"--prompts {path} is not UTF-8 text: {error}") from None
    if path.suffix == ".jsonl":
        try:
            lines = [json.loads(line)["prompt"] for line in lines if line.strip()]
        except (ValueError, KeyError, TypeError):
            raise BadData(f'--prompts {path}: expected {{"prompt": "a text"}} on every line') from None
    if not lines or not all(isinstance(line, str) for line in lines):
        raise BadData(f"--prompts {path}: expected texts, found {'none' if not lines else 'other values'}")
    return lines


@exits
def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    refuse_early(given)
    prompts = read_prompts(given.prompts) if given.prompts else [given.prompt or ""]
    from megatron.sampling.draws import How
    from megatron.sampling.generate import Source, continued, generate, read_vectors, with_gaps
    from megatron.training import open_run

    trained = open_run(
        given.run_dir,
        given.checkpoint,
        device=given.device,
        dtype=given.dtype,
        say=lambda line: print(line, file=sys.stderr),
        vectors=bool(given.vectors or given.to_vectors),
        blocks=True,
    )
    source = Source.of(trained.cfg, trained.tokenizer)
    names = ("temperature", "top_k", "top_p", "min_p", *SETTINGS)
    how = How(**{name: getattr(given, name) for name in names})
    if given.to_vectors:
        return write_vectors(given, trained, source, prompts, how)
    sampler = given.sampler or default_of(source.objective)
    sampler_for(sampler, source.objective)
    if given.infill is not None:
        templates = [with_gaps(source, given.infill)]
    else:
        templates = [continued(source, prompt, given.max_new_tokens) for prompt in prompts]
    vectors = None
    if given.vectors:
        vectors = read_vectors(given.vectors, trained.standard, source.latent_size)
        templates, prompts = templates * len(vectors), prompts * len(vectors)
    done = generate(
        trained.engine,
        source,
        templates,
        sampler,
        how,
        seed=given.seed,
        num_samples=given.num_samples,
        batch_size=given.batch_size,
        ignore_end=given.ignore_end,
        stop=given.stop,
        vectors=vectors,
    )
    report(given, done, sampler, prompts)


def write_vectors(given: argparse.Namespace, trained, source, prompts: list[str], how) -> None:
    """Raises Mismatch for a run that predicts no vectors, CannotWrite."""
    import io

    import numpy as np

    from megatron.files import replace_file
    from megatron.sampling.generate import encoded
    from megatron.sampling.vectors import vectors_for

    if not trained.cfg.model.latent_head or source.mask is None:
        raise Mismatch(f"{given.run_dir} predicts no vectors: give a run of --objective t2l or joint")
    texts, end = [encoded(source, prompt) for prompt in prompts], trained.tokenizer.eod
    found = vectors_for(
        trained.engine,
        texts,
        source.latent_size,
        trained.cfg.model.text_length,
        end,
        source.mask,
        how,
        given.seed,
        given.num_samples,
        given.batch_size,
    )
    rows, out = trained.standard.raw(found.numpy()), io.BytesIO()
    np.save(out, rows)
    try:
        replace_file(given.to_vectors, out.getvalue())
    except OSError as error:
        raise CannotWrite(f"--to-vectors {given.to_vectors}: {error.strerror}") from None
    said = {"vectors": len(rows), "size": source.latent_size, "seed": given.seed, "file": str(given.to_vectors)}
    print(
        json.dumps(said)
        if given.json
        else f"{given.to_vectors}: {len(rows)} vectors of {source.latent_size} numbers, of {len(texts)} texts"
    )


def report(given: argparse.Namespace, done, sampler: str, prompts: list[str]) -> None:
    tokens = sum(sample.new_tokens for sample in done.samples)
    facts = {"sampler": sampler, "seed": given.seed, "new_tokens": tokens, "passes": done.passes}
    facts |= {"places_read": done.places, "seconds": done.seconds}
    if given.json:
        samples = [vars(sample) | ({} if given.infill else {"prompt": prompts[sample.prompt]}) for sample in done.samples]
        print(json.dumps(facts | {"samples": samples}, indent=1))
        return
    for sample in done.samples:
        print(f"--- sample {sample.number}, {sample.new_tokens} tokens, ended by {sample.ended_by}")
        print(("" if given.infill else prompts[sample.prompt]) + sample.text)
    speed = tokens / done.seconds if done.seconds else float("inf")
    read = f"{done.passes} passes of a row over {done.places} places"
    print(f"{sampler}: {tokens} tokens, {read}, {speed:,.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
