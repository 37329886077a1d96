"""Whether model and tokenizer belong together, and the model's own parts."""
from __future__ import annotations

from collections.abc import Iterator

from ...nn.heads import VocabularyHead
from ...text import Tokenizer
from ...training.diagnose import check_weights
from .finding import Finding, Tried
from .patient import Patient

ROLES = ("pad", "bos", "eos", "cls", "sep", "mask")
SPARE = 0.05        # of the rows of a table: more than rounding up to a multiple of 64 or 128 leaves
UNKNOWN = 0.1       # of the tokens of the data
SOME = 200          # texts


def weights(p: Patient) -> Iterator[Finding]:
    say = Tried("weights", "every parameter for NaN and infinity")
    try:
        check_weights(p.own)
    except ValueError as e:
        seen, _, do = str(e).partition("; ")
        yield say.wrong(seen, do)
    else:
        yield say.ok("all are finite")


def vocabulary(p: Patient) -> Iterator[Finding]:
    say = Tried("vocabulary", "the tokenizer's ids against the token table, the special ids of the config, and the tokenizer saved with the model")
    n, rows, faults = p.tok.vocab_size, p.own.config.vocab_size, list(other_specials(p))
    if n > rows:
        faults.append(f"the tokenizer has {n:,} tokens and the token table {rows:,} rows")
    if moved := moved_tokens(p):
        faults.append(moved)
    if faults:
        yield say.wrong("; ".join(faults), "use the tokenizer that the model was made with; for tokens that were added since, model.resize_vocabulary"
                        f"({n}), and write the special ids into the config")
    elif n < (1 - SPARE) * rows:
        yield say.note(f"the tokenizer has {n:,} tokens and the token table {rows:,} rows", "make sure that this tokenizer is the model's")
    else:
        yield say.ok(f"{n:,} tokens for {rows:,} rows")
    yield from unknown(p)


def other_specials(p: Patient) -> Iterator[str]:
    for role in ROLES:
        wanted, mine = p.own.source_config.get(f"{role}_token_id"), getattr(p.tok, f"{role}_id")
        if wanted is not None and mine is not None and mine not in (wanted if isinstance(wanted, list) else [wanted]):
            yield f"{role} is {mine} in the tokenizer and {wanted} in the config"


def moved_tokens(p: Patient) -> str | None:
    """What differs from the tokenizer beside the weights, if there is one: the ids of tokens that both have, or the tokens themselves."""
    source = "" if p.own.load_report is None else p.own.load_report.source
    try:
        saved = Tokenizer.from_pretrained(source)
    except ValueError:
        return None
    moved = [token for token, i in p.tok.vocab.items() if saved.vocab.get(token) != i and i < p.own.config.vocab_size]
    added = [token for token in moved if token not in saved.vocab and p.tok.vocab[token] >= saved.vocab_size]
    wrong = len(moved) - len(added)
    return f"{wrong:,} of {len(p.tok.vocab):,} tokens have another id than in the tokenizer saved with {source}" if wrong else None


def unknown(p: Patient) -> Iterator[Finding]:
    if p.tok.unk_id is None or (p.corpus is None and not p.training):
        return
    ids = [i for row in p.tok.encode_batch(p.texts[:SOME]) for i in row]
    say, n = Tried("unknown tokens", f"{len(ids):,} tokens of {min(SOME, len(p.texts))} texts"), ids.count(p.tok.unk_id)
    yield say.of_share(n, len(ids), f"{n} are unknown", "use a tokenizer that was made on such text, or mend its encoding: what is unknown cannot be told apart", UNKNOWN)


def tied(p: Patient) -> Iterator[Finding]:
    """A head that shares the body's token table has to share it still, after whatever was done to either."""
    table = p.own.embed.tokens.weight
    for name, head in p.own.named_modules():
        if not isinstance(head, VocabularyHead):
            continue
        say = Tried("tied weights", f"the output matrix of {name} against the token table")
        if p.own.config.tied and head.matrix is not table:
            yield say.wrong("the config ties them, and they are two tensors: the one of the head will be neither trained with the body nor saved",
                            "after a table was put in place by hand, head.tokens = [model.embed.tokens]; to change its size use model.resize_vocabulary(n)")
        elif len(head.matrix) != len(table):
            yield say.wrong(f"{len(head.matrix):,} outputs for a table of {len(table):,} rows", f"call model.resize_vocabulary({len(table)}), which changes both")
        else:
            yield say.ok("one tensor" if head.matrix is table else "two tensors, as the config says")
