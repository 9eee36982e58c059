"""The command line, `pbsd COMMAND`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import traceback
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

    options = commands.add_parser("options", help="list every option of a recipe, with its default and what it does")
    options.add_argument("method", nargs="?", default="pbsd", help="whose options (default pbsd)")

    render = commands.add_parser("render", help="show both roles' prompts, with ids, lengths and what would be dropped")
    render.add_argument("recipe")
    render.add_argument("-n", type=int, default=3, help="how many rows to show (default 3)")

    doctor = commands.add_parser(
        "doctor", help="check machine, model, data, templates, lengths, stop tokens, one dry step"
    )
    doctor.add_argument("recipe")
    doctor.add_argument("--no_weights", action="store_true", help="without the model's weights, for a larger machine")
    doctor.add_argument("--device_memory", type=float, default=80, help="GiB a device, with --no_weights (default 80)")

    pilot = commands.add_parser("pilot", help="sample and score pairs before training, for `pbsd advise`")
    pilot.add_argument("recipe", help="YAML file; any of its keys can be given as a flag: --teacher external")
    pilot.add_argument("--out", required=True, help="JSONL file to write")
    pilot.add_argument("-n", type=int, default=64, help="how many prompts (default 64)")

    advise = commands.add_parser("advise", help="self-teacher or external teacher? An answer from pilot pairs")
    advise.add_argument("--self", dest="own", required=True, metavar="JSONL", help="pairs of the self-teacher")
    advise.add_argument("--external", required=True, metavar="JSONL", help="pairs of the external teacher")
    advise.add_argument("--budget", type=_positive_int, default=1000, help="labelled pairs to train on (default 1000)")
    advise.add_argument("--reward_scale", type=_positive, default=1.0, help="reward scale of the training (default 1)")
    advise.add_argument("--dimension", type=_positive, help="directions to learn, where the pilots have no features")
    advise.add_argument("--out", metavar="JSON", help="write all figures to this file")
    advise.add_argument("--beta", type=_positive, default=0.1, help="temperature of the tilt (default 0.1)")

    theory = commands.add_parser("theory", help="when a self-teacher beats an external one, in an exact family")
    theory_commands = theory.add_subparsers(dest="theory_command", required=True)
    crossover = theory_commands.add_parser("crossover", help="predicted and simulated crossover at one point")
    crossover.add_argument("--advantage", type=float, required=True, help="lead of the external target, in reward")
    crossover.add_argument("--overlap", type=float, required=True, help="share of its samples in the student's style")
    crossover.add_argument("--out", metavar="DIR", help="write table and picture to this folder")
    diagram = theory_commands.add_parser("phase-diagram", help="the preferable teacher over advantage, overlap and n")
    diagram.add_argument("--out", metavar="DIR", required=True, help="folder for the table and the picture")
    for command in (crossover, diagram):
        command.add_argument(
            "--dimension",
            type=int,
            choices=range(2, 6),
            default=3,
            help="features (default 3; 3^dimension completions)",
        )
        command.add_argument("--style_gap", type=float, default=5.0, help="reward of the foreign style (default 5)")
        command.add_argument("--beta", type=_positive, default=0.5, help="temperature of the tilt (default 0.5)")
        command.add_argument(
            "--yardstick",
            choices=("soft_value", "reward"),
            default="soft_value",
            help="what a target is worth: E[r] - beta KL(pi || T), or E[r] (default soft_value)",
        )

    lab = commands.add_parser("lab", help="the laboratory of tiny models")
    lab_commands = lab.add_subparsers(dest="lab_command", required=True)
    lab_commands.add_parser("build", help="build base models (--help lists its flags)", add_help=False)
    lab_commands.add_parser("list", help="show the base models and what was measured of them", add_help=False)

    commands.add_parser("compare", help="methods x worlds x tasks x scales x seeds, by a study file", add_help=False)

    commands.add_parser("evaluate", help="measure a model on a benchmark, or compare two results", add_help=False)

    commands.add_parser("report", help="one web page of runs and studies", add_help=False)

    args, flags = parser.parse_known_args(argv)
    if flags and args.command in ("advise", "theory", "options"):
        parser.error(f"unknown arguments: {' '.join(flags)}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return _run(args, flags)
    except KeyboardInterrupt:
        print("pbsd: interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f"pbsd: {_in_one_sentence(error)}", file=sys.stderr)
        return 2


def _in_one_sentence(error: Exception) -> str:
    """What the user is told: our own refusals as they are, anything else with its type and where it came from."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error}; make room, then the same command with --resume goes on"
    if isinstance(error, ValueError | OSError | ImportError) and not isinstance(error, UnicodeError):
        return str(error) or type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if f"{os.sep}pbsd{os.sep}" in frame.filename]
    where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    what = "something is nested too deep" if isinstance(error, RecursionError) else str(error)
    return (
        f"{type(error).__name__}{where}: {what}. A damaged model, data or checkpoint file can be the cause, or a fault "
        "of pbsd: `pbsd --debug` with the same command shows the traceback"
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 1e-100 < value < 1e100:
        raise argparse.ArgumentTypeError(f"must be a positive number of ordinary size, got {text}")
    return value


def _positive_int(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _run(args: argparse.Namespace, flags: list[str]) -> int:
    if args.command == "lab":
        from pbsd.lab import commands as lab_commands

        lab_commands.run(args.lab_command, flags)
        return 0

    if args.command == "compare":
        from pbsd.compare import commands as compare_commands

        return compare_commands.run(flags)

    if args.command == "evaluate":
        from pbsd.evaluate import commands as evaluate_commands

        return evaluate_commands.run(flags)

    if args.command == "report":
        from pbsd.report import commands as report_commands

        report_commands.run(flags)
        return 0

    if args.command == "advise":
        from pbsd import advise
        from pbsd.theory.pilot import Setting

        setting = Setting(args.beta, args.reward_scale, args.dimension)
        advise.run(args.own, args.external, setting, budget=args.budget, out=args.out)
        return 0
    if args.command == "theory":
        from pbsd import theory_commands

        family = {key: getattr(args, key) for key in ("beta", "dimension", "style_gap", "yardstick")}
        if args.theory_command == "crossover":
            theory_commands.run_crossover(args.out, advantage=args.advantage, overlap=args.overlap, **family)
        else:
            theory_commands.run_phase_diagram(args.out, **family)
        return 0

    if args.command == "options":
        from pbsd import show_options

        show_options.show(args.method)
        return 0

    import datasets
    from transformers.utils import logging as transformers_logging

    from pbsd.recipe import load_recipe

    if args.command == "doctor" and args.no_weights:
        from pbsd.weightless import doctor as weightless_doctor

        return 0 if weightless_doctor(args.recipe, flags, device_memory=args.device_memory) else 1

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

    if args.command == "pilot":
        from pathlib import Path

        from pbsd.pilot import collect_pilot

        print(f"{collect_pilot(run, config, Path(args.out), prompts=args.n)} pairs in {args.out}")
        if (loss_type := getattr(config, "loss_type", None)) != "bradley_terry":
            print(f"the recipe trains by {loss_type}; `pbsd advise` speaks of bradley_terry")
        return 0

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
