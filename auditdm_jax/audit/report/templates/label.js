
"use strict";
// Shows one find after the other, keeps what was said of each, and saves it as a file.
{
  const one = (id) => document.getElementById(id);
  const items = [...document.querySelectorAll(".item")];
  const finds = items.map((item) => item.dataset.find);
  const sample = one("main").dataset.sample, place = `auditdm-labels-1 ${sample}`;
  const keys = {
    a: "A", 1: "A", b: "B", 2: "B", o: "both", 3: "both", n: "neither", 4: "neither",
    u: "unclear", 5: "unclear",
  };
  const says = [...document.querySelectorAll("[data-say]")];
  let said = {}, now = 0;

  const load = () => {
    try {
      const kept = JSON.parse(localStorage.getItem(place) ?? "{}");
      for (const find of finds) {
        if (says.some((s) => s.dataset.say === kept.said?.[find])) said[find] = kept.said[find];
      }
      if (!one("rater").value && typeof kept.rater === "string") one("rater").value = kept.rater;
    } catch {
      one("forgets").hidden = false;
    }
  };

  const keep = () => {
    try {
      localStorage.setItem(place, JSON.stringify({ rater: one("rater").value, said }));
    } catch {
      one("forgets").hidden = false;
    }
  };

  const show = () => {
    const reading = one("help").open, done = now === items.length;
    items.forEach((item, i) => { item.hidden = reading || i !== now; });
    one("done").hidden = reading || !done;
    one("says").hidden = reading || done;
    one("back").disabled = now === 0;
    one("on").disabled = done;
    for (const button of says) {
      button.setAttribute("aria-pressed", String(!done && said[finds[now]] === button.dataset.say));
    }
    const n = Object.keys(said).length;
    const unclear = Object.values(said).filter((word) => word === "unclear").length;
    one("progress").value = n;
    one("count").textContent = `${n} of ${items.length} labelled, ${unclear} unclear`
      + (done ? "" : `; this is number ${now + 1}`);
    items[now + 1]?.querySelector("img").setAttribute("loading", "eager");
    if (done && !reading) one("done").focus();
  };

  const go = (to) => {
    now = Math.min(Math.max(to, 0), items.length);
    show();
  };

  const say = (word) => {
    if (now === items.length || one("help").open) return;
    said[finds[now]] = word;
    keep();
    go(now + 1);
  };

  const save = () => {
    const name = one("rater");
    if (!name.value.trim()) {
      name.focus();
      one("count").textContent = "Give your name first";
      return;
    }
    const labels = finds.filter((f) => said[f]).map((f) => ({ find: f, said: said[f] }));
    const text = JSON.stringify({
      format: "auditdm-labels-1", sample, rater: name.value.trim(), labels,
    }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `labels-${name.value.trim().replace(/[^\w.-]+/g, "-")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  };

  const zoom = () => items[now]?.querySelector("img").classList.toggle("own");

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target instanceof HTMLInputElement) {
      if (event.key === "Enter") event.target.blur();
      return;
    }
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (Object.hasOwn(keys, key)) say(keys[key]);
    else if (key === "?") one("help").open = !one("help").open;
    else if (one("help").open && key === "Enter" && event.target === document.body) one("help").open = false;
    else if (key === "ArrowLeft" || key === "Backspace") go(now - 1);
    else if (key === "ArrowRight") go(now + 1);
    else if (key === "z") zoom();
    else if (key === "s") save();
    else return;
    event.preventDefault();
  });
  for (const button of says) button.addEventListener("click", () => say(button.dataset.say));
  for (const item of items) item.querySelector("img").addEventListener("click", zoom);
  one("back").addEventListener("click", () => go(now - 1));
  one("on").addEventListener("click", () => go(now + 1));
  one("save").addEventListener("click", save);
  one("rater").addEventListener("input", keep);
  addEventListener("beforeunload", (event) => { if (!one("forgets").hidden) event.preventDefault(); });

  one("help").addEventListener("toggle", show);
  one("start").addEventListener("click", () => { one("help").open = false; });

  load();
  one("help").open = Object.keys(said).length === 0;
  const open = finds.findIndex((find) => !said[find]);
  go(open < 0 ? items.length : open);
}
