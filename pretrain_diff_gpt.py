#!/usr/bin/env python3
"""Pre-train a masked-diffusion model."""

import sys

from megatron import stopping

if __name__ == "__main__":
    stopping.stand_by()
    from megatron import config

    cfg = config.main(objective="mdm")
    from megatron.training.pretrain import main  # torch is imported only once the flags are right

    score = None
    if cfg.train.final_scores:
        from megatron.likelihood.final import score
    code = main(cfg, score)
    stopping.ignore()
    sys.exit(code)
