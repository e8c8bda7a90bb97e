"""What running a study would do, and how long it would take."""

import heapq
from collections.abc import Iterable, Sequence

from binaryvit.studies.durations import duration, estimate
from binaryvit.studies.processes import Say, default_jobs
from binaryvit.studies.runner import fingerprint_if_needed, say_aloud, select
from binaryvit.studies.states import plan
from binaryvit.studies.study import State, Study


def rehearse(
    study: Study,
    *,
    only: Sequence[str] = (),
    rerun_stale: bool = False,
    check_data: bool = False,
    jobs: int | None = None,
    say: Say = say_aloud,
) -> None:
    """Says what `reproduce` would do and how long it would take, without doing it."""
    chosen = {run.id for run in select(study, only)}
    fingerprint = fingerprint_if_needed(study, (), check_data or rerun_stale)
    seconds: dict[bool, list[float | None]] = {True: [], False: []}  # of teachers, and of those that wait for them
    runs = [run for run in plan(study, fingerprint) if run.id in chosen]
    teachers = {run.teacher_id for run in runs}
    for run in runs:
        if run.state is State.STALE and not rerun_stale:
            say(f"{run.id}: STALE, would be left as it is: {run.reason}")
        elif run.state in (State.DONE, State.RUNNING):
            say(f"{run.id}: {run.state}, {run.reason}")
        else:
            needed = estimate(study, run)
            seconds[run.id in teachers].append(needed)
            say(f"{run.id}: would be trained ({run.state}: {run.reason}), {duration(needed)}")
    jobs = jobs or default_jobs(max(run.config.processes for run in study.runs))
    unknown = sum(group.count(None) for group in seconds.values())
    say(
        f"Training would take {'at least ' * (unknown > 0)}"
        f"{duration(sum(_until_all_are_done(filter(None, group), jobs) for group in seconds.values()))}"
        + f", {jobs} runs at a time" * (jobs > 1)
        + f"; unknown: {unknown} runs." * (unknown > 0)
    )


def _until_all_are_done(seconds: Iterable[float], jobs: int) -> float:
    """Seconds that tasks take when each of so many jobs begins the next one as soon as it is free."""
    busy = [0.0] * jobs
    for needed in seconds:
        heapq.heapreplace(busy, busy[0] + needed)
    return max(busy)
