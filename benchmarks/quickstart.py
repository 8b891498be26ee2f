"""Write the table of a finished `make quickstart` into the documentation.

python -m benchmarks.quickstart README.md docs/results.md
"""

import json
import sys
from pathlib import Path

from lightning_distilbert.quickstart.run import show_table
from lightning_distilbert.report.table import replace_region

results = json.loads(Path("quickstart-output/results.json").read_text())
epochs = results["settings"]["epochs"]
passes = "one pass" if epochs == 1 else f"{epochs} passes"
lines = [
    show_table(results).to_markdown(),
    "",
    f"{results['seconds']:.0f} seconds in all, {passes} over the training pairs, {results['precision']}.",
]
for file in sys.argv[1:]:
    replace_region(file, "quickstart", "\n".join(lines))
