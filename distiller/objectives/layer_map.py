"""Which layer of the student follows which layer of the teacher."""

from collections.abc import Sequence

from upstream.errors import UserError, require


def spread_layers(depth: int, count: int) -> list[int]:
    """`count` layers evenly spaced up to the last: 4, 8, 12 of 12; at least layer 1."""
    return sorted({max(1, round(depth * (index + 1) / count)) for index in range(count)})


def check_layers(layers: Sequence[int], depth: int, key: str) -> None:
    """Raises UserError unless the teacher has all `layers`."""
    require(
        all(0 <= layer <= depth for layer in layers), key, list(layers), f"layers of the teacher, from 0 to {depth}"
    )


def student_layers(
    teacher_layers: Sequence[int],
    teacher_depth: int,
    student_depth: int,
    layer_map: Sequence[int] | None,
    section: str = "objective",
) -> tuple[int, ...]:
    """The student layers that follow `teacher_layers`; layer 0 follows layer 0 alone.

    Args:
        layer_map: for each student layer 1..L_S the teacher layer that it follows. Left out: teacher layer l is
            followed by student layer round(l L_S / L_T), but at least 1 (our choice); the identity for equal depths.
        section: of the recipe that contains the map.

    Raises:
        UserError: a map of the wrong length, or one in which no student layer follows any of these layers.
    """
    if layer_map is None:
        followers = {max(1, round(layer * student_depth / teacher_depth)) if layer else 0 for layer in teacher_layers}
        return tuple(sorted(followers))
    mapped = resolve_layer_map(layer_map, teacher_depth, student_depth, section)
    followers = tuple(index for index, layer in enumerate([0, *mapped]) if layer in teacher_layers)
    require(
        bool(followers), f"{section}.layer_map", mapped, f"a list with one of the teacher's layers {teacher_layers}"
    )
    return followers


def resolve_layer_map(
    layer_map: Sequence[int] | None, teacher_layers: int, student_layers: int, section: str = "objective"
) -> list[int]:
    """The teacher layer (1..L_T) for each of the student's layers 1..L_S; by default evenly spaced, ending at the last.

    Raises:
        UserError: a map of another length than the student's, a layer that the teacher lacks, or no map for a teacher
            with fewer layers than the student.
    """
    if layer_map is None:
        if teacher_layers < student_layers:
            raise UserError(
                f"{section}.layer_map is not set, but a student of {student_layers} layers needs one when the teacher "
                f"has only {teacher_layers} (student.layers={teacher_layers} needs none)"
            )
        return [round(layer * teacher_layers / student_layers) for layer in range(1, student_layers + 1)]
    fits = len(layer_map) == student_layers and all(1 <= layer <= teacher_layers for layer in layer_map)
    allowed = f"a list of {student_layers} layers of the teacher, from 1 to {teacher_layers}, one per student layer"
    require(fits, f"{section}.layer_map", list(layer_map), allowed)
    return list(layer_map)
