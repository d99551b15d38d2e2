"""Answers that follow a JSON schema, a regular expression or a grammar.

:mod:`~vt_core.decode.constraints.grammar` checks what a request asks for,
:mod:`~vt_core.decode.constraints.engine` compiles it for the tokens of a model, a
:class:`~vt_core.decode.constraints.constraint.Constraint` follows one answer, and
:mod:`~vt_core.decode.constraints.selection` says what the head must compute. The automata are those of the
library llguidance.
"""

from vt_core.decode.constraints.constraint import Constraint
from vt_core.decode.constraints.engine import Engine
from vt_core.decode.constraints.grammar import Grammar, grammar_option

__all__ = ["Constraint", "Engine", "Grammar", "grammar_option"]
