// Tables: a test set and a measure at a time; what the paper prints, unless the screen is narrow.
const narrow = matchMedia("(max-width: 600px)");
for (const table of document.querySelectorAll(".table")) {
  const cells = [...table.querySelectorAll("[data-measure]")];
  const printed = new Set(cells.filter(cell => !cell.hidden).map(cell => cell.dataset.measure));
  const pick = ["test", "measure"].map(name => table.querySelector(`select[name=${name}]`)).filter(Boolean);
  const chosen = name => pick.find(select => select.name === name)?.value;
  const show = () => cells.forEach(cell => {
    const { test, measure } = cell.dataset;
    const wanted = chosen("measure") ? [chosen("measure"), "latency_s"].includes(measure) : printed.has(measure);
    cell.hidden = !wanted || ![test, "", undefined].includes(chosen("test"));
  });
  const fit = () => {
    for (const select of pick) {
      select.options[0].hidden = narrow.matches;
      select.selectedIndex = narrow.matches && select.options.length > 1 ? 1 : 0;
    }
    show();
  };
  pick.forEach(select => select.addEventListener("change", show));
  narrow.addEventListener("change", fit);
  fit();
}

// Two columns of a grid of pictures, one above the other, cut where the slider is.
const compare = document.querySelector("#compare");
if (compare) {
  const sheets = JSON.parse(compare.querySelector("[type='application/json']").textContent);
  const [sheet, left, right] = compare.querySelectorAll("select");
  const [slider, tiles] = [compare.querySelector("[type=range]"), compare.querySelector(".tiles")];
  const cut = () => tiles.style.setProperty("--cut", `${slider.value}%`);
  const cell = (column, y) => `<i class="cell" role="img" style="--x: ${column.selectedIndex}; --y: ${y}"></i>`;
  const draw = () => {
    const { prompts } = sheets[sheet.value];
    tiles.innerHTML = prompts.map((_, y) => `<div><div class="pair">${cell(right, y)}${cell(left, y)}</div><span></span></div>`).join("");
    tiles.querySelectorAll("span").forEach((span, y) => {
      span.textContent = prompts[y];
      span.previousSibling.childNodes.forEach((image, n) => image.setAttribute("aria-label", `${[right, left][n].value}: ${prompts[y]}`));
    });
  };
  const open = () => {
    const { columns, prompts, shape } = sheets[sheet.value];
    for (const select of [left, right]) select.replaceChildren(...columns.map(name => new Option(name)));
    left.selectedIndex = Math.max(0, columns.findLastIndex(name => name.startsWith("LCM")));
    right.selectedIndex = columns.findLastIndex(name => name.startsWith("SPLAM"));
    if (right.selectedIndex < 0) right.selectedIndex = columns.length - 1;
    const facts = { sheet: `url(figures/${sheet.value}.webp)`, across: columns.length, down: prompts.length, shape: shape.join("/") };
    for (const [name, value] of Object.entries(facts)) tiles.style.setProperty(`--${name}`, value);
    draw();
  };
  sheet.addEventListener("change", open);
  for (const select of [left, right]) select.addEventListener("change", draw);
  slider.addEventListener("input", cut);
  tiles.addEventListener("pointermove", event => {
    const box = event.target.closest(".pair")?.getBoundingClientRect();
    if (box) slider.value = (100 * (event.clientX - box.left)) / box.width;
    cut();
  });
  open();
  cut();
}
