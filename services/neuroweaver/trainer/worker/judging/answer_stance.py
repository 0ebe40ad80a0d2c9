"""Whether an English answer commits itself as it should: a next step, no false certainty or figures."""

from __future__ import annotations

import re

COMMITTED = re.compile(
    r"\b(?:please|let (?:me|us)|(?:we|i) (?:can|will|would)|we'll|i'll|you (?:should|need to|must|can) |"
    r"(?:tell|send|give|show) (?:me|us)|ask (?:for|your|the|which|whether|them|about|us|a)|come in|bring|"
    r"call|book|switch|stop|pull over|do not|don't|check|compare|request|measure|replace|read|refill|follow|"
    r"have (?:it|the|them|your|both|us)|take|write down|get the|keep the|look up|arrange)\b",
    re.IGNORECASE,
)
HEDGED = re.compile(
    r"\b(?:may want to|might|could be|it is (?:always )?(?:a )?good|it is best|from time to time|in general|"
    r"generally speaking|it depends|some (?:are|people|say)|many different|hard to (?:say|know))\b",
    re.IGNORECASE,
)
FALSE_CERTAINTY = re.compile(
    r"(?<!not )(?<!no )(?<!never )(?<!cannot be )\b(?:100 ?(?:%|percent)|guarantee[ds]?|definitely"
    r"|absolutely (?:safe|fine|no)|no (?:risk|danger) (?:at all|whatsoever)|never (?:fails?|breaks?|wrong)"
    r"|without (?:any )?worry|nothing (?:can|will) happen|(?:just |simply )?ignore (?:the|that|this|it)"
    r"|don't worry|no need to (?:worry|check)|are all the same|all \w+ are the same|i promise|trust me"
    r"|always works|will not be harmed)\b",
    re.IGNORECASE,
)
FIGURE = re.compile(
    r"[$\u20ac\u00a3]\s?\d[\d.,]*|\b\d[\d.,]*\s?%"
    r"|\b\d[\d.,]*\s?(?:euros?|dollars?|pounds|nm|newton|percent|km/h|mph|bar|psi)\b",
    re.IGNORECASE,
)
YES = re.compile(
    r"\s*(?:(?:usually |mostly |generally |normally |in most cases,? )?yes|sure|of course|certainly"
    r"|absolutely|go ahead|no problem)\b",
    re.IGNORECASE,
)
NO = re.compile(r"\s*(?:no(?! problem)|never)\b", re.IGNORECASE)
DISSUADES = re.compile(
    r"\s*(?:no(?! problem)|never|(?:please )?(?:don't|do not)|better not)\b", re.IGNORECASE
)


def next_step(answer: str) -> float:
    """From 0 to 1: whether the answer says what to do, rather than that something could be done."""
    committed = len(COMMITTED.findall(answer))
    if not committed:
        return 0.2
    hedged = len(HEDGED.findall(answer))
    return 1.0 if committed > hedged else 0.5


def restraint(answer: str, prompt: str, reference: str | None) -> float:
    """From 0 to 1: falls with each false certainty, and with each figure that nobody mentioned before."""
    given = f"{prompt}\n{reference or ''}"
    certain = {claim.lower() for claim in FALSE_CERTAINTY.findall(answer)}
    certain -= {claim.lower() for claim in FALSE_CERTAINTY.findall(given)}
    figures = set(FIGURE.findall(answer)) - set(FIGURE.findall(given))
    return max(0.0, 1.0 - 0.4 * len(certain) - 0.3 * len(figures))


def contradicts(answer: str, reference: str) -> bool:
    """Whether one begins with yes, the other with no; some questions are answered by yes and by don't."""
    denied = NO.match(answer) and YES.match(reference)
    return bool(denied or (YES.match(answer) and DISSUADES.match(reference)))
