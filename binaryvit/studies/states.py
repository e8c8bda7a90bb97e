"""The state of each run of a study, from what is on disk. Nothing is loaded, trained or written."""

from dataclasses import replace

from binaryvit.config import NOT_IN_KEY, PRETRAINED, completed, without_place
from binaryvit.errors import BinaryViTError
from binaryvit.locks import is_locked
from binaryvit.records.run_record import LOCK_FILE, TRAINING_VERSION, RunKey, RunRecord, read_failure, read_record
from binaryvit.studies.study import PlannedRun, State, Study
from binaryvit.training.checkpoint import CHECKPOINT_FILE, stored_identity
from binaryvit.training.teacher import identity, run_identity


def plan(study: Study, fingerprint: str | None = None) -> list[PlannedRun]:
    """The study's runs with their states, from what is on disk; nothing is loaded, trained or written.

    `fingerprint` is that of the available data. Without it the data are not checked, except that all runs must have
    used the same. A run that is done by its own record (`analysis.stored.study_of_folders`) stays so.
    """
    return [run if run.state is State.DONE else state_of(study, run, fingerprint) for run in study.runs]


def state_of(study: Study, run: PlannedRun, fingerprint: str | None = None, *, held: bool = False) -> PlannedRun:
    """The run with its state of this moment; see `plan`. `held`: the caller holds the run's lock."""
    # The second lock is training's own: it may outlive whoever started it.
    if (not held and is_locked(run.lock)) or is_locked(run.folder / LOCK_FILE):
        return replace(run, state=State.RUNNING, reason="a process is training it now")
    try:
        record = read_record(run.folder)
        failure = read_failure(run.folder)
    except BinaryViTError as error:
        return replace(run, state=State.STALE, reason=str(error))
    if record is not None:
        return _judge(study, run, record, fingerprint)
    if changes := _foreign_checkpoint(study, run, fingerprint):
        return replace(run, state=State.STALE, reason=f"it was interrupted, and {'; '.join(changes)}")
    if failure is not None:
        return replace(run, state=State.FAILED, reason=failure.error)
    if run.folder.exists():
        return replace(run, state=State.MISSING, reason="interrupted; it goes on from its last checkpoint")
    return replace(run, state=State.MISSING, reason="not run yet")


def _judge(study: Study, run: PlannedRun, record: RunRecord, fingerprint: str | None) -> PlannedRun:
    reference = fingerprint or _fingerprint_on_record(study) or record.key.data
    teacher = _teacher_of(study, run)
    config = run.config.resolved(record.config.get("compile"))
    now = config.model_dump(mode="json", exclude=NOT_IN_KEY) | {"data": without_place(run.config.data)}
    before = completed(record.config)
    changes = [f"{name} was {before[name]!r} and is {value!r}" for name, value in now.items() if before[name] != value]
    if record.key.training_version != TRAINING_VERSION:
        changes += [f"the training code was version {record.key.training_version} and is {TRAINING_VERSION}"]
    if record.key.data != reference:
        whose = "those at hand" if fingerprint else "those of the study's other runs"
        changes += [f"its data (fingerprint {record.key.data[:12]}) are not {whose} ({reference[:12]})"]
    if teacher is not None and state_of(study, teacher, fingerprint).state is State.STALE:
        changes += [f"its teacher {teacher.id} is stale"]
    try:
        if not changes and record.key.config != config.key(*_identities(study, run, reference)):
            outside = [name for name in ("teacher", "init_from") if getattr(config, name) is not None]
            changes += [f"its {' or '.join(outside)} was another one" if outside else "its record was changed by hand"]
    except BinaryViTError as error:  # a teacher from outside that is not there any more
        changes += [str(error)]
    if changes:
        return replace(run, state=State.STALE, reason="; ".join(changes))
    checked = "" if fingerprint else "; data not checked"
    reason = f"top-1 {record.weights.top1:.2f}%, trained on {record.started:%Y-%m-%d}{checked}"
    return replace(run, state=State.DONE, reason=reason)


def missing_weights(study: Study, run: PlannedRun) -> str | None:
    """Why the weights that the run takes from outside the study, its teacher's or its first, can't be read now."""
    try:
        _identities(study, run, "")
    except BinaryViTError as error:
        return str(error)
    return None


def _foreign_checkpoint(study: Study, run: PlannedRun, fingerprint: str | None) -> list[str]:
    """What changed since an unfinished run's checkpoint was written; training would refuse to go on from it."""
    identity = stored_identity(run.folder / CHECKPOINT_FILE)
    if identity is None:  # none, or damaged, which training says
        return []
    data = fingerprint or _fingerprint_on_record(study) or identity.get("data")
    changes = [] if identity.get("data") == data else ["its data are others"]
    if identity.get("training version") != TRAINING_VERSION:
        changes += [f"the training code was version {identity.get('training version')} and is {TRAINING_VERSION}"]
    try:
        identities = _identities(study, run, str(data))
        keys = {run.config.resolved(compiled).key(*identities) for compiled in (False, True)}
        if not changes and identity.get("configuration") not in keys:
            changes += ["its configuration or its teacher's has changed"]
    except BinaryViTError as error:
        changes += [str(error)]
    return changes


def _teacher_of(study: Study, run: PlannedRun) -> PlannedRun | None:
    return next((other for other in study.runs if other.id == run.teacher_id), None)


def _identities(study: Study, run: PlannedRun, fingerprint: str) -> tuple[str | None, str | None]:
    """The identity that the run's teacher has, or will have once trained as the study says; and that of its initial
    weights."""
    initial = _identity_outside(study, run.config.init_from, "init_from")
    teacher = _teacher_of(study, run)
    if teacher is None:
        return _identity_outside(study, run.config.teacher, "teacher"), initial
    record = read_record(teacher.folder)
    config = teacher.config.resolved(record and record.config.get("compile"))
    key = config.key(None, _identity_outside(study, config.init_from, "init_from"))
    return run_identity(RunKey(config=key, data=fingerprint, training_version=TRAINING_VERSION)), initial


def _identity_outside(study: Study, place: str | None, role: str) -> str | None:
    """The identity of weights that are not a run of the study."""
    if place is None or place.startswith(PRETRAINED):
        return place
    return identity(str(study.output / place), role)


def _fingerprint_on_record(study: Study) -> str | None:
    """The data of the first finished run, to which the others are compared when the data are not available."""
    for run in study.runs:
        try:
            record = read_record(run.folder)
        except BinaryViTError:  # reported as the state of that run
            continue
        if record is not None:
            return record.key.data
    return None
