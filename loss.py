"""The loss: one function per term, and their weighted sum.

N pairs, L tokens, D width of BERT's tokens, E common space. Embeddings are (N, E), L2-normalised,
row i of each belonging to pair i; similarity is their dot product.

    L = triplet_en * triplet(en, v) + triplet_tgt * triplet(tgt, v)
        + kd_sim * KD_sim(cross -> tgt | v) + kd_feat * KD_feat(cross, tgt)
        + triplet_back * triplet(en, back) + adversarial * L_adv

with the weights `loss.weights.*`; the paper calls them 1, tri_alpha, dtl_beta, l1_gama, back_w and
scale.

With `loss.contrastive=infonce` the first two are `infonce` in place of `triplet`, under their
names.

As released, captions of one visual item are each other's negatives. `loss.mask_same_visual` takes
these pairs out of the triplet and InfoNCE terms, triplet(en, back) included. The distillation has
no negatives: its teacher gives such a pair the probability that it finds.
"""

import torch
from torch import nn
from torch.nn import functional as F

from basic.config import TERMS


def triplet(x, y, *, margin, hardest=True, same=None):
    """Max-margin ranking loss with in-batch negatives, both directions, summed over the batch.

    Args:
        x, y: (N, E) embeddings; row i of x matches row i of y and no other.
        margin: in cosine.
        hardest: only the hardest negative of each row and column; False: all of them.
        same: (N, N) bool, True at pairs that are no negatives, the diagonal included; None: the
            diagonal alone.
    Returns:
        Scalar, sum over the batch.
    """
    scores = x @ y.T  # (N, N)
    matched = scores.diagonal()
    if same is None:
        same = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    x_to_y = (margin + scores - matched[:, None]).clamp(min=0).masked_fill(same, 0)
    y_to_x = (margin + scores - matched[None, :]).clamp(min=0).masked_fill(same, 0)
    if hardest:
        return x_to_y.amax(dim=1).sum() + y_to_x.amax(dim=0).sum()
    return x_to_y.sum() + y_to_x.sum()


def infonce(x, y, *, log_scale, same=None):
    """Symmetric InfoNCE with in-batch negatives and a learned temperature, summed over the batch.

    As in CLIP (Radford et al. 2021, arXiv 2103.00020), it is the cross-entropy of each row's (and
    each column's) softmax over scale * x @ y.T, where scale = exp(log_scale) = 1 / temperature.
    CLIP takes the mean. Here the loss is multiplied by the temperature, and summed over batch and
    directions like the triplet loss, so that the weights of the other terms keep their meaning:

    - It is in units of cosine. The gradient on a cosine is at most 1 per pair and direction.
    - Near temperature 0 it is the hardest-negative triplet loss of margin 0.
    - For unrelated embeddings of 128 pairs it starts at 2 * 128 * 0.07 * ln 128 = 87, the triplet
      loss of margin 0.2 at 51 or more.

    The factor itself has no gradient, or else raising the scale alone would lower the loss.

    Args:
        x, y: (N, E); row i of x matches row i of y and no other.
        log_scale: scalar parameter.
        same: (N, N) bool, True at pairs that are no negatives, the diagonal included; None: the
            diagonal alone.
    Returns:
        Scalar, sum over the batch.
    """
    scale = log_scale.exp()
    logits = scale * (x @ y.T)  # (N, N)
    if same is not None:
        itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same & ~itself, float('-inf'))
    target = torch.arange(len(logits), device=logits.device)
    x_to_y = F.cross_entropy(logits, target, reduction='sum')
    y_to_x = F.cross_entropy(logits.T, target, reduction='sum')
    return (x_to_y + y_to_x) / scale.detach()


def similarity_distillation(cross, tgt, visual, *, temperature, detach_visual=False):
    """KD_sim: the cross branch's distribution over the batch teaches the translation's.

    Soft cross-entropy -sum(teacher * log student), mean over the batch, mean of the two directions.
    The cross embedding is detached. As released the visual one is not, so the teacher's own
    distribution moves the visual side too; with `detach_visual` the gradient is that of the KL
    divergence.

    Args:
        cross, tgt, visual: (N, E).
        temperature: of both softmaxes.
    Returns:
        Scalar.
    """
    seen = visual.detach() if detach_visual else visual
    teacher = cross.detach() @ seen.T / temperature  # (N, N)
    student = tgt @ visual.T / temperature  # (N, N)
    text_to_visual = -(teacher.softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1).mean()
    visual_to_text = -(teacher.softmax(dim=0) * student.log_softmax(dim=0)).sum(dim=0).mean()
    return (text_to_visual + visual_to_text) / 2


def feature_distillation(cross, tgt, *, beta, detach_cross=False):
    """KD_feat: smooth L1 between the cross and the translation embedding, mean over all elements.

    As released the cross embedding is not detached.

    Args:
        cross, tgt: (N, E).
        beta: where L2 turns into L1.
    Returns:
        Scalar.
    """
    return F.smooth_l1_loss(tgt, cross.detach() if detach_cross else cross, beta=beta)


