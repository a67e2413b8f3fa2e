"""Train NRCCR on one collection, keep the best model, test it.

    python train.py --config configs/vatex.yaml [--config configs/ablation/full.yaml] --rootpath ROOT [--device 0]
                    [key=value ...]

The run folder (ROOT/<collection>/runs/<config>_<lang>/seed_<n> unless --run-dir says otherwise) gets config.yaml,
run.json, tokenizer/, log.jsonl, tb/ (TensorBoard), model_best.pt, last.pt and, at the end, metrics.json and ranks.npz.
"""
import argparse
import gc
import json
import math
import os
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from basic import distributed
from basic.caption import load_tokenizer, save_tokenizer
from basic.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from basic.config import Config, config_from_dict, config_to_dict, load_config
from basic.logger import (MAY_DIFFER, TOKENIZER, RunLog, check_run_folder, clear_run_folder, describe_start, flatten,
                          peak_memory, progress, record_start, remove_leftovers, remove_reports)
from basic.metric import recall_sum
from basic.runtime import (autocast, choose_devices, keep_logs_tidy, phase, random_states, restore_random_states,
                           seed_everything, set_precision)
from basic.schedule import Schedule, build_schedule
from data_provider import Collection, build_loaders
from evaluation import (check_text, choose_weight, encode, evaluate, evaluate_checkpoint, load_weights, table,
                        write_report)
from loss import NRCCRLoss, build_loss, discriminator_loss
from model import NRCCR, MomentumTeacher, build_model, build_teacher


SEED_STEP = 1_000_003                    # between the seeds of two processes of a run


class NonFiniteLoss(RuntimeError):
    """The loss is NaN or infinite; the message gives every term, the epoch and the step."""


@dataclass
class Run:
    """Everything a training run works with; `prepare` makes one."""
    config: Config
    rootpath: Path
    folder: Path
    device: torch.device
    loaders: dict[str, Any]              # train: data_provider.TrainLoader, val: data_provider.EvalSet
    model: NRCCR
    criterion: NRCCRLoss
    optimizer: torch.optim.Optimizer     # encoders and projections
    discriminator_optimizer: torch.optim.Optimizer
    schedule: Schedule
    teacher: MomentumTeacher | None = None   # for loss.teacher=momentum
    kept: int = 0                        # epochs that last.pt holds

    @property
    def unfinished(self):
        """Whether there is another epoch to train."""
        return self.schedule.epoch < self.config.train.epochs and not self.schedule.stop


def train(run):
    """Train epoch by epoch, from where the run is until its schedule or `train.epochs` ends it."""
    schedule, config = run.schedule, run.config
    with RunLog(run.folder, epoch=schedule.epoch) if distributed.is_main() else nullcontext() as log:
        while run.unfinished:
            epoch, started = schedule.epoch + 1, time.monotonic()
            lr = run.optimizer.param_groups[0]['lr']
            means = train_one_epoch(run, epoch)
            trained = time.monotonic()

            val_set = run.loaders['val']
            embeddings = encode(run.model, val_set, run.device, config.compute.precision)
            val = evaluate(embeddings, val_set, config, weights=[config.train.val_weight])['rows'][0]
            decision = schedule.step(recall_sum(val['t2v']))
            for group in run.optimizer.param_groups:
                group['lr'] = decision.lr

            if decision.improved:
                save(run, BEST, epoch=epoch, val=val, choice=choose_weight(embeddings, val_set, config))
            if log:
                log.add({'epoch': epoch, **means, 'lr': lr, 'val': val, 'improved': decision.improved,
                         'best_epoch': schedule.best_epoch, 'halved': decision.halved,
                         'speed': {'train_seconds': trained - started, 'val_seconds': time.monotonic() - trained,
                                   'samples_per_s': run.loaders['train'].dataset_size / (trained - started),
                                   'peak_memory_gib': peak_memory(run.device)}})
            save(run, LAST, epoch=epoch, val=val, training=training_state(run))  # last: it makes the epoch count
            run.kept = epoch
    if schedule.stop and distributed.is_main():
        print(f'stopped: {schedule.epoch - schedule.best_epoch} epochs without improvement')


