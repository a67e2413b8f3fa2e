"""Train NRCCR on one collection, keep the best model, test it.

    python train.py --config configs/vatex.yaml --rootpath ROOT [--device 0] [key=value ...]

The run folder (ROOT/<collection>/runs/<config>_<lang>/seed_<n> unless --run-dir says otherwise) gets config.yaml,
run.json, tokenizer/, log.jsonl, tb/ (TensorBoard), model_best.pt, last.pt and, at the end, metrics.json.
"""
import argparse
import math
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from basic.caption import load_tokenizer, save_tokenizer
from basic.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from basic.config import Config, config_from_dict, config_to_dict, load_config
from basic.errors import DataError
from basic.logger import (TOKENIZER, RunLog, check_run_folder, clear_run_folder, describe_start, peak_memory,
                          record_start)
from basic.metric import recall_sum
from basic.runtime import choose_device, random_states, restore_random_states, seed_everything
from basic.schedule import Schedule, build_schedule
from data_provider import Collection, build_loaders
from evaluation import encode, evaluate, evaluate_checkpoint, load_weights, table, write_report
from loss import NRCCRLoss, build_loss, discriminator_loss
from model import NRCCR, build_model


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


def train(run):
    """Train epoch by epoch, from where the run is until its schedule or `train.epochs` ends it."""
    schedule, config = run.schedule, run.config
    with RunLog(run.folder, epoch=schedule.epoch) as log:
        while schedule.epoch < config.train.epochs and not schedule.stop:
            epoch, started = schedule.epoch + 1, time.monotonic()
            lr = run.optimizer.param_groups[0]['lr']
            means = train_one_epoch(run, epoch)
            trained = time.monotonic()

            val_set = run.loaders['val']
            val = evaluate(encode(run.model, val_set, run.device), val_set, config,
                           weights=[config.train.val_weight])['rows'][0]
            decision = schedule.step(recall_sum(val['t2v']))
            for group in run.optimizer.param_groups:
                group['lr'] = decision.lr

            if decision.improved:
                save(run, BEST, epoch=epoch, val=val)
            log.add({'epoch': epoch, **means, 'lr': lr, 'val': val, 'improved': decision.improved,
                     'best_epoch': schedule.best_epoch, 'halved': decision.halved,
                     'speed': {'train_seconds': trained - started, 'val_seconds': time.monotonic() - trained,
                               'samples_per_s': run.loaders['train'].dataset_size / (trained - started),
                               'peak_memory_gib': peak_memory(run.device)}})
            save(run, LAST, epoch=epoch, val=val, training=training_state(run))  # last: it makes the epoch count
    if schedule.stop:
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
    sums, shown = {}, sys.stderr.isatty()
    progress = tqdm(run.loaders['train'], desc=f'epoch {epoch}', mininterval=0.5 if shown else 30, leave=False,
                    dynamic_ncols=True)
    for step, batch in enumerate(progress, 1):
        try:
            values = train_step(batch.to(run.device, non_blocking=True), model=run.model, criterion=run.criterion,
                                optimizer=run.optimizer, discriminator_optimizer=run.discriminator_optimizer,
                                grad_clip=run.config.train.grad_clip)
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f'epoch {epoch}, step {step}: {error}') from None
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        progress.set_postfix({name.removeprefix('train/'): f'{total / step:.3g}' for name, total in sums.items()
                              if name.startswith('train/')}, refresh=False)
    means = {'train': {}, 'discriminator': {}}
    for name, total in sums.items():
        group, key = name.split('/')
        means[group][key] = total / step
    return means


