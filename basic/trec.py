"""A test as TREC run and qrels files, for other people's evaluation tools.

    PREFIX.t2v.run   <query> Q0 <item> <rank> <score> <name>, the best items first
    PREFIX.t2v.qrels <query> 0 <item> 1, the right items of each query
    PREFIX.v2t.run, PREFIX.v2t.qrels

A caption's name is its id, '<visual id>#<n>'; a visual item's its own id. In v2t a visual item is a
query with one right caption or more; items without captions are no queries.

trec_eval and pytrec_eval do not read the ranks: they sort by score, in single precision, and equal
scores by name. So scores here are strictly falling: each is the fused score, or, where it would not
be below the one before, the next smaller number. Wrong items come before right ones of the same
score, which is `eval.ties=pessimistic`. Then R@K is their success_K, and mAP their map; a tool that
does not count queries without results must still read qrels of all of them.
"""

from pathlib import Path

import numpy as np

from basic.arguments import DEPTH
from basic.files import write_atomically


def write_trec(prefix, scoring, eval_set, weight, *, depth=DEPTH, name='nrccr', progress=None):
    """Write the four files of one language.

    Args:
        prefix: path that their names begin with.
        scoring: basic.scoring.Scoring, counted.
        eval_set: data_provider.EvalSet.
        weight: w.
        depth: most items of a query in the run files; 0: all.
        name: of the run; white space in it becomes _.
        progress: function of (queries done, of all queries of both directions).
    Returns:
        list of the paths.
    """
    visual_of = np.asarray(eval_set.visual_of)
    captions, visuals = eval_set.caption_ids, eval_set.visual_ids
    owners = [visuals[item] for item in visual_of]
    name, paths, done = '_'.join(name.split()), [], 0
    of = len(captions) + len(np.unique(visual_of))
    for way, queries, items in (('t2v', captions, visuals), ('v2t', visuals, captions)):
        lists = scoring.ranked(weight, depth or len(items), v2t=way == 'v2t')

        def write_run(file, lists=lists, queries=queries, items=items):
            nonlocal done
            for query, found, scores, _ in lists:
                lines = run_lines(queries[query], [items[i] for i in found.tolist()], scores, name)
                file.write(lines.encode('utf-8'))
                done += 1
                if progress:
                    progress(done, of)

        pairs = zip(captions, owners) if way == 't2v' else zip(owners, captions)
        lines = ''.join(f'{query} 0 {item} 1\n' for query, item in pairs)
        for ending, content in (('run', write_run), ('qrels', lines)):
            paths.append(Path(f'{prefix}.{way}.{ending}'))
            write_atomically(paths[-1], content)
    return paths


def run_lines(query, items, scores, name):
    """The lines of a query in a run file; scores: (n,) tensor, falling."""
    values = strictly_falling(scores.float().numpy()).tolist()
    return ''.join(
        f'{query} Q0 {item} {rank} {score:.9g} {name}\n'
        for rank, (item, score) in enumerate(zip(items, values), 1)
    )


def strictly_falling(scores):
    """Falling float32 numbers; one that equals the one before becomes the next smaller number."""
    bits = scores.view(np.int32).astype(np.int64)
    # Whole numbers in the same order, neighbours where the float32 are neighbours.
    whole = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    steps = np.arange(len(whole))
    whole = np.minimum.accumulate(whole + steps) - steps
    bits = np.where(whole < 0, -whole | 0x80000000, whole)
    return bits.astype(np.uint32).view(np.float32)
