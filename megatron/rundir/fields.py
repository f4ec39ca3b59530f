"""The fields of a run folder's files: name -> (type, unit, meaning). null stands for what is not known.

JSON has no NaN: a number that is not finite is one of the strings "nan", "inf", "-inf". Times are seconds since 1970, losses nats
a token, FLOPs 6 N D with N of `params_convention`.
"""

from __future__ import annotations

from megatron.errors import BadData
from megatron.rundir import names

TEXT, COUNT, NUMBER, FLAG, OBJECT, OBJECTS = "text", "count", "number", "flag", "object", "list of objects"
TEXTS = "list of texts"
TYPES: dict[str, tuple[type, ...]] = {
    TEXT: (str,),
    COUNT: (int,),
    NUMBER: (int, float),
    FLAG: (bool, int),
    OBJECT: (dict,),
    OBJECTS: (list,),
    TEXTS: (list,),
}
NON_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
Fields = dict[str, tuple[str, str, str]]

AXES: Fields = {
    "step": (COUNT, "steps", "optimizer steps taken, skipped ones included"),
    "samples": (COUNT, "samples", "training samples consumed"),
    "tokens": (COUNT, "tokens", "training tokens consumed: samples x sequence length"),
    "flops": (NUMBER, "FLOPs", "6 x all parameters x tokens"),
    "epoch": (NUMBER, "epochs", "passes over the training data"),
    "time": (NUMBER, "s", "when the record was made"),
}
SCORES: Fields = {
    "loss": (NUMBER, "nats/token", "mean negative log-likelihood, exact or a bound; of sdd its cross-entropy of denoising"),
    "loss_se_noise": (NUMBER, "nats/token", "standard error from the noise draws; null for an exact loss of one draw"),
    "loss_se_noise_df": (NUMBER, "", "its degrees of freedom; null for an exact loss"),
    "loss_se_data": (NUMBER, "nats/token", "standard error from the choice of validation rows"),
    "perplexity": (NUMBER, "", "exp(loss); not of an objective without a likelihood"),
    "bits_per_byte": (NUMBER, "bits/byte", "loss over the bytes of the scored text; not of an objective without a likelihood"),
    "accuracy": (NUMBER, "0..1", "share of asked positions whose likeliest token is right; a tie of n counts 1 / n"),
    "bound": (TEXT, "exact | bound | denoising", "what the loss is; denoising says nothing of an NLL"),
    "rows": (COUNT, "rows", "validation rows scored"),
    "num_mc": (COUNT, "draws", "noise draws a row"),
    "convention": (OBJECT, "", "how the score was made"),
}
RECORD: Fields = {
    "kind": (TEXT, "train | val | val-NAME | test | task-NAME | event", "what the record is"),
    **AXES,
    **SCORES,
    "accuracy_se": (NUMBER, "0..1", "task: standard error of its accuracy from the choice of questions"),
    "accuracy_norm": (NUMBER, "0..1", "task: accuracy of the likeliest choice a byte"),
    "accuracy_norm_se": (NUMBER, "0..1", "task: its standard error"),
    "answer_bpb": (
        NUMBER,
        "bits/byte",
        "task: of the right answers given their queries, a mean over questions; exact or a bound",
    ),
    "answer_bpb_se": (NUMBER, "bits/byte", "task: standard error from the choice of questions, with what the draws add"),
    "answer_bpb_se_noise": (NUMBER, "bits/byte", "task: standard error from the draws; null where one block of them cannot tell"),
    "questions": (COUNT, "questions", "task: of the file"),
    "passes": (COUNT, "passes", "task: of a row through the model"),
    "text_loss": (NUMBER, "nats/token", "texts with vectors: the text's part of the loss"),
    "vector_loss": (NUMBER, "", "texts with vectors: mean square of the error of v; in validations besides the loss"),
    "lr": (NUMBER, "", "learning rate of the step"),
    "grad_norm": (NUMBER, "", "norm of the gradient before clipping"),
    "clipped_norm": (NUMBER, "", "norm of the gradient after clipping"),
    "loss_of_text": (NUMBER, "nats/token", "with --distill: the text's own NLL; `loss` is then the teachers' part besides"),
    "gradient_noise_scale": (
        NUMBER,
        "samples",
        "batch at which a gradient is as much noise as signal; averages of some 100 steps",
    ),
    "params_norm": (NUMBER, "", "norm of all parameters"),
    "batch_size": (COUNT, "samples", "global batch"),
    "seq_length": (COUNT, "tokens", "of a sample"),
    "step_seconds": (NUMBER, "s", "mean over the interval"),
    "tokens_per_sec": (NUMBER, "tokens/s", "of the whole world"),
    "tokens_per_gpu_per_sec": (NUMBER, "tokens/s", "of one process"),
    "world_size": (COUNT, "processes", ""),
    "tflops": (NUMBER, "TFLOP/s", "of one process, model FLOPs: the head on every token, attention without causal halving"),
    "mfu": (NUMBER, "0..1", "their share of the device's peak"),
    "executed_tflops": (NUMBER, "TFLOP/s", "the head where asked, causal attention halved, recomputing, Muon, teachers"),
    "hfu": (NUMBER, "0..1", "their share of the device's peak"),
    "memory_bytes": (COUNT, "bytes", "peak of the fullest process"),
    "utilization": (NUMBER, "0..1", "of the device"),
    "skipped": (COUNT, "steps", "not finite and skipped, so far"),
    "skipped_in_interval": (COUNT, "steps", "of these, since the last record"),
    "k": (NUMBER, "candidates", "sdd: of a position, in this step"),
    "ignore_acc": (NUMBER, "0..1", "sdd: share of empty places behind a row's end that are seen to be"),
    **{
        f"{name}_t{i}": (unit, said, f"sdd: of rows in quarter {i} of the noise level t; 1 has the least noise")
        for name, unit, said in (("loss", NUMBER, "nats/token"), ("accuracy", NUMBER, "0..1"))
        for i in (1, 2, 3, 4)
    },
    "auxiliary_loss": (NUMBER, "", "atat: of the network that estimates importance"),
    "companion_grad_norm": (NUMBER, "", "atat: norm of that network's gradient before clipping"),
    "masking_rate": (NUMBER, "0..1", "atat: share of scored positions that are masked, in the record's own step as all below"),
    "noise_level": (NUMBER, "", "atat: -log of the share of positions that the row's t leaves visible, a mean over positions"),
    "importance_mean": (NUMBER, "", "atat: over the scored positions of a row, a mean over rows by their positions"),
    "importance_std": (NUMBER, "", "atat: standard deviation within a row, a mean likewise"),
    "importance_min": (NUMBER, "", "atat: the least"),
    "importance_max": (NUMBER, "", "atat: the largest"),
    "curriculum_stage": (NUMBER, "1..3", "atat: easy positions first, all alike, hard ones first"),
    "event": (TEXT, "", "name of an event"),
}
FACTS: Fields = {
    "name": (TEXT, "", "of the folder"),
    "created": (NUMBER, "s", "when it began"),
    "branch": (TEXT, "", "id of the newest start; checkpoints carry the id of theirs"),
    "began": (COUNT, "steps", "where the first start of this record began"),
    "first_branch": (TEXT, "", "id of that first start"),
    "version": (TEXT, "", "of the package"),
    "code": (TEXT, "", "commit, + with local changes"),
    "environment": (OBJECT, "", "versions, device, threads, dtype, peak FLOP/s"),
    "fingerprints": (OBJECT, "", "of tokenizer, data sets and, with --distill, the teachers' weights"),
    "tokens_per_epoch": (COUNT, "tokens", ""),
    "params": (COUNT, "parameters", "all"),
    "params_non_embedding": (COUNT, "parameters", "without embeddings and head"),
    "params_with_head": (COUNT, "parameters", "without the input embedding"),
    "params_published": (COUNT, "parameters", "as the reference counts"),
    "flops_per_token": (NUMBER, "FLOPs/token", "exact, not 6 N"),
    "noise_seed": (COUNT, "", "--seed"),
    "eval_seed": (COUNT, "", "--eval-seed"),
    "host": (TEXT, "", "of the first process"),
    "objective": (TEXT, "", ""),
    "bound": (TEXT, "exact | bound | denoising", "what its validation loss is"),
    "params_convention": (TEXT, "", "which count N is"),
    "flops_convention": (TEXT, "", "how FLOPs are counted"),
    "eval_slice": (TEXT, "", "fingerprint of the validation rows"),
    "convention": (OBJECT, "", "how its validation is scored; null without one"),
    "layout": (OBJECT, "", "of the first start"),
    "resumes": (OBJECTS, "", "an object for each time it went on: time, step, from, changed, layout, branch"),
}
OUTCOME: Fields = {
    "name": (TEXT, "", "of the folder"),
    "run": (TEXT, "", "the same, in tables"),
    "objective": (TEXT, "", ""),
    "params": (NUMBER, "parameters", "all"),
    "params_non_embedding": (NUMBER, "parameters", "without embeddings and head"),
    "params_with_head": (NUMBER, "parameters", "without the input embedding"),
    "params_published": (NUMBER, "parameters", "as the reference counts"),
    "params_convention": (TEXT, "", "which count N is"),
    "tokens": (NUMBER, "tokens", "trained on"),
    "unique_tokens": (NUMBER, "tokens", "of these, different ones"),
    "epochs": (NUMBER, "epochs", ""),
    "samples": (NUMBER, "samples", ""),
    "steps": (COUNT, "steps", ""),
    "flops": (NUMBER, "FLOPs", "by flops_convention"),
    "flops_convention": (TEXT, "", ""),
    "flops_exact": (NUMBER, "FLOPs", "attention and head counted"),
    "train_loss": (NUMBER, "nats/token", "of the last interval"),
    **{
        name: SCORES[name]
        for name in ("loss", "loss_se_noise", "loss_se_noise_df", "loss_se_data", "bits_per_byte", "accuracy", "bound")
    },
    "test_loss": (NUMBER, "nats/token", ""),
    "valid_sets": (OBJECT, "", "scores of each named validation set"),
    "tasks": (OBJECT, "", "the last scores of each file of --eval-tasks"),
    "best_loss": (NUMBER, "nats/token", "the lowest validation loss"),
    "seq_length": (NUMBER, "tokens", ""),
    "batch_size": (NUMBER, "samples", ""),
    "lr": (NUMBER, "", "peak"),
    "lr_decay_style": (TEXT, "", ""),
    "lr_decayed": (FLAG, "", "whether the rate came to its end"),
    "seed": (NUMBER, "", ""),
    "tokenizer": (TEXT, "", "fingerprint"),
    "vocab_size": (NUMBER, "tokens", ""),
    "eval_slice": (TEXT, "", "fingerprint of the validation rows"),
    "convention": (OBJECT, "", "how the score was made"),
    "attention_dropout": (NUMBER, "0..1", ""),
    "hidden_dropout": (NUMBER, "0..1", ""),
    "seconds": (NUMBER, "s", "of the last process"),
    "tokens_per_sec": (NUMBER, "tokens/s", "of the last process"),
    "world_size": (NUMBER, "processes", ""),
    "skipped": (NUMBER, "steps", "not finite and skipped"),
}
EVALUATED: Fields = {
    "objective": (TEXT, "", ""),
    **AXES,
    "averaged": (OBJECT, "", "checkpoints, steps and weights of a mean of checkpoints; not there for one as a run saved it"),
    "valid": (OBJECT, "", "scores of the validation set, under the names of metrics.jsonl"),
    "valid:NAME": (OBJECT, "", "of each further validation set"),
    "test": (OBJECT, "", "of the test set"),
    "task-NAME": (OBJECT, "", "of each file of --eval-tasks"),
}
ENDING: Fields = {
    "code": (COUNT, "", "exit code of all processes: megatron/errors.py"),
    "reason": (TEXT, "", "in words"),
    "step": (COUNT, "steps", "where it ended"),
    "rank": (COUNT, "", "that it began with"),
    "requeue": (FLAG, "", "whether the same command goes on from here"),
}
RESUME: Fields = {
    "time": (NUMBER, "s", "when"),
    "step": (COUNT, "steps", "that it began at"),
    "from": (TEXT, "", "the checkpoint"),
    "changed": (TEXTS, "", "flags, in words"),
    "layout": (OBJECT, "", "of this start"),
    "branch": (TEXT, "", "its id"),
}
INSIDE = {"resumes": RESUME, "convention": {"rows": SCORES["rows"], "num_mc": SCORES["num_mc"]}}  # of fields that are objects
SECTIONS = ("data", "model", "objective", "optim", "parallel", "train", "log")
OF_FILE: dict[str, Fields] = {
    names.METRICS: RECORD,
    names.FACTS: FACTS,
    names.RESULT: OUTCOME,
    names.EVALUATION: EVALUATED,
    names.EXIT: ENDING,
    names.CONFIG: {section: (OBJECT, "", "flags") for section in SECTIONS},
}


