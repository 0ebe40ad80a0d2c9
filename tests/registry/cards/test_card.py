from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token
from semver import Version

from neuroweaver.registry.cards.card import card
from neuroweaver.registry.domain.model import (
    MAX_METRICS,
    Artifact,
    BasePin,
    Direction,
    Interval,
    Lineage,
    Metric,
    Model,
    ModelVersion,
    State,
)

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)
HIGHER, LOWER = Direction.HIGHER_IS_BETTER, Direction.LOWER_IS_BETTER
HOSTILE = (
    '"><script>alert(1)</script> | `a` ```\n---\n# h\n- l\n1. o\n===\n![x](javascript:1) [l](http://e) *b* _i_ '
    "~~s~~ &amp; <!-- \\ \u202eevil\u2028x\x85y\u200b: {x} 'y'"
)

# What the Trainer registers: see neuroweaver.trainer.worker.registration.
CONFIG: dict[str, Any] = {
    "base_model": "org/base-135m",
    "specialization": "service_advisor",
    "dataset_path": "builtin:automotive",
    "lora_r": 16.0,
    "learning_rate": 0.0002,
    "target_modules": ["q_proj", "v_proj"],
    "seed": "42",
    "enable_rlaif": True,
    "feedback_model": "embedded",
    "quantization": "QUANTIZATION_NF4",
}
METRICS = {
    "win_rate": Metric(value=0.72, direction=HIGHER, interval=Interval(0.52, 0.86, 0.95)),
    "judge_score": Metric(value=6.5, direction=HIGHER, samples=(6.0, 7.0, 6.5)),
    "judge_score_base": Metric(value=3.5, direction=HIGHER, samples=(3.0, 4.0, 3.5)),
    "loss": Metric(value=2.0512, direction=LOWER, unit="nats/token"),
    "loss_base": Metric(value=2.913, direction=LOWER, unit="nats/token"),
    "ppo_kl": Metric(value=5.5, direction=LOWER, unit="nats/response"),
}
MODEL = Model(model_id="advisor", description="Answers in a workshop.", create_time=NOW, update_time=NOW)


def version(number: str = "1.1.0", **fields: Any) -> ModelVersion:
    given = {
        "description": "trained by job j1",
        "state": State.VALIDATED,
        "config": CONFIG,
        "metrics": METRICS,
        "tags": {"team": "service", "specialization": "service_advisor"},
        "base": BasePin(
            name="org/base-135m",
            model_digest=A,
            tokenizer_digest=B,
            chat_template_digest=C,
            context_length=2048,
        ),
        "lineage": Lineage(
            training_job_id="j1",
            dataset_digest=D,
            dataset_path="builtin:automotive",
            software_version="0.1.0",
            trace_id="0af7",
        ),
        "artifacts": (
            Artifact(path="adapter/adapter_config.json", digest=C, size_bytes=812),
            Artifact(path="adapter/adapter_model.safetensors", digest=A, size_bytes=9_783_112),
        ),
        "create_time": NOW,
        "update_time": NOW,
    }
    return ModelVersion(model_id="advisor", version=Version.parse(number), **given | fields)


def front(markdown: str) -> dict[str, Any]:
    assert markdown.startswith("---\n")
    return yaml.safe_load(markdown[4:].split("\n---\n", 1)[0])


def body(markdown: str) -> str:
    return markdown.split("\n---\n", 1)[1]


def tokens(markdown: str) -> list[Token]:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])

    def walk(level: list[Token]) -> Iterator[Token]:
        for token in level:
            yield token
            yield from walk(token.children or [])

    return list(walk(parser.parse(markdown)))


def headings(markdown: str) -> list[str]:
    found = tokens(markdown)
    return [found[index + 1].content for index, token in enumerate(found) if token.type == "heading_open"]


def section(markdown: str, heading: str) -> str:
    return body(markdown).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def snippets(markdown: str) -> list[str]:
    return [
        token.content for token in tokens(body(markdown)) if token.type == "fence" and token.info == "python"
    ]


