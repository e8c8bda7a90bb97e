"""What training and analysis of a study share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from binaryvit.studies.execution import Executor, process_environment
from binaryvit.studies.processes import Job, Processes, Say, Share, default_jobs, shares
from binaryvit.studies.study import Study


@dataclass(frozen=True)
class Workshop:
    """How the jobs of a study are executed, and how they report."""

    poll_seconds: ClassVar[float] = 2.0  # between looks at what another process has locked

    study: Study
    executor: Executor
    environment: dict[str, str]
    jobs: int
    gpus_per_job: int
    say: Say

    def job(self, name: str, share: Share, lock: int) -> Job:
        """What a process called `name` uses; its lines start with the name where several processes print."""
        prefix = f"{name}: " if self.jobs > 1 else ""
        return Job(self.environment | share.environment, lock, lambda line: self.say(prefix + line))

    def shares(self, tasks: int) -> list[Share]:
        """The shares of the machine for at most `tasks` jobs."""
        return shares(max(1, min(self.jobs, tasks)), self.gpus_per_job)


@contextmanager
def open_workshop(study: Study, jobs: int | None, say: Say) -> Iterator[Workshop]:
    processes = max(run.config.processes for run in study.runs)
    data_dir = study.runs[0].config.data_dir
    names = {data_dir: Path(data_dir).name} if data_dir else {}
    with process_environment() as environment:
        executor = Executor(study.output, names, Processes())
        yield Workshop(study, executor, environment, jobs or default_jobs(processes), processes, say)
