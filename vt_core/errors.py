"""The errors that a user can cause. Each carries one sentence: what, where, and what to do.

The command line prints the sentence and exits with code 2; nothing else is caught there, so a traceback
always means a fault of ours.
"""

from __future__ import annotations


class VtError(Exception):
    """Base of every error that a user can cause or mend."""


class ModelError(VtError):
    """A model source or model directory that cannot be used."""


class StoreError(ModelError):
    """A row store that is missing, truncated, foreign or asked for rows that it does not hold."""


class TokenizerError(ModelError):
    """A tokenizer that cannot be read or does not fit the model."""


class VocabularyError(VtError):
    """A task vocabulary that cannot be read or belongs to another tokenizer."""


class DataError(VtError):
    """A corpus file with a line that cannot be used."""


class PromptError(VtError):
    """A prompt that cannot be run: empty, too long, or with ids outside the table."""


class OptionError(VtError):
    """An option whose value is out of range or that does not go with another."""


class BackendError(VtError):
    """A backend that is not installed, not known, or cannot do what was asked on this machine."""