def test_the_card_of_a_trained_version_has_every_part():
    markdown = card(version(aliases=("production",)), model=MODEL, parent=version("1.0.0", artifacts=()))

    assert headings(body(markdown)) == [
        "advisor 1.1.0",
        "How to use",
        "Base model",
        "Lineage",
        "Training configuration",
        "Metrics",
        "Judge's results",
        "Change against 1.0.0",
        "Files",
        "Limitations",
    ]
    assert body(markdown).startswith(
        "\n# advisor 1.1.0\n\n"
        "A LoRA adapter of rank 16 for `org/base-135m`, specialised as `service_advisor`.\n\n"
        "> Answers in a workshop.\n\n> trained by job j1\n"
    )
    assert "| State | VALIDATED |\n| Created | 2030-01-02 03:04 UTC |\n| Aliases | `production` |" in markdown


def test_the_front_matter_is_what_the_hub_reads():
    markdown = card(version(lineage=Lineage(dataset_path="org/rows")), model=MODEL)

    loaded = ModelCard(markdown)
    assert front(markdown) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "org/base-135m",
        "base_model_relation": "adapter",
        "tags": ["neuroweaver", "lora", "specialization:service_advisor", "team:service"],
        "datasets": ["org/rows"],
        "metrics": ["judge_score", "loss", "ppo_kl", "win_rate"],
        "model-index": front(markdown)["model-index"],
    }
    assert loaded.data.model_name == "advisor"
    assert [(each.metric_type, each.metric_value) for each in loaded.data.eval_results] == [
        ("judge_score", 6.5),
        ("loss", 2.0512),
        ("ppo_kl", 5.5),
        ("win_rate", 0.72),
    ]


@pytest.mark.parametrize("name", ["/models/base", "a/b/c", "-x", "x y", "a--b", "../x", ""])
def test_what_the_hub_would_refuse_is_left_out_of_the_front_matter(name: str):
    markdown = card(
        version(base=BasePin(name=name), config={}, lineage=Lineage(dataset_path=name)), model=MODEL
    )

    assert front(markdown).keys() == {"library_name", "pipeline_tag", "tags", "metrics", "model-index"}


@pytest.mark.parametrize("path", ["data/rows.jsonl", "builtin:automotive"])
def test_a_file_of_rows_is_no_data_set_of_the_hub(path: str):
    assert "datasets" not in front(card(version(lineage=Lineage(dataset_path=path)), model=MODEL))


def test_full_weights_are_loaded_by_transformers_alone():
    weights = (Artifact(path="model.safetensors", digest=A, size_bytes=1),)
    markdown = card(version(artifacts=weights), model=MODEL)

    assert front(markdown)["library_name"] == "transformers"
    assert front(markdown)["base_model_relation"] == "finetune"
    assert "peft" not in snippets(markdown)[0]
    assert 'base = "advisor-1.1.0"\n' in snippets(markdown)[0]


def test_a_draft_has_nothing_to_use():
    markdown = card(version(state=State.DRAFT, artifacts=(), metrics={}), model=MODEL)

    assert "How to use" not in headings(body(markdown))
    assert front(markdown).keys() == {"base_model", "base_model_relation", "tags"}
    assert "**It is a draft: it is still being made.**" in markdown
    assert "It has no files." in section(markdown, "Limitations")


def test_the_snippets_are_python_and_name_base_and_folder():
    for given in (
        version(),
        version(base=BasePin(name=HOSTILE)),
        version(config={"specialization": HOSTILE}),
    ):
        markdown = card(given, model=MODEL)
        lora, client = map(ast.parse, snippets(markdown))
        texts = {node.value for node in ast.walk(lora) if isinstance(node, ast.Constant)}

        assert "advisor-1.1.0/adapter" in texts
        assert any(text == "org/base-135m" or "<script>" in str(text) for text in texts)
        assert "advisor" in {node.value for node in ast.walk(client) if isinstance(node, ast.Constant)}


def test_a_base_that_is_no_hub_id_is_said_to_need_one():
    assert "In place of" not in section(card(version(), model=MODEL), "How to use")
    for name in ("base-135m", "/models/base"):
        markdown = card(version(base=BasePin(name=name)), model=MODEL)
        assert "In place of `" in section(markdown, "How to use")


