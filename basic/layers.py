"""Layers that the text and the video encoder share, and the batch norm of their projections.

N items, L positions, D width in, H hidden width. Masks are (N, L), 1 on real positions and 0 on
padding.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from basic.distributed import size, sum_over_processes

# added where the query or the key is padding; finite, as released: see attention_mask
PADDING_SCORE = -10000.0


class InputProjection(nn.Module):
    """LayerNorm, dropout, linear, ReLU: (N, L, D) -> (N, L, H)."""

    def __init__(self, *, dim, hidden, dropout):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, hidden)

    def forward(self, x):
        return F.relu(self.linear(self.dropout(self.norm(x))))


class LearnedPositions(nn.Module):
    """Add learned positions, LayerNorm, dropout: (N, L, H) -> (N, L, H).

    Raises:
        ValueError: more positions asked for than there are.
    """

    def __init__(self, *, positions, hidden, dropout):
        super().__init__()
        self.embedding = nn.Embedding(positions, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        if x.shape[1] > self.embedding.num_embeddings:
            raise ValueError(
                f'a sequence of {x.shape[1]} positions, but only {self.embedding.num_embeddings}'
                ' are learned: cut it, or raise text.positions / visual.positions'
            )
        return self.dropout(self.norm(x + self.embedding.weight[: x.shape[1]]))


def attention_mask(query_mask, key_mask):
    """(N, Lq), (N, Lk) -> additive mask (N, 1, Lq, Lk), PADDING_SCORE wherever query *or* key is
    padding.

    So a padded query sees the same offset everywhere and attends to everything, padding included:
    with the `padded_mean` pooling its output counts, so a boolean mask or -inf would give other
    numbers.
    """
    real = query_mask[:, None, :, None] * key_mask[:, None, None, :]
    return (1.0 - real) * PADDING_SCORE


class AttentionBlock(nn.Module):
    """One multi-head attention block whose queries and keys may be narrower than its values.

    Args:
        hidden: width H of inputs, values and output.
        heads: number of heads; divides both widths.
        qk_width: width of queries and keys, all heads together.
        score_scale: divide the scores by sqrt of a head's value width (`value_width`, as released)
            or of its query width (`key_width`, the usual choice).
        dropout: on attention probabilities and on the output.
        attention: `eager` (written out), `fused` (torch's kernels), or `auto`: fused on a GPU. At
            padded queries a score is added to -10000, where float32 resolves 0.001, so there the
            order of rounding shows: fused, a pooled vector differs by some 1e-6 from the released
            code's, written out by 1e-8. A CPU gains nothing from its fused kernel, which needs
            values as wide as keys.
    """

    def __init__(self, *, hidden, heads, qk_width, score_scale, dropout, attention='auto'):
        super().__init__()
        self.heads, self.attention = heads, attention
        self.scale = math.sqrt((hidden if score_scale == 'value_width' else qk_width) / heads)
        self.query = nn.Linear(hidden, qk_width)
        self.key = nn.Linear(hidden, qk_width)
        self.value = nn.Linear(hidden, hidden)
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask, *, context=None, context_mask=None):
        """Self-attention with a residual, or, given a context, cross-attention to it without one.

        Args:
            x: (N, Lq, H) queries; mask (N, Lq).
            context: (N, Lk, H) keys and values, or None for x itself; context_mask (N, Lk).
        Returns:
            (N, Lq, H).
        """
        source, source_mask = (x, mask) if context is None else (context, context_mask)
        query, key, value = (
            self._split(part) for part in (self.query(x), self.key(source), self.value(source))
        )
        mask = attention_mask(mask, source_mask)  # (N, 1, Lq, Lk)
        if self.attention == 'fused' or (self.attention == 'auto' and x.device.type != 'cpu'):
            # (N, heads, Lq, H / heads)
            attended = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask.to(query.dtype),
                scale=1 / self.scale,
                dropout_p=self.dropout.p if self.training else 0.0,
            )
        else:
            scores = query @ key.transpose(-1, -2) / self.scale + mask  # (N, heads, Lq, Lk)
            attended = self.dropout(scores.softmax(dim=-1)) @ value  # (N, heads, Lq, H / heads)
        dense = self.dropout(self.dense(attended.transpose(1, 2).flatten(2)))  # (N, Lq, H)
        return self.norm(dense + x if context is None else dense)

    def _split(self, x):
        # (N, L, W) -> (N, heads, L, W / heads)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def pool(x, mask, kind):
    """One vector a sequence: (N, L, H) -> (N, H).

    Args:
        x: (N, L, H); mask: (N, L), 1 on real positions.
        kind: `padded_mean` (as released: over all L positions, so the batch's longest item
            matters), `mean` or `max` over the real positions.
    Raises:
        ValueError: unknown kind.
    """
    if kind == 'padded_mean':
        return x.mean(dim=1)
    mask = mask[..., None]
    if kind == 'mean':
        return (x * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    if kind == 'max':
        return x.masked_fill(mask == 0, torch.finfo(x.dtype).min).amax(dim=1)
    raise ValueError(f"unknown pooling '{kind}': expected padded_mean, mean or max")


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch norm of (rows, E) over the rows of all processes; alone it is PyTorch's."""

    def forward(self, x):
        if size() == 1 or not self.training:
            return super().forward(x)
        ones = x.new_ones(len(x), 1)
        totals = sum_over_processes(torch.cat([x, ones], dim=1).sum(dim=0))  # (E + 1,)
        rows, mean = totals[-1].detach(), totals[:-1] / totals[-1].detach()
        # around the global mean, so as to be exact
        variance = sum_over_processes((x - mean).square().sum(dim=0)) / rows
        with torch.no_grad():  # as PyTorch's: unbiased for the record
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * rows / (rows - 1), self.momentum)
            self.num_batches_tracked += 1
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
