"""Descriptions that come with the package, and their names. Imports nothing: `rememe presets` answers at once."""

from importlib import resources

FOLDERS = ("", "comparisons", "studies")
"""Of runs, and of what holds several."""


def list_presets(folder: str = "") -> list[str]:
    """Names of the presets in the package, or of what one of its folders holds (comparisons, studies)."""
    files = resources.files(__name__).joinpath(folder).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def text_of(name: str, folder: str = "") -> str:
    """The YAML text of one of them."""
    return resources.files(__name__).joinpath(folder, f"{name}.yaml").read_text()


def summary_of(name: str, folder: str = "") -> str:
    """Its first line, which says what it is."""
    return text_of(name, folder).splitlines()[0].lstrip("# ")
