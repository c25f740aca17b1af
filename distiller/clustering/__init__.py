"""Which of the teacher's layers are similar."""
