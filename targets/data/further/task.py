"""Records of another task beside an audit's own: what a model is tried as the beginning for."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InputError
from ..records import Records


@dataclass(frozen=True, eq=False)
class NewTask:
    """Records of the same shape and within the same bounds as an audit's own, of classes of their own.

    Args:
        name: what the report calls them.
        members: what a new model is trained on; evaluation: records that it has never seen. Labels count from 0 on,
            each of a class that `members` has.
        class_names: one per class.
    """

    name: str
    members: Records
    evaluation: Records
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        return len(self.class_names)


def check_shape(task: NewTask, shape: tuple[int, ...]) -> None:
    """Raises InputError: its records are of another shape than a model takes."""
    for split, records in (("x_train", task.members), ("x_test", task.evaluation)):
        found = tuple(records.x.shape[1:])
        if found != shape:
            raise InputError(
                f"The records of the other task {task.name} ({split}) have shape {list(found)}, and the model takes "
                f"records of shape {list(shape)}. Bring them into that shape (resize images, pad or drop features)."
            )
