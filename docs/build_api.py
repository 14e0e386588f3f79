"""The API reference: `python docs/build_api.py OUTPUT`; any warning of pdoc is a failure.

Reads docstrings of the installed package, runs nothing else.
"""

import os
import sys
import warnings
from pathlib import Path

os.environ["PDOC_ALLOW_EXEC"] = "1"  # modules ask the machine what it is when they are imported
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import pandas as pd
import pdoc

for _generic in (pd.Series, pd.Index):  # pandas 2: generic in its stubs alone, not when it runs
    _generic.__class_getitem__ = classmethod(lambda cls, item: cls)


def build(output: Path) -> list[str]:
    """Write one page per public module; returns what pdoc warned of."""
    pdoc.render.configure(docformat="google", footer_text="save_dist")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc("save_dist", output_directory=output)
    own = str(Path(pdoc.__file__).parent)
    return sorted({str(w.message) for w in caught if w.filename.startswith(own)})


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = build(place)
    n_pages = sum(1 for _ in place.rglob("*.html"))
    sys.stderr.write("".join(f"warning: {text}\n" for text in found))
    sys.stdout.write(f"{n_pages} pages in {place}, {len(found)} warnings\n")
    sys.exit(bool(found))
