"use strict";

const element = (id) => document.getElementById(id);
const state = { language: "en", info: null, results: null, detail: null };

// Texts of the chosen language, with their gaps filled.
function t(key, values = {}) {
  return TEXTS[state.language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(2).replace(/^-(?=[0.]+$)/, ""));

function setLanguage(language) {
  state.language = language;
  try { localStorage.setItem("language", language); } catch { /* storage may be switched off */ }
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.querySelectorAll("[data-text]").forEach((each) => (each.textContent = t(each.dataset.text)));
  document.querySelectorAll("[data-language]").forEach((each) =>
    each.setAttribute("aria-pressed", String(each.dataset.language === language)));
  if (state.info) element("about").textContent = t("about", { pairs: state.info.pairs.toLocaleString(language), data: state.info.data });
  say("");
  if (state.results) showResults(state.results);
  if (state.detail) showDetail(state.detail.picture, state.detail.answer);
}

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: body instanceof Blob ? body : JSON.stringify(body) };
  let response, answer;
  try {
    response = await fetch(path, options);
    answer = await response.json();
  } catch {
    throw Object.assign(new Error(), { reason: "no_server" });
  }
  if (!response.ok) throw Object.assign(new Error(answer.error), { reason: reasonOf(response.status, path) });
  return answer;
}

// The server's messages are English: the page says by itself what went wrong.
function reasonOf(status, path) {
  const refused = { "api/search": "text_refused", "api/search-picture": "picture_refused", "api/ground": "pair_refused" };
  return { 400: refused[path], 404: "picture_gone", 413: "too_large" }[status] ?? "server_failed";
}

// One request at a time: a later one replaces the answer of an earlier one.
let asked = 0;
async function during(message, work) {
  const number = ++asked;
  say(message);
  document.body.setAttribute("aria-busy", "true");
  try {
    const show = await work();
    if (number === asked) show();
  } catch (error) {
    if (number === asked) say(t("failed", { error: error.reason ? t(error.reason, { error: error.message }) : error.message }), true);
  } finally {
    if (number === asked) document.body.removeAttribute("aria-busy");
  }
}

function searchText(text) {
  return during(t("working"), async () => {
    const results = await ask("api/search", { text });
    return () => { element("detail").hidden = true; state.detail = null; showResults(results); };
  });
}

function searchPicture(file) {
  return during(t("working"), async () => {
    const results = await ask("api/search-picture", file);
    return () => { showResults(results); const best = results.models[0].hits[0]; if (best) openPicture(results.picture, best.text); };
  });
}

function openPicture(picture, text) {
  return during(t("grounding"), async () => {
    const answer = await ask("api/ground", text === undefined ? { picture } : { picture, text });
    return () => { showDetail(picture, answer); element("detail").focus({ preventScroll: true }); element("detail").scrollIntoView({ block: "start" }); };
  });
}

function showResults(results) {
  state.results = results;
  element("results").hidden = false;
  element("columns").replaceChildren(...results.models.map((model) => {
    const list = make("ol", { className: "hits" }, ...model.hits.map((hit) => make("li", {}, hitButton(results, hit))));
    return make("div", {}, ...(results.models.length > 1 ? [make("h3", { textContent: model.name })] : []), list);
  }));
  const found = t("found", { count: results.models[0].hits.length });
  say(results.unknown?.length ? `${found} ${t("unknown", { words: results.unknown.join(", ") })}` : found);
}

function hitButton(results, hit) {
  const button = make("button", { type: "button", className: "hit" },
    make("img", { src: `picture/${hit.pair}`, alt: "", loading: "lazy" }),
    make("span", { className: "score", textContent: score(hit.score) }),
    make("span", { textContent: hit.text }));
  button.setAttribute("aria-label", t("open", { id: hit.id, score: score(hit.score), text: hit.text }));
  // A picture that was dropped is compared with the sentence of the pair; else the pair with its own sentence.
  button.addEventListener("click", () => openPicture(results.picture ?? String(hit.pair), results.picture ? hit.text : undefined));
  return button;
}

function showDetail(picture, answer) {
  state.detail = { picture, answer };
  element("detail").hidden = false;
  element("spoken").textContent = "";
  element("sentence").replaceChildren(...sentenceParts(answer));
  element("pictures").replaceChildren(...answer.models.map((model) => pictureOf(picture, answer, model)));
  say("");
}

// The sentence: a button for each word or entity, plain text between them.
function sentenceParts(answer) {
  const parts = [];
  const characters = Array.from(answer.text); // intervals count code points
  let done = 0;
  answer.units.forEach((unit, number) => {
    parts.push(characters.slice(done, unit.start).join(""));
    const first = answer.models[0].units[number];
    const button = make("button", { type: "button", className: "unit", textContent: characters.slice(unit.start, unit.end).join("") });
    button.classList.toggle("entity", unit.entity);
    button.classList.toggle("absent", Boolean(first) && first.shown === false);
    button.classList.toggle("unread", !first);
    button.addEventListener("mouseenter", () => lightWord(number));
    button.addEventListener("focus", () => lightWord(number));
    button.addEventListener("mouseleave", dark);
    button.addEventListener("blur", dark);
    button.addEventListener("click", () => lightWord(number)); // on a phone
    parts.push(button);
    done = unit.end;
  });
  parts.push(characters.slice(done).join(""));
  return parts;
}

