"""Learning rate, early stopping and model selection, from one validation metric per epoch."""

import math
from typing import NamedTuple


class Decision(NamedTuple):
    """What follows from an epoch's validation metric."""

    improved: bool  # the best so far: keep this model
    lr: float  # learning rate of the next epoch
    halved: bool  # the rate was halved, not only decayed
    stop: bool  # stop training


class Schedule:
    """Decay the learning rate per epoch, halve it without improvement, and stop early.

    Args:
        lr: learning rate of the first epoch.
        lr_decay: factor after each epoch.
        halve_factor: further factor after an epoch that did not improve, ...
        halve_wait: ... if at least this many epochs, including this one, passed since the start or
            the last halving.
        patience: stop after more epochs than this without improvement.
    """

    def __init__(self, *, lr, lr_decay, halve_factor, halve_wait, patience):
        self.lr_decay, self.halve_factor, self.halve_wait, self.patience = (
            lr_decay,
            halve_factor,
            halve_wait,
            patience,
        )
        self.lr = lr
        self.epoch = 0  # epochs finished
        self.best = None  # the best metric so far, and its epoch
        self.best_epoch = 0
        self.since_halving = 0  # epochs since the start or the last halving

    def lr_at(self, step):
        """Learning rate of a step of the epoch that is being trained; its steps count from 0."""
        return self.lr

    @property
    def stop(self):
        """Whether more than `patience` epochs in a row did not improve."""
        return self.epoch - self.best_epoch > self.patience

    def step(self, figure):
        """Count a finished epoch.

        Args:
            figure: its validation metric, the sum of text-to-visual recalls; higher is better. A
                value equal to the best so far is no improvement.
        Returns:
            Decision.
        """
        self.epoch += 1
        self.since_halving += 1
        self.lr *= self.lr_decay
        improved = self.best is None or figure > self.best
        halved = not improved and self.since_halving >= self.halve_wait
        if improved:
            self.best, self.best_epoch = float(figure), self.epoch
        if halved:
            self.lr *= self.halve_factor
            self.since_halving = 0
        return Decision(improved=improved, lr=self.lr, halved=halved, stop=self.stop)

    def state_dict(self):
        """The state that changes per epoch, as plain data; the settings come from the config."""
        return {
            'lr': self.lr,
            'epoch': self.epoch,
            'best': self.best,
            'best_epoch': self.best_epoch,
            'since_halving': self.since_halving,
        }

    def load_state_dict(self, state):
        """Restore the state of `state_dict`."""
        self.lr, self.epoch, self.best = state['lr'], state['epoch'], state['best']
        self.best_epoch, self.since_halving = state['best_epoch'], state['since_halving']


class CosineSchedule(Schedule):
    """Linear warm-up over the first steps, then half a cosine towards 0.

    No decay per epoch, no halving, no early stop: the training's length is part of the schedule.
    The validation figure chooses the model alone.

    Args:
        lr: highest learning rate.
        warmup: share of all steps, from 0 to 1, over which the rate rises.
        epochs: that the training takes; steps: per epoch.
    """

    def __init__(self, *, lr, warmup, epochs, steps):
        super().__init__(
            lr=lr, lr_decay=1.0, halve_factor=1.0, halve_wait=math.inf, patience=math.inf
        )
        self.warmup, self.steps, self.total = warmup, steps, epochs * steps

    def lr_at(self, step):
        """Learning rate of step i = epochs finished * steps + `step` of T, from 0.

        lr * (i + 1) / (warmup T) while below lr, then lr / 2 * (1 + cos(pi * (i - warmup T) / (T -
        warmup T))).
        """
        i, rise = self.epoch * self.steps + step, self.warmup * self.total
        if i + 1 < rise:
            return self.lr * (i + 1) / rise
        return self.lr * 0.5 * (1 + math.cos(math.pi * (i - rise) / (self.total - rise)))


def build_schedule(config, steps):
    """The schedule of a `basic.config.Config`; steps: per epoch."""
    train = config.train
    if train.schedule == 'cosine':
        return CosineSchedule(lr=train.lr, warmup=train.warmup, epochs=train.epochs, steps=steps)
    return Schedule(
        lr=train.lr,
        lr_decay=train.lr_decay,
        halve_factor=train.halve_factor,
        halve_wait=train.halve_wait,
        patience=train.patience,
    )
