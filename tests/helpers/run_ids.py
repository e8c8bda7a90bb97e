"""Ids of the runs that studies in the tests have: the teacher and two students, with the first seed."""

TEACHER, BASELINE, PYRAMID = (
    f"{name}-seed0" for name in ("deit_micro_patch4_32", "reactdeit_micro_patch4_32", "binaryvit_micro_patch2_32")
)