def train_one_epoch(run, epoch):
    """One pass over the training pairs.

    Returns:
        dict: train (total, grad_norm, and each unweighted term) and discriminator (losses and accuracies, empty if no
        term needs it), means over the steps.
    Raises:
        NonFiniteLoss: names the epoch and the step.
    """
    run.model.train()
    run.loaders['train'].set_epoch(epoch)
    sums, options = {}, step_options(run)
    bar = progress(run.loaders['train'], f'epoch {epoch}', shown=distributed.is_main())
    for step, batch in enumerate(bar, 1):
        try:
            values = train_step(batch.to(run.device, non_blocking=True), **options)
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f'epoch {epoch}, step {step}: {error}') from None
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        bar.set_postfix({name.removeprefix('train/'): f'{total / step:.3g}' for name, total in sums.items()
                         if name.startswith('train/')}, refresh=False)
    means = {'train': {}, 'discriminator': {}}
    for name, total in sums.items():
        group, key = name.split('/')
        means[group][key] = total / step
    return means


def step_options(run):
    """The keyword arguments of `train_step` that a run fixes."""
    config = run.config
    return {'model': run.model, 'criterion': run.criterion, 'optimizer': run.optimizer,
            'discriminator_optimizer': run.discriminator_optimizer, 'grad_clip': config.train.grad_clip,
            'micro_batch': config.compute.micro_batch, 'precision': config.compute.precision, 'teacher': run.teacher}


def train_step(batch, *, model, criterion, optimizer, discriminator_optimizer, grad_clip, micro_batch=0,
               precision='fp32', teacher=None):
    """One batch: forward, the discriminator's step, the encoders' step (METHOD: losses, training).

    Args:
        batch: data_provider.Batch on the model's device; with several processes this one's share of the global batch.
        model: model.NRCCR in training mode; criterion: loss.NRCCRLoss.
        optimizer: of `model.main_parameters()`; discriminator_optimizer: of the discriminator's.
        grad_clip: global L2 norm over the main parameters, 0 for none.
        micro_batch, precision: as `basic.config.Compute` documents.
        teacher: model.MomentumTeacher that computes the cross branch; None: the model does, if a term needs it.
    Returns:
        dict of floats, of the global batch: train/total, train/<term> (unweighted), train/grad_norm (before clipping),
        train/scale (1 / temperature) if it is learned, and discriminator/<figure> if a term needs the discriminator.
    Raises:
        NonFiniteLoss: the encoders' weights are those of before the step.
    """
    discriminator, device = model.discriminator, batch.index.device
    with phase('forward'), autocast(device, precision):
        encoded = model(batch, micro_batch)
        if teacher:
            encoded = encoded._replace(cross=teacher(batch, micro_batch))

    def judge(tokens, branch):
        with autocast(device, precision):
            logits = discriminator(tokens, branch.mask)
        return distributed.gather(logits.float(), batch.total)               # (N, 2)

    fake_logits, report = None, {}
    if 'adversarial' in criterion.weights:
        with phase('discriminator'):
            # It learns to tell English from translated tokens; no gradient of that reaches the encoder.
            loss, report = discriminator_loss(judge(encoded.tokens_en.detach(), batch.en),
                                              judge(encoded.tokens_tgt.detach(), batch.tgt))
            discriminator_optimizer.zero_grad()
            loss.backward()
            distributed.sum_gradients(discriminator.parameters())
            discriminator_optimizer.step()
            # The updated one judges the encoder, whose gradient goes through the discriminator, not into it.
            discriminator.requires_grad_(False)
            fake_logits = judge(encoded.tokens_tgt, batch.tgt)
            discriminator.requires_grad_(True)

    with phase('loss'):
        terms = criterion(encoded, fake_logits)
        total = criterion.total(terms)
    with phase('backward'):
        optimizer.zero_grad()
        total.backward()
        parameters = model.main_parameters()
        distributed.sum_gradients(parameters)
    with phase('optimizer'):
        norm = clip_grad_norm_(parameters, grad_clip or math.inf)
        figures = {'train/total': total, 'train/grad_norm': norm,
                   **{f'train/{name}': value for name, value in terms.items()},
                   **{f'discriminator/{name}': value for name, value in report.items()}}
        if model.log_scale is not None:
            figures['train/scale'] = model.log_scale.exp()
        figures = {name: value.detach().float() for name, value in figures.items()}
        step_if_finite(optimizer, figures.values())
        model.keep_in_bounds()
        if teacher:
            teacher.follow()
        values = as_floats(figures)      # the one wait for a GPU, once it has all its work
        if not all(map(math.isfinite, values.values())):
            raise NonFiniteLoss('the loss or its gradient is not finite: '
                                + ', '.join(f'{name.split("/")[1]}={value:g}' for name, value in values.items())
                                + '; a smaller train.lr, or compute.precision=fp32, may help')
    return values


