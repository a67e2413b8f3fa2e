"""Train NRCCR on one collection, keep the best model, test it.

    python train.py --config configs/vatex.yaml [--config configs/ablation/full.yaml]
                    --rootpath ROOT [--device 0] [key=value ...]

The run folder (ROOT/<collection>/runs/<config>_<lang>/seed_<n> unless --run-dir says otherwise)
gets config.yaml, run.json, tokenizer/, log.jsonl, tb/ (TensorBoard), model_best.pt, last.pt and, at
the end, metrics.json and ranks.npz.
"""

from basic.arguments import begin, training_arguments

if __name__ == '__main__':
    begin('train.py', __file__, training_arguments)  # before the imports, which take seconds

import gc
import json
import math
import os
import shlex
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.utils import clip_grad_norm_
from torch.profiler import record_function

from basic import distributed, fingerprint, run_folder, runtime
from basic.board import add_queries
from basic.checkpoint import LAST, NEXT_BEST, load_checkpoint, save_checkpoint, training_of
from basic.collection import Collection
from basic.command import command, is_out_of_memory, killed_worker, telling, typed
from basic.config import Config, config_to_dict
from basic.curves import write_curves
from basic.errors import DataError
from basic.examples import search_examples, spread
from basic.languages import languages
from basic.logger import RunLog, epoch_progress, peak_memory, show_test
from basic.merge import flatten
from basic.metric import recall_sum
from basic.pretrained.tokenizer import save_tokenizer
from basic.report import noted, result_line, table, write_report, written
from basic.schedule import Schedule, build_schedule
from data_provider import eval_sets
from evaluation import assemble, choose_weight, encode_all, evaluate_all, evaluate_checkpoint
from loss import NRCCRLoss, build_loss, discriminator_loss
from model import NRCCR, MomentumTeacher, build_teacher

QUERIES = 4  # of validation, whose results TensorBoard shows
SEED_STEP = 1_000_003  # between the seeds of two processes of a run


class NonFiniteLoss(RuntimeError):
    """The loss is NaN or infinite; the message gives every term, the epoch and the step."""

    status = 1  # of the command


@dataclass
class Run:
    """Everything a training run works with; `prepare` makes one."""

    config: Config
    rootpath: Path
    folder: Path
    device: torch.device
    loaders: dict[str, Any]  # of data_provider.build_loaders: train, and validation
    model: NRCCR
    criterion: NRCCRLoss
    optimizer: torch.optim.Optimizer  # encoders and projections
    discriminator_optimizer: torch.optim.Optimizer
    schedule: Schedule
    teacher: MomentumTeacher | None = None  # for loss.teacher=momentum
    kept: int = 0  # epochs that last.pt holds
    seconds: float | None = None  # that the last epoch took, with its validation
    data: dict[str, Any] | None = None  # basic.fingerprint of the loaders

    @property
    def unfinished(self):
        """Whether there is another epoch to train."""
        return self.schedule.epoch < self.config.train.epochs and not self.schedule.stop


# ---------------------------------------------------------------------------------------- training


def train(run):
    """Train epoch by epoch, from where the run is until its schedule or `train.epochs` ends it."""
    config, schedule, val_sets = run.config, run.schedule, eval_sets(run.loaders, 'val')
    with run_log(run) if distributed.is_main() else nullcontext() as log:
        while run.unfinished:
            epoch, started = schedule.epoch + 1, time.monotonic()
            means = train_one_epoch(run, epoch, log)
            trained = time.monotonic()
            check_data_unchanged(run)

            # The schedule learns from validation, by the mean over the languages, which model is
            # best, when to lower the rate, and when to stop.
            embeddings = encode_all(run.model, val_sets, run.device, config.compute.precision)
            weights = [float(config.train.val_weight)]
            scorings = []
            report = evaluate_all(embeddings, val_sets, config, weights, keep=scorings)
            val = report['rows'][0]
            choice, figure = None, recall_sum(val['t2v'])
            if config.train.select == 'sumr':
                choice = choose_weight(embeddings, val_sets, config)
                figure = max(row['SumR'] for row in choice['chosen_from'])
            decision = schedule.step(figure)

            if decision.improved:
                choice = choice or choose_weight(embeddings, val_sets, config)
                save(run, NEXT_BEST, epoch=epoch, val=val, choice=choice)
            if log:
                record = {
                    'epoch': epoch,
                    **means,
                    'lr': run.optimizer.param_groups[0]['lr'],
                    'val': val,
                    **val_of_each(report),
                    'improved': decision.improved,
                    'best_epoch': schedule.best_epoch,
                    'halved': decision.halved,
                    'speed': speed(run, started, trained),
                }
                log.add(record)
                if decision.improved and log.board:
                    rows = spread(len(val_sets[0].caption_ids), QUERIES)
                    examples = search_examples(scorings[0], val_sets[0], rows, weight=weights[0])
                    log.show(add_queries, examples, epoch, val_sets[0].pictures)
            run.seconds = time.monotonic() - started

            # Once last.pt is written, the epoch counts. If a crash follows, --resume does the rest.
            save(run, LAST, epoch=epoch, val=val, training=training_state(run))
            run.kept = epoch
            if log:
                run_folder.keep_best(run.folder, schedule.best_epoch)
                run_folder.settle(run.folder)  # an older run that this one replaces is not needed
    if distributed.is_main():
        tell_the_end(config, schedule)


def val_of_each(report):
    """Of several languages the validation of each, for the log."""
    parts = report.get('languages', {})
    return {'val_of': {lang: part['rows'][0] for lang, part in parts.items()}} if parts else {}


def tell_the_end(config, schedule):
    """Say why a training ended early, or that it was too long."""
    epochs, best = schedule.epoch, schedule.best_epoch
    if schedule.stop:
        print(f'stopped: {epochs - best} epochs without improvement')
    elif config.train.schedule == 'cosine' and best < epochs:
        print(
            f'validation was best after epoch {best} of {epochs}, and fell: a shorter training may'
            f' do better, try train.epochs={best}'
        )


def train_one_epoch(run, epoch, log=None):
    """One pass over the training pairs.

    Args:
        run: Run.
        epoch: its number, from 1.
        log: basic.logger.RunLog, for the steps.
    Returns:
        dict: train (total, grad_norm, each unweighted term, and scale with InfoNCE) and
            discriminator (losses and accuracies, empty if no term needs it), means over the steps.
    Raises:
        NonFiniteLoss: names the epoch and the step.
    """
    run.model.train()
    run.loaders['train'].set_epoch(epoch)
    bar = epoch_progress(
        run.loaders['train'],
        epoch=epoch,
        epochs=run.config.train.epochs,
        last=run.seconds,
        shown=distributed.is_main(),
    )
    sums, options = {}, step_options(run)
    for step, batch in enumerate(bar, 1):
        set_rates(run, step)
        try:
            values = train_step(batch.to(run.device, non_blocking=True), **options)
        except NonFiniteLoss as error:
            check_data_unchanged(run)
            raise NonFiniteLoss(f'epoch {epoch}, step {step}: {error}') from None
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        bar.loss = sums['train/total'] / step
        if log:
            log.step(values, epoch=epoch, step=step, lr=run.optimizer.param_groups[0]['lr'])

    means = {'train': {}, 'discriminator': {}}
    for name, total in sums.items():
        group, key = name.split('/')
        means[group][key] = total / step
    return means


def set_rates(run, step):
    """Give the optimizer the learning rates of a step, counted from 1."""
    options, lr = run.config.train, run.schedule.lr_at(step - 1)
    rates = [lr, lr * (options.bert_lr / options.lr)]  # see NRCCR.parameter_groups
    for group, rate in zip(run.optimizer.param_groups, rates):
        group['lr'] = rate


def step_options(run):
    """The keyword arguments of `train_step` that a run fixes."""
    return {
        'model': run.model,
        'criterion': run.criterion,
        'optimizer': run.optimizer,
        'discriminator_optimizer': run.discriminator_optimizer,
        'grad_clip': run.config.train.grad_clip,
        'micro_batch': run.config.compute.micro_batch,
        'precision': run.config.compute.precision,
        'teacher': run.teacher,
    }


def train_step(
    batch,
    *,
    model,
    criterion,
    optimizer,
    discriminator_optimizer,
    grad_clip,
    micro_batch=0,
    precision='fp32',
    teacher=None,
):
    """One batch: forward, the discriminator's step, the encoders' step, in this order.

    Args:
        batch: data_provider.Batch on the model's device; with several processes this one's share of
            the global batch.
        model: model.NRCCR in training mode; criterion: loss.NRCCRLoss.
        optimizer: of `model.main_parameters()`; discriminator_optimizer: of the discriminator's.
        grad_clip: global L2 norm over the main parameters, 0 for none.
        micro_batch, precision: as `basic.config.Compute` documents.
        teacher: model.MomentumTeacher that computes the cross branch; None: the model does, if a
            term needs it.
    Returns:
        dict of floats, of the global batch: train/total, train/<term> (unweighted), train/grad_norm
            (before clipping), train/scale (1 / temperature) if it is learned, and
            discriminator/<figure> if a term needs the discriminator.
    Raises:
        NonFiniteLoss: the encoders' weights are unchanged; the discriminator's, and batch norm's
            statistics, are not.
    """
    device = batch.index.device
    with record_function('forward'), runtime.autocast(device, precision):
        encoded = model(batch, micro_batch)  # embeddings (N, E), tokens (n, L, D)
        if teacher:
            encoded = encoded._replace(cross=teacher(batch, micro_batch))

    # The two languages' tokens are the discriminator's batch; what it then says of the translation
    # is the encoders' adversarial term.
    fake_logits, discriminator_figures = None, {}
    if 'tokens' in criterion.reads:
        with record_function('discriminator'):
            fake_logits, discriminator_figures = discriminator_step(
                batch, encoded, model.discriminator, discriminator_optimizer, precision
            )

    with record_function('loss'):
        visual_of = None
        if criterion.mask_same_visual:
            visual_of = distributed.gather(batch.visual_of, batch.total)  # (N,)
        terms = criterion(encoded, fake_logits, visual_of)  # unweighted, of the global batch
        total = criterion.total(terms)

    # Each process has the gradient of its share; their sum is that of the global batch.
    with record_function('backward'):
        optimizer.zero_grad()
        total.backward()
        parameters = model.main_parameters()
        distributed.sum_gradients(parameters)

    with record_function('optimizer'):
        norm = clip_grad_norm_(parameters, grad_clip or math.inf)
        figures = {
            'train/total': total,
            'train/grad_norm': norm,
            **{f'train/{name}': value for name, value in terms.items()},
            **{f'discriminator/{name}': value for name, value in discriminator_figures.items()},
        }
        if model.log_scale is not None:
            figures['train/scale'] = model.log_scale.exp()
        figures = {name: value.detach().float() for name, value in figures.items()}

        # A loss that is not finite leaves the weights as they were, and stops the run.
        step_if_finite(optimizer, figures.values())
        model.keep_in_bounds()
        if teacher:
            teacher.follow()
        values = as_floats(figures)  # waits for the GPU, after all its work is queued
    refuse_non_finite(values)
    return values


def discriminator_step(batch, encoded, discriminator, optimizer, precision):
    """The discriminator learns to tell English from translated tokens; then it judges the encoder.

    Args:
        batch, precision: as `train_step` has.
        encoded: model.Encoded, of which the tokens (n, L, D) are read.
        optimizer: of the discriminator.
    Returns:
        fake_logits (N, 2) on the translation's tokens, with a graph to the encoder; and figures of
        `loss.discriminator_loss`.
    """

    def judge(tokens, captions):
        with runtime.autocast(tokens.device, precision):
            logits = discriminator(tokens, captions.mask)  # (n, 2)
        return distributed.gather(logits.float(), batch.total)  # (N, 2)

    # No gradient of its own loss reaches the encoder.
    loss, figures = discriminator_loss(
        judge(encoded.tokens_en.detach(), batch.en), judge(encoded.tokens_tgt.detach(), batch.tgt)
    )
    optimizer.zero_grad()
    loss.backward()
    distributed.sum_gradients(discriminator.parameters())
    optimizer.step()

    # The encoder's gradient goes through the updated discriminator, not into it.
    discriminator.requires_grad_(False)
    fake_logits = judge(encoded.tokens_tgt, batch.tgt)
    discriminator.requires_grad_(True)
    return fake_logits, figures


def step_if_finite(optimizer, figures):
    """Step the optimizer only if all figures are finite.

    A fused optimizer skips the step on the device if `found_inf` is 1, as with
    torch.amp.GradScaler, so that nothing waits. Other optimizers are checked here.
    """
    finite = torch.stack(list(figures)).isfinite().all()
    if not optimizer.defaults.get('fused'):
        if finite:
            optimizer.step()
        return
    optimizer.found_inf = 1.0 - finite.float()
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf


def as_floats(scalars):
    """dict of scalar tensors -> dict of floats, with one wait for the GPU instead of many."""
    return dict(zip(scalars, torch.stack(list(scalars.values())).tolist()))


def refuse_non_finite(values):
    """Raise NonFiniteLoss if a figure of a step is NaN or infinite."""
    if not all(map(math.isfinite, values.values())):
        figures = ', '.join(f'{name.split("/")[1]}={value:g}' for name, value in values.items())
        raise NonFiniteLoss(
            f'the loss or its gradient is not finite: {figures}; a smaller train.lr, or'
            ' compute.precision=fp32, may help; were the features changed on disk?'
            ' (python -m util.check_data looks at them)'
        )


def check_data_unchanged(run):
    """Raise DataError if a file of features was changed since the run began.

    Images are read anew each time, and need no such check.
    """
    val = [each.visuals.dataset.source for each in eval_sets(run.loaders, 'val')]
    for source in (run.loaders['train'].dataset.source, *val):
        if hasattr(source, 'check_unchanged'):
            source.check_unchanged()


def run_log(run):
    """The RunLog of a run that goes on after its last finished epoch."""
    return RunLog(run.folder, epoch=run.schedule.epoch, steps=len(run.loaders['train']))


def speed(run, started, trained):
    """Times, samples/s and memory of an epoch that began at `started`, and was `trained` then."""
    return {
        'train_seconds': trained - started,
        'val_seconds': time.monotonic() - trained,
        'samples_per_s': run.loaders['train'].dataset_size / (trained - started),
        'peak_memory_gib': peak_memory(run.device),
    }


# --------------------------------------------------------------------------------------- preparing


class Start(NamedTuple):
    """What a command line asks for, checked without reading any data: see `check_start`."""

    config: Config
    rootpath: Path
    folder: Path  # the run folder
    last: Path | None  # its last.pt, where a run goes on
    other_data: bool = False  # it may go on with other data


def check_start(args):
    """Check what can be wrong before any data are read: devices, run folder, missing files.

    Args:
        args: of basic.arguments.training_arguments.
    Returns:
        Start.
    Raises:
        ValueError: (ConfigError, DataError) something that the user can put right; says what.
    """
    config, rootpath = args.config, Path(os.path.abspath(args.rootpath))
    runtime.choose_devices(args.device)
    folder = folder_of(args)
    last = run_folder.check_run_folder(
        folder, config_to_dict(config), resume=args.resume, overwrite=args.overwrite
    )
    splits = ['train', 'val'] if args.no_test else ['train', 'val', 'test']
    Collection(config, rootpath).check_files(splits)
    return Start(config, rootpath, folder, last, args.other_data)


def prepare(start, device, held=None):
    """From a Start to a Run that is ready for its next epoch.

    Args:
        start: of `check_start`.
        device: this process's torch.device.
        held: basic.run_folder.RunFolder, in the process that writes.
    Raises:
        ValueError: (ConfigError, DataError, CheckpointError, Locked) something that the user can
            put right; says what.
    """
    seed = start.config.train.seed
    runtime.set_precision(start.config.compute.precision)
    runtime.seed_everything(seed)
    checkpoint = load_checkpoint(start.last) if start.last else None
    config, tokenizer, model, loaders = assemble(
        start.config,
        start.rootpath,
        splits=('train', 'val'),
        device=device,
        checkpoint=checkpoint,
        tokenizer=str(start.folder / run_folder.TOKENIZER) if checkpoint else None,
    )
    distributed.broadcast_module(model)
    optimizer, discriminator_optimizer = build_optimizers(model, config)
    run = Run(
        config=config,
        rootpath=start.rootpath,
        folder=start.folder,
        device=device,
        loaders=loaders,
        model=model,
        criterion=build_loss(config),
        optimizer=optimizer,
        discriminator_optimizer=discriminator_optimizer,
        schedule=build_schedule(config, steps=len(loaders['train'])),
        teacher=build_teacher(config, model),
        data=fingerprint.data_fingerprint(loaders),
    )
    if checkpoint:
        training = training_of(checkpoint)
        if not start.other_data:
            check_same_data(training.get('data'), run.data, run.folder)
        restore_training_state(run, training)
        run.kept = run.schedule.epoch
    else:
        # The processes have the same weights, but each draws its own dropout.
        runtime.seed_everything(seed + SEED_STEP * distributed.rank())

    distributed.wait_for_all()  # before anything changes that another process still looks at
    if held:
        held.open()
    if distributed.is_main():
        open_run_folder(run, tokenizer, fresh=checkpoint is None)
    return run


def build_optimizers(model, config):
    """Adam of encoders and projections, and Adam of the discriminator; one kernel each."""
    return (
        torch.optim.Adam(
            model.parameter_groups(lr=config.train.lr, bert_lr=config.train.bert_lr), fused=True
        ),
        torch.optim.Adam(
            model.discriminator.parameters(),
            lr=config.discriminator.lr,
            betas=(0.9, 0.999),
            fused=True,
        ),
    )


def check_same_data(before, now, folder):
    """Raise DataError, naming what differs, unless a run goes on with the data that it began with.

    Args:
        before: of basic.fingerprint, as last.pt has it; None in one of an older version.
        now: the same, of the data at hand.
        folder: the run's.
    """
    different = fingerprint.changes(before, now) if before else []
    if different:
        raise DataError(
            f'cannot resume {folder}: the data are not those that it was trained on '
            f'({"; ".join(different)}): put them back, or start a run of its own with name=NAME; '
            '--other-data goes on all the same'
        )


def folder_of(args):
    """The run folder that a command line names, or else the default one."""
    if args.run_dir:
        return Path(os.path.abspath(args.run_dir))
    return default_run_folder(args.config, Path(os.path.abspath(args.rootpath)))


def default_run_folder(config, rootpath):
    """ROOT/<collection>/runs/<config>_<lang>[_noise_<rate>]/seed_<n>; for several languages, <lang>
    is such as de+fr."""
    noise = f'_noise_{config.data.noise:g}' if config.data.noise else ''
    name = f'{config.name}_{"+".join(languages(config))}{noise}'
    return Collection(config, rootpath).folder / 'runs' / name / f'seed_{config.train.seed}'


def open_run_folder(run, tokenizer, *, fresh):
    """Clear the run's folder if it is a fresh run, write down how it starts, and say so."""
    folder = run.folder
    if fresh:
        run_folder.set_aside(folder)  # not before everything else has been found to be in order
        save_tokenizer(tokenizer, folder / run_folder.TOKENIZER)
    else:
        run_folder.remove_leftovers(folder)
        run_folder.keep_best(folder, run.schedule.best_epoch)
        if run.unfinished:
            run_folder.remove_reports(folder)  # they are of a shorter training
    start = run_folder.describe_start(
        rootpath=run.rootpath, device=run.device, model=run.model, processes=distributed.size()
    )
    start['data'] = run.data
    start['left_out'] = {
        split: loader.left_out.counts() for split, loader in run.loaders.items() if loader.left_out
    }
    finished, epochs = run.schedule.epoch, run.config.train.epochs
    run_folder.record_start(folder, start, config_to_dict(run.config), resumed_after=finished)
    print(
        f'{"training" if fresh else f"resuming after epoch {finished}"}:'
        f' {run.loaders["train"].dataset_size:,} caption pairs, {start["parameters"]["trained"]:,}'
        f' trained parameters\nat most {epochs} epoch{"s" * (epochs > 1)} on {start["device"]}\n'
        f'run folder {folder}',
        flush=True,
    )


# -------------------------------------------------------------------------------- saving, resuming


def save(run, name, *, epoch, val, **more):
    """Write a checkpoint into the run's folder, in one process of several.

    Args:
        more: `choice` (of w) in that of the best model, `training` (to resume) in last.pt.
    """
    if not distributed.is_main():
        return
    content = {
        'config': config_to_dict(run.config),
        'architecture': run.model.architecture,
        'model': run.model.state_dict(),
        'epoch': epoch,
        'val': val,
    }
    save_checkpoint(run.folder / name, {**content, **more})


def training_state(run):
    """What a continuation needs beside the weights, as plain tensors and plain data."""
    return {
        'optimizer': run.optimizer.state_dict(),
        'schedule': run.schedule.state_dict(),
        'discriminator_optimizer': run.discriminator_optimizer.state_dict(),
        'teacher': run.teacher.weights() if run.teacher else None,
        'data': run.data,
        'random': distributed.gather_objects(runtime.random_states(run.device)),  # of each process
    }


def restore_training_state(run, state):
    """Put a fresh run to where `training_state` was taken."""
    run.optimizer.load_state_dict(state['optimizer'])
    run.discriminator_optimizer.load_state_dict(state['discriminator_optimizer'])
    run.schedule.load_state_dict(state['schedule'])
    if run.teacher:
        run.teacher.restore(state['teacher'])
    rank = distributed.rank()
    if len(state['random']) == distributed.size():
        restored = runtime.restore_random_states(state['random'][rank], run.device)
    else:  # each process has another share now: nothing could continue exactly
        seed = run.config.train.seed + SEED_STEP * rank + run.schedule.epoch
        runtime.seed_everything(seed)
        restored = False
    if not restored and distributed.is_main():
        print(
            'note: other devices than before: dropout draws other numbers than it would have'
            ' without the interruption',
            flush=True,
        )


# -------------------------------------------------------------------------------- the command line


@command('train.py')
def main(argv=None):
    """The command line; returns the exit status, see basic.command; 1: the loss is not finite."""
    args = training_arguments(argv)
    words = sys.argv[1:] if argv is None else argv
    runtime.keep_logs_tidy()
    devices = runtime.choose_devices(args.device)
    if nothing_to_do(args):
        return 0
    if len(devices) > 1 and not distributed.launched():
        check_start(args)  # a mistake is told once, not by each process
        return distributed.launch(__file__, words, processes=len(devices))

    device = distributed.start(devices)
    with run_folder.RunFolder(folder_of(args)) if distributed.is_main() else nullcontext() as held:
        with advice(words):
            distributed.wait_for_all()  # until an interrupted replacement is settled
            run = prepare(check_start(args), device, held)
        with advice(words, run):
            train(run)
            if distributed.is_main() and not args.no_report:
                with noted(run_folder.CURVES), telling(f'drawing {run_folder.CURVES}', plain=False):
                    write_curves(run.folder)
            if not args.no_test:
                test(run, args.device, with_details=not args.no_report)
    distributed.stop()
    return 0


def nothing_to_do(args):
    """Whether --resume finds a run that is trained and tested; says so."""
    if not args.resume:
        return False
    folder = folder_of(args)
    finished = run_folder.is_finished(folder, args.config)
    if finished and distributed.is_main():
        report = run_folder.METRICS['test']
        print(f'nothing to do: {folder} is finished and tested, see {report}')
    return finished


def test(run, device, *, with_details=True):
    """Test the best model, show and write the result; delete last.pt, unless it is to be kept."""
    finished = not run.unfinished
    release(run)
    distributed.wait_for_all()  # until the best model is written
    report = evaluate_checkpoint(
        run.folder,
        rootpath=run.rootpath,
        device=device,
        with_details=with_details,
        overrides=changeable(run.config),
    )
    if not distributed.is_main():
        return
    show_test(run.folder, report, table(report))
    print(table(report))
    print(f'written: {written(report, write_report(report, own=True))}')
    if finished and not run.config.train.keep_last:
        (run.folder / LAST).unlink(missing_ok=True)
    print(f'next: tensorboard --logdir {shlex.quote(str(run.folder.parent))}')
    print(result_line(report))


def release(run):
    """Free what only training needs: the test builds a model of its own on the same device."""
    run.model = run.optimizer = run.discriminator_optimizer = run.teacher = None
    run.loaders = {}
    gc.collect()  # modules and their hooks refer to each other


def changeable(config):
    """The options that --resume may change, as key=value.

    The best model's checkpoint may hold other values: those of before the continuation.
    """
    tree = flatten(config_to_dict(config))
    return [f'{key}={json.dumps(tree[key])}' for key in run_folder.MAY_DIFFER]


@contextmanager
def advice(words, run=None):
    """Add to an error what helps, and how to go on after it, in the user's words.

    Args:
        words: of the command line.
        run: Run; None before it is prepared.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, ValueError | NonFiniteLoss):  # it says itself what to do
            raise
        if is_out_of_memory(error):
            error.add_note(
                'compute.micro_batch=16 (pairs encoded at once; the losses stay those of the whole'
                ' batch) and compute.checkpointing=true need less memory, compute.score_memory=256'
                ' and a smaller eval.val_batch_size less in validation; a smaller train.batch_size'
                ' is another training, with fewer negatives'
            )
        if killed_worker(error):
            error.add_note('a smaller train.workers needs less memory')
        kept = f'epochs finished and kept: {run.kept}, in {run.folder}' if run else ''
        # Before a first epoch is kept, --overwrite has put the older run back.
        anew = run is None or not run.kept and '--overwrite' in words
        again = typed(words) if anew else typed(words, '--resume', without=('--overwrite',))
        error.add_note(f'{kept or "nothing was changed"}. To go on:\n  {again}')
        raise


if __name__ == '__main__':
    distributed.leave(main())
