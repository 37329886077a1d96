"""Models of llama2.c become the standard layout: a real one tells the story it is known for, and a damaged file is refused."""
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import minitransfer as mt
from minitransfer.weights.convert import convert
from minitransfer.weights.llama2c import halves

SIZES = (12, 7, 2, 3, 1, 300, 11)           # dim hidden layers heads kv_heads vocab length
BYTES = [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
START = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0), *BYTES]


def shapes(dim, hidden, layers, heads, kv_heads, vocab, length, tied):
    kv, angles = kv_heads * dim // heads, [(length, dim // heads // 2)] * 2
    attention, mlp = [(layers, dim), (layers, dim, dim), (layers, kv, dim), (layers, kv, dim), (layers, dim, dim)], [(layers, dim), (layers, hidden, dim), (layers, dim, hidden)]
    return [(vocab, dim), *attention, *mlp, (layers, hidden, dim), (dim,), *angles, *([] if tied else [(vocab, dim)])]


def write_model(path: Path, tied: bool = True, sizes: tuple = SIZES) -> list[np.ndarray]:
    """A file of random weights, and its arrays."""
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=shape).astype("<f4") for shape in shapes(*sizes, tied)]
    signed = (*sizes[:5], sizes[5] if tied else -sizes[5], sizes[6])
    path.write_bytes(struct.pack("<7i", *signed) + b"".join(array.tobytes() for array in arrays))
    return arrays


def write_pieces(path: Path, pieces: list[tuple[bytes, float]]) -> None:
    path.write_bytes(struct.pack("<i", 7) + b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces))


def pieces_of(path: Path) -> list[tuple[bytes, float]]:
    data, at, found = path.read_bytes(), 4, []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        found.append((data[at + 8 : at + 8 + length], score))
        at += 8 + length
    return found


