"""An OpenAI-compatible server over models of this package. Needs the extra ``serve``."""
