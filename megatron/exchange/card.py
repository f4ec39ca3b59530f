"""The README.md of exported weights: what the model is, what its numbers mean, and how it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from megatron.catalogue import OBJECTIVES
from megatron.config import Config
from megatron.core.checkpoint import Checkpoint
from megatron.exchange.agreement import Agreement
from megatron.rundir import records
from megatron.rundir.names import METRICS
from megatron.standard_errors import combined

USE = {
    True: """from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
ids = tokenizer("A text", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=32)[0]))""",
    False: """import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained(FOLDER, trust_remote_code=True)   # modeling_masked_diffusion.py of this folder
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
prompt = tokenizer("A text", return_tensors="pt").input_ids
masks = torch.full((1, 32), model.config.mask_token_id)
print(tokenizer.decode(model.sample(torch.cat((prompt, masks), 1), steps=32)[0]))""",
}
MASKED_NOTES = """\
- Attention is bidirectional. Without `trust_remote_code` transformers 5 obeys `"is_causal": false`; versions before it would
  run a causal model, which is another one. The class of this folder runs bidirectionally in any version and refuses to load
  where it does not say what `check.json` says.
- Each position predicts its own token, not the next. Do not pass `labels`, which would be shifted, and do not call `generate()`.
- `mask_token_id` is read and never predicted: ignore its logit (the class of this folder sets it to -inf).
- The loss is an upper bound on the negative log-likelihood: exp(loss) is no perplexity.
"""


def card(cfg: Config, checkpoint: Checkpoint, run: Path, dtype: str, agreed: Agreement) -> str:
    known, shape, m = OBJECTIVES[cfg.objective.objective], cfg.model.shape(), cfg.model
    samples = checkpoint.facts["progress"]["samples"]
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: "
        + ("text-generation" if known.causal else "fill-mask")
        + f"\ntags: [{'autoregressive' if known.causal else 'masked-diffusion'}]\n---\n",
        f"# {known.label}, {shape.total():,} parameters\n",
        f"Objective: {known.title}. {m.num_layers} layers of width {m.hidden_size}, {m.num_attention_heads} heads of "
        f"{m.kv_channels}, SwiGLU {m.ffn_hidden_size}, rotary base {m.rotary_base:g}, window {m.seq_length}. "
        f"Step {checkpoint.step}: {samples * m.seq_length:,} tokens. Weights in {dtype}.\n",
        validation(run, checkpoint.step),
        "## Use\n\n```python\n" + USE[known.causal] + "\n```\n",
        "## Good to know\n",
        f"- Ids: {m.vocab_size} of the tokenizer"
        + (f", and the mask, {m.vocab_size}." if known.uses_mask else ".")
        + " In training, special tokens spelled in a text were ordinary text; AutoTokenizer makes special ids of them.",
    ]
    if cfg.data.reset_attention_mask:
        lines.append(
            "- In training no position looked past the border of its document (`--reset-attention-mask`): give one text a row."
        )
    if not known.causal:
        lines.append(MASKED_NOTES.rstrip())
    lines.append(
        f"- When it was written, logits differed by at most {agreed.logits:.1e} from the trained model's (float64), the NLL by "
        f"{agreed.nll:.1e} nats.\n"
    )
    return "\n".join(lines)


def validation(run: Path, step: int) -> str:
    """The validation of this step, as it stands in the run's records."""
    found = None
    if (run / METRICS).is_file():
        for _, record in records.read(run / METRICS):
            if record.get("kind") == "val" and record.get("step") == step:
                found = record
    if found is None:
        return "No validation of this step is on record.\n"
    said, rows = found["convention"], float(found["rows"])
    error, _ = combined((found["loss_se_noise"], found["loss_se_noise_df"]), (found["loss_se_data"], rows - 1.0))
    spread = "" if error is None else f" +- {error:.4f}"
    return (
        f"Validation loss: **{found['loss']:.4f}{spread}** {said['unit']}, {said['value']}"
        f" ({found['bits_per_byte']:.4f} bits a byte; the error is one standard error, of rows and noise).\n\n"
        f"```json\n{json.dumps(said, indent=1)}\n```\n"
    )