def test_pin_and_lineage_are_whole():
    markdown = card(version(), model=MODEL)

    for value in ("`org/base-135m`", f"`{A}`", f"`{B}`", f"`{C}`", "2,048 tokens"):
        assert f"| {value} |" in section(markdown, "Base model")
    for value in ("`j1`", "`builtin:automotive`", f"`{D}`", "NeuroWeaver 0.1.0", "`0af7`"):
        assert f"| {value} |" in section(markdown, "Lineage")
    bare = card(version(base=BasePin(name="x"), lineage=Lineage(training_job_id="j")), model=MODEL)
    assert "| Tokenizer, SHA-256 | not recorded |" in bare
    assert "| Data set, SHA-256 | not recorded |" in bare


def test_the_configuration_is_a_table_of_paths():
    markdown = card(version(config={"b": 16.0, "a": {"x": [1, "y"], "on": True}, "c": 2e-4}), model=MODEL)

    assert section(markdown, "Training configuration").strip() == (
        '| Setting | Value |\n| --- | --- |\n| `a.on` | `true` |\n| `a.x` | `[1, "y"]` |\n'
        "| `b` | `16` |\n| `c` | `0.0002` |"
    )


def test_metrics_stand_beside_what_the_base_model_reached():
    markdown = card(version(), model=MODEL)

    assert section(markdown, "Metrics").strip() == (
        "| Metric | Value | Interval | Base model | Better | Unit | Samples |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| `loss` | 2.051 |  | 2.913 | lower | nats/token |  |\n"
        "| `ppo_kl` | 5.5 |  |  | lower | nats/response |  |"
    )
    judged = section(markdown, "Judge's results")
    assert "| `judge_score` | 6.5 |  | 3.5 | higher |  | 3 |\n" in judged
    assert "| `win_rate` | 0.72 | 0.52 to 0.86 (95%) |  | higher |  |  |" in judged
    assert judged.strip().startswith(
        "Scored by the judge `embedded`. In `win_rate` a tie counts as half a win"
    )


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(0.52, 0.9, 0.95), "Its whole interval lies above 0.5: better than the base model by more than chance."),
        (Interval(0.1, 0.48, 0.95), "Its whole interval lies below 0.5: worse than the base model by more than chance."),
        (Interval(0.5, 0.9, 0.95), "Its interval holds 0.5: chance alone could do this."),
    ],
)  # fmt: skip
def test_the_win_rate_is_told_with_its_interval(interval: Interval, said: str):
    metrics = {"win_rate": Metric(value=0.5, interval=interval)}

    assert said in section(card(version(metrics=metrics), model=MODEL), "Judge's results")


def test_the_change_against_the_parent_is_told():
    parent = version(
        "1.0.0",
        config={**CONFIG, "lora_r": 8.0, "epochs": 1},
        metrics={"judge_score": Metric(value=2.5, direction=HIGHER, samples=(2.0, 3.0, 2.5))},
    )
    markdown = card(version(parent_version="1.0.0"), model=MODEL, parent=parent)

    change = section(markdown, "Change against 1.0.0")
    assert change.strip().startswith("1.1.0 is better than 1.0.0: judge\\_score rose from 2.5 to 6.5 (")
    assert (
        "Recommended bump: **minor**. Minor, since the adapter rank differs and the configuration" in change
    )
    assert "- `config.lora_r`: The adapter rank differs: 16 in 1.1.0, 8 in 1.0.0." in change
    assert "| `judge_score` | 2.5 | 6.5 | +4 | +2.87 to +5.13 | < 0.001 | better |" in change
    assert "| `config.lora_r` | `8` | `16` |" in change
    assert "| `config.epochs` | `1` |  |" in change
    assert "Change against" not in card(version(parent_version="1.0.0"), model=MODEL)


def test_files_have_size_and_digest():
    assert (
        section(card(version(), model=MODEL), "Files")
        .strip()
        .endswith(
            f"| `adapter/adapter_config.json` | 812 B | `{C}` |\n"
            f"| `adapter/adapter_model.safetensors` | 9.8 MB | `{A}` |"
        )
    )


