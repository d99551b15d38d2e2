"""The command of lm-evaluation-harness with the model ``vt``."""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

from vt_core.errors import VtError


def main() -> None:
    try:
        cli_evaluate()
    except VtError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
