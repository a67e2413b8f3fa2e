"""The loss against closed forms, written here as loops over pairs."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch.nn import functional as F

from basic import config as config_module
from basic.config import TERMS, Config, Loss, Weights
from basic.option import NOT_NEGATIVE, option
from basic.run_folder import read_config, read_log
from loss import (
    NRCCRLoss,
    adversarial,
    build_loss,
    discriminator_loss,
    feature_distillation,
    infonce,
    similarity_distillation,
    triplet,
)

N, E = 5, 7
OPTIONS = dict(
    margin=0.2,
    hardest=True,
    temperature=0.07,
    smooth_l1_beta=4.0,
    detach_teacher_visual=False,
    detach_cross_feature=False,
)


def unit(seed, n=N):
    """(n, E) random unit vectors with gradients."""
    x = torch.randn(n, E, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1).requires_grad_()


@pytest.fixture
def embeddings():
    cross, tgt, visual = unit(1), unit(2), unit(3)
    return cross, tgt, visual


def cosine(x, y):
    return [
        [sum(a * b for a, b in zip(row, column)) for column in y.tolist()] for row in x.tolist()
    ]


@pytest.mark.parametrize('margin', [0.2, 0.9])
@pytest.mark.parametrize('hardest', [True, False])
def test_triplet_is_the_sum_over_pairs(margin, hardest):
    x, y = unit(1), unit(2)
    s = cosine(x, y)
    expected = 0.0
    for i in range(N):
        as_query = [max(0.0, margin + s[i][j] - s[i][i]) for j in range(N) if j != i]
        as_item = [max(0.0, margin + s[j][i] - s[i][i]) for j in range(N) if j != i]
        choose = max if hardest else sum
        expected += choose(as_query) + choose(as_item)
    assert expected > 0.1
    assert triplet(x, y, margin=margin, hardest=hardest).item() == pytest.approx(
        expected, rel=1e-12
    )


def test_triplet_on_numbers_worked_out_by_hand():
    # scores [[1, .9], [0, .5]]: row 0: .2 + .9 - 1 = .1; row 1: .2 + 0 - .5 < 0; column 0: < 0;
    # column 1: .2 + .9 - .5
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    y = torch.tensor([[1.0, 0.0], [0.9, 0.5]])
    assert triplet(x, y, margin=0.2).item() == pytest.approx(0.1 + 0.6, abs=1e-6)


def test_triplet_of_matched_orthogonal_pairs_and_of_one_pair_is_zero():
    x = torch.eye(4)
    assert triplet(x, x, margin=0.2).item() == 0
    assert triplet(x[:1], x[:1], margin=0.2).item() == 0


def test_two_captions_of_one_visual_are_each_others_negatives():
    x = torch.eye(3)[[0, 0, 1]]
    assert triplet(x, x, margin=0.2).item() == pytest.approx(4 * 0.2)


def same_visual(owner):
    owner = torch.tensor(owner)
    return owner[:, None] == owner[None, :]


@pytest.mark.parametrize('hardest', [True, False])
def test_masked_pairs_are_no_negatives(hardest):
    x, y, owner = unit(1), unit(2), [0, 0, 0, 1, 1]
    s, expected = cosine(x, y), 0.0
    for i in range(N):
        others = [j for j in range(N) if owner[j] != owner[i]]
        as_query = [max(0.0, 0.9 + s[i][j] - s[i][i]) for j in others]
        as_item = [max(0.0, 0.9 + s[j][i] - s[i][i]) for j in others]
        expected += (max if hardest else sum)(as_query) + (max if hardest else sum)(as_item)
    masked = triplet(x, y, margin=0.9, hardest=hardest, same=same_visual(owner))
    assert masked.item() == pytest.approx(expected, rel=1e-12)
    assert masked < triplet(x, y, margin=0.9, hardest=hardest) - 0.01


def test_masked_pairs_are_not_in_infonces_softmax():
    x, y, owner = unit(1), unit(2), [0, 0, 0, 1, 1]
    s, expected = cosine(x, y), 0.0
    for i in range(N):
        kept = [j for j in range(N) if j == i or owner[j] != owner[i]]
        for line in (s[i], [row[i] for row in s]):
            expected -= 0.07 * math.log(
                math.exp(line[i] / 0.07) / sum(math.exp(line[j] / 0.07) for j in kept)
            )
    loss = infonce(x, y, log_scale=log_scale(0.07), same=same_visual(owner))
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    loss.backward()
    assert x.grad.isfinite().all() and y.grad.isfinite().all()


def test_a_mask_of_different_visuals_changes_nothing():
    x, y, none = unit(1), unit(2), same_visual(range(N))
    assert torch.equal(triplet(x, y, margin=0.2, same=none), triplet(x, y, margin=0.2))
    assert torch.equal(
        infonce(x, y, log_scale=log_scale(0.07), same=none),
        infonce(x, y, log_scale=log_scale(0.07)),
    )


def test_the_option_masks_every_term_with_negatives_and_no_other(make_config):
    e, fake, owner = encoded(), torch.randn(N, 2), torch.tensor([0, 0, 0, 1, 1])
    off, on = (
        build_loss(make_config('frames', f'loss.mask_same_visual={value}', 'loss.margin=0.9'))
        for value in ('false', 'true')
    )
    before, after = off(e, fake, owner), on(e, fake, owner)
    same = same_visual(owner.tolist())
    assert before == off(e, fake)
    for name, other in (('triplet_en', e.visual), ('triplet_back', e.back)):
        assert after[name] == triplet(e.en, other, margin=0.9, same=same) < before[name] - 0.01
    assert after['triplet_tgt'] == triplet(e.tgt, e.visual, margin=0.9, same=same)
    assert all(after[name] == before[name] for name in ('kd_sim', 'kd_feat', 'adversarial'))


# ------------------------------------------------------------------------------------------ InfoNCE


def log_scale(temperature):
    return torch.tensor(-math.log(temperature), dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize('temperature', [0.07, 0.5])
def test_infonce_is_the_cross_entropy_of_rows_and_columns_times_the_temperature(temperature):
    x, y = unit(1), unit(2)
    s, expected = cosine(x, y), 0.0
    for i in range(N):
        for line in (s[i], [row[i] for row in s]):
            share = math.exp(line[i] / temperature) / sum(
                math.exp(value / temperature) for value in line
            )
            expected -= temperature * math.log(share)
    assert infonce(x, y, log_scale=log_scale(temperature)).item() == pytest.approx(
        expected, rel=1e-10
    )


def test_infonce_near_temperature_zero_is_the_hardest_negative_triplet_loss_without_margin():
    x, y = unit(1), unit(2)
    cold = infonce(x, y, log_scale=log_scale(1e-4))
    assert (
        cold.item() == pytest.approx(triplet(x, y, margin=0).item(), rel=1e-3) and cold.item() > 0.1
    )
    for ours, theirs in zip(
        torch.autograd.grad(cold, [x, y]), torch.autograd.grad(triplet(x, y, margin=0), [x, y])
    ):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_infonce_of_unrelated_pairs_is_as_large_as_documented():
    x = torch.eye(256, dtype=torch.float64)
    value = infonce(x[:128], x[128:], log_scale=log_scale(0.07))
    assert (
        value.item() == pytest.approx(2 * 128 * 0.07 * math.log(128)) == pytest.approx(87, abs=0.1)
    )
    assert triplet(x[:128], x[128:], margin=0.2).item() == pytest.approx(51.2)


def test_the_temperatures_gradient_is_that_of_the_cross_entropy_in_the_tempered_cosines():
    x, y, scale = unit(1), unit(2), log_scale(0.07)
    (got,) = torch.autograd.grad(infonce(x, y, log_scale=scale), [scale])

    def cross_entropy(log):
        logits = math.exp(log) * (x @ y.T).detach()
        return sum(
            -line.log_softmax(0)[i].item()
            for part in (logits, logits.T)
            for i, line in enumerate(part)
        )

    slope = (cross_entropy(scale.item() + 1e-5) - cross_entropy(scale.item() - 1e-5)) / 2e-5
    assert got.item() == pytest.approx(0.07 * slope, rel=1e-5) and abs(got.item()) > 0.01


def test_infonce_takes_the_place_of_the_triplet_loss_towards_the_visual_side_alone(make_config):
    e = encoded()
    e.log_scale = log_scale(0.07)
    before, after = (
        build_loss(make_config('frames', f'loss.contrastive={kind}'))(e, torch.randn(N, 2))
        for kind in ('triplet', 'infonce')
    )
    assert after['triplet_en'].item() == infonce(e.en, e.visual, log_scale=e.log_scale).item()
    assert after['triplet_tgt'].item() == infonce(e.tgt, e.visual, log_scale=e.log_scale).item()
    for name in ('kd_sim', 'kd_feat', 'triplet_back'):
        assert after[name].item() == before[name].item()
    (scale,) = torch.autograd.grad(sum(after.values()), [e.log_scale], retain_graph=True)
    of_en, of_tgt, of_visual = torch.autograd.grad(
        after['triplet_en'] + after['triplet_tgt'], [e.en, e.tgt, e.visual]
    )
    assert scale.abs() > 0.01 and min(part.norm() for part in (of_en, of_tgt, of_visual)) > 0.1


# -------------------------------------------------------------------------- similarity distillation


def kd_sim_by_loops(cross, tgt, visual, temperature):
    def softmax(row):
        exps = [math.exp(value / temperature) for value in row]
        return [value / sum(exps) for value in exps]

    teacher, student = cosine(cross, visual), cosine(tgt, visual)
    total = 0.0
    for rows_t, rows_s in ((teacher, student), (list(zip(*teacher)), list(zip(*student)))):
        for row_t, row_s in zip(rows_t, rows_s):
            total -= sum(p * math.log(q) for p, q in zip(softmax(row_t), softmax(row_s))) / N
    return total / 2


@pytest.mark.parametrize('detach_visual', [True, False])
def test_kd_sim_is_the_soft_cross_entropy_of_both_directions(embeddings, detach_visual):
    value = similarity_distillation(*embeddings, temperature=0.07, detach_visual=detach_visual)
    assert value.item() == pytest.approx(kd_sim_by_loops(*embeddings, 0.07), rel=1e-10)


def test_kd_sim_with_the_whole_teacher_detached_has_the_gradient_of_the_kl_divergence(embeddings):
    cross, tgt, visual = embeddings
    value = similarity_distillation(cross, tgt, visual, temperature=0.07, detach_visual=True)
    got = torch.autograd.grad(value, [tgt, visual])
    teacher, student = (cross @ visual.T / 0.07).detach(), tgt @ visual.T / 0.07
    kl = sum(
        F.kl_div(
            student.log_softmax(dim), teacher.log_softmax(dim), log_target=True, reduction='sum'
        )
        for dim in (0, 1)
    ) / (2 * N)
    for ours, expected in zip(got, torch.autograd.grad(kl, [tgt, visual])):
        assert torch.allclose(ours, expected, atol=1e-12)
        assert expected.norm() > 0.1


def test_kd_sim_as_released_moves_the_visual_side_through_the_teacher_but_not_the_cross_branch(
    embeddings,
):
    cross, tgt, visual = embeddings
    value = similarity_distillation(cross, tgt, visual, temperature=0.07)
    of_cross, of_tgt, of_visual = torch.autograd.grad(
        value, [cross, tgt, visual], allow_unused=True
    )
    assert of_cross is None
    detached = similarity_distillation(cross, tgt, visual, temperature=0.07, detach_visual=True)
    tgt_detached, visual_detached = torch.autograd.grad(detached, [tgt, visual])
    assert torch.allclose(of_tgt, tgt_detached)
    # what is added is the teacher's part: the same loss as a function of the visual side inside the
    # teacher alone
    inside = visual.detach().clone().requires_grad_()
    teacher, student = cross.detach() @ inside.T / 0.07, (tgt @ visual.T / 0.07).detach()
    part = -sum((teacher.softmax(d) * student.log_softmax(d)).sum() for d in (0, 1)) / (2 * N)
    (added,) = torch.autograd.grad(part, [inside])
    assert added.norm() > 0.1
    assert torch.allclose(of_visual - visual_detached, added, atol=1e-10)


@pytest.mark.parametrize('scale', [1, 30])  # below and above beta
def test_kd_feat_is_smooth_l1_over_all_elements(scale):
    cross, tgt = unit(1).detach() * scale, unit(2).detach() * scale
    expected = 0.0
    for a, b in zip(cross.flatten().tolist(), tgt.flatten().tolist()):
        gap = abs(a - b)
        expected += (0.5 * gap**2 / 4 if gap < 4 else gap - 2) / (N * E)
    assert feature_distillation(cross, tgt, beta=4.0).item() == pytest.approx(expected, rel=1e-12)


def test_kd_feat_moves_the_cross_branch_unless_detached(embeddings):
    cross, tgt, _ = embeddings
    of_cross, of_tgt = torch.autograd.grad(feature_distillation(cross, tgt, beta=4.0), [cross, tgt])
    assert torch.equal(of_cross, -of_tgt) and of_tgt.norm() > 0
    of_cross, detached = torch.autograd.grad(
        feature_distillation(cross, tgt, beta=4.0, detach_cross=True),
        [cross, tgt],
        allow_unused=True,
    )
    assert of_cross is None and torch.equal(detached, of_tgt)


def bce(logits, label):
    """Mean binary cross-entropy with logits, by its definition."""
    values = [-math.log(1 / (1 + math.exp(-z if label else z))) for z in logits.flatten().tolist()]
    return sum(values) / len(values)


def test_adversarial_wants_both_logits_high():
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1], [-0.4, 0.0]])
    assert adversarial(logits).item() == pytest.approx(bce(logits, 1), rel=1e-6)
    assert adversarial(logits + 1) < adversarial(logits)


def test_discriminator_loss_and_its_accuracies():
    # argmax 1, 0, 1
    real = torch.tensor([[0.0, 1.0], [2.0, 0.5], [-3.0, -1.0]], requires_grad=True)
    fake = torch.tensor([[1.0, 0.0], [0.2, 0.1], [0.0, 4.0]], requires_grad=True)  # argmax 0, 0, 1
    loss, report = discriminator_loss(real, fake)
    assert loss.item() == pytest.approx(0.5 * (bce(real, 1) + bce(fake, 0)), rel=1e-6)
    assert report['real_loss'].item() == pytest.approx(bce(real, 1), rel=1e-6)
    assert report['fake_loss'].item() == pytest.approx(bce(fake, 0), rel=1e-6)
    assert report['real_acc'].item() == pytest.approx(2 / 3) and report[
        'fake_acc'
    ].item() == pytest.approx(2 / 3)
    assert not any(value.requires_grad for value in report.values())
    loss.backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()


# --------------------------------------------------------------------------------- the weighted sum


def encoded():
    return SimpleNamespace(en=unit(1), tgt=unit(2), cross=unit(3), back=unit(4), visual=unit(5))


def test_terms_are_unweighted_and_the_total_weights_them():
    weights = {
        'triplet_en': 1.0,
        'triplet_tgt': 0.6,
        'kd_sim': 0.4,
        'kd_feat': 0.1,
        'triplet_back': 0.5,
        'adversarial': 0.001,
    }
    criterion, e, logits = NRCCRLoss(weights=weights, **OPTIONS), encoded(), torch.randn(N, 2)
    terms = criterion(e, logits)
    expected = {
        'triplet_en': triplet(e.en, e.visual, margin=0.2),
        'triplet_tgt': triplet(e.tgt, e.visual, margin=0.2),
        'kd_sim': similarity_distillation(e.cross, e.tgt, e.visual, temperature=0.07),
        'kd_feat': feature_distillation(e.cross, e.tgt, beta=4.0),
        'triplet_back': triplet(e.en, e.back, margin=0.2),
        'adversarial': adversarial(logits),
    }
    assert list(terms) == list(expected)
    assert all(terms[name].item() == expected[name].item() for name in expected)
    # so that no two can be mixed up
    assert len({round(value.item(), 6) for value in terms.values()}) == 6
    by_hand = sum(weights[name] * expected[name].item() for name in expected)
    assert criterion.total(terms).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize('term', TERMS)
def test_a_weight_of_zero_leaves_the_term_out(term):
    weights = {name: float(name != term) for name in TERMS}
    e, logits = encoded(), torch.randn(N, 2)
    if term == 'adversarial':
        logits = None
    terms = NRCCRLoss(weights=weights, **OPTIONS)(e, logits)
    assert set(terms) == set(TERMS) - {term}


def test_without_its_terms_no_back_translation_is_needed():
    weights = {name: float(name not in ('triplet_back', 'back_visual')) for name in TERMS}
    e = encoded()
    e.back = None
    assert 'back_visual' not in NRCCRLoss(weights=weights, **OPTIONS)(e, torch.randn(N, 2))


def test_the_back_translation_can_be_tied_to_the_visual_item():
    weights = {name: float(name == 'back_visual') for name in TERMS}
    for contrastive in ('triplet', 'infonce'):
        loss, e = NRCCRLoss(weights=weights, **OPTIONS, contrastive=contrastive), encoded()
        e.log_scale = torch.tensor(2.0)
        found = loss(e)['back_visual']
        e.en, e.tgt = e.back, None
        assert found == loss.triplet_en(e)


def test_without_distillation_no_cross_branch_is_needed():
    weights = {name: float(name not in ('kd_sim', 'kd_feat')) for name in TERMS}
    e = encoded()
    e.cross = None
    assert set(NRCCRLoss(weights=weights, **OPTIONS)(e, torch.randn(N, 2))) == set(TERMS) - {
        'kd_sim',
        'kd_feat',
    }


BACK = 'loss.weights.back_visual=0.5'


@pytest.mark.parametrize(
    'option, changed',
    [
        ('loss.margin=0.5', {'triplet_en', 'triplet_tgt', 'triplet_back', 'back_visual'}),
        ('loss.hardest=false', {'triplet_en', 'triplet_tgt', 'triplet_back', 'back_visual'}),
        ('loss.temperature=0.2', {'kd_sim'}),
        ('loss.smooth_l1_beta=1', {'kd_feat'}),
    ],
)
def test_each_option_of_the_config_reaches_its_terms(make_config, option, changed):
    e, logits = encoded(), torch.randn(N, 2)
    before, after = (
        build_loss(config)(e, logits)
        for config in (make_config('frames', BACK, *more) for more in ((), (option,)))
    )
    assert {name for name in TERMS if before[name].item() != after[name].item()} == changed


@pytest.mark.parametrize(
    'option, term, side',
    [('detach_teacher_visual', 'kd_sim', 'visual'), ('detach_cross_feature', 'kd_feat', 'cross')],
)
def test_the_detach_options_of_the_config_change_the_gradient_alone(
    make_config, option, term, side
):
    e = encoded()
    as_released, detached = (
        build_loss(make_config('frames', f'loss.{option}={value}'))(e, torch.randn(N, 2))[term]
        for value in ('false', 'true')
    )
    assert as_released.item() == detached.item()
    before, after = (
        torch.autograd.grad(value, [getattr(e, side)], allow_unused=True)[0]
        for value in (as_released, detached)
    )
    assert after is None or not torch.allclose(before, after)


def test_the_weights_of_the_config_are_those_of_the_paper(make_config):
    assert build_loss(make_config()).weights == {
        'triplet_en': 1.0,
        'triplet_tgt': 0.6,
        'kd_sim': 0.4,
        'kd_feat': 0.1,
        'triplet_back': 0.5,
        'adversarial': 0.001,
    }


# ------------------------------------------------------------------------------------- another term


@dataclass
class MoreWeights(Weights):
    spread: float = option(0.25, NOT_NEGATIVE)


@dataclass
class MoreLoss(Loss):
    weights: MoreWeights = field(default_factory=MoreWeights)


@dataclass
class MoreConfig(Config):
    loss: MoreLoss = field(default_factory=MoreLoss)


def spread_of_back(self, e, fake_logits=None, same=None):
    return (e.back @ e.back.T).square().mean()


def spread_of_tokens(self, e, fake_logits=None, same=None):
    return fake_logits.square().mean() + e.tokens_en.square().mean()


@pytest.mark.parametrize('part, function', [('back', spread_of_back), ('tokens', spread_of_tokens)])
def test_a_new_term_is_a_row_a_weight_and_a_function(monkeypatch, tmp_path, part, function):
    """The row alone makes training load and encode what the term reads, be it read by no other."""
    monkeypatch.setitem(TERMS, 'spread', ('tgt', part))
    monkeypatch.setattr(config_module, 'Config', MoreConfig)
    monkeypatch.setattr(NRCCRLoss, 'spread', function, raising=False)
    from train import main

    root, bert = tiny.make_collection(tmp_path / 'root'), tiny.make_bert(tmp_path / 'bert')
    folder, alone = tmp_path / 'run', ('kd_sim', 'kd_feat', 'triplet_back', 'adversarial')
    argv = ['--config', str(Path(__file__).parent.parent / 'configs/multi30k.yaml'), '--no-test']
    argv += ['--rootpath', str(root), '--run-dir', str(folder), *tiny.options(bert)]
    argv += ['train.epochs=1', *(f'loss.weights.{term}=0' for term in alone)]
    assert main(argv) == 0
    (record,), weights = read_log(folder), read_config(folder).loss.weights
    assert weights.spread == 0.25
    assert set(record['train']) == {'triplet_en', 'triplet_tgt', 'spread', 'total', 'grad_norm'}
    assert bool(record['discriminator']) == (part == 'tokens')
    by_hand = sum(weights[term] * record['train'][term] for term in weights if weights[term])
    assert record['train']['total'] == pytest.approx(by_hand, rel=1e-5)
    assert record['train']['spread'] > 0
