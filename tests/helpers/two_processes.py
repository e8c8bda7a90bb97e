"""Two processes on the CPU (gloo) that train together, each leaving in a folder what it computed.

Usage: python two_processes.py FOLDER. The two are forks of this process, which has not computed anything: so libraries
are loaded once. They run as torchrun would start them, one scenario after the other.
"""

import functools
import json
import os
import sys
import traceback
from pathlib import Path

import torch
from accelerate.utils import gather_object
from helpers.child_processes import free_port
from helpers.training_setup import in_float64, make_trainer, student
from safetensors.torch import save_file

from binaryvit.data import data_set
from binaryvit.data.batches import eval_loader
from binaryvit.data.data_set import load_data
from binaryvit.errors import BinaryViTError
from binaryvit.training import loop, processes
from binaryvit.training.build import blocks_of
from binaryvit.training.loop import Trainer
from binaryvit.training.step_log import StepLog
from binaryvit.training.train import train_in_process as train

TOGETHER = student(processes=2, max_eval_images=51)
# Tracing a block takes long: here is one, with all that a block may hold.
ONE_BLOCK = {"embed_dims": [8], "depths": [1], "num_heads": [1], "mlp_ratios": [2], "reductions": [2], "patch_size": 8}


def step(run: Trainer) -> dict[str, torch.Tensor]:
    """Gradients of the first optimizer step by parameter, from AdamW's first moment, which is a tenth of them."""
    run.network.train()
    run.learning_rate.set(0, 0)
    run._step(0, 0, run.train_loader.epoch())
    moments = [state["exp_avg"] / 0.1 for state in run.optimizer.state.values()]
    return {str(number): moment for number, moment in enumerate(moments)}


def gradients(folder: Path, rank: int) -> None:
    """One step with a teacher, traced as for the compiler; one from the labels; then an evaluation."""
    with in_float64():
        fields = {"teacher": str(folder / "teacher.safetensors"), "model_args": ONE_BLOCK}
        traced = make_trainer(TOGETHER.model_copy(update=fields), "nowhere")
        for block in blocks_of(traced.model):
            block.compile(backend="aot_eager", fullgraph=True, dynamic=False)
        save_file(step(traced), folder / f"traced-{rank}.safetensors")
        run = make_trainer(TOGETHER, "nowhere")
        save_file(step(run), folder / f"labels-{rank}.safetensors")
        results = [run.evaluate(run.trained_model, "fp32")]
        save_file(dict(run.model.named_buffers()), folder / f"buffers-{rank}.safetensors")
        one_image = load_data(TOGETHER.model_copy(update={"max_eval_images": 1}))  # one process has none
        run.eval_loader = eval_loader(one_image, TOGETHER, (3, 32, 32), rank, 2)
        results.append(run.evaluate(run.trained_model, "fp32"))
    (folder / f"evaluations-{rank}.json").write_text(
        json.dumps([vars(result) | {"predicted": result.predicted.tolist()} for result in results])
    )


def whole_run(folder: Path, rank: int) -> None:
    """A run from beginning to end; whatever a process opens for writing, makes or moves in its folder is noted."""
    touched: set[str] = set()
    watching = [True]

    def watch(event: str, args: tuple) -> None:
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.chmod", "os.truncate")
        opens = event == "open" and isinstance(args[0], str) and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if watching and (changes or opens) and str(folder / "run") in str(args[0]):
            touched.add(str(args[0]))

    def counted(*args):
        computed.append(1)
        return fingerprint(*args)

    computed: list[int] = []
    fingerprint = data_set.fingerprint
    data_set.fingerprint = counted
    sys.addaudithook(watch)
    record = train(TOGETHER, folder / "run")
    watching.clear()
    (folder / f"fingerprints-{rank}").write_text(str(len(computed)))
    (folder / f"touched-{rank}.json").write_text(json.dumps(sorted(touched)))
    (folder / f"record-{rank}.json").write_text(record.model_dump_json())


def interrupted_run(folder: Path, rank: int, name: str = "interrupted") -> None:
    """One process is asked to stop in the second step; then the run goes on to its end."""
    second_step = Trainer._step

    def asked(self, epoch, number, batches):
        self.interruption.requested = rank == 1 and (epoch, number) == (0, 1)
        return second_step(self, epoch, number, batches)

    Trainer._step = asked
    try:
        train(TOGETHER, folder / name)
    except KeyboardInterrupt:
        (folder / f"stopped-{name}-{rank}").touch()
    Trainer._step = second_step
    gather_object([rank])  # both have stopped
    train(TOGETHER, folder / name)


def late_reading_run(folder: Path, rank: int) -> None:
    """Losses and wishes are exchanged after every second step and taken in one step later, as on GPUs."""
    loop.StepLog = functools.partial(StepLog, read_every=2)
    interrupted_run(folder, rank, "late")
    loop.StepLog = StepLog


def folder_of_its_own(folder: Path, rank: int) -> None:
    """The second process does not see the first one's folder, as on another machine."""
    processes._VISIBLE_SECONDS = 0.1
    try:
        train(TOGETHER, folder / f"machine-{rank}" / "run")
    except BinaryViTError as error:
        (folder / f"machine-{rank}.txt").write_text(str(error))
        raise SystemExit(2) from None


def main(folder: Path) -> None:
    port = free_port()
    children = []
    for rank in range(2):
        if child := os.fork():
            children.append(child)
            continue
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        try:
            for scenario in (gradients, whole_run, interrupted_run, late_reading_run, folder_of_its_own):
                scenario(folder, rank)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