@pytest.mark.parametrize(
    ("fields", "said", "otherwise"),
    [
        ({"metrics": {}}, "No metric is recorded: its quality is unknown.", {}),
        ({"lineage": None}, "The data set's digest is not recorded", {}),
        ({"base": None}, "No digest is recorded of the base model's weights, tokenizer and chat template", {}),
        ({}, "`loss` and `ppo_kl` have neither interval nor samples", {"metrics": {}}),
        ({}, "`judge_score` rests on fewer than 30 samples.", {"metrics": {"judge_score": Metric(value=1.0, samples=(1.0,) * 30)}}),
        ({}, "a quantised base model (`QUANTIZATION_NF4`)", {"config": {"quantization": "QUANTIZATION_NONE"}}),
        ({}, "The embedded judge compares sentence embeddings", {"config": {"feedback_model": "gpt"}}),
        ({}, "also gave the feedback that it was trained on", {"config": {"enable_rlaif": False}}),
        ({"metrics": {"loss": METRICS["loss"]}}, "yet no figure of it is recorded", {}),
    ],
)  # fmt: skip
def test_limitations_follow_from_the_facts(fields: dict[str, Any], said: str, otherwise: dict[str, Any]):
    assert said in section(card(version(**fields), model=MODEL), "Limitations")
    assert said not in section(card(version(**otherwise), model=MODEL), "Limitations")


@pytest.mark.parametrize("state", [State.DEPRECATED, State.ARCHIVED])
def test_a_version_out_of_use_says_so_at_the_top(state: State):
    assert f"**It is {state.lower()}: " in card(version(state=state), model=MODEL)
    assert "**It is" not in card(version(), model=MODEL)


def test_the_same_version_gives_the_same_bytes():
    def reversed_map(mapping: dict[str, Any]) -> dict[str, Any]:
        return dict(reversed(mapping.items()))

    one = version(aliases=("a", "b"))
    other = replace(
        one,
        config=reversed_map(CONFIG),
        metrics=reversed_map(METRICS),
        tags=reversed_map(dict(one.tags)),
        create_time=NOW.astimezone(timezone(timedelta(hours=9))),
        aliases=("b", "a"),
    )

    assert card(one, model=MODEL, parent=one) == card(other, model=MODEL, parent=other)


def hostile() -> tuple[ModelVersion, Model]:
    metric = Metric(value=1, unit=HOSTILE, samples=(1, 2, 0), direction=HIGHER)
    return version(
        description=HOSTILE,
        config={**CONFIG, HOSTILE: {HOSTILE: [HOSTILE]}, "specialization": HOSTILE, "feedback_model": HOSTILE, "quantization": HOSTILE},
        metrics={**METRICS, HOSTILE: metric},
        tags={HOSTILE: HOSTILE, "specialization": HOSTILE},
        base=BasePin(name=HOSTILE),
        lineage=Lineage(training_job_id=HOSTILE, dataset_path=HOSTILE, software_version=HOSTILE, trace_id=HOSTILE),
        artifacts=(*version().artifacts, Artifact(path=HOSTILE, digest=HOSTILE, size_bytes=1)),
        parent_version=HOSTILE,
        aliases=(HOSTILE,),
    ), replace(MODEL, description=HOSTILE, tags={HOSTILE: ""})  # fmt: skip


def test_foreign_text_changes_nothing_in_the_structure():
    bad, model = hostile()
    parent = version("1.0.0")

    found = tokens(body(card(bad, model=model, parent=parent)))
    harmless = {token.type for token in tokens(body(card(version(), model=MODEL, parent=parent)))}

    assert {token.type for token in found} - harmless == {"hardbreak"}
    assert not {"html_block", "html_inline", "link_open", "image"} & {token.type for token in found}
    assert [token.markup for token in found if token.type == "heading_open"].count("#") == 1


def test_foreign_text_keeps_every_row_as_wide_as_its_head():
    bad, model = hostile()
    lines = body(card(bad, model=model, parent=version("1.0.0"))).split("\n")

    for index, text in enumerate(lines):
        if text.startswith("| --- "):
            rows = [index - 1, index]
            while lines[rows[-1] + 1].startswith("|"):
                rows.append(rows[-1] + 1)
            assert len({len(re.split(r"(?<!\\)\|", lines[row])) for row in rows}) == 1


def test_foreign_text_stays_readable():
    bad, model = hostile()
    found = tokens(body(card(bad, model=model)))
    told = "".join(token.content for token in found if token.type in {"text", "text_special", "code_inline"})

    # As a reader sees it: nothing is lost but what hides or reorders.
    assert (
        '"><script>alert(1)</script> | `a` ``` --- # h - l 1. o === ![x](javascript:1) [l](http://e) *b*'
        in told
    )
    assert "~~s~~ &amp; <!-- \\ \N{REPLACEMENT CHARACTER}evil" in told


