"""Text as token ids, in which control tokens are those that a template writes, and letters everywhere else.

A control token parts turns, or is special. Contents are quoted before a template writes them down: a mark
stands wherever letters of theirs would be such a token, or be one together with what the template writes next
to them. What is left of control tokens in the rendered text is the template's own. It is sealed: written by
names that no text holds, for a second tokenizer over the same vocabulary that knows control tokens by these
names alone. So it finds none in a content, however the tokenizer normalises, strips or overlaps them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from neuroweaver.base_models.rendering import TemplateRefuses, words_of

# A noncharacter: Unicode keeps it out of all text.
QUOTE: Final = "\ufdd0"
# Of an added token, and of all together: what is kept of them grows by the square.
_MAX_LENGTH: Final = 256
_MAX_LETTERS: Final = 1 << 19


@contextmanager
def tokenizing() -> Iterator[None]:
    """Raises TemplateRefuses for what a tokenizer raises, of no common kind; also for a panic of its Rust."""
    try:
        yield
    except (MemoryError, TemplateRefuses):
        raise
    except BaseException as error:
        if not is_fault_of_tokenizer(error):
            raise
        raise TemplateRefuses(f"its tokenizer cannot encode the text: {words_of(error)}") from error


def is_fault_of_tokenizer(error: BaseException) -> bool:
    """Whether foreign code fails rather than is ended. A panic has a class that cannot be imported."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


class ControlTokens:
    """Those of one tokenizer, which has to be one of `tokenizers`.

    added: its added tokens by name, of which `control` are control tokens. parting: of these, what begins
    and ends turns or texts. unknown: the id of what the vocabulary lacks. It stays free to mean that, and
    tokens of bytes to mean bytes, unless they part turns. Raises TemplateRefuses.
    """

    def __init__(
        self,
        backend: Any,
        added: Mapping[str, Any],
        control: Collection[str],
        *,
        parting: Collection[str],
        unknown: int | None,
    ) -> None:
        self._seals = {name: f"{QUOTE}{number}{QUOTE}" for number, name in enumerate(sorted(control))}
        self._added = one_of(added)
        self._longest = max(map(len, added), default=0)
        if self._longest > _MAX_LENGTH or sum(map(len, added)) > _MAX_LETTERS:
            raise TemplateRefuses(
                f"its tokenizer has added tokens of more than {_MAX_LENGTH} letters, or too many"
            )
        self._suspect = _beginnings(control)
        self._builds = _edge_letters(control)
        self._begins, self._ends = _parts(added)
        self._spaced_begins, self._spaced_ends = _parts(name for name in control if name != name.strip())
        with tokenizing():
            self._tokenizer, self._ids = _sealed(backend, added, self._seals)
            ids = {backend.token_to_id(name): name for name in control}
            free = {unknown, *map(backend.token_to_id, _byte_tokens(backend))}
            free -= set(map(backend.token_to_id, parting))
            # Those that letters may be as well, by the vocabulary itself; and those that one letter may be.
            known = {token: backend.model.id_to_token(token) for token in ids if token not in free}
            self._reachable = {token for token, name in known.items() if name is not None}
            self._letters = {
                token: ids[token] for token in self._reachable if len(known[token]) == 1 or token == unknown
            }

    def quoted(self, content: str) -> str:
        """Raises TemplateRefuses for a content that cannot be written without a control token."""
        if QUOTE in content:
            raise TemplateRefuses("it takes no U+FDD0, which Unicode keeps out of all text: leave it out")
        self._refuse_letters(content)
        if self._suspect:
            content = self._suspect.sub(rf"\g<0>{QUOTE}", content)
        # A template may take away the space around.
        core = content.strip()
        marked = self._edged(core, self._begins, self._ends)
        return self._edged(content.replace(core, marked, 1), self._spaced_begins, self._spaced_ends)

    def may_be_built_of(self, content: str) -> bool:
        """Whether a control token could come about where a template alters the content, as `replace` does."""
        if not self._builds:
            return False
        forms = [content] if content.isascii() else [content, content.lower(), content.upper()]
        return any(self._builds.search(form) for form in forms)

    def names_in(self, rendered: str) -> list[str]:
        """The control tokens of a rendered text, in order."""
        found = self._added.finditer(rendered) if self._added else ()
        return [match[0] for match in found if match[0] in self._seals]

    def _edged(self, text: str, begins: Collection[str], ends: Collection[str]) -> str:
        """The text with a mark wherever it could be the rest of a token, or the beginning of one."""
        lengths = range(1, self._longest)
        begin = QUOTE if any(text[:length] in ends for length in lengths) else ""
        end = QUOTE if any(text[-length:] in begins for length in lengths) else ""
        return f"{begin}{text}{end}"

    def token_ids(self, rendered: str, *, after: str = "") -> list[int]:
        """Token ids of rendered text, or of a part of it that stands behind the text `after`.

        SentencePiece would put a space before a text of its own. Raises TemplateRefuses.
        """
        text, end = self._sealed(rendered), self._end_of(after)
        return self._behind((end, "\n" if after else "", ""), text) if text else []

    def _sealed(self, rendered: str) -> str:
        parts, position = [], 0
        for match in self._added.finditer(rendered) if self._added else ():
            if seal := self._seals.get(match[0]):
                parts += [rendered[position : match.start()].replace(QUOTE, ""), seal]
                position = match.end()
        return "".join([*parts, rendered[position:].replace(QUOTE, "")])

    def _end_of(self, text: str) -> str:
        """The token that ends the text, or else its last letter."""
        tail = text[-2 * max(self._longest, 1) :]
        found = [*self._added.finditer(tail)] if self._added else []
        if found and found[-1].end() == len(tail):
            return self._seals.get(found[-1][0], found[-1][0])
        return tail.replace(QUOTE, "")[-1:]

    def _behind(self, anchors: Collection[str], text: str) -> list[int]:
        for anchor in dict.fromkeys(anchors):
            before = self._encoded(anchor) if anchor else []
            ids = self._encoded(anchor + text)
            if ids[: len(before)] == before:
                return ids[len(before) :]
        raise AssertionError("behind nothing, the ids are the text's own")

    def _encoded(self, text: str) -> list[int]:
        with tokenizing():
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if not self._reachable.isdisjoint(ids):
            return self._parted(text, encoding)
        return [self._ids.get(token, token) for token in ids]

    def _parted(self, text: str, encoding: Any) -> list[int]:
        """Ids of a text of which the vocabulary makes a control token: there, each letter for itself."""
        letters: dict[str, list[int]] = {}
        ids: list[int] = []
        position = 0
        for token, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token not in self._reachable:
                continue
            ids += self._piece(text[position:begin])
            for letter in text[begin:end]:
                if letter not in letters:
                    letters[letter] = self._piece(letter)
                ids += letters[letter]
            position = end
        return ids + self._piece(text[position:])

    def _piece(self, text: str) -> list[int]:
        """Ids of a part of a text; those of its letters if it is a control token on its own."""
        for anchor in ("\n", ""):
            before = self._raw(anchor)
            ids = self._raw(anchor + text)
            if ids[: len(before)] == before:
                break
        ids = ids[len(before) :]
        if len(text) > 1 and not self._reachable.isdisjoint(ids):
            return [token for letter in text for token in self._piece(letter)]
        return [self._ids.get(token, token) for token in ids]

    def _raw(self, text: str) -> list[int]:
        with tokenizing():
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def _refuse_letters(self, content: str) -> None:
        if not self._letters or self._letters.keys().isdisjoint(self._encoded(content)):
            return
        for letter in content:
            if found := self._letters.keys() & self._piece(letter):
                raise TemplateRefuses(
                    f"its tokenizer writes a letter of the text as the control token "
                    f"{self._letters[found.pop()]!r}: leave {letter!r} out"
                )


