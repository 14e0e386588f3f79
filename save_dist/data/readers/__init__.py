"""Files of cells, whatever their kind: blocks of rows of raw counts, gene and cell names, obs.

Knows nothing of stores, labels or conditions.
"""

from save_dist.data.readers.base import CellReader as CellReader
from save_dist.data.readers.base import CountFacts as CountFacts
from save_dist.data.readers.locate import content_digest as content_digest
from save_dist.data.readers.locate import open_cells as open_cells
from save_dist.data.readers.locate import resolve as resolve