def test_the_line_ends_of_any_system_are_line_ends():
    told = [
        card(version(description=f"one{end}two{end}{end}three"), model=MODEL) for end in ("\n", "\r\n", "\r")
    ]

    assert "> one  \n> two  \n>  \n> three\n" in told[0]
    assert told[0] == told[1] == told[2]


def test_no_markup_and_no_hidden_character_is_in_the_bytes():
    bad, model = hostile()

    markdown = card(bad, model=model, parent=version("1.0.0"))

    assert "<" not in markdown.replace("| < 0.001 |", "")
    assert not set("\u202e\u2028\x85\u200b") & set(markdown)


def test_the_front_matter_keeps_foreign_text_as_it_is():
    bad, model = hostile()
    shown = " ".join(re.sub("[\u202e\u2028\x85\u200b]", "\N{REPLACEMENT CHARACTER}", HOSTILE).split())

    markdown = card(bad, model=model)

    assert front(markdown)["tags"] == ["neuroweaver", "lora", f"{shown}:{shown}", f"specialization:{shown}"]
    assert shown in front(markdown)["metrics"]
    assert ModelCard(markdown).data.tags == front(markdown)["tags"]


@pytest.mark.parametrize(
    "text", ["---", "yes", "null", "1.0", "- x", "a: b", "#x", "'", '"', "\\", "\\<", "{x}", "é", "😀", "%x"]
)
def test_every_tag_comes_back_from_the_front_matter_as_text(text: str):
    markdown = card(version(tags={"k": text, text: ""}), model=MODEL)

    assert {f"k:{text}", text} <= set(front(markdown)["tags"])


class CoreSchema(yaml.SafeLoader):
    """Reads as the core schema of YAML 1.2.2 (10.3.2) says; PyYAML itself reads YAML 1.1."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


for tag, pattern in {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    CoreSchema.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), None)

NUMBERS_OF_SOME_READER = (
    "1e3", "-1e3", "+1E-3", "12e03", "1.5e3", "1.e5", ".5", "-.5", "+.5e-2", "5.", "0o7", "0o8", "0x1F", "012",
    "1_000", "0b11", "1:30", "2024-01-01", ".inf", "-.INF", ".NaN", "y", "N", "on", "No", "true", "Null", "~",
)  # fmt: skip


@pytest.mark.parametrize("loader", [yaml.SafeLoader, CoreSchema])
def test_tags_and_metrics_that_look_like_numbers_are_texts_in_both_versions_of_yaml(loader):
    tags = dict.fromkeys(NUMBERS_OF_SOME_READER, "")
    metrics = {name: Metric(value=1e22) for name in NUMBERS_OF_SOME_READER}

    markdown = card(version(tags=tags, metrics=metrics), model=MODEL)

    read = yaml.load(markdown[4:].split("\n---\n", 1)[0], loader)
    assert set(NUMBERS_OF_SOME_READER) <= set(read["tags"])
    assert set(read["metrics"]) == set(NUMBERS_OF_SOME_READER)
    results = read["model-index"][0]["results"]
    assert {metric["type"] for result in results for metric in result["metrics"]} == set(
        NUMBERS_OF_SOME_READER
    )
    assert {metric["value"] for result in results for metric in result["metrics"]} == {1e22}


def test_the_largest_version_fits_in_a_message():
    big = version(
        config={f"{'<' * 100}{index}": "<" * 100 for index in range(1000)} | {"k" * 100_000: 1},
        metrics={f"{'m' * 120}{index}": Metric(value=index) for index in range(MAX_METRICS)},
        tags={f"{'t' * 60}{index}": "<" * 256 for index in range(64)},
        artifacts=tuple(
            Artifact(path=f"{'p' * 500}{index}.json", digest=A, size_bytes=index) for index in range(10_000)
        ),
        description="<" * 4096,
    )

    markdown = card(big, model=MODEL, parent=version("1.0.0"))

    assert len(markdown.encode()) < 4 * 1024 * 1024
    assert "And 9,500 more rows, which this card leaves out." in section(markdown, "Files")
