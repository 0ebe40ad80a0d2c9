"""What it costs to render every row of a data set: `python bench/trial.py --model <folder> --rows 2500`.

Processor time of the process that StartTraining and ValidateDataset start, over conversations of one to three
questions made of the built-in data set.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
from pathlib import Path

from neuroweaver.artifacts.content import digest_of
from neuroweaver.trainer.control.counting import Request, count
from neuroweaver.trainer.data.files import builtins


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a base model's folder, or its tokenizer's")
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--turns", type=int, default=3, help="questions of a row, at most")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(rows(arguments.rows, arguments.turns)))
        request = Request(
            model_folder=arguments.model,
            dataset_path=path,
            dataset_digest=digest_of(path),
            specialization="service_advisor",
            deadline_s=3600.0,
        )
        counted, _ = count(request, max_seq_length=2048, base_model=arguments.model.name, vocab_size=0)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = used.ru_utime + used.ru_stime
        size = path.stat().st_size
    print(f"{counted.rows:,} rows, {size / 1e6:.1f} MB, {counted.total:,} tokens: {cpu_s:.1f} s of CPU")
    print(f"{cpu_s / counted.rows * 1e3:.2f} ms a row, {used.ru_maxrss >> 10} MiB")


def rows(count: int, turns: int):
    drawn = random.Random(1)
    examples = [json.loads(line) for line in builtins()["automotive"].read_text().splitlines()]
    for number in range(count):
        chosen = drawn.choices(examples, k=drawn.randint(1, turns))
        sides = [(row["question"], row["answer"]) for row in chosen]
        messages = [
            {"role": role, "content": text}
            for asked, answer in sides
            for role, text in (("user", f"{number}: {asked}"), ("assistant", answer))
        ]
        yield json.dumps({"messages": messages}) + "\n"


if __name__ == "__main__":
    main()
