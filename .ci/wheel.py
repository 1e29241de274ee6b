"""Is an installed wheel whole? Run with a Python that has the wheel and nothing of ours beside it: wheel.py PATH/TO/SOURCE.

Every file of the source tree is there with the same bytes, every room imports, a network is explained, a page written, an exact
claim measured, and the console script prints its map.
"""

import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import termwise as tw
from termwise.core import claims

source = Path(sys.argv[1]).resolve()
package = Path(tw.__file__).parent
assert not package.is_relative_to(source), f"{package} is the source tree and no installed wheel"
assert metadata.version("termwise") == tw.__version__

tracked = subprocess.run(
    ["git", "ls-files", "src/termwise"], cwd=source, capture_output=True, text=True, check=True
).stdout.split()
assert tracked, "git lists no files of the package"
lost = [name for name in tracked if not (package.parent / name.removeprefix("src/")).is_file()]
assert not lost, f"not in the wheel (see package-data in pyproject.toml): {', '.join(lost)}"
changed = [n for n in tracked if (package.parent / n.removeprefix("src/")).read_bytes() != (source / n).read_bytes()]
assert not changed, f"other bytes than in the source tree: {', '.join(changed)}"

for room in tw._ROOMS:
    face = importlib.import_module(f"termwise.{room}")
    for name in face.__all__:
        getattr(face, name)

model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
why = tw.explain(model, torch.randn(2, 4), target=1).check()
tw.report.write("why.html", tw.report.page([tw.report.Section(why, heading="a wheel")]))
text = Path("why.html").read_text("utf-8")
assert "<style" in text
assert "a wheel" in text
assert "echarts" in text, "the page has its charts with it"
why.to_html("how.html")
why.save("why.safetensors")
tw.Decomposition.load("why.safetensors").check()

measured = list(claims.verify([c for c in claims.load_claims("weights") if c.paper == "curing" and c.exact]))
assert [r.outcome for r in measured] == ["holds"] * 2, measured

script = Path(sys.executable).with_name("termwise")
for command in (["--help"], ["--version"], ["papers"], ["models"], ["info"]):
    shown = subprocess.run([script, *command], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, (command, shown.stderr)
    assert shown.stdout.strip(), command
print(f"the wheel of {tw.__version__} installs, imports, explains, draws and verifies: {len(tracked)} files")