def step_if_finite(optimizer, figures):
    """A fused optimizer's step, which leaves weights and state alone unless all scalars are finite.

    The device itself decides, so that nobody waits for it, by the attribute through which
    torch.amp.GradScaler tells a fused optimizer to skip a step.
    """
    optimizer.found_inf = 1.0 - torch.stack(list(figures)).isfinite().all().float()
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf


def as_floats(scalars):
    """dict of scalar tensors -> dict of floats, with one wait for the GPU instead of one for each."""
    return dict(zip(scalars, torch.stack(list(scalars.values())).tolist()))


# ------------------------------------------------------------------------------------------------ preparing and saving

def prepare(args, device):
    """From the command line to a Run that is ready for its next epoch.

    Args:
        args: of `parse_arguments`.
        device: this process's torch.device.
    Raises:
        ValueError: (ConfigError, DataError, CheckpointError) something that the user can put right; says what.
    """
    overrides = list(args.overrides)
    overrides += [f'train.{key}={value}' for key in ('seed', 'workers') if (value := getattr(args, key)) is not None]
    config = load_config(args.config, overrides)
    set_precision(config.compute.precision)
    rootpath = Path(os.path.abspath(args.rootpath))
    folder = Path(os.path.abspath(args.run_dir)) if args.run_dir else default_run_folder(config, rootpath)
    last = check_run_folder(folder, config_to_dict(config), resume=args.resume, overwrite=args.overwrite)
    checkpoint = load_checkpoint(last) if last else None
    tokenizer = load_tokenizer(str(folder / TOKENIZER) if checkpoint else config.text.bert, config.text.lowercase)
    seed_everything(config.train.seed)
    config, model, loaders = build_model_and_loaders(config, rootpath, tokenizer, device, checkpoint)
    optimizer, discriminator_optimizer = build_optimizers(model, config)
    run = Run(config=config, rootpath=rootpath, folder=folder, device=device, loaders=loaders, model=model,
              criterion=build_loss(config), schedule=build_schedule(config), optimizer=optimizer,
              discriminator_optimizer=discriminator_optimizer)
    distributed.broadcast_module(model)
    run.teacher = build_teacher(config, model)
    if checkpoint:
        remove_leftovers(folder)
        restore_training_state(run, checkpoint.training)
        run.kept = run.schedule.epoch
    else:
        seed_everything(config.train.seed + SEED_STEP * distributed.rank())  # the same weights, other dropout
    distributed.wait_for_all()           # before anything changes that another process still looks at
    if distributed.is_main():
        open_run_folder(run, tokenizer, fresh=checkpoint is None)
    return run


