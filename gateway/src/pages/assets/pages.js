// What the pages do beyond HTML: copying a key, and figures that stay up to date. Each page works without.
"use strict";

for (const button of document.querySelectorAll("[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  const said = button.closest(".copyable").querySelector("[data-copied]");
  button.hidden = false;
  button.addEventListener("click", async () => {
    source.select();
    try {
      await navigator.clipboard.writeText(source.value);
      said.textContent = "Copied.";
    } catch {
      said.textContent = "The browser does not let this page copy. The key is selected: copy it by hand.";
    }
  });
}

const main = document.querySelector("main[data-live]");
if (main && "EventSource" in window) {
  let source = null;

  const show = (event) => {
    const { texts, meter } = JSON.parse(event.data);
    for (const [name, text] of Object.entries(texts)) {
      for (const place of main.querySelectorAll(`[data-figure="${name}"]`)) {
        if (place.textContent !== text) place.textContent = text;
      }
    }
    const bar = main.querySelector("[data-meter]");
    if (meter && bar) {
      const percent = Math.min(100, Math.max(0, meter.percent));
      bar.setAttribute("aria-valuenow", percent.toFixed(1));
      bar.setAttribute("aria-valuetext", meter.text);
      bar.querySelector(".fill").setAttribute("width", `${percent.toFixed(2)}%`);
      bar.classList.toggle("full", meter.alarming);
    }
  };

  // A browser tries again by itself what broke, and not what was refused.
  const REFUSED_FOR = 30_000;
  const failed = (event) => {
    if (event.target.readyState === EventSource.CLOSED) setTimeout(follow, REFUSED_FOR);
  };

  // A page that nobody sees holds no connection: a browser has few of them.
  const follow = () => {
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (!source || source.readyState === EventSource.CLOSED) {
      source = new EventSource(main.dataset.live);
      source.addEventListener("message", show);
      source.addEventListener("error", failed);
    }
  };
  document.addEventListener("visibilitychange", follow);
  follow();
}
