"""Input of the process that pushes a package, which it reads from a file. It has no secrets."""

from services.child_input import ChildInput, Strict


class PackageFile(Strict):
    """A file of the package that was stored."""

    name: str
    """Its path in the package and in the repository."""
    sha256: str
    size_bytes: int


class PushInput(ChildInput):
    """One push."""

    files: list[PackageFile]
    repo_id: str
    private: bool
    revision: str
    commit_message: str
