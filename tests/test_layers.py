"""The shared layers against formulas written here, and what padding may and may not change."""

import math

import pytest
import torch
from torch.nn import functional as F

from basic.layers import AttentionBlock, InputProjection, LearnedPositions, attention_mask, pool

HIDDEN, HEADS, QK = 12, 3, 6


def make_block(score_scale='value_width', dropout=0.0):
    torch.manual_seed(3)
    block = AttentionBlock(
        hidden=HIDDEN, heads=HEADS, qk_width=QK, score_scale=score_scale, dropout=dropout
    )
    for parameter in block.parameters():  # sharp scores, so that the scale matters
        parameter.data = torch.randn(parameter.shape)
    return block.double().eval()


def sequences(lengths, longest, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).double()
    return torch.randn(
        len(lengths), longest, HIDDEN, generator=generator, dtype=torch.float64
    ), mask


def attention_by_hand(block, x, mask, y, y_mask, divisor, residual):
    """The block's formula, head by head and query by query, with einsum; dropout off."""

    def heads(layer, z):
        out = z @ layer.weight.T + layer.bias
        return out.reshape(*z.shape[:2], HEADS, -1)  # head h: the h-th slice of the width

    scores = torch.einsum('nihd,njhd->nhij', heads(block.query, x), heads(block.key, y)) / divisor
    for n in range(len(x)):
        for i in range(x.shape[1]):
            for j in range(y.shape[1]):
                if mask[n, i] == 0 or y_mask[n, j] == 0:
                    scores[n, :, i, j] += -10000
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    weights = weights / weights.sum(dim=-1, keepdim=True)
    mixed = torch.einsum('nhij,njhd->nihd', weights, heads(block.value, y)).flatten(2)
    out = mixed @ block.dense.weight.T + block.dense.bias + (x if residual else 0)
    centred = out - out.mean(dim=-1, keepdim=True)
    normal = centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return normal * block.norm.weight + block.norm.bias


@pytest.mark.parametrize(
    'score_scale, divisor',
    [('value_width', math.sqrt(HIDDEN / HEADS)), ('key_width', math.sqrt(QK / HEADS))],
)
def test_self_attention_is_its_formula_padded_positions_included(score_scale, divisor):
    block, (x, mask) = make_block(score_scale), sequences([5, 2, 4], 5)
    expected = attention_by_hand(block, x, mask, x, mask, divisor, residual=True)
    assert torch.allclose(block(x, mask), expected, atol=1e-9)


def test_cross_attention_has_no_residual():
    block, (x, mask), (y, y_mask) = make_block(), sequences([5, 2], 5), sequences([3, 7], 7, seed=1)
    expected = attention_by_hand(
        block, x, mask, y, y_mask, math.sqrt(HIDDEN / HEADS), residual=False
    )
    assert torch.allclose(block(x, mask, context=y, context_mask=y_mask), expected, atol=1e-9)


def test_the_two_score_scales_differ():
    x, mask = sequences([5, 2], 5)
    assert (
        make_block('value_width')(x, mask) - make_block('key_width')(x, mask)
    ).abs().max() > 1e-2


