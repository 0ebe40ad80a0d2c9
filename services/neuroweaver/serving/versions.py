"""Which versions a server can answer with, and which of them a request means."""

from __future__ import annotations

from neuroweaver.serving.requests import ApiError


class Versions:
    """`name` is the current version, `name@version` any that is loaded. Of the event loop's thread alone.

    ends: by version, token ids that end its answers beside those that end any.
    """

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.current = version
        self.loaded = [version]
        self.ends: dict[str, frozenset[int]] = {}

    def full_name(self, version: str) -> str:
        return f"{self.name}@{version}" if version else self.name

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([self.name, *(self.full_name(version) for version in self.loaded)]))

    def meant(self, model: str) -> str:
        """Raises ApiError."""
        name, at, version = model.partition("@")
        if name == self.name and not at:
            return self.current
        if name == self.name and version in self.loaded:
            return version
        raise ApiError(
            f"The model '{model[:200]}' does not exist here; this server has {', '.join(self.names)}.",
            status=404,
            parameter="model",
            code="model_not_found",
        )
