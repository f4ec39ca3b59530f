"""Samplers: from a trained model's logits to ids and text. Anything with an engine's `logits(batches)` can be sampled."""
