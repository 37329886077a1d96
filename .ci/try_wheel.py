"""The wheel without extras: import, load a bundled checkpoint, tune it, save it, predict from the folder."""
import importlib.util
import tempfile
from pathlib import Path

import minitransfer as mt

for extra in ("transformers", "peft", "sklearn", "matplotlib"):
    assert importlib.util.find_spec(extra) is None, f"{extra} is here: this environment is not empty"

package = Path(mt.__file__).parent
assert (package / "kernels" / "README.md").is_file() and (package / "checkpoints" / "mini-bert" / "model.safetensors").is_file()
assert not (package.parent / "tests").exists(), "tests are in the wheel"

tok, model = mt.Tokenizer.from_pretrained("mini-gpt"), mt.Model.from_pretrained("mini-gpt")
ids = tok(["The old man"])["input_ids"]
assert mt.generate(model, ids, max_new_tokens=5).shape == (1, ids.shape[1] + 5)

tok, model = mt.Tokenizer.from_pretrained("mini-bert"), mt.Model.from_pretrained("mini-bert")
with tempfile.TemporaryDirectory() as folder:
    rows = mt.samples.path("reviews.train.tsv")
    result = mt.finetune(model, tok, train=rows, validation=mt.samples.path("reviews.validation.tsv"), strategy="lora", out=folder + "/run", epochs=1, progress=False)
    predictions = mt.predict(folder + "/run/model", texts=["What a wonderful evening.", "A complete waste of money."])
print("the wheel works alone:", result.metrics, [p.label for p in predictions])