def default_run_folder(config, rootpath):
    """ROOT/<collection>/runs/<config>_<lang>[_noise_<rate>]/seed_<n>."""
    noise = f'_noise_{config.data.noise:g}' if config.data.noise else ''
    return (Collection(config, rootpath).folder / 'runs' / f'{config.name}_{config.data.lang}{noise}'
            / f'seed_{config.train.seed}')


def open_run_folder(run, tokenizer, *, fresh):
    """Clear the run's folder if it is a fresh run, write down how it starts, and say so."""
    if fresh:
        clear_run_folder(run.folder)     # not before everything else has been found to be in order
        save_tokenizer(tokenizer, run.folder / TOKENIZER)
    elif run.unfinished:
        remove_reports(run.folder)       # they are of a shorter training
    start = describe_start(rootpath=run.rootpath, device=run.device, model=run.model, processes=distributed.size())
    record_start(run.folder, start, config_to_dict(run.config), resumed_after=run.schedule.epoch)
    print(f'{"training" if fresh else f"resuming after epoch {run.schedule.epoch}"}: '
          f'{run.loaders["train"].dataset_size:,} caption pairs, {start["parameters"]["trained"]:,} trained '
          f'parameters, {start["device"]}, run folder {run.folder}', flush=True)


def build_optimizers(model, config):
    """(Adam of encoders and projections, Adam of the discriminator), each one kernel for all its parameters."""
    return (torch.optim.Adam(model.main_parameters(), lr=config.train.lr, fused=True),
            torch.optim.Adam(model.discriminator.parameters(), lr=config.discriminator.lr, betas=(0.9, 0.999),
                             fused=True))


def build_model_and_loaders(config, rootpath, tokenizer, device, checkpoint=None):
    """The config completed with the feature width found, the model on the device, the loaders."""
    architecture = checkpoint.architecture if checkpoint else None
    if config.visual.kind == 'clip':                 # the images' size is CLIP's, ...
        model = build_model(config, architecture=architecture)
        if checkpoint:
            load_weights(model, checkpoint)
        loaders = build_loaders(config, rootpath, tokenizer, image_size=model.image_size, device=device,
                                image_encoder=model.visual_encoder)
    else:                                            # ... the model's input width is the features'
        loaders = build_loaders(config, rootpath, tokenizer, device=device)
        tree = config_to_dict(config)
        tree['visual']['feature_dim'] = loaders['train'].feature_dim
        config = config_from_dict(tree)
        model = build_model(config, feature_dim=config.visual.feature_dim, architecture=architecture)
        if checkpoint:
            load_weights(model, checkpoint)
    check_text(model, tokenizer, loaders.values())
    return config, model.to(device), loaders


def save(run, name, *, epoch, val, **more):
    """Write a checkpoint into the run's folder, with `choice` (of w) or `training` (to resume). Process 0 writes."""
    if not distributed.is_main():
        return
    content = {'config': config_to_dict(run.config), 'architecture': run.model.architecture,
               'model': run.model.state_dict(), 'epoch': epoch, 'val': val}
    save_checkpoint(run.folder / name, {**content, **more})


def training_state(run):
    """What a continuation needs beside the weights, as plain tensors and plain data."""
    return {'optimizer': run.optimizer.state_dict(), 'schedule': run.schedule.state_dict(),
            'discriminator_optimizer': run.discriminator_optimizer.state_dict(),
            'teacher': run.teacher.weights() if run.teacher else None,
            'random': distributed.gather_objects(random_states(run.device))}  # of each process


def release(run):
    """Free what only training needs: the test builds a model of its own on the same device."""
    run.model = run.optimizer = run.discriminator_optimizer = run.teacher = None
    run.loaders = {}
    gc.collect()                         # modules and their hooks refer to each other


def changeable(config):
    """As options, what a continuation may have changed: the best model's own config may be of the time before."""
    tree = flatten(config_to_dict(config))
    return [f'{key}={json.dumps(tree[key])}' for key in MAY_DIFFER]


