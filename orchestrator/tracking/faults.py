"""What is wrong when MLflow does not take something: the note, or the store; in one sentence."""

import errno
import re

from orchestrator.plan.errors import TrackingError
from orchestrator.plan.masking import masked

REFUSALS = {"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}
"""MLflow's codes for what will not be taken at another time either."""
LATER = {401, 403, 404, 407, 408, 425, 429}
"""HTTP answers of the 400s that are not about what was sent."""

TRANSIENT = r"failed with (timeout )?exception|timed? ?out|\b50[234]\b|too many|queuepool|deadlock|locked|connection"
FULL = r"no space left|disk (is )?full|disk quota|database or disk is full|file too large"
FAULTS = {
    FULL: "MLflow at {uri} has no space left; free some",
    r"read-?only|unable to open database file": "MLflow's store at {uri} cannot be written; make it writable",
    r"out-of-date database schema|can't locate revision": (
        "the database at {uri} was made by another version of MLflow; run mlflow db upgrade, or install that version"
    ),
    r"_alembic_tmp_": ("the database at {uri} was left half made by a process that was killed; move it away"),
    r"invalid host header": (
        "the MLflow server at {uri} does not know itself by that name; start it with --allowed-hosts"
    ),
    r"password authentication failed|no password supplied|access denied for user|unauth|error code 401|401 client": (
        "MLflow at {uri} refuses the user or password; correct MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD"
    ),
    r"permission[ _]denied|error code 403|403 client|insufficient ?privilege": (
        "MLflow at {uri} does not let this user write; ask for the right, or set MLFLOW_TRACKING_URI"
    ),
    r"(database|role) \S+ does not exist|relation \S+ does not exist": (
        "MLflow's database is not at {uri}; correct MLFLOW_TRACKING_URI or create it"
    ),
}
"""What the text of an error tells (a regular expression), and the sentence about it."""


def is_refusal(error: Exception) -> bool:
    """Whether the note is at fault: it would be refused again."""
    # Artifacts go another way than everything else, and fail as `requests` does.
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if 400 <= status < 500:
        return status not in LATER
    code = getattr(error, "error_code", None)
    # What databases say comes under this code too, be it about the note or about the database.
    if code == "BAD_REQUEST":
        return sentence_of(error) is None
    return code in REFUSALS


def is_puzzling(error: Exception) -> bool:
    """Whether the store answers, and says no more than that something went wrong in it."""
    if isinstance(error, ArithmeticError | AttributeError | LookupError | RecursionError | TypeError | ValueError):
        return True
    told = sentence_of(error) is not None or re.search(TRANSIENT, str(error), re.IGNORECASE)
    return getattr(error, "error_code", None) == "INTERNAL_ERROR" and not told


def sentence_of(error: Exception) -> str | None:
    """What is wrong with the store, with {uri} where it is named; None if the error does not tell."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return FAULTS[FULL]
    text = f"{getattr(error, 'error_code', '')} {error}"
    # Not what was to be written: the SQL and its parameters follow the message.
    text = text.split("\n[SQL", maxsplit=1)[0]
    return next((sentence for pattern, sentence in FAULTS.items() if re.search(pattern, text, re.IGNORECASE)), None)


def first_line(error: Exception) -> str:
    """The reason, short."""
    return masked(str(error).splitlines()[0][:200] if str(error) else type(error).__name__)


def describe(error: Exception, uri: str) -> str:
    """One sentence about a store that takes nothing now."""
    if isinstance(error, TrackingError):
        return str(error)
    sentence = sentence_of(error) or "MLflow at {uri} does not answer"
    return f"{sentence.format(uri=masked(uri))} ({first_line(error)})"
