"""The masked-token draw: the kernel's ids are those of plain PyTorch, shares lie within binomial bounds, special tokens stay."""
import pytest
import torch

from minitransfer.ops import mask_tokens, token_kinds
from minitransfer.ops.mask_tokens import reference
from minitransfer.ops.philox import philox

from . import harness
from .harness import guarded, guards, planted, took_kernel, turns

VOCABULARY, MASK = 1009, 4
SPECIALS = torch.arange(VOCABULARY) < 5
INSIDES = torch.arange(VOCABULARY) % 3 == 0


def case(rows=7, columns=97, seed=0, device="cpu", words=False):
    """input_ids, keep, kinds, ordinary: texts with special tokens in them and padding behind them."""
    new = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (rows, columns), generator=new)
    ids[torch.rand(rows, columns, generator=new) < 0.1] = 1
    keep = torch.arange(columns) < torch.randint(1, columns + 1, (rows, 1), generator=new)
    return [guarded(t.to(device)) for t in (ids, keep, token_kinds(SPECIALS, INSIDES if words else None), (~SPECIALS).nonzero()[:, 0])]


def drawn(given, probability=0.3, random=(1234567890123456789, 7), by=mask_tokens):
    with guards():
        return by(*given, MASK, probability, guarded(torch.tensor(random).to(given[0].device)))


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("rows, columns, probability", [(7, 97, 0.3), (1, 1, 1.0), (3, 263, 1.0), (5, 31, 1e-9)])
def test_the_same_ids_on_every_device(rows, columns, probability, words, device):
    given = case(rows, columns, rows, device, words)
    for random in ((0, 0), (2**62 - 1, 2**61 + 12345)):
        for keep in (given[1], None):
            some = [given[0], keep, *given[2:]]
            ours, plain = drawn(some, probability, random), drawn([None if t is None else t.cpu() for t in some], probability, random, reference)
            assert took_kernel("mask_tokens") and all(torch.equal(a.cpu(), b) for a, b in zip(ours, plain, strict=True))


def test_philox_in_torch():
    """Random123's known answers, and the tests' own Philox."""
    for seed, counter, stream in ((0, 0, 0), (-1, -1, -1), (0x1234567890ABCDE, 2**40 + 5, 0x7654321FEDCBA98)):
        assert torch.equal(philox(*(torch.tensor(n) for n in (seed, counter, stream))), harness.philox(seed, counter, stream))


def share_of(count, n, p):
    """A count of n draws with probability p is within five deviations of its mean."""
    assert abs(count - n * p) <= 5 * (n * p * (1 - p))**0.5, f"{count} of {n}, {n * p:.0f} expected"


def test_shares():
    given = case(rows=61, columns=997)
    ids, (inputs, labels) = given[0], drawn(given, 0.15)
    chosen, ordinary = labels != -100, given[1] & ~SPECIALS[ids]
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(inputs[~chosen], ids[~chosen]) and not (chosen & ~ordinary).any()
    n = int(chosen.sum())
    share_of(n, int(ordinary.sum()), 0.15)
    share_of(int((inputs[chosen] == MASK).sum()), n, 0.8)
    changed = inputs[chosen & (inputs != MASK) & (inputs != ids)]
    share_of(len(changed), n, 0.1 * (1 - 1 / (VOCABULARY - 5)))
    assert not SPECIALS[changed].any()
    share_of(int((changed < VOCABULARY // 2).sum()), len(changed), (VOCABULARY // 2 - 5) / (VOCABULARY - 5))
    other = drawn(given, 0.15, (1234567890123456789, 8))[1]
    share_of(int(((other != -100) & chosen).sum()), n, 0.15)                     # steps have nothing in common


def test_one_draw_for_a_word():
    """The first piece of a word decides for those behind it: 10 starts a word, 12 is inside one, 1 is special."""
    ids = torch.tensor([[10, 12, 12, 10, 1, 12, 12, 10, 12]]).repeat(512, 1)
    given = [ids, None, token_kinds(SPECIALS, INSIDES), (~SPECIALS).nonzero()[:, 0]]
    chosen = drawn(given, 0.5)[1] != -100
    for word in ([0, 1, 2], [5, 6], [7, 8]):
        assert (chosen[:, word] == chosen[:, word[:1]]).all()
    share_of(int((chosen[:, 0] == chosen[:, 3]).sum()), 512, 0.5)
    share_of(int((chosen[:, 3] == chosen[:, 5]).sum()), 512, 0.5)
    assert not chosen[:, 4].any()


def test_the_order_of_threads_and_blocks_changes_no_id(emulator):
    first = drawn(case(words=True))
    for order in (1, 2):
        with turns(order):
            assert all(torch.equal(a, b) for a, b in zip(drawn(case(words=True)), first, strict=True))


def test_an_id_that_the_vocabulary_lacks_is_never_chosen(device):
    given = case(3, 97, device=device)
    given[0][0, 5], given[0][2, 7] = 2**40, -1
    inputs, labels = drawn([given[0], None, *given[2:]], 1.0)
    assert inputs[0, 5] == 2**40 and inputs[2, 7] == -1 and labels[0, 5] == labels[2, 7] == -100 and took_kernel("mask_tokens")


@pytest.mark.parametrize("old, new, message", [
    ("at >= n", "at > n", "bad memory access"),
    ("id < 0 || id >= vocabulary", "id < 0", "bad memory access"),
    ("if (here == SPECIAL) break;", "", "other ids"),
    ("EIGHT_TENTHS 3435973837u", "EIGHT_TENTHS 3221225472u", "other ids"),
])
def test_planted_faults_are_noticed(old, new, message, emulator):
    given = case(11, 263, words=True)
    with planted("mask_tokens.cu", old, new), pytest.raises((RuntimeError, AssertionError), match=message):
        ours, plain = drawn(given, 0.5), drawn(given, 0.5, by=reference)
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True)), "other ids"
        given[0][:] = 2**40
        drawn([given[0], None, *given[2:]])


@pytest.mark.parametrize("probability", [0.0, 1.01, -0.1, float("nan")])
def test_a_share_that_is_none(probability):
    with pytest.raises(ValueError, match=f"probability={probability}; .*: give a number above 0, up to 1"):
        drawn(case(2, 7), probability)
