"""Templates to a page: everything that is shown is escaped, and nothing is loaded from elsewhere."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from workloads.files import write_text


def write_page(template: str, page: Any, target: Path) -> Path:
    """Replace the file by the page. Returns where it is."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Errors are text from outside and are escaped; a name that the template misspells is no gap but an error.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(target, environment.get_template(template).render(page=page, version=version("rememe")))
    return target