def train_step(batch, *, model, criterion, optimizer, discriminator_optimizer, grad_clip):
    """One batch: forward, the discriminator's step, the encoders' step (METHOD: losses, training).

    Args:
        batch: data_provider.Batch on the model's device.
        model: model.NRCCR in training mode; criterion: loss.NRCCRLoss.
        optimizer: of `model.main_parameters()`; discriminator_optimizer: of the discriminator's.
        grad_clip: global L2 norm over the main parameters, 0 for none.
    Returns:
        dict of floats: train/total, train/<term> (unweighted), train/grad_norm (before clipping), and
        discriminator/<figure> if a term needs the discriminator.
    Raises:
        NonFiniteLoss: before the encoders' weights are touched.
    """
    encoded = model(batch)

    fake_logits, report = None, {}
    if 'adversarial' in criterion.weights:
        discriminator = model.discriminator
        # It learns to tell English from translated tokens; no gradient of that reaches the encoder.
        loss, report = discriminator_loss(discriminator(encoded.tokens_en.detach(), encoded.mask_en),
                                          discriminator(encoded.tokens_tgt.detach(), encoded.mask_tgt))
        discriminator_optimizer.zero_grad()
        loss.backward()
        discriminator_optimizer.step()
        # The updated one judges the encoder, whose gradient goes through the discriminator, not into it.
        discriminator.requires_grad_(False)
        fake_logits = discriminator(encoded.tokens_tgt, encoded.mask_tgt)
        discriminator.requires_grad_(True)

    terms = criterion(encoded, fake_logits)
    total = criterion.total(terms)
    optimizer.zero_grad()
    total.backward()
    norm = clip_grad_norm_(model.main_parameters(), grad_clip or math.inf)

    values = as_floats({'train/total': total, 'train/grad_norm': norm,
                        **{f'train/{name}': value for name, value in terms.items()},
                        **{f'discriminator/{name}': value for name, value in report.items()}})
    if not all(map(math.isfinite, values.values())):
        raise NonFiniteLoss('the loss or its gradient is not finite: '
                            + ', '.join(f'{name.split("/")[1]}={value:g}' for name, value in values.items()))
    optimizer.step()
    return values


def as_floats(scalars):
    """dict of scalar tensors -> dict of floats, with one wait for the GPU instead of one for each."""
    stacked = torch.stack([value.detach().float() for value in scalars.values()])
    return dict(zip(scalars, stacked.tolist()))


# ------------------------------------------------------------------------------------------------ preparing and saving

def prepare(args):
    """From the command line to a Run that is ready for its next epoch.

    Raises:
        ValueError: (ConfigError, DataError, CheckpointError) something that the user can put right; says what.
    """
    overrides = list(args.overrides)
    overrides += [f'train.{key}={value}' for key in ('seed', 'workers') if (value := getattr(args, key)) is not None]
    config = load_config(args.config, overrides)
    device = choose_device(args.device)
    rootpath = Path(os.path.abspath(args.rootpath))
    folder = (Path(os.path.abspath(args.run_dir)) if args.run_dir else Collection(config, rootpath).folder / 'runs'
              / f'{config.name}_{config.data.lang}' / f'seed_{config.train.seed}')
    last = check_run_folder(folder, config_to_dict(config), resume=args.resume, overwrite=args.overwrite)
    checkpoint = load_checkpoint(last) if last else None
    tokenizer = load_tokenizer(str(folder / TOKENIZER) if checkpoint else config.text.bert, config.text.lowercase)
    seed_everything(config.train.seed)
    config, model, loaders = build_model_and_loaders(config, rootpath, tokenizer, device, checkpoint)
    optimizer, discriminator_optimizer = build_optimizers(model, config)
    run = Run(config=config, rootpath=rootpath, folder=folder, device=device, loaders=loaders, model=model,
              criterion=build_loss(config), schedule=build_schedule(config), optimizer=optimizer,
              discriminator_optimizer=discriminator_optimizer)
    if checkpoint:
        restore_training_state(run, checkpoint.training)
    else:
        clear_run_folder(folder)         # not before everything else has been found to be in order
        save_tokenizer(tokenizer, folder / TOKENIZER)
    start = describe_start(rootpath=rootpath, device=device, model=model)
    record_start(folder, start, config_to_dict(config), resumed_after=run.schedule.epoch)
    print(f'{f"resuming after epoch {run.schedule.epoch}" if checkpoint else "training"}: '
          f'{loaders["train"].dataset_size:,} caption pairs, {start["parameters"]["trained"]:,} trained parameters, '
          f'{start["device"]}, run folder {folder}', flush=True)
    return run


