"""From a recipe's student section to an encoder."""

from distiller.students.config import StudentConfig
from upstream.encoder import SpeechEncoder


def build_student(student: StudentConfig, teacher: SpeechEncoder) -> SpeechEncoder:
    """A new student, its weights random (from torch's global generator) or the teacher's.

    Raises:
        UserError: as `StudentConfig.shape`.
    """
    encoder = SpeechEncoder(student.shape(teacher.config))
    if student.initialization == "teacher":
        weights = teacher.state_dict()
        encoder.load_state_dict({key: weights[key] for key in encoder.state_dict()})
    return encoder