def adversarial(fake_logits):
    """L_adv: the encoder is trained so that the discriminator takes translations for English.

    Args:
        fake_logits: (N, 2), of the translated tokens.
    Returns:
        Scalar.
    """
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def discriminator_loss(real_logits, fake_logits):
    """The discriminator's own loss, 0.5 * (BCE(D(en), 1) + BCE(D(tgt), 0)).

    Both logits of a caption get the same label: 1 for English (real), 0 for a translation (fake).

    Args:
        real_logits, fake_logits: (N, 2), of the English and of the translated tokens.
    Returns:
        (scalar loss, dict of detached scalars: real_loss, fake_loss, and real_acc, fake_acc, the
        shares of D(en) with argmax 1 and of D(tgt) with argmax 0).
    """
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    report = {
        'real_loss': real.detach(),
        'fake_loss': fake.detach(),
        'real_acc': (real_logits.argmax(dim=1) == 1).float().mean(),
        'fake_acc': (fake_logits.argmax(dim=1) == 0).float().mean(),
    }
    return 0.5 * (real + fake), report


class NRCCRLoss(nn.Module):
    """The encoders' loss as a dict of unweighted named terms; `total` weights and adds them.

    Each term of `basic.config.TERMS` is a method of its name. It takes the embeddings `e`, of which
    it reads what its row in the table says, the discriminator's `fake_logits`, and `same`, True at
    pairs that are no negatives.

    Args:
        weights: dict of term -> weight; a term of weight 0 is not computed.
        contrastive: `triplet` or `infonce`, what the terms triplet_en and triplet_tgt are.
            triplet_back compares text with text and stays a triplet loss.
        the rest: as `basic.config.Loss` documents.
    """

    def __init__(
        self,
        *,
        weights,
        margin,
        hardest,
        temperature,
        smooth_l1_beta,
        detach_teacher_visual,
        detach_cross_feature,
        contrastive='triplet',
        mask_same_visual=False,
    ):
        super().__init__()
        self.margin, self.hardest, self.contrastive = margin, hardest, contrastive
        self.temperature, self.smooth_l1_beta = temperature, smooth_l1_beta
        self.detach_teacher_visual = detach_teacher_visual
        self.detach_cross_feature = detach_cross_feature
        self.mask_same_visual = mask_same_visual
        self.terms = {term: getattr(self, term) for term in TERMS}
        self.weights = {term: weight for term, weight in weights.items() if weight > 0}

    def triplet_en(self, e, fake_logits=None, same=None):
        return self._to_visual(e.en, e, same)

    def triplet_tgt(self, e, fake_logits=None, same=None):
        return self._to_visual(e.tgt, e, same)

    def kd_sim(self, e, fake_logits=None, same=None):
        return similarity_distillation(
            e.cross,
            e.tgt,
            e.visual,
            temperature=self.temperature,
            detach_visual=self.detach_teacher_visual,
        )

    def kd_feat(self, e, fake_logits=None, same=None):
        return feature_distillation(
            e.cross, e.tgt, beta=self.smooth_l1_beta, detach_cross=self.detach_cross_feature
        )

    def triplet_back(self, e, fake_logits=None, same=None):
        return triplet(e.en, e.back, margin=self.margin, hardest=self.hardest, same=same)

    def back_visual(self, e, fake_logits=None, same=None):
        return self._to_visual(e.back, e, same)

    def adversarial(self, e, fake_logits=None, same=None):
        return adversarial(fake_logits)

    def _to_visual(self, text, e, same):
        if self.contrastive == 'infonce':
            return infonce(text, e.visual, log_scale=e.log_scale, same=same)
        return triplet(text, e.visual, margin=self.margin, hardest=self.hardest, same=same)

    @property
    def reads(self):
        """The set of what the terms that are computed read, see `basic.config.TERMS`."""
        return {part for term in self.weights for part in TERMS[term]}

    def forward(self, encoded, fake_logits=None, visual_of=None):
        """Unweighted terms.

        Args:
            encoded: `model.Encoded` of the batch.
            fake_logits: (N, 2), the updated discriminator on the translation's tokens, with a graph
                to the encoder; None if no term reads the tokens.
            visual_of: (N,), the visual item of each pair, as a number; for `mask_same_visual`
                alone.
        Returns:
            dict of term -> scalar, for the terms of weight above 0.
        """
        same = visual_of[:, None] == visual_of[None, :] if self.mask_same_visual else None  # (N, N)
        return {term: self.terms[term](encoded, fake_logits, same) for term in self.weights}

    def total(self, terms):
        """The weighted sum of the terms: a scalar."""
        return sum(self.weights[term] * value for term, value in terms.items())


def build_loss(config):
    """The criterion of a `basic.config.Config`."""
    options = config.loss
    return NRCCRLoss(
        weights=dict(options.weights),
        margin=options.margin,
        hardest=options.hardest,
        temperature=options.temperature,
        smooth_l1_beta=options.smooth_l1_beta,
        detach_teacher_visual=options.detach_teacher_visual,
        detach_cross_feature=options.detach_cross_feature,
        contrastive=options.contrastive,
        mask_same_visual=options.mask_same_visual,
    )
