"""Slow loops over what towers give: spans pooled token by token, attention layer by layer."""

import itertools

import torch
from torch import Tensor


def pool_spans(tokens: Tensor, span_tokens: Tensor, kind: str) -> Tensor:
    def pooled(states: list[Tensor]) -> Tensor:
        if not states:
            return tokens.new_zeros(tokens.shape[-1] * (2 if kind == "both" else 1))
        mean = sum(states[1:], start=states[0]) / len(states)
        largest = torch.stack([max(values, key=Tensor.item) for values in zip(*states, strict=True)])
        return {"mean": mean, "max": largest, "both": torch.cat([mean, largest])}[kind]

    pairs, spans, length = span_tokens.shape
    return torch.stack(
        [
            pooled([tokens[b, t] for t in range(length) if span_tokens[b, k, t]])
            for b, k in itertools.product(range(pairs), range(spans))
        ]
    ).reshape(pairs, spans, -1)


def attention_rollout(attentions: list[list[list[list[float]]]]) -> list[list[float]]:
    """How much of each token comes from each of the input; layers, lowest first, are heads x tokens x tokens."""
    tokens = len(attentions[0][0])
    flow = [[float(row == column) for column in range(tokens)] for row in range(tokens)]
    for heads in attentions:
        mixed = [
            [
                0.5 * sum(head[row][column] for head in heads) / len(heads) + 0.5 * (row == column)
                for column in range(tokens)
            ]
            for row in range(tokens)
        ]
        flow = [
            [sum(mixed[row][middle] * flow[middle][column] for middle in range(tokens)) for column in range(tokens)]
            for row in range(tokens)
        ]
    return flow
