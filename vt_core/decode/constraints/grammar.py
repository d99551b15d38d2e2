"""What an answer must follow: a schema, a regular expression or a grammar, checked before a model runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vt_core.decode.constraints import engine
from vt_core.decode.constraints.lark import check_ends, with_enforced_schemas
from vt_core.decode.constraints.schema import enforceable, literals
from vt_core.errors import ConstraintError, OptionError, VtError, shorten
from vt_core.files.json_files import parse_json

#: JSON on one line, with the spaces that Python's ``json.dumps`` writes. Free white space would be a choice
#: at every place, and small models repeat it without end. A character has one spelling: ``\u0061`` would be a
#: second name of a property "a".
_LAYOUT = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
}
#: Characters of a schema, expression or grammar. llguidance takes a second for a hundred thousand.
_MOST = 1 << 20


@dataclass(frozen=True)
class Grammar:
    """What an answer must follow. :func:`grammar_option` makes one."""

    option: str  #: ``json_schema``, ``regex`` or ``grammar``
    source: str  #: as it was given; a schema as JSON

    @cached_property
    def compiled(self) -> str:
        """The grammar in llguidance's own form.

        Raises:
            ConstraintError: it cannot be enforced.
        """
        matcher = engine.library().LLMatcher
        if self.option == "regex":
            return str(matcher.grammar_from_regex(self.source))
        if self.option == "grammar":
            check_ends(self.source)
            return str(matcher.grammar_from_lark(with_enforced_schemas(self.source, _LAYOUT)))
        schema = enforceable(json.loads(self.source), self.option)
        try:
            return str(matcher.grammar_from_json_schema(json.dumps(schema), overrides=_LAYOUT))
        except ValueError as error:
            raise ConstraintError(f"{self.option} cannot be compiled ({error})") from error

    @property
    def literals(self) -> list[str]:
        """Texts that the answer is likely to hold, as the answer spells them."""
        if self.option != "json_schema":
            return []
        values = {json.dumps(value, ensure_ascii=False) for value in literals(json.loads(self.source))}
        return [*sorted(values), '{"": "", "": ""}, [{}, [], ""]]}}', "true, false, null"]


def grammar_option(
    json_schema: object = None, regex: object = None, grammar: object = None
) -> Grammar | None:
    """The grammar of a request's options, or None if none is given.

    Args:
        json_schema: a dictionary, JSON text, or a class with ``model_json_schema``, as pydantic's have.
        regex: a regular expression that the whole answer matches.
        grammar: a grammar in llguidance's dialect of Lark.

    Raises:
        OptionError: more than one is given, or one has the wrong type.
        ConstraintError: it cannot be compiled or enforced, or allows no text.
    """
    given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    named = [name for name, value in given.items() if value is not None]
    if not named:
        return None
    if len(named) > 1:
        raise OptionError(f"{' and '.join(named)} do not go together; give one of them")
    (option,) = named
    source = _schema_text(json_schema) if option == "json_schema" else given[option]
    if not isinstance(source, str):
        raise OptionError(f"{option} is {shorten(source)}, but it must be text")
    if len(source) > _MOST:
        raise ConstraintError(f"{option} has {len(source)} characters, more than the limit of {_MOST}")
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise ConstraintError(f"{option} is not UTF-8 text (at character {error.start})") from error
    chosen = Grammar(option, source)
    engine.check(chosen.compiled, option)
    return chosen


def _schema_text(given: Any) -> str:
    """A schema as JSON text."""
    if callable(getattr(given, "model_json_schema", None)):
        given = given.model_json_schema()
    if isinstance(given, str):
        given = parse_json(given, "json_schema", "JSON schema", ConstraintError)
    if not isinstance(given, Mapping):
        raise ConstraintError(
            f"json_schema is {shorten(given)}, but it must be a JSON object: a dictionary, JSON text, or a "
            "pydantic model class"
        )
    try:
        text = json.dumps(given, allow_nan=False, ensure_ascii=False)
        # Also refuses schemas that are nested too deeply.
        parse_json(text, "json_schema", "JSON schema", ConstraintError)
    except VtError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"json_schema cannot be written as JSON ({error})") from error
    return text
