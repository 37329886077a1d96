"""What learners write in 02, and what the verdict has to say: name -> (answer, pattern) ..."""
from collections import Counter

import torch


def shortest(word, vocab):
    pieces, start = [], 0
    while start < len(word):
        end = next((end for end in range(start + 1, len(word) + 1) if ("##" if start else "") + word[start:end] in vocab), None)
        if end is None:
            return ["[UNK]"]
        pieces.append(("##" if start else "") + word[start:end])
        start = end
    return pieces


def partly_unknown(word, vocab):
    pieces, start = [], 0
    while start < len(word):
        end = next((end for end in range(len(word), start, -1) if ("##" if start else "") + word[start:end] in vocab), None)
        if end is None:
            return [*pieces, "[UNK]"]
        pieces.append(("##" if start else "") + word[start:end])
        start = end
    return pieces


def without_counts(words):
    pairs = Counter(pair for pieces in words for pair in zip(pieces, pieces[1:], strict=False))
    return max(pairs, key=lambda pair: (pairs[pair], pair)), words


def by_replacing(words):
    """Merges through a string: ('a', 'a', 'a') loses a piece."""
    pairs = Counter()
    for pieces, count in words.items():
        for pair in zip(pieces, pieces[1:], strict=False):
            pairs[pair] += count
    best = max(pairs, key=lambda pair: (pairs[pair], pair))
    return best, {tuple(p for i, p in enumerate("".join(best) if pieces[j:j + 2] == best else one for j, one in enumerate(pieces))
                        if not (i and pieces[i - 1:i + 1] == best)): count for pieces, count in words.items()}


def at_every_piece(word_ids, labels):
    return [-100 if word is None else labels[word] for word in word_ids]


def zeros(word_ids, labels):
    return [labels[word] if word is not None and word != before else 0 for before, word in zip([None, *word_ids], word_ids, strict=False)]


def always_right(rows, pad_id, padding_side):
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    return ids, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


def by_id(rows, pad_id, padding_side):
    width = max(map(len, rows))
    fill = [[pad_id] * (width - len(row)) for row in rows]
    ids = torch.tensor([[*row, *more] if padding_side == "right" else [*more, *row] for row, more in zip(rows, fill, strict=True)])
    return ids, (ids != pad_id).long()


WRONG = {
    "wordpiece": [(shortest, "became"), (partly_unknown, r"\['ab', '##c', '\[UNK\]'\]")],
    "merge": [(without_counts, "the pair is"), (by_replacing, "from the left, each once")],
    "align": [(at_every_piece, "the labels of"), (zeros, "the labels of")],
    "collate": [(always_right, "padded on the left"), (by_id, "torch.bool")],
}