def encoded(text: str, pieces: list[tuple[bytes, float]]) -> list[int]:
    """llama2.c's own algorithm, step by step: of all neighbours the best-scoring piece is joined, the first of equals."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    tokens = [ids[b" "]]
    for one in text:
        tokens += [ids[one.encode()]] if one.encode() in ids else [byte + 3 for byte in one.encode()]
    while True:
        joined = [(pieces[i][1], -at, i) for at in range(len(tokens) - 1) if (i := ids.get(pieces[tokens[at]][0] + pieces[tokens[at + 1]][0])) is not None]
        if not joined:
            return [1, *tokens]
        _, at, i = max(joined)
        tokens[-at : -at + 2] = [i]


@pytest.fixture(scope="module")
def stories(data, tmp_path_factory):
    """The real model, converted, and what is known of it."""
    source, folder = data / "weights" / "stories260K", tmp_path_factory.mktemp("stories") / "260K"
    convert(source, folder)
    return folder, source, json.loads((source / "reference.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_real_model_tells_its_story(stories):
    folder, _, known = stories
    model, tok = mt.Model.from_pretrained(folder), mt.Tokenizer.from_pretrained(folder)
    ids = known["greedy_ids_from_bos"]
    got = mt.generate(model, torch.tensor([[1]]), max_new_tokens=len(ids) - 1, precision="fp32")[0].tolist()
    assert got == ids and tok.decode(got) == known["greedy_text"]
    for prompt, best in (([1], known["top5_after_bos"]), (known["prompt_ids_once_upon_a_time"], known["top5_after_prompt"])):
        values, places = model(torch.tensor([prompt])).logits[0, -1].topk(5)
        assert places.tolist() == [i for i, _ in best] and torch.allclose(values, torch.tensor([value for _, value in best]), atol=2e-4)


def test_the_reference_library_reads_what_was_written(stories):
    folder, _, known = stories
    ids = torch.tensor([known["greedy_ids_from_bos"][:61]])
    with torch.no_grad():
        theirs = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()(ids).logits
        ours = mt.Model.from_pretrained(folder)(ids).logits
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert transformers.AutoTokenizer.from_pretrained(folder)(known["greedy_text"])["input_ids"] == known["greedy_ids_from_bos"]


def test_the_tokenizer_is_the_one_of_the_file(stories, data):
    folder, source, known = stories
    tok, pieces = mt.Tokenizer.from_pretrained(folder), pieces_of(source / "tok512.bin")
    assert tok.encode(known["greedy_text"]) == known["greedy_ids_from_bos"] and tok.encode("Once upon a time") == known["prompt_ids_once_upon_a_time"]
    lines = [line[:200] for line in (data / "tinystories_sample" / "sample.txt").read_text(encoding="utf-8").splitlines() if line][:20]
    for text in [*lines, "two  spaces", " one before", "\ttab\nline", "naïve café 😀 漢", "aaaaaaa hmmmmm"]:
        assert tok.encode(text) == encoded(text, pieces), text
        assert tok.decode(tok.encode(text)) == text


@pytest.mark.parametrize("tied", [True, False])
def test_every_array_is_in_its_place(tmp_path, tied):
    arrays = write_model(tmp_path / "a.bin", tied)
    convert(tmp_path / "a.bin", tmp_path / "new")
    model = mt.Model.from_pretrained(tmp_path / "new")
    tokens, norm_attn, q, k, v, o, norm_mlp, gate, down, up, norm, _, _, *unembed = (torch.from_numpy(array) for array in arrays)
    want = {"embed.tokens": tokens, "norm": norm} | ({} if tied else {"head.unembed": unembed[0]})
    for i in range(2):
        want |= {f"blocks.{i}.attn.{name}": one[i] for name, one in (("v_proj", v), ("o_proj", o))}
        want |= {f"blocks.{i}.mlp.{name}": one[i] for name, one in (("gate_proj", gate), ("down_proj", down), ("up_proj", up))}
        want |= {f"blocks.{i}.norm_attn": norm_attn[i], f"blocks.{i}.norm_mlp": norm_mlp[i]}
        want |= {f"blocks.{i}.attn.q_proj": q[i].reshape(3, 4, 12)[:, [0, 2, 1, 3]].reshape(12, 12), f"blocks.{i}.attn.k_proj": k[i][[0, 2, 1, 3]]}
    found = dict(model.named_parameters())
    assert found.keys() == {name + ".weight" for name in want} and all(torch.equal(found[name + ".weight"], value) for name, value in want.items())
    assert model.config.tied == tied and not (tmp_path / "new" / "tokenizer.json").exists()


def test_neighbours_become_halves():
    """Two heads of width 6: x0 x2 x4 then x1 x3 x5."""
    assert halves(torch.arange(12.0)[:, None], 6)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def damaged(path: Path, how: str) -> None:
    write_model(path)
    whole = path.read_bytes()
    path.write_bytes({
        "cut off": whole[:-4], "longer": whole + b"\0", "lying": struct.pack("<7i", 12, 7, 1000, 3, 1, 300, 11) + whole[28:], "short": whole[:20],
        "later": b"24ka" + whole, "heads": struct.pack("<7i", 12, 7, 2, 5, 1, 300, 11) + whole[28:], "NaN": whole[:28] + struct.pack("<f", np.nan) + whole[32:]}[how])


@pytest.mark.parametrize("how, message", [
    ("cut off", r"a\.bin has [\d,]+ bytes; the model of its header \(2 layers, 12 wide, 300 tokens, 11 positions\) needs [\d,]+: it is cut off or another kind"),
    ("longer", r"it is cut off or another kind of file, fetch it again"), ("lying", r"\(1000 layers, .* needs [\d,]+: it is cut off"),
    ("short", r"was not written by torch\.save"), ("heads", r"was not written by torch\.save"),
    ("later", r"a later version of llama2\.c's format; version 0 is read: export the model again"), ("NaN", r"embed\.tokens in .* NaN or infinite"),
], ids=["cut off", "longer", "lying", "short", "heads", "later", "NaN"])
def test_a_damaged_file_is_refused_and_nothing_is_written(tmp_path, how, message):
    damaged(tmp_path / "a.bin", how)
    with pytest.raises(ValueError, match=message) as error:
        convert(tmp_path / "a.bin", tmp_path / "new")
    assert "\n" not in str(error.value) and {path.name for path in tmp_path.iterdir()} == {"a.bin"}


def test_one_model_at_a_time(tmp_path):
    for name in ("a.bin", "b.bin"):
        write_model(tmp_path / name)
    with pytest.raises(ValueError, match=r"has a\.bin, b\.bin; one model is converted at a time: give one of these files"):
        convert(tmp_path, tmp_path / "new")


MORE = [(chr(ord("A") + i).encode(), -float(i)) for i in range(40)] + [(b" ", -40.0)]


@pytest.mark.parametrize("pieces, message", [
    ([*START, *MORE[:-1]], r"tokenizer\.bin holds 299 whole pieces in its [\d,]+ bytes; the model beside it has 300 tokens"),
    ([*START, *MORE[:-1], (b"\xff", 0.0)], r"is not UTF-8"), ([*START[:-1], (b"x", 0.0), *MORE], r"are not <unk>, <s>, </s>, 256 bytes and others"),
    ([*START, *MORE[:-1], (b"A", 0.0)], r"each once")], ids=["fewer", "not UTF-8", "a byte missing", "twice"])
def test_a_damaged_tokenizer_is_refused_and_nothing_is_written(tmp_path, pieces, message):
    write_model(tmp_path / "a.bin")
    write_pieces(tmp_path / "tokenizer.bin", pieces)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    write_pieces(tmp_path / "tokenizer.bin", [*START, *MORE])
    convert(tmp_path, tmp_path / "new")
    (tmp_path / "tokenizer.bin").write_bytes((tmp_path / "tokenizer.bin").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"holds 299 whole pieces .* it is cut off or belongs to another model, fetch it again"):
        convert(tmp_path, tmp_path / "newer")
