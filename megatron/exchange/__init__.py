"""Weights from one form to another: ours, plain safetensors, Megatron-DeepSpeed's files, Hugging Face folders, dictionaries."""