def fault_of(found: dict, fields: Fields) -> str:
    """A phrase on the first field that is of another type than it should be; empty where all are well."""
    for name, value in found.items():
        kind = fields[name][0] if name in fields else None
        if kind is None or value is None or (kind == NUMBER and value in ("nan", "inf", "-inf")):
            continue
        wrong = not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != FLAG)
        if wrong or (kind == COUNT and value < 0) or (kind == OBJECTS and not all(isinstance(item, dict) for item in value)):
            return f"{name} is {spell(value)}, expected a {kind}"
        if kind == TEXTS and not all(isinstance(item, str) for item in value):
            return f"{name} holds {spell(next(item for item in value if not isinstance(item, str)))}, expected texts"
        for item in ([value] if kind == OBJECT else value) if name in INSIDE else ():
            if fault := fault_of(item, INSIDE[name]):
                return f"{name}: {fault}"
    return ""


def spell(value: object) -> str:
    """A value that may be of any size, in few words."""
    short = isinstance(value, (bool, float)) or (isinstance(value, (str, int)) and len(repr(value)) < 40)
    return repr(value) if short else type(value).__name__


def check_fields(where: str, found: dict, fields: Fields, remedy: str) -> None:
    """Raises BadData."""
    if fault := fault_of(found, fields):
        raise BadData(f"{where}: {fault}; {remedy}")


def markdown() -> str:
    """The page docs/run-folder.md: the fields of every file."""
    page = ["# The fields of a run folder", "", " ".join((__doc__ or "").split("\n\n", 1)[1].split()), ""]
    for file, known in OF_FILE.items():
        page += [f"## {file}", "", "| field | type | unit | meaning |", "|---|---|---|---|"]
        page += [f"| `{name}` | {' | '.join(cell.replace('|', 'or') for cell in cells)} |" for name, cells in known.items()] + [
            ""
        ]
    return "\n".join(page)


if __name__ == "__main__":
    print(markdown(), end="")
