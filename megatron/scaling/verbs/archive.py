"""Pack tables, configurations, fits and figures into one citable zip with a manifest; --check verifies one."""

from __future__ import annotations

import argparse

from megatron.flags import ConfigError
from megatron.scaling.show.screen import say
from megatron.scaling.table.archive import check, pack
from megatron.scaling.verbs import Answer, json_argument


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="run directories, report folders, tables")
    parser.add_argument("--out", metavar="FILE", help="the archive to write; never replaced")
    parser.add_argument("--title", default="Scaling runs and fits", help="for README and citation [%(default)s]")
    parser.add_argument("--author", default="Anonymous", help="for README and citation [%(default)s]")
    parser.add_argument("--check", metavar="FILE", help="compare an archive with its manifest, and write nothing")
    json_argument(parser)


def command(args: argparse.Namespace) -> Answer:
    """Do it."""
    if args.check:
        if args.paths or args.out:
            raise ConfigError(["--check FILE verifies an archive and takes neither paths nor --out; leave one of them out."])
        count = check(args.check)
        say(f"{args.check}: {count} files are as its manifest says")
        return Answer({"archive": args.check, "num_files": count})
    if not (args.paths and args.out):
        raise ConfigError(["archive needs paths and --out FILE.zip, or --check FILE."])
    names = pack(args.paths, args.out, args.title, args.author)
    say(f"wrote {args.out}: {len(names)} files")
    return Answer({"archive": args.out, "num_files": len(names), "files": names})