def build_optimizers(model, config):
    """(Adam of encoders and projections, Adam of the discriminator)."""
    return (torch.optim.Adam(model.main_parameters(), lr=config.train.lr),
            torch.optim.Adam(model.discriminator.parameters(), lr=config.discriminator.lr, betas=(0.9, 0.999)))


def build_model_and_loaders(config, rootpath, tokenizer, device, checkpoint=None):
    """The config completed with the feature width found, the model on the device, the loaders."""
    architecture = checkpoint.architecture if checkpoint else None
    if config.visual.kind == 'clip':                 # the images' size is CLIP's, ...
        model = build_model(config, architecture=architecture)
        loaders = build_loaders(config, rootpath, tokenizer, image_size=model.image_size, device=device)
    else:                                            # ... the model's input width is the features'
        loaders = build_loaders(config, rootpath, tokenizer, device=device)
        tree = config_to_dict(config)
        tree['visual']['feature_dim'] = loaders['train'].feature_dim
        config = config_from_dict(tree)
        model = build_model(config, feature_dim=config.visual.feature_dim, architecture=architecture)
    if checkpoint:
        load_weights(model, checkpoint)
    return config, model.to(device), loaders


def save(run, name, *, epoch, val, training=None):
    """Write a checkpoint of the run into its folder; with `training` it can be resumed from."""
    content = {'config': config_to_dict(run.config), 'architecture': run.model.architecture,
               'model': run.model.state_dict(), 'epoch': epoch, 'val': val}
    save_checkpoint(run.folder / name, {**content, 'training': training} if training else content)


def training_state(run):
    """What a continuation needs beside the weights, as plain tensors and plain data."""
    return {'optimizer': run.optimizer.state_dict(), 'schedule': run.schedule.state_dict(),
            'discriminator_optimizer': run.discriminator_optimizer.state_dict(), 'random': random_states()}


def restore_training_state(run, state):
    """Put a fresh run to where `training_state` was taken."""
    run.optimizer.load_state_dict(state['optimizer'])
    run.discriminator_optimizer.load_state_dict(state['discriminator_optimizer'])
    run.schedule.load_state_dict(state['schedule'])
    restore_random_states(state['random'])


# ---------------------------------------------------------------------------------------------------- the command line

def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(prog='train.py', description=__doc__.splitlines()[0],
                                     epilog='Options are keys of basic/config.py, for example train.lr=3e-4.')
    parser.add_argument('--config', required=True, metavar='FILE', help='for example configs/vatex.yaml')
    parser.add_argument('--rootpath', required=True, metavar='ROOT', help="folder that holds the collections' folders")
    parser.add_argument('--device', default='cpu', help='cpu (default) or the index of a GPU, such as 0')
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
    try:
        run = prepare(args)
    except (ValueError, OSError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        return fail('interrupted before the first epoch', 130)
    try:
        train(run)
        if not args.no_test:
            report = evaluate_checkpoint(run.folder, rootpath=run.rootpath, device=args.device)
            print(table(report))
            print(f'written: {write_report(report)}')
    except DataError as error:
        return fail(error, 2)
    except NonFiniteLoss as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        words = [word for word in (sys.argv[1:] if argv is None else argv) if word not in ('--resume', '--overwrite')]
        return fail(f'interrupted; epochs finished and kept: {run.schedule.epoch}. To go on: '
                    f'python {shlex.join([sys.argv[0], *words, "--resume"])}', 130)
    return 0


def fail(message, status):
    print(f'train.py: {"error: " if status != 130 else ""}{message}', file=sys.stderr)
    return status


if __name__ == '__main__':
    sys.exit(main())