def one_of(tokens: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Matches the longest of the unquoted tokens by name; None without any."""
    longest_first = sorted(tokens, key=len, reverse=True)
    patterns = [_pattern(name, tokens[name]) for name in longest_first]
    return re.compile("|".join(patterns)) if patterns else None


def _pattern(name: str, token: Any) -> str:
    pattern = re.escape(name) + (f"(?!{QUOTE})" if len(name) == 1 else "")
    if not token.single_word:
        return pattern
    # Marks count for nothing; at most three follow a letter.
    before = "".join(rf"(?<!\w{QUOTE * marks})" for marks in range(4))
    return rf"{before}{pattern}(?!{QUOTE}*\w)"


def _parts(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """What begins a name, and what ends one, without the whole names."""
    parts = [(name[:place], name[place:]) for name in names for place in range(1, len(name))]
    return {begin for begin, _ in parts}, {end for _, end in parts}


def _beginnings(names: Collection[str]) -> re.Pattern[str] | None:
    """Matches the first letter of each token in a text, of those that overlap too; None without any."""
    rests: dict[str, list[str]] = {}
    for name in sorted(names):
        rests.setdefault(name[0], []).append(re.escape(name[1:]))
    letters = (f"{re.escape(first)}(?={'|'.join(others)})" for first, others in rests.items())
    return re.compile("|".join(letters)) if rests else None


def _edge_letters(names: Collection[str]) -> re.Pattern[str] | None:
    """Matches what a name begins or ends with, in any case, and what begins a letter's name in HTML."""
    edges = {letter for name in names for letter in (name[0], name[-1])}
    letters = {form for letter in edges for form in (letter, *letter.lower(), *letter.upper())}
    return re.compile(f"[{re.escape(''.join(sorted(letters)))}&]") if names else None


def _sealed(backend: Any, added: Mapping[str, Any], seals: Mapping[str, str]) -> tuple[Any, dict[int, int]]:
    """The tokenizer that knows control tokens by their seals; the other's ids of added tokens by its own."""
    from tokenizers import AddedToken, Tokenizer  # noqa: PLC0415 (few processes encode)

    tokenizer = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer"):
        if (value := getattr(backend, part)) is not None:
            setattr(tokenizer, part, value)
    # All at once: each addition builds the search for all anew.
    tokenizer.add_tokens([_seal(AddedToken, token, seals.get(name)) for name, token in added.items()])
    own_ids: dict[str, Any] = {name: tokenizer.token_to_id(seals.get(name, name)) for name in added}
    if any(backend.model.id_to_token(own_ids[name]) is not None for name in seals):
        raise TemplateRefuses("its vocabulary has gaps, so that tokens share their ids")
    return tokenizer, {own_ids[name]: backend.token_to_id(name) for name in added}


def _byte_tokens(backend: Any) -> list[str]:
    """The tokens by which a vocabulary writes bytes of letters that it lacks."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    # Without them all, the vocabulary writes what it lacks in another way.
    return names if all(backend.model.token_to_id(name) is not None for name in names) else []


def _seal(kind: Any, token: Any, seal: str | None) -> Any:
    """An added token by the name of its seal; itself without one."""
    if seal is None:
        return token
    return kind(seal, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False, special=True)
