"""The configuration page is what the settings give, and leaves no variable out."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/configuration.md"


def test_the_page_is_what_the_settings_give():
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs/make_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.page() == PAGE.read_text(encoding="utf-8"), "run `make gen`"


def test_every_variable_of_the_environment_stands_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    sources = [path for root in ("services", "clients") for path in (ROOT / root).rglob("*.py")]
    used = {
        name
        for path in sources
        for name in re.findall(
            r'"(NEUROWEAVER_[A-Z_]+|OPENAI_[A-Z_]+|OTEL_[A-Z_]+|WANDB_[A-Z_]+)"', path.read_text()
        )
    }
    # Told by the trainer to its workers, and by a service's own name.
    internal = {"NEUROWEAVER_JOB_ID", "NEUROWEAVER_JOB_FOLDER", "NEUROWEAVER_LEASE_TOKEN"}
    per_service = {
        name for name in used if re.search(r"_(REGISTRY|TRAINER|DEPLOYER|EXPERIMENT)_ADDRESS$", name)
    }
    assert len(used) > 10
    assert sorted(name for name in used - internal - per_service if name not in page) == []
