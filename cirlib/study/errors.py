"""The errors that are meant for the person who runs the study: their message is one whole sentence."""


class StudyError(Exception):
    """Something that the person can mend: the sentence says what is wrong, where, and what is allowed or to be done.

    Notebooks and command lines show it without a traceback.
    """


class ParameterError(StudyError, ValueError):
    """A parameter is unknown, of the wrong type or out of range; the message says which and what is allowed."""


class StageError(StudyError, RuntimeError):
    """A stage cannot run yet; the message says which command makes what it needs."""


class ResourceError(StudyError, RuntimeError):
    """There is too little disk or memory; the message says how much is wanted and which parameter wants less."""


class WriteError(StudyError, OSError):
    """A file cannot be written: the disk is full or may not be written. The message names the file."""
