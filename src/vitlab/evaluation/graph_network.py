"""A graph that vitlab exported to ONNX, as a network."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class GraphNetwork(nn.Module):
    """Normalized images [B, C, H, W] -> logits [B, classes], by ONNX Runtime on the CPU.

    A graph with folded preprocessing and softmax takes images in [0, 1], and its probabilities become logits.
    """

    def __init__(self, file: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        known = self.session.get_modelmeta().custom_metadata_map
        if "classes" not in known:
            raise ValueError(f"{file} has no classes in its metadata; only ONNX files that vitlab exported have them")
        self.metadata: dict[str, Any] = {key: json.loads(text) for key, text in known.items()}
        self.channels = self.session.get_inputs()[0].shape[1]
        self.folded = self.session.get_outputs()[0].name == "probabilities"

    def forward(self, images: Tensor) -> Tensor:
        inputs = (images * 255).round().to(torch.uint8) if self.folded else images
        (outputs,) = self.session.run(None, {"images": inputs.cpu().numpy()})
        logits = torch.from_numpy(outputs)
        if not self.folded:
            return logits
        return logits.logit() if self.metadata.get("loss") == "sigmoid" else logits.log()
