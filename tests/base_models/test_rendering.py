"""The process in which templates run where this one is not confined."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuroweaver.base_models.rendering import TemplateRefuses, _Renderer

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def renderer():
    renderer = _Renderer(cpu_s=2)
    yield renderer
    renderer.close()


def rendered(renderer, template):
    chat = [{"role": "user", "content": "Hello"}]
    return renderer.render(
        {"template": template, "chat": chat, "names": {"eos_token": "</s>"}, "options": {}}
    )


def test_a_template_that_never_ends_costs_its_own_chat_alone(renderer):
    with pytest.raises(TemplateRefuses, match="takes more than 2 s for one chat"):
        rendered(renderer, LOOP)
    assert rendered(renderer, "{{ messages[0].content }}{{ eos_token }}") == "Hello</s>"


def test_the_process_has_no_secrets_and_ends_with_its_work(renderer, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of the judge")
    monkeypatch.setenv("HF_TOKEN", "of the hub")
    assert rendered(renderer, "Hi") == "Hi"
    process = renderer._process
    environ = Path(f"/proc/{process.pid}/environ").read_bytes()
    assert b"PATH=" in environ
    assert b"of the" not in environ
    renderer.close()
    assert process.returncode == 0


def test_a_process_that_was_killed_is_replaced(renderer):
    assert rendered(renderer, "Hi") == "Hi"
    os.kill(renderer._process.pid, 9)
    assert rendered(renderer, "Hi") == "Hi"


@pytest.mark.parametrize("template", [None, 5, ["x"], {"default": "x"}])
def test_a_template_that_is_no_text_refuses(renderer, template):
    with pytest.raises(TemplateRefuses):
        rendered(renderer, template)