function pictureOf(picture, answer, model) {
  const frame = make("div", { className: "picture" },
    make("img", { src: `picture/${picture}`, alt: t("picture") }),
    make("canvas", { className: "heat" }));
  answer.boxes.forEach((box, number) => frame.append(boxButton(answer, model, box, number)));
  frame.append(make("i", { className: "found", hidden: true }));
  const figure = make("figure", {}, frame, make("figcaption", {},
    ...(answer.models.length > 1 ? [make("b", { textContent: model.name }), " · "] : []),
    t("sentence", { score: score(model.sentence) })));
  figure.model = model;
  return figure;
}

function boxButton(answer, model, box, number) {
  const button = make("button", { type: "button", className: "box" });
  place(button, box.box);
  const label = () => boxLabel(answer, model, number);
  button.setAttribute("aria-label", label());
  button.append(make("b", { textContent: "" }));
  button.addEventListener("mouseenter", () => lightBox(number, label()));
  button.addEventListener("focus", () => lightBox(number, label()));
  button.addEventListener("mouseleave", dark);
  button.addEventListener("blur", dark);
  return button;
}

function place(target, [left, top, right, bottom]) {
  Object.assign(target.style, {
    left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
  });
}

// The units of a box: those whose best box it is, and that the picture shows.
function unitsOf(model, number) {
  return model.units.flatMap((unit, index) => {
    if (!unit || unit.shown === false || !unit.scores.length) return [];
    return unit.scores.indexOf(Math.max(...unit.scores)) === number ? [index] : [];
  });
}

function boxLabel(answer, model, number) {
  const characters = Array.from(answer.text);
  const words = unitsOf(model, number).map((index) => {
    const unit = answer.units[index];
    return `${characters.slice(unit.start, unit.end).join("")} (${score(model.units[index].scores[number])})`;
  });
  return t("box", { number: number + 1, words: words.join(", ") || t("nothing") });
}

function lightWord(number) {
  dark();
  const { answer } = state.detail;
  const buttons = [...document.querySelectorAll(".unit")];
  buttons[number].classList.add("lit");
  document.querySelectorAll("#pictures figure").forEach((figure) => {
    const unit = figure.model.units[number];
    if (!unit) return;
    drawHeat(figure.querySelector("canvas"), unit.heat);
    const boxes = [...figure.querySelectorAll(".box")];
    const best = unit.scores.indexOf(Math.max(...unit.scores));
    boxes.forEach((box, index) => {
      box.firstChild.textContent = score(unit.scores[index]);
      box.classList.toggle("lit", index === best && unit.shown !== false);
    });
    if (!boxes.length && unit.box && unit.shown !== false) {
      const found = figure.querySelector(".found");
      place(found, unit.box);
      found.hidden = false;
    }
    figure.classList.add("dimmed");
  });
  const word = buttons[number].textContent, unit = answer.models[0].units[number];
  const key = !unit ? "word_unread" : unit.shown === false ? "word_absent" : "word";
  element("spoken").textContent = t(key, { word, score: score(unit?.score) });
}

function lightBox(number, label) {
  dark();
  const buttons = [...document.querySelectorAll(".unit")];
  document.querySelectorAll("#pictures figure").forEach((figure) => {
    figure.querySelectorAll(".box")[number].classList.add("lit");
    unitsOf(figure.model, number).forEach((index) => buttons[index].classList.add("lit"));
  });
  element("spoken").textContent = label;
}

function dark() {
  document.querySelectorAll(".lit").forEach((each) => each.classList.remove("lit"));
  document.querySelectorAll(".dimmed").forEach((each) => each.classList.remove("dimmed"));
  document.querySelectorAll(".box b").forEach((each) => (each.textContent = ""));
  document.querySelectorAll(".found").forEach((each) => (each.hidden = true));
  document.querySelectorAll("canvas.heat").forEach((each) => each.getContext("2d").clearRect(0, 0, each.width, each.height));
}

// A pixel for each patch; the style stretches the canvas over the picture.
function drawHeat(canvas, heat) {
  if (!heat) return;
  canvas.width = heat[0].length;
  canvas.height = heat.length;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  heat.flat().forEach((value, index) => pixels.data.set([255, 90 + value / 3, 0, 0.7 * value], 4 * index));
  context.putImageData(pixels, 0, 0);
}

element("search").addEventListener("submit", (event) => {
  event.preventDefault();
  searchText(element("text").value);
});
element("file").addEventListener("change", () => {
  if (element("file").files.length) searchPicture(element("file").files[0]);
});
// Browsers report no change where the file is the one that was chosen before.
element("file").addEventListener("click", () => (element("file").value = ""));
addEventListener("dragover", (event) => { event.preventDefault(); element("drop").classList.add("over"); });
addEventListener("dragleave", () => element("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  if (event.dataTransfer.files.length) searchPicture(event.dataTransfer.files[0]);
});
document.querySelectorAll("[data-language]").forEach((each) =>
  each.addEventListener("click", () => setLanguage(each.dataset.language)));

let language = navigator.language.startsWith("zh") ? "zh" : "en";
try { language = localStorage.getItem("language") ?? language; } catch { /* storage may be switched off */ }
setLanguage(TEXTS[language] ? language : "en");
ask("api/info").then((info) => {
  state.info = info;
  setLanguage(state.language);
});
