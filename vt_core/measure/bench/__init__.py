"""``bench``: variants of one model in turn on the same prompts, and what was measured as tables and pictures.

``run`` measures, each variant in a process of its own (``worker``), and gives one JSON object, the *results*.
Everything else is a function of it: ``figures`` (numbers), ``tables`` (what a report says), ``report``
(Markdown), ``page`` (HTML), ``plots`` (PNG).
"""

from __future__ import annotations

SCHEMA = 1  #: of results.json
