"""``tokenflex convert``: released checkpoints to host + parts, and back."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any


def register(commands: Any) -> None:
    """Add the command, with its options, to the parsers of ``tokenflex``."""
    parser = commands.add_parser(
        "convert",
        help="turn a released AVG-LLaVA or M3 checkpoint into a stock host with parts",
        description="Write a released checkpoint (a folder, or a repository of the model hub such as "
        "zhibinlan/AVG-LLaVA) as a stock LLaVA-NeXT folder with tokenflex.json and tokenflex.safetensors. Run again "
        "after its end, it says so and does nothing; killed before, it starts anew.",
    )
    parser.add_argument("source", help="released folder or repository; with --reverse a converted folder")
    parser.add_argument("out", help="folder to write; a new one, or what the same command wrote before")
    parser.add_argument("--force", action="store_true", help="replace the model that is in the folder")
    parser.add_argument("--reverse", action="store_true", help="write the released layout from a converted folder")
    parser.add_argument(
        "--check", action="store_true", help="run both layouts' tensors and print the largest difference"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.set_defaults(run=run, takes_overrides=False)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Convert, check if asked to, and say what was done."""
    from tokenflex import conversion

    def waiting() -> None:
        print(f"Another process is converting into {options.out}; waiting for its end.", file=sys.stderr)

    way = conversion.reverse if options.reverse else conversion.convert
    done = way(options.source, options.out, force=options.force, waiting=waiting)
    said: dict[str, Any] = {"source_tensors": done.source_tensors, "used": done.used}
    if not done.written:
        said["written"] = False
    if options.check:
        layouts = (options.out, options.source) if options.reverse else (options.source, options.out)
        said = {"max_abs_diff": conversion.largest_difference(*layouts), **said}
    if options.json:
        print(json.dumps(said))
        return 0
    if done.written:
        print(f"{done.used} of {done.source_tensors} tensors written to {options.out}")
    else:
        print(f"{options.out} is complete and equal to what would be written; nothing was done")
    print("with the trained router" if done.parts else "no router in this checkpoint: host and scaler only")
    if options.check:
        print(f"largest difference between both layouts: {said['max_abs_diff']:g}")
    return 0
