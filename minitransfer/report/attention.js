for (const view of document.querySelectorAll(".attention:not([data-ready])")) {
  view.dataset.ready = "yes";
  const weights = Uint8Array.from(atob(view.dataset.weights), c => c.charCodeAt(0)), heads = Number(view.dataset.heads);
  const tokens = [...view.querySelectorAll(".token")], n = tokens.length, said = view.querySelector(".said");
  const [layer, head] = view.querySelectorAll("select");
  let from = Number(view.dataset.from);
  const weight = (h, to) => weights[((Number(layer.value) * heads + h) * n + from) * n + to] / 255;
  const all = [...Array(heads).keys()];
  const show = () => {
    const chosen = head.value === "mean" ? all : [Number(head.value)];
    const seen = tokens.map((_, to) => chosen.reduce((sum, h) => sum + weight(h, to), 0) / chosen.length);
    tokens.forEach((token, i) => { token.style.setProperty("--w", seen[i]); token.classList.toggle("from", i === from); });
    const most = [...seen.keys()].sort((a, b) => seen[b] - seen[a]).slice(0, 4);
    said.textContent = `“${tokens[from].textContent}” looks at ` + most.map(i => `${tokens[i].textContent} ${Math.round(100 * seen[i])} %`).join(", ");
  };
  for (const [i, token] of tokens.entries())
    for (const event of ["pointerover", "focus", "click"]) token.addEventListener(event, () => { from = i; show(); });
  for (const choice of [layer, head]) choice.addEventListener("change", show);
  show();
}
