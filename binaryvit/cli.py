"""The command line: `binaryvit reproduce`, `status`, `figures`, `verify`, `commands`, `train`, `evaluate`, `export`,
`classify` and `bench`.

Exit codes: 0 all is done; 1 something is not (a run failed, is stale or missing; a table or figure is not current; a
file is not an image); 2 the request was wrong; 130 interrupted.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from typing import Any

from binaryvit.errors import BinaryViTError

INTERRUPTED = 130
_INFER_PARTS = ("models", "products", "scaling")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. A user's mistake is printed as a sentence, without a traceback."""
    options = _parser().parse_args(arguments)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # what a scheduler sends acts like Ctrl-C: nothing is lost
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files need not be text
    try:
        code = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BinaryViTError as error:
        print(f"binaryvit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = options.command in (_reproduce, _figures, _train)  # what these finished is stored
        print(f"binaryvit: interrupted{'; the same command goes on from here' if goes_on else ''}.", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="binaryvit", description="Binary vision transformers: train, compare, explain."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    reproduce = commands.add_parser("reproduce", help="train what a study lacks, then make its tables and figures")
    _add_study(reproduce)
    _add_data(reproduce)
    reproduce.add_argument("--dry-run", action="store_true", help="only say what would run, and how long")
    reproduce.add_argument(
        "--only", nargs="+", default=[], metavar="ID", help="these runs (and their teacher), no analysis"
    )
    reproduce.add_argument("--rerun-stale", action="store_true", help="move stale runs aside and train them again")
    _add_jobs(reproduce)
    _add_speed(reproduce)
    reproduce.set_defaults(command=_reproduce)

    status = commands.add_parser("status", help="list a study's runs, and why each is done, stale, failed or missing")
    _add_study(status)
    _add_data(status)
    status.set_defaults(command=_status)

    figures = commands.add_parser("figures", help="make a study's tables and figures again, without training")
    _add_study(figures)
    figures.add_argument(
        "--data-dir", metavar="DIR", help="a local copy of the data, where something is to be measured"
    )
    _add_jobs(figures)
    figures.set_defaults(command=_figures)

    verify = commands.add_parser("verify", help="say of each table and figure: current, stale, hand-edited, missing")
    _add_study(verify)
    verify.set_defaults(command=_verify)

    listing = commands.add_parser("commands", help="print one shell command for each run a study lacks (for a cluster)")
    _add_study(listing)
    _add_data(listing)
    listing.add_argument("--stage", choices=["teacher", "students"], help="only these (default: the teacher first)")
    _add_speed(listing)
    listing.set_defaults(command=_commands)

    train = commands.add_parser(
        "train", help="train one configuration (here, under accelerate launch or torchrun; see `processes`)"
    )
    train.add_argument("config", metavar="CONFIG.yaml", help="fields of TrainingConfig, one `name: value` per line")
    train.add_argument("--output", required=True, metavar="DIR", help="the run's folder; an interrupted run goes on")
    train.add_argument("--study", default="", metavar="NAME", help="the study that the record names")
    train.add_argument(
        "--run-id", default="", metavar="ID", help="the run's name in the record (default: the folder's)"
    )
    train.set_defaults(command=_train)

    export = commands.add_parser("export", help="write a trained model for deployment: one packed file, or for timm")
    export.add_argument("source", metavar="RUN_OR_WEIGHTS", help="the folder of a finished run, or a weights file")
    export.add_argument("target", metavar="TARGET", help="the file to write, such as model.bvit; for timm a folder")
    export.add_argument("--format", choices=["packed", "timm"], default="packed", help="default: packed")
    export.add_argument("--class-names", metavar="FILE", help="one name per line (default: those in the weights)")
    export.add_argument("--overwrite", action="store_true", help="replace what is there")
    export.set_defaults(command=_export)

    classify = commands.add_parser("classify", help="classify images with a packed model")
    classify.add_argument("model", metavar="MODEL", help="a packed file, or a run's folder or weights file")
    classify.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image files of any kind, or folders, of which all .jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif, .tiff and "
        ".webp files are taken that are not hidden",
    )
    classify.add_argument("--top", type=_positive, default=5, metavar="N", help="classes per image (default: 5)")
    classify.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: PyTorch's choice)")
    classify.add_argument("--json", action="store_true", help="one JSON object per line instead of text")
    classify.set_defaults(command=_classify)

    evaluate = commands.add_parser("evaluate", help="evaluate stored weights again, of a finished run or in a file")
    evaluate.add_argument("weights", metavar="RUN_OR_WEIGHTS", help="the folder of a finished run, or a weights file")
    evaluate.add_argument("--data", metavar="NAME", help="the data set (default: the run's; a file needs it)")
    evaluate.add_argument("--data-dir", metavar="DIR", help="a local copy of the data set")
    evaluate.add_argument("--eval-split", metavar="NAME", help="the split (default: the run's)")
    evaluate.add_argument(
        "--eval-crop", type=float, metavar="SHARE", help="the centre that is kept (default: the run's)"
    )
    evaluate.add_argument("--batch-size", type=_positive, metavar="N", help="images at a time (default: the run's)")
    evaluate.set_defaults(command=_evaluate)

    bench = commands.add_parser("bench", help="measure this machine's speed")
    measurements = bench.add_subparsers(required=True, metavar="WHAT")
    load = measurements.add_parser("load", help="images/s that one CPU core decodes and augments")
    load.add_argument("--images", type=_positive, default=256, metavar="N", help="images per repetition (default: 256)")
    load.add_argument("--repetitions", type=_positive, default=5, metavar="N", help="interleaved (default: 5)")
    load.add_argument(
        "--needs",
        type=_positive_float,
        nargs="+",
        default=[],
        metavar="X",
        help="images/s that one GPU trains: how many cores feed it",
    )
    load.add_argument("--output", metavar="DIR", help="where to store the table, every repetition, the machine")
    load.set_defaults(command=_bench_load)
    train_speed = measurements.add_parser("train", help="images/s, memory and compile time of training steps")
    train_speed.add_argument("--family", default="small", help="small (224 pixels, default) or micro (32 pixels)")
    train_speed.add_argument("--variants", nargs="+", default=[], metavar="NAME", help="timm names (default: two)")
    train_speed.add_argument("--modes", nargs="+", default=[], metavar="MODE", help='such as "compiled bf16"')
    train_speed.add_argument(
        "--batch-size", type=_positive, default=8, metavar="N", help="images per step in each process (default: 8)"
    )
    train_speed.add_argument("--repetitions", type=_positive, default=9, metavar="N", help="interleaved (default: 9)")
    train_speed.add_argument("--threads", type=_positive, metavar="N", help="CPU threads of each process")
    train_speed.add_argument(
        "--processes",
        type=_positive,
        default=1,
        metavar="N",
        help="that train together, each on a GPU or on its CPU threads",
    )
    train_speed.add_argument("--output", metavar="DIR", help="where to store the table, every repetition, the machine")
    train_speed.set_defaults(command=_bench_train)
    infer = measurements.add_parser("infer", help="inference on single bits against floating point, bf16 and int8")
    infer.add_argument("--family", default="small", choices=("small", "micro"), help="224 (default) or 32 pixels")
    infer.add_argument("--cases", nargs="+", default=[], metavar="CASE", help='such as "DeiT, eager bf16"')
    infer.add_argument("--parts", nargs="+", default=list(_INFER_PARTS), choices=_INFER_PARTS, help="default: all")
    infer.add_argument("--batch-sizes", type=_positive, nargs="+", default=[1, 8], metavar="N", help="default: 1 8")
    infer.add_argument("--threads", type=_positive, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    infer.add_argument(
        "--repetitions", type=_positive, default=15, metavar="N", help="interleaved, at most (default: 15)"
    )
    infer.add_argument(
        "--seconds", type=_positive_float, default=60, metavar="X", help="of repetitions per batch size (default: 60)"
    )
    infer.add_argument("--output", metavar="DIR", help="where to store the tables, every repetition, the machine")
    infer.set_defaults(command=_bench_infer)
    return parser


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a study.yaml, or the folder that holds one")
    parser.add_argument("--output", metavar="DIR", help="folder for all that the study produces (default: the study's)")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", help="a local copy of the study's data set")
    parser.add_argument("--data-label", metavar="TEXT", help="the name of the data in tables, when the copy differs")
    parser.add_argument("--check-data", action="store_true", help="load the data and compare them with those on record")


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="runs or notebooks at a time (default: one per GPU; 1 on a CPU)"
    )


def _positive(text: str) -> int:
    """The type of an option that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"give a whole number of at least 1, not {text!r}.")
    return int(text)


def _positive_float(text: str) -> float:
    """The type of an option that is a number above 0."""
    with suppress(ValueError):
        if (number := float(text)) > 0:
            return number
    raise argparse.ArgumentTypeError(f"give a number above 0, not {text!r}.")


def _add_speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, metavar="N", help="data-loading processes per training process")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads per training process")


def _execution(options: argparse.Namespace) -> dict[str, Any]:
    """The options given that say where and how fast a study's runs happen."""
    execution = {name: getattr(options, name, None) for name in ("data_dir", "data_label", "workers", "threads")}
    return {name: value for name, value in execution.items() if value is not None}


def _load(options: argparse.Namespace) -> Any:
    from binaryvit.studies.study import load_study  # takes seconds, which --help should not

    return load_study(options.study, options.output, **_execution(options))


def _reproduce(options: argparse.Namespace) -> int:
    from binaryvit.studies.rehearsal import rehearse
    from binaryvit.studies.runner import reproduce

    study = _load(options)
    chosen = {"only": options.only, "rerun_stale": options.rerun_stale, "check_data": options.check_data}
    if options.dry_run:
        rehearse(study, jobs=options.jobs, **chosen)
        return 0
    outcome = reproduce(study, jobs=options.jobs, **chosen)
    for run in outcome.runs:
        if run.state != "done":
            print(f"NOT DONE: {run.id} is {run.state}: {run.reason}", file=sys.stderr)
    return 0 if outcome.complete else 1


def _status(options: argparse.Namespace) -> int:
    from binaryvit.studies.runner import fingerprint_if_needed
    from binaryvit.studies.states import plan

    study = _load(options)
    runs = plan(study, fingerprint_if_needed(study, (), options.check_data))
    width = max(len(run.id) for run in runs)
    print(f"{study.name}: {study.title}")
    for run in runs:
        print(f"{run.state.upper() if run.state in ('stale', 'failed') else run.state:8}{run.id:{width}}  {run.reason}")
    return 0 if all(run.state == "done" for run in runs) else 1


def _figures(options: argparse.Namespace) -> int:
    from binaryvit.studies.runner import analyse

    return 1 if analyse(_load(options), jobs=options.jobs) else 0


def _verify(options: argparse.Namespace) -> int:
    from binaryvit.analysis.verify import Verdict, verify

    findings = verify(_load(options))
    width = max((len(finding.file) for finding in findings), default=0)
    for finding in findings:
        verdict = finding.verdict if finding.verdict is Verdict.CURRENT else finding.verdict.upper()
        print(f"{verdict:12}{finding.file:{width}}  {finding.reason}".rstrip())
    return 0 if all(finding.verdict is Verdict.CURRENT for finding in findings) else 1


def _commands(options: argparse.Namespace) -> int:
    from binaryvit.studies.cluster import command_of, pending_runs
    from binaryvit.studies.runner import fingerprint_if_needed
    from binaryvit.studies.states import plan

    study = _load(options)
    runs = plan(study, fingerprint_if_needed(study, (), options.check_data))
    pending = pending_runs(runs)
    for run in pending_runs(runs, options.stage):
        print(command_of(study, run, _execution(options)))
    for run in runs:
        if run not in pending:
            print(f"Left out: {run.id} is {run.state}: {run.reason}", file=sys.stderr)
    return 0


def _train(options: argparse.Namespace) -> int:
    from binaryvit.config import TrainingConfig
    from binaryvit.training.launch import train

    config = TrainingConfig.from_yaml(options.config)
    record = train(config, options.output, study=options.study, run_id=options.run_id)
    if os.environ.get("RANK", "0") == "0":  # one of the processes that a launcher started
        print(f"{options.output}: top-1 {record.weights.top1:.2f}% after {record.result.epochs} epochs")
    return 0


def _export(options: argparse.Namespace) -> int:
    from binaryvit.packed.export import export_packed, export_timm

    export = {"packed": export_packed, "timm": export_timm}[options.format]
    print(export(options.source, options.target, options.class_names, options.overwrite))
    return 0


def _classify(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from binaryvit.packed.classify import Classifier, image_files

    classifier, files = Classifier(options.model, options.threads), image_files(options.images)
    problems = 0
    # A bar only for several files, and only in a terminal.
    for answer in tqdm(classifier.classify(files, options.top), total=len(files), disable=None if files[1:] else True):
        problems += answer.problem is not None
        if options.json:
            tqdm.write(answer.as_json())
        elif answer.problem is None:
            tqdm.write(answer.as_text())
        else:
            tqdm.write(f"binaryvit: {answer.problem}", file=sys.stderr)
    return 1 if problems else 0


def _evaluate(options: argparse.Namespace) -> int:
    from binaryvit.training.stored import evaluate_stored

    names = ("data", "data_dir", "eval_split", "eval_crop", "batch_size")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    result, images = evaluate_stored(options.weights, **given)
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.2f}%"
    print(f"{options.weights}: top-1 {result.top1:.2f}%{top5}, cross-entropy {result.loss:.4f} on {images}")
    return 0


def _bench_load(options: argparse.Namespace) -> int:
    from binaryvit.bench.loading import measure_loading, summarize_loading
    from binaryvit.bench.report import write_benchmark
    from binaryvit.records.provenance import describe_hardware

    measured = measure_loading(images=options.images, repetitions=options.repetitions)
    summary = summarize_loading(measured, options.needs)
    if options.output:
        write_benchmark(options.output, "load", measured, summary, "cpu")
    print(f"Images of 500x375 pixels to 224x224, one core of {describe_hardware('cpu').cpu}:")
    print(summary.round(1).to_string(index=False))
    return 0


def _bench_train(options: argparse.Namespace) -> int:
    import torch

    from binaryvit.bench.report import write_benchmark
    from binaryvit.bench.training import cases, measure_training, summarize_training

    chosen = cases(options.family, options.variants, options.modes)
    numbers = (options.batch_size, options.repetitions, options.threads, options.processes)
    measured = measure_training(chosen, *numbers)
    summary = summarize_training(measured)
    if options.output:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        write_benchmark(options.output, f"train-{options.family}", measured, summary, device)
    print(summary.round(2).to_string(index=False))
    return 0


def _bench_infer(options: argparse.Namespace) -> int:
    from binaryvit.bench.inference import available_cases, measure_part
    from binaryvit.bench.report import write_benchmark

    cases, left_out = available_cases(options.cases)
    for threads, part in product(options.threads, options.parts):
        measured, summary = measure_part(
            part, options.family, cases, options.batch_sizes, threads, options.repetitions, options.seconds
        )
        if options.output:
            write_benchmark(options.output, f"infer-{options.family}-{part}-threads{threads}", measured, summary, "cpu")
        print(summary.round(3).to_string(index=False))
    if left_out:
        print(left_out, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
