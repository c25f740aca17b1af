"""Formats of other projects, with a key table each.

A format of single files is a module with NAME, `matches(content)` and `read(content, path, model_config)`.
"""

from . import dphubert, fairseq, starhubert

FILE_FORMATS = (starhubert, dphubert, fairseq)
