from __future__ import annotations

import builtins
import re
from html.parser import HTMLParser

import pytest

from clients import scripted
from clients.fakes import serving
from neuroweaver.client import Client
from neuroweaver.client.training_history import History
from neuroweaver.report import report
from neuroweaver.report.curves import MissingLibrary, curves_of, smoothed, to_svg, write_png
from neuroweaver.v1 import registry_pb2, trainer_pb2

HOSTILE = """</div><script>alert(1)</script><img src=x onerror=alert(2)>"'{{ 7 * 7 }}<!--"""


class Page(HTMLParser):
    """Tags, attributes and text as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


def page_of(events, version=None, **result) -> tuple[str, Page]:
    job = scripted.job(events)
    for name, value in result.items():
        getattr(job.result, name).CopyFrom(value)
    history = History.of(events)
    made = report.Report(job, history, version, "127.0.0.1:50052", "127.0.0.1:50051")
    html = report.render(made, curves_of(history, job.config))
    return html, Page(html)


@pytest.fixture(scope="module")
def whole() -> tuple[str, Page]:
    return page_of(scripted.successful(), scripted.version())


@pytest.mark.parametrize(
    "told",
    [
        "judged better than its base",
        "19 comparisons are few",
        "13 won, 4 lost, 2 tied, 1 without a verdict",
        "The embedded judge compares",
        "18.4 → 7.93",
        "46 held-out pairs; always picking the longer answer: 59%",
        "-0.118 → 0.842",
        "KL 4.31 nats per response after 24 steps",
        "3 of 224 rows are longer",
        "1 min 36 s",
        "We measure toe, camber and caster",
        "The brakes are important for the car.",
        "no verdict",
        "service-advisor@1.0.0",
        "1b" * 32,
        "9e" * 32,
        "5a" * 32,
        "19.6 MB",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "grpcurl -plaintext 127.0.0.1:50052 list",
        "buf curl",
        f"neuroweaver train show {scripted.JOB_ID}",
    ],
)
def test_the_page_tells(whole, told):
    assert told in " ".join(whole[1].text.split())


def test_the_page_holds_the_four_curves(whole):
    html, page = whole

    assert page.tags.count("svg") == 4
    for title in (
        "Fine-tuning loss",
        "Reward model loss",
        "PPO reward",
        "PPO distance from the fine-tuned model",
    ):
        assert title in page.text
    assert html.count("var(--line)") > 4
    assert "#3b5bdb" not in html


def test_the_page_asks_for_nothing_from_outside(whole):
    html, page = whole

    assert "script" not in page.tags
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert "default-src 'none'" in html
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "xlink:href"}:
            assert value.startswith("#")
    assert not re.search(r"url\((?!#)|@import", html)


def test_drawings_on_one_page_share_no_id(whole):
    ids = [value for name, value in whole[1].attributes if name == "id"]

    assert len(ids) == len(set(ids))


def test_what_a_model_or_a_caller_wrote_stays_text():
    events = scripted.successful()
    finished = events[-1].finished.result
    finished.rlaif_failure = finished.judge = HOSTILE
    events[2].stage_started.description = HOSTILE
    notice = next(event for event in events if event.WhichOneof("event") == "notice").notice
    notice.message = notice.reason = HOSTILE
    for name in ("prompt", "reference", "base_response", "tuned_response", "reason"):
        setattr(finished.samples[0], name, HOSTILE)
    version = scripted.version(artifacts=[registry_pb2.Artifact(path=HOSTILE, digest=HOSTILE)])
    version.base.model_digest = version.lineage.trace_id = version.lineage.software_version = HOSTILE

    _, page = page_of(events, version)

    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.text.count(HOSTILE) >= 12


def test_a_failed_job_has_a_page_with_its_reason():
    _, page = page_of(scripted.failed())

    assert "The job failed in Fine-tuning" in page.text
    assert "OUT_OF_MEMORY" in page.text
    assert "not finished" in page.text
    assert page.tags.count("svg") == 1


def test_a_job_that_fell_back_says_so_and_shows_no_ppo():
    events = scripted.successful()
    result = events[-1].finished.result
    result.ClearField("reward_model")
    result.ClearField("policy_optimization")
    result.rlaif_failure = "the judge was not there"

    _, page = page_of(events)

    assert "Without reinforcement learning" in page.text
    assert "the judge was not there" in page.text
    assert "Reward model accuracy" not in page.text


def test_numbers_that_are_not_finite_leave_a_curve_drawable(tmp_path):
    script = scripted.Script()
    losses = [{"loss": value} for value in (3.0, float("nan"), float("inf"), 2.0)]
    script.stage(trainer_pb2.STAGE_SFT, "", 1.0, losses)

    [curve] = curves_of(History.of(script.events), scripted.config())

    assert (list(curve.steps), list(curve.values)) == ([1, 4], [3.0, 2.0])
    assert to_svg(curve).startswith("<svg")


def test_smoothing_is_a_centred_mean():
    assert smoothed([0.0, 3.0, 6.0, 9.0]) == [1.5, 3.0, 6.0, 7.5]


def test_writing_gives_the_page_and_the_picture(mesh, tmp_path, fake_trainer):
    with Client() as client:
        made = report.Report.gather(client, fake_trainer.job)
    written = report.write(made, tmp_path / "a" / "report.html", tmp_path / "a" / "curves.png")

    html, png = (path.read_bytes() for path in written)
    assert html.startswith(b"<!doctype html>")
    assert png.startswith(b"\x89PNG")


def test_without_the_registry_the_files_come_from_the_job(fake_trainer):
    with serving(fake_trainer) as address, Client({"trainer": address, "registry": "127.0.0.1:1"}) as client:
        made = report.Report.gather(client, fake_trainer.job)

    html = report.render(made, [])
    assert made.version is None
    assert "adapter/adapter_model.safetensors" in html


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    curves = curves_of(History.of(scripted.successful()), scripted.config())
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingLibrary, match=r"neuroweaver\[report\]"):
        write_png(curves, tmp_path / "curves.png")


def test_the_command_writes_the_report_of_an_ended_job_only(mesh, fake_trainer, neuroweaver, tmp_path):
    page = tmp_path / "report.html"
    assert neuroweaver("train", "report", scripted.JOB_ID, "-o", page, "--png", tmp_path / "c.png").code == 0
    assert page.exists()

    fake_trainer.events = fake_trainer.events[:20]
    outcome = neuroweaver("train", "report", scripted.JOB_ID, "-o", tmp_path / "other.html")

    assert outcome.code == 5
    assert "there is a report when it has ended" in outcome.err
    assert not (tmp_path / "other.html").exists()


def test_a_single_step_is_no_curve():
    script = scripted.Script()
    script.stage(trainer_pb2.STAGE_SFT, "", 1.0, [{"loss": 3.0}])

    assert curves_of(History.of(script.events), scripted.config()) == []
