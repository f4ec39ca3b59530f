#!/usr/bin/env python3
"""The instrument: `scaling_laws.py VERB ...`, the same as `python -m megatron.scaling VERB ...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.stand_by() if sys.argv[1:2] == ["run"] else stopping.heed_interrupt()

from megatron.scaling.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