def restore_training_state(run, state):
    """Put a fresh run to where `training_state` was taken."""
    run.optimizer.load_state_dict(state['optimizer'])
    run.discriminator_optimizer.load_state_dict(state['discriminator_optimizer'])
    run.schedule.load_state_dict(state['schedule'])
    if run.teacher:
        run.teacher.restore(state['teacher'])
    if len(state['random']) == distributed.size():
        restored = restore_random_states(state['random'][distributed.rank()], run.device)
    else:                                # each process has another share now: nothing could continue exactly
        seed_everything(run.config.train.seed + SEED_STEP * distributed.rank() + run.schedule.epoch)
        restored = False
    if not restored and distributed.is_main():
        print('note: other devices than before: dropout draws other numbers than it would have without the '
              'interruption', flush=True)


# ---------------------------------------------------------------------------------------------------- the command line

def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(prog='train.py', description=__doc__.splitlines()[0],
                                     epilog='Options are keys of basic/config.py, for example train.lr=3e-4.')
    parser.add_argument('--config', required=True, action='append', metavar='FILE', help='for example '
                        'configs/vatex.yaml; given again, what a further file says wins, for example '
                        'configs/ablation/no_adversary.yaml')
    parser.add_argument('--rootpath', required=True, metavar='ROOT', help="folder that holds the collections' folders")
    parser.add_argument('--device', default='cpu', help='cpu (default), the index of a GPU, such as 0, or of several, '
                        'a process each: 0,1,2 (cpu:2: two processes on the CPU)')
    parser.add_argument('--run-dir', metavar='DIR',
                        help='run folder (default: ROOT/<collection>/runs/<config>_<lang>/seed_<n>)')
    parser.add_argument('--resume', action='store_true', help="go on after the run folder's last finished epoch")
    parser.add_argument('--overwrite', action='store_true', help='delete the run that the run folder holds')
    parser.add_argument('--no-test', action='store_true', help='do not test the best model at the end')
    parser.add_argument('--seed', type=int, metavar='N', help='short for train.seed=N')
    parser.add_argument('--workers', type=int, metavar='N', help='short for train.workers=N')
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='options over the config file')
    return parser.parse_intermixed_args(argv)


def main(argv=None):
    """The command line; returns the exit status.

    0: done; 1: the loss is not finite; 2: something that the user can put right; 130: interrupted.
    """
    args = parse_arguments(argv)
    words = sys.argv[1:] if argv is None else argv
    keep_logs_tidy()
    try:
        devices = choose_devices(args.device)
        if len(devices) > 1 and not distributed.launched():
            return distributed.launch(__file__, words, processes=len(devices))
        run = prepare(args, distributed.start(devices))
    except (ValueError, OSError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        return fail('interrupted before the first epoch', 130)
    try:
        train(run)
        if not args.no_test:
            release(run)
            distributed.wait_for_all()   # until the best model is written
            report = evaluate_checkpoint(run.folder, rootpath=run.rootpath, device=args.device,
                                         overrides=changeable(run.config))
            if distributed.is_main():
                print(table(report))
                print(f'written: {write_report(report)}')
    except ValueError as error:          # DataError, or embeddings that are not finite
        return fail(error, 2)
    except OSError as error:                         # a full disk, say
        return fail(f'{error}; run folder {run.folder}, --resume goes on with it', 2)
    except NonFiniteLoss as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        words = [word for word in words if word not in ('--resume', '--overwrite')]
        return fail(f'interrupted; epochs finished and kept: {run.kept}. To go on: '
                    f'python {shlex.join([sys.argv[0], *words, "--resume"])}', 130)
    distributed.stop()
    return 0


def fail(message, status):
    """Say why it ends, in one process of several; returns the status."""
    if status == 130 and not distributed.is_main():
        return status                    # all of them are interrupted
    distributed.after_process_0()
    print(f'train.py: {"error: " if status != 130 else ""}{message}', file=sys.stderr)
    return status


if __name__ == '__main__':
    sys.exit(main())
