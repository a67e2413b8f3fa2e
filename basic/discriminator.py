"""The language discriminators, which tell English from translated captions by BERT's outputs.

N captions, L tokens, D width of a token, C channels. Masks are (N, L), 1 at real tokens.
"""

from torch import nn
from torch.nn import functional as F

from basic.layers import pool
from basic.runtime import autocast


class LinearDiscriminator(nn.Module):
    """`weak`: mean over tokens, linear layer to two logits."""

    def __init__(self, *, dim, pooling):
        super().__init__()
        self.model = nn.Linear(dim, 2)
        self.pooling = pooling

    def forward(self, tokens, mask):
        """tokens (N, L, D), mask (N, L) -> logits (N, 2)."""
        return self.model(pool(tokens, mask, self.pooling))


class MlpDiscriminator(LinearDiscriminator):
    """`not-so-weak`: mean over tokens, MLP D-256-128-2 with tanh."""

    def __init__(self, *, dim, pooling):
        super().__init__(dim=dim, pooling=pooling)
        self.model = nn.Sequential(
            nn.Linear(dim, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 2)
        )


class ResidualBlock(nn.Module):
    """x + 0.3 * conv5(ReLU(conv5(ReLU(x)))); as released (`relu_skip`), ReLU(x) + ..."""

    def __init__(self, *, channels, relu_skip):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 5, padding=2)
        self.conv2 = nn.Conv1d(channels, channels, 5, padding=2)
        self.relu_skip = relu_skip

    def forward(self, x, keep):
        """x (N, C, L) -> (N, C, L); keep (N, 1, L) is 0 at masked positions, or just 1."""
        rectified = F.relu(x)
        inner = F.relu(self.conv1(rectified * keep))
        return 0.3 * self.conv2(inner * keep) + (rectified if self.relu_skip else x)


class ConvDiscriminator(nn.Module):
    """`strong`: 1x1 convolution to 128, three residual blocks, mean, linear layer to two logits.

    As released, the convolutions read padding like tokens. With the pooling `mean`, padding is set
    to zero, as beyond the end of the sequence, so its amount does not change the logits.
    """

    def __init__(self, *, dim, pooling, relu_skip):
        super().__init__()
        self.entry = nn.Conv1d(dim, 128, 1)
        self.blocks = nn.ModuleList(
            ResidualBlock(channels=128, relu_skip=relu_skip) for _ in range(3)
        )
        self.model = nn.Linear(128, 2)
        self.pooling = pooling

    def forward(self, tokens, mask):
        """tokens (N, L, D), mask (N, L) -> logits (N, 2)."""
        if tokens.device.type == 'cpu':
            # Convolutions in bfloat16 are slow on a CPU, whose threads wait for each other.
            with autocast('cpu', 'fp32'):
                return self._judge(tokens.float(), mask)
        return self._judge(tokens, mask)

    def _judge(self, tokens, mask):
        keep = 1 if self.pooling == 'padded_mean' else mask[:, None]  # (N, 1, L)
        x = self.entry(tokens.transpose(1, 2))  # (N, 128, L)
        for block in self.blocks:
            x = block(x, keep)
        return self.model(pool(x.transpose(1, 2), mask, self.pooling))
