"""Run the notebooks on the shipped results and keep their outputs: `python notebooks/execute.py`, or some by name.

Pictures are kept in 256 colours, which takes a quarter of the space.
"""

import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent


def light(png: str) -> str:
    """A picture, in base64, with few colours."""
    picture, file = Image.open(BytesIO(b64decode(png))).convert("RGB"), BytesIO()
    picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(file, "PNG", optimize=True)
    return b64encode(file.getvalue()).decode()


for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(HERE.glob("*.ipynb")):
    notebook = nbformat.read(path, as_version=4)
    before = notebook.metadata.copy()
    client = NotebookClient(notebook, record_timing=False, resources={"metadata": {"path": HERE}})
    client.execute()
    notebook.metadata = before  # the client adds versions
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = light(output.data["image/png"])
    nbformat.write(notebook, path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")
