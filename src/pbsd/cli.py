"""The command line: `pbsd train | render | doctor | lab`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. An error in the user's input is one sentence, not a traceback."""
    parser = argparse.ArgumentParser(
        prog="pbsd", description="Post-train language models by Preference-Based Self-Distillation."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train by a recipe and measure accuracy before and after")
    train.add_argument("recipe", help="YAML file; any of its keys can be given as a flag: --learning_rate 3e-4")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the run folder")

    render = commands.add_parser("render", help="show both roles' prompts, with ids, lengths and what would be dropped")
    render.add_argument("recipe")
    render.add_argument("-n", type=int, default=3, help="how many rows to show (default 3)")

    doctor = commands.add_parser(
        "doctor", help="check machine, model, data, templates, lengths, stop tokens, one dry step"
    )
    doctor.add_argument("recipe")

    lab = commands.add_parser("lab", help="the laboratory of tiny models")
    lab_commands = lab.add_subparsers(dest="lab_command", required=True)
    lab_commands.add_parser("build", help="rebuild the packaged base model (--help lists its flags)", add_help=False)

    args, flags = parser.parse_known_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return _run(args, flags)
    except (ValueError, OSError, ImportError) as error:
        if args.debug:
            raise
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        mend = "; make room, then the same command with --resume goes on" if full else ""
        print(f"pbsd: {error}{mend}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pbsd: interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, flags: list[str]) -> int:
    if args.command == "lab":
        from pbsd.lab import base_model

        build = argparse.ArgumentParser(prog="pbsd lab build")
        base_model.add_arguments(build)
        base_model.run(build.parse_args(flags))
        return 0

    import datasets
    from transformers.utils import logging as transformers_logging

    from pbsd.recipe import load_recipe

    run, config = load_recipe(args.recipe, flags)
    # After the recipe: transformers takes a quiet log as a wish for no progress bar.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if args.command == "render":
        from pbsd.inspect_recipe import render

        render(run, config, count=args.n)
        return 0
    if args.command == "doctor":
        from pbsd.inspect_recipe import doctor

        return 0 if doctor(run, config) else 1

    from pbsd.progress import print_summary
    from pbsd.run import Stopped, leave_process_group, train

    try:
        summary = train(run, config, resume=args.resume)
    except Stopped as stopped:
        print(f"pbsd: {stopped}", file=sys.stderr)
        return 143
    finally:
        leave_process_group()
    if config.process_index == 0:
        print_summary(summary, config.output_dir or "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
