"""For which configuration of which study a job was begun first, in the job's directory: its images are counted once."""

import logging
import re
from pathlib import Path

from workloads.errors import DamagedFileError
from workloads.places import JobDir
from workloads.sealed import read_json, write_json

logger = logging.getLogger(__name__)

EARLIER_FORM = re.compile(rb"[\w.-]+/\d+")
"""Of earlier versions: the words alone, without a checksum."""


def mark_first(folder: Path, configuration: str) -> None:
    """Leave word in a job's directory that it was begun for a configuration (STUDY/NUMBER), if there is none yet."""
    mark = JobDir(folder).first_for
    if not mark.exists():
        write_json(mark, {"configuration": configuration})


def is_first(folder: Path, configuration: str) -> bool:
    """Whether a job was begun for this configuration.

    If the mark is damaged, that is named, and the job counts as begun for it: so a budget is never exceeded, and the
    images of one job are counted once however many say so.
    """
    mark = JobDir(folder).first_for
    if not mark.exists():
        return False
    if EARLIER_FORM.fullmatch(content := mark.read_bytes()):
        return content == configuration.encode()
    try:
        return read_json(mark, lambda raw: bool(raw["configuration"] == configuration), "")
    except DamagedFileError:
        logger.warning("%s is damaged; its images count as trained for configuration %s", mark, configuration)
        return True
