#!/usr/bin/env python3
"""Pre-train an autoregressive model."""

import sys

from megatron import config

if __name__ == "__main__":
    cfg = config.main(objective="ar")
    from megatron.training.pretrain import main  # torch is imported only once the flags are right

    sys.exit(main(cfg))
