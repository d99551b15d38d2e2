"""Quantized weights as numpy rounds them: what the backends' own arithmetic is compared with."""

from __future__ import annotations

import ml_dtypes
import numpy as np


def eight_bits(weight: np.ndarray, scale_type: type = ml_dtypes.bfloat16) -> np.ndarray:
    """float32 rows, each rounded to multiples of a scale, about 1/127 of its largest value."""
    scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / np.float32(127), np.float32(1e-30))
    scales = scales.astype(scale_type).astype(np.float32)
    return np.clip(np.round(weight / scales), -127, 127) * scales


def four_bits(weight: np.ndarray, group: int) -> np.ndarray:
    """float32 rows whose groups of columns are each rounded to sixteen values, about from its least to its
    most.
    """
    groups = weight.reshape(len(weight), -1, group)
    least, most = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    scales = ((most - least) / np.float32(15)).astype(ml_dtypes.bfloat16).astype(np.float32)
    zeros = (least + 8 * scales).astype(ml_dtypes.bfloat16).astype(np.float32)
    numbers = np.clip(np.round((groups - zeros) / scales + 8), 0, 15)
    return ((numbers - 8) * scales + zeros).reshape(weight.shape)


def round_weights(model, bits: int) -> None:
    """Give transformers' model the weights that it has when it is quantized: linear layers in ``bits``, the
    head in eight, the embedding as it was.
    """
    import torch

    head = model.get_output_embeddings()
    for layer in model.modules():
        if type(layer) is torch.nn.Linear:
            weight = layer.weight.detach().numpy()
            group = next((size for size in (64, 32) if weight.shape[1] % size == 0), None)
            group = None if len(weight) % 16 else group
            few = bits == 4 and group is not None and layer is not head
            scales = np.float32 if layer is head else ml_dtypes.bfloat16
            rounded = four_bits(weight, group) if few else eight_bits(weight, scales)
            # A parameter of its own: the head's may be the embedding's too.
            layer.weight = torch.nn.Parameter(torch.from_numpy(rounded), requires_grad=False)
