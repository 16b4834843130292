"""Data sets of the Hugging Face Hub's kind: tables of digits, and a server of parts of files."""

import io
import re
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = datasets.ClassLabel(names=["even", "odd"])


def table(labels: list[Any], feature: Any, **others: Any) -> datasets.Dataset:
    """Digits with labels of any kind, and other columns: name -> (values, feature)."""
    images = [{"bytes": png(image), "path": None} for image in load_digits().images[: len(labels)]]
    columns = {"image": images, "label": labels} | {name: values for name, (values, _) in others.items()}
    features = {"image": datasets.Image(), "label": feature} | {name: kind for name, (_, kind) in others.items()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def png(image: Any) -> bytes:
    Image.fromarray((image * 15).astype(np.uint8)).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def saved(folder: Path, **splits: datasets.Dataset) -> str:
    """Write a set as `save_to_disk` does; its name is the folder."""
    datasets.DatasetDict(splits).save_to_disk(folder)
    return str(folder)


class Ranges(SimpleHTTPRequestHandler):
    """Serves files and parts of them, as the Hub does."""

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        data = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), int(asked[2] or len(data) - 1) + 1) if asked else (0, len(data))
        part = data[start:stop]
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        with suppress(ConnectionError):  # it hangs up when it has seen that
            self.wfile.write(part)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(Path(self.translate_path(self.path)).stat().st_size))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass
