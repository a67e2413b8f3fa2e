"""Several processes that train as one: each holds a share of every batch, all see the whole.

One process per GPU (or share of the CPU), started by torchrun, on one node or on several: devices
are numbered on each node, shares over all nodes. Every process computes the loss of the whole batch
from gathered embeddings, so that negatives, batch norm, the distillation's softmax and the
discriminator are those of one process with the whole batch. A gathered row's gradient is complete
where the row comes from; a parameter's is a sum over the processes, which `sum_gradients` adds up.
Alone, everything here does nothing.

N rows of the global batch, E features.
"""

import atexit
import logging
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain, zip_longest

import torch
from torch import distributed
from torch.distributed import ReduceOp

from basic.command import TYPED, Killed, typed

GRACE = 10  # seconds that a process waits for the message of another
PATIENCE = timedelta(minutes=10)  # how long a process waits for another before it gives up
WHILE_CACHING = timedelta(hours=12)  # ... while another may make a cache of images: `patiently`
# How gloo, NCCL and their store say that another process is no longer there.
PEER_GONE = (
    'by peer',
    'remote peer',
    'remote process exited',
    'communicator was aborted',
    'Broken pipe',
    'Socket closed',
    'pair closure',
    'Timed out waiting',
    'Connection was likely closed',
)


def launched():
    """True in a process that torchrun started as one of several."""
    return 'TORCHELASTIC_RUN_ID' in os.environ


def launch(script, arguments, processes):
    """Run a script in several processes of this machine by torchrun, and wait for them.

    Where one fails, the others are stopped; what it printed is its own message. A signal to this
    process reaches all.

    Returns:
        the exit status: 0, or that of the process that failed first, or 128 + the signal's number.
    Raises:
        basic.command.Killed: one of them was killed from outside.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, torch.get_num_threads() // processes)))
    # for what the processes say about going on
    os.environ.setdefault(TYPED, typed(list(map(str, arguments))))
    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith('torch.distributed.elastic'):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # the process has said it better
    options = run.parse_args(
        ['--standalone', '--nproc-per-node', str(processes), str(script), *map(str, arguments)]
    )

    def stop_all(number, _):  # as torchrun does for other signals, and not for this one
        raise SignalException(f'signal {number}', sigval=signal.Signals(number))

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, stop_all)
    try:
        run.run(options)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise Killed(f'process {number}', -failure.exitcode) from None
        return failure.exitcode or 1
    except SignalException as error:
        return 128 + int(error.sigval)
    except KeyboardInterrupt as error:
        return 128 + getattr(error, 'number', signal.SIGINT)
    return 0


def _watch_the_launcher():
    """End this process soon after the one that started it is gone, which cannot stop it any
    more."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        if os.environ['RANK'] == '0':
            print('the process that started this one is gone: stopped', file=sys.stderr, flush=True)
        os._exit(1)  # the main thread may be waiting for another process, deaf to exceptions

    threading.Thread(target=watch, daemon=True).start()


def start(devices):
    """Join the other processes, if there are any; the device of this one.

    Args:
        devices: list of torch.device, one for each process of this node.
    Raises:
        ValueError: not as many devices as processes.
    """
    processes = int(os.environ['LOCAL_WORLD_SIZE']) if launched() else 1
    if len(devices) != processes:
        raise ValueError(
            f'{processes} process{"es" * (processes > 1)} and {len(devices)} devices: each process'
            ' needs one. On one machine omit torchrun: the command starts them itself. On several'
            ' nodes --nproc-per-node is the number of devices in --device.'
        )
    device = devices[int(os.environ['LOCAL_RANK']) if launched() else 0]
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    if not launched():
        return device
    sys.excepthook = _after_the_first
    _watch_the_launcher()
    if not distributed.is_initialized():
        on_gpu = device.type == 'cuda'
        distributed.init_process_group(
            'nccl' if on_gpu else 'gloo', timeout=PATIENCE, device_id=device if on_gpu else None
        )
    return device


def stop():
    """Leave the other processes, all being done."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def leave(status):
    """End the program, as sys.exit does; one of several processes without taking the interpreter
    apart.

    There a thread of gloo's can abort the process when all its work is done: seen once on a busy
    machine, as "terminate called without an active exception" and exit status 134.
    """
    if launched():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def after_process_0():
    """Give process 0 a start with an error message that all of them may have: when it ends, this
    one is stopped."""
    if launched() and os.environ['RANK'] != '0':
        time.sleep(GRACE)


def _after_the_first(kind, error, trace):
    """An excepthook: a process that fails because another one went away lets that one's message be
    the only one."""
    if peer_went_away(error):
        time.sleep(3 * GRACE)  # on the same node torchrun stops this process long before
        error.add_note(
            'another process of this run has ended, or did not answer for '
            f'{PATIENCE.total_seconds() / 60:.0f} minutes; its own output may say why'
        )
    sys.__excepthook__(kind, error, trace)


def peer_went_away(error):
    """Whether an error says that a process is gone, in gloo's, NCCL's or the store's words."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(
        words in str(error) for words in PEER_GONE
    )


def wait_for_all():
    """Return when every process has come here."""
    if size() > 1:
        distributed.barrier()


@contextmanager
def patiently():
    """Context manager for what may take one process hours: at its end the others wait for it."""
    if size() == 1:
        yield
        return
    group = distributed.new_group(backend='gloo', timeout=WHILE_CACHING)
    yield
    distributed.barrier(group)
    distributed.destroy_process_group(group)


def rank():
    """This process's number, from 0."""
    if distributed.is_initialized():
        return distributed.get_rank()
    return int(os.environ['RANK']) if launched() else 0  # not joined yet


def size():
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main():
    """True in the one process that writes, logs and shows."""
    return rank() == 0


def share(total, number=None, of=None):
    """The contiguous share of `total` rows that process `number` of `of` holds; near-equal, the
    first ones larger.

    Returns:
        slice.
    """
    number, of = rank() if number is None else number, size() if of is None else of
    least, more = divmod(total, of)
    start = number * least + min(number, more)
    return slice(start, start + least + (number < more))


def gather(x, total):
    """The global batch from every process's share, with a gradient for the own rows.

    Args:
        x: (own rows, ...) tensor, the process's `share(total)` of the batch.
        total: N.
    Returns:
        (N, ...), the same in every process; x itself where there is one process.
    """
    if size() == 1:
        return x
    return _Gather.apply(x, total)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, total):
        shares = [share(total, number, size()) for number in range(size())]
        ctx.own = shares[rank()]
        counts = [part.stop - part.start for part in shares]
        padded = x.new_zeros((max(counts), *x.shape[1:]))  # gloo gathers only equal shapes
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in shares]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx, gradient):
        # Every process has computed the same loss of the same N rows: the own rows' gradient is
        # already whole.
        return gradient[ctx.own], None


def sum_over_processes(x):
    """The sum of every process's x, as a new tensor.

    Backward, each process's use of the sum counts, so the gradients are summed too.
    """
    return _Sum.apply(x)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
        return gradient


def shared(parameter):
    """A parameter for use on gathered rows: every process computes the same gradient, its share is
    the size()-th part.

    So what `sum_gradients` adds up is the whole gradient once. The value is the parameter's own.
    """
    return (
        parameter if size() == 1 else parameter.detach() + (parameter - parameter.detach()) / size()
    )


def sum_gradients(parameters, bucket_mib=64):
    """Add up every parameter's gradient over the processes, in place, in buckets of one transfer
    each."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    bucket, held = [], 0
    for gradient in [*gradients, None]:
        if bucket and (
            gradient is None or held >= bucket_mib * 2**20 or gradient.dtype != bucket[0].dtype
        ):
            flat = torch.cat([part.flatten() for part in bucket])
            distributed.all_reduce(flat)
            for part, summed in zip(bucket, flat.split([part.numel() for part in bucket])):
                part.copy_(summed.view_as(part))
            bucket, held = [], 0
        if gradient is not None:
            bucket.append(gradient)
            held += gradient.numel() * gradient.element_size()


def broadcast_module(module):
    """Give every process the parameters and buffers of process 0."""
    if size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            distributed.broadcast(tensor.detach(), src=0)


def reduce_(tensor, how='sum'):
    """Sum, minimum or maximum (`sum`, `min`, `max`) over the processes, in place; returns the
    tensor."""
    if size() > 1:
        distributed.all_reduce(
            tensor, op={'sum': ReduceOp.SUM, 'min': ReduceOp.MIN, 'max': ReduceOp.MAX}[how]
        )
    return tensor


def gather_objects(thing):
    """A list of every process's plain data (or CPU tensors), the same in every process."""
    things = [thing] * size()
    if size() > 1:
        distributed.all_gather_object(things, thing)
    return things


def gather_batches(parts, device):
    """The rows of all batches in order, where process p of s has those of batches p, p + s, p + 2s
    and so on.

    Args:
        parts: list of (rows, ...) tensors on `device`, the own batches in order; may be empty.
        device: where the result is to be.
    Returns:
        (all rows, ...), the same in every process.
    """
    if size() == 1:
        return torch.cat(parts)
    layouts = [None] * size()
    distributed.all_gather_object(layouts, [(part.shape, part.dtype) for part in parts])
    counts = [[shape[0] for shape, _ in layout] for layout in layouts]
    shape, dtype = next(chain.from_iterable(layouts))
    padded = torch.zeros((max(map(sum, counts)), *shape[1:]), dtype=dtype, device=device)
    if parts:
        padded[: sum(map(len, parts))] = torch.cat(parts)
    everything = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(everything, padded)
    batches = [rows[: sum(count)].split(count) for rows, count in zip(everything, counts)]
    return torch.cat(
        [batch for turn in zip_longest(*batches) for batch in turn if batch is not None]
    )
