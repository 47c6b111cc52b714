"""What Ray reads from the environment. It does so when it is imported, so this comes before any import of it."""

import os
import secrets
import sys


def prepare_ray_environment(address: str | None) -> None:
    """No usage reports; for a private cluster (address None), a token only this process tree knows."""
    assert "ray" not in sys.modules
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What asks for no GPU keeps CUDA_VISIBLE_DEVICES as it is: Ray's own default of late.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Of tasks that fail alike one is answered for; of the others Ray would print tracebacks, whenever it likes.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if address is None:
        # Other users of the machine could reach the private cluster's ports and run code. Given here, the token
        # is not written into the home directory.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        # Or Ray's agents write their title over their environment, by whose token they are found when all else is dead.
        os.environ["SPT_NOENV"] = "1"
