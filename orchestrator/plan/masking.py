"""Passwords, tokens and keys out of what is shown: one filter for errors, notes, check-ups and addresses."""

import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

MASK = "***"

MIN_SECRET_LENGTH = 6
"""Shorter values of the environment would be found in ordinary words."""

SECRET_NAMES = re.compile(r"TOKEN|PASSW|PGPASS|SECRET|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE)
"""Variables that hold a secret ..."""

PLACE_NAMES = re.compile(r"_(PATH|FILE|URI|URL|MODE|DIR|HOST|NAME)$", re.IGNORECASE)
"""... unless they only say where one is."""

# Python's paths leave one slash of two. Whoever wrote a password with a slash unquoted gets an error, and that must not
# print it either; but a number after the colon is a port, and what follows it may have an @ of its own. Lengths are
# bounded, for a text of addresses without a space would take minutes.
USER_INFO = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]{1,30}:/{1,3})"
    r"(?P<user>[^\s/?#'\"]{0,500}|[^\s/?#@:\[]{1,500}:(?!\d+(?:[/?#\s'\"]|$))[^\s'\"]{0,500})@",
    re.IGNORECASE,
)

# MLflow calls the name of a view to share a key.
QUERY = re.compile(
    r"(?<=[?&;])(?!viewStateShareKey=)([\w.-]*(?:token|passw(?:or)?d|pwd|secret|signature|credential|api[_-]?key|access[_-]?key|sig|key))"
    r"=[^&;\s'\"#]+",
    re.IGNORECASE,
)

AWS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")


def masked(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text with *** for what must not be read in a terminal or a log.

    That is: users and passwords of URIs, tokens and keys in their queries, AWS key ids, and the values of variables
    that hold secrets, passwords inside the URIs of others included.
    """
    for secret in sorted(set(_secrets(environment)), key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = USER_INFO.sub(rf"\g<scheme>{MASK}@", text)
    text = QUERY.sub(rf"\1={MASK}", text)
    return AWS_KEY.sub(MASK, text)


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        found = []
        if SECRET_NAMES.search(name) and not PLACE_NAMES.search(name):
            found.append(value)
        for match in USER_INFO.finditer(value):
            _, _, password = match["user"].partition(":")
            # Libraries print it as it is in the URI or as it was meant.
            found += [password, unquote(password)]
        yield from (secret for secret in found if len(secret) >= MIN_SECRET_LENGTH)
