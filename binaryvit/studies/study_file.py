"""What a study file may hold."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from binaryvit.config import DATA_FIELDS
from binaryvit.errors import BinaryViTError, suggestion
from binaryvit.yaml_file import read_yaml

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]  # it becomes a file name


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Row(_Part):
    """A model to train, and how its recipe differs from the study's."""

    variant: str
    id: _Name | None = None  # default: the variant; needed where a variant occurs twice
    label: str | None = None  # how tables call the row; default: the id
    recipe: dict[str, Any] = {}


class Teacher(Row):
    """The model that the students learn from."""

    seed: int = 0  # one teacher serves the students of all seeds


class Student(Row):
    """A row of the ladder or a control, once for each of its seeds."""

    seeds: list[int] | None = Field(None, min_length=1)  # default: the study's
    teacher: Literal["none"] | None = None  # "none": learns from the labels; default: the study's teacher


_Students = list[Annotated[Student, BeforeValidator(lambda row: {"variant": row} if isinstance(row, str) else row)]]


class StudyFile(_Part):
    """A study as its file describes it."""

    name: _Name
    title: str
    data: str = "digits"
    data_label: str | None = None
    recipe: dict[str, Any] = {}
    teacher: Teacher | None = None
    variants: _Students = Field(min_length=1)  # the steps of the ladder
    controls: _Students = []  # what a step is compared with; its recipe may be another
    seeds: list[int] = Field([0], min_length=1)
    notebooks: Literal["all", "first_seed"] = "all"  # the runs that keep an executed notebook
    analysis: list[str] = ["tables.ipynb"]

    @property
    def students(self) -> list[Student]:
        """The ladder and the controls."""
        return [*self.variants, *self.controls]

    def seeds_of(self, row: Student) -> list[int]:
        """The seeds a row is trained with."""
        return row.seeds or self.seeds


def read_study_file(path: Path) -> StudyFile:
    """Reads a study file. Raises BinaryViTError, a sentence for each problem, when it is wrong."""
    try:
        file = StudyFile(**read_yaml(path))
    except ValidationError as error:
        raise BinaryViTError("\n".join(f"{path}: {_sentence(problem)}" for problem in error.errors())) from None
    _check_recipes(path, file)
    return file


def _check_recipes(path: Path, file: StudyFile) -> None:
    """Refuses recipe entries that belong elsewhere, and runs that would share a folder."""
    rows = [row for row in (file.teacher, *file.students) if row is not None]
    problems = []
    for where, recipe, elsewhere in [
        ("recipe", file.recipe, ("data", "data_label")),
        *((f"recipe of {row.id or row.variant}", row.recipe, DATA_FIELDS) for row in rows),
    ]:
        places = dict.fromkeys(elsewhere, "once for the whole study, next to its name or in its recipe")
        places |= {"variant": "as the row's variant", "seed": "in seeds, or as the teacher's seed"}
        places |= {"data_dir": "on the command line as --data-dir, since it belongs to one machine"}
        if file.teacher is not None:
            places |= {"teacher": "as the study's own teacher, which there is already"}
        problems += [
            f"{name} in the {where} is misplaced: give it {places[name]}." for name in recipe if name in places
        ]
    if file.data.startswith("."):
        problems.append(f"data: {file.data} is a place on one machine: name the data, and give --data-dir their place.")
    problems += [f"The {name} appears twice among {ids}: give one of them another id." for name, ids in _doubles(file)]
    if problems:
        raise BinaryViTError("\n".join(f"{path}: {problem}" for problem in problems))


def _doubles(file: StudyFile) -> Iterable[tuple[str, list]]:
    """Ids and seeds that occur twice: which of the two they are, and the list they are in."""
    ids = [row.id or row.variant for row in file.students]
    if file.teacher is not None and any(file.teacher.seed in file.seeds_of(row) for row in file.students):
        ids.insert(0, file.teacher.id or file.teacher.variant)
    for name, values in (("id", ids), *(("seed", seeds) for seeds in map(file.seeds_of, file.students))):
        if len(set(values)) < len(values):
            yield name, values


def _sentence(problem: Any) -> str:
    place = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        parts = {"teacher": Teacher, "variants": Student, "controls": Student}
        part = parts[place[0]] if len(place) > 1 else StudyFile
        return f"{'.'.join(place)} is no entry of a study{suggestion(place[-1], list(part.model_fields))}"
    if problem["type"] == "missing":
        return f"The entry {'.'.join(place)} is missing."
    return f"{'.'.join(place)}={problem['input']!r} is refused: {problem['msg'][0].lower()}{problem['msg'][1:]}."
