"""The verb that judges what articles claim: claims."""
from __future__ import annotations

import argparse

from .texts import tell
from .verb import UsageError, Verb


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="show these claims only [all]")
    parser.add_argument("--run", metavar="ID", help="run the small experiment of this claim, and print what it found")
    parser.add_argument("--save", action="store_true", help="with --run: also keep what was found in the project's results")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--markdown", action="store_true", help="print a table for a page")
    how.add_argument("--json", action="store_true", help="print the table as JSON")


def claims(args: argparse.Namespace) -> int:
    from ..study import claims as judge
    from ..study import run_claim
    if args.save and not args.run:
        raise UsageError("--save without --run; what an experiment found is kept: name one, --run ID --save")
    if args.run and args.ids:
        raise UsageError(f"--run {args.run} beside {', '.join(args.ids)}; it runs one claim and shows it: leave the others out")
    found = run_claim(args.run, args.save) if args.run else judge(args.ids)
    tell(args.json, found.to_dict(), found.markdown() if args.markdown else found)
    return 0


CLAIMS = Verb(
    "claims", "Judge what articles on transfer learning claim in numbers, by committed results, arithmetic and small experiments.",
    ("minitransfer claims", "minitransfer claims gpt3-flops lora-7b --markdown", "minitransfer claims --run imdb-2000"), arguments, claims)
