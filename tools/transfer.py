"""A run or a corpus to a URL and back: s3://, gs://, memory:// and whatever else fsspec knows.

    python tools/transfer.py runs/ar --upload-to s3://bucket/runs/ar
    python tools/transfer.py runs/ar --download-from s3://bucket/runs/ar

All files of the folder but hidden ones, each checked by size and sha256. A copy that was interrupted counts for nothing, and the
same command goes on with it; a folder that is fetched appears when all of it has arrived. Runs upload themselves with
`pretrain_*.py --upload-to URL`, and tools/prepare_corpus.py has both flags too.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout that is not installed
from megatron import stopping

if __name__ == "__main__":
    stopping.heed_interrupt()

import argparse
from collections.abc import Sequence

from megatron.data.copies import receive, send
from megatron.data.remote import is_url
from megatron.errors import MissingInput, exits
from megatron.flags import ConfigError


@exits
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of a run or a corpus, here")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--upload-to", metavar="URL", help="copy it there, over an earlier copy")
    way.add_argument("--download-from", metavar="URL", help="fetch it from there")
    args = parser.parse_args(argv)
    flag, url = ("--upload-to", args.upload_to) if args.upload_to else ("--download-from", args.download_from)
    if not is_url(url):
        raise ConfigError([f"{flag} {url}: expected a URL such as s3://bucket/runs/ar"])
    if args.download_from:
        receive(url, args.folder)
    elif not args.folder.is_dir():
        raise MissingInput(f"{args.folder} is no folder: give that of a run or a corpus")
    else:
        send(args.folder, url)


if __name__ == "__main__":
    sys.exit(main())
