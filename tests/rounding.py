"""Quantized weights as numpy rounds them: what the backends' own arithmetic is compared with."""

from __future__ import annotations

import numpy as np


def eight_bits(weight: np.ndarray) -> np.ndarray:
    """float32 rows, each rounded to a multiple of 1/127 of its largest value."""
    scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / np.float32(127), np.float32(1e-30))
    return np.round(weight / scales) * scales


def four_bits(weight: np.ndarray, group: int) -> np.ndarray:
    """float32 rows whose groups of columns are each rounded to sixteen values from its least to its most."""
    groups = weight.reshape(len(weight), -1, group)
    least, most = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    scales = (most - least) / np.float32(15)
    return (np.round((groups - least) / scales) * scales + least).reshape(weight.shape)


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
            few = bits == 4 and group is not None and layer is not head
            rounded = four_bits(weight, group) if few else eight_bits(weight)
            # A parameter of its own: the head's may be the embedding's too.
            layer.weight = torch.nn.Parameter(torch.from_numpy(rounded), requires_grad=False)
