"""Several LoRA adapters over one base, each row of a batch with its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel


class LoraAdapters:
    """Starts with one adapter; `model` is what to forward."""

    def __init__(self, base: Any, version: str, folder: Path) -> None:
        # PEFT keeps adapters in a ModuleDict, whose keys may hold no dots.
        self._names = {version: "adapter_0"}
        self._numbers = itertools.count(1)
        self.model = PeftModel.from_pretrained(
            base, str(folder), adapter_name="adapter_0", is_trainable=False
        ).eval()
        self._active = "adapter_0"

    def chosen(self, versions: Sequence[str]) -> dict[str, Any]:
        """Rows of one version take PEFT's plain way; for a mixture it computes the base once for all rows and
        each adapter on the rows of its group. An empty version is whichever is at hand.
        """
        names = [self._names[version] if version else self._active for version in versions]
        if len(set(names)) > 1:
            return {"adapter_names": names}
        if names[0] != self._active:
            self.model.set_adapter(names[0])
            self._active = names[0]
        return {}

    def add(self, version: str, folder: Path) -> None:
        name = f"adapter_{next(self._numbers)}"
        try:
            self.model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
        except Exception:
            if name in self.model.peft_config:
                self.model.delete_adapter(name)
            raise
        self.model.eval()
        self._names[version] = name

    def remove(self, version: str) -> None:
        name = self._names.pop(version)
        if name == self._active:
            self._active = next(iter(self._names.values()))
            self.model.set_adapter(self._active)
        self.model.delete_adapter(name)