def test_the_mask_is_exactly_minus_10000_where_query_or_key_is_padding():
    mask = attention_mask(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    assert mask.shape == (1, 1, 3, 2)
    assert mask[0, 0].tolist() == [[0.0, -10000.0], [0.0, -10000.0], [-10000.0, -10000.0]]


def test_a_padded_query_attends_to_every_position():
    block, (x, mask) = make_block(), sequences([2], 4)
    changed = x.clone()
    changed[0, 1] += 1  # a real position
    moved = (block(changed, mask) - block(x, mask))[0].abs().amax(dim=-1)
    assert moved[3] > 1e-6
    changed = x.clone()
    changed[0, 2] += 1  # padding
    moved = (block(changed, mask) - block(x, mask))[0].abs().amax(dim=-1)
    assert moved[3] > 1e-6 and moved[0] == 0 and moved[1] == 0


def test_attention_drops_out_in_training_only():
    block, (x, mask) = make_block(dropout=0.5), sequences([5, 2], 5)
    assert torch.equal(block(x, mask), block(x, mask))
    block.train()
    assert not torch.equal(block(x, mask), block(x, mask))


def test_attention_drops_out_both_probabilities_and_output():
    block, (x, mask) = make_block(dropout=0.5), sequences([20] * 8, 20)
    block.norm = torch.nn.Identity()
    for layer, weight, bias in (
        (block.value, torch.zeros(HIDDEN, HIDDEN), 1.0),
        (block.dense, torch.eye(HIDDEN), 0.0),
    ):
        layer.weight.data, layer.bias.data = (
            weight.double(),
            torch.full((HIDDEN,), bias, dtype=torch.float64),
        )
    block.query.weight.data.zero_()  # all keys alike, but for the keys' bias: even weights
    block.query.bias.data.zero_()
    assert torch.allclose(
        block(x, mask, context=x, context_mask=mask), torch.ones(8, 20, HIDDEN, dtype=torch.float64)
    )
    out = block.train()(x, mask, context=x, context_mask=mask)
    assert abs((out == 0).double().mean().item() - 0.5) < 0.05  # the output's
    sums = out[out != 0] / 2  # each of 20 weights of 0.05, half of them doubled
    assert abs(sums.mean().item() - 1) < 0.05 and abs(sums.var().item() - 20 * 0.05**2) < 0.02


@pytest.mark.parametrize(
    'kind, expected',
    [('padded_mean', [(1 + 2 + 90) / 3, 31.0]), ('mean', [1.5, 31.0]), ('max', [2.0, 60.0])],
)
def test_pooling_on_numbers(kind, expected):
    x = torch.tensor([[[1.0], [2.0], [90.0]], [[3.0], [30.0], [60.0]]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert pool(x, mask, kind).flatten().tolist() == pytest.approx(expected)


def test_max_pooling_of_negative_numbers_is_not_zero():
    x, mask = torch.tensor([[[-3.0], [-2.0], [0.0]]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert pool(x, mask, 'max').item() == -2


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match='median.*padded_mean, mean or max'):
        pool(torch.zeros(1, 2, 3), torch.ones(1, 2), 'median')


def test_input_projection_is_norm_linear_relu():
    torch.manual_seed(0)
    layer, x = InputProjection(dim=5, hidden=4, dropout=0.5).eval(), torch.randn(2, 3, 5)
    expected = F.layer_norm(x, (5,)) @ layer.linear.weight.T + layer.linear.bias
    assert torch.allclose(layer(x), expected.clamp(min=0), atol=1e-6)
    assert (layer(x) == 0).any()
    torch.nn.init.zeros_(layer.linear.weight)
    torch.nn.init.ones_(layer.linear.bias)
    assert (layer.train()(x) == 1).all()  # drops out before the linear layer, not after it
    torch.nn.init.ones_(layer.linear.weight)
    assert not torch.equal(layer(x), layer(x))


def test_positions_are_added_in_order_and_cannot_run_out():
    torch.manual_seed(0)
    layer, x = LearnedPositions(positions=4, hidden=6, dropout=0.5).eval(), torch.randn(2, 3, 6)
    table = layer.embedding.weight
    expected = F.layer_norm(torch.stack([x[:, i] + table[i] for i in range(3)], dim=1), (6,))
    assert torch.allclose(layer(x), expected, atol=1e-6)
    dropped = layer.train()(x)
    assert (dropped == 0).any() and torch.allclose(
        dropped[dropped != 0], 2 * expected[dropped != 0], atol=1e-5
    )
    with pytest.raises(ValueError, match='5 positions, but only 4.*text.positions'):
        layer(torch.zeros(1, 5, 6))
