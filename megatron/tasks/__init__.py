"""Multiple-choice questions: how likely a model finds each answer, and whether it prefers the right one."""
