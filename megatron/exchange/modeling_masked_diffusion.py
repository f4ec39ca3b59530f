"""Masked diffusion on a Llama- or Mistral-shaped transformer, for transformers. This file travels with the weights.

    model = AutoModelForMaskedLM.from_pretrained(FOLDER, trust_remote_code=True)
    ids = torch.full((1, 64), model.config.mask_token_id)     # or a prompt with masks behind, or a text with gaps
    ids = model.sample(ids, steps=32)

Every position sees every other, the mask is never predicted, and check.json, where it is beside the weights, holds what the
trained model says of a few ids: loading fails where this model says anything else. b rows, s positions, v ids.
"""

import json

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel
from transformers.utils import cached_file

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}  # nats; others 0.5
PLACE = ("cache_dir", "local_files_only", "revision", "subfolder", "token")


class MaskedDiffusion(PreTrainedModel):
    """What is added to a causal model."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **given):
        """Logits [b, s, v + 1] of what stands at each position itself; the mask's is -inf.

        `attention_mask` [b, s]: 0 where nobody looks.
        """
        if labels is not None:
            raise TypeError("labels would be shifted by one: take the cross-entropy of the logits at the masked positions")
        some = input_ids if input_ids is not None else given["inputs_embeds"]
        seen = some.new_ones(some.shape[:2]) if attention_mask is None else attention_mask
        hidden = (1.0 - seen[:, None, None, :].to(self.dtype)) * torch.finfo(self.dtype).min
        given |= {"attention_mask": hidden.expand(-1, 1, seen.shape[1], -1), "use_cache": False}  # 4-D: all versions obey it
        found = super().forward(input_ids=input_ids, **given)
        mask = torch.tensor([self.config.mask_token_id], device=found.logits.device)
        found.logits = found.logits.index_fill(-1, mask, -torch.inf)
        return found

    @torch.no_grad()
    def sample(self, ids: Tensor, steps: int | None = None, temperature: float = 0.0, rule: str = "confidence", seed: int = 0):
        """Fill every mask of ids [b, s], each row in `steps` passes [one a mask], surest places or random ones first.  -> [b, s]

        temperature 0 takes the likeliest id. All places of one pass are drawn independently. Log-probabilities that are compared
        are rounded to 1e-4, and ties go to the lower id or to the left.
        """
        if rule not in ("confidence", "random"):
            raise ValueError(f"rule {rule!r}: expected confidence or random")
        ids, rng = ids.clone(), torch.Generator().manual_seed(seed)
        most = int((ids == self.config.mask_token_id).sum(1).max())
        steps = most if steps is None else min(steps, most)
        for left in range(steps, 0, -1):
            open_places = ids == self.config.mask_token_id
            log_p = self(ids).logits.double().cpu().log_softmax(-1)
            if temperature > 0:
                noise = -(-torch.rand(log_p.shape, generator=rng, dtype=torch.float64).log()).log()
                found = ((log_p / temperature).log_softmax(-1) + noise).argmax(-1)
            else:
                close = log_p.round(decimals=4)
                found = close.eq(close.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1)
            sure = log_p.amax(-1) if rule == "confidence" else torch.rand(ids.shape, generator=rng, dtype=torch.float64)
            sure = sure.round(decimals=4).masked_fill(~open_places.cpu(), -torch.inf)
            rank = sure.sort(dim=1, descending=True, stable=True).indices.argsort(1).to(ids.device)
            count = (open_places.sum(1, keepdim=True) / left).ceil()
            ids = torch.where(open_places & (rank < count), found.to(ids.device), ids)
        return ids

    def generate(self, *_, **__):
        raise TypeError("a masked-diffusion model writes in any order: call sample() on ids that hold masks")

    @classmethod
    def from_pretrained(cls, folder, *given, **named):
        found = super().from_pretrained(folder, *given, **named)
        model = found[0] if isinstance(found, tuple) else found
        place = {name: named[name] for name in PLACE if name in named}
        path = cached_file(folder, "check.json", _raise_exceptions_for_missing_entries=False, **place)
        if path is not None:
            with open(path) as file:
                model.verify(json.load(file))
        return found

    @torch.no_grad()
    def verify(self, check: dict) -> None:
        """Raises ValueError where log-probabilities differ from those of the trained model."""
        was_training, ids = self.training, torch.tensor(check["ids"], device=self.device)
        log_p = self.eval()(ids).logits.float().log_softmax(-1).cpu()
        self.train(was_training)
        found = log_p.gather(2, torch.tensor(check["targets"])[..., None])[..., 0]
        worst = float((found - torch.tensor(check["log_probabilities"])).abs().max())
        if not worst <= TOLERANCE.get(self.dtype, 0.5):
            raise ValueError(
                f"this model is not the one that was trained: log-probabilities differ by {worst:.4g} nats from check.json. "
                "A causal mask, other rotary settings or damaged weights do that; use transformers 5 or later"
            )


class LlamaForMaskedDiffusion(MaskedDiffusion, LlamaForCausalLM):
    pass


class MistralForMaskedDiffusion(MaskedDiffusion, MistralForCausalLM):
    pass
