"""Models that were trained, by the measures of others: lm-eval's tasks, and the one evaluator of several trainers."""
