"""Small types that several packages share. Imports nothing of this package."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Token ids, int64.
Ids = npt.NDArray[np.int64]
