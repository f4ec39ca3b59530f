#!/usr/bin/env python3
"""Pre-train a masked-diffusion model."""

import sys

from megatron import config

if __name__ == "__main__":
    cfg = config.main(objective="mdm")
    from megatron.training.pretrain import main  # torch is imported only once the flags are right

    sys.exit(main(cfg))
